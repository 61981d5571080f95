/**
 * How long things live: an export that finds no free descriptor, the buffer's
 * last descriptor, an importer that comes and goes, and the last close of the
 * device, which revokes for ever and gives the buffers up.
 *
 * Beside what every scenario checks: a registration is put once, by the release
 * of a buffer or by the cleanup; a buffer with an attachment has a reference,
 * so that no revoke passes it over; after the close the exporter's side of a
 * buffer knows no device.
 *
 * Finds: a failed export that is undone twice (H1), a look at a device that may
 * be gone (H19, H20), a detach after the last reference (N15).
 */

import { dmaBufStats } from "../../kernel/dma_buf/buffer.ts";
import type { DmaBuf } from "../../kernel/dma_buf/dma_buf.ts";
import type { File } from "../../kernel/fs/file.ts";
import type { VfioPciCoreDevice } from "../../kernel/vfio/pci/vfio_pci_core.ts";
import type { VfioPciDmaBuf } from "../../kernel/vfio/pci/vfio_pci_dmabuf.ts";
import type { Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_UNMAP, VFIO_DEVICE_FEATURE } from "../../uapi/index.ts";
import { InvariantBroken, type Scenario } from "../tasks.ts";
import { type Alter, BAR, BYTES, FIRST, IOVA, type Play, SECOND, type Stage, scenarioOf } from "./stage.ts";

export interface BufferLifetimeWorld {
  readonly iommufd: number;
  readonly device: number;
  readonly dmabuf: number;
  readonly vdev: VfioPciCoreDevice;
  /** Of the device. */
  readonly file: File;
  readonly buffer: VfioPciDmaBuf;
  readonly exported: bigint;
  readonly map: bigint;
  readonly unmap: bigint;
}

function* fileOf(stage: Stage, fd: number): Step<File | Errno> {
  return stage.calls.process.files.get(fd);
}

function setUp(stage: Stage): BufferLifetimeWorld {
  const { calls } = stage;
  const iommufd = calls.openIommufd();
  const { fd: device } = calls.openDevice(FIRST, iommufd);
  const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
  calls.attach(calls.openDevice(SECOND, iommufd).fd, range.ioas);
  calls.setMemory(device, true);
  const dmabuf = calls.exportBar(device, BAR, BYTES);
  const world = {
    iommufd,
    device,
    dmabuf,
    vdev: stage.vdev(),
    file: calls.must(fileOf(stage, device)),
    buffer: stage.buffer(),
    exported: calls.exportArgs(BAR, BYTES),
    map: calls.mapFileArgs(dmabuf, range),
    unmap: calls.unmapArgs(range),
  };
  // No descriptor is left from here on.
  calls.process.rlimits.nofile = dmabuf + 1;
  stage.watchFiles([device, dmabuf]);
  return world;
}

/** Attachments hold a reference to their buffer's file. */
function checkHeld(buffers: Iterable<DmaBuf>): void {
  for (const b of buffers) {
    if (b.attachments.length > 0 && b.file.count.count === 0) throw new InvariantBroken("I4: a buffer is attached and has no reference");
  }
}

const TASKS = {
  export: (w, stage) => stage.ioctl(w.device, VFIO_DEVICE_FEATURE, w.exported, ["EMFILE", "EBADF", "ENODEV"]),
  *import(w, stage): Step<string> {
    const mapped = yield* stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["ENODEV", "EBADF"]);
    checkHeld(dmaBufStats(stage.kernel).buffers);
    if (mapped !== "0") return mapped;
    return `mapped ${yield* stage.ioctl(w.iommufd, IOMMU_IOAS_UNMAP, w.unmap)}`;
  },
  put: (w, stage) => stage.answered(stage.calls.process.sys.close(w.dmabuf)),
  *unbind(_, stage): Step<string> {
    return yield* stage.answered(stage.kernel.pci.unbind(FIRST));
  },
  *close(w, stage): Step<string> {
    return yield* stage.answered(stage.calls.process.sys.close(w.device));
  },
} satisfies Play<BufferLifetimeWorld>["tasks"];

/** `unbind` takes the driver from the function, and waits until nobody holds it. */
export type BufferLifetimeTask = "export" | "import" | "put" | "close" | "unbind";

const DEFAULT: readonly BufferLifetimeTask[] = ["export", "import", "put", "close"];

export interface BufferLifetimeOptions {
  /** In this order; default: all but `unbind`. */
  readonly tasks?: readonly BufferLifetimeTask[];
  /** Tasks of the caller's own. */
  readonly more?: Play<BufferLifetimeWorld>["tasks"];
  readonly alter?: Alter<BufferLifetimeWorld>;
}

export function bufferLifetime({ tasks, more, alter }: BufferLifetimeOptions = {}): Scenario {
  const chosen = (tasks ?? DEFAULT).map((name) => [name, TASKS[name]] as const);
  return scenarioOf(
    {
      name: "buffer-lifetime",
      summary: "an export that fails, an importer, the last descriptor of the buffer and the last close of the device",
      functions: 2,
      setUp,
      tasks: { ...Object.fromEntries(chosen), ...more },
      end({ vdev, file }, stage) {
        checkHeld(dmaBufStats(stage.kernel).buffers);
        const open = file.count.count > 0 ? 1 : 0;
        const bound = stage.pdev().driverData === undefined ? 0 : 1;
        const { registrations } = vdev.vdev;
        if (registrations !== bound + open + vdev.dmabufs.length)
          throw new InvariantBroken(`I4: ${registrations} registrations for ${open} files and ${vdev.dmabufs.length} buffers`);
        return `${open} open`;
      },
    },
    alter,
  );
}
