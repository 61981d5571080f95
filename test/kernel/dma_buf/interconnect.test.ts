import { beforeEach, describe, expect, it } from "vitest";
import { type DmaBufAttachment, dmaBufInvalidateMappings } from "../../../src/kernel/dma_buf/attachment.ts";
import { type DmaBuf, dmaBufPut } from "../../../src/kernel/dma_buf/dma_buf.ts";
import {
  type DmaBufPages,
  exportPrivateMap,
  iommufdGlobalDevice,
  ioptMapDmabuf,
  ioptReleaseDmabuf,
  vfioPciDmaBufIommufdMap,
} from "../../../src/kernel/dma_buf/interconnect.ts";
import type { PhysVec } from "../../../src/kernel/dma_buf/mapping.ts";
import { systemHeapAllocate, systemHeapInit } from "../../../src/kernel/dma_buf/system_heap.ts";
import { EBUSY, ENODEV, EOPNOTSUPP, type Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { LockClass } from "../../../src/sched/lockdep.ts";
import { Mutex } from "../../../src/sched/locks.ts";
import type { Step } from "../../../src/sched/task.ts";
import { BAR_START, FakeDevice } from "../vfio/dmabuf_support.ts";
import { Exporter, Importer, ok, plainDevice, Rig } from "./support.ts";

const pagesMutex = new LockClass("pages");
const NOWHERE: PhysVec = { paddr: 0n as PhysVec["paddr"], len: 0n };

/** The least an I/O address space keeps of a buffer. */
class Pages implements DmaBufPages {
  readonly mutex: Mutex;
  readonly dmabuf: DmaBufPages["dmabuf"] = { attach: undefined, phys: NOWHERE };
  revokes = 0;

  constructor(rig: Rig) {
    this.mutex = new Mutex(rig.kernel.sched, pagesMutex);
  }
}

const importerOps = {
  allowPeer2peer: true,
  *invalidateMappings(att: DmaBufAttachment): Step<void> {
    const pages = att.importerPriv as Pages;
    yield* pages.mutex.lock();
    pages.dmabuf.phys = NOWHERE;
    pages.revokes++;
    pages.mutex.unlock();
  },
};

let rig: Rig;
let vdev: FakeDevice;
let pages: Pages;
beforeEach(() => {
  rig = new Rig();
  rig.kernel.modules.load("vfio_pci_core");
  exportPrivateMap(rig.kernel);
  vdev = new FakeDevice(rig);
  pages = new Pages(rig);
});

const map = (buf: DmaBuf): Errno | undefined => rig.run(ioptMapDmabuf(rig.kernel, pages, buf, importerOps));

const mapped = (): Errno | PhysVec => {
  const buf = vdev.buffer(vdev.export([{ offset: 0x2000n, length: 0x3000n }]));
  const err = map(buf);
  return err ?? pages.dmabuf.phys;
};

describe("the exporter's half", () => {
  const ask = (buf: DmaBuf, att: DmaBufAttachment): PhysVec | Errno => {
    const body = function* (): Step<PhysVec | Errno> {
      yield* buf.resv.lock();
      const r = vfioPciDmaBufIommufdMap(att);
      buf.resv.unlock();
      return r;
    };
    return rig.run(body());
  };
  const attached = (buf: DmaBuf): DmaBufAttachment => ok(rig.run(new Importer(plainDevice()).attach(buf)));

  it("wants the reservation held", () => {
    const att = attached(vdev.buffer(vdev.export()));
    expect(() => rig.call(() => vfioPciDmaBufIommufdMap(att))).toThrow(KernelBug);
  });

  it("gives the one range, and neither a reference nor a scatter list with it", () => {
    const buf = vdev.buffer(vdev.export([{ offset: 0x2000n, length: 0x3000n }]));
    const att = attached(buf);
    expect(ask(buf, att)).toEqual({ paddr: BAR_START + 0x2000n, len: 0x3000n });
    expect(att.maps).toBe(0);
    expect(rig.events.findLast((e) => !e.type.startsWith("sched."))).toMatchObject({
      type: "dma_buf.private_map",
      paddr: BAR_START + 0x2000n,
    });
  });

  it("§3 private map, §3 order: refuses another exporter's buffer first, then a revoked one, then more than one range", () => {
    const two = [
      { offset: 0n, length: 0x1000n },
      { offset: 0x1000n, length: 0x1000n },
    ];
    const foreign = new Exporter().export(rig);
    expect(ask(foreign, attached(foreign))).toBe(EOPNOTSUPP);
    const buf = vdev.buffer(vdev.export(two));
    const att = attached(buf);
    expect(ask(buf, att)).toBe(EOPNOTSUPP);
    rig.run(vdev.move(true));
    // Revoked comes before the count of ranges.
    expect(ask(buf, att)).toBe(ENODEV);
    rig.run(vdev.move(false));
    expect(ask(buf, att)).toBe(EOPNOTSUPP);
  });

  it("hands out a copy: what the importer does to it is its own affair", () => {
    const buf = vdev.buffer(vdev.export());
    const att = attached(buf);
    (ask(buf, att) as PhysVec).len = 0n;
    expect(ask(buf, att)).toEqual({ paddr: BAR_START, len: 0x1000n });
  });

  it("§4.1 row 13: lends its function to iommufd alone, and only while vfio-pci is loaded", () => {
    const { modules } = rig.kernel;
    expect(modules.symbolGet("vfio_pci_dma_buf_iommufd_map", "amdgpu")).toBeUndefined();
    expect(modules.symbolGet("vfio_pci_dma_buf_iommufd_map", "iommufd")).toBe(vfioPciDmaBufIommufdMap);
    expect(modules.unload("vfio_pci_core")).toBe(false);
    modules.symbolPut("vfio_pci_dma_buf_iommufd_map");
    expect(modules.unload("vfio_pci_core")).toBe(true);
    expect(modules.symbolGet("vfio_pci_dma_buf_iommufd_map", "iommufd")).toBeUndefined();
  });
});

describe("the importer's half", () => {
  it("attaches as its own misc device, dynamic and peer-to-peer, and notes the range", () => {
    expect(mapped()).toEqual({ paddr: BAR_START + 0x2000n, len: 0x3000n });
    expect(pages.dmabuf.attach?.dev).toBe(iommufdGlobalDevice(rig.kernel));
    expect(pages.dmabuf.attach).toMatchObject({ peer2peer: true, importerPriv: pages, pins: 1 });
    expect(rig.kernel.modules.refcount("vfio_pci_core")).toBe(1);
  });

  it("goes attach, pin, map: in this order, the symbol given back at once", () => {
    mapped();
    expect(rig.typesOf("dma_buf.").slice(-3)).toEqual(["dma_buf.attach", "dma_buf.pin", "dma_buf.private_map"]);
  });

  it("§9 row 2: undoes it all at the release: unpin under the reservation, detach, the buffer put", () => {
    mapped();
    rig.run(ioptReleaseDmabuf(pages));
    expect(rig.typesOf("dma_buf.").slice(-3)).toEqual(["dma_buf.unpin", "dma_buf.detach", "dma_buf.put"]);
    expect(pages.dmabuf.attach).toBeUndefined();
    rig.run(ioptReleaseDmabuf(pages));
    expect(rig.leaks()["dma_buf attachment"]).toBeUndefined();
  });

  it("§6 invalidate: is told of a revoke, synchronously, and stays without an address when the buffer lives again", () => {
    mapped();
    rig.run(vdev.move(true));
    expect([pages.dmabuf.phys.len, pages.revokes]).toEqual([0n, 1]);
    rig.run(vdev.move(false));
    expect(pages.dmabuf.phys.len).toBe(0n);
  });

  it("records that the mutex of the pages nests in the reservation, before any revoke has shown it", () => {
    mapped();
    expect(rig.kernel.sched.lockdep.edges()).toContainEqual(["RESV", "pages"]);
    const wrongWay = function* (): Step<void> {
      yield* pages.mutex.lock();
      yield* vdev.dmabufs[0]?.dmabuf.resv.lock() ?? (function* () {})();
    };
    expect(() => rig.run(wrongWay())).toThrow(/deadlock/);
  });

  const undone = (buf: DmaBuf): void => {
    expect([pages.dmabuf.attach, buf.attachments.length, rig.kernel.modules.refcount("vfio_pci_core")]).toEqual([
      undefined,
      0,
      vdev.dmabufs.length,
    ]);
    expect(pages.dmabuf.phys.len).toBe(0n);
  };

  it("§4.1 row 11: answers ENODEV for a revoked buffer, from the attach", () => {
    const buf = vdev.buffer(vdev.export());
    rig.run(vdev.move(true));
    expect(map(buf)).toBe(ENODEV);
    expect(rig.typesOf("dma_buf.").at(-1)).toBe("dma_buf.attach_refused");
    undone(buf);
  });

  it("§4.1 row 14, §9 row 1: answers ENODEV for one that is revoked between attach and map, and undoes attach and pin", () => {
    const buf = vdev.buffer(vdev.export());
    rig.kernel.sched.interleave = true;
    const t = rig.process.newThread("mapper");
    rig.kernel.sched.start(t, ioptMapDmabuf(rig.kernel, pages, buf, importerOps));
    // The first time it comes to the reservation it attaches; the second time it would map.
    for (let seen = 0; seen < 2; ) {
      rig.kernel.sched.step(t);
      if (t.point?.on.name === "RESV") seen++;
    }
    rig.run(vdev.move(true));
    // The invalidate met pages without an address: harmless.
    expect(pages.revokes).toBe(1);
    expect(rig.kernel.sched.finish(t)).toBe(ENODEV);
    rig.kernel.sched.interleave = false;
    undone(buf);
  });

  it("§4.1 row 14: answers EOPNOTSUPP for two ranges, also adjacent ones", () => {
    const buf = vdev.buffer(
      vdev.export([
        { offset: 0n, length: 0x1000n },
        { offset: 0x1000n, length: 0x1000n },
      ]),
    );
    expect(map(buf)).toBe(EOPNOTSUPP);
    undone(buf);
  });

  it("§4.1 row 13: answers EOPNOTSUPP where vfio-pci is not loaded", () => {
    const buf = new Exporter().export(rig);
    rig.kernel.modules.unload("vfio_pci_core");
    expect(map(buf)).toBe(EOPNOTSUPP);
  });

  it("§4.2 row 6, §9 row 1: answers EOPNOTSUPP to any other exporter, after its pin really ran, and undoes that", () => {
    const exporter = new Exporter({ pins: true });
    const buf = exporter.export(rig);
    expect(map(buf)).toBe(EOPNOTSUPP);
    expect(exporter.log).toEqual(["attach", "pin", "unpin", "detach"]);
    undone(buf);
    systemHeapInit(rig.kernel);
    const heap = ok(rig.call(() => systemHeapAllocate(rig.kernel, 0x1000n, 0)));
    expect(map(heap)).toBe(EOPNOTSUPP);
    expect(rig.events.find((e) => e.type === "dma_buf.private_map_refused" && e.ino === heap.ino)).toBeDefined();
    rig.call(() => dmaBufPut(heap));
  });

  it("§4.1 rows 11 and 12: passes on what the exporter answers to attach and to pin", () => {
    const exporter = new Exporter({ pins: true });
    const buf = exporter.export(rig);
    exporter.attachAnswer = EBUSY;
    expect(map(buf)).toBe(EBUSY);
    exporter.attachAnswer = undefined;
    exporter.pinAnswer = EOPNOTSUPP;
    expect(map(buf)).toBe(EOPNOTSUPP);
    expect(exporter.log).toEqual(["attach", "attach", "pin", "detach"]);
    undone(buf);
  });

  it("§4.1 row 13, §4.2 row 5: asks the selftest's exporter first, and vfio-pci when that says it is not its own", () => {
    const buf = vdev.buffer(vdev.export());
    const phys: PhysVec = { paddr: 0x1000n as PhysVec["paddr"], len: 0x1000n };
    const with_ = (answer: PhysVec | Errno) => rig.run(ioptMapDmabuf(rig.kernel, pages, buf, importerOps, () => answer));
    expect(with_(phys)).toBeUndefined();
    expect(pages.dmabuf.phys).toEqual(phys);
    rig.run(ioptReleaseDmabuf(pages));
    buf.file.get();
    pages = new Pages(rig);
    expect(with_(ENODEV)).toBe(ENODEV);
    expect(with_(EOPNOTSUPP)).toBeUndefined();
    expect(pages.dmabuf.phys.paddr).toBe(BAR_START);
  });

  it("whose callback takes the reservation again is told so", () => {
    const buf = vdev.buffer(vdev.export());
    const ops = {
      allowPeer2peer: true,
      *invalidateMappings(): Step<void> {
        yield* buf.resv.lock();
      },
    };
    rig.run(ioptMapDmabuf(rig.kernel, pages, buf, ops));
    const body = function* (): Step<void> {
      yield* buf.resv.lock();
      yield* dmaBufInvalidateMappings(buf);
    };
    expect(() => rig.run(body())).toThrow(/twice/);
  });
});
