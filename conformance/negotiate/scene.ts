/**
 * Every exporter and every importer of the negotiated interconnect on one
 * machine, behind one interface each: what the table of pairs, the random
 * sequences and the tests drive.
 *
 * An exporter makes a buffer of four pages; `take` and `give` are whatever
 * takes its memory away for a while and brings it back. An importer, once
 * imported, can touch a byte of the buffer with the hardware it stands for: a
 * device's DMA through its IOMMU, or a processor's second stage. `answers`
 * tells what the touch found, so that it can be held against a model.
 */
import { CallError, DmaBufHandle, EmbeddedHost, type Ioas, type Iommufd, readMachine, type VfioDevice } from "../../src/client/index.ts";
import type { DmaBuf } from "../../src/kernel/dma_buf/buffer.ts";
import { dmaBufFd, dmaBufGet, dmaBufPut } from "../../src/kernel/dma_buf/dma_buf.ts";
import { GpuImport } from "../../src/kernel/dma_buf/importers/gpu.ts";
import { GuestMemory } from "../../src/kernel/dma_buf/importers/kvm.ts";
import { MemoryRegion, type RegionForm } from "../../src/kernel/dma_buf/importers/rdma.ts";
import type { PhysVec } from "../../src/kernel/dma_buf/mapping.ts";
import { type VramBuffer, VramDevice, vramMove } from "../../src/kernel/dma_buf/vram.ts";
import type { IommuDomain } from "../../src/kernel/iommu/domain.ts";
import { openLedger } from "../../src/kernel/iommu/ledger.ts";
import type { InterconnectKind, Kernel } from "../../src/kernel/kernel.ts";
import { dmaRead, dmaWrite } from "../../src/kernel/pci/dma.ts";
import type { PciDev } from "../../src/kernel/pci/pci_dev.ts";
import { physAddr } from "../../src/lib/addr.ts";
import { EFAULT, Errno } from "../../src/lib/errno.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import type { Step } from "../../src/sched/task.ts";
import {
  DMA_HEAP_IOCTL_ALLOC,
  DmaHeapAllocationData,
  F_ADD_SEALS,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  O_CLOEXEC,
  O_RDWR,
  UDMABUF_CREATE,
  UdmabufCreate,
} from "../../src/uapi/index.ts";

export const PAGE = 0x1000n;
/** Bytes of every buffer. */
export const BYTES: bigint = 4n * PAGE;

/** Does the DMA that iommufd's importer translates. */
export const ENGINE = "0000:01:00.0";
const MEMORY = "0000:02:00.0";
const VRAM = "0000:03:00.0";
/** The network adapter and the graphics device: a function that the kernel's own DMA layer translates for. */
const ADAPTER = "0000:04:00.0";

const machine = (interconnect: InterconnectKind): MachineDescription => ({
  ...readMachine("default"),
  name: "every pair",
  interconnect,
  memory: "64 MiB",
  pci: {
    peerToPeerHostBridge: true,
    children: [
      { type: "root-port", acs: ["SV", "RR", "CR", "UF"], children: [{ type: "device", model: "edu" }] },
      { type: "root-port", acs: ["SV", "RR", "CR", "UF"], children: [{ type: "device", model: "ivshmem", options: { size: "1 MiB" } }] },
      {
        type: "root-port",
        acs: ["SV", "RR", "CR", "UF"],
        children: [{ type: "device", model: "ivshmem", options: { size: "1 MiB" }, driver: null }],
      },
      { type: "root-port", acs: ["SV", "RR", "CR", "UF"], children: [{ type: "device", model: "edu", driver: null }] },
    ],
  },
});

/** A buffer and what its owner can do with it. */
export interface Exported {
  readonly dmabuf: DmaBuf;
  readonly fd: DmaBufHandle;
  /** Takes the memory away for a while; absent where nothing does. */
  readonly take?: () => void;
  /** Brings it back. */
  readonly give?: () => void;
  /** Takes it away for ever. */
  readonly kill?: () => void;
  /** Where the memory is now, for those that can be taken. */
  readonly where?: () => readonly PhysVec[];
}

/** An importer that has a buffer. */
export interface Imported {
  /** One byte at `offset`: the byte read, or why not. */
  read(offset: bigint): number | Errno;
  write(offset: bigint, value: number): Errno | undefined;
  /** Where the hardware's own table leads, first byte; absent where that is a domain's. */
  readonly seen?: () => bigint | undefined;
  /** Lets go of the buffer. */
  leave(): void;
}

export type ExporterName = "vfio" | "vfio, 2 ranges" | "udmabuf" | "system heap" | "vram";
export type ImporterName = "iommufd" | "kvm" | "rdma on-demand" | "rdma pinned, revocable" | "rdma pinned" | "gpu";

export const EXPORTERS: readonly ExporterName[] = ["vfio", "vfio, 2 ranges", "udmabuf", "system heap", "vram"];
export const IMPORTERS: readonly ImporterName[] = ["iommufd", "kvm", "rdma on-demand", "rdma pinned, revocable", "rdma pinned", "gpu"];

export class PairScene {
  readonly host: EmbeddedHost;
  readonly iommufd: Iommufd;
  readonly peer: VfioDevice;
  readonly guest: GuestMemory;
  readonly vram: VramDevice;
  #nextGpa = 0x1_0000_0000n;
  #nextIova = 0x1000_0000n;
  #vfioOffset = 0n;
  readonly engine: VfioDevice;
  readonly #ioas: Ioas;

  /** `onKernel` is called before the first lock is taken. */
  constructor(interconnect: InterconnectKind = "negotiated", onKernel: (kernel: Kernel) => void = () => {}) {
    this.host = EmbeddedHost.boot(machine(interconnect), {
      onKernel: (kernel) => {
        openLedger(kernel);
        onKernel(kernel);
      },
    });
    this.iommufd = this.host.openIommufd();
    this.engine = this.host.openDevice(ENGINE).bind(this.iommufd);
    this.peer = this.host.openDevice(MEMORY).bind(this.iommufd);
    this.#ioas = this.iommufd.allocIoas();
    this.engine.attach(this.#ioas);
    this.engine.setBusMaster(true);
    this.peer.setMemoryEnabled(true);
    this.guest = new GuestMemory(this.host.kernel);
    const vramDev = this.pdev(VRAM);
    vramDev.enable();
    const adapter = this.pdev(ADAPTER);
    adapter.enable();
    adapter.setMaster(true);
    this.vram = new VramDevice(vramDev, 2);
  }

  pdev(address: string): PciDev {
    const dev = this.host.kernel.pci.devices.get(address);
    if (dev === undefined) throw new RangeError(`the machine has no ${address}`);
    return dev;
  }

  /** The domain that the engine translates through. */
  engineDomain(): IommuDomain {
    const domain = this.pdev(ENGINE).iommuGroup?.domain;
    if (domain === undefined) throw new RangeError("the engine has no domain");
    return domain;
  }

  /** A fresh domain of the engine's unit, in nobody's use. */
  laterDomain(): IommuDomain {
    const dev = this.pdev(ENGINE);
    const unit = dev.iommuUnit;
    if (unit === undefined) throw new RangeError("the engine has no IOMMU");
    return must(this.run(unit.domainAllocPagingFlags(dev, 0)));
  }

  get ioas(): Ioas {
    return this.#ioas;
  }

  /** Runs kernel code as the program's thread, to its end. */
  run<T>(body: Step<T>): T {
    return this.host.os.process.run(body);
  }

  export(name: ExporterName): Exported {
    switch (name) {
      case "vfio":
        return this.#exportVfio([{ offset: this.#vfioPages(4n), length: BYTES }]);
      case "vfio, 2 ranges":
        return this.#exportVfio([
          { offset: this.#vfioPages(3n), length: 3n * PAGE },
          { offset: this.#vfioPages(2n) + PAGE, length: PAGE },
        ]);
      case "udmabuf":
        return this.#byFd(this.#udmabuf());
      case "system heap":
        return this.#byFd(this.#heap());
      case "vram": {
        const dmabuf = this.vram.allocate(BYTES, O_RDWR);
        if (dmabuf instanceof Errno) throw new RangeError(`no VRAM: ${dmabuf.name}`);
        const buffer = dmabuf.priv as VramBuffer;
        const move = (): void => {
          this.run(vramMove(dmabuf, buffer.place.in === "vram" ? "system" : "vram"));
        };
        // A move takes the memory away and gives it back, elsewhere.
        return {
          ...this.#byFd(must(dmaBufFd(this.host.os.process, dmabuf, O_CLOEXEC))),
          take: move,
          give: () => {},
          where: () => buffer.runs(),
        };
      }
    }
  }

  /** A descriptor of the program's for a buffer. */
  handleOf(dmabuf: DmaBuf): DmaBufHandle {
    dmabuf.file.get();
    return new DmaBufHandle(this.host.os, must(dmaBufFd(this.host.os.process, dmabuf, O_CLOEXEC)));
  }

  #vfioPages(n: bigint): bigint {
    const at = this.#vfioOffset;
    this.#vfioOffset = (at + n * PAGE) % 0x80000n;
    return at;
  }

  #exportVfio(ranges: readonly { offset: bigint; length: bigint }[]): Exported {
    const fd = this.peer.exportDmaBuf({ region: 2, ranges });
    const bar = this.host.barAddress(MEMORY, 2) ?? 0n;
    for (const r of ranges) this.host.kernel.phys.write(physAddr(bar + r.offset), new Uint8Array(Number(r.length)));
    const command = (on: boolean) => (): void => this.peer.setMemoryEnabled(on);
    const where = (): readonly PhysVec[] => ranges.map((r) => ({ paddr: physAddr(bar + r.offset), len: r.length }));
    return { ...this.#byFd(fd.fd), take: command(false), give: command(true), kill: () => this.peer.close(), where };
  }

  #byFd(fd: number): Exported {
    const dmabuf = dmaBufGet(this.host.os.process, fd);
    if (dmabuf instanceof Errno) throw new RangeError(`descriptor ${fd} is no buffer`);
    dmaBufPut(dmabuf);
    return { dmabuf, fd: new DmaBufHandle(this.host.os, fd) };
  }

  #udmabuf(): number {
    const { os } = this.host;
    const memfd = must(os.memfdCreate("guest", MFD_ALLOW_SEALING));
    must(os.ftruncate(memfd, BYTES));
    must(os.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
    const dev = must(os.open("/dev/udmabuf", O_RDWR));
    const fd = must(os.ioctlBytes(dev, UDMABUF_CREATE, UdmabufCreate.alloc({ memfd, size: BYTES }).bytes));
    os.close(dev);
    os.close(memfd);
    return fd;
  }

  #heap(): number {
    const { os } = this.host;
    const heap = must(os.open("/dev/dma_heap/system", O_RDWR));
    const a = DmaHeapAllocationData.alloc({ len: BYTES, fd_flags: O_RDWR | O_CLOEXEC });
    must(os.ioctlBytes(heap, DMA_HEAP_IOCTL_ALLOC, a.bytes));
    os.close(heap);
    return a.fd;
  }

  /** The importer takes a reference of its own; the errno of an import that is refused. */
  import(name: ImporterName, { dmabuf, fd }: Exported): Imported | Errno {
    if (name === "iommufd") return this.#importIommufd(fd);
    dmabuf.file.get();
    const made = this.#importInKernel(name, dmabuf, this.pdev(ADAPTER));
    if (made instanceof Errno) this.run(put(dmabuf));
    return made;
  }

  #importInKernel(name: Exclude<ImporterName, "iommufd">, dmabuf: DmaBuf, adapter: PciDev): Imported | Errno {
    switch (name) {
      case "kvm":
        return this.#importKvm(dmabuf);
      case "gpu": {
        const gpu = this.run(GpuImport.import(adapter, dmabuf));
        return gpu instanceof Errno ? gpu : this.#gpu(gpu);
      }
      default: {
        const region = this.run(MemoryRegion.register(adapter, dmabuf, FORMS[name]));
        return region instanceof Errno ? region : this.#region(region);
      }
    }
  }

  #importKvm(dmabuf: DmaBuf): Imported | Errno {
    const gpa = this.#nextGpa;
    const { guest } = this;
    const slot = this.run(guest.addSlot(dmabuf, gpa, BYTES));
    if (slot instanceof Errno) return slot;
    this.#nextGpa += BYTES;
    return {
      read: (offset) => byteBy((b) => this.run(guest.read(gpa + offset, b))),
      write: (offset, value) => this.run(guest.write(gpa + offset, Uint8Array.of(value))),
      seen: () => guest.lookUp(gpa),
      leave: () => this.run(guest.removeSlot(slot)),
    };
  }

  #region(region: MemoryRegion): Imported {
    return {
      read: (offset) => byteBy((b) => this.run(region.access(offset, b, false))),
      write: (offset, value) => this.run(region.access(offset, Uint8Array.of(value), true)),
      leave: () => this.run(region.deregister()),
    };
  }

  #gpu(gpu: GpuImport): Imported {
    const job = (offset: bigint, bytes: Uint8Array, write: boolean): Errno | undefined => {
      const fence = this.run(gpu.submit({ offset, bytes, write, ns: 1000 }));
      if (fence instanceof Errno) return fence;
      this.run(fence.waitTimeout(false, Number.POSITIVE_INFINITY));
      return fence.error;
    };
    return {
      read: (offset) => byteBy((b) => job(offset, b, false)),
      write: (offset, value) => job(offset, Uint8Array.of(value), true),
      leave: () => this.run(gpu.close()),
    };
  }

  #importIommufd(fd: DmaBufHandle): Imported | Errno {
    const iova = this.#nextIova;
    const ioas = this.#ioas;
    this.#nextIova += BYTES;
    try {
      ioas.mapFile(fd, { length: BYTES, iova });
    } catch (e) {
      if (e instanceof CallError) return e.errno;
      throw e;
    }
    const { fn } = this.pdev(ENGINE);
    return {
      read: (offset) => byteBy((b) => (dmaRead(fn, iova + offset, b) ? undefined : EFAULT)),
      write: (offset, value) => (dmaWrite(fn, iova + offset, Uint8Array.of(value)) ? undefined : EFAULT),
      leave: () => void ioas.unmap(iova, BYTES),
    };
  }

  /** Ends the program; what is left behind, by name. */
  end(): Record<string, number> {
    this.vram.pdev.disable();
    this.pdev(ADAPTER).disable();
    return this.host.shutdown();
  }
}

const FORMS: Readonly<Record<Exclude<ImporterName, "iommufd" | "kvm" | "gpu">, RegionForm>> = {
  "rdma on-demand": "on-demand",
  "rdma pinned, revocable": "pinned-revocable",
  "rdma pinned": "pinned",
};

function* put(dmabuf: DmaBuf): Step<void> {
  dmaBufPut(dmabuf);
}

/** What `read` put into a byte, or why it did not. */
function byteBy(read: (bytes: Uint8Array) => Errno | undefined): number | Errno {
  const byte = new Uint8Array(1);
  return read(byte) ?? (byte[0] as number);
}

/** A call that cannot fail here. */
function must<T>(r: T | Errno): T {
  if (r instanceof Errno) throw new RangeError(`the scene cannot be set up: ${r.name}`);
  return r;
}
