/**
 * One trapped call while it is served.
 *
 * It is also what the caller's descriptors are to the embedded kernel
 * (`DescriptorSource`): foreign files live as long as the call does, and so do
 * the numbers it reserved.
 */
import { type Notification, readPath } from "../host/index.ts";
import type { File } from "../kernel/fs/file.ts";
import type { UserMemory } from "../kernel/mm/user_memory.ts";
import { EPERM, type Errno } from "../lib/errno.ts";
import type { Task } from "../sched/task.ts";
import type { DescriptorSource } from "./fd_table.ts";
import type { Held } from "./files.ts";
import type { Thread } from "./processes.ts";
import type { SupervisedProcess, TrappedCall } from "./types.ts";

/** What a call needs of the supervisor. */
export interface CallHost {
  isValid(id: bigint): boolean;
  /** The caller's memory may not be read. */
  hidden(call: Call): void;
  heldFile(tid: number, fd: number): File | undefined;
  /** It stands for a file by a pipe. */
  isQueue(tid: number, fd: number): boolean;
  /** One of ours, or a foreign one that the call owns then; EBADF. */
  lookUp(call: Call, fd: number): File | Errno;
  reserve(call: Call, cloexec: boolean): number | Errno;
  install(call: Call, fd: number, file: File): void;
  putUnused(call: Call, fd: number): void;
}

export class Call implements TrappedCall, DescriptorSource {
  readonly id: bigint;
  readonly tid: number;
  readonly nr: number;
  readonly args: readonly bigint[];
  readonly thread: Thread;
  readonly host: CallHost;
  /** The task that serves it, once it is served. */
  task: Task | undefined = undefined;
  /** A signal was seen to wait for the caller. */
  interrupted = false;
  /** The file of descriptor argument 0, between the test whether it is ours and its first use. */
  found: File | undefined = undefined;
  /** Foreign files by descriptor, a reference each. */
  foreign: Map<number, File> | undefined = undefined;
  /** Numbers given out and not installed yet. */
  reserved: Map<number, Held> | undefined = undefined;
  #paths: (string | Errno | undefined)[] | undefined = undefined;

  constructor(host: CallHost, thread: Thread, n: Notification) {
    this.host = host;
    this.thread = thread;
    this.id = n.id;
    this.tid = n.tid;
    this.nr = n.nr;
    this.args = n.args;
  }

  get pid(): number {
    return this.thread.process.target.pid;
  }

  get process(): SupervisedProcess {
    return this.thread.process;
  }

  get memory(): UserMemory {
    return this.thread.process.mm.memory;
  }

  int(arg: number): number {
    return Number(BigInt.asIntN(32, this.args[arg] as bigint));
  }

  path(arg: number): string | Errno {
    this.#paths ??= [];
    const known = this.#paths[arg];
    if (known !== undefined) return known;
    const path = readPath(this.tid, this.args[arg] as bigint);
    if (path === EPERM) this.host.hidden(this);
    this.#paths[arg] = path;
    return path;
  }

  fd(fd: number): File | undefined {
    return this.host.heldFile(this.tid, fd);
  }

  valid(): boolean {
    return this.host.isValid(this.id);
  }

  lookUp(fd: number): File | Errno {
    return this.host.lookUp(this, fd);
  }

  reserve(cloexec: boolean): number | Errno {
    return this.host.reserve(this, cloexec);
  }

  install(fd: number, file: File): void {
    this.host.install(this, fd, file);
  }

  putUnused(fd: number): void {
    this.host.putUnused(this, fd);
  }
}
