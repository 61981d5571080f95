/**
 * A second set of books: every mapping of every domain, with the protection that
 * was asked for, which no page-table format keeps.
 *
 * It is written from what `map` and `unmap` tell the trace, so a machine without
 * one pays nothing. Open it before the first mapping. Only checkers read it.
 */
import { hex } from "../../lib/addr.ts";
import { IntervalTree, ItreeNode } from "../../lib/interval_tree.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { TraceEvent } from "../../trace/events.ts";
import type { Kernel } from "../kernel.ts";
import { PerKernel } from "../per_kernel.ts";

/** One contiguous mapping, as it was asked for or as an unmap has left it. */
export class LedgerEntry extends ItreeNode {
  /** Of the first byte. */
  readonly pa: bigint;
  readonly prot: number;

  constructor(start: bigint, last: bigint, pa: bigint, prot: number) {
    super(start, last);
    this.pa = pa;
    this.prot = prot;
  }
}

export class MappingLedger {
  readonly #domains: Map<number, IntervalTree<LedgerEntry>> = new Map();

  constructor(kernel: Kernel) {
    kernel.trace.listen((r) => this.#note(r.event));
  }

  /** Mappings of a domain that meet [first, last], in order; `domain` is its id. */
  *overlaps(domain: number, first: bigint, last: bigint): Generator<LedgerEntry, void, void> {
    const tree = this.#domains.get(domain);
    if (tree !== undefined) yield* tree.overlaps(first, last);
  }

  /** All mappings of all domains, `[domain id, mapping]`. */
  *[Symbol.iterator](): Generator<[domain: number, entry: LedgerEntry], void, void> {
    for (const [id, tree] of this.#domains) for (const e of tree) yield [id, e];
  }

  #note(e: TraceEvent): void {
    switch (e.type) {
      case "iommu.map":
        if (e.errno === undefined) this.#map(e.domain, new LedgerEntry(e.iova, e.iova + e.length - 1n, e.pa, e.prot));
        break;
      case "iommu.unmap":
        if (e.unmapped > 0n) this.#unmap(e.domain, e.iova, e.iova + e.unmapped - 1n);
        break;
      case "iommu.domain_free":
        this.#domains.delete(e.domain);
        break;
    }
  }

  #map(domain: number, entry: LedgerEntry): void {
    let tree = this.#domains.get(domain);
    if (tree === undefined) {
      tree = new IntervalTree();
      this.#domains.set(domain, tree);
    }
    if (tree.first(entry.start, entry.last) !== undefined) throw new KernelBug(`domain ${domain}: ${hex(entry.start)} is mapped twice`);
    tree.insert(entry);
  }

  #unmap(domain: number, first: bigint, last: bigint): void {
    const tree = this.#domains.get(domain);
    if (tree === undefined) throw new KernelBug(`domain ${domain}: ${hex(first)} is unmapped and nothing was ever mapped`);
    for (const e of [...tree.overlaps(first, last)]) {
      tree.remove(e);
      if (e.start < first) tree.insert(new LedgerEntry(e.start, first - 1n, e.pa, e.prot));
      if (e.last > last) tree.insert(new LedgerEntry(last + 1n, e.last, e.pa + (last + 1n - e.start), e.prot));
    }
  }
}

const ledgers: PerKernel<MappingLedger> = new PerKernel();

/** Starts the books of a kernel; the same ones when they were started before. */
export function openLedger(kernel: Kernel): MappingLedger {
  return ledgers.getOr(kernel, (k) => new MappingLedger(k));
}

/** The books of a kernel, if somebody keeps them. */
export function ledgerOf(kernel: Kernel): MappingLedger | undefined {
  return ledgers.get(kernel);
}
