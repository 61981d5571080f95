/**
 * A simulated process's memory: mappings, and a page table filled by faults.
 *
 * A page-table entry maps a frame (with a reference to it) or a page of device
 * memory (with none). Private pages are copied on write; an entry that is the
 * only owner of its private page says so (`exclusive`), and a page that is
 * pinned is never replaced under its owner: a fork copies it for the child.
 *
 * Two ways in. The kernel's copies and pins are plain functions. A simulated
 * CPU's `load` and `store` are generators, whose faults take mmap_lock and may
 * sleep in a driver's handler; they tell SIGBUS from SIGSEGV.
 *
 * Source: mm/mmap.c, mm/memory.c, mm/gup.c, mm/mprotect.c.
 */
import { alignUp, minN, PAGE_MASK_N, PAGE_SIZE, PAGE_SIZE_N, type Pfn, type PhysAddr } from "../../lib/addr.ts";
import { EACCES, EBADF, EEXIST, EFAULT, EINVAL, ENODEV, ENOMEM, EOVERFLOW, EPERM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  F_SEAL_FUTURE_WRITE,
  F_SEAL_WRITE,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_FIXED_NOREPLACE,
  MAP_HUGETLB,
  MAP_PRIVATE,
  MAP_SHARED,
  MAP_SHARED_VALIDATE,
  MAP_TYPE,
  PROT_READ,
  PROT_WRITE,
} from "../../uapi/index.ts";
import type { File } from "../fs/file.ts";
import type { Kernel } from "../kernel.ts";
import type { Mm } from "./mm.ts";
import { PageCache } from "./page_cache.ts";
import type { UserMemory } from "./user_memory.ts";
import { type FaultError, NO_FRAME, type Pte, UserPages } from "./user_pages.ts";
import { type FaultResult, Vma } from "./vma.ts";

/** One past the highest user address. */
export const TASK_SIZE = 0x7fff_ffff_f000n;
/** Mappings grow down from here; above it lies what a stack would need. */
const MMAP_BASE = 0x7fff_f7ff_f000n;
const HUGE_SIZE = 0x20_0000n;

/** What a simulated CPU access came to. */
export type AccessResult = "ok" | "SIGSEGV" | "SIGBUS";

export interface MmapRequest {
  /** A wish; binding with MAP_FIXED. Default 0: the kernel's choice. */
  readonly addr?: bigint;
  readonly length: bigint;
  readonly prot: number;
  /** MAP_* bits. */
  readonly flags: number;
  readonly file?: File | undefined;
  /** Bytes into the file. */
  readonly offset?: bigint;
}

export class AddressSpace implements UserMemory {
  readonly kernel: Kernel;
  /** Whose memory this is; set when the Mm is made. */
  mm: Mm | undefined = undefined;
  /** Sorted by address. */
  readonly #vmas: Vma[] = [];
  readonly #pages: UserPages;
  #recent: Vma | undefined = undefined;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
    this.#pages = new UserPages(kernel);
  }

  /** Mappings in order of address. */
  get vmas(): readonly Vma[] {
    return this.#vmas;
  }

  /** Pages mapped now. */
  get mappedPages(): number {
    return this.#pages.size;
  }

  attach(mm: Mm): void {
    this.mm = mm;
  }

  /** The mapping that contains `addr`. */
  find(addr: bigint): Vma | undefined {
    const recent = this.#recent;
    if (recent !== undefined && addr >= recent.start && addr < recent.end) return recent;
    const i = this.#indexFrom(addr);
    const v = this.#vmas[i];
    if (v === undefined || v.start > addr) return undefined;
    this.#recent = v;
    return v;
  }

  /** Maps; returns the address. The checks come in the order of do_mmap. */
  mmap(req: MmapRequest): bigint | Errno {
    const { prot, flags, file } = req;
    const offset = req.offset ?? 0n;
    const type = flags & MAP_TYPE;
    if ((offset & PAGE_MASK_N) !== 0n) return EINVAL;
    const anonymous = (flags & MAP_ANONYMOUS) !== 0;
    const fileCache = anonymous ? undefined : file?.ops.pageCache?.(file);
    const huge = fileCache?.huge === true || (anonymous && (flags & MAP_HUGETLB) !== 0);
    if (!anonymous && (flags & MAP_HUGETLB) !== 0 && !huge) return EINVAL;
    if (req.length === 0n) return EINVAL;
    const unit = huge ? HUGE_SIZE : PAGE_SIZE_N;
    const length = alignUp(req.length, unit);
    if (length > TASK_SIZE) return ENOMEM;
    if ((offset >> 12n) + (length >> 12n) > 0xf_ffff_ffff_ffffn) return EOVERFLOW;
    if (!anonymous && file === undefined) return EBADF;
    const addr = this.#place(req.addr ?? 0n, length, flags, unit);
    if (addr instanceof Errno) return addr;

    const shared = type === MAP_SHARED || type === MAP_SHARED_VALIDATE;
    if (!shared && type !== MAP_PRIVATE) return EINVAL;
    let mayWrite = true;
    if (!anonymous && file !== undefined) {
      if (shared && (prot & PROT_WRITE) !== 0 && !file.writable) return EACCES;
      if (!file.readable) return EACCES;
      if (file.ops.mmap === undefined) return ENODEV;
      if (shared) mayWrite = file.writable;
    }
    const vma = new Vma(this, addr, addr + length, prot, shared, anonymous ? undefined : file, anonymous ? 0n : offset);
    vma.mayWrite = mayWrite;
    const seals = fileCache?.seals ?? 0;
    if (shared && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) !== 0) {
      if ((prot & PROT_WRITE) !== 0) return EPERM;
      vma.mayWrite = false;
    }
    if (huge && (offset & (HUGE_SIZE - 1n)) !== 0n) return EINVAL;
    if ((flags & MAP_FIXED) !== 0) this.#unmap(addr, addr + length);
    if (anonymous) {
      if (shared || huge) {
        vma.cache = new PageCache(this.kernel, "/dev/zero", huge);
        vma.cache.size = length;
      }
    } else if (file !== undefined) {
      const error = file.ops.mmap?.(file, vma);
      if (error !== undefined) return error;
      file.get();
    }
    this.#insert(vma);
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "mm.mmap", addr, length, prot, what: file?.path ?? (shared ? "shared" : "anonymous") });
    return addr;
  }

  /** Unmaps whatever lies in the range; nothing there is no error. */
  munmap(addr: bigint, length: bigint): Errno | undefined {
    const end = this.#rangeEnd(addr, length);
    if (end instanceof Errno) return end;
    this.#unmap(addr, end);
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "mm.munmap", addr, length: end - addr });
    return undefined;
  }

  /** Changes the protection. ENOMEM at the first hole: what lay before it is changed. */
  mprotect(addr: bigint, length: bigint, prot: number): Errno | undefined {
    if ((addr & PAGE_MASK_N) !== 0n) return EINVAL;
    if (length === 0n) return undefined;
    const end = addr + alignUp(length, PAGE_SIZE_N);
    for (let at = addr; at < end; ) {
      const vma = this.find(at);
      if (vma === undefined) return ENOMEM;
      if ((prot & PROT_WRITE) !== 0 && !vma.mayWrite) return EACCES;
      if (vma.start < at) this.#split(vma, at);
      const v = this.find(at) as Vma;
      if (v.end > end) this.#split(v, end);
      v.prot = prot;
      this.#pages.protect(vpnOf(v.start), vpnOf(v.end), prot !== 0);
      at = v.end;
    }
    return undefined;
  }

  /** Forgets private pages, which read as zeros or as the file afterwards (MADV_DONTNEED). ENOMEM for a hole. */
  discard(addr: bigint, length: bigint): Errno | undefined {
    if ((addr & PAGE_MASK_N) !== 0n) return EINVAL;
    const end = addr + alignUp(length, PAGE_SIZE_N);
    let hole: Errno | undefined;
    for (let at = addr; at < end; ) {
      const vma = this.find(at);
      if (vma === undefined) {
        hole = ENOMEM;
        at += PAGE_SIZE_N;
        continue;
      }
      if (vma.pfnmap) return EINVAL;
      const to = minN(vma.end, end);
      this.zap(vpnOf(at), vpnOf(to), true);
      at = to;
    }
    return hole;
  }

  read(addr: bigint, dst: Uint8Array): number {
    return this.#copy(addr, dst, false);
  }

  write(addr: bigint, src: Uint8Array): number {
    return this.#copy(addr, src, true);
  }

  /** A CPU reads dst.length bytes at `addr`. */
  *load(addr: bigint, dst: Uint8Array): Step<AccessResult> {
    return yield* this.#access(addr, dst, false);
  }

  /** A CPU writes `src` at `addr`. */
  *store(addr: bigint, src: Uint8Array): Step<AccessResult> {
    return yield* this.#access(addr, src, true);
  }

  pin(addr: bigint, npages: number, write: boolean): Pfn[] | Errno {
    const { frames, trace } = this.kernel;
    const out: Pfn[] = [];
    const first = vpnOf(addr);
    for (let i = 0; i < npages; i++) {
      const pfn = this.#pinnable(first + i, write);
      if (pfn instanceof Errno) {
        for (const p of out) frames.unpin(p);
        return pfn;
      }
      frames.pin(pfn);
      out.push(pfn);
    }
    if (trace.on) trace.emit({ type: "mm.pin", from: `0x${addr.toString(16)}`, npages, write });
    return out;
  }

  unpin(pfns: readonly Pfn[], _dirty: boolean): void {
    const { frames, trace } = this.kernel;
    for (const p of pfns) frames.unpin(p);
    if (trace.on) trace.emit({ type: "mm.unpin", npages: pfns.length });
  }

  *followPfnmap(addr: bigint, write: boolean): Step<PhysAddr | Errno | undefined> {
    const vpn = vpnOf(addr);
    const vma = this.find(addr);
    if (vma?.ops === undefined) return undefined;
    if ((vma.prot & (write ? PROT_WRITE : PROT_READ)) === 0) return EFAULT;
    if (this.#pages.get(vpn) === undefined) {
      const r = vma.ops.fault(vma, vma.pageOffset(vpn));
      const pte = this.#traced(vpn, write, this.#pages.mapDevice(vma, vpn, typeof r === "object" ? yield* r : r));
      if (typeof pte === "string") return EFAULT;
    }
    return this.translate(addr) ?? EFAULT;
  }

  /** Everything is unmapped and every file put. */
  destroy(): void {
    this.#unmap(0n, TASK_SIZE);
  }

  /** The child's memory. */
  fork(): AddressSpace {
    const child = new AddressSpace(this.kernel);
    for (const v of this.#vmas) {
      const c = new Vma(child, v.start, v.end, v.prot, v.shared, v.file?.get(), v.offset);
      this.#copyInto(c, v);
      child.#insert(c);
      v.ops?.open?.(c);
      // Shared pages are faulted in by the child when it wants them.
      if (!v.shared || v.pfnmap) this.#pages.forkInto(child.#pages, vpnOf(v.start), vpnOf(v.end));
    }
    return child;
  }

  /** Removes entries of pages [first, end); those of private copies only when `copies`. Returns how many. */
  zap(first: number, end: number, copies: boolean): number {
    return this.#pages.zap(first, end, copies);
  }

  /** Physical address that backs `addr` now, without a fault. */
  translate(addr: bigint): PhysAddr | undefined {
    const pte = this.#pages.get(vpnOf(addr));
    if (pte === undefined) return undefined;
    const base = pte.pfn === NO_FRAME ? pte.pa : BigInt(pte.pfn) << 12n;
    return (base + (addr & PAGE_MASK_N)) as PhysAddr;
  }

  /** Bytes not copied. */
  #copy(addr: bigint, buf: Uint8Array, write: boolean): number {
    let vpn = vpnOf(addr);
    let offset = Number(addr & PAGE_MASK_N);
    for (let done = 0; done < buf.length; ) {
      const n = Math.min(buf.length - done, PAGE_SIZE - offset);
      let pte = this.#pages.get(vpn);
      if (pte === undefined || !(write ? pte.writable : pte.readable)) {
        const r = this.#fault(vpn, write);
        if (typeof r === "string") return buf.length - done;
        pte = r;
      }
      this.#pages.transfer(pte, offset, n === buf.length ? buf : buf.subarray(done, done + n), write);
      done += n;
      offset = 0;
      vpn++;
    }
    return 0;
  }

  *#access(addr: bigint, buf: Uint8Array, write: boolean): Step<AccessResult> {
    let vpn = vpnOf(addr);
    let offset = Number(addr & PAGE_MASK_N);
    for (let done = 0; done < buf.length; ) {
      const n = Math.min(buf.length - done, PAGE_SIZE - offset);
      const pte = this.#pages.get(vpn);
      if (pte === undefined || !(write ? pte.writable : pte.readable)) {
        const r = yield* this.#faultSleeping(vpn, write);
        if (r === "SIGSEGV" || r === "SIGBUS") return r;
        // Out of memory kills; and what was mapped may be gone again, so look anew.
        if (r === "ENOMEM") return "SIGBUS";
        continue;
      }
      this.#pages.transfer(pte, offset, n === buf.length ? buf : buf.subarray(done, done + n), write);
      done += n;
      offset = 0;
      vpn++;
    }
    return "ok";
  }

  /** The mapping that allows the access, or why there is none. */
  #allowed(vpn: number, write: boolean): Vma | FaultError {
    const vma = this.find(BigInt(vpn) << 12n);
    if (vma === undefined) return "SIGSEGV";
    // x86 cannot forbid reading what may be written or executed.
    if (write ? (vma.prot & PROT_WRITE) === 0 : vma.prot === 0) return "SIGSEGV";
    return vma;
  }

  #fault(vpn: number, write: boolean): Pte | FaultError {
    const vma = this.#allowed(vpn, write);
    if (typeof vma === "string") return this.#traced(vpn, write, vma);
    if (vma.ops === undefined) return this.#traced(vpn, write, this.#pages.fault(vma, vpn, write));
    const r = vma.ops.fault(vma, vma.pageOffset(vpn));
    return this.#traced(vpn, write, this.#pages.mapDevice(vma, vpn, typeof r === "object" ? this.#driveNow(r) : r));
  }

  *#faultSleeping(vpn: number, write: boolean): Step<Pte | FaultError> {
    const lock = this.mm?.mmapLock;
    if (lock !== undefined) yield* lock.downRead();
    try {
      const vma = this.#allowed(vpn, write);
      if (typeof vma === "string" || vma.ops === undefined) return this.#fault(vpn, write);
      const r = vma.ops.fault(vma, vma.pageOffset(vpn));
      return this.#traced(vpn, write, this.#pages.mapDevice(vma, vpn, typeof r === "object" ? yield* r : r));
    } finally {
      lock?.upRead();
    }
  }

  #traced(vpn: number, write: boolean, r: Pte | FaultError): Pte | FaultError {
    const { trace } = this.kernel;
    if (trace.on) {
      const outcome = typeof r === "string" ? r : r.pfn === NO_FRAME ? "device" : "page";
      trace.emit({ type: "mm.fault", addr: BigInt(vpn) << 12n, write, outcome });
    }
    return r;
  }

  /**
   * A driver's handler, inside a copy that cannot wait for it: when it blocks
   * the copy faults, as one made with page faults disabled does.
   */
  #driveNow(handler: Step<FaultResult>): FaultResult {
    const { sched } = this.kernel;
    const task = sched.current;
    for (;;) {
      const r = handler.next();
      if (r.done === true) return r.value;
      if (task.state === "blocked") {
        sched.wake(task);
        handler.return("SIGBUS");
        return "SIGBUS";
      }
    }
  }

  /** The frame to pin for long, after what a fault has to do first. */
  #pinnable(vpn: number, write: boolean): Pfn | Errno {
    const vma = this.find(BigInt(vpn) << 12n);
    if (vma === undefined || vma.pfnmap) return EFAULT;
    if ((vma.prot & (write ? PROT_WRITE : PROT_READ)) === 0) return EFAULT;
    let pte: Pte | FaultError | undefined = this.#pages.get(vpn);
    if (pte === undefined || !(write ? pte.writable : pte.readable)) pte = this.#fault(vpn, write);
    if (typeof pte !== "string") pte = this.#pages.own(vma, vpn, pte);
    if (typeof pte === "string") return pte === "ENOMEM" ? ENOMEM : EFAULT;
    return pte.pfn;
  }

  /** Index of the first mapping that ends after `addr`. */
  #indexFrom(addr: bigint): number {
    let lo = 0;
    let hi = this.#vmas.length;
    while (lo < hi) {
      const mid = (lo + hi) >>> 1;
      if ((this.#vmas[mid] as Vma).end <= addr) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  }

  #place(wish: bigint, length: bigint, flags: number, unit: bigint): bigint | Errno {
    const noReplace = (flags & MAP_FIXED_NOREPLACE) !== 0;
    if ((flags & MAP_FIXED) !== 0 || noReplace) {
      if (wish > TASK_SIZE - length) return ENOMEM;
      if (wish % unit !== 0n) return EINVAL;
      if (noReplace && !this.#isFree(wish, wish + length)) return EEXIST;
      return wish;
    }
    const hint = alignUp(wish, unit);
    if (wish !== 0n && hint <= TASK_SIZE - length && this.#isFree(hint, hint + length)) return hint;
    let top = MMAP_BASE;
    for (let i = this.#vmas.length - 1; i >= -1; i--) {
      const below = i < 0 ? 0x1_0000n : (this.#vmas[i] as Vma).end;
      const at = ((top - length) / unit) * unit;
      if (top >= length && at >= below) return at;
      if (i >= 0) top = minN((this.#vmas[i] as Vma).start, MMAP_BASE);
    }
    return ENOMEM;
  }

  #isFree(start: bigint, end: bigint): boolean {
    const v = this.#vmas[this.#indexFrom(start)];
    return v === undefined || v.start >= end;
  }

  #rangeEnd(addr: bigint, length: bigint): bigint | Errno {
    if ((addr & PAGE_MASK_N) !== 0n || addr > TASK_SIZE || length > TASK_SIZE - addr || length === 0n) return EINVAL;
    return addr + alignUp(length, PAGE_SIZE_N);
  }

  #insert(vma: Vma): void {
    this.#vmas.splice(this.#indexFrom(vma.start), 0, vma);
    vma.fileMapping?.vmas.add(vma);
  }

  /** Gives `to` what is behind `from`: the second holder of it. The file's reference is taken by the caller. */
  #copyInto(to: Vma, from: Vma): void {
    to.mayWrite = from.mayWrite;
    to.ops = from.ops;
    to.privateData = from.privateData;
    to.cache = from.cache?.get();
  }

  /** Cuts `vma` in two at `at`, inside it. */
  #split(vma: Vma, at: bigint): void {
    const rest = new Vma(this, at, vma.end, vma.prot, vma.shared, vma.file?.get(), vma.offset + (at - vma.start));
    this.#copyInto(rest, vma);
    vma.end = at;
    this.#recent = undefined;
    this.#insert(rest);
    rest.ops?.open?.(rest);
  }

  #unmap(start: bigint, end: bigint): void {
    let i = this.#indexFrom(start);
    const first = this.#vmas[i];
    if (first === undefined || first.start >= end) return;
    if (first.start < start) {
      this.#split(first, start);
      i++;
    }
    this.#recent = undefined;
    for (let v = this.#vmas[i]; v !== undefined && v.start < end; v = this.#vmas[i]) {
      if (v.end > end) this.#split(v, end);
      this.#vmas.splice(i, 1);
      this.zap(vpnOf(v.start), vpnOf(v.end), true);
      v.fileMapping?.vmas.delete(v);
      v.ops?.close?.(v);
      v.cache?.put();
      if (v.file !== undefined) this.kernel.fs.fput(v.file);
    }
    this.#recent = undefined;
  }
}

const vpnOf = (addr: bigint): number => Number(addr >> 12n);
