/** A kernel with iommufd, an IOMMU, devices to bind, a BAR to export, and the commands as one-liners. */
import { Device } from "../../../src/kernel/device.ts";
import type { DmaBuf } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { dmaBufPut } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { exportPrivateMap } from "../../../src/kernel/dma_buf/interconnect.ts";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { openLedger } from "../../../src/kernel/iommu/ledger.ts";
import { checkInvariants } from "../../../src/kernel/iommufd/check.ts";
import type { IommufdCtx } from "../../../src/kernel/iommufd/ctx.ts";
import {
  type IommufdDevice,
  iommufdDeviceAttach,
  iommufdDeviceBind,
  iommufdDeviceDetach,
  iommufdDeviceReplace,
  iommufdDeviceUnbind,
} from "../../../src/kernel/iommufd/device.ts";
import { iommufdInit } from "../../../src/kernel/iommufd/main.ts";
import { Errno } from "../../../src/lib/errno.ts";
import {
  IOMMU_DESTROY,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  IommuDestroy,
  IommuIoasAlloc,
  IommuIoasCopy,
  IommuIoasIovaRanges,
  IommuIoasMap,
  IommuIoasMapFile,
  IommuIoasUnmap,
  IommuIovaRange,
  O_RDWR,
  type StructView,
} from "../../../src/uapi/index.ts";
import { ok, Rig } from "../dma_buf/support.ts";
import { FakeDevice } from "../vfio/dmabuf_support.ts";

export const RW: number = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
export const FIXED: number = IOMMU_IOAS_MAP_FIXED_IOVA;
export { ok };

export type MapFileInit = NonNullable<Parameters<typeof IommuIoasMapFile.alloc>[0]>;

export class IommufdRig extends Rig {
  /** The exporter; its BAR 2 can be exported. */
  readonly vfio: FakeDevice;
  /** A descriptor of /dev/iommu. */
  readonly fd: number;
  readonly #scratch: bigint;
  #nextBus = 2;

  constructor(unit: IommuDescription = { kind: "intel-legacy", snoopControl: true }) {
    super();
    openLedger(this.kernel);
    this.kernel.iommu.addUnit(unit);
    iommufdInit(this.kernel);
    this.kernel.modules.load("vfio_pci_core");
    exportPrivateMap(this.kernel);
    this.vfio = new FakeDevice(this);
    this.fd = ok(this.run(this.process.sys.open("/dev/iommu", O_RDWR)));
    this.#scratch = this.user(4096);
  }

  get ctx(): IommufdCtx {
    return ok(this.process.files.get(this.fd)).privateData as IommufdCtx;
  }

  /** Runs a command on a structure in the process's memory; what the kernel wrote comes back into `view`. */
  ioctl(cmd: number, view: StructView, fd: number = this.fd): Errno | 0 {
    this.process.mm.memory.write(this.#scratch, view.bytes);
    const r = this.run(this.process.sys.ioctl(fd, cmd, this.#scratch));
    this.process.mm.memory.read(this.#scratch, view.bytes);
    return r instanceof Errno ? r : 0;
  }

  allocIoas(): number {
    const cmd = IommuIoasAlloc.alloc({ size: IommuIoasAlloc.size });
    ok(this.ioctl(IOMMU_IOAS_ALLOC, cmd));
    return cmd.out_ioas_id;
  }

  destroy(id: number): Errno | 0 {
    return this.ioctl(IOMMU_DESTROY, IommuDestroy.alloc({ size: IommuDestroy.size, id }));
  }

  /** The IOVA, or why not. Readable and writable unless `init` says otherwise. */
  mapFile(init: MapFileInit): bigint | Errno {
    const cmd = IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, flags: RW, ...init });
    const r = this.ioctl(IOMMU_IOAS_MAP_FILE, cmd);
    return r instanceof Errno ? r : cmd.iova;
  }

  map(init: NonNullable<Parameters<typeof IommuIoasMap.alloc>[0]>): bigint | Errno {
    const cmd = IommuIoasMap.alloc({ size: IommuIoasMap.size, flags: RW, ...init });
    const r = this.ioctl(IOMMU_IOAS_MAP, cmd);
    return r instanceof Errno ? r : cmd.iova;
  }

  copy(init: NonNullable<Parameters<typeof IommuIoasCopy.alloc>[0]>): bigint | Errno {
    const cmd = IommuIoasCopy.alloc({ size: IommuIoasCopy.size, flags: RW, ...init });
    const r = this.ioctl(IOMMU_IOAS_COPY, cmd);
    return r instanceof Errno ? r : cmd.dst_iova;
  }

  /** Bytes unmapped, or why not. */
  unmap(ioas: number, iova: bigint, length: bigint): bigint | Errno {
    const cmd = IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: ioas, iova, length });
    const r = this.ioctl(IOMMU_IOAS_UNMAP, cmd);
    return r instanceof Errno ? r : cmd.length;
  }

  /** Usable ranges and alignment. */
  ranges(ioas: number): { alignment: bigint; ranges: [bigint, bigint][] } {
    const at = this.user(4096);
    const cmd = IommuIoasIovaRanges.alloc({ size: IommuIoasIovaRanges.size, ioas_id: ioas, num_iovas: 8, allowed_iovas: at });
    ok(this.ioctl(IOMMU_IOAS_IOVA_RANGES, cmd));
    const bytes = this.peek(at, 4096);
    const ranges: [bigint, bigint][] = [];
    for (let i = 0; i < cmd.num_iovas; i++) {
      const r = IommuIovaRange.over(bytes, i * IommuIovaRange.size);
      ranges.push([r.start, r.last]);
    }
    return { alignment: cmd.out_iova_alignment, ranges };
  }

  /** A device behind a unit, the first by default, in a group of its own. */
  device({ unit = 0 }: { unit?: number } = {}): Device {
    const bus = this.#nextBus++;
    const dev = new Device(`0000:0${bus}:00.0`, "pci", bus << 8);
    const behind = this.kernel.iommu.units[unit];
    const e = this.kernel.iommu.addDevice(dev, undefined, behind === undefined ? {} : { unit: behind });
    if (e !== undefined) throw new Error(e.name);
    return dev;
  }

  bind(dev: Device = this.device()): IommufdDevice {
    return ok(this.run(iommufdDeviceBind(this.ctx, dev))).idev;
  }

  attach(idev: IommufdDevice, pt: number): number | Errno {
    return this.run(iommufdDeviceAttach(idev, 0, pt));
  }

  replace(idev: IommufdDevice, pt: number): number | Errno {
    return this.run(iommufdDeviceReplace(idev, 0, pt));
  }

  detach(idev: IommufdDevice): void {
    this.run(iommufdDeviceDetach(idev, 0));
  }

  unbind(idev: IommufdDevice): void {
    this.run(iommufdDeviceUnbind(idev));
  }

  /** A bound device attached to the IOAS, so that it has a domain. */
  attached(ioas: number): IommufdDevice {
    const idev = this.bind();
    ok(this.attach(idev, ioas));
    return idev;
  }

  memfd(length: number): number {
    const fd = ok(this.run(this.process.sys.memfdCreate("test", 0)));
    ok(this.run(this.process.sys.ftruncate(fd, BigInt(length))) ?? 0);
    return fd;
  }

  /** A dma-buf of one range of BAR 2. */
  dmabuf(length = 0x4000n, offset = 0n): number {
    return this.vfio.export([{ offset, length }]);
  }

  /** What the exporter does when memory decode goes off, or comes back. */
  revoke(revoked: boolean): void {
    this.run(this.vfio.move(revoked));
  }

  /** Uses a buffer for a moment. */
  withBuffer<T>(fd: number, f: (buf: DmaBuf) => T): T {
    const buf = this.vfio.buffer(fd);
    try {
      return f(buf);
    } finally {
      this.call(() => dmaBufPut(buf));
    }
  }

  check(): void {
    checkInvariants(this.kernel);
  }

  close(fd: number): void {
    ok(this.run(this.process.sys.close(fd)) ?? 0);
  }
}
