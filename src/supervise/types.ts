/**
 * What the parts of the supervisor agree on.
 *
 * The core (loop, tasks, processes, files) implements `Supervisor`. Every other
 * part is a function `registerXxx(supervisor)` that adds handlers and sets
 * hooks before the program starts; nothing is registered later, because what is
 * trapped is compiled into the program's filter.
 *
 * A handler runs as a task of the embedded kernel, on the thread that made the
 * call: `kernel.current` is the process, the call may block, and the deferred
 * work it leaves (the last put of a file) is done before the program goes on.
 */
import type { File } from "../kernel/fs/file.ts";
import type { Process } from "../kernel/fs/process.ts";
import type { Kernel } from "../kernel/kernel.ts";
import type { UserMemory } from "../kernel/mm/user_memory.ts";
import type { Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";

/** A system call of the program, waiting in the kernel for its answer. */
export interface TrappedCall {
  /** The notification's id. */
  readonly id: bigint;
  /** Thread group: the process. */
  readonly pid: number;
  /** The calling thread. */
  readonly tid: number;
  /** Number of the system call, `SYS_*` of `numbers.ts`. */
  readonly nr: number;
  /** Its six arguments as the registers held them. */
  readonly args: readonly bigint[];
  /** The calling process, as the embedded kernel knows it. */
  readonly process: SupervisedProcess;
  /** Its memory. */
  readonly memory: UserMemory;
  /** The low 32 bits of an argument as an int: a descriptor, a mode. */
  int(arg: number): number;
  /** The string that an argument points to: EFAULT, ENAMETOOLONG past 4,095 bytes. Read once, then the same each time. */
  path(arg: number): string | Errno;
  /** The file behind a descriptor of the caller if it is one of ours. No reference is taken: it lives until the call ends. */
  fd(fd: number): File | undefined;
  /** False once the caller was killed or the call was given up: what was read through its pid may be another's. */
  valid(): boolean;
}

/** How a call ends. */
export type Outcome =
  /** This value, or minus the error. */
  | { readonly kind: "return"; readonly value: bigint | number | Errno }
  /** The real kernel does it. */
  | { readonly kind: "continue" }
  /** The caller gets a descriptor for this file of the embedded kernel, whose reference is taken over. `flags`: O_* of the open. */
  | { readonly kind: "file"; readonly file: File; readonly flags: number }
  /** The caller gets a copy of this descriptor of ours. `close`: ours is closed after that. */
  | { readonly kind: "addfd"; readonly hostFd: number; readonly cloexec: boolean; readonly close: boolean };

/** undefined: not mine, ask the next handler; the last one's "not mine" lets the real kernel do it. */
export interface Handler {
  (call: TrappedCall): Step<Outcome | undefined>;
  /**
   * A quick test before anything else is done: false when the handler would
   * surely say "not mine". It sees `call.nr`, `args`, `int`, `path`, `tid` and
   * `memory` only. An `openat` of an ordinary file ends here. Absent: always true.
   */
  concerns?: (call: TrappedCall) => boolean;
}

export const CONTINUE: Outcome = { kind: "continue" };
export const answer = (value: bigint | number | Errno): Outcome => ({ kind: "return", value });

/**
 * Which calls of one number are trapped. Conditions are over the arguments as
 * the registers hold them: the filter cannot follow a pointer.
 */
export type When =
  /** Every one. */
  | { readonly kind: "always" }
  /** The type byte (bits 8–15) of argument `arg`, an ioctl's command, is one of these. */
  | { readonly kind: "ioctl-type"; readonly arg: number; readonly types: readonly number[] }
  /** The high half of argument `arg` is at least `least` and its sign bit is clear: a position in a device's regions. */
  | { readonly kind: "high-half"; readonly arg: number; readonly least: number }
  /** Argument `arg` (its low half) is at most `most`. */
  | { readonly kind: "at-most"; readonly arg: number; readonly most: number }
  /** Argument `arg` is below 2^32, and a multiple of `of`. */
  | { readonly kind: "multiple"; readonly arg: number; readonly of: number }
  /** Argument `arg` (its low half) is one of these. */
  | { readonly kind: "equals"; readonly arg: number; readonly values: readonly number[] }
  /** All of these bits of argument `arg` (its low half) are set. */
  | { readonly kind: "bits"; readonly arg: number; readonly bits: number };

/** A process of the program: (thread group, program image); an exec makes a new one with the same pid. */
export interface SupervisedProcess extends Process {
  readonly target: Target;
}

/** How a process is reached from outside. */
export interface Target {
  /** Thread group. */
  readonly pid: number;
  /** A thread of it that was alive when it last called: the one to reach its memory by. The leader may be a zombie. */
  tid: number;
  /** A pidfd of the thread group, ours; -1 once it has ended. */
  readonly pidfd: number;
  /** False once the process ended or executed another program: its memory is gone. */
  alive: boolean;
}

/** Files of the embedded kernel that the program holds: each descriptor stands for a memfd that we made. */
export interface SupervisedFiles {
  /** The file of the id that stands in a memory file's name, while the program holds it. */
  byId(id: number): File | undefined;
  /** The file behind descriptor `fd` of thread `tid` if it is ours. No reference is taken. */
  lookup(tid: number, fd: number): File | undefined;
  /**
   * The memfd behind a file that the program holds: a descriptor of ours, open
   * until the file's last close. Reading, writing and truncating it is what
   * the program sees through mmap. undefined when the program holds none.
   */
  memfd(file: File): number | undefined;
  /** Calls back when the program has closed the last descriptor and mapping of `file`, before its reference is put. */
  onLastClose(file: File, callback: () => void): void;
  /** Descriptors' files in the program now. */
  readonly count: number;
}

/** Reads what happens; every member optional. R6's writers implement it. */
export interface CallObserver {
  /** A call was taken up. */
  begin?(call: TrappedCall): void;
  /** It was answered; `result` is the value or minus the error number, undefined when the real kernel did it or the caller was gone. */
  end?(call: TrappedCall, result: bigint | undefined, error: Errno | undefined): void;
  /** A process was first seen, ran another program, or ended. */
  process?(what: "new" | "exec" | "exit", process: SupervisedProcess): void;
  /** The last process has ended. */
  finish?(): void;
}

/** What the parts that know more of a process than the core supply. */
export interface Hooks {
  /** A process's memory; by default process_vm_readv and _writev, and no pins. */
  memory: (supervisor: Supervisor, target: Target) => UserMemory;
  /**
   * A file of the embedded kernel for a descriptor that is not ours, with one
   * reference that the core puts when the call ends. `link` is what readlink of
   * /proc/TID/fd/FD says.
   */
  foreign: (supervisor: Supervisor, process: SupervisedProcess, tid: number, fd: number, link: string) => File | Errno;
  /** A call of the process begins to be served: credentials and limits are to be what they are now, when they are asked for. */
  credentials: (supervisor: Supervisor, process: SupervisedProcess) => void;
}

export interface SuperviseOptions {
  /** The kernel's self-test ioctls exist. */
  readonly selftest: boolean;
  /** Checks and messages for who works on barlink. */
  readonly debug: boolean;
}

export interface Supervisor {
  readonly kernel: Kernel;
  readonly files: SupervisedFiles;
  readonly hooks: Hooks;
  readonly options: SuperviseOptions;
  /** A private folder, 0700, removed at the end (by the watchdog if we are killed). Made on first use. */
  readonly directory: string;
  /** Traps calls of a number, every one or those that fulfil one of `when`. Handlers of one number are asked in order of registration. */
  handle(nr: number, handler: Handler, ...when: readonly When[]): void;
  observe(observer: CallObserver): void;
  /** The process of a thread group that has called; undefined when none has, or it has ended. */
  process(pid: number): SupervisedProcess | undefined;
  readonly processes: Iterable<SupervisedProcess>;
  /** The call that the running task serves; undefined in kernel threads. */
  readonly currentCall: TrappedCall | undefined;
  /** Calls back every `ms` of real time while the returned function has not been called. */
  every(ms: number, callback: () => void): () => void;
  /** Calls back when the host descriptor is readable, until the returned function is called. */
  onReadable(hostFd: number, callback: () => void): () => void;
  /** Calls back when the last process has ended, in reverse order of registration. */
  atEnd(callback: () => void): void;
  /** A line to the user, on standard error, with "barlink: " before it. */
  warn(message: string): void;
}
