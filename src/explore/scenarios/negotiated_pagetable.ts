/**
 * What only the negotiated interconnect does to an I/O page table.
 *
 * `restore`: a revoke that is undone gives the mappings back from below, with the
 * reservation held, while a task unmaps one of two areas of the same pages, and
 * another adds a domain and takes it away. In the end what was not unmapped is
 * mapped, in the domain that is left.
 *
 * `replace-dead`: a fixed map takes the place of an area whose pages are dead,
 * while a task unmaps it, and another adds a domain and takes it away. An area
 * that has lost its place is still tracked, by domains that may go meanwhile.
 */
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_DESTROY,
  IOMMU_HWPT_ALLOC,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_UNMAP,
  IOMMU_OPTION,
  IOMMU_OPTION_OP_SET,
  IommuDestroy,
  IommuOption,
} from "../../uapi/index.ts";
import { IOMMU_OPTION_DMABUF_REVALIDATE } from "../../uapi/proposed.ts";
import { InvariantBroken, type Scenario } from "../tasks.ts";
import { BAR, BYTES, FIRST, IOVA, type Play, type Stage, scenarioOf } from "./stage.ts";

/** Where the second area is. */
const COPY = 0x20_0000n;

interface World {
  readonly iommufd: number;
  readonly device: number;
  readonly map: bigint;
  readonly unmap: bigint;
  readonly hwpt: bigint;
  readonly destroy: bigint;
  readonly off: bigint;
  readonly on: bigint;
}

/** Two areas of one buffer in one domain, by an address space that asks for its mappings back, or does not. */
function mapped(stage: Stage, restores: boolean): World {
  const { calls } = stage;
  const { sys } = calls.process;
  const iommufd = calls.openIommufd();
  const { fd: device, id } = calls.openDevice(FIRST, iommufd);
  const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
  calls.attach(device, range.ioas);
  if (restores) {
    const option = IommuOption.alloc({ size: IommuOption.size, option_id: IOMMU_OPTION_DMABUF_REVALIDATE, op: IOMMU_OPTION_OP_SET });
    option.object_id = range.ioas;
    option.val64 = 1n;
    calls.ioctl(iommufd, IOMMU_OPTION, option);
  }
  calls.setMemory(device, true);
  const dmabuf = calls.exportBar(device, BAR, BYTES);
  calls.must(sys.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, calls.mapFileArgs(dmabuf, range)));
  if (restores) calls.must(sys.ioctl(iommufd, IOMMU_IOAS_COPY, calls.copyArgs(range, COPY)));
  // Every lock has been met, and without the option the area is dead.
  calls.setMemory(device, false);
  calls.setMemory(device, true);
  return {
    iommufd,
    device,
    map: calls.mapFileArgs(dmabuf, range),
    unmap: calls.unmapArgs(range),
    hwpt: calls.hwptArgs(id, range.ioas),
    destroy: calls.destroyArgs(0),
    off: calls.command(false),
    on: calls.command(true),
  };
}

function* domain(w: World, stage: Stage): Step<string> {
  const made = yield* stage.ioctl(w.iommufd, IOMMU_HWPT_ALLOC, w.hwpt, ["ENODEV"]);
  if (made !== "0") return made;
  stage.calls.process.mm.memory.write(w.destroy, IommuDestroy.alloc({ size: IommuDestroy.size, id: stage.calls.hwptOf(w.hwpt) }).bytes);
  return `made ${yield* stage.ioctl(w.iommufd, IOMMU_DESTROY, w.destroy)}`;
}

const restorePlay: Play<World> = {
  name: "restore",
  summary: "memory off and on, with mappings that come back, against UNMAP and a domain that comes and goes",
  setUp: (stage) => mapped(stage, true),
  tasks: {
    *toggle(w, stage): Step<string> {
      yield* stage.decodeOff(w.device, w.off);
      yield* stage.decodeOn(w.device, w.on);
      return "off on";
    },
    unmap: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_UNMAP, w.unmap),
    domain,
  },
  end(_, stage) {
    if (stage.reached() !== 1) throw new InvariantBroken(`one area was to be mapped again, and ${stage.reached()} are`);
    return "";
  },
};

const replaceDeadPlay: Play<World> = {
  name: "replace-dead",
  summary: "MAP_FILE in the place of a dead area against UNMAP and a domain that comes and goes",
  setUp: (stage) => mapped(stage, false),
  tasks: {
    map: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["EEXIST"]),
    unmap: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_UNMAP, w.unmap, ["EBUSY"]),
    domain,
  },
};

/** Both are of use on a negotiated machine alone. */
export const restore = (): Scenario => scenarioOf(restorePlay);
export const replaceDead = (): Scenario => scenarioOf(replaceDeadPlay);
