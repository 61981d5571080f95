/**
 * The program's processes and threads, as they become known.
 *
 * A thread is met at its first trapped call. Its process (thread group and
 * program image) is made then: memory, descriptors, credentials. When a process
 * runs another program its memory is another one, so a new `Process` replaces
 * the old; when it ends, a pidfd tells.
 *
 * Thread numbers are used again. A leader's number is safe while its process
 * lives; another thread's is confirmed where it matters (`confirm`).
 */
import { readFileSync } from "node:fs";
import { closeFd, FdLinks, pidfdOpen, readMemory } from "../host/index.ts";
import { Process, type Rlimits } from "../kernel/fs/process.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { Mm } from "../kernel/mm/mm.ts";
import type { UserMemory } from "../kernel/mm/user_memory.ts";
import { EACCES, Errno } from "../lib/errno.ts";
import type { Task } from "../sched/task.ts";
import { type DescriptorSource, SupervisedFdTable } from "./fd_table.ts";
import type { Held } from "./files.ts";
import type { SupervisedProcess, Target } from "./types.ts";

/** Threads of one process that are kept before those that ended are looked for. */
const PRUNE_ABOVE = 64;

export class ServedProcess extends Process implements SupervisedProcess {
  readonly target: Target;
  /** A call of exec was let through, and what came of it is not known yet: which image made it. */
  execPending: string | undefined = undefined;
  readonly threads: Map<number, Thread> = new Map();
  /** Descriptors that a call reserved and gave up, which the program still has. */
  readonly abandoned: Map<number, Held> = new Map();

  constructor(kernel: Kernel, target: Target, name: string, memory: UserMemory, source: () => DescriptorSource | undefined) {
    const rlimits: Rlimits = { nofile: 1024, memlock: 0n };
    const creds = { uid: 0, user: kernel.fs.user(0), capabilities: new Set<string>() };
    super(kernel, name, new Mm(kernel, memory), new SupervisedFdTable(rlimits, source), creds, rlimits, target.pid);
    this.target = target;
  }
}

export class Thread {
  readonly tid: number;
  readonly process: ServedProcess;
  readonly task: Task;
  /** undefined: it is gone already, or hidden. */
  readonly links: FdLinks | undefined;
  /** It does not let itself be looked into. */
  readonly hidden: boolean;

  constructor(tid: number, process: ServedProcess) {
    this.tid = tid;
    this.process = process;
    this.task = tid === process.pid ? process.thread : process.newThread(`${process.name}/${tid}`);
    // As fork and clone leave it: the creator's, whichever of its threads that was.
    if (this.task !== process.thread) this.task.makeItFail = process.thread.makeItFail;
    const links = FdLinks.open(tid);
    this.links = links instanceof Errno ? undefined : links;
    this.hidden = links === EACCES;
  }

  /** A task to serve a call with: its own, or another while that is still busy with the call of a thread that was killed. */
  taskForCall(): Task {
    return this.task.body === undefined ? this.task : this.process.newThread();
  }
}

export interface ProcessEvents {
  memory(target: Target): UserMemory;
  source(): DescriptorSource | undefined;
  /** Credentials and limits have to be filled in. */
  created(process: ServedProcess): void;
  executed(process: ServedProcess): void;
  ended(process: ServedProcess): void;
  watch(pidfd: number, process: ServedProcess): void;
  unwatch(pidfd: number): void;
}

interface ProcInfo {
  readonly tgid: number;
  readonly ppid: number;
  readonly name: string;
  readonly startTime: string;
}

export class Processes {
  readonly #kernel: Kernel;
  readonly #events: ProcessEvents;
  readonly #threads: Map<number, Thread> = new Map();
  readonly #processes: Map<number, ServedProcess> = new Map();
  /** Told of each process once: for whoever must find it when we are gone. */
  onNew: (pid: number, startTime: string) => void = () => {};

  constructor(kernel: Kernel, events: ProcessEvents) {
    this.#kernel = kernel;
    this.#events = events;
  }

  get size(): number {
    return this.#processes.size;
  }

  get(pid: number): ServedProcess | undefined {
    return this.#processes.get(pid);
  }

  [Symbol.iterator](): IterableIterator<ServedProcess> {
    return this.#processes.values();
  }

  /** The descriptors of a thread that is known. */
  links(tid: number): FdLinks | undefined {
    return this.#threads.get(tid)?.links;
  }

  /** The thread that calls; undefined when it is gone already or is one of barlink's own. */
  thread(tid: number): Thread | undefined {
    const known = this.#threads.get(tid);
    if (known !== undefined && known.process.execPending === undefined) return known;
    return this.#meet(tid, known);
  }

  /** The thread that calls, after making sure that its number was not used again. */
  confirm(tid: number): Thread | undefined {
    const known = this.#threads.get(tid);
    if (known === undefined) return this.#meet(tid, undefined);
    const info = readInfo(tid);
    if (info?.tgid === known.process.pid && tid === info.tgid) return known;
    this.#forgetThread(known);
    return this.#meet(tid, undefined);
  }

  /** The process has ended: its memory goes; its descriptors' last closes are seen by themselves. */
  end(process: ServedProcess): void {
    if (this.#processes.get(process.pid) !== process) return;
    this.#processes.delete(process.pid);
    this.#events.unwatch(process.target.pidfd);
    this.#dismiss(process);
    closeFd(process.target.pidfd);
    this.#events.ended(process);
  }

  #meet(tid: number, known: Thread | undefined): Thread | undefined {
    const info = readInfo(tid);
    if (info === undefined || info.tgid === process.pid) return undefined;
    if (known !== undefined && info.tgid !== known.process.pid) this.#forgetThread(known);
    const p = this.#processFor(info);
    if (p === undefined) return undefined;
    const again = p.threads.get(tid);
    if (again !== undefined) return again;
    if (p.threads.size >= PRUNE_ABOVE) this.#prune(p);
    const thread = new Thread(tid, p);
    p.threads.set(tid, thread);
    this.#threads.set(tid, thread);
    return thread;
  }

  #processFor(info: ProcInfo): ServedProcess | undefined {
    const known = this.#processes.get(info.tgid);
    if (known === undefined) return this.#create(info);
    const before = known.execPending;
    if (before === undefined) return known;
    known.execPending = undefined;
    if (before !== "" && before === imageOf(info.tgid)) return known;
    this.#dismiss(known);
    const p = this.#make({ ...info, pidfd: known.target.pidfd });
    p.thread.failNth = known.thread.failNth;
    p.thread.makeItFail = known.thread.makeItFail;
    this.#events.watch(p.target.pidfd, p);
    this.#events.executed(p);
    return p;
  }

  #create(info: ProcInfo): ServedProcess | undefined {
    const pidfd = pidfdOpen(info.tgid);
    if (pidfd instanceof Errno) return undefined;
    const p = this.#make({ ...info, pidfd });
    p.thread.makeItFail = this.#processes.get(info.ppid)?.thread.makeItFail === true;
    this.#events.watch(pidfd, p);
    this.#events.created(p);
    this.onNew(info.tgid, info.startTime);
    return p;
  }

  #make({ tgid, name, pidfd }: ProcInfo & { pidfd: number }): ServedProcess {
    const target: Target = { pid: tgid, tid: tgid, pidfd, alive: true };
    const p = new ServedProcess(this.#kernel, target, name, this.#events.memory(target), () => this.#events.source());
    this.#processes.set(tgid, p);
    return p;
  }

  /** A process object whose image is gone. */
  #dismiss(process: ServedProcess): void {
    process.target.alive = false;
    for (const t of [...process.threads.values()]) this.#forgetThread(t);
    this.#kernel.sched.spawn(`exit ${process.pid}`, () => process.exit(), process);
  }

  #forgetThread(thread: Thread): void {
    thread.process.threads.delete(thread.tid);
    if (this.#threads.get(thread.tid) === thread) this.#threads.delete(thread.tid);
    thread.links?.close();
  }

  #prune(process: ServedProcess): void {
    for (const t of [...process.threads.values()]) if (!isAlive(t)) this.#forgetThread(t);
  }
}

function isAlive(thread: Thread): boolean {
  try {
    readFileSync(`/proc/${thread.process.pid}/task/${thread.tid}/comm`);
    return true;
  } catch {
    return false;
  }
}

const AT_RANDOM = 25n;
const RANDOM_BYTES = 16;

/**
 * Which program image a process runs: the random bytes that the kernel gives to
 * each. "" when that cannot be told.
 */
export function imageOf(pid: number): string {
  try {
    const auxv = readFileSync(`/proc/${pid}/auxv`);
    for (let at = 0; at + 16 <= auxv.length; at += 16) {
      if (auxv.readBigUInt64LE(at) !== AT_RANDOM) continue;
      const bytes = new Uint8Array(RANDOM_BYTES);
      return readMemory(pid, auxv.readBigUInt64LE(at + 8), bytes) === RANDOM_BYTES ? Buffer.from(bytes).toString("hex") : "";
    }
  } catch {
    // Gone, or hidden.
  }
  return "";
}

/** What /proc says of a thread and of its group. */
function readInfo(tid: number): ProcInfo | undefined {
  try {
    const status = readFileSync(`/proc/${tid}/status`, "latin1");
    const tgid = Number(/^Tgid:\t(\d+)/m.exec(status)?.[1]);
    const ppid = Number(/^PPid:\t(\d+)/m.exec(status)?.[1]);
    const name = /^Name:\t(.*)/m.exec(status)?.[1] ?? "";
    const stat = readFileSync(`/proc/${tid === tgid ? tid : tgid}/stat`, "latin1");
    // Fields from the third on: 22 is the start time.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return { tgid, ppid, name, startTime: fields[22 - 3] ?? "0" };
  } catch {
    return undefined;
  }
}
