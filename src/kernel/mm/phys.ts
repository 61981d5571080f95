/**
 * The machine's physical address space: who answers at which address.
 *
 * RAM is one or a few ranges, served by the frame allocator. Memory-mapped I/O
 * regions come and go as devices decode them. Where nobody answers a read gives
 * all ones and a write vanishes, as on PCI.
 *
 * Regions are kept sorted by base. Two devices may be programmed to the same
 * addresses; then the region that was added last answers, and lookups leave
 * their fast path until the overlap is gone.
 */

import { hex, PAGE_SIZE, type Pfn, type PhysAddr, pfnOf } from "../../lib/addr.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Kernel } from "../kernel.ts";

/** What answers in a memory-mapped I/O region. An access never leaves the region. */
export interface MmioHandler {
  /** False: the device did not answer; the reader sees all ones. */
  read(offset: number, dst: Uint8Array): boolean;
  /** False: the write was lost. */
  write(offset: number, src: Uint8Array): boolean;
}

export interface MmioRegion {
  readonly base: PhysAddr;
  /** Last byte, inclusive. */
  readonly last: bigint;
  readonly name: string;
  readonly handler: MmioHandler;
}

interface RamRange {
  readonly base: bigint;
  readonly last: bigint;
}

export class PhysMap {
  readonly #kernel: Kernel;
  readonly #ram: RamRange[] = [];
  /** Sorted by base; of equal bases, in order of addition. */
  readonly #mmio: MmioRegion[] = [];
  /** In order of addition: the last one that contains an address wins. */
  readonly #added: MmioRegion[] = [];
  #overlaps = false;
  /** The region of the last lookup. */
  #recent: MmioRegion | undefined = undefined;

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  /** Declares RAM. `base` and `length` are whole pages; ranges do not overlap. */
  addRam(base: PhysAddr, length: bigint): void {
    if ((base | length) & 0xfffn || length <= 0n) throw new RangeError(`RAM at ${hex(base)}, ${hex(length)} bytes: not whole pages`);
    const last = base + length - 1n;
    for (const r of this.#ram) {
      if (base <= r.last && r.base <= last) throw new RangeError(`RAM at ${hex(base)} overlaps RAM at ${hex(r.base)}`);
    }
    this.#ram.push({ base, last });
    this.#kernel.frames.addRange(pfnOf(base), Number(length >> 12n));
  }

  /** From now on `handler` answers in [base, base + length). */
  addMmio(base: PhysAddr, length: bigint, handler: MmioHandler, name: string): MmioRegion {
    if (length <= 0n) throw new RangeError(`MMIO region ${name}: ${length} bytes`);
    const region: MmioRegion = { base, last: base + length - 1n, name, handler };
    let i = this.#mmio.length;
    while (i > 0 && (this.#mmio[i - 1] as MmioRegion).base > base) i--;
    this.#mmio.splice(i, 0, region);
    this.#added.push(region);
    this.#recheck();
    return region;
  }

  removeMmio(region: MmioRegion): void {
    const i = this.#mmio.indexOf(region);
    if (i < 0) throw new KernelBug(`MMIO region ${region.name} is not in the map`);
    this.#mmio.splice(i, 1);
    this.#added.splice(this.#added.indexOf(region), 1);
    this.#recheck();
  }

  /** Who answers at `pa`. */
  at(pa: bigint): "ram" | "mmio" | "none" {
    if (this.#mmioAt(pa) !== undefined) return "mmio";
    return this.#ramAt(pa) === undefined ? "none" : "ram";
  }

  /** The I/O region at `pa`. */
  mmioAt(pa: bigint): MmioRegion | undefined {
    return this.#mmioAt(pa);
  }

  /** Regions in order of address. */
  get regions(): readonly MmioRegion[] {
    return this.#mmio;
  }

  /** RAM ranges in order of declaration. */
  get ram(): readonly { readonly base: bigint; readonly last: bigint }[] {
    return this.#ram;
  }

  /** Reads dst.length bytes. False when some of them were answered by nobody: those are 0xff. */
  read(pa: PhysAddr, dst: Uint8Array): boolean {
    let ok = true;
    for (let done = 0; done < dst.length; ) {
      const at = pa + BigInt(done);
      const left = dst.length - done;
      const region = this.#mmioAt(at);
      let n: number;
      let part: Uint8Array;
      if (region !== undefined) {
        n = Math.min(left, spanOf(region.last, at));
        part = n === dst.length ? dst : dst.subarray(done, done + n);
        if (!region.handler.read(Number(at - region.base), part)) {
          part.fill(0xff);
          ok = false;
        }
      } else {
        const inPage = Number(at & 0xfffn);
        n = Math.min(left, PAGE_SIZE - inPage);
        part = n === dst.length ? dst : dst.subarray(done, done + n);
        if (this.#ramAt(at) === undefined || !this.#kernel.frames.readFrame(Number(at >> 12n) as Pfn, inPage, part)) {
          part.fill(0xff);
          ok = false;
        }
      }
      done += n;
    }
    return ok;
  }

  /** Writes src. False when some of it reached nobody. */
  write(pa: PhysAddr, src: Uint8Array): boolean {
    let ok = true;
    for (let done = 0; done < src.length; ) {
      const at = pa + BigInt(done);
      const left = src.length - done;
      const region = this.#mmioAt(at);
      let n: number;
      if (region !== undefined) {
        n = Math.min(left, spanOf(region.last, at));
        const part = n === src.length ? src : src.subarray(done, done + n);
        if (!region.handler.write(Number(at - region.base), part)) ok = false;
      } else {
        const inPage = Number(at & 0xfffn);
        n = Math.min(left, PAGE_SIZE - inPage);
        const part = n === src.length ? src : src.subarray(done, done + n);
        if (this.#ramAt(at) === undefined || !this.#kernel.frames.writeFrame(Number(at >> 12n) as Pfn, inPage, part)) ok = false;
      }
      done += n;
    }
    return ok;
  }

  #ramAt(pa: bigint): RamRange | undefined {
    for (const r of this.#ram) if (pa >= r.base && pa <= r.last) return r;
    return undefined;
  }

  #mmioAt(pa: bigint): MmioRegion | undefined {
    const recent = this.#recent;
    if (recent !== undefined && pa >= recent.base && pa <= recent.last) return recent;
    if (this.#overlaps) {
      for (let i = this.#added.length - 1; i >= 0; i--) {
        const r = this.#added[i] as MmioRegion;
        if (pa >= r.base && pa <= r.last) return r;
      }
      return undefined;
    }
    let lo = 0;
    let hi = this.#mmio.length;
    while (lo < hi) {
      const mid = (lo + hi) >>> 1;
      if ((this.#mmio[mid] as MmioRegion).base <= pa) lo = mid + 1;
      else hi = mid;
    }
    const r = lo === 0 ? undefined : this.#mmio[lo - 1];
    if (r === undefined || pa > r.last) return undefined;
    this.#recent = r;
    return r;
  }

  #recheck(): void {
    this.#recent = undefined;
    this.#overlaps = false;
    for (let i = 1; i < this.#mmio.length; i++) {
      // Sorted by base: any overlap at all shows as one between neighbours.
      if ((this.#mmio[i - 1] as MmioRegion).last >= (this.#mmio[i] as MmioRegion).base) this.#overlaps = true;
    }
  }
}

/** Bytes from `at` to `last`, as far as a number needs to know. */
function spanOf(last: bigint, at: bigint): number {
  const n = last - at + 1n;
  return n > 0x4000_0000n ? 0x4000_0000 : Number(n);
}
