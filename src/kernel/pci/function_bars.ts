/**
 * The BARs of a function: their place in the physical address space, and how an
 * access becomes what the model sees.
 *
 * A model sees naturally aligned accesses no wider than it takes, or, where a
 * BAR is plain memory, nothing at all: the bytes are copied. The MSI-X table
 * and pending bits lie in front of both.
 *
 * Invariant: a region is in `kernel.phys` exactly while `update` was last told
 * that the function decodes, and at the address the register then held.
 */
import { physAddr } from "../../lib/addr.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { MmioHandler, MmioRegion } from "../mm/phys.ts";
import type { PciFunction } from "./function.ts";
import { type PciBarDescription, PciModel } from "./pci_model.ts";

export class FunctionBars {
  readonly #fn: PciFunction;
  readonly #regions: (MmioRegion | undefined)[] = [];

  constructor(fn: PciFunction) {
    this.#fn = fn;
  }

  /** Enters the memory BARs into the physical address space, or takes them out. */
  update(on: boolean): void {
    const fn = this.#fn;
    const { bars } = fn.template;
    const { phys } = fn.kernel;
    for (let i = 0; i < bars.length; i++) {
      const d = bars[i];
      if (d === undefined || d.kind === "io") continue;
      const start = on ? fn.barAddress(i) : 0n;
      const region = this.#regions[i];
      if (region !== undefined) {
        if (region.base === start) continue;
        phys.removeMmio(region);
        this.#regions[i] = undefined;
        this.#trace(i, region.base, d.size, false);
      }
      if (start === 0n || phys.at(start) === "ram") continue;
      this.#regions[i] = phys.addMmio(physAddr(start), d.size, new BarHandler(fn, i), `${fn.name} BAR ${i}`);
      this.#trace(i, start, d.size, true);
    }
  }

  #trace(bar: number, start: bigint, length: bigint, on: boolean): void {
    const trace = this.#fn.kernel.trace;
    if (trace.on) trace.emit({ type: "pci.decode", device: this.#fn.name, bar, start, length, on });
  }

  /** The memory BAR that decodes `addr`, or -1. */
  at(addr: bigint): number {
    for (let i = 0; i < this.#regions.length; i++) {
      const r = this.#regions[i];
      if (r !== undefined && addr >= r.base && addr <= r.last) return i;
    }
    return -1;
  }

  read(bar: number, offset: number, dst: Uint8Array): boolean {
    const fn = this.#fn;
    const d = this.#check(bar, offset, dst.length);
    if (!fn.barAnswers(bar)) {
      dst.fill(0xff);
      return false;
    }
    const { msix, model } = fn;
    const memory = model.barMemory(bar);
    if (msix?.touches(bar, offset, dst.length) === true) {
      pieces(offset, dst.length, 8, (o, n, at) => put(dst, at, n, msix.read(bar, o, n) ?? this.#readPiece(bar, o, n)));
    } else if (memory !== undefined) memory.read(offset, dst);
    else {
      pieces(offset, dst.length, d.accessSize ?? 8, (o, n, at) => put(dst, at, n, model.barRead(bar, o, n)));
      // Only a model that can be peeked at otherwise has reads with effects.
      if (model.barPeek !== PciModel.prototype.barPeek) fn.activity();
    }
    return true;
  }

  /** What a read in pieces of `width` bytes would give, with no effect. All ones when nobody answers. */
  peek(bar: number, offset: number, dst: Uint8Array, width: number): void {
    const fn = this.#fn;
    this.#check(bar, offset, dst.length);
    if (!fn.barAnswers(bar)) {
      dst.fill(0xff);
      return;
    }
    const { msix, model } = fn;
    const memory = model.barMemory(bar);
    if (msix?.copy(bar, offset, dst) === true) return;
    if (memory !== undefined) memory.read(offset, dst);
    else pieces(offset, dst.length, width, (o, n, at) => put(dst, at, n, model.barPeek(bar, o, n)));
    msix?.copy(bar, offset, dst);
  }

  write(bar: number, offset: number, src: Uint8Array): boolean {
    const fn = this.#fn;
    const d = this.#check(bar, offset, src.length);
    if (!fn.barAnswers(bar)) return false;
    const { msix, model } = fn;
    const memory = model.barMemory(bar);
    if (msix?.touches(bar, offset, src.length) === true) {
      pieces(offset, src.length, 8, (o, n, at) => {
        if (!msix.write(bar, o, n, get(src, at, n))) this.#writePiece(bar, o, src.subarray(at, at + n));
      });
    } else if (memory !== undefined) {
      memory.write(offset, src);
      return true;
    } else pieces(offset, src.length, d.accessSize ?? 8, (o, n, at) => model.barWrite(bar, o, n, get(src, at, n)));
    fn.activity();
    return true;
  }

  /** A piece beside the MSI-X table, in the same access. */
  #readPiece(bar: number, offset: number, size: number): bigint {
    const memory = this.#fn.model.barMemory(bar);
    if (memory === undefined) return this.#fn.model.barRead(bar, offset, size);
    const b = new Uint8Array(size);
    memory.read(offset, b);
    return get(b, 0, size);
  }

  #writePiece(bar: number, offset: number, src: Uint8Array): void {
    const memory = this.#fn.model.barMemory(bar);
    if (memory === undefined) this.#fn.model.barWrite(bar, offset, src.length, get(src, 0, src.length));
    else memory.write(offset, src);
  }

  #check(bar: number, offset: number, length: number): PciBarDescription {
    const d = this.#fn.template.bars[bar];
    if (d === undefined) throw new RangeError(`${this.#fn.name} has no BAR ${bar}`);
    if (offset < 0 || BigInt(offset) + BigInt(length) > d.size) {
      throw new RangeError(`${this.#fn.name} BAR ${bar}: ${length} bytes at ${offset} leave it`);
    }
    return d;
  }
}

class BarHandler implements MmioHandler {
  readonly #fn: PciFunction;
  readonly #bar: number;
  constructor(fn: PciFunction, bar: number) {
    this.#fn = fn;
    this.#bar = bar;
  }
  read(offset: number, dst: Uint8Array): boolean {
    return this.#fn.barRead(this.#bar, offset, dst);
  }
  write(offset: number, src: Uint8Array): boolean {
    return this.#fn.barWrite(this.#bar, offset, src);
  }
}

/** Splits an access into naturally aligned ones of at most `largest` bytes; `at` is the place in the buffer. */
function pieces(offset: number, length: number, largest: number, access: (offset: number, size: number, at: number) => void): void {
  for (let at = 0; at < length; ) {
    const o = offset + at;
    let n = largest;
    while (n > length - at || o % n !== 0) n >>= 1;
    access(o, n, at);
    at += n;
  }
}

function put(dst: Uint8Array, at: number, size: number, value: bigint): void {
  if (size > 4) {
    put(dst, at, 4, value);
    put(dst, at + 4, 4, value >> 32n);
    return;
  }
  let v = Number(BigInt.asUintN(32, value));
  for (let i = 0; i < size; i++, v >>>= 8) dst[at + i] = v & 0xff;
}

function get(src: Uint8Array, at: number, size: number): bigint {
  if (size > 4) return get(src, at, 4) | (get(src, at + 4, 4) << 32n);
  let v = 0;
  for (let i = size - 1; i >= 0; i--) {
    const b = src[at + i];
    if (b === undefined) throw new KernelBug("access past its buffer");
    v = (v << 8) | b;
  }
  return BigInt(v >>> 0);
}
