/**
 * Files whose content is memory: memfd, and the plain files of /tmp.
 *
 * Several open files may share one `PageCache`: a memfd opened again through
 * /proc/self/fd has a position and an access mode of its own. Seals forbid
 * changes for good. Only such files can have their pages pinned as a file's.
 *
 * Source: mm/memfd.c, mm/shmem.c, fs/hugetlbfs/inode.c; memfd_pin_folios.
 */
import { PAGE_SIZE, type Pfn } from "../../lib/addr.ts";
import { EBUSY, EFAULT, EFBIG, EINVAL, ENODEV, ENOMEM, ENXIO, EOVERFLOW, EPERM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_EXEC,
  MFD_HUGE_MASK,
  MFD_HUGE_SHIFT,
  MFD_HUGETLB,
  MFD_NOEXEC_SEAL,
  O_APPEND,
  O_LARGEFILE,
  O_RDWR,
  S_IFREG,
  SEEK_CUR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  SEEK_SET,
} from "../../uapi/index.ts";
import type { Kernel } from "../kernel.ts";
import { HUGE_SHIFT, PageCache, type PageSource } from "../mm/page_cache.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { File, FileOps, FileStat } from "./file.ts";

const ALL_SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;
const MAX_SIZE = 0x7fff_ffff_ffff_f000n;
const NAME_MAX = 249;

const cacheOf = (f: File): PageCache => f.privateData as PageCache;

/** lseek for a file of `size` bytes. EINVAL before 0 or for an unknown whence. Stores the position. */
export function seekWithin(f: File, offset: bigint, whence: number, size: bigint): bigint | Errno {
  let pos: bigint;
  if (whence === SEEK_SET) pos = offset;
  else if (whence === SEEK_CUR) pos = f.pos + offset;
  else if (whence === SEEK_END) pos = size + offset;
  else return EINVAL;
  if (pos > 0x7fff_ffff_ffff_ffffn) return EOVERFLOW;
  if (pos < 0n || pos > MAX_SIZE) return EINVAL;
  f.pos = pos;
  return pos;
}

/** Where data (or a hole) begins at or after `pos`; ENXIO past the end. */
function seekData(c: PageCache, pos: bigint, data: boolean): bigint | Errno {
  if (pos < 0n || pos >= c.size) return ENXIO;
  const pages = Number((c.size + 4095n) >> 12n);
  let i = Number(pos >> 12n);
  if ((c.peek(i) !== undefined) === data) return pos;
  while (i < pages && (c.peek(i) !== undefined) !== data) i++;
  if (i >= pages) return data ? ENXIO : c.size;
  return BigInt(i) << 12n;
}

const CACHE_OPS: FileOps = {
  name: "shmem",

  *read(f, buf, count, pos) {
    const c = cacheOf(f);
    if (pos >= c.size) return 0;
    const n = c.size - pos < BigInt(count) ? Number(c.size - pos) : count;
    let done = 0;
    while (done < n) {
      const chunk = new Uint8Array(Math.min(n - done, PAGE_SIZE));
      c.read(pos + BigInt(done), chunk);
      const left = copyToUser(f.kernel, buf + BigInt(done), chunk);
      done += chunk.length - left;
      if (left > 0) break;
    }
    return done === 0 && n > 0 ? EFAULT : done;
  },

  *write(f, buf, count, pos) {
    const c = cacheOf(f);
    if (c.huge) return EINVAL;
    if ((f.flags & O_APPEND) !== 0) {
      pos = c.size;
      f.pos = pos;
    }
    if (count === 0) return 0;
    if (pos >= MAX_SIZE) return EFBIG;
    if ((c.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) !== 0) return EPERM;
    let done = 0;
    while (done < count) {
      const at = pos + BigInt(done);
      const chunk = new Uint8Array(Math.min(count - done, PAGE_SIZE - Number(at & 4095n)));
      if ((c.seals & F_SEAL_GROW) !== 0 && at + BigInt(chunk.length) > c.size) return done === 0 ? EPERM : done;
      const left = copyFromUser(f.kernel, chunk, buf + BigInt(done));
      const r = left === chunk.length ? 0 : c.write(at, chunk.subarray(0, chunk.length - left));
      if (r instanceof Errno) return done === 0 ? r : done;
      done += r;
      if (left > 0) return done === 0 ? EFAULT : done;
    }
    return done;
  },

  mmap(f, vma) {
    const c = cacheOf(f);
    vma.cache = c.get();
    return undefined;
  },

  *llseek(f, offset, whence) {
    const c = cacheOf(f);
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) return seekWithin(f, offset, whence, c.size);
    const pos = seekData(c, offset, whence === SEEK_DATA);
    if (!(pos instanceof Errno)) f.pos = pos;
    return pos;
  },

  *fsync() {
    return undefined;
  },

  *ftruncate(f, length) {
    const c = cacheOf(f);
    if (length > MAX_SIZE) return EFBIG;
    if (c.huge && (length & ((1n << BigInt(HUGE_SHIFT)) - 1n)) !== 0n) return EINVAL;
    if (length < c.size && (c.seals & F_SEAL_SHRINK) !== 0) return EPERM;
    if (length > c.size && (c.seals & F_SEAL_GROW) !== 0) return EPERM;
    c.truncate(length);
    return undefined;
  },

  addSeals(f, seals) {
    const c = cacheOf(f);
    if (!f.writable) return EPERM;
    if ((seals & ~ALL_SEALS) !== 0) return EINVAL;
    if ((c.seals & F_SEAL_SEAL) !== 0) return EPERM;
    if ((seals & F_SEAL_WRITE) !== 0 && (c.seals & F_SEAL_WRITE) === 0) {
      for (const vma of c.mapping.vmas) if (vma.shared && vma.mayWrite) return EBUSY;
      if (c.hasPins()) return EBUSY;
    }
    let add = seals;
    if ((seals & F_SEAL_EXEC) !== 0 && (c.mode & 0o111) !== 0) add |= F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
    c.seals |= add;
    return undefined;
  },

  getSeals(f) {
    return cacheOf(f).seals;
  },

  *release(f) {
    cacheOf(f).put();
  },

  stat: (f) => cacheStat(cacheOf(f), f.path),

  pageCache: cacheOf,
};

/** What fstat tells of a file with this content. */
export function cacheStat(c: PageCache, path: string): FileStat {
  return {
    mode: S_IFREG | c.mode,
    size: c.size,
    ino: c.ino,
    nlink: path.endsWith(" (deleted)") ? 0 : 1,
    blksize: c.huge ? 1 << HUGE_SHIFT : PAGE_SIZE,
    blocks: BigInt(c.resident) * 8n,
  };
}

/** An open file over `cache`, whose reference it takes over, or puts when there is no memory for it: ENOMEM. */
export function cacheFile(cache: PageCache, flags: number, path: string): File | Errno {
  const file = cache.kernel.fs.allocFile(CACHE_OPS, { flags: flags | O_LARGEFILE, privateData: cache, path });
  if (file instanceof Errno) {
    cache.put();
    return file;
  }
  file.mapping = cache.mapping;
  return file;
}

/** Bytes of `s` in UTF-8. */
function utf8Length(s: string): number {
  let n = 0;
  for (const ch of s) {
    const c = ch.codePointAt(0) ?? 0;
    n += c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x1_0000 ? 3 : 4;
  }
  return n;
}

/** What memfd_create checks before it reserves a descriptor. */
export function checkMemfd(name: string, flags: number): Errno | undefined {
  const known = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
  const huge = (flags & MFD_HUGETLB) !== 0;
  const allowed = huge ? known | MFD_HUGETLB | (MFD_HUGE_MASK << MFD_HUGE_SHIFT) : known;
  if ((flags & ~allowed) !== 0) return EINVAL;
  if ((flags & MFD_EXEC) !== 0 && (flags & MFD_NOEXEC_SEAL) !== 0) return EINVAL;
  if (utf8Length(name) > NAME_MAX) return EINVAL;
  return undefined;
}

/** A memfd, open for reading and writing, with one reference. ENODEV for a huge page size this machine lacks; ENOMEM. */
export function newMemfd(k: Kernel, name: string, flags: number): File | Errno {
  const huge = (flags & MFD_HUGETLB) !== 0;
  const shift = (flags >>> MFD_HUGE_SHIFT) & MFD_HUGE_MASK;
  if (huge && shift !== 0 && shift !== HUGE_SHIFT) return ENODEV;
  if (k.fault.slab("inode")) return ENOMEM;
  const cache = new PageCache(k, name, huge);
  cache.seals = (flags & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL)) !== 0 ? 0 : F_SEAL_SEAL;
  if ((flags & MFD_NOEXEC_SEAL) !== 0) {
    cache.seals |= F_SEAL_EXEC;
    cache.mode &= ~0o111;
  }
  return cacheFile(cache, O_RDWR, `/memfd:${name} (deleted)`);
}

/** F_SEAL_* bits of a memfd; EINVAL for a file that has none. */
export function memfdSeals(file: File): number | Errno {
  return file.ops.getSeals?.(file) ?? EINVAL;
}

/** The pages of a memfd or tmpfs file, simulated or a real program's; undefined for any other. */
export function pageSourceOf(file: File): PageSource | undefined {
  return file.ops.pageCache?.(file) ?? file.ops.pageSource?.(file);
}

/**
 * Pins pages [startPage, startPage + npages) of a file for long, making those
 * that are missing. All or none. EINVAL for a file whose pages cannot be pinned
 * and for a range that reaches past its end. Seals and the file's access mode
 * do not matter here, and `write` makes no difference.
 */
export function* pinFilePages(file: File, startPage: number, npages: number, write: boolean): Step<Pfn[] | Errno> {
  const source = pageSourceOf(file);
  if (source === undefined) return EINVAL;
  const pfns = source.pin(startPage, npages);
  const { trace } = file.kernel;
  if (trace.on && !(pfns instanceof Errno)) trace.emit({ type: "mm.pin", from: file.path, npages, write });
  return pfns;
}

/** Undoes `pinFilePages`; the file may be gone meanwhile. */
export function unpinFilePages(k: Kernel, pfns: readonly Pfn[], _dirty = true): void {
  for (const p of pfns) k.frames.unpin(p);
  if (k.trace.on) k.trace.emit({ type: "mm.unpin", npages: pfns.length });
}
