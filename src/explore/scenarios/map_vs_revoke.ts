/**
 * A program maps an exported BAR over the private interconnect, while another
 * thread turns the device's memory decode off and on, and a third unmaps.
 *
 * The whole kernel runs, from the ioctl and the config write down to the
 * IOMMU's page table. What is checked: when the write that turns decode off
 * returns, nothing of the BAR is mapped (I1), and nothing comes to be mapped
 * until the write that turns it on begins (I2); at the end the tracker and the
 * tables agree (I3), references are balanced and all is given back when the
 * process ends (I4), device memory is mapped as such only (I7); every call
 * answers one of the results that Linux gave under the same load.
 *
 * Beside the locks three things order steps here: the exporter's flag, which
 * attach reads without its lock; the mappings of the BAR; and the window in
 * which there may be none.
 */
import type { Process } from "../../kernel/fs/process.ts";
import { openLedger } from "../../kernel/iommu/ledger.ts";
import { checkInvariants } from "../../kernel/iommufd/check.ts";
import type { Kernel } from "../../kernel/kernel.ts";
import type { VfioPciCoreDevice } from "../../kernel/vfio/pci/vfio_pci_core.ts";
import { vfioOf } from "../../kernel/vfio/vfio_main.ts";
import { Errno } from "../../lib/errno.ts";
import { boot } from "../../machine/boot.ts";
import type { MachineDescription } from "../../machine/schema.ts";
import type { Sched } from "../../sched/sched.ts";
import type { Step, Task } from "../../sched/task.ts";
import {
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  IommuIoasAlloc,
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
import { InvariantBroken, type Recorder, type Scenario, type Scene } from "../tasks.ts";

const BDF = "0000:01:00.0";
const BAR = 2;
const BYTES = 0x4000n;
const IOVA = 0x10_0000n;
const MMIO = 16;
const COMMAND = (BigInt(VFIO_PCI_CONFIG_REGION_INDEX) << 40n) + 4n;
const FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
const THREADS = ["map", "toggle", "unmap"] as const;

const MACHINE: MachineDescription = {
  name: "map-vs-revoke",
  memory: "16 MiB",
  iommu: { kind: "intel-legacy" },
  modules: ["iommufd", "vfio-pci"],
  pci: { children: [{ type: "root-port", children: [{ type: "device", model: "ivshmem", options: { size: "1 MiB" } }] }] },
};

export interface MapVsRevokeOptions {
  /** Called with the kernel before the tasks start: to put a part of another make in. */
  readonly alter?: (kernel: Kernel) => void;
  /** Whether the third thread, which unmaps, is there. Default: it is. */
  readonly unmapper?: boolean;
}

export function mapVsRevoke({ alter, unmapper = true }: MapVsRevokeOptions = {}): Scenario {
  return {
    name: "map-vs-revoke",
    summary: "MAP_FILE of an exported BAR against COMMAND.MEM off and on, and against UNMAP",
    threads: unmapper ? THREADS : THREADS.slice(0, 2),
    setUp(record) {
      const stage = new Stage(record);
      alter?.(stage.kernel);
      return stage.scene(unmapper);
    },
  };
}

class Stage {
  readonly kernel: Kernel;
  readonly #process: Process;
  readonly #recorder: Recorder;
  readonly #iommufd: number;
  readonly #device: number;
  readonly #ioas: number;
  readonly #dmabuf: number;
  /** Mappings of the BAR. */
  #mapped = 0;
  /** Decode is off for certain. */
  #off = false;
  readonly #results: string[] = [];

  constructor(record: (sched: Sched) => Recorder) {
    let recorder: Recorder | undefined;
    this.kernel = boot(MACHINE, {
      onKernel: (kernel) => {
        openLedger(kernel);
        recorder = record(kernel.sched);
      },
    });
    this.#recorder = recorder as Recorder;
    this.#process = this.kernel.fs.createProcess({ name: "vmm" });
    this.#iommufd = this.#run(this.#process.sys.open("/dev/iommu", O_RDWR));
    this.#device = this.#run(this.#process.sys.open(vfioOf(this.kernel).cdevPathOf(BDF) ?? "", O_RDWR));
    this.#call(
      this.#device,
      VFIO_DEVICE_BIND_IOMMUFD,
      VfioDeviceBindIommufd.alloc({ argsz: VfioDeviceBindIommufd.size, iommufd: this.#iommufd }),
    );
    const alloc = IommuIoasAlloc.alloc({ size: IommuIoasAlloc.size });
    this.#call(this.#iommufd, IOMMU_IOAS_ALLOC, alloc);
    this.#ioas = alloc.out_ioas_id;
    const attach = VfioDeviceAttachIommufdPt.alloc({ argsz: VfioDeviceAttachIommufdPt.size, pt_id: this.#ioas });
    this.#call(this.#device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach);
    this.#run(this.#process.sys.pwrite(this.#device, this.#page(Uint8Array.of(2, 0)), 2, COMMAND));
    this.#dmabuf = this.#export();
  }

  #run<T>(body: Step<T | Errno>): T {
    const r = this.#process.run(body);
    if (r instanceof Errno) throw new Error(`map-vs-revoke cannot be set up: ${r.name}`);
    return r;
  }

  #page(bytes: Uint8Array): bigint {
    const at = this.#run(this.#process.sys.mmap(0n, 4096n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
    this.#process.mm.memory.write(at, bytes);
    return at;
  }

  #call(fd: number, cmd: number, view: { readonly bytes: Uint8Array }): number {
    const at = this.#page(view.bytes);
    const r = this.#run(this.#process.sys.ioctl(fd, cmd, at));
    this.#process.mm.memory.read(at, view.bytes);
    return r;
  }

  #export(): number {
    const head = VfioDeviceFeature.size;
    const fixed = VfioDeviceFeatureDmaBuf.size;
    const bytes = new Uint8Array(head + fixed + VfioRegionDmaRange.size);
    Object.assign(VfioDeviceFeature.over(bytes), { argsz: bytes.length, flags: VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF });
    Object.assign(VfioDeviceFeatureDmaBuf.over(bytes, head), { region_index: BAR, nr_ranges: 1 });
    Object.assign(VfioRegionDmaRange.over(bytes, head + fixed), { offset: 0n, length: BYTES });
    return this.#call(this.#device, VFIO_DEVICE_FEATURE, { bytes });
  }

  scene(unmapper: boolean): Scene {
    const { kernel } = this;
    const map = this.#page(
      IommuIoasMapFile.alloc({
        size: IommuIoasMapFile.size,
        flags: FLAGS,
        ioas_id: this.#ioas,
        fd: this.#dmabuf,
        length: BYTES,
        iova: IOVA,
      }).bytes,
    );
    const unmap = this.#page(IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: this.#ioas, iova: IOVA, length: BYTES }).bytes);
    const off = this.#page(Uint8Array.of(0, 0));
    const on = this.#page(Uint8Array.of(2, 0));
    // Once through everything, so that every lock there is has been met.
    this.#run(this.#ioctl(IOMMU_IOAS_MAP_FILE, map));
    this.#run(this.#ioctl(IOMMU_IOAS_UNMAP, unmap));
    this.#run(this.#process.sys.pwrite(this.#device, off, 2, COMMAND));
    this.#run(this.#process.sys.pwrite(this.#device, on, 2, COMMAND));
    const vdev = kernel.pci.devices.get(BDF)?.driverData as VfioPciCoreDevice | undefined;
    for (const buffer of vdev?.dmabufs ?? []) this.#recorder.watch(buffer, "revoked");
    kernel.trace.listen(({ event: e }) => {
      if (e.type === "iommu.map" && e.errno === undefined && (e.prot & MMIO) !== 0) this.#count(1);
      if (e.type === "iommu.unmap" && e.unmapped > 0n) this.#count(-1);
    });
    const tasks = [this.#task(0, this.#answered(IOMMU_IOAS_MAP_FILE, map, ["ENODEV"])), this.#task(1, this.#toggle(off, on))];
    if (unmapper) tasks.push(this.#task(2, this.#answered(IOMMU_IOAS_UNMAP, unmap, ["ENOENT", "EBUSY"])));
    return { tasks, end: () => this.#end() };
  }

  #task(thread: number, body: Step<string>): Task {
    const task = this.#process.newThread(THREADS[thread] as string);
    const results = this.#results;
    this.kernel.sched.start(
      task,
      (function* () {
        results[thread] = yield* body;
      })(),
    );
    return task;
  }

  #ioctl(cmd: number, at: bigint): Step<number | Errno> {
    return this.#process.sys.ioctl(this.#iommufd, cmd, at);
  }

  /** A call whose errors are known. */
  *#answered(cmd: number, at: bigint, errors: readonly string[]): Step<string> {
    const r = yield* this.#ioctl(cmd, at);
    if (!(r instanceof Errno)) return "0";
    if (!errors.includes(r.name)) throw new InvariantBroken(`answers ${r.name}, and never does on Linux`);
    return r.name;
  }

  *#toggle(off: bigint, on: bigint): Step<string> {
    const { sys } = this.#process;
    const written = (r: number | Errno): void => {
      if (r !== 2) throw new InvariantBroken(`the config write answers ${String(r)}`);
    };
    written(yield* sys.pwrite(this.#device, off, 2, COMMAND));
    this.#window(true);
    yield* this.kernel.sched.yield();
    this.#window(false);
    written(yield* sys.pwrite(this.#device, on, 2, COMMAND));
    return "2 2";
  }

  #window(off: boolean): void {
    this.#recorder.touch("mappings");
    this.#off = off;
    this.#quiet();
  }

  #count(by: number): void {
    this.#recorder.touch("mappings");
    this.#mapped += by;
    this.#quiet();
  }

  #quiet(): void {
    if (this.#off && this.#mapped > 0) throw new InvariantBroken("I1/I2: the BAR is mapped while its memory decode is off and revoked");
  }

  #end(): string {
    const { kernel } = this;
    checkInvariants(kernel);
    const state = THREADS.flatMap((t, i) => (this.#results[i] === undefined ? [] : [`${t} = ${this.#results[i]}`]));
    const end = `${state.join(", ")}; ${this.#mapped > 0 ? "mapped" : "not mapped"}`;
    this.#process.run(this.#process.exit());
    kernel.sched.settle();
    const left = [...kernel.leakChecks].flatMap(([what, count]) => (count() === 0 ? [] : [`${count()} ${what}`]));
    if (left.length > 0) throw new InvariantBroken(`I4: left when the process has ended: ${left.join(", ")}`);
    return end;
  }
}
