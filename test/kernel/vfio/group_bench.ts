/** Groups and containers as a program uses them, on the bench. */
import { expect } from "vitest";
import { Errno } from "../../../src/lib/errno.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, O_RDWR, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, type BenchOptions } from "./bench.ts";

const RW = V.VFIO_DMA_MAP_FLAG_READ | V.VFIO_DMA_MAP_FLAG_WRITE;

export class GroupBench extends Bench {
  /** What containers are meant by calls that name none. */
  container: number;

  constructor(options: BenchOptions = {}) {
    super(options);
    this.container = this.ok(this.process.sys.open("/dev/vfio/vfio", O_RDWR));
  }

  groupPath(bdf?: string): string {
    return `/dev/vfio/${this.pdev(bdf).iommuGroup?.id}`;
  }

  openGroup(bdf?: string): number {
    return this.ok(this.process.sys.open(this.groupPath(bdf), O_RDWR));
  }

  setContainer(group: number, container: number = this.container): number | Errno {
    const fd = new Uint8Array(4);
    new DataView(fd.buffer).setInt32(0, container, true);
    return this.ioctl(group, V.VFIO_GROUP_SET_CONTAINER, { bytes: fd });
  }

  unsetContainer(group: number): number | Errno {
    return this.ioctl(group, V.VFIO_GROUP_UNSET_CONTAINER);
  }

  setIommu(kind: number = V.VFIO_TYPE1v2_IOMMU, container: number = this.container): number | Errno {
    return this.run(this.process.sys.ioctl(container, V.VFIO_SET_IOMMU, BigInt(kind)));
  }

  extension(what: number): number | Errno {
    return this.run(this.process.sys.ioctl(this.container, V.VFIO_CHECK_EXTENSION, BigInt(what)));
  }

  getDevice(group: number, name: string = this.bdfs[0] as string): number | Errno {
    return this.ioctl(group, V.VFIO_GROUP_GET_DEVICE_FD, { bytes: new TextEncoder().encode(`${name}\0`) });
  }

  groupFlags(group: number): number | Errno {
    const s = V.VfioGroupStatus.alloc({ argsz: V.VfioGroupStatus.size });
    const r = this.ioctl(group, V.VFIO_GROUP_GET_STATUS, s);
    return r instanceof Errno ? r : s.flags;
  }

  /** A group in the container, with an IOMMU; the group's descriptor. */
  ready(kind?: number, bdf?: string): number {
    const g = this.openGroup(bdf);
    expect(this.setContainer(g)).toBe(0);
    expect(this.setIommu(kind)).toBe(0);
    return g;
  }

  /** Private memory of the process. */
  memory(length: bigint): bigint {
    return this.ok(this.process.sys.mmap(0n, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  }

  mapDma(iova: bigint, vaddr: bigint, size: bigint, flags: number = RW): number | Errno {
    const m = V.VfioIommuType1DmaMap.alloc({ argsz: V.VfioIommuType1DmaMap.size, flags, vaddr, iova, size });
    return this.ioctl(this.container, V.VFIO_IOMMU_MAP_DMA, m);
  }

  /** Bytes unmapped. */
  unmapDma(iova: bigint, size: bigint, flags = 0): bigint | Errno {
    const u = V.VfioIommuType1DmaUnmap.alloc({ argsz: V.VfioIommuType1DmaUnmap.size, flags, iova, size });
    const r = this.ioctl(this.container, V.VFIO_IOMMU_UNMAP_DMA, u);
    return r instanceof Errno ? r : u.size;
  }

  /** Where the function's DMA to `iova` goes. */
  translate(iova: bigint, bdf?: string): bigint | undefined {
    return this.pdev(bdf).iommuGroup?.domain?.iovaToPhys(iova);
  }
}
