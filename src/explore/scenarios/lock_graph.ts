/**
 * Every lock of the interconnect at once: a CPU touches a BAR (mmap lock, then
 * the memory lock), a config write revokes (memory lock, reservation, mutex of
 * the pages), the last area of the buffer goes (the table's locks, then the
 * reservation), and memory of the process is mapped (the table's locks, the
 * mutex of its pages, the mmap lock).
 *
 * Beside what every scenario checks: nobody waits in a circle; locks nest in
 * the order in which they are listed here, and in no other; no page of the BAR
 * is served while decode is off.
 *
 * Finds: a revoke that takes a lock of the table (H13), one class for the mutex
 * of all pages (H14), an importer that never lets go (N5), one that lets go
 * only with the mmap lock (N17).
 */
import type { VfioPciDmaBuf } from "../../kernel/vfio/pci/vfio_pci_dmabuf.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_UNMAP, MAP_SHARED, PROT_READ, PROT_WRITE } from "../../uapi/index.ts";
import { InvariantBroken, type Scenario } from "../tasks.ts";
import { regionAt } from "./calls.ts";
import { type Alter, BAR, BYTES, FIRST, IOVA, type Play, type Stage, scenarioOf } from "./stage.ts";

/** Outer to inner. */
const ORDER: readonly string[] = [
  "vfio dev_set->lock",
  "vfio vdev->memory_lock",
  "iopt.domains_rwsem",
  "iopt.iova_rwsem",
  "RESV",
  "iopt_pages.mutex (dma-buf)",
];
/** And those of memory of the process; a fault is inside of the mmap lock. */
const MEMORY_ORDER: readonly string[] = [
  "iopt.domains_rwsem",
  "iopt.iova_rwsem",
  "iopt_pages.mutex",
  "mm.mmap_lock",
  "vfio vdev->memory_lock",
];

export interface LockGraphWorld {
  readonly iommufd: number;
  readonly device: number;
  readonly buffer: VfioPciDmaBuf;
  readonly bar: bigint;
  readonly map: bigint;
  readonly unmap: bigint;
  readonly off: bigint;
}

function setUp(stage: Stage): LockGraphWorld {
  const { calls } = stage;
  const { sys } = calls.process;
  const iommufd = calls.openIommufd();
  const { fd: device } = calls.openDevice(FIRST, iommufd);
  const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
  calls.attach(device, range.ioas);
  calls.setMemory(device, true);
  const dmabuf = calls.exportBar(device, BAR, BYTES);
  calls.must(sys.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, calls.mapFileArgs(dmabuf, range)));
  const world = {
    iommufd,
    device,
    buffer: stage.buffer(),
    bar: calls.must(sys.mmap(0n, 0x1000n, PROT_READ | PROT_WRITE, MAP_SHARED, device, regionAt(BAR))),
    map: calls.mapArgs(calls.memory(0x1000n), { ...range, iova: IOVA * 2n, length: 0x1000n }),
    unmap: calls.unmapArgs(range),
    off: calls.command(false),
  };
  calls.must(sys.close(dmabuf));
  return world;
}

const TASKS: Play<LockGraphWorld>["tasks"] = {
  *fault(w, stage): Step<string> {
    const off = stage.forbidden();
    const r = yield* stage.calls.process.space.store(w.bar, Uint8Array.of(1));
    if (r === "SIGSEGV" || (off && r === "ok")) throw new InvariantBroken(`a touch of the BAR ends with ${r}`);
    return r;
  },
  *revoke(w, stage): Step<string> {
    yield* stage.decodeOff(w.device, w.off);
    return "off";
  },
  release: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_UNMAP, w.unmap),
  pin: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP, w.map),
};

/** Edges that go against an order. */
function against(edges: readonly (readonly [string, string])[]): string[] {
  const wrong = (order: readonly string[], outer: string, inner: string): boolean =>
    order.includes(outer) && order.includes(inner) && order.indexOf(outer) > order.indexOf(inner);
  return edges.filter(([a, b]) => wrong(ORDER, a, b) || wrong(MEMORY_ORDER, a, b)).map(([a, b]) => `${a} → ${b}`);
}

export type LockGraphTask = "fault" | "revoke" | "release" | "pin";

export interface LockGraphOptions {
  /** Default: all. */
  readonly tasks?: readonly LockGraphTask[];
  readonly alter?: Alter<LockGraphWorld>;
}

export function lockGraph({ tasks, alter }: LockGraphOptions = {}): Scenario {
  const chosen = Object.entries(TASKS).filter(([name]) => tasks === undefined || tasks.includes(name as LockGraphTask));
  return scenarioOf(
    {
      name: "lock-graph",
      summary: "a BAR fault, a revoke, the last UNMAP and a MAP of memory: every lock of the interconnect",
      setUp,
      tasks: Object.fromEntries(chosen),
      end(_, { kernel }) {
        const wrong = against(kernel.sched.lockdep.edges());
        if (wrong.length > 0) throw new InvariantBroken(`locks nest against their order: ${wrong.join(", ")}`);
        return "";
      },
    },
    alter,
  );
}
