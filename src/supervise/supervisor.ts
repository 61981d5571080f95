/**
 * The supervisor: what is trapped, who serves it, and how it is answered.
 *
 * A notification becomes a task of the embedded kernel on the thread that
 * called. It runs at once and to its end, as a system call on a kernel without
 * preemption does; when it blocks, its caller waits in the real kernel, and the
 * loop (`loop.ts`) goes on with the others.
 *
 * Order, before each call: closes that the real kernel reported are taken up
 * and their releases run, so that a call finds what it would find on Linux.
 *
 * A supervisor's own failure (a broken invariant of the embedded kernel) ends
 * the one call with EIO and is reported; it must not hang the program.
 */
import { arch, closeFd, type Listener, type Notification } from "../host/index.ts";
import type { File } from "../kernel/fs/file.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { EBADF, EINTR, EIO, Errno } from "../lib/errno.ts";
import { KernelBug } from "../lib/kernel_bug.ts";
import type { Step, Task } from "../sched/task.ts";
import { O_CLOEXEC } from "../uapi/index.ts";
import { Call, type CallHost } from "./call.ts";
import { type Held, HeldFiles } from "./files.ts";
import { AUDIT_ARCH_I386, matches, X32_BIT } from "./filter.ts";
import * as sys from "./numbers.ts";
import { Processes, type ServedProcess } from "./processes.ts";
import {
  type CallObserver,
  CONTINUE,
  type Handler,
  type Hooks,
  type Outcome,
  type SupervisedProcess,
  type SuperviseOptions,
  type Supervisor,
  type When,
} from "./types.ts";

/** What the real kernel turns into a restart of the call, or EINTR, as the signal's handler wants it. */
const ERESTARTSYS = new Errno("ERESTARTSYS", 512, "interrupted by a signal, to be restarted");

export interface CoreOptions extends SuperviseOptions {
  readonly directory: string;
  /** Takes a line for the user. */
  readonly warn: (message: string) => void;
}

function unset(): never {
  throw new KernelBug("no part supplies the hooks (registerMemory)");
}

interface Registration {
  readonly handler: Handler;
  readonly when: readonly When[];
}

const concerns = ({ handler, when }: Registration, call: Call): boolean =>
  (when.length === 0 || when.some((w) => matches(w, call.args))) && (handler.concerns === undefined || handler.concerns(call));

interface Ticker {
  readonly ms: number;
  readonly callback: () => void;
  /** In `performance.now()` time. */
  due: number;
}

export class Core implements Supervisor, CallHost {
  readonly kernel: Kernel;
  readonly files: HeldFiles;
  readonly hooks: Hooks;
  readonly options: SuperviseOptions;
  readonly directory: string;
  readonly warn: (message: string) => void;
  readonly registry: Processes;
  /** Calls whose tasks have not finished. */
  readonly pending: Set<Call> = new Set();
  readonly tickers: Set<Ticker> = new Set();
  readonly readable: Map<number, () => void> = new Map();
  readonly traps: Map<number, When[]> = new Map();
  /** Set by the loop: descriptors to wait for. */
  onWatch: { add(fd: number): void; remove(fd: number): void } | undefined = undefined;
  readonly #handlers: Map<number, Registration[]> = new Map();
  readonly #observers: CallObserver[] = [];
  readonly #atEnd: (() => void)[] = [];
  readonly #byTask: Map<Task, Call> = new Map();
  readonly #pidfds: Map<number, ServedProcess> = new Map();
  readonly #warned: Set<string> = new Set();
  #listener: Listener | undefined = undefined;
  #lastAdvance: number = performance.now();

  constructor(kernel: Kernel, options: CoreOptions) {
    this.kernel = kernel;
    this.options = options;
    this.directory = options.directory;
    this.warn = options.warn;
    this.hooks = { memory: unset, foreign: unset, credentials: unset };
    this.registry = new Processes(kernel, {
      memory: (target) => this.hooks.memory(this, target),
      source: () => this.currentCall,
      created: (p) => this.#announce("new", p),
      executed: (p) => this.#announce("exec", p),
      ended: (p) => {
        this.#abandon(p);
        for (const o of this.#observers) o.process?.("exit", p);
      },
      watch: (pidfd, p) => {
        if (!this.#pidfds.has(pidfd)) this.onWatch?.add(pidfd);
        this.#pidfds.set(pidfd, p);
      },
      unwatch: (pidfd) => {
        this.#pidfds.delete(pidfd);
        this.onWatch?.remove(pidfd);
      },
    });
    this.files = new HeldFiles(kernel, options.directory, (tid) => this.registry.links(tid));
  }

  // What the parts see.

  handle(nr: number, handler: Handler, ...when: readonly When[]): void {
    if (nr < 0) return;
    const handlers = this.#handlers.get(nr) ?? [];
    handlers.push({ handler, when });
    this.#handlers.set(nr, handlers);
    const whens = this.traps.get(nr) ?? [];
    whens.push(...(when.length === 0 ? [{ kind: "always" } as const] : when));
    this.traps.set(nr, whens);
  }

  observe(observer: CallObserver): void {
    this.#observers.push(observer);
  }

  process(pid: number): SupervisedProcess | undefined {
    return this.registry.get(pid);
  }

  get processes(): Iterable<SupervisedProcess> {
    return this.registry;
  }

  get currentCall(): Call | undefined {
    const task = this.kernel.sched.currentOrNone;
    return task === undefined ? undefined : this.#byTask.get(task);
  }

  every(ms: number, callback: () => void): () => void {
    const t = { ms, callback, due: performance.now() + ms };
    this.tickers.add(t);
    return () => this.tickers.delete(t);
  }

  onReadable(hostFd: number, callback: () => void): () => void {
    this.readable.set(hostFd, callback);
    this.onWatch?.add(hostFd);
    return () => {
      if (this.readable.delete(hostFd)) this.onWatch?.remove(hostFd);
    };
  }

  atEnd(callback: () => void): void {
    this.#atEnd.push(callback);
  }

  /** A warning that is worth saying once. */
  warnOnce(key: string, message: string): void {
    if (this.#warned.has(key)) return;
    this.#warned.add(key);
    this.warn(message);
  }

  // What the loop calls.

  set listener(listener: Listener) {
    this.#listener = listener;
  }

  /** Takes up closes, moves virtual time on, and runs what that wakes. */
  catchUp(): void {
    this.files.drain();
    if (this.files.overflowed) {
      this.warnOnce(
        "overflow",
        "the real kernel lost news of closed files (fs.inotify.max_queued_events): some are released at the end only",
      );
    }
    const now = performance.now();
    const ns = Math.round((now - this.#lastAdvance) * 1e6);
    this.#lastAdvance = now;
    try {
      this.kernel.sched.advance(Math.max(ns, 0));
    } catch (e) {
      this.#internal("a kernel thread", e);
    }
    this.files.settle();
    if (this.pending.size > 0) this.#reap();
  }

  /**
   * Serves one notification. Whatever fails, its caller gets an answer.
   * `caughtUp`: `catchUp` was called since it came; otherwise that is done for
   * what is served, and what the real kernel does is let through at once.
   */
  serve(n: Notification, caughtUp: boolean): void {
    try {
      this.#serve(n, caughtUp);
    } catch (e) {
      this.#internal(`system call ${n.nr}`, e);
      this.#send().returnErrno(n.id, EIO);
    }
  }

  #serve(n: Notification, caughtUp: boolean): void {
    if (n.arch !== arch.audit || (n.nr & X32_BIT) !== 0) {
      this.#foreignAbi(n);
      return;
    }
    const handlers = this.#handlers.get(n.nr);
    const thread = handlers === undefined ? undefined : this.registry.thread(n.tid);
    if (handlers === undefined || thread === undefined) {
      this.#send().continue(n.id);
      return;
    }
    const call = new Call(this, thread, n);
    if (thread.hidden) this.hidden(call);
    const first = handlers.findIndex((r) => concerns(r, call));
    if (first < 0) {
      this.#send().continue(n.id);
      return;
    }
    if (!caughtUp) this.catchUp();
    thread.process.target.tid = n.tid;
    const task = thread.taskForCall();
    call.task = task;
    this.#byTask.set(task, call);
    this.hooks.credentials(this, thread.process);
    for (const o of this.#observers) o.begin?.(call);
    const { sched } = this.kernel;
    sched.start(task, this.#body(call, handlers, first));
    while (task.state === "runnable" && !task.queued) sched.step(task);
    if (task.finished) this.#complete(call, task);
    else this.pending.add(call);
  }

  /** A descriptor that the loop waits for is ready: a process's end, or one that a part asked for. */
  ready(fd: number): void {
    const process = this.#pidfds.get(fd);
    if (process !== undefined) {
      this.catchUp();
      this.registry.end(process);
      this.catchUp();
    } else this.readable.get(fd)?.();
  }

  /** The call's thread has a signal to take: an interruptible wait ends. */
  interrupt(call: Call): void {
    call.interrupted = true;
    if (call.task !== undefined) this.kernel.sched.interrupt(call.task);
  }

  /** Everything the program held goes, as at its end. Returns what the kernel still holds after that, by name. */
  finish(): Map<string, number> {
    for (const p of [...this.registry]) this.registry.end(p);
    for (const call of this.pending) this.interrupt(call);
    this.files.closeAll();
    this.catchUp();
    for (const cb of this.#atEnd.splice(0).reverse()) cb();
    try {
      this.kernel.sched.settle();
    } catch (e) {
      this.#internal("the end of the program", e);
    }
    for (const o of this.#observers) o.finish?.();
    this.files.destroy();
    const left = new Map<string, number>();
    for (const [what, count] of this.kernel.leakChecks) {
      const n = count();
      if (n !== 0) left.set(what, n);
    }
    return left;
  }

  // What a call asks for.

  isValid(id: bigint): boolean {
    return this.#send().idValid(id);
  }

  hidden(call: Call): void {
    this.warnOnce(
      "hidden",
      `process ${call.pid} (${call.process.name}) does not let itself be looked into (PR_SET_DUMPABLE, or Yama): it finds no devices`,
    );
  }

  heldFile(tid: number, fd: number): File | undefined {
    return this.held(tid, fd)?.file;
  }

  isQueue(tid: number, fd: number): boolean {
    return this.held(tid, fd)?.pipe !== undefined;
  }

  /** As `HeldFiles.held`; a thread number that was used again is seen through. */
  held(tid: number, fd: number): Held | undefined {
    const held = this.files.held(tid, fd);
    if (held !== undefined || this.files.count === 0) return held;
    const thread = this.registry.thread(tid);
    if (thread === undefined || tid === thread.process.pid || thread.links?.heldId(fd) !== -1) return undefined;
    // The folder of a thread that has ended is empty; another may have its number.
    this.registry.confirm(tid);
    return this.files.held(tid, fd);
  }

  /** Argument 0 is a descriptor of ours. What was found is kept for the look-up that follows at once. */
  concernsFile(call: Call): boolean {
    call.found = this.heldFile(call.tid, call.int(0));
    return call.found !== undefined;
  }

  lookUp(call: Call, fd: number): File | Errno {
    const { found } = call;
    call.found = undefined;
    // Closes that were taken up since may have been its last: the caller was killed, or another of its threads closed it.
    const kept = fd === call.int(0) && found !== undefined && this.files.holds(found) ? found : undefined;
    const own = kept ?? this.heldFile(call.tid, fd);
    if (own !== undefined) return own;
    const known = call.foreign?.get(fd);
    if (known !== undefined) return known;
    const link = this.registry.links(call.tid)?.read(fd) ?? EBADF;
    if (link instanceof Errno) return EBADF;
    const file = this.hooks.foreign(this, call.process, call.tid, fd, link);
    if (file instanceof Errno) return file;
    call.foreign ??= new Map();
    call.foreign.set(fd, file);
    return file;
  }

  reserve(call: Call, cloexec: boolean): number | Errno {
    const made = this.files.createReserved();
    if (made instanceof Errno) return made;
    const { held, openFd } = made;
    const at = this.#reusable(call);
    const fd = this.#send().addFd(call.id, openFd, at === undefined ? { cloexec } : { cloexec, at });
    closeFd(openFd);
    if (fd instanceof Errno) {
      this.files.drop(held);
      return fd;
    }
    held.cloexec = cloexec;
    call.reserved ??= new Map();
    call.reserved.set(fd, held);
    return fd;
  }

  install(call: Call, fd: number, file: File): void {
    const held = call.reserved?.get(fd);
    if (held === undefined) throw new RangeError(`descriptor ${fd} was not reserved by this call`);
    call.reserved?.delete(fd);
    this.files.drain();
    this.files.associate(this.#queueInstead(call, fd, held, file) ?? held, file);
  }

  /** Puts a pipe in the place of a reserved number's memfd, for a file that is not always ready. undefined: the memfd stays. */
  #queueInstead(call: Call, fd: number, held: Held, file: File): Held | undefined {
    // What another thread of the program has put there meanwhile is left alone.
    const made = held.opens > 0 && this.files.held(call.tid, fd) === held ? this.files.createQueue(file) : undefined;
    if (made === undefined) return undefined;
    const at = made instanceof Errno ? made : this.#send().addFd(call.id, made.openFd, { cloexec: held.cloexec, at: fd });
    if (!(made instanceof Errno)) closeFd(made.openFd);
    if (!(at instanceof Errno) && !(made instanceof Errno)) return made.held;
    if (!(made instanceof Errno)) this.files.drop(made.held);
    this.warnOnce("queue", `${file.path} is always ready to poll: no pipe can be made in ${this.directory}`);
    return undefined;
  }

  putUnused(call: Call, fd: number): void {
    const held = call.reserved?.get(fd);
    if (held === undefined) throw new RangeError(`descriptor ${fd} was not reserved by this call`);
    call.reserved?.delete(fd);
    call.thread.process.abandoned.set(fd, held);
  }

  /** The lowest number that a call gave up and that the program still has, when none below it is free. */
  #reusable(call: Call): number | undefined {
    const { abandoned } = call.thread.process;
    if (abandoned.size === 0) return undefined;
    this.files.drain();
    for (const [fd, held] of abandoned) {
      if (held.opens === 0 || this.files.held(call.tid, fd) !== held) abandoned.delete(fd);
    }
    const lowest = Math.min(...abandoned.keys());
    if (!Number.isFinite(lowest)) return undefined;
    const { links } = call.thread;
    for (let fd = 0; fd < lowest; fd++) if (links?.heldId(fd) === -1) return undefined;
    abandoned.delete(lowest);
    return lowest;
  }

  // Inside.

  /** The handlers' answer; those before `first` are not concerned, and `first` is. */
  *#body(call: Call, handlers: readonly Registration[], first: number): Step<Outcome> {
    try {
      // A real close returns when its release is done; that it may have to wait for a reset, nobody trapped.
      yield* this.kernel.fs.releasesDone();
      for (let i = first; i < handlers.length; i++) {
        const r = handlers[i] as Registration;
        if (i > first && !concerns(r, call)) continue;
        const outcome = yield* r.handler(call);
        if (outcome !== undefined) return outcome;
      }
      return CONTINUE;
    } finally {
      if (call.foreign !== undefined) for (const f of call.foreign.values()) this.kernel.fs.fput(f);
    }
  }

  /** Answers calls whose tasks have finished since. */
  #reap(): void {
    for (const call of this.pending) {
      const { task } = call;
      if (task === undefined || !task.finished) continue;
      this.pending.delete(call);
      this.#complete(call, task);
    }
  }

  #complete(call: Call, task: Task): void {
    this.#byTask.delete(task);
    if (call.reserved !== undefined) for (const fd of [...call.reserved.keys()]) this.putUnused(call, fd);
    if (task.state === "failed") {
      this.#internal(`system call ${call.nr} of ${call.process.name}`, task.error);
      this.#answer(call, { kind: "return", value: EIO });
    } else this.#answer(call, task.result as Outcome);
  }

  #answer(call: Call, outcome: Outcome): void {
    const listener = this.#send();
    this.files.settle();
    let result: bigint | undefined;
    let error: Errno | undefined;
    switch (outcome.kind) {
      case "continue":
        listener.continue(call.id);
        break;
      case "return":
        this.#returnValue(call, outcome.value);
        return;
      case "file": {
        const fd = this.#giveFile(call, outcome.file, outcome.flags);
        if (fd instanceof Errno) error = fd;
        else result = BigInt(fd);
        break;
      }
      case "addfd": {
        const fd = listener.addFdSend(call.id, outcome.hostFd, { cloexec: outcome.cloexec });
        if (outcome.close) closeFd(outcome.hostFd);
        if (fd instanceof Errno) {
          error = fd;
          listener.returnErrno(call.id, fd);
        } else result = BigInt(fd);
        break;
      }
    }
    this.#ended(call, error === undefined ? result : BigInt(-error.code), error);
  }

  /** Observers look before the caller goes on, and changes what they look at. */
  #returnValue(call: Call, value: bigint | number | Errno): void {
    if (value instanceof Errno) {
      const restart = value === EINTR && call.interrupted && call.nr !== sys.SYS_poll && call.nr !== sys.SYS_ppoll;
      this.#ended(call, BigInt(-value.code), value);
      this.#send().returnErrno(call.id, restart ? ERESTARTSYS : value);
    } else {
      this.#ended(call, BigInt(value), undefined);
      this.#send().returnValue(call.id, value);
    }
  }

  #ended(call: Call, result: bigint | undefined, error: Errno | undefined): void {
    for (const o of this.#observers) o.end?.(call, result, error);
  }

  /** Injects `file`, whose reference it takes over, and answers with its number. */
  #giveFile(call: Call, file: File, flags: number): number | Errno {
    const listener = this.#send();
    const made = this.files.create(flags);
    let fd: number | Errno;
    if (made instanceof Errno) fd = made;
    else {
      this.files.associate(made.held, file);
      const cloexec = (flags & O_CLOEXEC) !== 0;
      const at = this.#reusable(call);
      fd = at === undefined ? listener.addFdSend(call.id, made.openFd, { cloexec }) : listener.addFd(call.id, made.openFd, { cloexec, at });
      closeFd(made.openFd);
      if (at !== undefined && !(fd instanceof Errno)) listener.returnValue(call.id, fd);
    }
    if (fd instanceof Errno) {
      // Nobody has the file: our own close of `openFd` was its last, or there is none.
      if (made instanceof Errno) this.kernel.fs.fput(file);
      listener.returnErrno(call.id, fd);
      this.catchUp();
    }
    return fd;
  }

  #announce(what: "new" | "exec", p: ServedProcess): void {
    this.hooks.credentials(this, p);
    for (const o of this.#observers) o.process?.(what, p);
  }

  /** Calls of a process that has ended: nobody waits for them; interruptible waits end. */
  #abandon(p: ServedProcess): void {
    for (const call of this.pending) if (call.process === p) this.interrupt(call);
  }

  #foreignAbi(n: Notification): void {
    const abi = n.arch === AUDIT_ARCH_I386 ? "32-bit" : "x32";
    this.warnOnce(abi, `process ${n.tid} is a ${abi} program: its system calls cannot be served, so it finds none of the devices`);
    this.#send().continue(n.id);
  }

  #internal(where: string, e: unknown): void {
    const text = e instanceof Error ? (this.options.debug ? (e.stack ?? e.message) : `${e.name}: ${e.message}`) : String(e);
    this.warnOnce(`${where} ${text}`, `internal error in ${where}: ${text}`);
  }

  #send(): Listener {
    if (this.#listener === undefined) throw new RangeError("no program was started yet");
    return this.#listener;
  }
}
