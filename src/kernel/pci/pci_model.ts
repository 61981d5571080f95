/**
 * What a device model is, seen from the bus.
 *
 * A model says what its function looks like (`PciFunctionDescription`: ids,
 * BARs, capabilities, how its resets behave) and answers accesses to its BARs.
 * Everything the PCI specifications prescribe for all functions alike (config
 * space, decoding, bus mastering, MSI-X tables, power states) is done for it
 * by `PciFunction`; a model never sees an access that does not reach it.
 *
 * A description is immutable and meant to be one module-level constant per
 * kind of device: what is derived from it is computed once and shared by every
 * machine that boots.
 */
import type { Timer } from "../../sched/sched.ts";

/** Controls of the ACS extended capability, by the specification's letters. */
export type AcsFlag = "SV" | "TB" | "RR" | "CR" | "UF" | "EC" | "DT";

export type BarKind = "mem32" | "mem64" | "io";

/** Registers of one width. */
export interface RegisterRange {
  readonly offset: number;
  readonly length: number;
  /** Bytes of each register: 1, 2, 4 or 8; `offset` and `length` are multiples. */
  readonly width: 1 | 2 | 4 | 8;
}

/** The registers of a BAR. */
export interface RegisterMap {
  /** Ascending. */
  readonly ranges: readonly RegisterRange[];
  /** What each byte outside of them reads, always; a write there does nothing. */
  readonly elsewhere: 0 | 0xff;
}

export interface PciBarDescription {
  /** 0 … 5; a mem64 BAR takes the next index as well. */
  readonly index: number;
  /** Bytes, a power of two, at least 16 (memory) or 4 (I/O). */
  readonly size: bigint;
  readonly kind: BarKind;
  readonly prefetch?: boolean;
  /** Largest access handed to `barRead`/`barWrite` at once, 1, 2, 4 or 8 bytes; 8 when absent. */
  readonly accessSize?: 1 | 2 | 4 | 8;
  /**
   * Where its registers are. A program that maps the BAR for real makes no
   * accesses that could be seen: its stores are found by looking there. Absent:
   * registers of 4 bytes (or `accessSize` if less) may be anywhere.
   */
  readonly registers?: RegisterMap;
}

/**
 * How a kind of reset ends: the function comes back at once; after so many ns;
 * not before the kernel has given up on it; never.
 */
export type ResetOutcome = "works" | "fails" | "dead" | { readonly readyAfter: number };

export type ResetKind = "flr" | "af" | "pm" | "bus" | "device_specific" | "power";

export interface PmCapability {
  /** Version of the PM specification, 3 when absent. */
  readonly version?: 1 | 2 | 3;
  /** PMCSR.No_Soft_Reset: leaving D3hot keeps the function's state. */
  readonly noSoftReset?: boolean;
  readonly at?: number;
}
export interface MsiCapability {
  /** 1, 2, 4, … 32. */
  readonly vectors: number;
  readonly maskable?: boolean;
  readonly address64?: boolean;
  readonly at?: number;
}
export interface MsixCapability {
  /** 1 … 2048. */
  readonly vectors: number;
  readonly tableBar: number;
  readonly tableOffset: number;
  readonly pbaBar: number;
  readonly pbaOffset: number;
  readonly at?: number;
}
export interface PcieCapability {
  readonly type?: "endpoint" | "legacy-endpoint" | "rc-endpoint";
  /** DEVCAP.FLR. */
  readonly flr?: boolean;
  readonly at?: number;
}
export interface AfCapability {
  readonly flr?: boolean;
  readonly at?: number;
}

export interface SriovCapability {
  readonly totalVfs: number;
  /** Routing id of the first VF less the PF's. */
  readonly vfOffset: number;
  readonly vfStride: number;
  /** What every VF is; `vendor` is the PF's and reads ffff in a VF's own config space. */
  readonly vf: PciFunctionDescription;
  readonly at?: number;
}

export interface PciFunctionDescription {
  /** What it is, for people: `edu`. */
  readonly name: string;
  readonly vendor: number;
  readonly device: number;
  readonly subsystemVendor?: number;
  readonly subsystemDevice?: number;
  /** Base class, sub-class and programming interface, 24 bits. */
  readonly class: number;
  readonly revision?: number;
  readonly bars: readonly PciBarDescription[];
  /** Bytes of the expansion ROM. */
  readonly rom?: { readonly size: bigint };
  /** INTA# … INTD# as 1 … 4, 0 or absent: none. */
  readonly interruptPin?: number;
  readonly capabilities?: {
    readonly pm?: PmCapability;
    readonly msi?: MsiCapability;
    readonly msix?: MsixCapability;
    readonly pcie?: PcieCapability;
    readonly af?: AfCapability;
  };
  /** Extended capabilities; need `capabilities.pcie`. */
  readonly extended?: {
    readonly acs?: readonly AcsFlag[];
    readonly sriov?: SriovCapability;
    /** Device serial number. */
    readonly dsn?: bigint;
  };
  /** How each kind of reset ends; `works` when absent. */
  readonly reset?: { readonly [K in ResetKind]?: ResetOutcome };
  /** A device-specific reset exists (Linux's quirk table), tried before all others. */
  readonly deviceSpecificReset?: boolean;
  /** Quirks: a bus reset, FLR, reset through D3hot, or D3 itself is known not to work and never tried. */
  readonly noBusReset?: boolean;
  readonly noFlrReset?: boolean;
  readonly noPmReset?: boolean;
  readonly noD3?: boolean;
  /** Its BARs cannot be mapped by user space nor be a peer's target (struct pci_dev's non_mappable_bars). */
  readonly nonMappableBars?: boolean;
}

/** Plain memory behind a BAR. Offsets are bytes from the BAR's start, in range. */
export interface BarMemory {
  read(offset: number, dst: Uint8Array): void;
  write(offset: number, src: Uint8Array): void;
  /**
   * From now on the bytes are kept in `store`, which is all zeros and to which
   * those that are here move, in ascending order; undefined: here again. Absent: the memory cannot
   * be kept elsewhere.
   */
  moveTo?(store: BarStore | undefined): void;
}

/** Another place for a BAR's bytes: a file that a program has mapped. */
export interface BarStore {
  read(offset: number, dst: Uint8Array): void;
  write(offset: number, src: Uint8Array): void;
  /** All zero again. */
  clear(): void;
  /** Ascending runs outside of which all bytes are zero. */
  data(): Iterable<{ readonly offset: number; readonly length: number }>;
}

/** What a function does towards the bus; the model gets one in `attach`. */
export interface PciPort {
  /** DMA. False: aborted or faulted; a faulted read leaves zeros in `dst`, one that no one answers all ones. */
  dmaRead(addr: bigint, dst: Uint8Array): boolean;
  dmaWrite(addr: bigint, src: Uint8Array): boolean;
  raiseIntx(): void;
  lowerIntx(): void;
  /** Message `vector` of MSI-X or MSI, whichever is enabled; kept pending while masked, dropped while neither is. */
  msi(vector: number): void;
  /** Calls `fn` after `ns` of virtual time, unless cancelled. */
  delay(ns: number, fn: () => void): Timer;
  /** Virtual time, ns. */
  readonly now: number;
}

export abstract class PciModel {
  abstract readonly description: PciFunctionDescription;

  /** Called once, when the machine is built. */
  attach(_port: PciPort): void {}

  /** Memory that backs the whole BAR just now, or undefined: `barRead` and `barWrite` answer. */
  barMemory(_bar: number): BarMemory | undefined {
    return undefined;
  }

  /** A naturally aligned read of `size` bytes (1, 2, 4 or 8). */
  barRead(_bar: number, _offset: number, _size: number): bigint {
    return 0n;
  }

  /** What `barRead` would give, with none of its effects; to be overridden where a read has any. */
  barPeek(bar: number, offset: number, size: number): bigint {
    return this.barRead(bar, offset, size);
  }

  /** A naturally aligned write of `size` bytes. */
  barWrite(_bar: number, _offset: number, _size: number, _value: bigint): void {}

  /** Back to the state after power-on; config space is already dealt with. */
  reset(_kind: ResetKind): void {}

  /** The function went to D`state` (0 … 3; 4 is D3cold). */
  setPower(_state: number): void {}
}

const CHUNK = 65536;

/** Memory that costs only where it was written: zero elsewhere. */
export class SparseMemory implements BarMemory {
  readonly #chunks: Map<number, Uint8Array> = new Map();
  /** Where the bytes are while they are not here: then there are no chunks. */
  #store: BarStore | undefined = undefined;

  read(offset: number, dst: Uint8Array): void {
    if (this.#store !== undefined) {
      this.#store.read(offset, dst);
      return;
    }
    for (let done = 0; done < dst.length; ) {
      const at = offset + done;
      const inChunk = at % CHUNK;
      const n = Math.min(dst.length - done, CHUNK - inChunk);
      const chunk = this.#chunks.get((at - inChunk) / CHUNK);
      if (chunk === undefined) dst.fill(0, done, done + n);
      else dst.set(chunk.subarray(inChunk, inChunk + n), done);
      done += n;
    }
  }

  write(offset: number, src: Uint8Array): void {
    if (this.#store !== undefined) {
      this.#store.write(offset, src);
      return;
    }
    for (let done = 0; done < src.length; ) {
      const at = offset + done;
      const inChunk = at % CHUNK;
      const n = Math.min(src.length - done, CHUNK - inChunk);
      const index = (at - inChunk) / CHUNK;
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = new Uint8Array(CHUNK);
        this.#chunks.set(index, chunk);
      }
      chunk.set(src.subarray(done, done + n), inChunk);
      done += n;
    }
  }

  /** All zero again. */
  clear(): void {
    this.#store?.clear();
    this.#chunks.clear();
  }

  moveTo(store: BarStore | undefined): void {
    const from = this.#store;
    if (from !== undefined) {
      this.#store = undefined;
      for (const { offset, length } of from.data()) this.#take(from, offset, length);
      from.clear();
    }
    if (store === undefined) return;
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) store.write(index * CHUNK, this.#chunks.get(index) as Uint8Array);
    this.#chunks.clear();
    this.#store = store;
  }

  /** Copies what is not zero. */
  #take(from: BarStore, offset: number, length: number): void {
    for (let done = 0; done < length; ) {
      const n = Math.min(length - done, CHUNK);
      const bytes = new Uint8Array(n);
      from.read(offset + done, bytes);
      if (bytes.some((b) => b !== 0)) this.write(offset + done, bytes);
      done += n;
    }
  }
}
