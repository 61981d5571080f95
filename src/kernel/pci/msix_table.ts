/**
 * The MSI-X table and pending bits of a function, in the BARs its capability
 * names. Accesses there never reach the model.
 *
 * An entry is 16 bytes: address (64), data (32), vector control (32, bit 0 the
 * mask, set after reset). Source: PCI 3.0 6.8.2.
 */
import { PCI_MSIX_ENTRY_CTRL_MASKBIT, PCI_MSIX_ENTRY_SIZE, PCI_MSIX_ENTRY_VECTOR_CTRL } from "../../uapi/pci_regs.ts";
import type { MsixCapability } from "./pci_model.ts";

export class MsixTable {
  readonly vectors: number;
  readonly #cap: MsixCapability;
  readonly #port: { interruptsChanged(): void };
  /** Made on first use; undefined: as after reset. */
  #table: DataView | undefined = undefined;
  readonly #pending: Set<number> = new Set();

  constructor(cap: MsixCapability, port: { interruptsChanged(): void }) {
    this.#cap = cap;
    this.#port = port;
    this.vectors = cap.vectors;
  }

  /** Bytes of the pending bit array, whole quadwords. */
  get #pbaSize(): number {
    return Math.ceil(this.vectors / 64) * 8;
  }

  /** Whether an access meets the table or the pending bits. */
  touches(bar: number, offset: number, length: number): boolean {
    const c = this.#cap;
    const meets = (at: number, size: number): boolean => offset < at + size && at < offset + length;
    return (
      (bar === c.tableBar && meets(c.tableOffset, this.vectors * PCI_MSIX_ENTRY_SIZE)) ||
      (bar === c.pbaBar && meets(c.pbaOffset, this.#pbaSize))
    );
  }

  /** Puts what lies in [offset, offset + dst.length) into `dst`. True: all of it does. */
  copy(bar: number, offset: number, dst: Uint8Array): boolean {
    if (!this.touches(bar, offset, dst.length)) return false;
    const c = this.#cap;
    const overlay = (at: number, bytes: Uint8Array): boolean => {
      const from = Math.max(at, offset);
      const to = Math.min(at + bytes.length, offset + dst.length);
      if (from < to) dst.set(bytes.subarray(from - at, to - at), from - offset);
      return to - from === dst.length;
    };
    const inTable = bar === c.tableBar && overlay(c.tableOffset, new Uint8Array(this.#view().buffer));
    return (bar === c.pbaBar && overlay(c.pbaOffset, this.#pendingBytes())) || inTable;
  }

  #pendingBytes(): Uint8Array {
    const bytes = new Uint8Array(this.#pbaSize);
    for (const v of this.#pending) bytes[v >> 3] = (bytes[v >> 3] as number) | (1 << (v & 7));
    return bytes;
  }

  /** Undefined: not in the table nor the pending bits. */
  read(bar: number, offset: number, size: number): bigint | undefined {
    const c = this.#cap;
    const t = offset - c.tableOffset;
    if (bar === c.tableBar && t >= 0 && t < this.vectors * PCI_MSIX_ENTRY_SIZE) {
      const v = this.#view();
      if (size === 8) return v.getBigUint64(t, true);
      return BigInt(size === 4 ? v.getUint32(t, true) : size === 2 ? v.getUint16(t, true) : v.getUint8(t));
    }
    const p = offset - c.pbaOffset;
    if (bar !== c.pbaBar || p < 0 || p >= this.#pbaSize) return undefined;
    let bits = 0n;
    for (let i = 0; i < size * 8; i++) if (this.#pending.has(p * 8 + i)) bits |= 1n << BigInt(i);
    return bits;
  }

  /** False: not in the table nor the pending bits. The pending bits are read-only, and so are accesses below 4 bytes. */
  write(bar: number, offset: number, size: number, value: bigint): boolean {
    const c = this.#cap;
    const t = offset - c.tableOffset;
    if (bar === c.tableBar && t >= 0 && t < this.vectors * PCI_MSIX_ENTRY_SIZE) {
      if (size === 8) this.#view().setBigUint64(t, value, true);
      else if (size === 4) this.#view().setUint32(t, Number(value), true);
      if (this.anyPending) this.#port.interruptsChanged();
      return true;
    }
    const p = offset - c.pbaOffset;
    return bar === c.pbaBar && p >= 0 && p < this.#pbaSize;
  }

  masked(vector: number): boolean {
    return (this.#view().getUint32(vector * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL, true) & PCI_MSIX_ENTRY_CTRL_MASKBIT) !== 0;
  }

  pend(vector: number): void {
    this.#pending.add(vector);
  }

  get anyPending(): boolean {
    return this.#pending.size > 0;
  }

  /** Pending vectors whose mask is clear, no longer pending. */
  takeUnmasked(): number[] {
    const due = [...this.#pending].filter((v) => !this.masked(v)).sort((a, b) => a - b);
    for (const v of due) this.#pending.delete(v);
    return due;
  }

  reset(): void {
    this.#table = undefined;
    this.#pending.clear();
  }

  #view(): DataView {
    if (this.#table === undefined) {
      this.#table = new DataView(new ArrayBuffer(this.vectors * PCI_MSIX_ENTRY_SIZE));
      for (let v = 0; v < this.vectors; v++)
        this.#table.setUint32(v * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL, PCI_MSIX_ENTRY_CTRL_MASKBIT, true);
    }
    return this.#table;
  }
}
