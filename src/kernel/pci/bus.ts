/** A bus: the functions on it, and the bridge above. Source: struct pci_bus. */
import type { PciDev } from "./pci_dev.ts";

/** An address range that a bridge forwards downstream. */
export interface BridgeWindow {
  readonly start: bigint;
  /** Inclusive. */
  readonly last: bigint;
}

export class PciBus {
  readonly number: number;
  readonly parent: PciBus | undefined;
  /** The bridge to it; undefined for the root bus. */
  readonly self: PciDev | undefined;
  /** In order of discovery; VFs last. */
  readonly devices: PciDev[] = [];
  /** Memory forwarded to it by `self`; the root bus takes all. */
  readonly windows: readonly BridgeWindow[];

  constructor(number: number, self: PciDev | undefined, windows: readonly BridgeWindow[]) {
    this.number = number;
    this.self = self;
    this.parent = self?.pciBus;
    this.windows = windows;
  }

  get isRoot(): boolean {
    return this.parent === undefined;
  }

  /** Whether `self` forwards `addr` downstream when its memory decoding is on. */
  forwards(addr: bigint): boolean {
    for (const w of this.windows) if (addr >= w.start && addr <= w.last) return true;
    return false;
  }

  /** It and every bus below it, depth first. */
  *subtree(): Generator<PciDev, void, void> {
    for (const dev of this.devices) {
      yield dev;
      if (dev.subordinate !== undefined) yield* dev.subordinate.subtree();
    }
  }
}
