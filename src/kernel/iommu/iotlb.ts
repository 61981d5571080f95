/**
 * The IOTLB: translations a unit remembers, per domain and 4 KiB page.
 *
 * An entry stays until an invalidation names it, whatever happens to the page
 * table in the meantime: an unmap whose flush was forgotten leaves a stale
 * translation that DMA goes on using. A large page fills one entry per 4 KiB
 * page that was touched, as a unit that fractures does; invalidating any part
 * of the large page drops them all.
 *
 * Bounded: beyond `capacity` the oldest entry of the domain makes room.
 * Source: VT-d specification 6.2.3 (IOTLB), 6.5.2 (invalidation).
 */

export interface IotlbEntry {
  /** First IOVA of the leaf. */
  readonly start: bigint;
  /** Last IOVA of the leaf, inclusive. */
  readonly last: bigint;
  /** Physical address of `start`. */
  readonly pa: bigint;
  readonly readable: boolean;
  readonly writable: boolean;
  /** The leaf's dirty bit is known to be set, so that a write need not set it again. */
  dirty: boolean;
}

const pageOf = (iova: bigint): number => Number(iova >> 12n);
const isLarge = (e: IotlbEntry): boolean => e.last - e.start > 0xfffn;

interface DomainEntries {
  /** By 4 KiB page number of the address that missed. */
  readonly pages: Map<number, IotlbEntry>;
  /** How many of them belong to a leaf larger than a page. */
  large: number;
}

export class Iotlb {
  /** Entries kept per domain. */
  readonly capacity: number;
  hits = 0;
  misses = 0;
  readonly #domains: Map<number, DomainEntries> = new Map();

  constructor(capacity = 65_536) {
    this.capacity = capacity;
  }

  lookup(domain: number, iova: bigint): IotlbEntry | undefined {
    const e = this.#domains.get(domain)?.pages.get(pageOf(iova));
    if (e === undefined) this.misses++;
    else this.hits++;
    return e;
  }

  insert(domain: number, iova: bigint, entry: IotlbEntry): void {
    let d = this.#domains.get(domain);
    if (d === undefined) {
      d = { pages: new Map(), large: 0 };
      this.#domains.set(domain, d);
    }
    const page = pageOf(iova);
    drop(d, page);
    if (d.pages.size >= this.capacity) {
      for (const oldest of d.pages.keys()) {
        drop(d, oldest);
        break;
      }
    }
    d.pages.set(page, entry);
    if (isLarge(entry)) d.large++;
  }

  /** Drops every entry whose leaf touches [start, last]; how many there were. */
  invalidate(domain: number, start: bigint, last: bigint): number {
    const d = this.#domains.get(domain);
    if (d === undefined) return 0;
    let dropped = 0;
    const first = pageOf(start);
    const final = pageOf(last);
    // A large leaf may be cached under pages outside of the range: only a scan finds those.
    if (d.large === 0 && final - first < d.pages.size) {
      for (let p = first; p <= final; p++) if (drop(d, p)) dropped++;
      return dropped;
    }
    for (const [p, e] of d.pages) {
      if (e.start <= last && e.last >= start && drop(d, p)) dropped++;
    }
    return dropped;
  }

  /** Forgets a whole domain; how many entries it had. */
  invalidateDomain(domain: number): number {
    const n = this.size(domain);
    this.#domains.delete(domain);
    return n;
  }

  /** Entries kept for a domain. */
  size(domain: number): number {
    return this.#domains.get(domain)?.pages.size ?? 0;
  }
}

function drop(d: DomainEntries, page: number): boolean {
  const e = d.pages.get(page);
  if (e === undefined) return false;
  if (isLarge(e)) d.large--;
  return d.pages.delete(page);
}
