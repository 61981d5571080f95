/** A peer maps a BAR while another driver asks for it. */

import { BAR, BYTES, FIRST, IOVA, scenarioOf } from "../../../../src/explore/scenarios/stage.ts";
import { InvariantBroken, type Scenario } from "../../../../src/explore/tasks.ts";
import { IOMMU_IOAS_MAP_FILE } from "../../../../src/uapi/index.ts";

export const claim = (): Scenario =>
  scenarioOf({
    name: "claim",
    summary: "MAP_FILE of a BAR against another driver that asks for it",
    setUp({ calls }) {
      const iommufd = calls.openIommufd();
      const { fd } = calls.openDevice(FIRST, iommufd);
      const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
      calls.attach(fd, range.ioas);
      calls.setMemory(fd, true);
      return { iommufd, map: calls.mapFileArgs(calls.exportBar(fd, BAR, BYTES), range) };
    },
    tasks: {
      map: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map),
      *driver(_, stage) {
        const refused = stage.pdev().requestRegion(BAR, "another driver");
        if (refused !== undefined) return refused.name;
        try {
          stage.forbid("memory given to another driver");
          yield* stage.kernel.sched.yield();
          return "owns the BAR";
        } finally {
          stage.allow("memory given to another driver");
          stage.pdev().releaseRegion(BAR);
        }
      },
    },
    end(_, stage) {
      if (stage.pdev().requestRegion(BAR, "another driver") === undefined)
        throw new InvariantBroken("I6: a BAR that is exported belongs to nobody");
      return "";
    },
  });
