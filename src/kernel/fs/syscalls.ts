/**
 * System calls on descriptors and memory, for one process.
 *
 * Generators: run one on a thread of the process (`Process.run`). Arguments are
 * those of the call; a buffer is an address in the process's memory, a path is
 * a string. The checks stand in Linux's order, and an operation that a file
 * does not have gives Linux's error for that.
 *
 * Source: fs/{open,read_write,ioctl,fcntl,select,stat}.c, mm/mmap.c.
 */
import { U64_MAX } from "../../lib/addr.ts";
import { EBADF, EFAULT, EINVAL, ENODEV, ENOIOCTLCMD, ENOTTY, Errno, ESPIPE } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";
import {
  EFD_SEMAPHORE,
  F_ADD_SEALS,
  F_DUPFD,
  F_DUPFD_CLOEXEC,
  F_GET_SEALS,
  F_GETFD,
  F_GETFL,
  F_SETFD,
  F_SETFL,
  FD_CLOEXEC,
  MAP_ANONYMOUS,
  MFD_CLOEXEC,
  O_APPEND,
  O_CLOEXEC,
  O_DIRECT,
  O_LARGEFILE,
  O_NOATIME,
  O_NONBLOCK,
  O_PATH,
  POLLERR,
  POLLHUP,
  POLLIN,
  POLLNVAL,
  POLLOUT,
  POLLRDNORM,
  POLLWRNORM,
  S_IFMT,
  S_IFREG,
} from "../../uapi/index.ts";
import { TASK_SIZE } from "../mm/address_space.ts";
import { getUserU32 } from "../mm/user_memory.ts";
import { newEventfd } from "./eventfd.ts";
import type { File, FileStat } from "./file.ts";
import { checkMemfd, newMemfd } from "./memfd.ts";
import { newPipe } from "./pipe.ts";
import type { Process } from "./process.ts";

const FIONBIO = 0x5421;
const FIONCLEX = 0x5450;
const FIOCLEX = 0x5451;
const MAX_RW_COUNT = 0x7fff_f000;
const DEFAULT_POLL = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM;
const SETFL = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
/** What fdinfo says of the mount: one number for all. */
const MNT_ID = 15;
/** The inode that all files without one of their own share. */
const ANON_INO = 1023;

/** One entry of poll's array; `revents` is written. */
export interface PollEntry {
  readonly fd: number;
  readonly events: number;
  revents?: number;
}

/** `true` when [addr, addr + length) can be a user address at all. */
const accessOk = (addr: bigint, length: number): boolean => addr + BigInt(length) <= TASK_SIZE;

export class Syscalls {
  readonly #process: Process;

  constructor(process: Process) {
    this.#process = process;
  }

  *open(path: string, flags: number, mode = 0): Step<number | Errno> {
    const { files, kernel } = this.#process;
    const fd = files.getUnused(flags);
    if (fd instanceof Errno) return fd;
    const effective = (flags & O_PATH) !== 0 ? flags : flags | O_LARGEFILE;
    const file = yield* kernel.fs.openPath(path, effective, mode);
    if (file instanceof Errno) {
      files.putUnused(fd);
      return file;
    }
    files.install(fd, file);
    return fd;
  }

  /** The last close of a file releases it before the call returns. */
  *close(fd: number): Step<Errno | undefined> {
    const file = this.#process.files.take(fd);
    if (file instanceof Errno) return file;
    yield* this.#process.kernel.fs.fputSync(file);
    return undefined;
  }

  *ioctl(fd: number, cmd: number, arg: bigint): Step<number | Errno> {
    const file = this.#process.files.fget(fd);
    if (file instanceof Errno) return file;
    try {
      switch (cmd) {
        case FIOCLEX:
        case FIONCLEX:
          this.#process.files.setCloexec(fd, cmd === FIOCLEX);
          return 0;
        case FIONBIO: {
          const on = getUserU32(file.kernel, arg);
          if (on instanceof Errno) return on;
          file.flags = on !== 0 ? file.flags | O_NONBLOCK : file.flags & ~O_NONBLOCK;
          return 0;
        }
      }
      if (file.ops.ioctl === undefined) return ENOTTY;
      const r = yield* file.ops.ioctl(file, cmd >>> 0, arg);
      return r === ENOIOCTLCMD ? ENOTTY : r;
    } finally {
      file.kernel.fs.fput(file);
    }
  }

  *read(fd: number, buf: bigint, count: number): Step<number | Errno> {
    return yield* this.#transfer(fd, buf, count, undefined, false);
  }

  *write(fd: number, buf: bigint, count: number): Step<number | Errno> {
    return yield* this.#transfer(fd, buf, count, undefined, true);
  }

  *pread(fd: number, buf: bigint, count: number, pos: bigint): Step<number | Errno> {
    return yield* this.#transfer(fd, buf, count, pos, false);
  }

  *pwrite(fd: number, buf: bigint, count: number, pos: bigint): Step<number | Errno> {
    return yield* this.#transfer(fd, buf, count, pos, true);
  }

  /** `pos` undefined: at the file's position, which moves on. */
  *#transfer(fd: number, buf: bigint, count: number, pos: bigint | undefined, write: boolean): Step<number | Errno> {
    if (pos !== undefined && pos < 0n) return EINVAL;
    const file = this.#process.files.fget(fd);
    if (file instanceof Errno) return file;
    try {
      const { ops } = file;
      if (pos !== undefined && ops.stream === true) return ESPIPE;
      if (!(write ? file.writable : file.readable)) return EBADF;
      if (write ? ops.write === undefined : ops.read === undefined) return EINVAL;
      if (count < 0) return EINVAL;
      if (!accessOk(buf, count)) return EFAULT;
      const n = Math.min(count, MAX_RW_COUNT);
      const at = pos ?? (ops.stream === true ? 0n : file.pos);
      const r = (yield* (write ? ops.write?.(file, buf, n, at) : ops.read?.(file, buf, n, at)) ?? none()) as number | Errno;
      if (pos === undefined && ops.stream !== true && typeof r === "number") file.pos += BigInt(r);
      return r;
    } finally {
      file.kernel.fs.fput(file);
    }
  }

  *lseek(fd: number, offset: bigint, whence: number): Step<bigint | Errno> {
    const file = this.#process.files.fget(fd);
    if (file instanceof Errno) return file;
    try {
      if (whence < 0 || whence > 4) return EINVAL;
      if (file.ops.llseek === undefined) return ESPIPE;
      return yield* file.ops.llseek(file, offset, whence);
    } finally {
      file.kernel.fs.fput(file);
    }
  }

  *mmap(addr: bigint, length: bigint, prot: number, flags: number, fd: number, offset = 0n): Step<bigint | Errno> {
    const { mm, files, space, kernel } = this.#process;
    if ((offset & 4095n) !== 0n) return EINVAL;
    let file: File | undefined;
    if ((flags & MAP_ANONYMOUS) === 0) {
      const f = files.fget(fd);
      if (f instanceof Errno) return f;
      file = f;
    }
    yield* mm.mmapLock.downWrite();
    try {
      return space.mmap({ addr, length, prot, flags, file, offset });
    } finally {
      mm.mmapLock.upWrite();
      if (file !== undefined) kernel.fs.fput(file);
    }
  }

  *munmap(addr: bigint, length: bigint): Step<Errno | undefined> {
    const { mm, space } = this.#process;
    yield* mm.mmapLock.downWrite();
    try {
      return space.munmap(addr, length);
    } finally {
      mm.mmapLock.upWrite();
    }
  }

  *mprotect(addr: bigint, length: bigint, prot: number): Step<Errno | undefined> {
    const { mm, space } = this.#process;
    yield* mm.mmapLock.downWrite();
    try {
      return space.mprotect(addr, length, prot);
    } finally {
      mm.mmapLock.upWrite();
    }
  }

  /**
   * Waits until a descriptor is ready; returns how many are. `timeoutMs` of
   * virtual time, negative: without bound. Entries with a negative fd are
   * skipped, a bad one is ready with POLLNVAL.
   */
  *poll(entries: PollEntry[], timeoutMs: number): Step<number | Errno> {
    const { files, kernel } = this.#process;
    const of: (File | undefined)[] = entries.map((e) => {
      const f = e.fd < 0 ? EBADF : files.fget(e.fd);
      return f instanceof Errno ? undefined : f;
    });
    const look = (): number => {
      let ready = 0;
      entries.forEach((e, i) => {
        const f = of[i];
        if (f === undefined) e.revents = e.fd < 0 ? 0 : POLLNVAL;
        else e.revents = (f.ops.poll?.(f) ?? DEFAULT_POLL) & (e.events | POLLERR | POLLHUP);
        if (e.revents !== 0) ready++;
      });
      return ready;
    };
    let ready = look();
    let over = timeoutMs === 0;
    const queue = new WaitQueue(kernel.sched, "poll");
    const wake = (): void => queue.wakeUp();
    const timer =
      timeoutMs > 0 && ready === 0
        ? kernel.sched.timer(timeoutMs * 1e6, () => {
            over = true;
            wake();
          })
        : undefined;
    try {
      if (ready > 0 || over) return ready;
      for (const f of of) f?.pollQueue.add(wake);
      const e = yield* queue.waitEventInterruptible(() => {
        ready = look();
        return ready > 0 || over;
      });
      return e ?? ready;
    } finally {
      timer?.cancel();
      for (const f of of) {
        if (f === undefined) continue;
        f.pollQueue.remove(wake);
        kernel.fs.fput(f);
      }
    }
  }

  *dup(fd: number): Step<number | Errno> {
    const { files } = this.#process;
    const file = files.getRaw(fd);
    return file instanceof Errno ? file : files.dup(file, 0, 0);
  }

  *dup2(fd: number, to: number): Step<number | Errno> {
    const { files } = this.#process;
    const file = files.getRaw(fd);
    if (file instanceof Errno) return file;
    if (fd === to) return to;
    return this.#dupTo(file, to, 0);
  }

  *dup3(fd: number, to: number, flags: number): Step<number | Errno> {
    if ((flags & ~O_CLOEXEC) !== 0 || fd === to) return EINVAL;
    if (to < 0 || to >= this.#process.files.limit) return EBADF;
    const file = this.#process.files.getRaw(fd);
    return file instanceof Errno ? file : this.#dupTo(file, to, flags);
  }

  #dupTo(file: File, to: number, flags: number): number | Errno {
    const old = this.#process.files.replace(to, file, flags);
    if (old instanceof Errno) return old;
    if (old !== undefined) this.#process.kernel.fs.fput(old);
    return to;
  }

  *fcntl(fd: number, cmd: number, arg = 0): Step<number | Errno> {
    const { files } = this.#process;
    const file = files.getRaw(fd);
    if (file instanceof Errno) return file;
    if (file.isPath && ![F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL].includes(cmd)) return EBADF;
    switch (cmd) {
      case F_DUPFD:
        return files.dup(file, arg, 0);
      case F_DUPFD_CLOEXEC:
        return files.dup(file, arg, O_CLOEXEC);
      case F_GETFD:
        return files.cloexec(fd) ? FD_CLOEXEC : 0;
      case F_SETFD:
        files.setCloexec(fd, (arg & FD_CLOEXEC) !== 0);
        return 0;
      case F_GETFL:
        return file.flags;
      case F_SETFL:
        if ((arg & O_DIRECT) !== 0) return EINVAL;
        file.flags = (file.flags & ~SETFL) | (arg & SETFL);
        return 0;
      case F_ADD_SEALS:
        return file.ops.addSeals === undefined ? EINVAL : (file.ops.addSeals(file, arg) ?? 0);
      case F_GET_SEALS:
        return file.ops.getSeals?.(file) ?? EINVAL;
      default:
        return EINVAL;
    }
  }

  *fstat(fd: number): Step<Required<FileStat> | Errno> {
    const file = this.#process.files.getRaw(fd);
    if (file instanceof Errno) return file;
    const s: FileStat | undefined = file.ops.stat?.(file) ?? file.kernel.fs.deviceStat(file.path);
    return {
      mode: s?.mode ?? 0o600,
      size: s?.size ?? 0n,
      ino: s?.ino ?? ANON_INO,
      nlink: s?.nlink ?? 1,
      rdev: s?.rdev ?? 0,
      blksize: s?.blksize ?? 4096,
      blocks: s?.blocks ?? 0n,
    };
  }

  *ftruncate(fd: number, length: bigint): Step<Errno | undefined> {
    if (length < 0n) return EINVAL;
    const file = this.#process.files.fget(fd);
    if (file instanceof Errno) return file;
    try {
      const mode = file.ops.stat?.(file).mode ?? 0;
      if ((mode & S_IFMT) !== S_IFREG || !file.writable || file.ops.ftruncate === undefined) return EINVAL;
      return yield* file.ops.ftruncate(file, length);
    } finally {
      file.kernel.fs.fput(file);
    }
  }

  *fsync(fd: number): Step<Errno | undefined> {
    const file = this.#process.files.fget(fd);
    if (file instanceof Errno) return file;
    try {
      return file.ops.fsync === undefined ? EINVAL : yield* file.ops.fsync(file);
    } finally {
      file.kernel.fs.fput(file);
    }
  }

  *memfdCreate(name: string, flags: number): Step<number | Errno> {
    const { files, kernel } = this.#process;
    const refused = checkMemfd(name, flags);
    if (refused !== undefined) return refused;
    const fd = files.getUnused((flags & MFD_CLOEXEC) !== 0 ? O_CLOEXEC : 0);
    if (fd instanceof Errno) return fd;
    const file = newMemfd(kernel, name, flags);
    if (file instanceof Errno) {
      files.putUnused(fd);
      return file;
    }
    files.install(fd, file);
    return fd;
  }

  *eventfd(initial: number, flags = 0): Step<number | Errno> {
    const { files, kernel } = this.#process;
    if ((flags & ~(EFD_SEMAPHORE | O_CLOEXEC | O_NONBLOCK)) !== 0) return EINVAL;
    const fd = files.getUnused(flags);
    if (fd instanceof Errno) return fd;
    const file = newEventfd(kernel, initial, flags);
    if (file instanceof Errno) {
      files.putUnused(fd);
      return file;
    }
    files.install(fd, file);
    return fd;
  }

  /** Both descriptors, the reading end first. `flags`: O_CLOEXEC, O_NONBLOCK. */
  *pipe(flags = 0): Step<[read: number, write: number] | Errno> {
    const { files, kernel } = this.#process;
    if ((flags & ~(O_CLOEXEC | O_NONBLOCK)) !== 0) return EINVAL;
    const r = files.getUnused(flags);
    if (r instanceof Errno) return r;
    const w = files.getUnused(flags);
    if (w instanceof Errno) {
      files.putUnused(r);
      return w;
    }
    const ends = newPipe(kernel, flags);
    if (ends instanceof Errno) {
      files.putUnused(r);
      files.putUnused(w);
      return ends;
    }
    files.install(r, ends[0]);
    files.install(w, ends[1]);
    return [r, w];
  }

  /** What readlink of /proc/self/fd/FD says; EBADF for a closed one. */
  *readlinkFd(fd: number): Step<string | Errno> {
    const file = this.#process.files.getRaw(fd);
    return file instanceof Errno ? file : file.path;
  }

  /** The text of /proc/self/fdinfo/FD. */
  *fdinfo(fd: number): Step<string | Errno> {
    const { files } = this.#process;
    const file = files.getRaw(fd);
    if (file instanceof Errno) return file;
    const flags = file.flags | (files.cloexec(fd) ? O_CLOEXEC : 0);
    const ino = file.ops.stat?.(file).ino ?? ANON_INO;
    const common = [`pos:\t${file.pos & U64_MAX}`, `flags:\t0${flags.toString(8)}`, `mnt_id:\t${MNT_ID}`, `ino:\t${ino}`];
    return [...common, ...(file.ops.fdinfo?.(file) ?? [])].map((l) => `${l}\n`).join("");
  }
}

function* none(): Step<Errno> {
  return ENODEV;
}
