/** A device behind VFIO: /dev/vfio/devices/vfioN. */
import * as u from "../uapi/index.ts";
import { DmaBufHandle } from "./dma_buf.ts";
import { Handle, must } from "./handle.ts";
import type { Hwpt, Ioas, Iommufd } from "./iommufd.ts";
import type { Mapping, Transport } from "./transport.ts";

export interface RegionInfo {
  readonly index: number;
  /** VFIO_REGION_INFO_FLAG_*. */
  readonly flags: number;
  /** Bytes; 0 when the region is not there. */
  readonly size: bigint;
  /** Where it starts in the device file, bytes. */
  readonly offset: bigint;
}

export interface ExportOptions {
  /** BAR number, 0 … 5. */
  readonly region: number;
  /** Pieces of the BAR, bytes, page aligned. Only a dma-buf of one range can be mapped by iommufd. */
  readonly ranges: readonly { readonly offset: bigint; readonly length: bigint }[];
  /** O_* of the new descriptor; default O_RDWR | O_CLOEXEC. */
  readonly openFlags?: number;
}

export class VfioDevice extends Handle {
  /** `0000:01:00.0`. */
  readonly address: string;
  #id: number | undefined = undefined;

  constructor(os: Transport, fd: number, address: string) {
    super(os, fd);
    this.address = address;
  }

  /** The id iommufd knows it by. Throws `RangeError` before `bind`. */
  get id(): number {
    if (this.#id === undefined) throw new RangeError(`${this.address} is not bound: call bind() first`);
    return this.#id;
  }

  /** Hands the device's DMA to an iommufd. From here on the device answers. */
  bind(iommufd: Iommufd): this {
    const a = u.VfioDeviceBindIommufd.alloc({ argsz: u.VfioDeviceBindIommufd.size, iommufd: iommufd.fd });
    this.call("VFIO_DEVICE_BIND_IOMMUFD", u.VFIO_DEVICE_BIND_IOMMUFD, a.bytes, { device: this.address, iommufd: iommufd.fd });
    this.#id = a.out_devid;
    return this;
  }

  /** Attaches to (or moves to) an IOAS or HWPT. Returns the id of the page table in use. */
  attach(to: Ioas | Hwpt): number {
    const a = u.VfioDeviceAttachIommufdPt.alloc({ argsz: u.VfioDeviceAttachIommufdPt.size, pt_id: to.id });
    this.call("VFIO_DEVICE_ATTACH_IOMMUFD_PT", u.VFIO_DEVICE_ATTACH_IOMMUFD_PT, a.bytes, { device: this.address, pt_id: to.id });
    return a.pt_id;
  }

  /** No translation from here on: every DMA faults. */
  detach(): void {
    const a = u.VfioDeviceDetachIommufdPt.alloc({ argsz: u.VfioDeviceDetachIommufdPt.size });
    this.call("VFIO_DEVICE_DETACH_IOMMUFD_PT", u.VFIO_DEVICE_DETACH_IOMMUFD_PT, a.bytes, { device: this.address });
  }

  info(): { readonly flags: number; readonly regions: number; readonly irqs: number } {
    const a = u.VfioDeviceInfo.alloc({ argsz: u.VfioDeviceInfo.size });
    this.call("VFIO_DEVICE_GET_INFO", u.VFIO_DEVICE_GET_INFO, a.bytes, { device: this.address });
    return { flags: a.flags, regions: a.num_regions, irqs: a.num_irqs };
  }

  regionInfo(index: number): RegionInfo {
    const a = u.VfioRegionInfo.alloc({ argsz: u.VfioRegionInfo.size, index });
    this.call("VFIO_DEVICE_GET_REGION_INFO", u.VFIO_DEVICE_GET_REGION_INFO, a.bytes, { device: this.address, index });
    return { index, flags: a.flags, size: a.size, offset: a.offset };
  }

  /** A region as memory to read and write by system call. */
  region(index: number): Region {
    return new Region(this, this.regionInfo(index));
  }

  /** Configuration space. */
  get config(): Region {
    return this.region(u.VFIO_PCI_CONFIG_REGION_INDEX);
  }

  /** Resets the function (VFIO_DEVICE_RESET): exported memory is revoked before, usable again after. */
  reset(): void {
    must(this.os.ioctl(this.fd, u.VFIO_DEVICE_RESET, 0n), "VFIO_DEVICE_RESET", { device: this.address });
  }

  /** Turns memory decoding on or off through COMMAND. */
  setMemoryEnabled(on: boolean): void {
    this.#command(u.PCI_COMMAND_MEMORY, on);
  }

  /** Lets the device master the bus, that is, do DMA. */
  setBusMaster(on: boolean): void {
    this.#command(u.PCI_COMMAND_MASTER, on);
  }

  #command(bit: number, on: boolean): void {
    const config = this.config;
    const old = config.read16(u.PCI_COMMAND);
    config.write16(u.PCI_COMMAND, on ? old | bit : old & ~bit);
  }

  /** Exports pieces of a BAR as a dma-buf (VFIO_DEVICE_FEATURE_DMA_BUF). */
  exportDmaBuf(options: ExportOptions): DmaBufHandle {
    const { region, ranges, openFlags = u.O_RDWR | u.O_CLOEXEC } = options;
    const head = u.VfioDeviceFeature.size;
    const fixed = u.VfioDeviceFeatureDmaBuf.size;
    const bytes = new Uint8Array(head + fixed + ranges.length * u.VfioRegionDmaRange.size);
    const h = u.VfioDeviceFeature.over(bytes);
    h.argsz = bytes.length;
    h.flags = u.VFIO_DEVICE_FEATURE_GET | u.VFIO_DEVICE_FEATURE_DMA_BUF;
    const b = u.VfioDeviceFeatureDmaBuf.over(bytes, head);
    b.region_index = region;
    b.open_flags = openFlags;
    b.nr_ranges = ranges.length;
    ranges.forEach((range, i) => {
      const r = u.VfioRegionDmaRange.over(bytes, head + fixed + i * u.VfioRegionDmaRange.size);
      r.offset = range.offset;
      r.length = range.length;
    });
    const fd = this.call("VFIO_DEVICE_FEATURE_DMA_BUF", u.VFIO_DEVICE_FEATURE, bytes, { device: this.address, region, ranges });
    return new DmaBufHandle(this.os, fd);
  }

  /** Lets the device sleep (VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY). */
  enterLowPower(): void {
    this.#feature("VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY", u.VFIO_DEVICE_FEATURE_SET | u.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY);
  }

  exitLowPower(): void {
    this.#feature("VFIO_DEVICE_FEATURE_LOW_POWER_EXIT", u.VFIO_DEVICE_FEATURE_SET | u.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT);
  }

  #feature(name: string, flags: number): void {
    const a = u.VfioDeviceFeature.alloc({ argsz: u.VfioDeviceFeature.size, flags });
    this.call(name, u.VFIO_DEVICE_FEATURE, a.bytes, { device: this.address });
  }
}

/** A region of a device, reached by pread, pwrite and mmap on the device file. Offsets are bytes in the region. */
export class Region {
  readonly device: VfioDevice;
  readonly info: RegionInfo;

  constructor(device: VfioDevice, info: RegionInfo) {
    this.device = device;
    this.info = info;
  }

  get size(): bigint {
    return this.info.size;
  }

  read(offset: number, length: number): Uint8Array {
    const { device } = this;
    return must(device.os.pread(device.fd, length, this.info.offset + BigInt(offset)), "pread", this.#at(offset, length));
  }

  write(offset: number, bytes: Uint8Array): void {
    const { device } = this;
    must(device.os.pwrite(device.fd, bytes, this.info.offset + BigInt(offset)), "pwrite", this.#at(offset, bytes.length));
  }

  read8(offset: number): number {
    return view(this.read(offset, 1)).getUint8(0);
  }

  read16(offset: number): number {
    return view(this.read(offset, 2)).getUint16(0, true);
  }

  read32(offset: number): number {
    return view(this.read(offset, 4)).getUint32(0, true);
  }

  read64(offset: number): bigint {
    return view(this.read(offset, 8)).getBigUint64(0, true);
  }

  write8(offset: number, value: number): void {
    this.write(offset, Uint8Array.of(value));
  }

  write16(offset: number, value: number): void {
    const b = new Uint8Array(2);
    view(b).setUint16(0, value, true);
    this.write(offset, b);
  }

  write32(offset: number, value: number): void {
    const b = new Uint8Array(4);
    view(b).setUint32(0, value, true);
    this.write(offset, b);
  }

  write64(offset: number, value: bigint): void {
    const b = new Uint8Array(8);
    view(b).setBigUint64(0, value, true);
    this.write(offset, b);
  }

  /** The region in the program's address space. */
  mmap(offset = 0, length: number = Number(this.info.size) - offset): Mapping {
    const { device } = this;
    const prot = u.PROT_READ | u.PROT_WRITE;
    const m = device.os.mmap(device.fd, length, prot, u.MAP_SHARED, this.info.offset + BigInt(offset));
    return must(m, "mmap", this.#at(offset, length));
  }

  #at(offset: number, length: number): Record<string, unknown> {
    return { device: this.device.address, region: this.info.index, offset, length };
  }
}

const view = (b: Uint8Array): DataView => new DataView(b.buffer, b.byteOffset, b.byteLength);
