/** Two threads of a process begin to look at a udmabuf with the CPU. */

import { scenarioOf } from "../../../../src/explore/scenarios/stage.ts";
import { InvariantBroken, type Scenario } from "../../../../src/explore/tasks.ts";
import { dmaBufStats } from "../../../../src/kernel/dma_buf/buffer.ts";
import type { Step } from "../../../../src/sched/task.ts";
import {
  DMA_BUF_IOCTL_SYNC,
  DMA_BUF_SYNC_READ,
  DmaBufSync,
  F_ADD_SEALS,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  O_RDWR,
  UDMABUF_CREATE,
  UdmabufCreate,
} from "../../../../src/uapi/index.ts";

interface World {
  readonly fd: number;
  readonly begin: bigint;
  /** Tables that were made for the CPU. */
  built: number;
}

const look = (w: World, stage: { ioctl(fd: number, cmd: number, args: bigint): Step<string> }): Step<string> =>
  stage.ioctl(w.fd, DMA_BUF_IOCTL_SYNC, w.begin);

export const cpuAccess = (): Scenario =>
  scenarioOf<World>({
    name: "cpu-access",
    summary: "DMA_BUF_IOCTL_SYNC of a udmabuf by two threads",
    setUp({ calls, kernel, recorder }) {
      const { sys } = calls.process;
      const memfd = calls.must(sys.memfdCreate("memory", MFD_ALLOW_SEALING));
      calls.must(sys.ftruncate(memfd, 0x1000n));
      calls.must(sys.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
      const device = calls.must(sys.open("/dev/udmabuf", O_RDWR));
      const fd = calls.ioctl(device, UDMABUF_CREATE, UdmabufCreate.alloc({ memfd, size: 0x1000n }));
      const world = { fd, begin: calls.page(DmaBufSync.alloc({ flags: DMA_BUF_SYNC_READ }).bytes), built: 0 };
      const [buffer] = dmaBufStats(kernel).buffers;
      const u = buffer?.priv as { cpuSgt: unknown };
      recorder.watch(u, "cpuSgt");
      const watched = Object.getOwnPropertyDescriptor(u, "cpuSgt") as PropertyDescriptor;
      Object.defineProperty(u, "cpuSgt", {
        ...watched,
        set(v) {
          world.built++;
          watched.set?.call(u, v);
        },
      });
      return world;
    },
    tasks: { first: look, second: look },
    end({ built }) {
      if (built !== 1) throw new InvariantBroken("the table for the CPU is built twice, and the first is lost");
      return "";
    },
  });
