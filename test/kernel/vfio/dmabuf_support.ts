/** A device whose BARs can be exported, without the rest of vfio-pci: what the exporter asks of it, and nothing more. */
import type { DmaBuf } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { dmaBufGet } from "../../../src/kernel/dma_buf/dma_buf.ts";
import type { P2pdmaProvider } from "../../../src/kernel/pci/p2pdma.ts";
import type { PciDev } from "../../../src/kernel/pci/pci_dev.ts";
import type { DmaBufPhys, DmaBufRange } from "../../../src/kernel/vfio/pci/vfio_pci_core.ts";
import {
  type DmaBufDevice,
  type VfioPciDmaBuf,
  vfioPciCoreFeatureDmaBuf,
  vfioPciCoreFillPhysVec,
  vfioPciDmaBufMove,
} from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { ENODEV, type Errno } from "../../../src/lib/errno.ts";
import { LockClass } from "../../../src/sched/lockdep.ts";
import { RwSem } from "../../../src/sched/locks.ts";
import { Refcount } from "../../../src/sched/refcount.ts";
import type { Step } from "../../../src/sched/task.ts";
import { VFIO_DEVICE_FEATURE_GET, VfioDeviceFeatureDmaBuf, VfioRegionDmaRange } from "../../../src/uapi/index.ts";
import { ok, type Rig } from "../dma_buf/support.ts";

export type MapType = "bus_addr" | "thru_host_bridge" | "not_supported";

type Payload = NonNullable<Parameters<typeof VfioDeviceFeatureDmaBuf.alloc>[0]>;

const memoryLockClass = new LockClass("fake memory_lock");

export const BAR_START = 0x20_0000_0000n;
export const BAR_LENGTH = 0x10000n;

export class FakeDevice implements DmaBufDevice {
  readonly rig: Rig;
  readonly vdev: DmaBufDevice["vdev"];
  readonly registrations: Refcount = new Refcount("registrations");
  readonly pdev: PciDev;
  readonly memoryLock: RwSem;
  readonly dmabufs: VfioPciDmaBuf[] = [];
  readonly pciOps: { getDmabufPhys?(vdev: DmaBufDevice, region: number, ranges: readonly DmaBufRange[]): DmaBufPhys | Errno };
  enabled = true;
  unregistering = false;
  start = BAR_START;
  length = BAR_LENGTH;
  /** How importers reach it; `p2pdma` is replaced in the tests that look at it. */
  mapType: MapType = "bus_addr";

  constructor(rig: Rig, name = "0000:01:00.0") {
    this.rig = rig;
    this.memoryLock = new RwSem(rig.kernel.sched, memoryLockClass);
    this.pdev = { name } as unknown as PciDev;
    const self = this;
    this.vdev = {
      kernel: rig.kernel,
      tryGetRegistration: () => !self.unregistering && self.registrations.getNotZero(),
      putRegistration: () => {
        self.registrations.put();
      },
    };
    this.pciOps = {
      getDmabufPhys: (_vdev, _region, ranges) => {
        const phys = vfioPciCoreFillPhysVec(ranges, self.start, self.length);
        const provider = {
          busOffset: 0n,
          get fake() {
            return self.mapType;
          },
        } as unknown as P2pdmaProvider;
        return Array.isArray(phys) ? { provider, phys } : phys;
      },
    };
  }

  revoking = 0;
  readonly fenced: Set<VfioPciDmaBuf> = new Set();

  memoryEnabled(): boolean {
    return this.enabled;
  }

  barsReachable(): boolean {
    return this.enabled;
  }

  iomapBar(bar: number): Errno | undefined {
    return bar === 2 ? undefined : ENODEV;
  }

  /** The ioctl's payload in the process's memory: its address. */
  payload(init: Payload, ranges: readonly DmaBufRange[]): bigint {
    const size = VfioDeviceFeatureDmaBuf.size + ranges.length * VfioRegionDmaRange.size;
    const bytes = new Uint8Array(size);
    bytes.set(VfioDeviceFeatureDmaBuf.alloc({ nr_ranges: ranges.length, region_index: 2, ...init }).bytes);
    for (const [i, r] of ranges.entries()) {
      bytes.set(VfioRegionDmaRange.alloc(r).bytes, VfioDeviceFeatureDmaBuf.size + i * VfioRegionDmaRange.size);
    }
    return this.rig.put(bytes);
  }

  /** The ioctl, payload and all: its result. */
  feature(
    ranges: readonly DmaBufRange[],
    init: Payload = {},
    flags: number = VFIO_DEVICE_FEATURE_GET,
    argsz: number = VfioDeviceFeatureDmaBuf.size,
  ): number | Errno {
    return this.rig.run(vfioPciCoreFeatureDmaBuf(this, flags, this.payload(init, ranges), argsz));
  }

  /** Exports `ranges` (by default the first page of the BAR): the descriptor. */
  export(ranges: readonly DmaBufRange[] = [{ offset: 0n, length: 0x1000n }], init: Payload = {}): number {
    return ok(this.feature(ranges, init));
  }

  /** The buffer behind a descriptor, with a reference for the caller. */
  buffer(fd: number): DmaBuf {
    return ok(this.rig.call(() => dmaBufGet(this.rig.process, fd)));
  }

  /** What a config write, a reset, … does under ML. */
  *move(revoked: boolean): Step<void> {
    yield* this.memoryLock.downWrite();
    try {
      this.enabled = !revoked;
      yield* vfioPciDmaBufMove(this, revoked);
    } finally {
      this.memoryLock.upWrite();
    }
  }
}
