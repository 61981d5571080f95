/**
 * Files of real programs whose pages devices may reach: memfd, tmpfs, shared
 * anonymous memory, hugetlbfs; and any other file that is mapped shared, to be
 * read.
 *
 * A file is one object for all processes, by device and inode. Its bytes are
 * reached through a descriptor of our own, which keeps the file alive as a pin
 * does on Linux: after munmap, after the last close, after the process. Where no
 * descriptor can be had (the program closed its own, and barlink is not root)
 * or where writing through it is forbidden, the bytes are reached through the
 * mappings of it that processes had when they pinned it (`FileView`), as long as
 * those last; see `ProcessMemory.leaving` for their end.
 *
 * Rights: every descriptor is one that the program itself holds, or one of a
 * file that it has mapped. It is opened anew for writing only when the program
 * could do so too (`mayWrite`). A device of a program that may only read a file
 * gets at it through an object of its own, whatever other programs may do.
 *
 * Kept alive by users (open files of the embedded kernel) and by pins. With the
 * last of them the descriptor is closed, or kept for as long as a process maps
 * the file, of few files.
 */
import { statfsSync } from "node:fs";
import { closeFd, fdFlags, preadFd, pwriteFd } from "../host/fd.ts";
import { sizeOfFd, writeMapped } from "../host/mapping.ts";
import { reopenFd } from "../host/memfd.ts";
import { fileSeals } from "../host/nowait.ts";
import { encodeDev, type FileStatus, statFd } from "../host/stat.ts";
import type { File } from "../kernel/fs/file.ts";
import type { Kernel } from "../kernel/kernel.ts";
import type { PageSource } from "../kernel/mm/page_cache.ts";
import { PAGE_SHIFT, PAGE_SIZE, type Pfn } from "../lib/addr.ts";
import { EINVAL, Errno } from "../lib/errno.ts";
import { bugOn } from "../lib/kernel_bug.ts";
import type { LostReason } from "../trace/events/mm.ts";
import { F_SEAL_SEAL, F_SEAL_SHRINK, O_ACCMODE, O_APPEND, O_NOCTTY, O_NONBLOCK, O_RDONLY, O_RDWR, S_IFMT, S_IFREG } from "../uapi/index.ts";
import { type PageStore, PinBudget, PinnedPages } from "./pins.ts";

/** What kind of memory the file is: "disk" is not memory. */
export type FileKind = "shmem" | "hugetlb" | "disk";

const TMPFS_MAGIC = 0x0102_1994;
const HUGETLBFS_MAGIC = 0x9584_58f6;
/** Files that are mapped and not used, at most. */
const IDLE_LIMIT = 16;
/** A page of hugetlbfs, where it cannot be asked. */
export const HUGE_PAGE: number = 2 << 20;

/** A process's memory by address, past its protections: as DMA goes. */
export interface AddressedMemory {
  readonly name: string;
  /** undefined: done. */
  peek(address: bigint, dst: Uint8Array): LostReason | undefined;
  poke(address: bigint, src: Uint8Array): LostReason | undefined;
}

/** Pages [first, first + npages) of a file, mapped at `address` of a process. */
export interface FileView {
  readonly memory: AddressedMemory;
  readonly first: number;
  readonly npages: number;
  readonly address: bigint;
  readonly writable: boolean;
}

/** A process's memory, as far as files need it that it may map. */
export interface MappedMemory {
  /** Its shared mappings of the file of that key, now. */
  viewsOf(key: string): FileView[];
}

/** What all processes of one run of barlink share. */
export class RealMemory {
  readonly kernel: Kernel;
  readonly budget: PinBudget = new PinBudget();
  /** The thread to reach a process's memory by, if it waits for us now; undefined when it may be gone at any time. */
  caller: (target: { readonly tid: number }) => number | undefined = (target) => target.tid;
  /** The embedded kernel's file of an id, if a program holds it. */
  heldFile: (id: number) => File | undefined = () => undefined;
  /** Calls that were taken up so far: what was read in one of them is old in the next. */
  calls = 0;
  /** False once following /proc/PID/map_files was refused: it takes CAP_CHECKPOINT_RESTORE. */
  mapFiles = true;
  /** Of the processes that live. */
  readonly memories: Set<MappedMemory> = new Set();
  /** By device and inode. */
  readonly files: Map<string, RealFile> = new Map();
  /** Those that nobody uses and that processes still map, the last used one last: pages of one file are pinned again and again. */
  readonly #idle: Set<RealFile> = new Set();

  constructor(kernel: Kernel) {
    this.kernel = kernel;
  }

  /** A file that nobody uses any more may be used again soon. False: it is to be closed. */
  keep(f: RealFile): boolean {
    this.#idle.delete(f);
    // What a mapping keeps alive costs us a descriptor only; huge pages are missed as soon as the process is gone.
    if (!f.held || f.views.length === 0 || f.kind !== "shmem") return false;
    this.#idle.add(f);
    if (this.#idle.size > IDLE_LIMIT) for (const oldest of this.#idle) return oldest.discard();
    return true;
  }

  /** It is used again, or closed. */
  notIdle(f: RealFile): void {
    this.#idle.delete(f);
  }

  /** The file of an inode, known already or not, with one more user. `readOnly`: see `fileOf`. */
  file(dev: bigint, ino: bigint, kind: FileKind, name: string, readOnly = false): RealFile {
    const key = `${dev}:${ino}${readOnly ? ":r" : ""}`;
    let f = this.files.get(key);
    if (f === undefined) {
      f = new RealFile(this, key, kind, name);
      this.files.set(key, f);
    }
    return f.get();
  }

  /**
   * The same for a descriptor of ours, which is taken over whatever happens;
   * EINVAL for what is no plain file. With `readOnly` it is an object apart, of
   * which nobody ever makes one that can be written.
   */
  fileOf(fd: number, name: string, mayWrite: boolean, readOnly = false): RealFile | Errno {
    const st = statFd(fd);
    if (st instanceof Errno || (st.mode & S_IFMT) !== S_IFREG) {
      closeFd(fd);
      return st instanceof Errno ? st : EINVAL;
    }
    const f = this.file(encodeDev(st.devMajor, st.devMinor), st.ino, fileKind(fd), name, readOnly);
    f.adopt(fd, st, mayWrite);
    return f;
  }
}

/** What holds the bytes of an open file. */
export function fileKind(fd: number): FileKind {
  const { type } = statfsSync(`/proc/self/fd/${fd}`);
  return type === TMPFS_MAGIC ? "shmem" : type === HUGETLBFS_MAGIC ? "hugetlb" : "disk";
}

export class RealFile implements PageStore, PageSource {
  readonly shared: RealMemory;
  readonly key: string;
  readonly kind: FileKind;
  readonly name: string;
  readonly pages: PinnedPages;
  /** Ours; -1 when there is none. */
  #fd = -1;
  #writable = false;
  /** Bytes of its pages. */
  #unit = PAGE_SIZE;
  /** undefined while that may change. */
  #shrinkSealed: boolean | undefined = undefined;
  #users = 0;
  #views: FileView[] = [];

  constructor(shared: RealMemory, key: string, kind: FileKind, name: string) {
    this.shared = shared;
    this.key = key;
    this.kind = kind;
    this.name = name;
    if (kind === "hugetlb") this.#unit = HUGE_PAGE;
    this.pages = new PinnedPages(shared.kernel, this, shared.budget);
  }

  get(): this {
    if (this.#users === 0) this.shared.notIdle(this);
    this.#users++;
    return this;
  }

  put(): void {
    bugOn(this.#users === 0, `${this.name} is put too often`);
    this.#users--;
    this.idle();
  }

  /** A descriptor of ours for it; -1 when there is none. */
  get fd(): number {
    return this.#fd;
  }

  /** Its bytes do not go when processes unmap it. */
  get held(): boolean {
    return this.#fd >= 0 && this.#writable;
  }

  get views(): readonly FileView[] {
    return this.#views;
  }

  /** Reaches the file through `fd` from now on if that is better than what there was; closes it otherwise. */
  adopt(fd: number, st: FileStatus, mayWrite: boolean): void {
    if (this.held || (this.#fd >= 0 && !mayWrite)) {
      closeFd(fd);
      return;
    }
    // An open file of our own: the program's may append at each write.
    const own = mayWrite ? reopenFd(fd, O_RDWR | O_NONBLOCK | O_NOCTTY) : reopenFd(fd, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    const flags = fdFlags(fd);
    let best = fd;
    if (!(own instanceof Errno)) {
      closeFd(fd);
      best = own;
      this.#writable = mayWrite;
    } else {
      this.#writable = !(flags instanceof Errno) && (flags & O_ACCMODE) !== O_RDONLY && (flags & O_APPEND) === 0;
    }
    if (this.#fd >= 0) closeFd(this.#fd);
    this.#fd = best;
    if (this.kind === "hugetlb") this.#unit = st.blksize;
  }

  /** 4 KiB pages that one of its pages is. */
  get unit(): number {
    return this.#unit / PAGE_SIZE;
  }

  /** Bytes; 0 when it cannot be asked. */
  get size(): number {
    const size = this.#fd < 0 ? EINVAL : sizeOfFd(this.#fd);
    return size instanceof Errno ? 0 : size;
  }

  /** F_SEAL_*; EINVAL for a file that has none. */
  seals(): number | Errno {
    return this.#fd < 0 ? EINVAL : fileSeals(this.#fd);
  }

  /** A mapping of it, for where the descriptor does not do, and for when it ceases to (a seal). */
  addView(v: FileView): void {
    if (!this.#views.some((w) => contains(w, v))) this.#views.push(v);
  }

  /**
   * A process's mappings in [address, end) go. Where nothing else shows a page
   * that is pinned, its bytes are set apart first.
   */
  removeViews(memory: AddressedMemory, address: bigint, end: bigint, why: string, lost?: LostReason): void {
    const gone = this.#views.filter((v) => v.memory === memory && v.address < end && endOf(v) > address);
    if (gone.length === 0) return;
    const kept = this.#views.filter((v) => !gone.includes(v));
    const cut: [number, number][] = [];
    for (const v of gone) {
      const before = v.address < address ? pagesOf(address - v.address) : 0;
      const after = endOf(v) > end ? pagesOf(endOf(v) - end) : 0;
      if (before > 0) kept.push({ ...v, npages: before });
      if (after > 0) kept.push({ ...v, first: v.first + v.npages - after, npages: after, address: end });
      cut.push([v.first + before, v.first + v.npages - after]);
    }
    if (!this.held) {
      // Others may map it who never pinned it: the parent of who did.
      const left = cut.some(([first, last]) => this.pages.pinnedIn(first, last));
      if (left && lost === undefined) for (const m of this.shared.memories) addTo(kept, m.viewsOf(this.key), memory);
      for (const [first, last] of cut) {
        // Page by page only where another mapping may show some of them.
        const others = kept.filter((v) => v.first < last && v.first + v.npages > first);
        if (others.length === 0) this.pages.setApart(first, last, why, lost);
        else for (let p = first; p < last; p++) if (!others.some((v) => covers(v, p))) this.pages.setApart(p, p + 1, why, lost);
      }
    }
    this.#views = kept;
    if (kept.length === 0) this.idle();
  }

  /** For MAP_FILE and udmabuf: only memory has pages to pin as a file's. */
  pin(start: number, npages: number): Pfn[] | Errno {
    if (npages <= 0 || start < 0 || this.kind === "disk") return EINVAL;
    if ((start + npages) * PAGE_SIZE > this.size) return EINVAL;
    return this.pages.pin(start, npages, this.unit);
  }

  read(page: number, offset: number, dst: Uint8Array): LostReason | undefined {
    if (this.#fd >= 0) {
      const at = page * PAGE_SIZE + offset;
      const n = preadFd(this.#fd, dst, at);
      if (n === dst.length) return undefined;
      if (!(n instanceof Errno)) {
        // The rest of the last page is zeros.
        if (page * PAGE_SIZE >= this.size) return "truncated";
        dst.fill(0, n);
        return undefined;
      }
    }
    return this.#byView(page, (v, address) => v.memory.peek(address + BigInt(offset), dst));
  }

  write(page: number, offset: number, src: Uint8Array): LostReason | undefined {
    let why: LostReason | undefined;
    if (this.#writable) {
      const r = this.#pwrite(page * PAGE_SIZE, offset, src);
      if (r === undefined || r === "truncated") return r;
      why = r;
    } else if (this.#fd >= 0) {
      why = "read-only";
    }
    const left = this.#byView(page, (v, address) => (v.writable ? v.memory.poke(address + BigInt(offset), src) : "read-only"));
    return left === undefined ? undefined : (why ?? left);
  }

  /** Closes what nobody needs any more. */
  idle(): void {
    if (this.#users > 0 || this.pages.live > 0 || this.shared.keep(this)) return;
    this.discard();
  }

  /** Closes it: nobody uses it. */
  discard(): true {
    bugOn(this.#users > 0 || this.pages.live > 0, `${this.name} is closed while it is used`);
    this.shared.notIdle(this);
    if (this.#fd >= 0) closeFd(this.#fd);
    this.#fd = -1;
    this.#writable = false;
    this.#views = [];
    if (this.shared.files.get(this.key) === this) this.shared.files.delete(this.key);
    return true;
  }

  #pwrite(pageStart: number, offset: number, src: Uint8Array): LostReason | undefined {
    let part = src;
    if (!this.#cannotShrink()) {
      // A write past the end would make the file longer. What lies past it in its last page is nobody's.
      const { size } = this;
      if (pageStart >= size) return "truncated";
      part = src.subarray(0, Math.max(0, size - pageStart - offset));
    }
    const at = pageStart + offset;
    const n = this.kind === "hugetlb" ? writeMapped(this.#fd, at, part, this.#unit) : pwriteFd(this.#fd, part, at);
    return n === part.length ? undefined : "read-only";
  }

  #cannotShrink(): boolean {
    if (this.#shrinkSealed === undefined) {
      const seals = this.seals();
      if (seals instanceof Errno) return false;
      if ((seals & F_SEAL_SHRINK) !== 0) this.#shrinkSealed = true;
      // Nothing more can be sealed: memory shared by mmap is so from the start.
      else if ((seals & F_SEAL_SEAL) !== 0) this.#shrinkSealed = false;
    }
    return this.#shrinkSealed ?? false;
  }

  #byView(page: number, access: (v: FileView, address: bigint) => LostReason | undefined): LostReason | undefined {
    let why: LostReason = "exited";
    for (const v of this.#views) {
      if (!covers(v, page)) continue;
      const r = access(v, v.address + (BigInt(page - v.first) << BigInt(PAGE_SHIFT)));
      if (r === undefined) return undefined;
      why = r;
    }
    return why;
  }
}

/** `w` shows what `v` does, at the same place. */
const contains = (w: FileView, v: FileView): boolean =>
  w.memory === v.memory &&
  w.first <= v.first &&
  w.first + w.npages >= v.first + v.npages &&
  w.address + (BigInt(v.first - w.first) << BigInt(PAGE_SHIFT)) === v.address;

/** Adds views that are not of `leaving` and not there yet. */
function addTo(views: FileView[], more: readonly FileView[], leaving: AddressedMemory): void {
  for (const v of more) if (v.memory !== leaving && !views.some((w) => contains(w, v))) views.push(v);
}

const endOf = (v: FileView): bigint => v.address + (BigInt(v.npages) << BigInt(PAGE_SHIFT));
const covers = (v: FileView, page: number): boolean => page >= v.first && page < v.first + v.npages;
const pagesOf = (bytes: bigint): number => Number(bytes >> BigInt(PAGE_SHIFT));
