/**
 * The dma-buf's part of `IoptPages`: how the device memory gets into domains,
 * and who maps it.
 *
 * The tracker lists every pair of an area of these pages and a domain of its
 * I/O page table, mapped or not. It exists so that a revoke, which arrives with
 * the reservation held and must not take a lock of the I/O page table, finds
 * what to unmap.
 *
 * Two kinds: `PrivateMapDmabuf` is Linux 7.3's, over one physical range;
 * `NegotiatedDmabuf` (`pages_negotiated.ts`) holds a mapping of the negotiated
 * contract.
 *
 * Invariants: not revoked: a pair is tracked exactly if the area is mapped in
 * the domain. Revoked: nothing is mapped. Both under the mutex of the pages.
 *
 * Source: iopt_pages_dmabuf, iopt_revoke_notify (drivers/iommu/iommufd/pages.c).
 */
import { PAGE_SIZE_N } from "../../lib/addr.ts";
import type { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { Device } from "../device.ts";
import type { DmaBufAttachment, DmaBufAttachOps } from "../dma_buf/attachment.ts";
import { ioptReleaseDmabuf } from "../dma_buf/interconnect.ts";
import type { PhysVec } from "../dma_buf/mapping.ts";
import type { Kernel } from "../kernel.ts";
import type { IoptArea } from "./area.ts";
import { IOMMU_CACHE, IOMMU_MMIO, type IoptDomain, mapRun, unmapNofail } from "./domain.ts";

/** Nothing to map. */
const NOWHERE: PhysVec = { paddr: 0n as PhysVec["paddr"], len: 0n };

export interface Tracked {
  readonly area: IoptArea;
  readonly domain: IoptDomain;
  /** Every map is of exactly one page. */
  readonly pageByPage: boolean;
}

export abstract class PagesDmabuf {
  #tracker: Tracked[] = [];

  /** Nothing is mapped now. */
  abstract readonly revoked: boolean;
  /** Why these pages are no longer put into domains; undefined: they are, or it is not told. */
  abstract readonly refusal: Errno | undefined;

  /** Maps the area from byte `offset` of the buffer on; not while revoked. Under the mutex of the pages. */
  abstract map(area: IoptArea, offset: bigint, domain: IoptDomain, pageByPage: boolean): Errno | undefined;
  /** Undoes one `map`; nothing to do while revoked. Under the mutex of the pages. */
  abstract unmap(area: IoptArea, domain: IoptDomain): void;
  /** Do the transactions of `dev` arrive? */
  abstract reaches(dev: Device): boolean;
  /** Lets go of the buffer: the last reference on the pages is gone. No reservation held. */
  abstract release(): Step<void>;
  /** How often it stands on its buffer's list, for checkers. */
  abstract attachedTimes(): number;
  /** Where byte `offset` of the buffer is, for checkers; undefined while revoked. */
  abstract physAt(offset: bigint): bigint | undefined;
  /** IOMMU_MMIO or IOMMU_CACHE, as byte `offset` is to be mapped, for checkers. */
  abstract attributesAt(offset: bigint): number;

  get tracked(): number {
    return this.#tracker.length;
  }

  /** For the checker, and for whoever unmaps or restores all. */
  get tracker(): readonly Tracked[] {
    return this.#tracker;
  }

  track(area: IoptArea, domain: IoptDomain, pageByPage: boolean): void {
    for (const t of this.#tracker) if (t.area === area && t.domain === domain) throw new KernelBug("iommufd: an area is tracked twice");
    this.#tracker.push({ area, domain, pageByPage });
  }

  untrack(area: IoptArea, domain: IoptDomain): void {
    const i = this.#tracker.findIndex((t) => t.area === area && t.domain === domain);
    if (i < 0) throw new KernelBug("iommufd: an area is untracked that was not tracked");
    this.#tracker.splice(i, 1);
  }

  untrackAll(area: IoptArea): void {
    this.#tracker = this.#tracker.filter((t) => t.area !== area);
  }
}

/** What the private interconnect and iommufd share of one buffer: the importer's side of the attachment. */
export interface PrivateMapPages {
  readonly kernel: Kernel;
  readonly mutex: Mutex;
  readonly dmabuf: PrivateMapDmabuf;
}

/**
 * As Linux 7.3: `phys.len` is 0 exactly while there is nothing to map: before
 * the private map has succeeded, and for ever after a revoke.
 */
export class PrivateMapDmabuf extends PagesDmabuf {
  /** From a successful private map to the release. */
  attach: DmaBufAttachment | undefined = undefined;
  /** The whole buffer. Written under the reservation, read under the mutex of the pages. */
  phys: PhysVec = NOWHERE;

  get revoked(): boolean {
    return this.phys.len === 0n;
  }

  /** A dead area is mapped, copied and attached without a word. */
  get refusal(): undefined {
    return undefined;
  }

  map(area: IoptArea, offset: bigint, domain: IoptDomain, pageByPage: boolean): Errno | undefined {
    const prot = (area.prot & ~IOMMU_CACHE) | IOMMU_MMIO;
    return mapRun(domain, area.start, this.phys.paddr + offset, area.length, prot, pageByPage ? PAGE_SIZE_N : undefined);
  }

  unmap(area: IoptArea, domain: IoptDomain): void {
    if (!this.revoked) unmapNofail(domain, area.start, area.length);
  }

  /** Nobody looks. */
  reaches(): boolean {
    return true;
  }

  release(): Step<void> {
    return ioptReleaseDmabuf({ dmabuf: this });
  }

  attachedTimes(): number {
    return this.attach?.dmabuf.attachments.filter((a) => a === this.attach).length ?? 0;
  }

  physAt(offset: bigint): bigint | undefined {
    return this.revoked ? undefined : this.phys.paddr + offset;
  }

  attributesAt(): number {
    return IOMMU_MMIO;
  }

  /** Unmaps every pair and never maps again. Under the mutex of the pages. */
  revoke(): void {
    if (this.revoked) return;
    for (const { area, domain } of this.tracker) unmapNofail(domain, area.start, area.length);
    this.phys = NOWHERE;
  }
}

/** What iommufd tells an exporter: it can let go at once, and does so here, with the reservation held. */
export const ioptDmabufAttachOps: DmaBufAttachOps = {
  allowPeer2peer: true,
  *invalidateMappings(att: DmaBufAttachment): Step<void> {
    const { kernel, mutex, dmabuf } = att.importerPriv as PrivateMapPages;
    yield* mutex.lock();
    try {
      const { trace } = kernel;
      if (!dmabuf.revoked && trace.on) trace.emit({ type: "iommufd.revoke", dmabuf: att.dmabuf.ino, mappings: dmabuf.tracked });
      dmabuf.revoke();
    } finally {
      mutex.unlock();
    }
  },
};
