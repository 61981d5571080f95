/**
 * Descriptors of the program that are not ours, as files of the embedded kernel.
 *
 * | The program's descriptor | Here |
 * |---|---|
 * | eventfd | an `EventfdCtx` that signals and reads the program's own counter |
 * | memfd, a file of tmpfs or hugetlbfs | pages to pin (MAP_FILE, udmabuf), seals, size |
 * | opened with O_PATH | a file that counts as absent: EBADF |
 * | anything else | a file with no operations: EINVAL where pages or a counter are wanted |
 *
 * One file of the program is one `File` as long as somebody has it: told apart
 * by device and inode, an eventfd by its number in /proc, both with the flags it
 * was opened with. A file that nobody has any more gives its descriptor back.
 *
 * What is looked at is a copy of the descriptor (pidfd_getfd), not a path: what
 * the program does to its descriptor meanwhile changes nothing.
 *
 * Rights. Linux lets a device write to a file of tmpfs that the program has open
 * for reading only. Here it may if the program could open it for writing itself;
 * else the device's write is lost, and `mm.lost` tells.
 *
 * Limits. The copy keeps the program's file open: an unmask eventfd that the
 * program closed stays registered until it is replaced by -1, where Linux
 * forgets it at the close. A full counter (2^64 - 2) takes no further signal,
 * where Linux raises it to 2^64 - 1.
 */
import { eventfdSignal } from "../host/eventfd.ts";
import { closeFd, fdFlags } from "../host/fd.ts";
import { eventfdTakeNow, pollNow } from "../host/nowait.ts";
import { AT_FDCWD } from "../host/openat.ts";
import { readFdInfo } from "../host/proc.ts";
import { encodeDev, statAt, statFd } from "../host/stat.ts";
import { EventfdCtx } from "../kernel/fs/eventfd.ts";
import type { File, FileOps } from "../kernel/fs/file.ts";
import { type PollCallback, PollQueue } from "../kernel/fs/poll.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { EBADF, Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import { O_ACCMODE, O_PATH, O_RDONLY, POLLIN, POLLOUT, S_IFMT, S_IFREG } from "../uapi/index.ts";
import { descriptorOf } from "./process_memory.ts";
import { fileKind, type RealFile, type RealMemory } from "./real_file.ts";

/** Calls back whenever a descriptor of ours is readable, until the returned function is called. */
export type Watch = (hostFd: number, callback: () => void) => () => void;

/** Anything the kernel has no use for. */
const PLAIN_OPS: FileOps = { name: "foreign" };

export class ForeignFiles {
  readonly #kernel: Kernel;
  readonly #shared: RealMemory;
  readonly #watch: Watch;
  /** Files in use. */
  readonly #files: Map<string, File> = new Map();
  /** Counters in use, which may be longer than their file. */
  readonly #counters: Map<string, ForeignEventfd> = new Map();

  readonly #memoryOps: FileOps = {
    name: "foreign memory",
    pageSource: (f) => contentOf(f).file,
    getSeals: (f) => contentOf(f).file.seals(),
    stat: (f) => {
      const st = statFd(contentOf(f).file.fd);
      return st instanceof Errno ? { mode: S_IFREG } : { ...st, ino: Number(st.ino), rdev: 0 };
    },
    release: (f) => this.#release(f),
  };

  readonly #eventfdOps: FileOps = {
    name: "eventfd",
    stream: true,
    eventfdCtx: (f) => counterOf(f),
    release: (f) => this.#release(f),
  };

  constructor(shared: RealMemory, watch: Watch) {
    this.#kernel = shared.kernel;
    this.#shared = shared;
    this.#watch = watch;
  }

  /** Files in use now. */
  get size(): number {
    return this.#files.size;
  }

  /** The file behind descriptor `fd` of a thread, with a reference for the caller; EBADF. `link`: what it is called. */
  open(pid: number, tid: number, fd: number, link: string): File | Errno {
    const dup = descriptorOf(pid, tid, fd);
    if (dup instanceof Errno) return EBADF;
    const flags = fdFlags(dup);
    if (flags instanceof Errno || (flags & O_PATH) !== 0) return this.#plain(dup, O_PATH, link);
    const st = statFd(dup);
    if (st instanceof Errno) return this.#plain(dup, flags, link);
    if ((st.mode & S_IFMT) === S_IFREG && fileKind(dup) !== "disk") {
      // Whoever has a memfd may open it anew for writing; of other files, whoever runs as we do.
      const mayWrite = (flags & O_ACCMODE) !== O_RDONLY || (st.nlink === 0 && (st.mode & 0o002) !== 0) || runsAsWeDo(tid);
      const key = `${encodeDev(st.devMajor, st.devMinor)}:${st.ino}:${flags}${mayWrite ? "" : ":r"}`;
      const known = this.#known(key, dup);
      if (known !== undefined) return known;
      const file = this.#shared.fileOf(dup, link, mayWrite, !mayWrite);
      if (file instanceof Errno) return EBADF;
      return this.#enter(key, this.#memoryOps, flags, link, file);
    }
    const id = link === "anon_inode:[eventfd]" ? eventfdInfo(dup) : undefined;
    if (id === undefined) return this.#plain(dup, flags, link);
    const key = `eventfd:${id.id}`;
    const known = this.#known(key, dup);
    if (known !== undefined) return known;
    const file = this.#enter(key, this.#eventfdOps, flags, link, this.#counter(key, dup, id.semaphore));
    file.pollQueue = counterOf(file).pollQueue;
    return file;
  }

  #known(key: string, dup: number): File | undefined {
    const known = this.#files.get(key);
    if (known === undefined || !known.getActive()) return undefined;
    closeFd(dup);
    return known;
  }

  #enter(key: string, ops: FileOps, flags: number, path: string, content: RealFile | ForeignEventfd): File {
    const file = this.#kernel.fs.newFile(ops, { flags, path, privateData: { key, file: content } });
    this.#files.set(key, file);
    return file;
  }

  #plain(dup: number, flags: number, path: string): File {
    closeFd(dup);
    return this.#kernel.fs.newFile(PLAIN_OPS, { flags, path });
  }

  #counter(key: string, dup: number, semaphore: boolean): ForeignEventfd {
    const known = this.#counters.get(key);
    if (known !== undefined) {
      closeFd(dup);
      return known.get();
    }
    const made = new ForeignEventfd(this.#kernel, dup, semaphore, this.#watch, () => this.#counters.delete(key));
    this.#counters.set(key, made);
    return made;
  }

  *#release(f: File): Step<void> {
    const { key, file } = f.privateData as { key: string; file: RealFile | ForeignEventfd };
    if (this.#files.get(key) === f) this.#files.delete(key);
    file.put();
  }
}

const contentOf = (f: File): { file: RealFile } => f.privateData as { file: RealFile };
const counterOf = (f: File): ForeignEventfd => (f.privateData as { file: ForeignEventfd }).file;

/** An eventfd of the program's: the count is in the real one. */
export class ForeignEventfd extends EventfdCtx {
  readonly #fd: number;
  readonly #gone: () => void;

  /** Takes over `fd`. */
  constructor(kernel: Kernel, fd: number, semaphore: boolean, watch: Watch, gone: () => void) {
    super(kernel, 0, semaphore, new WatchedQueue(() => watch(fd, () => this.changed())));
    this.#fd = fd;
    this.#gone = gone;
  }

  override get count(): bigint {
    const info = (pollNow(this.#fd, POLLIN) & POLLIN) !== 0 ? eventfdInfo(this.#fd) : undefined;
    return info?.count ?? 0n;
  }

  override set count(_n: bigint) {
    throw new TypeError("the count of a real eventfd is changed by signal and consume");
  }

  override signal(n = 1): void {
    if ((pollNow(this.#fd, POLLOUT) & POLLOUT) !== 0) eventfdSignal(this.#fd, BigInt(n));
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "fs.eventfd_signal", path: `eventfd#${this.id}`, count: this.count });
    // Whoever polls it is told by the real one.
  }

  override consume(): bigint {
    const n = eventfdTakeNow(this.#fd);
    return n instanceof Errno ? 0n : n;
  }

  override destroy(): void {
    this.#gone();
    closeFd(this.#fd);
  }
}

/** Watches the real descriptor while somebody wants to know. */
class WatchedQueue extends PollQueue {
  readonly #start: () => () => void;
  #stop: (() => void) | undefined = undefined;

  constructor(start: () => () => void) {
    super();
    this.#start = start;
  }

  override add(callback: PollCallback): void {
    super.add(callback);
    this.#stop ??= this.#start();
  }

  override remove(callback: PollCallback): void {
    super.remove(callback);
    if (this.size === 0) this.#end();
  }

  override hangUp(): void {
    super.hangUp();
    this.#end();
  }

  #end(): void {
    this.#stop?.();
    this.#stop = undefined;
  }
}

/** What /proc says of an eventfd of ours; undefined when it is none. */
function eventfdInfo(fd: number): { id: string; count: bigint; semaphore: boolean } | undefined {
  const info = readFdInfo(process.pid, fd);
  const count = info?.get("eventfd-count");
  if (info === undefined || count === undefined) return undefined;
  return { id: info.get("eventfd-id") ?? `fd ${fd}`, count: BigInt(`0x${count}`), semaphore: info.get("eventfd-semaphore") === "1" };
}

/** May the program open what we may? */
function runsAsWeDo(tid: number): boolean {
  const st = statAt(AT_FDCWD, `/proc/${tid}`);
  return !(st instanceof Errno) && st.uid === process.geteuid?.();
}
