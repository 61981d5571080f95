/**
 * Pipes whose name is gone: of what a program has of them inotify tells the last close, and poll, select and epoll find them
 * ready as their maker wants it. One that is open for reading and writing is writable while it has room, and readable while
 * something is in it; one that is open for reading only is never writable.
 *
 * What is in it are packets: a read takes one, or as much of it as there is room for, and the rest of that one is gone.
 */
import { Errno } from "../lib/errno.ts";
import { closeFd, readFd, setFdFlags, writeFd } from "./fd.ts";
import { checkVoid, ioctl, nr, putPath, reserve, syscall4 } from "./ffi.ts";
import { mknodAt } from "./mknod.ts";
import { AT_FDCWD, openAt } from "./openat.ts";

const S_IFIFO = 0o010000;
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const FIONREAD = 0x541b;
const UNLINKAT = nr("unlinkat");
const count = reserve(4);
const drained = new Uint8Array(4096);
const O_DIRECT = process.arch === "x64" ? 0o40000 : 0o200000;

/** A pipe that was made at `path` and unlinked, open for reading and writing without waiting. What opens it anew goes by /proc/self/fd. */
export function createFifo(path: string): number | Errno {
  const failed = mknodAt(AT_FDCWD, path, S_IFIFO | 0o600, 0);
  if (failed !== undefined) return failed;
  const fd = openAt(AT_FDCWD, path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  const left = checkVoid(syscall4(UNLINKAT, AT_FDCWD, putPath(path), 0, 0));
  if (fd instanceof Errno) return fd;
  // Packets are asked for by a flag that an open refuses.
  const failure = left ?? setFdFlags(fd, O_RDWR | O_NONBLOCK | O_DIRECT);
  if (failure === undefined) return fd;
  closeFd(fd);
  return failure;
}

/** As many packets as a pipe has room for, whatever its user may have. */
export const MOST_PACKETS = 16;

/** Shows packets in a pipe of `createFifo`, which others may read, or write rubbish into. */
export class PacketPipe {
  readonly fd: number;
  #shown: readonly Uint8Array[] = [];

  constructor(fd: number) {
    this.fd = fd;
  }

  /** How many of those shown others have read since this was asked last: the first ones. */
  taken(): number {
    let left = this.#left();
    let first = this.#shown.length;
    while (left > 0 && first > 0) left -= (this.#shown[--first] as Uint8Array).length;
    // Rubbish: `show` sees to it.
    if (left !== 0) return 0;
    this.#shown = this.#shown.slice(first);
    return first;
  }

  /** Shows these, at most MOST_PACKETS. Answers 0, or how many were read meanwhile: then none is shown, and the first so many are not to be. */
  show(packets: readonly Uint8Array[]): number {
    const bytes = this.#shown.reduce((n, p) => n + p.length, 0);
    const goesOn = bytes === this.#left() && this.#shown.every((p, i) => equal(p, packets[i]));
    if (!goesOn) {
      const there = this.#drain();
      const before = this.#shown.length;
      this.#shown = [];
      if (there < before) return before - there;
    }
    for (const p of packets.slice(this.#shown.length)) writeFd(this.fd, p);
    this.#shown = packets;
    return 0;
  }

  #left(): number {
    return ioctl(this.fd, FIONREAD, count.address) === 0 ? (count.u32[0] as number) : 0;
  }

  /** Takes everything out; how many packets that were. */
  #drain(): number {
    let n = 0;
    while (typeof readFd(this.fd, drained) === "number") n++;
    return n;
  }
}

function equal(a: Uint8Array, b: Uint8Array | undefined): boolean {
  return a === b || (b !== undefined && a.length === b.length && a.every((byte, i) => byte === b[i]));
}
