/** MAP_FILE of a descriptor, which another thread makes refer to a buffer meanwhile. */
import { BAR, BYTES, FIRST, IOVA, scenarioOf } from "../../../../src/explore/scenarios/stage.ts";
import type { Scenario } from "../../../../src/explore/tasks.ts";
import { IommufdIoas } from "../../../../src/kernel/iommufd/ioas.ts";
import { iommufdModule } from "../../../../src/kernel/iommufd/module.ts";
import { IOMMU_IOAS_MAP_FILE } from "../../../../src/uapi/index.ts";

export const lookup = (): Scenario =>
  scenarioOf({
    name: "lookup",
    summary: "MAP_FILE of a memory file against dup2 of a buffer over its descriptor",
    setUp(stage) {
      const { calls } = stage;
      const { sys } = calls.process;
      const iommufd = calls.openIommufd();
      const { fd: device } = calls.openDevice(FIRST, iommufd);
      calls.setMemory(device, true);
      const dmabuf = calls.exportBar(device, BAR, BYTES);
      const memfd = calls.must(sys.memfdCreate("memory", 0));
      calls.must(sys.ftruncate(memfd, BYTES));
      stage.watchFiles([]);
      return { iommufd, dmabuf, memfd, map: calls.mapFileArgs(memfd, { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES }) };
    },
    tasks: {
      *map(w, stage) {
        const r = yield* stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["ENODEV"]);
        for (const ctx of iommufdModule(stage.kernel).contexts) {
          for (const o of ctx.objects) {
            if (!(o instanceof IommufdIoas)) continue;
            for (const { pages } of o.iopt.areas) {
              return `${r} ${pages?.type}${pages?.type === "file" && pages.file?.ops.name === "dma-buf" ? " of a buffer" : ""}`;
            }
          }
        }
        return r;
      },
      dup: (w, stage) => stage.answered(stage.calls.process.sys.dup2(w.dmabuf, w.memfd)),
    },
  });
