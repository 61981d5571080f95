/**
 * The I/O page table of an address space: two areas that share the pages of
 * one buffer, two domains, and a revoke that comes from below, while a task
 * maps, one unmaps and one adds a domain and takes it away.
 *
 * Beside what every scenario checks: a domain that is added while an area is
 * made or torn down holds it or does not, and nothing between.
 *
 * Finds: a second domain that maps the buffer as memory (H9), an unwinding that
 * keeps the mutex of the pages (H11), a second unmap of what a revoke has
 * unmapped (H12), a revoke that takes a lock of the table (H13).
 */
import type { VfioPciDmaBuf } from "../../kernel/vfio/pci/vfio_pci_dmabuf.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_DESTROY, IOMMU_HWPT_ALLOC, IOMMU_IOAS_COPY, IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_UNMAP, IommuDestroy } from "../../uapi/index.ts";
import type { Scenario } from "../tasks.ts";
import { type Alter, BAR, BYTES, FIRST, IOVA, type Play, type Stage, scenarioOf } from "./stage.ts";

/** Where the second area is, and where a third may come to be. */
const COPY = 0x20_0000n;
const THIRD = 0x30_0000n;

export interface IoPagetableWorld {
  readonly iommufd: number;
  readonly device: number;
  readonly buffer: VfioPciDmaBuf;
  readonly map: bigint;
  readonly unmap: bigint;
  readonly hwpt: bigint;
  readonly destroy: bigint;
  readonly off: bigint;
}

function setUp(stage: Stage): IoPagetableWorld {
  const { calls } = stage;
  const { sys } = calls.process;
  const iommufd = calls.openIommufd();
  const { fd: device, id } = calls.openDevice(FIRST, iommufd);
  const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
  calls.attach(device, range.ioas);
  calls.setMemory(device, true);
  const dmabuf = calls.exportBar(device, BAR, BYTES);
  calls.must(sys.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, calls.mapFileArgs(dmabuf, range)));
  calls.must(sys.ioctl(iommufd, IOMMU_IOAS_COPY, calls.copyArgs(range, COPY)));
  return {
    iommufd,
    device,
    buffer: stage.buffer(),
    map: calls.mapFileArgs(dmabuf, { ...range, iova: THIRD }),
    unmap: calls.unmapArgs(range),
    hwpt: calls.hwptArgs(id, range.ioas),
    destroy: calls.destroyArgs(0),
    off: calls.command(false),
  };
}

const TASKS: Play<IoPagetableWorld>["tasks"] = {
  map: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["ENODEV"]),
  unmap: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_UNMAP, w.unmap),
  *domain(w, stage): Step<string> {
    const made = yield* stage.ioctl(w.iommufd, IOMMU_HWPT_ALLOC, w.hwpt, ["ENOMEM", ...stage.whenDead]);
    if (made !== "0") return made;
    stage.calls.process.mm.memory.write(w.destroy, IommuDestroy.alloc({ size: IommuDestroy.size, id: stage.calls.hwptOf(w.hwpt) }).bytes);
    return `made ${yield* stage.ioctl(w.iommufd, IOMMU_DESTROY, w.destroy)}`;
  },
  *revoke(w, stage): Step<string> {
    yield* stage.decodeOff(w.device, w.off);
    return "off";
  },
};

export type IoPagetableTask = "map" | "unmap" | "domain" | "revoke";

export interface IoPagetableOptions {
  /** Default: all. */
  readonly tasks?: readonly IoPagetableTask[];
  readonly alter?: Alter<IoPagetableWorld>;
}

export function ioPagetable({ tasks, alter }: IoPagetableOptions = {}): Scenario {
  const chosen = Object.entries(TASKS).filter(([name]) => tasks === undefined || tasks.includes(name as IoPagetableTask));
  return scenarioOf(
    {
      name: "io-pagetable",
      summary: "MAP_FILE, UNMAP and a domain that comes and goes against a revoke; two areas of the same pages",
      setUp,
      tasks: Object.fromEntries(chosen),
    },
    alter,
  );
}
