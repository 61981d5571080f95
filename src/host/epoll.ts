/** Waiting for any of many descriptors, however many (epoll(7)). */
import type { Errno } from "../lib/errno.ts";
import { closeFd } from "./fd.ts";
import { check, checkVoid, lastErrno, libcFunction, reserve } from "./ffi.ts";
import { must } from "./host_error.ts";

export const EPOLLIN = 0x1;
export const EPOLLOUT = 0x4;
export const EPOLLERR = 0x8;
export const EPOLLHUP = 0x10;

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
/** struct epoll_event is packed on x86-64 only. */
const EVENT_WORDS = process.arch === "x64" ? 3 : 4;
const DATA_WORD = process.arch === "x64" ? 1 : 2;
const MAX_EVENTS = 64;

const create = libcFunction("epoll_create1", "int", ["int"]);
const control = libcFunction("epoll_ctl", "int", ["int", "int", "int", "uintptr_t"]);
const waitFor = libcFunction("epoll_wait", "int", ["int", "uintptr_t", "int", "int"]);

const event = reserve(16);
const events = reserve(16 * MAX_EVENTS);
const events32 = events.u32;

export class Epoll {
  readonly #fd: number;
  #ready = 0;

  /** Throws HostError when the process has no descriptor left. */
  constructor() {
    this.#fd = must("epoll_create1", check(create(EPOLL_CLOEXEC)));
  }

  /** Listens to `fd`, level-triggered. EEXIST when it does already. */
  add(fd: number, mask: number = EPOLLIN): Errno | undefined {
    event.u32.fill(0);
    event.u32[0] = mask;
    event.u32[DATA_WORD] = fd;
    return checkVoid(control(this.#fd, EPOLL_CTL_ADD, fd, event.address));
  }

  /** Before `fd` is closed; ENOENT when it was not listened to. */
  remove(fd: number): Errno | undefined {
    return checkVoid(control(this.#fd, EPOLL_CTL_DEL, fd, event.address));
  }

  /** Sleeps until something is ready, at most `timeoutMs` (-1: for good). How many are; EINTR. */
  wait(timeoutMs: number): number | Errno {
    const n = waitFor(this.#fd, events.address, MAX_EVENTS, timeoutMs);
    this.#ready = Math.max(n, 0);
    return n === -1 ? lastErrno() : n;
  }

  /** The descriptor of the `i`th that is ready. Good until the next `wait`. */
  readyFd(i: number): number {
    if (i >= this.#ready) throw new RangeError(`${this.#ready} are ready, and ${i} is not among them`);
    return events32[i * EVENT_WORDS + DATA_WORD] as number;
  }

  /** What it is ready for, EPOLL*. */
  readyMask(i: number): number {
    return events32[i * EVENT_WORDS] as number;
  }

  close(): void {
    closeFd(this.#fd);
  }
}
