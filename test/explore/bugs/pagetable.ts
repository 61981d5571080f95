/** What the importer got wrong: second mappings, unwinding, and the locks that a revoke may take. */
import { type IoPagetableOptions, ioPagetable } from "../../../src/explore/scenarios/io_pagetable.ts";
import type * as LockGraph from "../../../src/explore/scenarios/lock_graph.ts";
import { lockGraph } from "../../../src/explore/scenarios/lock_graph.ts";
import type * as MapVsRevoke from "../../../src/explore/scenarios/map_vs_revoke.ts";
import { mapVsRevoke } from "../../../src/explore/scenarios/map_vs_revoke.ts";
import type { Stage } from "../../../src/explore/scenarios/stage.ts";
import type { IoptArea } from "../../../src/kernel/iommufd/area.ts";
import { type IoptDomain, mapRun, unmapNofail } from "../../../src/kernel/iommufd/domain.ts";
import { fillDomain, unfillDomain } from "../../../src/kernel/iommufd/fill.ts";
import { IoPagetable } from "../../../src/kernel/iommufd/io_pagetable.ts";
import { IommufdIoas } from "../../../src/kernel/iommufd/ioas.ts";
import { iommufdModule } from "../../../src/kernel/iommufd/module.ts";
import type { IoptPages } from "../../../src/kernel/iommufd/pages.ts";
import { PrivateMapDmabuf } from "../../../src/kernel/iommufd/pages_dmabuf.ts";
import { ENOMEM, type Errno } from "../../../src/lib/errno.ts";
import type { Step } from "../../../src/sched/task.ts";
import { type Bug, become, edited, here, replaceOps } from "./bug.ts";

/** The one address space of the scenario. */
function tableOf({ kernel }: Stage): IoPagetable {
  for (const ctx of iommufdModule(kernel).contexts) for (const o of ctx.objects) if (o instanceof IommufdIoas) return o.iopt;
  throw new TypeError("the scenario has no IOAS");
}

/** The pages that its areas share. */
function pagesOf(stage: Stage): IoptPages {
  for (const { pages } of tableOf(stage).areas) if (pages !== undefined) return pages;
  throw new TypeError("the scenario has mapped nothing");
}

function dmabufOf(stage: Stage): PrivateMapDmabuf {
  const { dmabuf } = pagesOf(stage);
  if (!(dmabuf instanceof PrivateMapDmabuf)) throw new TypeError("the pages are not those of the private interconnect");
  return dmabuf;
}

/** To 7.2: frames that a domain has already are read back from it, and then are memory like any other. */
class ReadsBack extends PrivateMapDmabuf {
  override map(area: IoptArea, offset: bigint, domain: IoptDomain, pageByPage: boolean): Errno | undefined {
    const [there] = this.tracker;
    const pa = there?.domain.iovaToPhys(there.area.start);
    if (there === undefined || pa === undefined) return super.map(area, offset, domain, pageByPage);
    return mapRun(domain, area.start, pa, area.length, area.prot, undefined);
  }
}

/** Without the look at what a revoke has done. */
class UnmapsAgain extends PrivateMapDmabuf {
  override unmap(area: IoptArea, domain: IoptDomain): void {
    unmapNofail(domain, area.start, area.length);
  }
}

/** The first version of the series: when an entry of the tracker cannot be had, it unwinds with the mutex held. */
class UnwindsUnderMutex extends IoPagetable {
  protected override *fillNewDomain(domain: IoptDomain): Step<Errno | undefined> {
    const done: IoptArea[] = [];
    for (const area of this.areas) {
      const { pages } = area;
      if (pages === undefined) continue;
      const e = yield* fillDomain(this.disableLargePages, area, pages, domain);
      if (e === undefined) {
        done.push(area);
        continue;
      }
      if (e === ENOMEM) yield* pages.mutex.lock();
      for (const a of done) yield* unfillDomain(a, a.pages as IoptPages, domain, this.domains[0]);
      return e;
    }
    return undefined;
  }
}

/** Every entry of the tracker is had, or is not. */
const short: NonNullable<IoPagetableOptions["alter"]> = (_, { kernel, recorder }) => {
  const slab = kernel.fault.slab.bind(kernel.fault);
  kernel.fault.slab = (what) => slab(what) || (what === "iopt_pages_dmabuf_track" && recorder.choose(2, what) === 1);
};

export const pagetableBugs: readonly Bug[] = [
  {
    id: "H6",
    what: "the exporter does not look again under the reservation whether it is revoked",
    broken: () =>
      edited<typeof MapVsRevoke>(
        "src/explore/scenarios/map_vs_revoke.ts",
        { "src/kernel/dma_buf/interconnect.ts": [["  if (priv.revoked) return ENODEV;\n", ""]] },
        (m) => m.mapVsRevoke(),
      ),
    fixed: () => here(mapVsRevoke()),
    kind: "invariant",
    says: /I1/,
  },
  {
    id: "H9",
    what: "a second domain reads the buffer's frames back from the first, and maps them as memory",
    broken: () => here(ioPagetable({ tasks: ["domain"], alter: (_, stage) => become(dmabufOf(stage), ReadsBack) })),
    fixed: () => here(ioPagetable({ tasks: ["domain"] })),
    kind: "invariant",
    says: /I7/,
  },
  {
    id: "H10",
    what: "the last area unpins without the reservation",
    broken: () =>
      edited<typeof LockGraph>(
        "src/explore/scenarios/lock_graph.ts",
        {
          "src/kernel/dma_buf/interconnect.ts": [
            [
              "  yield* dmabuf.resv.lock();\n  dmaBufUnpin(att);\n  dmabuf.resv.unlock();\n  yield* dmaBufDetach",
              "  dmaBufUnpin(att);\n  yield* dmaBufDetach",
            ],
          ],
        },
        (m) => m.lockGraph({ tasks: ["release", "revoke"] }),
      ),
    fixed: () => here(lockGraph({ tasks: ["release", "revoke"] })),
    kind: "bug",
    says: /RESV is not held/,
  },
  {
    id: "H11",
    what: "filling a new domain unwinds with the mutex of pages that an earlier area shares",
    broken: () =>
      here(
        ioPagetable({
          tasks: ["domain"],
          alter: (world, stage) => {
            short(world, stage);
            become(tableOf(stage), UnwindsUnderMutex as unknown as { readonly prototype: IoPagetable });
          },
        }),
      ),
    fixed: () => here(ioPagetable({ tasks: ["domain"], alter: short })),
    kind: "deadlock",
    says: /waits for iopt_pages.mutex \(dma-buf\), held by domain/,
  },
  {
    id: "H12",
    what: "UNMAP unmaps once more what a revoke has unmapped",
    broken: () => here(ioPagetable({ tasks: ["unmap", "revoke"], alter: (_, stage) => become(dmabufOf(stage), UnmapsAgain) })),
    fixed: () => here(ioPagetable({ tasks: ["unmap", "revoke"] })),
    kind: "bug",
    says: /unmap of .* found 0x0/,
  },
  {
    id: "H13",
    what: "a revoke takes the lock of the domains inside of the reservation",
    broken: () =>
      here(
        lockGraph({
          tasks: ["revoke", "release"],
          alter: (_, stage) => {
            const { attach } = dmabufOf(stage);
            const ops = attach?.importerOps;
            if (attach === undefined || ops === undefined) throw new TypeError("nothing is attached");
            const { domainsSem } = tableOf(stage);
            replaceOps(attach as { readonly importerOps: typeof ops }, "importerOps", {
              *invalidateMappings(att): Step<void> {
                yield* domainsSem.downRead();
                yield* ops.invalidateMappings?.(att) ?? [];
                domainsSem.upRead();
              },
            });
          },
        }),
      ),
    fixed: () => here(lockGraph({ tasks: ["revoke", "release"] })),
    kind: "lockdep",
    says: /takes RESV while holding iopt.domains_rwsem/,
  },
  {
    id: "H14",
    what: "pages of a buffer and pages of memory have one class of mutex",
    broken: () =>
      edited<typeof LockGraph>(
        "src/explore/scenarios/lock_graph.ts",
        { "src/kernel/iommufd/pages.ts": [["this.dmabufOrNone === undefined ? MUTEX : DMABUF_MUTEX", "MUTEX"]] },
        (m) => m.lockGraph({ tasks: ["fault", "revoke", "pin"] }),
      ),
    fixed: () => here(lockGraph({ tasks: ["fault", "revoke", "pin"] })),
    kind: "lockdep",
    says: /mm.mmap_lock/,
  },
];
