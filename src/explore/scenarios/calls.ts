/**
 * System calls of one process, for those who set a world up: whatever fails is
 * a mistake of the set-up, and is thrown.
 *
 * Arguments lie in pages of the process, as a program's would. What a task will
 * ask for later is written beforehand (`page`), so that the task's own call is
 * all that it does.
 */
import type { Process } from "../../kernel/fs/process.ts";
import type { Kernel } from "../../kernel/kernel.ts";
import { vfioOf } from "../../kernel/vfio/vfio_main.ts";
import { Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_HWPT_ALLOC,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IommuDestroy,
  IommuHwptAlloc,
  IommuIoasAlloc,
  IommuIoasCopy,
  IommuIoasMap,
  IommuIoasMapFile,
  IommuIoasUnmap,
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  O_RDWR,
  PROT_READ,
  PROT_WRITE,
  VFIO_DEVICE_ATTACH_IOMMUFD_PT,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_DEVICE_FEATURE,
  VFIO_DEVICE_FEATURE_DMA_BUF,
  VFIO_DEVICE_FEATURE_GET,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VfioDeviceAttachIommufdPt,
  VfioDeviceBindIommufd,
  VfioDeviceFeature,
  VfioDeviceFeatureDmaBuf,
  VfioRegionDmaRange,
} from "../../uapi/index.ts";

/** Where a region begins in a device file. */
export const regionAt = (index: number): bigint => BigInt(index) << 40n;
/** COMMAND in config space. */
export const COMMAND: bigint = regionAt(VFIO_PCI_CONFIG_REGION_INDEX) + 4n;

const FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

/** A range of an address space. */
export interface Range {
  readonly ioas: number;
  readonly iova: bigint;
  readonly length: bigint;
}

/** A device that is open: its descriptor, and what its iommufd calls it. */
export interface BoundDevice {
  readonly fd: number;
  readonly id: number;
}

export class Calls {
  readonly kernel: Kernel;
  readonly process: Process;
  readonly #written: { readonly at: bigint; readonly bytes: Uint8Array; readonly now: Uint8Array }[] = [];

  constructor(process: Process) {
    this.kernel = process.kernel;
    this.process = process;
  }

  /** Runs a call to its end; it must succeed. */
  must<T>(body: Step<T | Errno>): T {
    const r = this.process.run(body);
    if (r instanceof Errno) throw new Error(`${this.process.name} cannot be set up: ${r.name}`);
    return r;
  }

  /** A fresh page of the process with these bytes at its start. */
  page(bytes: Uint8Array): bigint {
    const at = this.memory(4096n);
    this.process.mm.memory.write(at, bytes);
    this.#written.push({ at, bytes: bytes.slice(), now: new Uint8Array(bytes.length) });
    return at;
  }

  /** Puts back what `page` has written, where calls have answered into it. */
  rewrite(): void {
    const { memory } = this.process.mm;
    for (const { at, bytes, now } of this.#written) {
      memory.read(at, now);
      if (!bytes.every((b, i) => now[i] === b)) memory.write(at, bytes);
    }
  }

  memory(length: bigint): bigint {
    return this.must(this.process.sys.mmap(0n, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  }

  /** Makes a call now; `view` then holds what came back. */
  ioctl(fd: number, cmd: number, view: { readonly bytes: Uint8Array }): number {
    const at = this.page(view.bytes);
    const r = this.must(this.process.sys.ioctl(fd, cmd, at));
    this.process.mm.memory.read(at, view.bytes);
    return r;
  }

  openIommufd(): number {
    return this.must(this.process.sys.open("/dev/iommu", O_RDWR));
  }

  /** The node of a function, opened and bound. */
  openDevice(bdf: string, iommufd: number): BoundDevice {
    const fd = this.must(this.process.sys.open(vfioOf(this.kernel).cdevPathOf(bdf) ?? "", O_RDWR));
    const bind = VfioDeviceBindIommufd.alloc({ argsz: VfioDeviceBindIommufd.size, iommufd });
    this.ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, bind);
    return { fd, id: bind.out_devid };
  }

  allocIoas(iommufd: number): number {
    const alloc = IommuIoasAlloc.alloc({ size: IommuIoasAlloc.size });
    this.ioctl(iommufd, IOMMU_IOAS_ALLOC, alloc);
    return alloc.out_ioas_id;
  }

  attach(device: number, pt: number): void {
    const attach = VfioDeviceAttachIommufdPt.alloc({ argsz: VfioDeviceAttachIommufdPt.size, pt_id: pt });
    this.ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach);
  }

  /** Turns memory decode on or off. */
  setMemory(device: number, on: boolean): void {
    this.must(this.process.sys.pwrite(device, this.command(on), 2, COMMAND));
  }

  /** The bytes of such a write. */
  command(on: boolean): bigint {
    return this.page(Uint8Array.of(on ? 2 : 0, 0));
  }

  /** Exports the start of a BAR. */
  exportBar(device: number, bar: number, length: bigint): number {
    return this.must(this.process.sys.ioctl(device, VFIO_DEVICE_FEATURE, this.exportArgs(bar, length)));
  }

  exportArgs(bar: number, length: bigint): bigint {
    const head = VfioDeviceFeature.size;
    const fixed = VfioDeviceFeatureDmaBuf.size;
    const bytes = new Uint8Array(head + fixed + VfioRegionDmaRange.size);
    Object.assign(VfioDeviceFeature.over(bytes), { argsz: bytes.length, flags: VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF });
    Object.assign(VfioDeviceFeatureDmaBuf.over(bytes, head), { open_flags: O_RDWR, region_index: bar, nr_ranges: 1 });
    Object.assign(VfioRegionDmaRange.over(bytes, head + fixed), { offset: 0n, length });
    return this.page(bytes);
  }

  /** VFIO_DEVICE_FEATURE without a payload. */
  featureArgs(flags: number): bigint {
    return this.page(VfioDeviceFeature.alloc({ argsz: VfioDeviceFeature.size, flags }).bytes);
  }

  /** MAP_FILE of a descriptor's first bytes, to a place of the caller's choice. */
  mapFileArgs(fd: number, { ioas, iova, length }: Range): bigint {
    return this.page(IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, flags: FLAGS, ioas_id: ioas, fd, length, iova }).bytes);
  }

  /** MAP of the caller's memory. */
  mapArgs(addr: bigint, { ioas, iova, length }: Range): bigint {
    return this.page(IommuIoasMap.alloc({ size: IommuIoasMap.size, flags: FLAGS, ioas_id: ioas, user_va: addr, length, iova }).bytes);
  }

  unmapArgs({ ioas, iova, length }: Range): bigint {
    return this.page(IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: ioas, iova, length }).bytes);
  }

  /** COPY of a range to another place of the same address space, or of another. */
  copyArgs({ ioas, iova, length }: Range, to: bigint, dst: number = ioas): bigint {
    const copy = { size: IommuIoasCopy.size, flags: FLAGS, dst_ioas_id: dst, src_ioas_id: ioas, length, dst_iova: to, src_iova: iova };
    return this.page(IommuIoasCopy.alloc(copy).bytes);
  }

  /** HWPT_ALLOC of a page table that shows the whole address space. */
  hwptArgs(device: number, ioas: number): bigint {
    return this.page(IommuHwptAlloc.alloc({ size: IommuHwptAlloc.size, dev_id: device, pt_id: ioas }).bytes);
  }

  allocHwpt(iommufd: number, device: number, ioas: number): number {
    const at = this.hwptArgs(device, ioas);
    this.must(this.process.sys.ioctl(iommufd, IOMMU_HWPT_ALLOC, at));
    return this.hwptOf(at);
  }

  /** What a HWPT_ALLOC of these arguments has answered. */
  hwptOf(at: bigint): number {
    const bytes = new Uint8Array(IommuHwptAlloc.size);
    this.process.mm.memory.read(at, bytes);
    return IommuHwptAlloc.over(bytes).out_hwpt_id;
  }

  destroyArgs(id: number): bigint {
    return this.page(IommuDestroy.alloc({ size: IommuDestroy.size, id }).bytes);
  }
}
