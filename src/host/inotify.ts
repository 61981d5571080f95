/** Who closes what (inotify(7)). Events queue up in the kernel before the call that causes them returns. */
import type { Errno } from "../lib/errno.ts";
import { EAGAIN, ENAMETOOLONG } from "../lib/errno.ts";
import { closeFd } from "./fd.ts";
import { check, checkVoid, errnoNumber, lastErrno, libcFunction, putPath, reserve } from "./ffi.ts";
import { must } from "./host_error.ts";

export const IN_MODIFY = 0x2;
export const IN_CLOSE_WRITE = 0x8;
export const IN_CLOSE_NOWRITE = 0x10;
/** The last descriptor of an open file is gone. */
export const IN_CLOSE: number = IN_CLOSE_WRITE | IN_CLOSE_NOWRITE;
export const IN_OPEN = 0x20;
export const IN_CREATE = 0x100;
export const IN_DELETE = 0x200;
export const IN_DELETE_SELF = 0x400;
export const IN_UNMOUNT = 0x2000;
/** The kernel had no room: events are lost. */
export const IN_Q_OVERFLOW = 0x4000;
/** The watch is gone; its number may be used again. */
export const IN_IGNORED = 0x8000;
export const IN_ONESHOT = 0x8000_0000;

const IN_NONBLOCK = 0o4000;
const IN_CLOEXEC = 0o2000000;
const EVENT_HEADER = 16;

const init = libcFunction("inotify_init1", "int", ["int"]);
const addWatch = libcFunction("inotify_add_watch", "int", ["int", "uintptr_t", "uint"]);
const rmWatch = libcFunction("inotify_rm_watch", "int", ["int", "int"]);
const read = libcFunction("read", "intptr_t", ["int", "uintptr_t", "uintptr_t"]);
const buffer = reserve(16 * 1024);

export class Inotify {
  /** For poll. */
  readonly fd: number;

  /** Throws HostError: max_user_instances is small (EMFILE). */
  constructor() {
    this.fd = must("inotify_init1", check(init(IN_NONBLOCK | IN_CLOEXEC)));
  }

  /** Watches what a path leads to; returns the watch's number, the same one for the same inode. */
  watch(path: string, mask: number): number | Errno {
    const address = putPath(path);
    return address === 0 ? ENAMETOOLONG : check(addWatch(this.fd, address, mask));
  }

  /** Watches the file behind a descriptor of ours. ENOSPC: max_user_watches. */
  watchFd(fd: number, mask: number): number | Errno {
    return this.watch(`/proc/self/fd/${fd}`, mask);
  }

  unwatch(watch: number): Errno | undefined {
    return checkVoid(rmWatch(this.fd, watch));
  }

  /**
   * Calls `seen` for each event that is queued, in order, and returns their number; 0 costs one system call. IN_Q_OVERFLOW
   * comes with watch -1. `seen` may watch and unwatch, but not drain.
   */
  drain(seen: (watch: number, mask: number) => void): number {
    let count = 0;
    for (;;) {
      const n = read(this.fd, buffer.address, buffer.bytes.length);
      if (n === -1) {
        if (errnoNumber() === EAGAIN.code) return count;
        must("read", lastErrno(), "inotify");
      }
      for (let at = 0; at < n; ) {
        const word = at >> 2;
        const watch = buffer.s32[word] as number;
        const mask = buffer.u32[word + 1] as number;
        at += EVENT_HEADER + (buffer.u32[word + 3] as number);
        count++;
        seen(watch, mask);
      }
      // A read that left room for a longest event has taken all there was.
      if (n < buffer.bytes.length - (EVENT_HEADER + 256)) return count;
    }
  }

  close(): void {
    closeFd(this.fd);
  }
}
