/** What the spawning thread is told, and the words in shared memory by which it answers. */
import type { MessagePort } from "node:worker_threads";

/**
 * What the thread begins with: the order comes by the port, at the latest when `WORD.ordered` is notified. Whoever has the
 * same words and the port's other end gives it.
 */
export interface SpawnThreadData {
  readonly words: Int32Array;
  readonly port: MessagePort;
}

export interface SpawnOrder {
  readonly candidates: readonly string[];
  readonly argv: readonly (string | Uint8Array)[];
  readonly env: readonly (string | Uint8Array)[];
  readonly cwd: string | undefined;
  readonly fds: readonly (readonly [child: number, ours: number])[];
  readonly filter: Uint8Array | undefined;
  readonly nofile: bigint | undefined;
  readonly processGroup: number | undefined;
  readonly session: boolean;
}

/** The other end: it can be sent to another thread, with its port in the list of what is transferred. */
export interface SpawnHandle {
  readonly words: Int32Array;
  readonly port: MessagePort;
}

export const RESULT_WORDS = 8;
/** Which word holds what. `stage` is notified; what it announces is set before it moves. `ordered` goes the other way. */
export const WORD = { stage: 0, listener: 1, pid: 2, errno: 3, culprit: 4, ordered: 5 } as const;
export const STAGE = { starting: 0, filtered: 1, done: 2 } as const;
/** `WORD.ordered`: whether there is something to start. */
export const ORDERED = { notYet: 0, start: 1, nothing: 2 } as const;
/** What failed, in `WORD.culprit`. */
export const CULPRIT = { seccomp: 0, chdir: 1, execve: 2, preparation: 3 } as const;
