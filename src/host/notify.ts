/**
 * The listener of a filter: which calls wait, and how they are answered (linux/seccomp.h).
 *
 * A notification stays pending, and its thread asleep, until it is answered or the thread dies. Each answer returns ENOENT
 * when the thread is gone: nothing is left to do then. A second answer is ENOENT too, or EINPROGRESS until the thread has
 * taken the first. Between `recv` and the answer, whatever was read of the target
 * (by its pid, by /proc) is the target's only if `idValid` holds afterwards: pids are used again.
 */
import { EINTR, Errno } from "../lib/errno.ts";
import { closeFd } from "./fd.ts";
import { checkVoid, ioctl, lastErrno, reserve } from "./ffi.ts";

const RECV = 0xc050_2100;
const SEND = 0xc018_2101;
const ID_VALID = 0x4008_2102;
const ADDFD = 0x4018_2103;
const SET_FLAGS = 0x4008_2104;
const SYNC_WAKE_UP = 1;
const FLAG_CONTINUE = 1;
const ADDFD_SETFD = 1;
const O_CLOEXEC = 0o2000000;
const NOTIF_BYTES = 80;

const notif = reserve(NOTIF_BYTES);
const notif64 = notif.u64;
const notif32 = notif.u32;
const notifS32 = notif.s32;
const response = reserve(24);
const response64 = response.u64;
const responseS32 = response.s32;
const addfd = reserve(24);
const addfd64 = addfd.u64;
const addfd32 = addfd.u32;
const oneId = reserve(8);
const oneId64 = oneId.u64;

/** One waiting call: a copy, good for as long as it is kept. */
export class Notification {
  /** Names the waiting call in every answer. */
  readonly id: bigint;
  /** The thread that waits, in the listener's pid namespace. */
  readonly tid: number;
  readonly nr: number;
  /** AUDIT_ARCH_*. */
  readonly arch: number;
  /** Six, as 64-bit registers. */
  readonly args: readonly [bigint, bigint, bigint, bigint, bigint, bigint];

  constructor(id: bigint, tid: number, nr: number, arch: number, args: readonly [bigint, bigint, bigint, bigint, bigint, bigint]) {
    this.id = id;
    this.tid = tid;
    this.nr = nr;
    this.arch = arch;
    this.args = args;
  }
}

export class Listener {
  readonly fd: number;

  constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Wakes the other side on this CPU, at once: up to ten times faster when the two share one. EINVAL before Linux 6.6.
   */
  setSyncWakeUp(): Errno | undefined {
    return checkVoid(ioctl(this.fd, SET_FLAGS, SYNC_WAKE_UP));
  }

  /**
   * The next waiting call; sleeps until there is one (poll first). ENOENT: the caller died meanwhile, or nobody is bound
   * by the filter any more; only poll, by POLLHUP, says which. EINTR: a signal came.
   */
  recv(): Notification | Errno {
    // The kernel refuses a buffer that is not all zeros.
    notif64.fill(0n);
    if (ioctl(this.fd, RECV, notif.address) === -1) return lastErrno();
    return new Notification(notif64[0] as bigint, notif32[2] as number, notifS32[4] as number, notif32[5] as number, [
      notif64[4] as bigint,
      notif64[5] as bigint,
      notif64[6] as bigint,
      notif64[7] as bigint,
      notif64[8] as bigint,
      notif64[9] as bigint,
    ]);
  }

  /** The call still waits, so its thread is the one that made it. */
  idValid(id: bigint): boolean {
    oneId64[0] = id;
    return ioctl(this.fd, ID_VALID, oneId.address) === 0;
  }

  /** Answers with a value, what the call returns. */
  returnValue(id: bigint, value: bigint | number): Errno | undefined {
    response64[0] = id;
    response64[1] = typeof value === "bigint" ? value : BigInt(value);
    responseS32[4] = 0;
    responseS32[5] = 0;
    return checkVoid(ioctl(this.fd, SEND, response.address));
  }

  /** Answers with a failure. */
  returnErrno(id: bigint, errno: Errno): Errno | undefined {
    response64[0] = id;
    response64[1] = 0n;
    responseS32[4] = -errno.code;
    responseS32[5] = 0;
    return checkVoid(ioctl(this.fd, SEND, response.address));
  }

  /** Lets the kernel do the call as it stands in the target's registers and memory, which may have changed since. */
  continue(id: bigint): Errno | undefined {
    response64[0] = id;
    response64[1] = 0n;
    responseS32[4] = 0;
    responseS32[5] = FLAG_CONTINUE;
    return checkVoid(ioctl(this.fd, SEND, response.address));
  }

  /**
   * Gives the target a descriptor of the open file `sourceFd`, and returns its number there; the call goes on waiting. `at`
   * replaces that descriptor. EMFILE: the target has no room. There is no way to take it back.
   */
  addFd(id: bigint, sourceFd: number, options: AddFdOptions = {}): number | Errno {
    const { at, cloexec } = options;
    addfd64[0] = id;
    addfd32[2] = at === undefined ? 0 : ADDFD_SETFD;
    addfd32[3] = sourceFd;
    addfd32[4] = at ?? 0;
    addfd32[5] = cloexec === true ? O_CLOEXEC : 0;
    const fd = ioctl(this.fd, ADDFD, addfd.address);
    return fd === -1 ? lastErrno() : fd;
  }

  /**
   * The same, and the number is the call's answer. On failure the call still waits: answer it.
   *
   * Not by the flag that does both in one step: when a signal to this thread interrupts that, the kernel takes the
   * descriptor back, and answers the call with 0 all the same. Two steps are begun again where they were interrupted. They
   * are as good as one while the call can only be killed (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV).
   */
  addFdSend(id: bigint, sourceFd: number, options: AddFdOptions = {}): number | Errno {
    let fd: number | Errno;
    do fd = this.addFd(id, sourceFd, options);
    while (fd === EINTR);
    return fd instanceof Errno ? fd : (this.returnValue(id, fd) ?? fd);
  }

  /** From then on every waiting call, and every later one, returns ENOSYS. */
  close(): void {
    closeFd(this.fd);
  }
}

export interface AddFdOptions {
  /** The number it gets there; the lowest free one when left out. */
  readonly at?: number;
  /** FD_CLOEXEC there; off when left out. */
  readonly cloexec?: boolean;
}
