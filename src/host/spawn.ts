/**
 * Starting a program under a filter, with nothing of ours on the way.
 *
 * A worker thread puts the filter on itself and calls posix_spawn: the child inherits it, this process's other threads stay
 * free, and the listener's descriptor is ours already. Then the worker ends, so that the filter's users are the program
 * and its descendants alone. What the child inherits otherwise is what barlink was given: signals (Node ignores SIGPIPE),
 * an empty signal mask, standard descriptors, environment, folder, the soft limit on descriptors (Node raises it).
 *
 * Between filter and end the worker is bound by the filter itself. Trapped calls of threads of this very process must be
 * answered with `continue`; results come through shared memory, so that none is needed to get them.
 */
import { errnoOf } from "../lib/errno.ts";
import { closeFd } from "./fd.ts";
import { HostError } from "./host_error.ts";
import { inheritedNofile } from "./rlimit.ts";
import { CULPRIT, ORDERED, type SpawnHandle, type SpawnOrder, STAGE, WORD } from "./spawn_order.ts";
import { abandonSpawn, SpawnThread } from "./spawn_thread.ts";

export interface SpawnOptions {
  /** A path, when there is a slash in it; otherwise it is looked for in PATH, as execvp(3) does. */
  readonly program: string;
  /** With argv[0]; just the program when left out. */
  readonly argv?: readonly (string | Uint8Array)[];
  /** `NAME=value` each, or an object; this process's when left out. */
  readonly env?: readonly (string | Uint8Array)[] | Readonly<Record<string, string | undefined>>;
  /** Where it starts; here when left out. */
  readonly cwd?: string;
  /** What the child finds at each descriptor: [its number, ours]. 0, 1 and 2 as they are when left out. What has FD_CLOEXEC, as all of ours has, goes. */
  readonly fds?: readonly (readonly [child: number, ours: number])[];
  /** Of `BpfAssembler.assemble`. Without it there is no listener. */
  readonly filter?: Uint8Array;
  /** The soft limit on descriptors; what barlink was started with when left out. */
  readonly nofile?: bigint;
  /** 0 makes it lead a process group of its own, a number joins that one; ours when left out. */
  readonly processGroup?: number;
  /** It leads a session of its own. */
  readonly session?: boolean;
}

export interface SpawnedProgram {
  readonly pid: number;
  /** -1 without a filter. */
  readonly listenerFd: number;
}

/** Long enough for a loaded machine; a worker that has not started by then never will. */
const PATIENCE_MS = 30_000;

export class ProgramSpawn {
  readonly #words: Int32Array;
  readonly #program: string;
  /** The caller has the listener, and closes it. */
  #taken = false;

  readonly #thread: SpawnThread | undefined;

  /** `thread`: the one that starts it, for who has it. */
  constructor(words: Int32Array, program: string, thread?: SpawnThread) {
    this.#words = words;
    this.#program = program;
    this.#thread = thread;
  }

  /** As `SpawnThread.ended`; RangeError when the thread is another thread's. */
  get ended(): Promise<void> {
    if (this.#thread === undefined) throw new RangeError("the thread that starts the program was started elsewhere");
    return this.#thread.ended;
  }

  /** Blocks until the filter is in force, and returns the listener, which is the caller's to close from then on. Throws HostError. */
  waitListener(): number {
    this.#waitBeyond(STAGE.starting);
    const fd = this.#word(WORD.listener);
    if (fd < 0) this.#fail();
    this.#taken = true;
    return fd;
  }

  /** The program, once it runs; undefined until then. Throws HostError when it cannot: `errno` is what execvp fails with. */
  poll(): SpawnedProgram | undefined {
    if (Atomics.load(this.#words, WORD.stage) !== STAGE.done) return undefined;
    const pid = this.#word(WORD.pid);
    if (pid <= 0) this.#fail();
    return { pid, listenerFd: this.#word(WORD.listener) };
  }

  /** Blocks until the program runs. */
  wait(): SpawnedProgram {
    for (let stage: number = STAGE.starting; stage !== STAGE.done; stage++) this.#waitBeyond(stage);
    return this.poll() as SpawnedProgram;
  }

  #word(index: number): number {
    return Atomics.load(this.#words, index);
  }

  #waitBeyond(stage: number): void {
    while (Atomics.load(this.#words, WORD.stage) === stage) {
      if (Atomics.wait(this.#words, WORD.stage, stage, PATIENCE_MS) === "timed-out") {
        throw new HostError("posix_spawn", undefined, "the thread that starts the program did not start");
      }
    }
  }

  #fail(): never {
    const errno = errnoOf(this.#word(WORD.errno));
    const listener = Atomics.exchange(this.#words, WORD.listener, -1);
    if (listener >= 0 && !this.#taken) closeFd(listener);
    switch (this.#word(WORD.culprit)) {
      case CULPRIT.seccomp:
        throw new HostError("seccomp", errno, `cannot install the filter: ${errno.name}, ${errno.meaning}`);
      case CULPRIT.chdir:
        throw new HostError("chdir", errno, `cannot enter the folder that the program should start in: ${errno.name}`);
      case CULPRIT.execve:
        throw new HostError("execve", errno, `cannot run ${this.#program}: ${errno.name}, ${errno.meaning}`);
      default:
        throw new HostError("posix_spawn", errno, `cannot prepare the start of ${this.#program}: ${errno.name}, ${errno.meaning}`);
    }
  }
}

/** Gives a thread that was started ahead (`SpawnThread`) its order. For one program. */
export class ProgramStarter {
  readonly #handle: SpawnHandle;
  readonly #thread: SpawnThread | undefined;

  /** The thread, or what another thread was sent of it. */
  constructor(thread: SpawnThread | SpawnHandle) {
    this.#thread = thread instanceof SpawnThread ? thread : undefined;
    this.#handle = thread instanceof SpawnThread ? thread.handle : thread;
  }

  /** Begins; the program may run before this returns. */
  start(options: SpawnOptions): ProgramSpawn {
    const order: SpawnOrder = {
      candidates: candidatesFor(options.program),
      argv: options.argv ?? [options.program],
      env: environment(options.env ?? process.env),
      cwd: options.cwd,
      fds: options.fds ?? STANDARD,
      filter: options.filter,
      nofile: options.nofile ?? inheritedNofile(),
      processGroup: options.processGroup,
      session: options.session ?? false,
    };
    const { words, port } = this.#handle;
    if (Atomics.load(words, WORD.ordered) !== ORDERED.notYet) throw new RangeError("a starter starts one program");
    port.postMessage(order);
    Atomics.store(words, WORD.ordered, ORDERED.start);
    Atomics.notify(words, WORD.ordered);
    port.close();
    return new ProgramSpawn(words, options.program, this.#thread);
  }

  /** Ends the thread, when there is nothing to start after all. */
  abandon(): void {
    abandonSpawn(this.#handle.words);
    this.#handle.port.close();
  }
}

const STANDARD: readonly (readonly [number, number])[] = [
  [0, 0],
  [1, 1],
  [2, 2],
];

/** Begins; the program may run before this returns. */
export function startProgram(options: SpawnOptions): ProgramSpawn {
  return new ProgramStarter(new SpawnThread().start()).start(options);
}

/** Starts a program, and blocks until it runs (some 60 ms; a `SpawnThread` that is up saves most of that). Throws HostError. */
export function spawnProgram(options: SpawnOptions): SpawnedProgram & { readonly ended: Promise<void> } {
  const spawn = startProgram(options);
  const { pid, listenerFd } = spawn.wait();
  return {
    pid,
    listenerFd,
    get ended() {
      return spawn.ended;
    },
  };
}

function environment(env: NonNullable<SpawnOptions["env"]>): readonly (string | Uint8Array)[] {
  if (Array.isArray(env)) return env as readonly (string | Uint8Array)[];
  return Object.entries(env as Record<string, string | undefined>).flatMap(([name, value]) =>
    value === undefined ? [] : `${name}=${value}`,
  );
}

/** What to try to execute, in order. An empty element of PATH is the current folder. */
function candidatesFor(program: string): string[] {
  if (program.includes("/")) return [program];
  if (program === "") return [];
  return (process.env.PATH ?? "/bin:/usr/bin").split(":").map((dir) => (dir === "" ? program : `${dir}/${program}`));
}
