/** A machine with an IOMMU and one or more small PCI functions bound to vfio-pci, and a process that drives them. */
import { afterEach, expect } from "vitest";
import type { Process } from "../../../src/kernel/fs/process.ts";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { openLedger } from "../../../src/kernel/iommu/ledger.ts";
import { checkInvariants } from "../../../src/kernel/iommufd/check.ts";
import { iommufdInit } from "../../../src/kernel/iommufd/main.ts";
import { type InterconnectKind, Kernel } from "../../../src/kernel/kernel.ts";
import type { PciDev } from "../../../src/kernel/pci/pci_dev.ts";
import {
  type BarMemory,
  type PciFunctionDescription,
  PciModel,
  type PciPort,
  type ResetKind,
  SparseMemory,
} from "../../../src/kernel/pci/pci_model.ts";
import type { PciNode, PciTopology } from "../../../src/kernel/pci/topology.ts";
import { type VfioPciParams, vfioInit, vfioPciInit } from "../../../src/kernel/vfio/pci/vfio_pci.ts";
import type { VfioPciCoreDevice } from "../../../src/kernel/vfio/pci/vfio_pci_core.ts";
import { vfioOf } from "../../../src/kernel/vfio/vfio_main.ts";
import { Errno } from "../../../src/lib/errno.ts";
import type { Step } from "../../../src/sched/task.ts";
import type { TraceEvent } from "../../../src/trace/events.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, O_RDWR, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import {
  IOMMU_DESTROY,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  IommuDestroy,
  IommuIoasAlloc,
  IommuIoasMapFile,
  IommuIoasUnmap,
} from "../../../src/uapi/iommufd.ts";
import * as V from "../../../src/uapi/vfio.ts";

const SCRATCH = 0x10000n;

export const RAM_BYTES = 0x10000n;

/** BAR 0: memory. BAR 2: a register at 0. BAR 4: MSI-X table at 0x800, pending bits at 0xc00. */
export const TINY: PciFunctionDescription = {
  name: "tiny",
  vendor: 0x1234,
  device: 0x5678,
  class: 0xff0000,
  interruptPin: 1,
  bars: [
    { index: 0, size: RAM_BYTES, kind: "mem64", prefetch: true },
    { index: 2, size: 0x100n, kind: "mem32" },
    { index: 4, size: 0x1000n, kind: "mem32" },
  ],
  capabilities: {
    pm: { noSoftReset: true },
    msi: { vectors: 4, maskable: true, address64: true },
    msix: { vectors: 8, tableBar: 4, tableOffset: 0x800, pbaBar: 4, pbaOffset: 0xc00 },
    pcie: { flr: true },
  },
  extended: { dsn: 0x1122334455667788n },
};

export class TinyModel extends PciModel {
  readonly description: PciFunctionDescription;
  readonly ram: SparseMemory = new SparseMemory();
  readonly resets: ResetKind[] = [];
  /** Accesses to the register BAR: [offset, bytes, value of a write]. */
  readonly accesses: [number, number, bigint?][] = [];
  port: PciPort | undefined = undefined;

  constructor(description: PciFunctionDescription) {
    super();
    this.description = description;
  }
  /** As a physical function. */
  makeVf(): PciModel {
    const vf = this.description.extended?.sriov?.vf;
    if (vf === undefined) throw new Error("no virtual functions");
    return new TinyModel(vf);
  }
  override attach(port: PciPort): void {
    this.port = port;
  }
  override barMemory(bar: number): BarMemory | undefined {
    return bar === 0 ? this.ram : undefined;
  }
  override barRead(_bar: number, offset: number, size: number): bigint {
    this.accesses.push([offset, size]);
    return BigInt.asUintN(8 * size, 0x8877665544332211n);
  }
  override barWrite(_bar: number, offset: number, size: number, value: bigint): void {
    this.accesses.push([offset, size, value]);
  }
  override reset(kind: ResetKind): void {
    this.resets.push(kind);
  }
}

export interface BenchOptions {
  readonly functions?: readonly PciFunctionDescription[];
  /** All functions on one bus, behind one port, instead of each behind its own. */
  readonly sharedBus?: boolean;
  readonly params?: VfioPciParams;
  readonly bind?: boolean;
  readonly iommu?: Partial<IommuDescription> | "none";
  readonly interconnect?: InterconnectKind;
}

const benches: Set<Bench> = new Set();
afterEach(() => {
  for (const b of benches) b.finish();
});

export class Bench {
  readonly kernel: Kernel;
  readonly process: Process;
  readonly events: TraceEvent[] = [];
  readonly bdfs: string[];
  readonly iommufd: number;
  #scratch = 0n;
  #leaksExpected = false;

  constructor(options: BenchOptions = {}) {
    const k = new Kernel(options.interconnect);
    this.kernel = k;
    k.trace.listen((r) => this.events.push(r.event));
    openLedger(k);
    if (options.iommu !== "none") k.iommu.addUnit({ kind: "intel-legacy", ...options.iommu });
    const functions = options.functions ?? [TINY];
    const node = (d: PciFunctionDescription, n: number): PciNode => ({
      kind: "function",
      ...(options.sharedBus ? { device: 0, function: n } : {}),
      model: () => new TinyModel(d),
    });
    const children = functions.map(node);
    const topology: PciTopology = {
      root: options.sharedBus ? [{ kind: "root-port", children }] : children.map((c): PciNode => ({ kind: "root-port", children: [c] })),
    };
    k.pci.build(topology);
    iommufdInit(k);
    vfioInit(k);
    vfioPciInit(k, options.params);
    this.bdfs = [...k.pci.devices.values()].filter((d) => !d.isBridge).map((d) => d.name);
    this.process = k.fs.createProcess({ name: "vmm" });
    if (options.bind !== false) for (const bdf of this.bdfs) this.bindDriver(bdf);
    const at = this.run(this.process.sys.mmap(0n, SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
    if (at instanceof Errno) throw at;
    this.#scratch = at;
    this.iommufd = this.ok(this.process.sys.open("/dev/iommu", O_RDWR));
    benches.add(this);
  }

  /** Runs a call of the process, and what it set off. */
  run<T>(body: Step<T>): T {
    return this.process.run(body);
  }

  ok<T>(body: Step<T>): Exclude<T, Errno> {
    const r = this.run(body);
    if (r instanceof Errno) throw new Error(`unexpected ${r.name}`);
    return r as Exclude<T, Errno>;
  }

  /** Runs on a kernel thread, as a write to sysfs does. */
  kernelRun<T>(body: Step<T>): T {
    return this.kernel.sched.execute(this.kernel.sched.thread("sysfs"), body);
  }

  settle(): void {
    this.kernel.sched.settle();
  }

  /** A kernel thread takes a lock, and keeps it until told to let go; `settle` then runs what waited. */
  hold(take: () => Step<unknown>, letGo: () => void): { readonly release: () => void } {
    const { sched } = this.kernel;
    const thread = sched.thread("holder");
    const gate = { name: "gate" };
    let open = false;
    const body = function* (): Step<void> {
      yield* take();
      while (!open) {
        sched.block(gate);
        yield { op: "wait" as const, on: gate };
      }
      letGo();
    };
    sched.start(thread, body());
    sched.step(thread);
    return {
      release(): void {
        open = true;
        sched.wake(thread);
        sched.step(thread);
      },
    };
  }

  bindDriver(bdf: string): Errno | undefined {
    const dev = this.pdev(bdf);
    dev.driverOverride = "vfio-pci";
    const r = this.kernelRun(this.kernel.pci.bind("vfio-pci", bdf));
    this.settle();
    return r;
  }

  pdev(bdf: string = this.bdfs[0] as string): PciDev {
    const d = this.kernel.pci.devices.get(bdf);
    if (d === undefined) throw new Error(`no ${bdf}`);
    return d;
  }

  core(bdf?: string): VfioPciCoreDevice {
    return this.pdev(bdf).driverData as VfioPciCoreDevice;
  }

  model(bdf?: string): TinyModel {
    return this.pdev(bdf).model as TinyModel;
  }

  cdev(bdf: string = this.bdfs[0] as string): string {
    const p = vfioOf(this.kernel).cdevPathOf(bdf);
    if (p === undefined) throw new Error(`${bdf} has no node`);
    return p;
  }

  /** Puts bytes into the process's scratch memory; its address. */
  user(bytes: Uint8Array): bigint {
    this.process.space.write(this.#scratch, bytes);
    return this.#scratch;
  }

  userRead(addr: bigint, n: number): Uint8Array {
    const b = new Uint8Array(n);
    if (this.process.space.read(addr, b) !== 0) throw new Error("scratch is not there");
    return b;
  }

  /** An ioctl over a struct view, which is refreshed from memory afterwards. */
  ioctl(fd: number, cmd: number, view?: { readonly bytes: Uint8Array }): number | Errno {
    const addr = view === undefined ? 0n : this.user(view.bytes);
    const r = this.run(this.process.sys.ioctl(fd, cmd, addr));
    if (view !== undefined) view.bytes.set(this.userRead(addr, view.bytes.length));
    return r;
  }

  openCdev(bdf?: string): number {
    return this.ok(this.process.sys.open(this.cdev(bdf), O_RDWR));
  }

  bindIommufd(fd: number, iommufd: number = this.iommufd): number | Errno {
    const bind = V.VfioDeviceBindIommufd.alloc({ argsz: V.VfioDeviceBindIommufd.size, iommufd });
    return this.ioctl(fd, V.VFIO_DEVICE_BIND_IOMMUFD, bind);
  }

  /** Opened and bound. */
  device(bdf?: string): number {
    const fd = this.openCdev(bdf);
    expect(this.bindIommufd(fd)).toBe(0);
    return fd;
  }

  ioas(): number {
    const a = IommuIoasAlloc.alloc({ size: IommuIoasAlloc.size });
    expect(this.ioctl(this.iommufd, IOMMU_IOAS_ALLOC, a)).toBe(0);
    return a.out_ioas_id;
  }

  attach(fd: number, ptId: number): number | Errno {
    return this.ioctl(
      fd,
      V.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
      V.VfioDeviceAttachIommufdPt.alloc({ argsz: V.VfioDeviceAttachIommufdPt.size, pt_id: ptId }),
    );
  }

  destroy(id: number): number | Errno {
    return this.ioctl(this.iommufd, IOMMU_DESTROY, IommuDestroy.alloc({ size: IommuDestroy.size, id }));
  }

  /** Exports bytes of a BAR; the descriptor. */
  exportBar(fd: number, offset = 0n, length: bigint = RAM_BYTES, region = 0, openFlags = O_RDWR): number | Errno {
    const head = V.VfioDeviceFeature.size;
    const fixed = V.VfioDeviceFeatureDmaBuf.size;
    const bytes = new Uint8Array(head + fixed + 16);
    const f = V.VfioDeviceFeature.over(bytes);
    f.argsz = bytes.length;
    f.flags = V.VFIO_DEVICE_FEATURE_GET | V.VFIO_DEVICE_FEATURE_DMA_BUF;
    const b = V.VfioDeviceFeatureDmaBuf.over(bytes, head);
    b.region_index = region;
    b.open_flags = openFlags;
    b.nr_ranges = 1;
    const r = V.VfioRegionDmaRange.over(bytes, head + fixed);
    r.offset = offset;
    r.length = length;
    return this.ioctl(fd, V.VFIO_DEVICE_FEATURE, { bytes });
  }

  /** Maps a dma-buf; the IOVA. */
  mapFile(ioas: number, fd: number, length: bigint = RAM_BYTES): bigint | Errno {
    const m = IommuIoasMapFile.alloc({
      size: IommuIoasMapFile.size,
      flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      ioas_id: ioas,
      fd,
      length,
    });
    const r = this.ioctl(this.iommufd, IOMMU_IOAS_MAP_FILE, m);
    return r instanceof Errno ? r : m.iova;
  }

  unmap(ioas: number, iova: bigint, length: bigint): bigint | Errno {
    const u = IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: ioas, iova, length });
    const r = this.ioctl(this.iommufd, IOMMU_IOAS_UNMAP, u);
    return r instanceof Errno ? r : u.length;
  }

  /** A feature with no payload, or the bytes given. */
  feature(fd: number, flags: number, payload: Uint8Array = new Uint8Array(0)): number | Errno {
    const head = V.VfioDeviceFeature.size;
    const bytes = new Uint8Array(head + payload.length);
    const f = V.VfioDeviceFeature.over(bytes);
    f.argsz = bytes.length;
    f.flags = flags;
    bytes.set(payload, head);
    return this.ioctl(fd, V.VFIO_DEVICE_FEATURE, { bytes });
  }

  /** Reads a region; the bytes, or the errno. */
  pread(fd: number, region: number, offset: number, count: number): Uint8Array | Errno {
    const r = this.run(this.process.sys.pread(fd, this.#scratch, count, (BigInt(region) << 40n) | BigInt(offset)));
    return r instanceof Errno ? r : this.userRead(this.#scratch, r);
  }

  pwrite(fd: number, region: number, offset: number, bytes: readonly number[]): number | Errno {
    const addr = this.user(Uint8Array.from(bytes));
    return this.run(this.process.sys.pwrite(fd, addr, bytes.length, (BigInt(region) << 40n) | BigInt(offset)));
  }

  configRead(fd: number, off: number, n: 1 | 2 | 4): number {
    const b = this.pread(fd, V.VFIO_PCI_CONFIG_REGION_INDEX, off, n);
    if (b instanceof Errno) throw new Error(`config read: ${b.name}`);
    return b.reduceRight((v, x) => v * 256 + x, 0);
  }

  configWrite(fd: number, off: number, n: 1 | 2 | 4, value: number): number | Errno {
    return this.pwrite(
      fd,
      V.VFIO_PCI_CONFIG_REGION_INDEX,
      off,
      Array.from({ length: n }, (_, i) => (value >>> (8 * i)) & 0xff),
    );
  }

  /** SET_IRQS; `data`: descriptors, or bytes for DATA_BOOL. */
  setIrqs(
    fd: number,
    flags: number,
    index: number,
    start: number,
    count: number,
    fds: readonly number[] = [],
    bools: readonly number[] = [],
  ): number | Errno {
    const head = V.VfioIrqSet.size;
    const bytes = new Uint8Array(head + 4 * fds.length + bools.length);
    const s = V.VfioIrqSet.over(bytes);
    Object.assign(s, { argsz: bytes.length, flags, index, start, count });
    const view = new DataView(bytes.buffer);
    fds.forEach((x, i) => {
      view.setInt32(head + 4 * i, x, true);
    });
    bytes.set(bools, head + 4 * fds.length);
    return this.ioctl(fd, V.VFIO_DEVICE_SET_IRQS, { bytes });
  }

  eventfd(): number {
    return this.ok(this.process.sys.eventfd(0, 0o4000));
  }

  /** Count of a non-blocking eventfd, which it takes; 0 when none. */
  takeEvents(fd: number): bigint {
    const r = this.run(this.process.sys.read(fd, this.#scratch, 8));
    return r instanceof Errno ? 0n : new DataView(this.userRead(this.#scratch, 8).buffer).getBigUint64(0, true);
  }

  signalEventfd(fd: number): void {
    const addr = this.user(Uint8Array.from([1, 0, 0, 0, 0, 0, 0, 0]));
    expect(this.run(this.process.sys.write(fd, addr, 8))).toBe(8);
  }

  /** The first device's node is there. */
  exists(): boolean {
    return vfioOf(this.kernel).devices.size > 0 && this.kernel.fs.devices.has("/dev/vfio/devices/vfio0");
  }

  close(fd: number): void {
    expect(this.run(this.process.sys.close(fd))).toBeUndefined();
  }

  log(): string[] {
    return this.events.flatMap((e) => (e.type === "sched.printk" ? [e.text] : []));
  }

  expectLeaks(): void {
    this.#leaksExpected = true;
  }

  /** The process ends, with everything in order until then; nothing may be left. */
  finish(): void {
    benches.delete(this);
    checkInvariants(this.kernel);
    if (!this.process.exited) this.run(this.process.exit());
    this.settle();
    if (this.#leaksExpected) return;
    const left = [...this.kernel.leakChecks].flatMap(([name, count]) => (count() === 0 ? [] : [`${name}: ${count()}`]));
    expect(left).toEqual([]);
    expect(this.kernel.fs.openFiles).toBe(0);
    expect(this.kernel.fs.eventfds).toBe(0);
  }
}
