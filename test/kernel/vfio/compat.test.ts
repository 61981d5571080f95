/** An iommufd in the place of a container: drivers/iommu/iommufd/vfio_compat.c, and groups that are given one. */
import { describe, expect, test } from "vitest";
import { EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOTTY, EOPNOTSUPP, Errno } from "../../../src/lib/errno.ts";
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import {
  IOMMU_VFIO_IOAS,
  IOMMU_VFIO_IOAS_CLEAR,
  IOMMU_VFIO_IOAS_GET,
  IOMMU_VFIO_IOAS_SET,
  IommuVfioIoas,
} from "../../../src/uapi/iommufd.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { TINY } from "./bench.ts";
import { GroupBench } from "./group_bench.ts";

class CompatBench extends GroupBench {
  constructor() {
    super();
    this.container = this.iommufd;
  }

  vfioIoas(op: number, id = 0, reserved = 0): number | Errno {
    const cmd = IommuVfioIoas.alloc({ size: IommuVfioIoas.size, op, ioas_id: id, __reserved: reserved });
    const r = this.ioctl(this.iommufd, IOMMU_VFIO_IOAS, cmd);
    return r instanceof Errno ? r : cmd.ioas_id;
  }

  /** GET_INFO with that much room: the struct, and what came. */
  info(argsz: number): { info: ReturnType<typeof V.VfioIommuType1Info.over>; view: DataView } {
    const bytes = new Uint8Array(512);
    const info = V.VfioIommuType1Info.over(bytes);
    info.argsz = argsz;
    expect(this.ioctl(this.iommufd, V.VFIO_IOMMU_GET_INFO, { bytes })).toBe(0);
    return { info, view: new DataView(bytes.buffer) };
  }
}

describe("without a compatibility IOAS", () => {
  test("version and extensions are answered, the rest is ENODEV once its own numbers are right", () => {
    const b = new CompatBench();
    expect(b.run(b.process.sys.ioctl(b.iommufd, V.VFIO_GET_API_VERSION, 0n))).toBe(V.VFIO_API_VERSION);
    const asked = [V.VFIO_TYPE1_IOMMU, V.VFIO_TYPE1v2_IOMMU, V.VFIO_UNMAP_ALL, V.VFIO_NOIOMMU_IOMMU, V.VFIO_UPDATE_VADDR];
    expect(asked.map((x) => b.extension(x))).toEqual([1, 1, 1, 1, 0]);
    expect(b.extension(V.VFIO_DMA_CC_IOMMU)).toBe(ENODEV);
    expect(b.setIommu(9)).toBe(EINVAL);
    expect(b.setIommu()).toBe(ENODEV);
    expect(b.mapDma(0x1000n, 0x1000n, 0x1000n, 4)).toBe(EINVAL);
    expect(b.mapDma(0x1000n, 0x1000n, 0x1000n)).toBe(ENODEV);
    expect(b.unmapDma(0x1000n, 0x1000n, V.VFIO_DMA_UNMAP_FLAG_VADDR)).toBe(EINVAL);
    expect(b.unmapDma(0x1000n, 0x1000n)).toBe(ENODEV);
    expect(b.ioctl(b.iommufd, V.VFIO_IOMMU_GET_INFO, V.VfioIommuType1Info.alloc({ argsz: 15 }))).toBe(EINVAL);
    expect(b.ioctl(b.iommufd, V.VFIO_IOMMU_GET_INFO, V.VfioIommuType1Info.alloc({ argsz: 24 }))).toBe(ENODEV);
    expect(b.run(b.process.sys.ioctl(b.iommufd, V.VFIO_IOMMU_MAP_DMA, 0x10n))).toBe(EFAULT);
    expect(b.ioctl(b.iommufd, V.VFIO_IOMMU_DIRTY_PAGES, V.VfioIommuType1DirtyBitmap.alloc())).toBe(ENOTTY);
  });

  test("VFIO_IOAS names one, asks for it and forgets it (vfio_ioas)", () => {
    const b = new CompatBench();
    const ioas = b.ioas();
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_GET)).toBe(ENODEV);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_SET, 99)).toBe(ENOENT);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_SET, ioas)).toBe(ioas);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_GET)).toBe(ioas);
    expect(b.vfioIoas(7)).toBe(EOPNOTSUPP);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_GET, 0, 1)).toBe(EOPNOTSUPP);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_CLEAR)).toBe(0);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_GET)).toBe(ENODEV);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_SET, ioas)).toBe(ioas);
    expect(b.destroy(ioas)).toBe(0);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_GET)).toBe(ENODEV);
  });
});

describe("a group that is given an iommufd", () => {
  test("makes an IOAS if there is none, and opens its devices on it", () => {
    const b = new CompatBench();
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    expect(b.groupFlags(g)).toBe(V.VFIO_GROUP_FLAGS_VIABLE | V.VFIO_GROUP_FLAGS_CONTAINER_SET);
    expect(b.setContainer(g)).toBe(EINVAL);
    const ioas = b.vfioIoas(IOMMU_VFIO_IOAS_GET) as number;
    expect(b.setIommu()).toBe(0);
    const d = b.getDevice(g) as number;
    expect(b.configRead(d, 0, 2)).toBe(TINY.vendor);
    const at = b.memory(0x2000n);
    expect(b.mapDma(0x10000n, at, 0x2000n)).toBe(0);
    expect(b.translate(0x11000n)).toBeDefined();
    expect(b.extension(V.VFIO_DMA_CC_IOMMU)).toBe(0);
    expect(b.destroy(ioas)).toBe(EBUSY);
    expect(b.unmapDma(0n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL)).toBe(0x2000n);
    b.close(d);
    expect(b.unsetContainer(g)).toBe(0);
    expect(b.unsetContainer(g)).toBe(EINVAL);
    expect(b.destroy(ioas)).toBe(0);
  });

  test("two opens of a device share the binding, which the last close undoes", () => {
    const b = new CompatBench();
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    const [one, two] = [b.getDevice(g) as number, b.getDevice(g) as number];
    b.close(one);
    expect(b.configRead(two, 0, 2)).toBe(TINY.vendor);
    b.close(two);
    expect(b.core().vdev.openCount).toBe(0);
    expect(b.pdev().iommuGroup?.dmaOwnerClaimed).toBe(false);
  });

  test("without an IOAS left its devices do not open, and stay closed", () => {
    const b = new CompatBench();
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    expect(b.vfioIoas(IOMMU_VFIO_IOAS_CLEAR)).toBe(0);
    expect(b.getDevice(g)).toBe(ENODEV);
    expect(b.core().vdev.openCount).toBe(0);
  });

  test("device memory cannot be mapped, as anywhere in iommufd (vfio_dma_mapping_mmio_test)", () => {
    const b = new CompatBench();
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    const d = b.getDevice(g) as number;
    expect(b.configWrite(d, 4, 2, 6)).toBe(2);
    const bar = b.ok(b.process.sys.mmap(0n, 0x1000n, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0n));
    expect(b.mapDma(0x10000n, bar, 0x1000n)).toBe(EFAULT);
  });
});

describe("unmapping", () => {
  const ready = (kind: number): { b: CompatBench; at: bigint } => {
    const b = new CompatBench();
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    expect(b.setIommu(kind)).toBe(0);
    expect(b.getDevice(g)).toBeGreaterThan(0);
    return { b, at: b.memory(0x4000n) };
  };

  test("version 2 takes whole mappings", () => {
    const { b, at } = ready(V.VFIO_TYPE1v2_IOMMU);
    expect(b.mapDma(0x10000n, at, 0x4000n)).toBe(0);
    expect(b.unmapDma(0x11000n, 0x1000n)).toBe(ENOENT);
    expect(b.unmapDma(0x10000n, 0x4000n)).toBe(0x4000n);
    expect(b.unmapDma(0x10000n, 0x4000n)).toBe(0n);
    expect(b.unmapDma(0x1000n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL)).toBe(EINVAL);
  });

  test("version 1 cuts them", () => {
    const { b, at } = ready(V.VFIO_TYPE1_IOMMU);
    expect(b.mapDma(0x10000n, at, 0x4000n)).toBe(0);
    expect(b.unmapDma(0x11000n, 0x1000n)).toBe(0x1000n);
    expect(b.translate(0x11000n)).toBeUndefined();
    expect(b.translate(0x10000n)).toBeDefined();
    expect(b.unmapDma(0x10000n, 0x4000n)).toBe(0x3000n);
    expect(b.kernel.frames.pinned).toBe(0);
  });
});

test("GET_INFO says how much there is, and gives it whole, or what fits (get_info)", () => {
  const b = new CompatBench();
  const g = b.openGroup();
  expect(b.setContainer(g)).toBe(0);
  expect(b.getDevice(g)).toBeGreaterThan(0);
  const all = 24 + 16 + 16 + 2 * 16;
  const little = b.info(24);
  expect([little.info.argsz, little.info.cap_offset]).toEqual([all, 0]);
  expect(little.view.getUint16(24, true)).toBe(0);
  const part = b.info(all - 16);
  expect([part.info.argsz, part.info.cap_offset]).toEqual([all, 0]);
  expect(part.view.getUint16(24, true)).toBe(V.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
  expect(part.view.getUint32(32, true)).toBe(0xffff_ffff);
  expect(part.view.getUint16(40, true)).toBe(0);
  const { info, view } = b.info(all);
  expect([info.argsz, info.cap_offset]).toEqual([all, 24]);
  expect(info.iova_pgsizes & 0x1fffn).toBe(0x1000n);
  expect([view.getUint32(28, true), view.getUint16(40, true), view.getUint32(44, true)]).toEqual([
    40,
    V.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    0,
  ]);
  expect(view.getUint32(48, true)).toBe(2);
  expect([56, 64, 72, 80].map((i) => view.getBigUint64(i, true))).toEqual([0n, 0xfedfffffn, 0xfef00000n, (1n << 48n) - 1n]);
});
