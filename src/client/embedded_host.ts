/**
 * A machine of barlink's own: the embedded kernel booted on a description, and
 * one program on it.
 *
 * Beside what any program can do, its owner can move time, watch every event,
 * plug and bind devices, and look at what the hardware sees.
 */
import type { Kernel } from "../kernel/kernel.ts";
import type { Errno } from "../lib/errno.ts";
import { type BootOptions, boot } from "../machine/boot.ts";
import type { MachineDescription } from "../machine/schema.ts";
import type { Step } from "../sched/task.ts";
import type { TraceListener } from "../trace/index.ts";
import { EmbeddedTransport } from "./embedded_transport.ts";
import { Program } from "./program.ts";

/** Where an IOVA leads, as the IOMMU's table has it. */
export interface Translated {
  /** Physical address, bytes. */
  readonly physical: bigint;
  /** Bytes that this entry covers. */
  readonly pageSize: bigint;
  /** Level of the entry; 0 covers 4 KiB. */
  readonly level: number;
  /** The entry, as it lies in memory. */
  readonly entry: bigint;
  readonly readable: boolean;
  readonly writable: boolean;
}

export class EmbeddedHost extends Program<EmbeddedTransport> {
  readonly kernel: Kernel;
  readonly machine: MachineDescription;

  private constructor(kernel: Kernel, machine: MachineDescription) {
    super(new EmbeddedTransport(kernel.fs.createProcess({ name: "program" })));
    this.kernel = kernel;
    this.machine = machine;
  }

  /** Boots the machine. Throws `MachineError` when the description asks for what cannot be. */
  static boot(machine: MachineDescription, options: BootOptions = {}): EmbeddedHost {
    return new EmbeddedHost(boot(machine, options), machine);
  }

  /** Lets virtual time pass, ns: timers fire, devices finish what they began. */
  advance(ns: number): void {
    this.kernel.sched.advance(ns);
  }

  /** Hears every event of the kernel from now on; call what it returns to stop. */
  onTrace(listener: TraceListener): () => void {
    return this.kernel.trace.listen(listener);
  }

  /** DMA that the IOMMU has refused since boot. */
  get dmaFaults(): number {
    return this.kernel.iommu.faults;
  }

  /** PCI devices by address, bridges too, in order of discovery. */
  get devices(): readonly string[] {
    return [...this.kernel.pci.devices.keys()];
  }

  /** As a write of the address to the driver's `bind` in sysfs. */
  bindDriver(driver: string, address: string): Errno | undefined {
    return this.#kthread(`bind ${address}`, () => this.kernel.pci.bind(driver, address));
  }

  /** As a write of the address to its driver's `unbind`. Throws `WouldBlock` while a program has the device open. */
  unbindDriver(address: string): Errno | undefined {
    return this.#kthread(`unbind ${address}`, () => this.kernel.pci.unbind(address));
  }

  /** Hot-unplug. Throws `WouldBlock` while a program has the device open; it goes on when that closes it. */
  unplug(address: string): void {
    this.#kthread(`unplug ${address}`, () => this.kernel.pci.removeDevice(address));
  }

  /** The page-table entry behind `iova` for a device's DMA; undefined when nothing is mapped, or the table is a guest's. */
  lookUp(address: string, iova: bigint): Translated | undefined {
    const dev = this.kernel.pci.devices.get(address);
    if (dev === undefined) throw new RangeError(`no device ${address} on this machine; it has ${this.devices.join(", ")}`);
    const table = this.kernel.iommu.requester(dev.rid)?.domain.pageTableOrNone;
    const t = table?.translate(iova);
    const leaf = [...(table?.walk(iova, iova) ?? [])].find((e) => e.kind === "leaf");
    if (t === undefined || leaf === undefined) return undefined;
    return {
      physical: t.pa,
      pageSize: t.pageSize,
      level: leaf.level,
      entry: leaf.value,
      readable: t.readable,
      writable: t.writable,
    };
  }

  /** Where a BAR lies on the bus; undefined when the device has no such BAR. */
  barAddress(address: string, bar: number): bigint | undefined {
    const r = this.kernel.pci.devices.get(address)?.resources[bar];
    return r === undefined || r.length === 0n ? undefined : r.start;
  }

  /** A second program on the same machine. */
  newProgram(name = "program"): Program<EmbeddedTransport> {
    return new Program(new EmbeddedTransport(this.kernel.fs.createProcess({ name })));
  }

  /**
   * Ends the program and says what is still held: files, pins, attachments,
   * registrations, by name. Empty when all is back where it was.
   */
  shutdown(): { readonly [what: string]: number } {
    this.os.exit();
    this.kernel.sched.settle();
    const left: Record<string, number> = {};
    for (const [what, count] of this.kernel.leakChecks) {
      const n = count();
      if (n !== 0) left[what] = n;
    }
    return left;
  }

  #kthread<T>(name: string, body: () => Step<T>): T {
    return this.kernel.sched.execute(this.kernel.sched.thread(name), body());
  }
}
