/**
 * A reset of two functions that share a bus, against a task that is inside of
 * the second one's memory lock, and one that maps the first one's buffer.
 *
 * The memory locks are only tried: with the second taken the reset does not
 * happen, and answers EBUSY. Beside what every scenario checks: the bus is reset
 * with nobody at either BAR (I6); whatever the outcome, the first one's buffer lives
 * again when it returns. `demand` asks for more than Linux keeps: that a reset that
 * does not happen leaves the mappings as they were (N3).
 */
import type { Step } from "../../sched/task.ts";
import { IOMMU_IOAS_MAP_FILE, MAP_SHARED, PROT_READ, PROT_WRITE, VFIO_DEVICE_PCI_HOT_RESET, VfioPciHotReset } from "../../uapi/index.ts";
import { InvariantBroken, type Scenario } from "../tasks.ts";
import { regionAt } from "./calls.ts";
import { type Alter, BAR, BYTES, FIRST, IOVA, type Play, SECOND, type Stage, scenarioOf } from "./stage.ts";

export interface HotResetWorld {
  readonly iommufd: number;
  readonly device: number;
  /** The second function. */
  readonly sibling: number;
  readonly bar: bigint;
  readonly reset: bigint;
  readonly map: bigint;
  readonly off: bigint;
}

export interface HotResetOptions {
  /** Default: all. */
  readonly tasks?: readonly ("reset" | "write" | "fault" | "map")[];
  /** A reset that answers EBUSY must leave the first function's mapping. Default: it need not. */
  readonly demand?: "mappings survive";
  readonly alter?: Alter<HotResetWorld>;
}

function setUp(stage: Stage): HotResetWorld {
  const { calls } = stage;
  const { sys } = calls.process;
  const iommufd = calls.openIommufd();
  const { fd: device } = calls.openDevice(FIRST, iommufd);
  const { fd: sibling } = calls.openDevice(SECOND, iommufd);
  const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
  calls.attach(device, range.ioas);
  for (const fd of [device, sibling]) calls.setMemory(fd, true);
  const dmabuf = calls.exportBar(device, BAR, BYTES);
  calls.must(sys.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, calls.mapFileArgs(dmabuf, range)));
  const other = calls.exportBar(sibling, BAR, BYTES);
  calls.must(sys.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, calls.mapFileArgs(other, { ...range, iova: IOVA * 2n })));
  return {
    iommufd,
    device,
    sibling,
    bar: calls.must(sys.mmap(0n, 0x1000n, PROT_READ | PROT_WRITE, MAP_SHARED, sibling, regionAt(BAR))),
    reset: calls.page(VfioPciHotReset.alloc({ argsz: VfioPciHotReset.size }).bytes),
    map: calls.mapFileArgs(dmabuf, { ...range, iova: IOVA * 3n }),
    off: calls.command(false),
  };
}

export function hotReset({ tasks, demand, alter }: HotResetOptions = {}): Scenario {
  const all: Play<HotResetWorld>["tasks"] = {
    *reset(w, stage): Step<string> {
      const r = yield* stage.ioctl(w.device, VFIO_DEVICE_PCI_HOT_RESET, w.reset, ["EBUSY"]);
      if (stage.buffer().revoked) throw new InvariantBroken("after the reset the first function's buffer is revoked");
      if (demand !== undefined && r === "EBUSY" && stage.reached(FIRST) === 0) {
        throw new InvariantBroken("the reset did not happen, and the mapping of the first function is gone");
      }
      return r;
    },
    *write(w, stage): Step<string> {
      yield* stage.decodeOff(w.sibling, w.off, SECOND);
      return "off";
    },
    *fault(w, stage): Step<string> {
      return yield* stage.calls.process.space.store(w.bar, Uint8Array.of(1));
    },
    map: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["ENODEV"]),
  };
  const chosen = Object.entries(all).filter(([name]) => tasks === undefined || (tasks as readonly string[]).includes(name));
  return scenarioOf(
    {
      name: "hot-reset",
      summary: "a reset of two functions against a write and a fault of the second, and MAP_FILE of the first",
      functions: 2,
      setUp,
      tasks: Object.fromEntries(chosen),
    },
    alter,
  );
}
