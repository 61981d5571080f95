/**
 * The areas of one `IoptPages` that are in a domain, by page index.
 *
 * Nearly always there is one, which is kept by itself; a tree is made for the
 * second. Under the mutex of the pages.
 * Source: iopt_pages::domains_itree.
 */
import { IntervalTree, ItreeNode } from "../../lib/interval_tree.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { IoptArea } from "./area.ts";

class Slice extends ItreeNode {
  readonly area: IoptArea;

  constructor(area: IoptArea) {
    super(BigInt(area.index), BigInt(area.lastIndex));
    this.area = area;
  }
}

export class AreaSet {
  readonly #tree: IntervalTree<Slice> = new IntervalTree();
  readonly #slices: Map<IoptArea, Slice> = new Map();

  get size(): number {
    return this.#slices.size;
  }

  add(area: IoptArea): void {
    if (this.#slices.has(area)) throw new KernelBug("iommufd: the area is in a domain twice");
    const s = new Slice(area);
    this.#slices.set(area, s);
    this.#tree.insert(s);
  }

  delete(area: IoptArea): void {
    const s = this.#slices.get(area);
    if (s === undefined) throw new KernelBug("iommufd: the area is in no domain");
    this.#slices.delete(area);
    this.#tree.remove(s);
  }

  has(area: IoptArea): boolean {
    return this.#slices.has(area);
  }

  *[Symbol.iterator](): Generator<IoptArea, void, void> {
    yield* this.#slices.keys();
  }

  /** Calls `visit` with the page range of every area that meets [first, last], in order. */
  overlaps(first: number, last: number, visit: (first: number, last: number) => void): void {
    for (const s of this.#tree.overlaps(BigInt(first), BigInt(last))) visit(Number(s.start), Number(s.last));
  }
}
