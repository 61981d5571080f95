/**
 * What the scenarios have in common: a machine of small functions, a process
 * that drives them, tasks, and what is checked whoever they are.
 *
 * Checked in every scenario: results that Linux does not give; what is stated
 * of tables and trackers between operations (`checkInvariants`: I3, I4, I7);
 * that from the return of a revoke to the start of what ends it nobody reaches
 * the BAR (I1, I2), counted over the mappings of every domain and over whatever
 * a scenario counts beside them; that nothing is left when the process has
 * ended (I4); that a function is reset with nobody at its BAR (I6), and that a
 * BAR is mapped as device memory, even for a moment (I7). That every revoke ends (I5) is the absence of a deadlock.
 *
 * Beside locks and waits these order steps: what is decided without a lock (the
 * exporter's flag, the count of maps, whether config access is blocked, whether
 * a function sleeps); who reaches the BAR; and the windows in which nobody may.
 */
import { openLedger } from "../../kernel/iommu/ledger.ts";
import { checkInvariants } from "../../kernel/iommufd/check.ts";
import type { InterconnectKind, Kernel } from "../../kernel/kernel.ts";
import type { PciDev } from "../../kernel/pci/pci_dev.ts";
import { type PciFunctionDescription, PciModel } from "../../kernel/pci/pci_model.ts";
import { VfioPciCoreDevice } from "../../kernel/vfio/pci/vfio_pci_core.ts";
import type { VfioPciDmaBuf } from "../../kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { boot } from "../../machine/boot.ts";
import type { ModelRegistry } from "../../machine/models.ts";
import type { MachineDescription } from "../../machine/schema.ts";
import type { Refcount } from "../../sched/refcount.ts";
import type { Sched } from "../../sched/sched.ts";
import type { Step, Task } from "../../sched/task.ts";
import type { Trace } from "../../trace/trace.ts";
import { fingerprint } from "../fingerprint.ts";
import { Numbers, Recorder } from "../recorder.ts";
import { InvariantBroken, type Scenario, type Scene } from "../tasks.ts";
import { Calls, COMMAND } from "./calls.ts";

/** The functions of the machine. */
export const FIRST = "0000:01:00.0";
export const SECOND = "0000:01:00.1";
/** Memory, and what scenarios export of it. */
export const BAR = 2;
export const BYTES = 0x4000n;
export const IOVA = 0x10_0000n;

const MMIO = 16;
const CACHE = 4;

/** A function with a BAR of memory, that really sleeps in D3hot and is reset at once. */
const FUNCTION: PciFunctionDescription = {
  name: "memory",
  vendor: 0x1b36,
  device: 0x00ff,
  class: 0x05_0000,
  bars: [{ index: BAR, size: BYTES, kind: "mem32" }],
  capabilities: { pm: { noSoftReset: true } },
  deviceSpecificReset: true,
};

class MemoryFunction extends PciModel {
  readonly description: PciFunctionDescription = FUNCTION;
}

const MODELS: ModelRegistry = { memory: { resolve: () => () => new MemoryFunction() } };

/** `functions` of them on one bus: what resets together. */
const machine = (functions: number): MachineDescription => ({
  name: "scenario",
  memory: "16 MiB",
  iommu: { kind: "intel-legacy" },
  modules: ["iommufd", "vfio-pci", "udmabuf", "system-heap"],
  pci: {
    peerToPeerHostBridge: true,
    children: [
      {
        type: "root-port",
        children: Array.from({ length: functions }, (_, n) => ({ type: "device" as const, slot: `00.${n}`, model: "memory" })),
      },
    ],
  },
});

const MACHINES: Readonly<Record<InterconnectKind, readonly MachineDescription[]>> = {
  "linux-7.3": [machine(1), machine(2)],
  negotiated: [machine(1), machine(2)].map((m) => ({ ...m, interconnect: "negotiated" })),
};

export class Stage {
  readonly kernel: Kernel;
  readonly calls: Calls;
  readonly recorder: Recorder;
  readonly #functions: readonly string[];
  /** What each task ended with. */
  readonly #results: Map<string, string> = new Map();
  readonly #threads: Map<string, Task> = new Map();
  #atFirst = "";
  #time = 0;
  readonly #reaching: Map<string, number> = new Map();
  /** Windows in which a BAR may not be reached, that are open. */
  readonly #windows: Map<string, Set<string>> = new Map();

  constructor(functions: 1 | 2, record: (sched: Sched) => Recorder, interconnect: InterconnectKind) {
    let recorder: Recorder | undefined;
    this.kernel = boot(MACHINES[interconnect][functions - 1] as MachineDescription, {
      models: MODELS,
      onKernel: (kernel) => {
        openLedger(kernel);
        recorder = record(kernel.sched);
      },
    });
    this.recorder = recorder as Recorder;
    this.#functions = [FIRST, SECOND].slice(0, functions);
    this.#listen();
    this.calls = new Calls(this.kernel.fs.createProcess({ name: "vmm" }));
  }

  pdev(bdf: string = FIRST): PciDev {
    return this.kernel.pci.devices.get(bdf) as PciDev;
  }

  vdev(bdf: string = FIRST): VfioPciCoreDevice {
    const vdev = this.pdev(bdf).driverData;
    if (!(vdev instanceof VfioPciCoreDevice)) throw new TypeError(`${bdf} is not bound to vfio-pci`);
    return vdev;
  }

  /** The one buffer that the function exports. */
  buffer(bdf: string = FIRST): VfioPciDmaBuf {
    const [buffer] = this.vdev(bdf).dmabufs;
    if (buffer === undefined) throw new TypeError(`${bdf} exports nothing`);
    return buffer;
  }

  /** Called when all is set up: what is decided without a lock is seen from here on. */
  watch(): void {
    const { recorder } = this;
    for (const bdf of this.#functions) {
      const pdev = this.pdev(bdf);
      recorder.watch(pdev, "blockCfgAccess");
      recorder.watch(pdev.pm, "status");
      for (const buffer of this.vdev(bdf).dmabufs) {
        recorder.watch(buffer, "revoked");
        recorder.watch(buffer, "vdev");
        this.#watchCount(buffer.kref, `maps of ${bdf}`);
      }
    }
  }

  /**
   * The process's descriptors, and whether those in `fds` are referred to, order steps
   * too: for scenarios in which the order of opening and closing matters.
   * Which reference is the last to go depends on all that are given up.
   */
  watchFiles(fds: readonly number[]): void {
    const { recorder } = this;
    const table = this.calls.process.files;
    const looks = { get: table.get, getRaw: table.getRaw, fget: table.fget };
    const changes = {
      getUnused: table.getUnused,
      putUnused: table.putUnused,
      install: table.install,
      take: table.take,
      replace: table.replace,
    };
    for (const [name, fn] of Object.entries({ ...looks, ...changes })) {
      const write = name in changes;
      const watched = (...args: unknown[]): unknown => {
        recorder.touch(name.endsWith("Unused") ? "free descriptors" : `fd ${String(args[0])}`, write);
        return Reflect.apply(fn, table, args);
      };
      Object.defineProperty(table, name, { value: watched, configurable: true });
    }
    for (const fd of fds) {
      const file = table.get(fd);
      if (file instanceof Errno) throw new TypeError(`descriptor ${fd} is not open`);
      this.#watchCount(file.count, `references of ${fd}`);
    }
  }

  /** Every use of a count is seen: which of two comes first can decide who is the last. */
  #watchCount(count: Refcount, name: string): void {
    const { recorder } = this;
    const { get, put, getNotZero, reinit } = count;
    count.get = () => {
      recorder.touch(name);
      get.call(count);
    };
    count.put = () => {
      recorder.touch(name);
      return put.call(count);
    };
    count.getNotZero = () => {
      recorder.touch(name);
      return getNotZero.call(count);
    };
    count.reinit = (n) => {
      recorder.touch(name);
      reinit.call(count, n);
    };
  }

  #listen(): void {
    /** Mappings of a BAR, by domain and IOVA. */
    const mapped = new Map<string, string>();
    this.kernel.trace.listen(({ event: e }) => {
      if (e.type === "iommu.map" && e.errno === undefined) {
        const bdf = this.#functions.find((f) => this.#barHolds(f, e.pa));
        if (bdf === undefined) return;
        if ((e.prot & MMIO) === 0 || (e.prot & CACHE) !== 0) throw new InvariantBroken("I7: a BAR is mapped as memory");
        mapped.set(`${e.domain} ${e.iova}`, bdf);
        this.reach(1, bdf);
      }
      if (e.type === "pci.reset") this.#undisturbed([e.device]);
      if (e.type === "pci.bus_reset") this.#undisturbed(e.devices);
      if (e.type === "iommu.unmap" && e.unmapped > 0n) {
        const bdf = mapped.get(`${e.domain} ${e.iova}`);
        if (bdf !== undefined && mapped.delete(`${e.domain} ${e.iova}`)) this.reach(-1, bdf);
      }
    });
  }

  /** The functions were reset just now. */
  #undisturbed(devices: readonly string[]): void {
    for (const bdf of devices) this.recorder.touch(`reach ${bdf}`, false);
    for (const bdf of devices) if (this.reached(bdf) > 0) throw new InvariantBroken(`I6: ${bdf} is reset while a peer reaches its BAR`);
  }

  #barHolds(bdf: string, pa: bigint): boolean {
    const bar = this.pdev(bdf).resources[BAR];
    return bar !== undefined && pa >= bar.start && pa < bar.start + bar.length;
  }

  /** One more way to a function's BAR, or one less. */
  reach(by: 1 | -1, bdf: string = FIRST): void {
    this.recorder.touch(`reach ${bdf}`);
    this.#reaching.set(bdf, this.reached(bdf) + by);
    this.#quiet(bdf);
  }

  /** Ways on which a function's BAR is reached now. */
  reached(bdf: string = FIRST): number {
    return this.#reaching.get(bdf) ?? 0;
  }

  /** From now on nobody may reach the BAR, because of `why`, until that is over. */
  forbid(why: string, bdf: string = FIRST): void {
    this.recorder.touch(`reach ${bdf}`);
    this.#windows.set(bdf, new Set(this.#windows.get(bdf)).add(why));
    this.#quiet(bdf);
  }

  allow(why: string, bdf: string = FIRST): void {
    this.recorder.touch(`reach ${bdf}`);
    const left = new Set(this.#windows.get(bdf));
    left.delete(why);
    if (left.size === 0) this.#windows.delete(bdf);
    else this.#windows.set(bdf, left);
  }

  /** Is there a window open in which nobody may reach the BAR? */
  forbidden(bdf: string = FIRST): boolean {
    this.recorder.touch(`reach ${bdf}`, false);
    return this.#windows.has(bdf);
  }

  #quiet(bdf: string): void {
    const why = this.#windows.get(bdf);
    if (why === undefined || this.reached(bdf) === 0) return;
    throw new InvariantBroken(`I1/I2: the BAR is mapped for a peer after ${bdf}'s ${[...why].join(" and ")}`);
  }

  /** What a call may answer for pages that were revoked: Linux 7.3 does not tell. */
  get whenDead(): readonly string[] {
    return this.kernel.interconnect === "negotiated" ? ["ENODEV"] : [];
  }

  // ----- what tasks do

  /** A system call whose errors are known: its result in a word. */
  *answered(call: Step<number | bigint | Errno | undefined>, errors: readonly string[] = []): Step<string> {
    const r = yield* call;
    if (!(r instanceof Errno)) return "0";
    if (!errors.includes(r.name)) throw new InvariantBroken(`a call answers ${r.name}, and never does so on Linux`);
    return r.name;
  }

  ioctl(fd: number, cmd: number, args: bigint, errors: readonly string[] = []): Step<string> {
    return this.answered(this.calls.process.sys.ioctl(fd, cmd, args), errors);
  }

  /** Turns decode of a function off, and lets others see it so. */
  *decodeOff(fd: number, args: bigint, bdf: string = FIRST): Step<void> {
    yield* this.#command(fd, args);
    this.forbid("decode off", bdf);
    yield* this.kernel.sched.yield();
  }

  *decodeOn(fd: number, args: bigint, bdf: string = FIRST): Step<void> {
    this.allow("decode off", bdf);
    yield* this.#command(fd, args);
  }

  *#command(fd: number, args: bigint): Step<void> {
    const r = yield* this.calls.process.sys.pwrite(fd, args, 2, COMMAND);
    if (r !== 2) throw new InvariantBroken(`the config write answers ${String(r)}`);
  }

  /** Starts a thread of the process; what it ends with becomes part of the state. */
  task(name: string, body: Step<string>): Task {
    let task = this.#threads.get(name);
    if (task === undefined) {
      task = this.calls.process.newThread(name);
      this.#threads.set(name, task);
    }
    this.#results.set(name, "not ended");
    this.kernel.sched.start(task, noted(this.#results, name, body));
    return task;
  }

  /** All is set up: what that has queued is done first. The state that `isAsAtFirst` compares with. */
  begin(): void {
    this.kernel.sched.settle();
    this.#atFirst = fingerprint(this.kernel, this.calls.process);
    this.#time = this.kernel.sched.now;
  }

  isAsAtFirst(): boolean {
    const { sched } = this.kernel;
    if (this.#windows.size > 0 || fingerprint(this.kernel, this.calls.process) !== this.#atFirst) return false;
    sched.now = this.#time;
    return true;
  }

  /** What holds at the end of every run, while the process lives; the final state in words. */
  state(): string {
    checkInvariants(this.kernel);
    const ways = this.#functions.map((bdf) => this.reached(bdf)).join("+");
    const state = [...this.#results].map(([name, result]) => `${name} = ${result}`).join(", ");
    return `${state}; reached ${ways}`;
  }

  /** The process ends: nothing may be left of it. */
  exit(): void {
    const { kernel, calls } = this;
    calls.process.run(calls.process.exit());
    kernel.sched.settle();
    const left = [...kernel.leakChecks].flatMap(([what, count]) => (count() === 0 ? [] : [`${count()} ${what}`]));
    if (left.length > 0) throw new InvariantBroken(`I4: left when the process has ended: ${left.join(", ")}`);
  }
}

/** Of the module, not of a run: a generator function made anew has a shape of its own, which only a full collection frees. */
function* noted(results: Map<string, string>, name: string, body: Step<string>): Step<void> {
  results.set(name, yield* body);
}

/** A scenario over a stage: `W` is what its set-up hands to its tasks. */
export interface Play<W> {
  readonly name: string;
  readonly summary: string;
  /** Functions of the machine; default 1. */
  readonly functions?: 1 | 2;
  /** Before the tasks: opens, binds, maps; best once through everything, so that every lock has been met. */
  setUp(stage: Stage): W;
  /** The tasks by name, in order. */
  readonly tasks: Readonly<Record<string, (world: W, stage: Stage) => Step<string>>>;
  /** When all tasks have ended: checks what is the scenario's own, and adds to the final state. */
  end?(world: W, stage: Stage): string;
  /**
   * Undoes, by calls, what the tasks may have done. Where all is then as it was
   * before them, the next run takes place on the same machine; where it is not,
   * or where this is absent, on one that is booted anew.
   */
  undo?(world: W, stage: Stage): void;
}

/** Called when the set-up is done, to put a part of another make in. */
export type Alter<W> = (world: W, stage: Stage) => void;

export function scenarioOf<W>(play: Play<W>, alter?: Alter<W>): Scenario {
  const leavesNothing = new Map<InterconnectKind, boolean>();
  // A state that is as at first leaves as little as the first does: that is looked at once, instead of after every run.
  const clean = (interconnect: InterconnectKind): boolean => {
    const known = leavesNothing.get(interconnect) ?? exitsClean(play, alter, interconnect);
    leavesNothing.set(interconnect, known);
    return known;
  };
  return {
    name: play.name,
    summary: play.summary,
    threads: Object.keys(play.tasks),
    setUp: (record, interconnect = "linux-7.3") => new StageScene(play, alter, clean, record, interconnect),
  };
}

function exitsClean<W>(play: Play<W>, alter: Alter<W> | undefined, interconnect: InterconnectKind): boolean {
  const stage = new Stage(play.functions ?? 1, (sched) => new Recorder(sched, new Numbers()), interconnect);
  const world = play.setUp(stage);
  alter?.(world, stage);
  try {
    stage.exit();
    return true;
  } catch (e) {
    if (e instanceof KernelBug || e instanceof InvariantBroken) return false;
    throw e;
  }
}

class StageScene<W> implements Scene {
  readonly tasks: readonly Task[];
  readonly trace: Trace;
  readonly #play: Play<W>;
  readonly #stage: Stage;
  readonly #world: W;
  readonly #clean: (interconnect: InterconnectKind) => boolean;
  #again = false;

  constructor(
    play: Play<W>,
    alter: Alter<W> | undefined,
    clean: (interconnect: InterconnectKind) => boolean,
    record: (sched: Sched) => Recorder,
    interconnect: InterconnectKind,
  ) {
    this.#play = play;
    this.#clean = clean;
    this.#stage = new Stage(play.functions ?? 1, record, interconnect);
    this.#world = play.setUp(this.#stage);
    // What the set-up has queued (functions that fall asleep) is done before the tasks start.
    this.#stage.kernel.sched.settle();
    alter?.(this.#world, this.#stage);
    this.#stage.watch();
    this.#stage.begin();
    this.trace = this.#stage.kernel.trace;
    this.tasks = this.#start();
  }

  #start(): Task[] {
    return Object.entries(this.#play.tasks).map(([name, body]) => this.#stage.task(name, body(this.#world, this.#stage)));
  }

  end(): string {
    const stage = this.#stage;
    const more = this.#play.end?.(this.#world, stage) ?? "";
    const state = stage.state();
    this.#again = this.#play.undo !== undefined && this.#clean(stage.kernel.interconnect) && this.#undone(this.#play.undo);
    if (!this.#again) stage.exit();
    return more === "" ? state : `${state}; ${more}`;
  }

  #undone(undo: (world: W, stage: Stage) => void): boolean {
    undo(this.#world, this.#stage);
    this.#stage.calls.rewrite();
    this.#stage.kernel.sched.settle();
    return this.#stage.isAsAtFirst();
  }

  renew(): readonly Task[] | undefined {
    return this.#again ? this.#start() : undefined;
  }
}

/** The same over the negotiated interconnect. */
export const negotiated = (scenario: Scenario): Scenario => ({
  ...scenario,
  name: `${scenario.name}-negotiated`,
  summary: `${scenario.summary}; negotiated`,
  setUp: (record) => scenario.setUp(record, "negotiated"),
});
