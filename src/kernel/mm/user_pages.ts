/**
 * The pages of an address space: its page table, and what a fault puts there.
 *
 * An entry holds a reference to its frame, or maps device memory and holds
 * nothing. Which mapping allows what is the caller's business; here a page is
 * made, taken from a file, or copied.
 *
 * Source: mm/memory.c (do_anonymous_page, do_fault, do_wp_page), copy_page_range,
 * gup_must_unshare.
 */
import { PAGE_SIZE, PAGE_SIZE_N, type Pfn, type PhysAddr } from "../../lib/addr.ts";
import { Errno } from "../../lib/errno.ts";
import { PROT_WRITE } from "../../uapi/index.ts";
import type { Kernel } from "../kernel.ts";
import type { PageCache } from "./page_cache.ts";
import type { FaultResult, Vma } from "./vma.ts";

export interface Pte {
  /** Frame, or -1 for device memory. */
  pfn: Pfn;
  /** Device memory; meaningless otherwise. */
  readonly pa: PhysAddr;
  readable: boolean;
  writable: boolean;
  /** A private page of this address space, not one of a file's. */
  readonly anon: boolean;
  /** The only owner of its private page. */
  exclusive: boolean;
}

export type FaultError = "SIGSEGV" | "SIGBUS" | "ENOMEM";

/** In place of a frame: device memory. */
export const NO_FRAME: Pfn = -1 as Pfn;
const NO_PA: PhysAddr = 0n as PhysAddr;

export class UserPages {
  readonly #kernel: Kernel;
  /** Virtual page number → entry. */
  readonly #ptes: Map<number, Pte> = new Map();

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  /** Pages mapped. */
  get size(): number {
    return this.#ptes.size;
  }

  get(vpn: number): Pte | undefined {
    return this.#ptes.get(vpn);
  }

  /** Removes entries of pages [first, end); those of private copies only when `copies`. Returns how many. */
  zap(first: number, end: number, copies: boolean): number {
    let n = 0;
    this.#each(first, end, (vpn, pte) => {
      if (pte.anon && !copies) return;
      this.#ptes.delete(vpn);
      if (pte.pfn !== NO_FRAME) this.#kernel.frames.put(pte.pfn);
      n++;
    });
    return n;
  }

  /** After a change of protection: every write faults again, and every read unless `readable`. */
  protect(first: number, end: number, readable: boolean): void {
    this.#each(first, end, (_vpn, pte) => {
      pte.readable = readable;
      pte.writable = false;
    });
  }

  /** Gives a child the entries of pages [first, end), private ones to be copied on write. */
  forkInto(child: UserPages, first: number, end: number): void {
    const { frames } = this.#kernel;
    this.#each(first, end, (vpn, pte) => {
      if (pte.anon && pte.exclusive && frames.pins(pte.pfn) > 0) {
        // DMA may write to the parent's page at any time: the child gets its own now.
        child.#ptes.set(vpn, { ...pte, pfn: this.#copyFrame(pte.pfn) });
        return;
      }
      if (pte.pfn !== NO_FRAME) frames.get(pte.pfn);
      if (pte.anon) {
        pte.writable = false;
        pte.exclusive = false;
      }
      child.#ptes.set(vpn, { ...pte });
    });
  }

  /**
   * Makes the page of a private mapping the mapping's own before a pin for long:
   * one that somebody else may replace would leave the pin behind.
   */
  own(vma: Vma, vpn: number, pte: Pte): Pte | FaultError {
    if (vma.shared || vma.cache?.huge === true || pte.exclusive) return pte;
    const may = (vma.prot & PROT_WRITE) !== 0;
    return pte.anon ? this.#exclusive(vpn, may, pte) : this.#copyCachePage(vma, vpn, may);
  }

  /** Reads into, or writes from, `part` at `offset` of the page; the entry allows it. */
  transfer(pte: Pte, offset: number, part: Uint8Array, write: boolean): void {
    const { frames, phys } = this.#kernel;
    if (pte.pfn !== NO_FRAME) {
      if (write) frames.writeFrame(pte.pfn, offset, part);
      else frames.readFrame(pte.pfn, offset, part);
    } else {
      const pa = (pte.pa + BigInt(offset)) as PhysAddr;
      if (write) phys.write(pa, part);
      else phys.read(pa, part);
    }
  }

  /** Maps what a driver's fault handler answered. */
  mapDevice(vma: Vma, vpn: number, r: FaultResult): Pte | FaultError {
    if (r === "SIGBUS") return "SIGBUS";
    const pte: Pte = { pfn: NO_FRAME, pa: r, readable: true, writable: (vma.prot & PROT_WRITE) !== 0, anon: false, exclusive: false };
    this.#ptes.set(vpn, pte);
    return pte;
  }

  /** A page of memory: made, taken from the file, or copied. */
  fault(vma: Vma, vpn: number, write: boolean): Pte | FaultError {
    const { frames } = this.#kernel;
    const may = (vma.prot & PROT_WRITE) !== 0;
    const old = this.#ptes.get(vpn);
    if (vma.cache !== undefined && (vma.shared || vma.cache.huge)) {
      const pfn = this.#cachePage(vma, vpn);
      if (typeof pfn === "string") return pfn;
      if (old === undefined) frames.get(pfn);
      return this.#set(vpn, { pfn, pa: NO_PA, readable: true, writable: may, anon: false, exclusive: false });
    }
    if (old?.anon === true) {
      old.readable = true;
      if (!write) return old;
      return this.#exclusive(vpn, may, old);
    }
    if (vma.cache !== undefined && !write && old === undefined) {
      const pfn = this.#cachePage(vma, vpn);
      if (typeof pfn === "string") return pfn;
      frames.get(pfn);
      return this.#set(vpn, { pfn, pa: NO_PA, readable: true, writable: false, anon: false, exclusive: false });
    }
    if (old !== undefined && !write) {
      old.readable = true;
      return old;
    }
    if (vma.cache !== undefined) return this.#copyCachePage(vma, vpn, may);
    const pfn = frames.tryAlloc();
    if (pfn instanceof Errno) return "ENOMEM";
    return this.#set(vpn, { pfn, pa: NO_PA, readable: true, writable: may, anon: true, exclusive: true });
  }

  #set(vpn: number, pte: Pte): Pte {
    this.#ptes.set(vpn, pte);
    return pte;
  }

  #cachePage(vma: Vma, vpn: number): Pfn | FaultError {
    const cache = vma.cache as PageCache;
    const index = vma.pageOffset(vpn);
    if (BigInt(index) * PAGE_SIZE_N >= cache.size) return "SIGBUS";
    const pfn = cache.page(index);
    return pfn instanceof Errno ? "ENOMEM" : pfn;
  }

  /** Gives a private mapping its own copy of the file's page. */
  #copyCachePage(vma: Vma, vpn: number, writable: boolean): Pte | FaultError {
    const from = this.#cachePage(vma, vpn);
    if (typeof from === "string") return from;
    const { frames } = this.#kernel;
    const pfn = frames.tryAlloc();
    if (pfn instanceof Errno) return "ENOMEM";
    this.#copyContent(from, pfn);
    const old = this.#ptes.get(vpn);
    if (old !== undefined) frames.put(old.pfn);
    return this.#set(vpn, { pfn, pa: NO_PA, readable: true, writable, anon: true, exclusive: true });
  }

  /** Makes a private page the entry's own, by a copy if somebody else has it too. */
  #exclusive(vpn: number, writable: boolean, pte: Pte): Pte | FaultError {
    const { frames } = this.#kernel;
    if (!pte.exclusive && frames.refs(pte.pfn) > 1) {
      const pfn = frames.tryAlloc();
      if (pfn instanceof Errno) return "ENOMEM";
      this.#copyContent(pte.pfn, pfn);
      frames.put(pte.pfn);
      pte.pfn = pfn;
    }
    pte.exclusive = true;
    pte.writable = writable;
    return this.#set(vpn, pte);
  }

  #copyContent(from: Pfn, to: Pfn): void {
    const bytes = new Uint8Array(PAGE_SIZE);
    this.#kernel.frames.readFrame(from, 0, bytes);
    if (bytes.some((b) => b !== 0)) this.#kernel.frames.writeFrame(to, 0, bytes);
  }

  #copyFrame(from: Pfn): Pfn {
    const pfn = this.#kernel.frames.alloc();
    this.#copyContent(from, pfn);
    return pfn;
  }

  /** Calls `f` for the entries of pages [first, end); `f` may delete its own. */
  #each(first: number, end: number, f: (vpn: number, pte: Pte) => void): void {
    if (end - first <= this.#ptes.size) {
      // Backwards: frames that are freed are handed out again from the last one on.
      for (let vpn = end - 1; vpn >= first; vpn--) {
        const pte = this.#ptes.get(vpn);
        if (pte !== undefined) f(vpn, pte);
      }
      return;
    }
    for (const [vpn, pte] of this.#ptes) if (vpn >= first && vpn < end) f(vpn, pte);
  }
}
