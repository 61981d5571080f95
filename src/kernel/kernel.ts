/**
 * A booted kernel: the one object from which every subsystem is reached.
 *
 * It holds no state of its own beyond the subsystems. Order of construction is
 * the order of dependence: scheduler, trace, memory, files, buses, IOMMU; then
 * the modules (dma-buf exporters, vfio, iommufd) are loaded by the machine.
 */
import { KernelBug } from "../lib/kernel_bug.ts";
import { Sched, type SchedObserver } from "../sched/sched.ts";
import { Trace, type TraceClock } from "../trace/trace.ts";
import { FaultInjection } from "./fault_inject.ts";
import type { Process } from "./fs/process.ts";
import { Vfs } from "./fs/vfs.ts";
import { IommuSubsystem } from "./iommu/iommu.ts";
import { FrameAllocator } from "./mm/frames.ts";
import { PhysMap } from "./mm/phys.ts";
import { Modules } from "./modules.ts";
import { PciSubsystem } from "./pci/pci.ts";

/** How buffers are shared: as Linux 7.3 does it, or by the contract of `dma_buf/negotiated/`. */
export type InterconnectKind = "linux-7.3" | "negotiated";

export class Kernel {
  readonly interconnect: InterconnectKind;
  readonly sched: Sched = new Sched();
  readonly trace: Trace;
  readonly modules: Modules = new Modules();
  /** Counters that must be zero once everything is closed: name → its value now. Subsystems add their own. */
  readonly leakChecks: Map<string, () => number> = new Map();
  /** Which allocations and user copies fail. */
  readonly fault: FaultInjection;
  /** What modules keep of this kernel; see `PerKernel`. */
  readonly moduleState: Map<object, unknown> = new Map();
  /** The machine's physical address space. */
  readonly phys: PhysMap;
  /** RAM, page by page. */
  readonly frames: FrameAllocator;
  /** Files, device nodes, processes. */
  readonly fs: Vfs;
  readonly iommu: IommuSubsystem;
  readonly pci: PciSubsystem;

  constructor(interconnect: InterconnectKind = "linux-7.3") {
    this.interconnect = interconnect;
    this.trace = new Trace(new KernelClock(this));
    this.fault = new FaultInjection(this);
    this.frames = new FrameAllocator(this);
    this.phys = new PhysMap(this);
    this.fs = new Vfs(this);
    this.iommu = new IommuSubsystem(this);
    this.pci = new PciSubsystem(this);
  }

  /** The process whose system call runs. Throws `KernelBug` in a kernel thread. */
  get current(): Process {
    const owner = this.sched.current.owner;
    if (owner === undefined) throw new KernelBug(`${this.sched.current.name} is a kernel thread: it has no process`);
    return owner as Process;
  }

  /** A line of the kernel's log, as a trace event. */
  printk(text: string): void {
    if (this.trace.on) this.trace.emit({ type: "sched.printk", text });
  }
}

/**
 * Stamps the events, and has the scheduler tell of its own while somebody
 * listens. A class, because an object literal with getters gets a hidden class
 * of its own, which would keep each kernel alive until a full collection.
 */
class KernelClock implements TraceClock {
  readonly #kernel: Kernel;
  #events: SchedObserver | undefined = undefined;

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  get now(): number {
    return this.#kernel.sched.now;
  }

  get taskName(): string {
    return this.#kernel.sched.currentOrNone?.name ?? "";
  }

  listening(on: boolean): void {
    const { sched, trace } = this.#kernel;
    // An explorer that observes goes on to; it asks for these events itself where it wants them.
    if (on && sched.observer === undefined) {
      this.#events = schedEvents(trace);
      sched.observer = this.#events;
    } else if (!on && sched.observer === this.#events) {
      sched.observer = undefined;
    }
  }
}

/** What the scheduler does, as trace events. */
export const schedEvents = (trace: Trace): SchedObserver => ({
  acquired: (_task, lock, mode) => trace.emit({ type: "sched.lock", lock: lock.name, mode }),
  released: (_task, lock) => trace.emit({ type: "sched.unlock", lock: lock.name }),
  blocked: (_task, on) => trace.emit({ type: "sched.block", on: on.name }),
  woken: (task) => trace.emit({ type: "sched.wake", woken: task.name }),
});
