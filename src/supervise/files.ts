/**
 * Files of the embedded kernel that the program holds.
 *
 * For each the program has a descriptor of a memfd made here, opened anew
 * through /proc/self/fd, so that the real kernel does what it does for any open
 * file: dup, fork, SCM_RIGHTS, O_CLOEXEC, mappings that outlive the descriptor.
 * A watch on its inode tells of the last close, and that event is queued before
 * the call that caused it returns: whoever drains the queue before each served
 * call sees closes in the order in which Linux would release.
 *
 * The memfd's name says which file it is: `barlink:ID`. The id is random, so
 * that a program cannot make up the name of a file that it was never given.
 *
 * A file that is not always ready, and that cannot be mapped (an event queue, a
 * sync file), has a pipe in place of the memfd: real poll, select and epoll find
 * it ready exactly when the embedded kernel's poll says so (`settle`). Events
 * that any read may take are in the pipe themselves, so that one that is not
 * trapped gets the first of them.
 *
 * A number that a call reserves (`reserve`) is a real descriptor at once, since
 * no real one can be taken back; one that the call gives up stays with the
 * process and is given out again at the next occasion.
 */
import {
  closeFd,
  createFifo,
  type FdLinks,
  ftruncateFd,
  IN_CLOSE,
  IN_OPEN,
  IN_Q_OVERFLOW,
  Inotify,
  MOST_PACKETS,
  memfdCreate,
  PacketPipe,
  random48,
  reopenFd,
} from "../host/index.ts";
import type { File } from "../kernel/fs/file.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { Errno } from "../lib/errno.ts";
import { O_ACCMODE, O_APPEND, O_NONBLOCK, O_RDONLY, O_RDWR, POLLIN, POLLOUT } from "../uapi/index.ts";
import type { SupervisedFiles } from "./types.ts";

/** Status flags of an open that the real descriptor has too. */
const KEPT = O_ACCMODE | O_NONBLOCK | O_APPEND;

/** One memfd, or pipe, that the program has, or had. */
export class Held {
  readonly id: number;
  /** Our own descriptor of it: not the program's open file. */
  readonly memfd: number;
  readonly watch: number;
  /** It is a pipe, which tells by its readiness whether there is something to read. */
  readonly pipe: PacketPipe | undefined;
  /** FD_CLOEXEC of the number that was reserved. */
  cloexec = false;
  /** Open files of the program on it: more than one when it reopened it. */
  opens = 1;
  /** undefined while only reserved. */
  file: File | undefined = undefined;
  readonly onLastClose: (() => void)[] = [];

  constructor(id: number, memfd: number, watch: number, isPipe: boolean) {
    this.id = id;
    this.memfd = memfd;
    this.watch = watch;
    this.pipe = isPipe ? new PacketPipe(memfd) : undefined;
  }
}

/** In the pipe of a file that does not show its events themselves. */
const TOKEN: readonly Uint8Array[] = [new Uint8Array(1)];

function packetsOf(file: File): readonly Uint8Array[] {
  const { ops } = file;
  if (ops.packets !== undefined) return ops.packets(file, MOST_PACKETS);
  return ((ops.poll?.(file) ?? 0) & POLLIN) !== 0 ? TOKEN : [];
}

export class HeldFiles implements SupervisedFiles {
  readonly #kernel: Kernel;
  readonly #links: (tid: number) => FdLinks | undefined;
  readonly #inotify: Inotify;
  readonly #byId: Map<number, Held> = new Map();
  readonly #byWatch: Map<number, Held> = new Map();
  readonly #byFile: Map<File, Held[]> = new Map();
  readonly #queues: Set<Held> = new Set();
  readonly #directory: string;

  /** `directory`: where pipes get their names. `links`: the descriptors of a thread, undefined when it is gone. */
  constructor(kernel: Kernel, directory: string, links: (tid: number) => FdLinks | undefined) {
    this.#kernel = kernel;
    this.#directory = directory;
    this.#links = links;
    this.#inotify = new Inotify();
  }

  /** Readable when a close waits in the queue. */
  get inotifyFd(): number {
    return this.#inotify.fd;
  }

  get count(): number {
    return this.#byId.size;
  }

  byId(id: number): File | undefined {
    return this.#byId.get(id)?.file;
  }

  lookup(tid: number, fd: number): File | undefined {
    return this.held(tid, fd)?.file;
  }

  held(tid: number, fd: number): Held | undefined {
    if (this.#byId.size === 0) return undefined;
    const id = this.#links(tid)?.heldId(fd);
    return typeof id === "number" && id > 0 ? this.#byId.get(id) : undefined;
  }

  /** The program has a descriptor of `file`, or a mapping. */
  holds(file: File): boolean {
    return this.#byFile.has(file);
  }

  memfd(file: File): number | undefined {
    return this.#byFile.get(file)?.[0]?.memfd;
  }

  onLastClose(file: File, callback: () => void): void {
    const held = this.#byFile.get(file);
    if (held === undefined) throw new RangeError(`the program does not hold ${file.path}`);
    held[0]?.onLastClose.push(callback);
  }

  /**
   * A fresh memfd and a descriptor to inject, `openFd`, which the caller closes
   * after that: then the program's is the last. `flags`: O_* of the open.
   */
  create(flags: number): { held: Held; openFd: number } | Errno {
    const id = random48() + 1;
    return this.#hold(id, memfdCreate(`barlink:${id}`), flags & KEPT, false);
  }

  /** The same as a pipe for a file that is not always ready; undefined: a memfd is right. */
  createQueue(file: File): { held: Held; openFd: number } | Errno | undefined {
    const { ops } = file;
    if (ops.poll === undefined || ops.mmap !== undefined) return undefined;
    const mode = (ops.poll(file) & POLLOUT) !== 0 ? O_RDWR : O_RDONLY;
    const id = random48() + 1;
    // A read that we do not get to see must not wait.
    return this.#hold(id, createFifo(`${this.#directory}/barlink:${id}`), mode | O_NONBLOCK, true);
  }

  /** Holds what `made` is a descriptor of, and opens it for the program with `flags`. */
  #hold(id: number, made: number | Errno, flags: number, isPipe: boolean): { held: Held; openFd: number } | Errno {
    if (made instanceof Errno) return made;
    const openFd = reopenFd(made, flags);
    if (openFd instanceof Errno) {
      closeFd(made);
      return openFd;
    }
    const watch = this.#inotify.watchFd(made, IN_OPEN | IN_CLOSE);
    if (watch instanceof Errno) {
      closeFd(made);
      closeFd(openFd);
      return watch;
    }
    const held = new Held(id, made, watch, isPipe);
    this.#byId.set(id, held);
    this.#byWatch.set(watch, held);
    return { held, openFd };
  }

  /** A memfd for a number that a call reserves; see `create`. */
  createReserved(): { held: Held; openFd: number } | Errno {
    return this.create(O_RDWR);
  }

  /** From now on the memfd stands for `file`, whose reference it takes over. If it was closed already, the reference is put. */
  associate(held: Held, file: File): void {
    if (held.opens === 0) {
      this.#kernel.fs.fput(file);
      return;
    }
    held.file = file;
    const others = this.#byFile.get(file);
    if (others === undefined) this.#byFile.set(file, [held]);
    else others.push(held);
    if (held.pipe !== undefined) {
      this.#queues.add(held);
      this.settle();
      return;
    }
    const size = file.ops.stat?.(file).size ?? 0n;
    if (size > 0n) ftruncateFd(held.memfd, size);
  }

  /** Makes the pipes as ready as their files are. */
  settle(): void {
    if (this.#queues.size === 0) return;
    for (const { file, pipe } of this.#queues) {
      if (file === undefined || pipe === undefined) continue;
      for (let n = pipe.taken(); ; ) {
        if (n > 0) file.ops.packetsRead?.(file, n);
        n = pipe.show(packetsOf(file));
        if (n === 0) break;
      }
    }
  }

  /** The injection failed: nobody has it. */
  drop(held: Held): void {
    held.opens = 0;
    this.#forget(held);
  }

  /** Takes up what was closed since; true when a file's reference was put. */
  drain(): boolean {
    let put = false;
    this.#inotify.drain((watch, mask) => {
      if ((mask & IN_Q_OVERFLOW) !== 0) this.overflowed = true;
      const held = this.#byWatch.get(watch);
      if (held === undefined) return;
      if ((mask & IN_OPEN) !== 0) held.opens++;
      else if ((mask & IN_CLOSE) !== 0 && --held.opens === 0) put = this.#closed(held) || put;
    });
    return put;
  }

  /** Events were lost: some closes will only be seen at the end. */
  overflowed = false;

  /** The program has ended: whatever it still held, it holds no more. */
  closeAll(): void {
    this.drain();
    for (const held of [...this.#byId.values()]) {
      held.opens = 0;
      this.#closed(held);
    }
  }

  destroy(): void {
    this.#inotify.close();
  }

  #closed(held: Held): boolean {
    const { file } = held;
    for (const cb of held.onLastClose) cb();
    this.#forget(held);
    if (file === undefined) return false;
    this.#kernel.fs.fput(file);
    return true;
  }

  #forget(held: Held): void {
    this.#byId.delete(held.id);
    this.#queues.delete(held);
    this.#byWatch.delete(held.watch);
    if (held.file !== undefined) {
      const all = this.#byFile.get(held.file);
      const rest = all?.filter((h) => h !== held) ?? [];
      if (rest.length > 0) this.#byFile.set(held.file, rest);
      else this.#byFile.delete(held.file);
    }
    // With the last descriptor the inode goes, and the watch with it.
    closeFd(held.memfd);
  }
}
