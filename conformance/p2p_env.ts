/**
 * The environment of the recorded peer-to-peer program: its helpers, one to
 * one, so that each call comes in the recorded order with the recorded
 * arguments, and leaves a record of the same shape.
 *
 * A value the program printed from its own address space or clock is not
 * reproduced; everything else is.
 */
import type { EmbeddedHost, EmbeddedTransport, Mapping, Signal } from "../src/client/index.ts";
import { EBADF, Errno } from "../src/lib/index.ts";
import * as u from "../src/uapi/index.ts";

export interface CallRecord {
  exp: string;
  sec: string;
  call: string;
  args: Record<string, unknown>;
  ret: number;
  errno: string;
  [output: string]: unknown;
}

export type Range = { off: bigint; len: bigint };
export type Device = { bdf: string; fd: number; id: number };

export const RW: number = u.IOMMU_IOAS_MAP_WRITEABLE | u.IOMMU_IOAS_MAP_READABLE;
export const RWF: number = RW | u.IOMMU_IOAS_MAP_FIXED_IOVA;
export const GETF: number = u.VFIO_DEVICE_FEATURE_GET | u.VFIO_DEVICE_FEATURE_DMA_BUF;
export const MEMIOVA = 0x1000000n;
export const BARIOVA = 0x2000000n;
export const U64 = 0xffff_ffff_ffff_ffffn;
const EDUBUF = 0x40000n;
const MS = 1_000_000;

export const hex = (v: bigint | number): string => `0x${BigInt.asUintN(64, BigInt(v)).toString(16)}`;
const isErr = (v: unknown): v is Errno => v instanceof Errno;

/** Carries what outlives one section: the pattern counter and the records. */
export class Recorder {
  readonly host: EmbeddedHost;
  readonly os: EmbeddedTransport;
  readonly exp: string;
  readonly edu: string;
  readonly exporter: string;
  readonly third: string | undefined;
  readonly region: number;
  readonly records: CallRecord[] = [];
  sec = "?";
  pattern = 0x1111222233330000n;

  constructor(host: EmbeddedHost, options: { exp: string; edu: string; exporter: string; region: number; third?: string }) {
    this.host = host;
    this.os = host.os;
    this.exp = options.exp;
    this.edu = options.edu;
    this.exporter = options.exporter;
    this.region = options.region;
    this.third = options.third;
  }

  /** One record, from what the system call returned. */
  rec(
    call: string,
    args: Record<string, unknown>,
    result: number | bigint | Errno | undefined,
    outputs: Record<string, unknown> = {},
  ): number {
    const failed = isErr(result);
    const ret = failed ? -1 : Number(result ?? 0);
    this.records.push({ exp: this.exp, sec: this.sec, call, args, ret, errno: failed ? result.name : "", ...outputs });
    return ret;
  }

  cdevOpen(bdf: string): number {
    const path = this.os.vfioDevicePath(bdf);
    if (path === undefined) return -1;
    // The program finds the node by reading a folder of sysfs, whose descriptor is open meanwhile.
    const folder = must(this.os.open("/dev/null", u.O_RDONLY));
    const fd = this.os.open(path, u.O_RDWR | u.O_CLOEXEC);
    this.os.close(folder);
    return isErr(fd) ? -1 : fd;
  }

  regionInfo(fd: number, index: number): { size: bigint; offset: bigint; flags: number } {
    const i = u.VfioRegionInfo.alloc({ argsz: u.VfioRegionInfo.size, index });
    if (isErr(this.os.ioctlBytes(fd, u.VFIO_DEVICE_GET_REGION_INFO, i.bytes))) return { size: 0n, offset: 0n, flags: 0 };
    return { size: i.size, offset: i.offset, flags: i.flags };
  }

  cfg16(fd: number, off: number): number {
    const r = this.os.pread(fd, 2, this.regionInfo(fd, u.VFIO_PCI_CONFIG_REGION_INDEX).offset + BigInt(off));
    return isErr(r) || r.length !== 2 ? 0xffff : (r[0] as number) | ((r[1] as number) << 8);
  }

  cfg32(fd: number, off: number): number {
    return this.cfg16(fd, off) + this.cfg16(fd, off + 2) * 0x10000;
  }

  cfgSet(fd: number, off: number, length: number, value: number): number | Errno {
    return this.os.pwrite(fd, le(value, length), this.regionInfo(fd, u.VFIO_PCI_CONFIG_REGION_INDEX).offset + BigInt(off));
  }

  cfgw(fd: number, off: number, len: number, val: number, what: string): number {
    return this.rec("config_write", { what, off, len, val: hex(val >>> 0) }, this.cfgSet(fd, off, len, val));
  }

  findCap(fd: number, id: number): number {
    let p = this.cfg16(fd, u.PCI_CAPABILITY_LIST) & 0xff;
    for (let i = 0; p !== 0 && p !== 0xff && i < 48; i++) {
      const v = this.cfg16(fd, p);
      if ((v & 0xff) === id) return p;
      p = v >> 8;
    }
    return 0;
  }

  bind(d: Device, iommufd: number): boolean {
    const b = u.VfioDeviceBindIommufd.alloc({ argsz: u.VfioDeviceBindIommufd.size, iommufd });
    const r = this.os.ioctlBytes(d.fd, u.VFIO_DEVICE_BIND_IOMMUFD, b.bytes);
    d.id = b.out_devid;
    this.rec("VFIO_DEVICE_BIND_IOMMUFD", { bdf: d.bdf }, r, { out_devid: b.out_devid });
    return !isErr(r);
  }

  attach(d: Device, pt: number, what: string): number {
    const b = u.VfioDeviceAttachIommufdPt.alloc({ argsz: u.VfioDeviceAttachIommufdPt.size, pt_id: pt });
    const r = this.os.ioctlBytes(d.fd, u.VFIO_DEVICE_ATTACH_IOMMUFD_PT, b.bytes);
    this.rec("VFIO_DEVICE_ATTACH_IOMMUFD_PT", { bdf: d.bdf, what }, r, { out_pt_id: b.pt_id });
    return isErr(r) ? -1 : b.pt_id;
  }

  detach(d: Device, what: string): void {
    const b = u.VfioDeviceDetachIommufdPt.alloc({ argsz: u.VfioDeviceDetachIommufdPt.size });
    this.rec("VFIO_DEVICE_DETACH_IOMMUFD_PT", { bdf: d.bdf, what }, this.os.ioctlBytes(d.fd, u.VFIO_DEVICE_DETACH_IOMMUFD_PT, b.bytes));
  }

  ioasAlloc(ifd: number): number {
    const c = u.IommuIoasAlloc.alloc({ size: u.IommuIoasAlloc.size });
    const r = this.os.ioctlBytes(ifd, u.IOMMU_IOAS_ALLOC, c.bytes);
    this.rec("IOMMU_IOAS_ALLOC", {}, r, { id: c.out_ioas_id });
    return c.out_ioas_id;
  }

  destroy(ifd: number, id: number, what: string): void {
    const c = u.IommuDestroy.alloc({ size: u.IommuDestroy.size, id });
    this.rec("IOMMU_DESTROY", { what }, this.os.ioctlBytes(ifd, u.IOMMU_DESTROY, c.bytes));
  }

  mapFile(
    ifd: number,
    ioas: number,
    fd: number,
    start: bigint,
    length: bigint,
    iova: bigint,
    flags: number,
    what: string,
    os = this.os,
  ): bigint | undefined {
    const c = u.IommuIoasMapFile.alloc({ size: u.IommuIoasMapFile.size, flags, ioas_id: ioas, fd, start, length, iova });
    const r = os.ioctlBytes(ifd, u.IOMMU_IOAS_MAP_FILE, c.bytes);
    this.rec("IOMMU_IOAS_MAP_FILE", { what, start: hex(start), length: hex(length), iova: hex(iova), flags }, r, { out_iova: hex(c.iova) });
    return isErr(r) ? undefined : c.iova;
  }

  mapVa(ifd: number, ioas: number, va: bigint, length: bigint, iova: bigint, what: string): void {
    const c = u.IommuIoasMap.alloc({ size: u.IommuIoasMap.size, flags: RWF, ioas_id: ioas, user_va: va, length, iova });
    this.rec("IOMMU_IOAS_MAP", { what, length: hex(length), iova: hex(iova) }, this.os.ioctlBytes(ifd, u.IOMMU_IOAS_MAP, c.bytes));
  }

  unmap(ifd: number, ioas: number, iova: bigint, length: bigint, what: string): void {
    const c = u.IommuIoasUnmap.alloc({ size: u.IommuIoasUnmap.size, ioas_id: ioas, iova, length });
    const r = this.os.ioctlBytes(ifd, u.IOMMU_IOAS_UNMAP, c.bytes);
    this.rec("IOMMU_IOAS_UNMAP", { what, iova: hex(iova), length: hex(length) }, r, { out_length: hex(c.length) });
  }

  copy(ifd: number, dst: number, src: number, d: bigint, s: bigint, length: bigint, flags: number, what: string): boolean {
    const c = u.IommuIoasCopy.alloc({
      size: u.IommuIoasCopy.size,
      flags,
      dst_ioas_id: dst,
      src_ioas_id: src,
      length,
      dst_iova: d,
      src_iova: s,
    });
    const r = this.os.ioctlBytes(ifd, u.IOMMU_IOAS_COPY, c.bytes);
    this.rec("IOMMU_IOAS_COPY", { what, src_iova: hex(s), dst_iova: hex(d), length: hex(length), flags }, r);
    return !isErr(r);
  }

  hwptAlloc(ifd: number, dev: number, pt: number, flags: number, what: string): number {
    const c = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, flags, dev_id: dev, pt_id: pt });
    const r = this.os.ioctlBytes(ifd, u.IOMMU_HWPT_ALLOC, c.bytes);
    this.rec("IOMMU_HWPT_ALLOC", { what, flags }, r, { id: c.out_hwpt_id });
    return isErr(r) ? 0 : c.out_hwpt_id;
  }

  changeProcess(ifd: number, what: string, os = this.os): void {
    const c = u.IommuIoasChangeProcess.alloc({ size: u.IommuIoasChangeProcess.size });
    this.rec("IOMMU_IOAS_CHANGE_PROCESS", { what }, os.ioctlBytes(ifd, u.IOMMU_IOAS_CHANGE_PROCESS, c.bytes));
  }

  /** The export ioctl with every field free; `ranges` are what lies in memory, `nr` what the header says. */
  exportx(
    fd: number,
    o: {
      region: number;
      openFlags: number;
      flags?: number;
      nr: number;
      ranges: Range[];
      featureFlags?: number;
      argsz?: number;
      what: string;
    },
  ): number {
    const head = u.VfioDeviceFeature.size;
    const fixed = u.VfioDeviceFeatureDmaBuf.size;
    const argsz = o.argsz ?? head + fixed + o.ranges.length * u.VfioRegionDmaRange.size;
    const featureFlags = o.featureFlags ?? GETF;
    const bytes = new Uint8Array(4096);
    const f = u.VfioDeviceFeature.over(bytes);
    f.argsz = argsz;
    f.flags = featureFlags;
    const b = u.VfioDeviceFeatureDmaBuf.over(bytes, head);
    b.region_index = o.region;
    b.open_flags = o.openFlags;
    b.flags = o.flags ?? 0;
    b.nr_ranges = o.nr;
    o.ranges.forEach((range, i) => {
      const r = u.VfioRegionDmaRange.over(bytes, head + fixed + i * u.VfioRegionDmaRange.size);
      r.offset = range.off;
      r.length = range.len;
    });
    const args = {
      what: o.what,
      region: o.region,
      open_flags: hex(o.openFlags >>> 0),
      flags: o.flags ?? 0,
      nr_ranges: o.nr,
      feature_flags: hex(featureFlags >>> 0),
      argsz,
      ranges: o.ranges.slice(0, 4).map((r) => [hex(r.off), hex(r.len)]),
    };
    return this.rec("VFIO_DEVICE_FEATURE_DMA_BUF", args, this.os.ioctlBytes(fd, u.VFIO_DEVICE_FEATURE, bytes));
  }

  export1(fd: number, region: number, off: bigint, len: bigint, what: string): number {
    return this.exportx(fd, { region, openFlags: u.O_RDWR | u.O_CLOEXEC, nr: 1, ranges: [{ off, len }], what });
  }
}

/** Two bound, attached devices and a scratch memfd, as every section opens them. */
export class Env {
  readonly r: Recorder;
  ifd = -1;
  readonly e: Device;
  readonly x: Device;
  ioas = 0;
  bsize = 0n;
  edu: Mapping | undefined;
  bar: Mapping | undefined;
  mem: Mapping;
  memfd = -1;

  private constructor(r: Recorder, e: Device, x: Device, mem: Mapping) {
    this.r = r;
    this.e = e;
    this.x = x;
    this.mem = mem;
  }

  static open(r: Recorder): Env {
    const os = r.os;
    const ifd = must(os.open("/dev/iommu", u.O_RDWR | u.O_CLOEXEC));
    const e: Device = { bdf: r.edu, fd: r.cdevOpen(r.edu), id: 0 };
    const x: Device = { bdf: r.exporter, fd: r.cdevOpen(r.exporter), id: 0 };
    if (e.fd < 0 || x.fd < 0) throw new Error(`section ${r.sec}: cannot open the devices (${e.fd}, ${x.fd})`);
    if (!r.bind(e, ifd) || !r.bind(x, ifd)) throw new Error(`section ${r.sec}: bind failed`);
    const ioas = r.ioasAlloc(ifd);
    if (r.attach(e, ioas, "ioas") < 0 || r.attach(x, ioas, "ioas") < 0) throw new Error(`section ${r.sec}: attach failed`);
    const eduInfo = r.regionInfo(e.fd, 0);
    const rw = u.PROT_READ | u.PROT_WRITE;
    const edu = must(os.mmap(e.fd, Number(eduInfo.size), rw, u.MAP_SHARED, eduInfo.offset));
    const barInfo = r.regionInfo(x.fd, r.region);
    const bar = must(os.mmap(x.fd, Number(barInfo.size), rw, u.MAP_SHARED, barInfo.offset));
    r.cfgSet(e.fd, u.PCI_COMMAND, 2, r.cfg16(e.fd, u.PCI_COMMAND) | u.PCI_COMMAND_MASTER | u.PCI_COMMAND_MEMORY);
    r.cfgSet(x.fd, u.PCI_COMMAND, 2, r.cfg16(x.fd, u.PCI_COMMAND) | u.PCI_COMMAND_MEMORY);
    kick(r, x.fd);
    const memfd = must(os.memfdCreate("m", 0));
    os.ftruncate(memfd, 1n << 20n);
    const env = new Env(r, e, x, must(os.mmap(memfd, 1 << 20, rw, u.MAP_SHARED, 0n)));
    env.ifd = ifd;
    env.ioas = ioas;
    env.bsize = barInfo.size;
    env.edu = edu;
    env.bar = bar;
    env.memfd = memfd;
    r.mapFile(ifd, ioas, memfd, 0n, 1n << 20n, MEMIOVA, RWF, "memfd scratch");
    return env;
  }

  close(): void {
    const os = this.r.os;
    this.edu?.unmap();
    this.bar?.unmap();
    for (const fd of [this.e.fd, this.x.fd, this.ifd]) if (fd >= 0) os.close(fd);
    this.mem.unmap();
    os.close(this.memfd);
  }

  /** Reads 8 bytes as the CPU would. */
  peek(where: At): bigint | Signal {
    const b = where.map.load(where.offset, 8);
    return typeof b === "string" ? b : new DataView(b.buffer, b.byteOffset).getBigUint64(0, true);
  }

  /** One DMA of the edu device: between a bus address and its own buffer. */
  eduDma(src: bigint, dst: bigint, count: bigint, toMemory: boolean): void {
    const edu = this.edu;
    if (edu === undefined) throw new Error("edu is not mapped");
    edu.store(0x80, le64(src));
    edu.store(0x88, le64(dst));
    edu.store(0x90, le64(count));
    edu.store(0x98, le(1 | (toMemory ? 2 : 0), 4));
    for (let i = 0; i < 3000; i++) {
      const b = edu.load(0x98, 4);
      if (typeof b !== "string" && ((b[0] as number) & 1) === 0) return;
      this.r.host.advance(MS);
    }
    throw new Error("the edu device never finished its DMA");
  }

  /** RAM → edu → `iova`; looks for the bytes at `where` in the BAR. */
  dmaWriteCheck(iova: bigint, where: At | undefined, what: string): void {
    const r = this.r;
    r.pattern++;
    const before = where === undefined ? undefined : this.peek(where);
    const bytes = new Uint8Array(256);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < 32; i++) view.setBigUint64(i * 8, BigInt.asUintN(64, r.pattern + (BigInt(i) << 32n)), true);
    this.mem.store(0, bytes);
    const faults0 = r.host.dmaFaults;
    this.eduDma(MEMIOVA, EDUBUF, 256n, false);
    const ramFaults = r.host.dmaFaults - faults0;
    const faults1 = r.host.dmaFaults;
    this.eduDma(EDUBUF, iova, 256n, true);
    r.host.advance(20 * MS);
    const after = where === undefined ? undefined : this.peek(where);
    const value = (v: bigint | Signal | undefined): string => hex(typeof v === "bigint" ? v : 0n);
    r.rec("edu_dma_write", { what, iova: hex(iova), pattern: hex(r.pattern) }, 0, {
      landed: after === r.pattern,
      bar_before: value(before),
      bar_after: value(after),
      bar_access: where === undefined ? "none" : typeof before === "string" || typeof after === "string" ? "SIGBUS" : "ok",
      faults_ram_read: ramFaults,
      dmar_irqs: r.host.dmaFaults - faults1,
    });
  }

  /** `iova` → edu → RAM, after a pattern was put at `where` in the BAR. */
  dmaReadCheck(iova: bigint, where: At | undefined, what: string): void {
    const r = this.r;
    r.pattern++;
    const poked = where?.map.store(where.offset, le64(r.pattern));
    this.mem.store(0x2000, new Uint8Array(256).fill(0xee));
    this.mem.store(0x1000, new Uint8Array(256).fill(0x55));
    this.eduDma(MEMIOVA + 0x2000n, EDUBUF, 256n, false);
    const faults = r.host.dmaFaults;
    this.eduDma(iova, EDUBUF, 256n, false);
    r.host.advance(20 * MS);
    const irqs = r.host.dmaFaults - faults;
    this.eduDma(EDUBUF, MEMIOVA + 0x1000n, 256n, true);
    const got = this.peek({ map: this.mem, offset: 0x1000 });
    r.rec("edu_dma_read", { what, iova: hex(iova), pattern: hex(r.pattern) }, 0, {
      got: hex(typeof got === "bigint" ? got : 0n),
      match: got === r.pattern,
      bar_access: where === undefined ? "none" : poked === undefined ? "ok" : "SIGBUS",
      dmar_irqs: irqs,
    });
  }

  /** A place in the mapped BAR. */
  at(offset: number | bigint): At {
    if (this.bar === undefined) throw new Error("the BAR is not mapped");
    return { map: this.bar, offset: Number(offset) };
  }

  barTouch(what: string): void {
    const v = this.peek(this.at(0));
    const failed = typeof v === "string";
    this.r.records.push({
      exp: this.r.exp,
      sec: this.r.sec,
      call: "bar_mmap_read",
      args: { what },
      ret: failed ? -1 : 0,
      errno: failed ? "EFAULT" : "",
      signal: failed ? v : "",
      val: hex(failed ? 0n : v),
    });
  }

  barPread(what: string): void {
    const { r } = this;
    const b = r.os.pread(this.x.fd, 8, r.regionInfo(this.x.fd, r.region).offset);
    r.rec("bar_pread", { what }, isErr(b) ? b : b.length);
  }

  /** Closes the exporter's descriptor, as the program does in the middle of a section. */
  closeExporter(): Errno | undefined {
    const r = this.x.fd < 0 ? EBADF : this.r.os.close(this.x.fd);
    this.x.fd = -1;
    return r;
  }
}

export type At = { map: Mapping; offset: number };

/** The NVMe's persistent memory answers only while PMRCTL.EN is set; any reset clears it. */
export function kick(r: Recorder, fd: number): void {
  if (r.region !== 4 || fd < 0 || r.cfg16(fd, 0) !== 0x1b36) return;
  r.os.pwrite(fd, le(1, 4), r.regionInfo(fd, 0).offset + 0xe04n);
}

export function must<T>(v: T | Errno): T {
  if (isErr(v)) throw new Error(`unexpected ${v.name}`);
  return v;
}

export function le(value: number, length: number): Uint8Array {
  const b = new Uint8Array(length);
  for (let i = 0; i < length; i++) b[i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
  return b;
}

export function le64(value: bigint): Uint8Array {
  const b = new Uint8Array(8);
  new DataView(b.buffer).setBigUint64(0, BigInt.asUintN(64, value), true);
  return b;
}
