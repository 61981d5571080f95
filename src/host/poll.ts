/** Waiting for several descriptors (ppoll(2)). Blocks the thread: for a worker that does nothing else meanwhile. */
import type { Errno } from "../lib/errno.ts";
import { check, libcFunction, reserve } from "./ffi.ts";

export const POLLIN = 0x1;
export const POLLPRI = 0x2;
export const POLLOUT = 0x4;
export const POLLERR = 0x8;
export const POLLHUP = 0x10;
export const POLLNVAL = 0x20;

const ppoll = libcFunction("ppoll", "int", ["uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t"]);
const MAX = 512;
const fds = reserve(8 * MAX);
const fdWords = fds.s32;
const timeout = reserve(16);
const SECOND = 1_000_000_000n;

export interface PollEntry {
  /** A negative one is passed over. */
  fd: number;
  events: number;
}

export class PollSet {
  readonly #entries: PollEntry[];
  readonly #words: Int32Array;

  /** At most 512. */
  constructor(entries: readonly PollEntry[]) {
    if (entries.length > MAX) throw new RangeError(`cannot poll more than ${MAX} descriptors`);
    this.#entries = entries.map((e) => ({ ...e }));
    this.#words = new Int32Array(2 * entries.length);
    this.#refresh();
  }

  /** Changes which descriptor stands at `index`. */
  set(index: number, fd: number, events: number): void {
    const entry = this.#entries[index];
    if (entry === undefined) throw new RangeError(`no entry ${index}`);
    entry.fd = fd;
    entry.events = events;
    this.#refresh();
  }

  /** How many are ready; 0 after `timeoutNs`, which undefined makes forever. EINTR: a signal came. */
  wait(timeoutNs?: bigint): number | Errno {
    fdWords.set(this.#words);
    let timeoutAddress = 0;
    if (timeoutNs !== undefined) {
      const ns = timeoutNs < 0n ? 0n : timeoutNs;
      timeout.u64[0] = ns / SECOND;
      timeout.u64[1] = ns % SECOND;
      timeoutAddress = timeout.address;
    }
    return check(ppoll(fds.address, this.#entries.length, timeoutAddress, 0));
  }

  /** What is ready at `index` after the last `wait` of any set on this thread: POLL* */
  revents(index: number): number {
    return (fdWords[2 * index + 1] as number) >>> 16;
  }

  #refresh(): void {
    for (const [i, e] of this.#entries.entries()) {
      this.#words[2 * i] = e.fd;
      this.#words[2 * i + 1] = e.events & 0xffff;
    }
  }
}
