/**
 * Putting the pages of an area into domains, and taking them out.
 *
 * Order inside: pin, map, charge; and unmap before unpin, since a device must
 * never reach a page that was given back. A run of adjacent frames is one
 * `map`, unless the table maps page by page. Device memory is always read from
 * its own address, never back from a domain, so that every mapping of it is
 * uncacheable.
 *
 * Every function here either does all or leaves domains, pins and charges as
 * they were. The domains lock of the table is held by the callers.
 *
 * Source: iopt_area_fill_domains and its kin, batch_to_domain
 * (drivers/iommu/iommufd/pages.c), spec section 4.3.
 */
import { PAGE_SIZE_N } from "../../lib/addr.ts";
import { ENOMEM, type Errno } from "../../lib/errno.ts";
import { bugOn } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IoptArea } from "./area.ts";
import { type IoptDomain, mapRun, unmapNofail } from "./domain.ts";
import type { IoptPages } from "./pages.ts";

/** The domains of an I/O page table, and how it maps. */
export interface FillTarget {
  readonly domains: readonly IoptDomain[];
  /** Every map is of exactly one page. */
  readonly disableLargePages: boolean;
}

/** Maps the whole area; its pages are pinned, or are device memory that is not revoked. */
function mapArea(area: IoptArea, pages: IoptPages, domain: IoptDomain, small: boolean): Errno | undefined {
  const dmabuf = pages.dmabufOrNone;
  if (dmabuf !== undefined) return dmabuf.map(area, pages.baseByte + area.startByteAt(area.start), domain, small);
  const last = area.lastIndex;
  let offset = BigInt(area.pageOffset);
  let iova = area.start;
  for (let i = area.index; i <= last; ) {
    const first = pages.pfnAt(i);
    let n = 1;
    while (i + n <= last && pages.pfnAt(i + n) === first + n) n++;
    const room = BigInt(n) * PAGE_SIZE_N - offset;
    const left = area.last - iova + 1n;
    const length = room < left ? room : left;
    const e = mapRun(domain, iova, BigInt(first) * PAGE_SIZE_N + offset, length, area.prot, small ? PAGE_SIZE_N : undefined);
    if (e !== undefined) {
      if (iova > area.start) unmapNofail(domain, area.start, iova - area.start);
      return e;
    }
    iova += length;
    offset = 0n;
    i += n;
  }
  return undefined;
}

/** Unmaps the area from one domain; nothing to do for what a revoke has unmapped. Mutex of the pages held. */
export function unmapArea(area: IoptArea, pages: IoptPages, domain: IoptDomain): void {
  const dmabuf = pages.dmabufOrNone;
  if (dmabuf === undefined) unmapNofail(domain, area.start, area.length);
  else dmabuf.unmap(area, domain);
}

/** What must be had before anything is done: an entry of the tracker for each domain, and a batch for the walk. ENOMEM. */
function prepare(pages: IoptPages, domains: number): Errno | undefined {
  const { fault } = pages.kernel;
  if (pages.dmabufOrNone !== undefined) for (let i = 0; i < domains; i++) if (fault.slab("iopt_pages_dmabuf_track")) return ENOMEM;
  return pages.revoked ? undefined : pages.temporary("batch");
}

/** Puts a new area, not yet visible, into every domain. */
export function* fillDomains(target: FillTarget, area: IoptArea, pages: IoptPages): Step<Errno | undefined> {
  const [storage] = target.domains;
  if (storage === undefined) return pages.dmabufOrNone?.refusal;
  yield* pages.mutex.lock();
  try {
    const short = prepare(pages, target.domains.length);
    if (short !== undefined) return short;
    const dmabuf = pages.dmabufOrNone;
    if (dmabuf?.refusal !== undefined) return dmabuf.refusal;
    if (dmabuf === undefined) {
      const e = yield* pages.pin(area.index, area.lastIndex);
      if (e !== undefined) {
        pages.dropUncovered(area.index, area.lastIndex);
        return e;
      }
    }
    if (!pages.revoked) {
      let e: Errno | undefined;
      let done = 0;
      for (const domain of target.domains) {
        e = mapArea(area, pages, domain, target.disableLargePages);
        if (e !== undefined) break;
        done++;
      }
      e ??= pages.settle();
      if (e !== undefined) {
        for (const domain of target.domains.slice(0, done)) unmapArea(area, pages, domain);
        pages.dropUncovered(area.index, area.lastIndex);
        return e;
      }
    }
    if (dmabuf !== undefined) for (const domain of target.domains) dmabuf.track(area, domain, target.disableLargePages);
    area.storageDomain = storage;
    pages.addToDomains(area);
    return undefined;
  } finally {
    pages.mutex.unlock();
  }
}

/** Takes an area that nobody else may use any more out of every domain. Cannot fail. */
export function* unfillDomains(target: FillTarget, area: IoptArea, pages: IoptPages): Step<void> {
  // Only with the domains lock held for writing does this change.
  if (area.storageDomain === undefined) return;
  yield* pages.mutex.lock();
  try {
    for (const domain of target.domains) unmapArea(area, pages, domain);
    pages.removeFromDomains(area);
    pages.dropUncovered(area.index, area.lastIndex);
    pages.dmabufOrNone?.untrackAll(area);
    area.storageDomain = undefined;
  } finally {
    pages.mutex.unlock();
  }
}

/** Puts an existing area into a domain that is being added. */
export function* fillDomain(small: boolean, area: IoptArea, pages: IoptPages, domain: IoptDomain): Step<Errno | undefined> {
  yield* pages.mutex.lock();
  try {
    const short = prepare(pages, 1);
    if (short !== undefined) return short;
    const dmabuf = pages.dmabufOrNone;
    if (dmabuf?.refusal !== undefined) return dmabuf.refusal;
    if (dmabuf === undefined || !dmabuf.revoked) {
      let e = dmabuf === undefined ? yield* pages.pin(area.index, area.lastIndex) : undefined;
      if (e === undefined) {
        e = mapArea(area, pages, domain, small);
        if (e === undefined) {
          e = pages.settle();
          if (e !== undefined) unmapArea(area, pages, domain);
        }
      }
      if (e !== undefined) {
        pages.dropUncovered(area.index, area.lastIndex);
        return e;
      }
    }
    dmabuf?.track(area, domain, small);
    if (area.storageDomain === undefined) {
      area.storageDomain = domain;
      pages.addToDomains(area);
    }
    return undefined;
  } finally {
    pages.mutex.unlock();
  }
}

/** Takes an area out of a domain that is going; `storage` is one that stays, or undefined for the last. Cannot fail. */
export function* unfillDomain(area: IoptArea, pages: IoptPages, domain: IoptDomain, storage: IoptDomain | undefined): Step<void> {
  yield* pages.mutex.lock();
  try {
    unmapArea(area, pages, domain);
    pages.dmabufOrNone?.untrack(area, domain);
    if (storage === undefined) {
      bugOn(area.storageDomain !== domain, "the last domain is not the one that stores the area");
      area.storageDomain = undefined;
      pages.removeFromDomains(area);
      pages.dropUncovered(area.index, area.lastIndex);
    } else if (area.storageDomain === domain) {
      area.storageDomain = storage;
    }
  } finally {
    pages.mutex.unlock();
  }
}
