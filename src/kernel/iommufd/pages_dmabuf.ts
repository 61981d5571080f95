/**
 * The dma-buf's part of `IoptPages`: where the device memory is, and who maps it.
 *
 * `phys.len` is 0 exactly while there is nothing to map: before the private map
 * has succeeded, and for ever after a revoke. Every path that maps or unmaps
 * looks at it under the mutex of the pages.
 *
 * The tracker lists every pair of an area of these pages and a domain of its
 * I/O page table, revoked or not. It exists so that a revoke, which arrives with
 * the reservation held and must not take a lock of the I/O page table, finds
 * what to unmap.
 *
 * Invariants: len > 0: a pair is tracked exactly if the area is mapped in the
 * domain. len = 0: nothing is mapped.
 *
 * Source: iopt_pages_dmabuf, iopt_revoke_notify (drivers/iommu/iommufd/pages.c).
 */
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { DmaBufAttachment, DmaBufAttachOps } from "../dma_buf/attachment.ts";
import type { PhysVec } from "../dma_buf/mapping.ts";
import type { IoptArea } from "./area.ts";
import { type IoptDomain, unmapNofail } from "./domain.ts";
import type { IoptPages } from "./pages.ts";

/** Nothing to map. */
const NOWHERE: PhysVec = { paddr: 0n as PhysVec["paddr"], len: 0n };

export interface Tracked {
  readonly area: IoptArea;
  readonly domain: IoptDomain;
}

export class PagesDmabuf {
  /** From a successful private map to the release. */
  attach: DmaBufAttachment | undefined = undefined;
  /** The whole buffer. Written under the reservation, read under the mutex of the pages. */
  phys: PhysVec = NOWHERE;
  #tracker: Tracked[] = [];

  get revoked(): boolean {
    return this.phys.len === 0n;
  }

  get tracked(): number {
    return this.#tracker.length;
  }

  /** For the checker. */
  get tracker(): readonly Tracked[] {
    return this.#tracker;
  }

  track(area: IoptArea, domain: IoptDomain): void {
    for (const t of this.#tracker) if (t.area === area && t.domain === domain) throw new KernelBug("iommufd: an area is tracked twice");
    this.#tracker.push({ area, domain });
  }

  untrack(area: IoptArea, domain: IoptDomain): void {
    const i = this.#tracker.findIndex((t) => t.area === area && t.domain === domain);
    if (i < 0) throw new KernelBug("iommufd: an area is untracked that was not tracked");
    this.#tracker.splice(i, 1);
  }

  untrackAll(area: IoptArea): void {
    this.#tracker = this.#tracker.filter((t) => t.area !== area);
  }

  /** Unmaps every pair and never maps again. Under the mutex of the pages. */
  revoke(): void {
    if (this.revoked) return;
    for (const { area, domain } of this.#tracker) unmapNofail(domain, area.start, area.length);
    this.phys = NOWHERE;
  }
}

/** What iommufd tells an exporter: it can let go at once, and does so here, with the reservation held. */
export const ioptDmabufAttachOps: DmaBufAttachOps = {
  allowPeer2peer: true,
  *invalidateMappings(att: DmaBufAttachment): Step<void> {
    const pages = att.importerPriv as IoptPages;
    yield* pages.mutex.lock();
    try {
      const { dmabuf } = pages;
      const { trace } = pages.kernel;
      if (!dmabuf.revoked && trace.on) trace.emit({ type: "iommufd.revoke", dmabuf: att.dmabuf.ino, mappings: dmabuf.tracked });
      dmabuf.revoke();
    } finally {
      pages.mutex.unlock();
    }
  },
};
