/**
 * A process: memory, descriptors, credentials, limits, and its main thread.
 *
 * A system call is a generator run on one of its threads:
 * `kernel.sched.execute(process.thread, process.sys.close(3))`, or
 * `process.run(process.sys.close(3))` for short.
 *
 * Source: struct task_struct, copy_process, do_exit.
 */
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step, Task } from "../../sched/task.ts";
import type { Kernel } from "../kernel.ts";
import { AddressSpace } from "../mm/address_space.ts";
import { Mm } from "../mm/mm.ts";
import type { UserMemory } from "../mm/user_memory.ts";
import type { FdTable } from "./fd_table.ts";
import { Syscalls } from "./syscalls.ts";

/** What is counted per user, over all its processes. */
export interface UserStruct {
  readonly uid: number;
  /** Pages charged against RLIMIT_MEMLOCK. */
  lockedVm: number;
}

export interface Credentials {
  uid: number;
  user: UserStruct;
  /** `CAP_*` names. */
  capabilities: Set<string>;
}

export interface Rlimits {
  /** Soft RLIMIT_NOFILE, descriptors. */
  nofile: number;
  /** Soft RLIMIT_MEMLOCK, bytes. */
  memlock: bigint;
}

export const RLIM_INFINITY = 0xffff_ffff_ffff_ffffn;

/** Capabilities of a process that runs as root. */
export const ROOT_CAPABILITIES: readonly string[] = [
  "CAP_CHOWN",
  "CAP_DAC_OVERRIDE",
  "CAP_IPC_LOCK",
  "CAP_SYS_ADMIN",
  "CAP_SYS_RAWIO",
  "CAP_SYS_RESOURCE",
];

export interface ProcessOptions {
  readonly name?: string;
  /** Default 0. */
  readonly uid?: number;
  /** Default: all of them for uid 0, none for another. */
  readonly capabilities?: Iterable<string>;
  readonly nofile?: number;
  readonly memlock?: bigint;
  /** Default: simulated memory. */
  readonly memory?: UserMemory;
}

export class Process {
  readonly kernel: Kernel;
  readonly pid: number;
  name: string;
  readonly mm: Mm;
  readonly files: FdTable;
  readonly creds: Credentials;
  readonly rlimits: Rlimits;
  readonly thread: Task;
  /** The system calls, as generators to run on a thread of this process. */
  readonly sys: Syscalls;
  exited = false;
  #threads = 1;

  /** Use `Vfs.createProcess` or `fork`. `pid`: default the next one. */
  constructor(kernel: Kernel, name: string, mm: Mm, files: FdTable, creds: Credentials, rlimits: Rlimits, pid?: number) {
    this.kernel = kernel;
    this.pid = pid ?? kernel.fs.nextPid();
    this.name = name;
    this.mm = mm;
    this.files = files;
    this.creds = creds;
    this.rlimits = rlimits;
    this.thread = kernel.sched.thread(name, this);
    this.sys = new Syscalls(this);
    kernel.fs.processes.set(this.pid, this);
  }

  /** The simulated memory. Throws `KernelBug` when the process's memory is a real one. */
  get space(): AddressSpace {
    const { memory } = this.mm;
    if (!(memory instanceof AddressSpace)) throw new KernelBug(`${this.name} has no simulated address space`);
    return memory;
  }

  /** True when it holds the capability, `"CAP_IPC_LOCK"`. */
  capable(capability: string): boolean {
    return this.creds.capabilities.has(capability);
  }

  /** Runs a call on the main thread to its end; see `Sched.execute`. */
  run<T>(body: Step<T>): T {
    return this.kernel.sched.execute(this.thread, body);
  }

  /** Another thread of the process, idle. */
  newThread(name = `${this.name}/${++this.#threads}`): Task {
    return this.kernel.sched.thread(name, this);
  }

  /** A child: a copy of the memory (on write), the same open files, the same credentials. */
  fork(): Process {
    const { kernel } = this;
    const memory = this.mm.memory.fork?.();
    if (memory === undefined) throw new KernelBug(`${this.name}: its memory cannot be copied here`);
    const rlimits = { ...this.rlimits };
    const creds = { ...this.creds, capabilities: new Set(this.creds.capabilities) };
    const child = new Process(kernel, `${this.name}'`, new Mm(kernel, memory), this.files.fork(rlimits), creds, rlimits);
    if (kernel.trace.on) kernel.trace.emit({ type: "fs.fork", pid: this.pid, child: child.pid });
    return child;
  }

  /** Becomes another user (setresuid): root's capabilities go with it. */
  setUid(uid: number): void {
    if (this.creds.uid === 0 && uid !== 0) this.creds.capabilities.clear();
    this.creds.uid = uid;
    this.creds.user = this.kernel.fs.user(uid);
  }

  /** What exec does to descriptors: those with O_CLOEXEC are closed. */
  *exec(): Step<void> {
    for (const f of this.files.takeAll(true)) this.kernel.fs.fput(f);
    yield* this.kernel.fs.flushTaskWork();
  }

  /**
   * The end of the process: first its memory goes, then its descriptors, in
   * order; the files that this was the last of are released at the very end,
   * the last one closed first.
   */
  *exit(): Step<void> {
    if (this.exited) throw new KernelBug(`${this.name} exits twice`);
    this.exited = true;
    const { kernel } = this;
    if (kernel.trace.on) kernel.trace.emit({ type: "fs.exit", pid: this.pid });
    this.mm.put();
    for (const f of this.files.takeAll()) kernel.fs.fput(f);
    if (kernel.fs.processes.get(this.pid) === this) kernel.fs.processes.delete(this.pid);
    yield* kernel.fs.flushTaskWork();
  }
}
