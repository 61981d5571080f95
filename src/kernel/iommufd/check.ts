/**
 * A checker of what must hold in every context between operations.
 *
 * Names are those of the interconnect's specification: I1 nothing of a revoked
 * buffer is mapped; I2 no area of it was filled since; I3 the tracker lists
 * exactly the pairs of area and domain, and they are mapped exactly while the
 * buffer lives; I4 references are balanced; I7 device memory is never cacheable.
 * I7, and that a domain holds nothing beyond its areas, can be told only where
 * the ledger of mappings was opened (`openLedger`) before anything was mapped.
 * Beside them: the trees are sound, areas and reserved ranges are disjoint and
 * aligned, pins are exactly what is covered, charges are settled.
 *
 * Run it when no operation is under way.
 */
import { hex, PAGE_SIZE_N, U64_MAX } from "../../lib/addr.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { IommuDomain } from "../iommu/domain.ts";
import { ledgerOf, type MappingLedger } from "../iommu/ledger.ts";
import type { Kernel } from "../kernel.ts";
import type { IoptArea } from "./area.ts";
import { IOMMU_CACHE, IOMMU_MMIO, IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import type { IoPagetable } from "./io_pagetable.ts";
import { IommufdIoas } from "./ioas.ts";
import { iommufdModule } from "./module.ts";
import type { IoptPages } from "./pages.ts";

function fail(what: string): never {
  throw new KernelBug(`iommufd invariant: ${what}`);
}

/** Every context of a kernel. Throws `KernelBug` at the first thing that does not hold. */
export function checkInvariants(kernel: Kernel): void {
  const m = iommufdModule(kernel);
  const iopts: IoPagetable[] = [];
  for (const ctx of m.contexts) for (const o of ctx.objects) if (o instanceof IommufdIoas) iopts.push(o.iopt);
  const ledger = ledgerOf(kernel);
  checkTables(iopts, ledger);
  if (ledger !== undefined) checkKinds(kernel, ledger);
  let areas = 0;
  const pages = new Set<IoptPages>();
  for (const t of iopts) {
    areas += t.areas.size;
    for (const a of t.areas) if (a.pages !== undefined) pages.add(a.pages);
  }
  if (areas !== m.liveAreas) fail(`${m.liveAreas} areas are counted, ${areas} exist`);
  if (pages.size !== m.livePages) fail(`${m.livePages} pages objects are counted, ${pages.size} are shown by an area (I4)`);
}

/** The same for tables that belong together: no area outside of them shares pages with theirs. */
export function checkTables(iopts: readonly IoPagetable[], ledger?: MappingLedger): void {
  const shown = new Map<IoptPages, { iopt: IoPagetable; area: IoptArea }[]>();
  for (const iopt of iopts) {
    checkTable(iopt);
    if (ledger !== undefined) checkHeld(iopt, ledger);
    for (const area of iopt.areas) {
      if (area.pages === undefined) continue;
      const list = shown.get(area.pages) ?? [];
      list.push({ iopt, area });
      shown.set(area.pages, list);
    }
  }
  for (const [pages, by] of shown) checkPages(pages, by);
}

function checkTable(iopt: IoPagetable): void {
  iopt.areas.check();
  iopt.reserved.check();
  iopt.allowed.check();
  const mask = iopt.iovaAlignment - 1n;
  let end = -1n;
  for (const a of iopt.areas) {
    if (a.start <= end) fail(`areas overlap at ${hex(a.start)}`);
    end = a.last;
    if (((a.start | a.length | BigInt(a.pageOffset)) & mask) !== 0n)
      fail(`the area at ${hex(a.start)} is not aligned to ${hex(mask + 1n)}`);
    if (iopt.reserved.first(a.start, a.last) !== undefined) fail(`the area at ${hex(a.start)} lies in a reserved range`);
    const storage = a.storageDomain;
    if (a.pages !== undefined && (storage === undefined) !== (iopt.domains.length === 0))
      fail(`the area at ${hex(a.start)} has no storage domain, or should not have`);
    if (storage !== undefined && !iopt.domains.includes(storage)) fail(`the area at ${hex(a.start)} is stored in a domain that is gone`);
  }
  for (const r of iopt.reserved)
    if (iopt.allowed.first(r.start, r.last) !== undefined) fail(`an allowed range is reserved at ${hex(r.start)}`);
  for (let at = PAGE_SIZE_N; at < iopt.noHoleBelow; ) {
    const n = iopt.areas.first(at, at) ?? iopt.reserved.first(at, at);
    if (n === undefined) fail(`there is a hole at ${hex(at)}, below the mark ${hex(iopt.noHoleBelow)}`);
    at = n.last + 1n;
  }
}

/** Each domain holds its areas with the protection they ask for, whole and nothing else (I1, I3, I7). */
function checkHeld(iopt: IoPagetable, ledger: MappingLedger): void {
  for (const domain of iopt.domains) {
    if (!(domain instanceof IommuDomain)) continue;
    let held = 0n;
    for (const area of iopt.areas) {
      if (area.pages === undefined || area.pages.revoked) continue;
      let at = area.start;
      for (const e of ledger.overlaps(domain.id, area.start, area.last)) {
        const prot = protAsked(area, area.pages, e.start);
        if (e.start !== at || e.last > area.last) fail(`the mapping at ${hex(e.start)} is not one of the area at ${hex(area.start)}`);
        if (e.prot !== prot) fail(`${hex(e.start)} is mapped with ${hex(BigInt(e.prot))}, not ${hex(BigInt(prot))} (I7)`);
        at = e.last + 1n;
      }
      if (at !== area.last + 1n) fail(`the area at ${hex(area.start)} is mapped only up to ${hex(at)} (I3)`);
      held += area.length;
    }
    for (const e of ledger.overlaps(domain.id, 0n, U64_MAX)) held -= e.last - e.start + 1n;
    if (held !== 0n) fail("a domain maps more than its areas (I1)");
  }
}

/** Device memory is never cacheable; memory is never mapped as a device. */
function protAsked(area: IoptArea, pages: IoptPages, iova: bigint): number {
  const rw = area.prot & (IOMMU_READ | IOMMU_WRITE);
  return rw | (pages.dmabufOrNone?.attributesAt(pages.baseByte + area.startByteAt(iova)) ?? IOMMU_CACHE);
}

/** Whoever mapped it: what answers at the physical address decides how it must be mapped (I7). */
function checkKinds(kernel: Kernel, ledger: MappingLedger): void {
  for (const [domain, e] of ledger) {
    const kind = kernel.phys.at(e.pa);
    const mmio = (e.prot & IOMMU_MMIO) !== 0;
    if (kind === "mmio" && (!mmio || (e.prot & IOMMU_CACHE) !== 0))
      fail(`domain ${domain} maps device memory at ${hex(e.start)} as memory (I7)`);
    // The selftest's exporter calls RAM a device's.
    if (kind === "ram" && mmio && iommufdModule(kernel).selftest === undefined)
      fail(`domain ${domain} maps memory at ${hex(e.start)} as a device`);
  }
}

function checkPages(pages: IoptPages, by: readonly { iopt: IoPagetable; area: IoptArea }[]): void {
  if (pages.refs !== by.length) fail(`pages have ${pages.refs} references and ${by.length} areas (I4)`);
  const inDomains = new Set(pages.areasInDomains());
  for (const { iopt, area } of by) {
    if (inDomains.has(area) !== iopt.domains.length > 0) fail(`the area at ${hex(area.start)} is in the pages' list wrongly`);
    if (area.lastIndex >= pages.npages) fail(`the area at ${hex(area.start)} reaches past its pages`);
  }
  if (inDomains.size > by.length) fail("pages list areas that are gone");
  if (pages.type === "dmabuf") checkDmabuf(pages, by);
  else checkPins(pages, by);
}

/** Where page `index` of the pages appears in the area. */
function iovaOfIndex(area: IoptArea, index: number): bigint {
  return index === area.index ? area.start : area.start - BigInt(area.pageOffset) + BigInt(index - area.index) * PAGE_SIZE_N;
}

function checkPins(pages: IoptPages, by: readonly { iopt: IoPagetable; area: IoptArea }[]): void {
  const covered = new Set<number>();
  for (const { iopt, area } of by) {
    if (iopt.domains.length === 0) continue;
    for (let i = area.index; i <= area.lastIndex; i++) {
      covered.add(i);
      const offset = i === area.index ? BigInt(area.pageOffset) : 0n;
      for (const d of iopt.domains) {
        const pa = d.iovaToPhys(iovaOfIndex(area, i));
        if (pa !== BigInt(pages.pfnAt(i)) * PAGE_SIZE_N + offset) fail(`${hex(iovaOfIndex(area, i))} does not lead to its page`);
      }
    }
  }
  for (const a of pages.accesses()) for (let i = Number(a.start); i <= Number(a.last); i++) covered.add(i);
  for (const i of covered) if (!pages.isPinned(i)) fail(`page ${i} is used and not pinned`);
  if (pages.npinned !== covered.size) fail(`${pages.npinned} pages are pinned, ${covered.size} are used`);
  if (pages.lastNpinned !== pages.npinned) fail("pins and charge differ");
}

function checkDmabuf(pages: IoptPages, by: readonly { iopt: IoPagetable; area: IoptArea }[]): void {
  const { dmabuf } = pages;
  if (pages.npinned !== 0 || pages.accountMode !== "none") fail("a dma-buf is pinned or charged");
  if (dmabuf.attachedTimes() !== 1) fail("the attachment is not once on its buffer (I4)");
  let pairs = 0;
  for (const { iopt, area } of by) {
    for (const d of iopt.domains) {
      pairs++;
      if (!dmabuf.tracker.some((t) => t.area === area && t.domain === d)) fail(`the area at ${hex(area.start)} is not tracked (I3)`);
      for (let i = area.index; i <= area.lastIndex; i++) {
        const iova = iovaOfIndex(area, i);
        const pa = d.iovaToPhys(iova);
        if (dmabuf.revoked) {
          if (pa !== undefined) fail(`${hex(iova)} of a revoked buffer is mapped (I1)`);
          continue;
        }
        if (pa !== dmabuf.physAt(pages.baseByte + area.startByteAt(iova)))
          fail(`${hex(iova)} does not lead to its byte of the buffer (I3)`);
      }
    }
  }
  if (pairs !== dmabuf.tracked) fail(`${dmabuf.tracked} pairs are tracked, ${pairs} exist (I3)`);
}
