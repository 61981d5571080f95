/**
 * Every point at which memory can run out, or a copy fail, in one call of VFIO,
 * of a dma-buf or of a file after another. Points expected by name are those of
 * the functions of Linux that the call runs through.
 */
import { describe, expect, test } from "vitest";
import { systemHeapInit } from "../../../src/kernel/dma_buf/system_heap.ts";
import { udmabufInit } from "../../../src/kernel/dma_buf/udmabuf.ts";
import { EFAULT, ENOMEM, Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { type Scenario, sweep } from "../fault_sweep_support.ts";
import type { BenchOptions } from "./bench.ts";
import { GroupBench } from "./group_bench.ts";
import { PF } from "./vf_bench.ts";

const EVENTFD_TRIGGER = V.VFIO_IRQ_SET_DATA_EVENTFD | V.VFIO_IRQ_SET_ACTION_TRIGGER;
const EVERYTHING = 0xffff_ffff_ffff_ffffn;
const AT = 0x10_0000n;

/** Two devices: scenarios drive the first by its node, or by its group. */
class Stage extends GroupBench {
  fds: number[] = [];
  dev = 0;
  io = 0;
  buf = 0;
  vaddr = 0n;

  constructor(options: BenchOptions = {}) {
    super(options);
    this.vaddr = this.memory(0x8000n);
    this.process.space.write(this.vaddr, new Uint8Array(0x8000).fill(1));
  }

  /** Notes a descriptor, to be closed. */
  keep(fd: number | Errno): number | Errno {
    if (!(fd instanceof Errno)) this.fds.push(fd);
    return fd;
  }

  /** vfio-pci does not have the device. */
  unbound(): void {
    expect(this.kernelRun(this.kernel.pci.unbind(this.pdev().name))).toBeUndefined();
  }

  /** The device bound, with memory on, on an IOAS. */
  attached(): void {
    this.bound();
    this.io = this.ioas();
    expect(this.attach(this.dev, this.io)).toBe(0);
  }

  bound(): void {
    this.dev = this.device();
    this.keep(this.dev);
    this.configWrite(this.dev, 4, 2, 2);
  }

  exported(): void {
    this.attached();
    this.buf = this.exportBar(this.dev) as number;
    this.keep(this.buf);
  }

  clear(): void {
    if (this.io !== 0) this.unmap(this.io, 0n, EVERYTHING);
    for (const fd of this.fds.splice(0).reverse()) this.close(fd);
  }
}

interface Case extends Scenario<Stage> {
  /** Points that Linux has on this way. */
  readonly expects: readonly string[];
  readonly on?: BenchOptions;
}

const clear = (b: Stage): void => b.clear();

const cases: Record<string, Case> = {
  "a device bound to vfio-pci": {
    before: (b) => b.unbound(),
    act: (b) => b.bindDriver(b.pdev().name),
    expects: ["vfio_device", "vfio_device_set", "cdev"],
  },
  "two virtual functions made, bound and taken away": {
    on: { functions: [PF], params: { enableSriov: true } },
    act: (b) => {
      const made = b.kernelRun(b.kernel.pci.setNumVfs(b.pdev().name, 2));
      if (made !== undefined) return made;
      const vfs = [...b.kernel.pci.devices.values()].filter((d) => d.isVirtfn);
      const refused = vfs.map((d) => b.bindDriver(d.name)).find((e) => e !== undefined);
      if (refused !== undefined) b.kernelRun(b.kernel.pci.setNumVfs(b.pdev().name, 0));
      return refused;
    },
    undo: (b) => b.kernelRun(b.kernel.pci.setNumVfs(b.pdev().name, 0)),
    expects: ["pci_dev", "pci_dev", "dev_iommu", "dev_iommu", "vfio_device", "vfio_device"],
  },
  "a physical function bound to vfio-pci": {
    on: { functions: [PF] },
    before: (b) => b.unbound(),
    act: (b) => b.bindDriver(b.pdev().name),
    expects: ["vf_token"],
  },
  "open of a device's node": {
    act: (b) => b.keep(b.run(b.process.sys.open(b.cdev(), u.O_RDWR))),
    undo: clear,
    expects: ["file", "vfio_device_file"],
  },
  BIND_IOMMUFD: {
    before: (b) => b.keep(b.openCdev()),
    act: (b) => b.bindIommufd(b.fds[0] as number),
    undo: clear,
    expects: ["copy", "iommufd device", "iommufd_group", "pci_config_map", "vconfig", "copy"],
  },
  ATTACH_IOMMUFD_PT: {
    before: (b) => {
      b.bound();
      b.io = b.ioas();
    },
    act: (b) => b.attach(b.dev, b.io),
    undo: clear,
    expects: [
      "copy",
      "iommufd hwpt_paging",
      "iommu_domain",
      "iommufd_attach",
      "iopt_reserved",
      "iommu_domain_info",
      "cache_tag",
      "entry of domains",
      "copy",
    ],
  },
  "ATTACH_IOMMUFD_PT behind AMD's IOMMU": {
    on: { iommu: { kind: "amd" } },
    before: (b) => {
      b.bound();
      b.io = b.ioas();
    },
    act: (b) => b.attach(b.dev, b.io),
    undo: clear,
    expects: ["iommu_domain", "entry of pdom_ids", "pdom_iommu_info"],
  },
  "ATTACH_IOMMUFD_PT to another IOAS": {
    before: (b) => {
      b.attached();
      b.io = b.ioas();
    },
    act: (b) => b.attach(b.dev, b.io),
    undo: clear,
    expects: ["iommufd hwpt_paging", "iommu_domain", "iommufd_attach_handle", "entry of pasid_array", "iommu_domain_info"],
  },
  "an export of a BAR": {
    before: (b) => b.attached(),
    act: (b) => b.keep(b.exportBar(b.dev)),
    undo: clear,
    expects: ["copy", "copy", "ranges", "copy", "vfio_pci_dma_buf", "phys_vec", "inode", "dma_buf", "dentry", "file"],
  },
  "MAP_FILE of an exported BAR": {
    before: (b) => b.exported(),
    act: (b) => b.mapFile(b.io, b.buf),
    undo: clear,
    expects: ["iopt_pages", "dma_buf_attachment", "iopt_area", "iopt_pages_dmabuf_track", "batch", "page table", "copy"],
  },
  "MAP_FILE of a BAR that a reset took away before": {
    before: (b) => {
      b.exported();
      expect(b.mapFile(b.io, b.buf)).not.toBeInstanceOf(Errno);
      expect(b.ioctl(b.dev, V.VFIO_DEVICE_RESET)).toBe(0);
    },
    act: (b) => b.mapFile(b.io, b.buf),
    undo: clear,
    expects: ["dma_buf_attachment", "iopt_pages_dmabuf_track", "batch"],
  },
  "an IOMMU domain added to a mapped BAR": {
    before: (b) => {
      b.exported();
      expect(b.mapFile(b.io, b.buf)).not.toBeInstanceOf(Errno);
    },
    act: (b) => {
      const size = u.IommuHwptAlloc.size;
      // Ids are in the order of making: the device is the first.
      return b.ioctl(b.iommufd, u.IOMMU_HWPT_ALLOC, u.IommuHwptAlloc.alloc({ size, dev_id: 1, pt_id: b.io }));
    },
    undo: (b) => {
      expect(b.destroy(4)).toBe(0);
      b.clear();
    },
    expects: ["iommufd hwpt_paging", "iommu_domain", "entry of domains", "iopt_pages_dmabuf_track", "batch", "page table"],
  },
  DEVICE_RESET: {
    before: (b) => {
      b.exported();
      expect(b.mapFile(b.io, b.buf)).not.toBeInstanceOf(Errno);
    },
    // Nothing that takes memory away may need any: the copy is of a call before it.
    act: (b) => {
      const r = b.ioctl(b.dev, V.VFIO_DEVICE_RESET);
      return r instanceof Errno ? r : b.pread(b.dev, V.VFIO_PCI_CONFIG_REGION_INDEX, 4, 2);
    },
    undo: clear,
    expects: ["copy"],
  },
  GET_REGION_INFO: {
    before: (b) => b.bound(),
    act: (b) => b.ioctl(b.dev, V.VFIO_DEVICE_GET_REGION_INFO, V.VfioRegionInfo.alloc({ argsz: 64, index: 4 })),
    undo: clear,
    expects: ["copy", "vfio_info_cap", "copy"],
  },
  "SET_IRQS of two MSI-X vectors": {
    before: (b) => {
      b.bound();
      b.keep(b.eventfd());
    },
    act: (b) => b.setIrqs(b.dev, EVENTFD_TRIGGER, V.VFIO_PCI_MSIX_IRQ_INDEX, 0, 2, [b.fds[1] as number, b.fds[1] as number]),
    undo: clear,
    expects: ["copy", "data", "copy", "name", "vfio_pci_irq_ctx", "irqaction", "name", "vfio_pci_irq_ctx", "irqaction"],
  },
  "SET_IRQS of INTx": {
    before: (b) => {
      b.bound();
      b.keep(b.eventfd());
    },
    act: (b) => b.setIrqs(b.dev, EVENTFD_TRIGGER, V.VFIO_PCI_INTX_IRQ_INDEX, 0, 1, [b.fds[1] as number]),
    undo: clear,
    expects: ["data", "name", "vfio_pci_irq_ctx", "entry of ctx", "irqaction"],
  },
  "SET_IRQS of the request line": {
    before: (b) => {
      b.bound();
      b.keep(b.eventfd());
    },
    act: (b) => b.setIrqs(b.dev, EVENTFD_TRIGGER, V.VFIO_PCI_REQ_IRQ_INDEX, 0, 1, [b.fds[1] as number]),
    undo: clear,
    expects: ["data", "vfio_pci_eventfd"],
  },
  GET_PCI_HOT_RESET_INFO: {
    before: (b) => b.bound(),
    act: (b) => {
      const bytes = new Uint8Array(64);
      V.VfioPciHotResetInfo.over(bytes).argsz = bytes.length;
      return b.ioctl(b.dev, V.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, { bytes });
    },
    undo: clear,
    expects: ["copy", "devices", "copy", "copy"],
  },
  "open of a container": {
    act: (b) => b.keep(b.run(b.process.sys.open("/dev/vfio/vfio", u.O_RDWR))),
    undo: clear,
    expects: ["file", "vfio_container"],
  },
  "SET_IOMMU with a group in it": {
    before: (b) => {
      const g = b.openGroup();
      b.keep(g);
      expect(b.setContainer(g)).toBe(0);
    },
    act: (b) => b.setIommu(),
    undo: clear,
    expects: ["vfio_iommu", "vfio_iommu_group", "vfio_domain", "iommu_domain", "iommu_domain_info", "vfio_iova"],
  },
  GET_DEVICE_FD: {
    before: (b) => b.keep(b.ready()),
    act: (b) => b.keep(b.getDevice(b.fds[0] as number)),
    undo: clear,
    expects: ["name", "copy", "vfio_device_file", "pci_config_map", "vconfig", "dentry", "file"],
  },
  "GET_DEVICE_FD with an iommufd for a container": {
    before: (b) => {
      b.keep(b.openGroup());
      expect(b.setContainer(b.fds[0] as number, b.iommufd)).toBe(0);
    },
    act: (b) => b.keep(b.getDevice(b.fds[0] as number)),
    undo: clear,
    expects: ["vfio_device_file", "iommufd device", "iommufd_group", "iommufd hwpt_paging", "pci_config_map", "file"],
  },
  "SET_CONTAINER to an iommufd": {
    before: (b) => b.keep(b.openGroup()),
    act: (b) => b.setContainer(b.fds[0] as number, b.iommufd),
    undo: clear,
    expects: ["iommufd ioas", "entry of objects"],
  },
  MAP_DMA: {
    before: (b) => b.keep(b.ready()),
    act: (b) => b.mapDma(AT, b.vaddr, 0x8000n),
    undo: clear,
    expects: ["copy", "vfio_dma", "page table"],
  },
  "GET_INFO of a container": {
    before: (b) => b.keep(b.ready()),
    act: (b) => b.ioctl(b.container, V.VFIO_IOMMU_GET_INFO, V.VfioIommuType1Info.alloc({ argsz: V.VfioIommuType1Info.size })),
    undo: clear,
    expects: ["copy", "vfio_info_cap", "vfio_info_cap", "vfio_info_cap", "copy"],
  },
  memfd_create: { act: (b) => b.keep(b.run(b.process.sys.memfdCreate("m", 0))), undo: clear, expects: ["inode", "file"] },
  eventfd: { act: (b) => b.keep(b.run(b.process.sys.eventfd(0))), undo: clear, expects: ["eventfd", "dentry", "file"] },
  pipe: {
    act: (b) => {
      const ends = b.run(b.process.sys.pipe());
      if (!(ends instanceof Errno)) for (const fd of ends) b.keep(fd);
      return ends;
    },
    undo: clear,
    expects: ["inode", "pipe", "dentry", "file", "file"],
  },
  "dup to a number past what the table has room for": {
    act: (b) => b.keep(b.run(b.process.sys.dup2(b.iommufd, 200))),
    undo: clear,
    expects: ["fdtable", "array of files"],
  },
  "a buffer of the system heap": {
    before: (b) => {
      systemHeapInit(b.kernel);
      b.keep(b.ok(b.process.sys.open("/dev/dma_heap/system", u.O_RDWR)));
    },
    act: (b) => {
      const a = u.DmaHeapAllocationData.alloc({ len: 0x3000n, fd_flags: u.O_RDWR });
      const r = b.ioctl(b.fds[0] as number, u.DMA_HEAP_IOCTL_ALLOC, a);
      if (r === 0) b.keep(a.fd);
      return r;
    },
    undo: clear,
    expects: ["copy", "system_heap_buffer", "frame", "sg_table", "dma_buf", "file", "copy"],
  },
  "a buffer of udmabuf": {
    before: (b) => {
      udmabufInit(b.kernel);
      b.keep(b.ok(b.process.sys.open("/dev/udmabuf", u.O_RDWR)));
      const m = b.ok(b.process.sys.memfdCreate("m", u.MFD_ALLOW_SEALING));
      b.keep(m);
      b.ok(b.process.sys.ftruncate(m, 0x2000n));
      b.ok(b.process.sys.fcntl(m, u.F_ADD_SEALS, u.F_SEAL_SHRINK));
    },
    act: (b) => b.keep(b.ioctl(b.fds[0] as number, u.UDMABUF_CREATE, u.UdmabufCreate.alloc({ memfd: b.fds[1] as number, size: 0x2000n }))),
    undo: clear,
    expects: ["copy", "udmabuf", "folios", "dma_buf", "file"],
  },
  "a sync file of a buffer": {
    before: (b) => b.exported(),
    act: (b) => {
      const a = u.DmaBufExportSyncFile.alloc({ flags: 1 });
      const r = b.ioctl(b.buf, u.DMA_BUF_IOCTL_EXPORT_SYNC_FILE, a);
      if (r === 0) b.keep(a.fd);
      return r;
    },
    undo: clear,
    expects: ["copy", "fence", "sync_file", "dentry", "file", "copy"],
  },
};

describe("with every allocation and every copy failing, one after the other", () => {
  test.each(Object.entries(cases))("%s answers an errno, leaves nothing behind, and works the next time", (_name, scenario) => {
    const { points, errnos } = sweep(() => new Stage(scenario.on), scenario);
    const names = points.map((p) => p.what);
    for (const what of scenario.expects) {
      expect(names, `${what} is not among the points`).toContain(what);
      names.splice(names.indexOf(what), 1);
    }
    expect(errnos.some((e) => e === ENOMEM || e === EFAULT)).toBe(true);
  });
});
