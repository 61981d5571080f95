/**
 * A program maps an exported BAR over the private interconnect, while another
 * thread turns the device's memory decode off and on, and a third unmaps.
 *
 * The whole kernel runs, from the ioctl and the config write down to the
 * IOMMU's page table. When the write that turns decode off returns, nothing of
 * the BAR is mapped, and nothing comes to be mapped until the write that turns
 * it on begins; every call answers one of the results that Linux gave under the
 * same load. For the rest see `stage.ts`.
 */
import type { Kernel } from "../../kernel/kernel.ts";
import { IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_UNMAP } from "../../uapi/index.ts";
import type { Scenario } from "../tasks.ts";
import type { Play } from "./stage.ts";
import { BAR, BYTES, FIRST, IOVA, scenarioOf } from "./stage.ts";

export interface MapVsRevokeOptions {
  /** Called with the kernel before the tasks start: to put a part of another make in. */
  readonly alter?: (kernel: Kernel) => void;
  /** Whether the third thread, which unmaps, is there. Default: it is. */
  readonly unmapper?: boolean;
}

interface World {
  readonly iommufd: number;
  readonly device: number;
  readonly map: bigint;
  readonly unmap: bigint;
  readonly off: bigint;
  readonly on: bigint;
}

const play: Play<World> = {
  name: "map-vs-revoke",
  summary: "MAP_FILE of an exported BAR against COMMAND.MEM off and on, and against UNMAP",
  setUp({ calls }) {
    const { sys } = calls.process;
    const iommufd = calls.openIommufd();
    const { fd: device } = calls.openDevice(FIRST, iommufd);
    const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
    calls.attach(device, range.ioas);
    const [off, on] = [calls.command(false), calls.command(true)];
    calls.setMemory(device, true);
    const map = calls.mapFileArgs(calls.exportBar(device, BAR, BYTES), range);
    const unmap = calls.unmapArgs(range);
    calls.must(sys.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, map));
    calls.must(sys.ioctl(iommufd, IOMMU_IOAS_UNMAP, unmap));
    calls.setMemory(device, false);
    calls.setMemory(device, true);
    return { iommufd, device, map, unmap, off, on };
  },
  tasks: {
    map: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["ENODEV"]),
    *toggle(w, stage) {
      yield* stage.decodeOff(w.device, w.off);
      yield* stage.decodeOn(w.device, w.on);
      return "off on";
    },
    unmap: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_UNMAP, w.unmap, ["ENOENT", "EBUSY"]),
  },
  undo({ iommufd, unmap }, { calls: { process } }) {
    process.run(process.sys.ioctl(iommufd, IOMMU_IOAS_UNMAP, unmap));
  },
};

export function mapVsRevoke({ alter, unmapper = true }: MapVsRevokeOptions = {}): Scenario {
  const { map, toggle, unmap } = play.tasks;
  const tasks = { map, toggle, ...(unmapper && { unmap }) } as Play<World>["tasks"];
  return scenarioOf({ ...play, tasks }, (_, { kernel }) => alter?.(kernel));
}
