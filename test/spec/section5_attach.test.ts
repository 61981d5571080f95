/**
 * Section 5 from the device's side: what a VFIO device can be attached to, its
 * PASIDs, and the one way from a mapped BAR into an IOAS that there is not.
 */
import { describe, expect, test } from "vitest";
import { IommuFault } from "../../src/kernel/iommu/iommu.ts";
import { EBUSY, EFAULT, EINVAL, ENOENT, Errno } from "../../src/lib/errno.ts";
import {
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_READABLE,
  IommuHwptAlloc,
  IommuIoasMap,
  IommuIoasMapFile,
  MAP_SHARED,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PROT_READ,
  PROT_WRITE,
} from "../../src/uapi/index.ts";
import * as V from "../../src/uapi/vfio.ts";
import { FIXED, IommufdRig, ok, RW } from "../kernel/iommufd/support.ts";
import { Bench, type BenchOptions, RAM_BYTES } from "../kernel/vfio/bench.ts";

/** An opened device with its BAR 0 exported. */
class Scene extends Bench {
  readonly fd: number;
  readonly devId: number;

  constructor(options: BenchOptions = {}) {
    super(options);
    this.fd = this.device();
    this.configWrite(this.fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    this.devId = this.core().vdev.iommufdDevice?.id ?? 0;
  }

  exported(): number {
    return ok(this.exportBar(this.fd));
  }

  hwpt(ioas: number, flags = 0): number | Errno {
    const cmd = IommuHwptAlloc.alloc({ size: IommuHwptAlloc.size, dev_id: this.devId, pt_id: ioas, flags });
    const r = this.ioctl(this.iommufd, IOMMU_HWPT_ALLOC, cmd);
    return r instanceof Errno ? r : cmd.out_hwpt_id;
  }

  attachPasid(pasid: number, pt: number): number | Errno {
    const cmd = V.VfioDeviceAttachIommufdPt.alloc({ argsz: 16, flags: V.VFIO_DEVICE_ATTACH_PASID, pt_id: pt, pasid });
    const r = this.ioctl(this.fd, V.VFIO_DEVICE_ATTACH_IOMMUFD_PT, cmd);
    return r instanceof Errno ? r : cmd.pt_id;
  }

  detachPasid(pasid: number): number | Errno {
    const cmd = V.VfioDeviceDetachIommufdPt.alloc({ argsz: 12, flags: V.VFIO_DEVICE_DETACH_PASID, pasid });
    return this.ioctl(this.fd, V.VFIO_DEVICE_DETACH_IOMMUFD_PT, cmd);
  }

  detach(): number | Errno {
    return this.ioctl(this.fd, V.VFIO_DEVICE_DETACH_IOMMUFD_PT, V.VfioDeviceDetachIommufdPt.alloc({ argsz: 8 }));
  }

  reaches(iova: bigint, pasid: number): boolean {
    return !(this.kernel.iommu.translate(this.pdev().rid, iova, true, pasid) instanceof IommuFault);
  }
}

/** The device can tag its requests, and the unit looks at the tags. */
function withPasids(): Scene {
  const s = new Scene({ iommu: { kind: "intel-scalable", pasid: true } });
  const requester = s.kernel.iommu.units[0]?.requesters.get(s.pdev().rid);
  if (requester === undefined) throw new Error("no requester");
  requester.maxPasids = 16;
  return s;
}

describe("a PASID of a VFIO device", () => {
  test("is attached, replaced and detached by itself; a revoke reaches its table too", () => {
    const s = withPasids();
    const [a, b] = [s.ioas(), s.ioas()];
    const [first, second] = [ok(s.hwpt(a, IOMMU_HWPT_ALLOC_PASID)), ok(s.hwpt(b, IOMMU_HWPT_ALLOC_PASID))];
    const buf = s.exported();
    const iova = ok(s.mapFile(a, buf));
    expect(s.attachPasid(3, first)).toBe(first);
    expect([s.reaches(iova, 3), s.reaches(iova, 4), s.reaches(iova, 0)]).toEqual([true, false, false]);
    expect(s.destroy(first)).toBe(EBUSY);

    expect(s.attachPasid(3, second)).toBe(second);
    expect(s.reaches(iova, 3)).toBe(false);
    expect(s.mapFile(b, buf)).toBe(iova);
    expect(s.reaches(iova, 3)).toBe(true);
    expect(s.destroy(first)).toBe(0);

    s.configWrite(s.fd, PCI_COMMAND, 2, 0);
    expect(s.reaches(iova, 3)).toBe(false);
    expect(s.unmap(b, iova, RAM_BYTES)).toBe(RAM_BYTES);

    expect(s.detachPasid(3)).toBe(0);
    expect(s.detachPasid(3)).toBe(0);
    expect(s.detachPasid(7)).toBe(0);
    expect(s.destroy(second)).toBe(0);
  });

  test("takes only a table that was made for PASIDs, and one below the device's limit", () => {
    const s = withPasids();
    const ioas = s.ioas();
    const plain = ok(s.hwpt(ioas));
    const pasid = ok(s.hwpt(ioas, IOMMU_HWPT_ALLOC_PASID));
    expect(s.attachPasid(3, plain)).toBe(EINVAL);
    expect(s.attachPasid(3, ioas)).toBe(EINVAL);
    expect(s.attachPasid(16, pasid)).toBe(EINVAL);
    expect(s.attachPasid(3, 99)).toBe(ENOENT);
    // A failed replace leaves it where it was.
    expect(s.attachPasid(3, pasid)).toBe(pasid);
    expect(s.attachPasid(3, plain)).toBe(EINVAL);
    expect(s.destroy(pasid)).toBe(EBUSY);
    // The whole device may join on a table for PASIDs, and on no other while PASIDs are attached.
    expect(s.attach(s.fd, plain)).toBe(EINVAL);
    expect(s.attach(s.fd, pasid)).toBe(0);
    expect(s.detach()).toBe(0);
    expect(s.detachPasid(3)).toBe(0);
    expect(s.attach(s.fd, plain)).toBe(0);
    expect(s.attachPasid(3, pasid)).toBe(EINVAL);
  });

  test("that keeps its device from another table of the IOAS costs the IOAS no reserved range, unlike on Linux", () => {
    const s = withPasids();
    const ioas = s.ioas();
    const [pasid, plain] = [ok(s.hwpt(ioas, IOMMU_HWPT_ALLOC_PASID)), ok(s.hwpt(ioas))];
    expect(s.attach(s.fd, pasid)).toBe(0);
    expect(s.attachPasid(3, pasid)).toBe(pasid);
    expect(s.attach(s.fd, plain)).toBe(EINVAL);
    const window = IommuIoasMapFile.alloc({
      size: IommuIoasMapFile.size,
      flags: RW | FIXED,
      ioas_id: ioas,
      fd: s.exported(),
      length: RAM_BYTES,
      iova: 0xfee0_0000n,
    });
    expect(s.ioctl(s.iommufd, IOMMU_IOAS_MAP_FILE, window)).toBe(EINVAL);
  });

  test("goes with the close of the device", () => {
    const s = withPasids();
    const ioas = s.ioas();
    const pt = ok(s.hwpt(ioas, IOMMU_HWPT_ALLOC_PASID));
    for (const pasid of [5, 2, 9]) expect(s.attachPasid(pasid, pt)).toBe(pt);
    expect(s.attach(s.fd, pt)).toBe(0);
    s.close(s.fd);
    expect(s.destroy(pt)).toBe(0);
    expect(s.destroy(ioas)).toBe(0);
  });

  test("of a device without PASIDs is noted and routes nothing, as Linux skips such devices", () => {
    const s = new Scene();
    const ioas = s.ioas();
    const pt = ok(s.hwpt(ioas, IOMMU_HWPT_ALLOC_PASID));
    const iova = ok(s.mapFile(ioas, s.exported()));
    expect(s.attachPasid(3, ioas)).toBe(EINVAL);
    expect(s.attachPasid(3, pt)).toBe(pt);
    expect(s.destroy(pt)).toBe(EBUSY);
    expect([s.reaches(iova, 3), s.reaches(iova, 0)]).toEqual([false, false]);
    expect(s.detachPasid(3)).toBe(0);
    expect(s.destroy(pt)).toBe(0);
  });

  test("PASID 0 is the whole device, and only the flag undoes it (N25)", () => {
    const s = new Scene();
    const ioas = s.ioas();
    const iova = ok(s.mapFile(ioas, s.exported()));
    expect(s.attachPasid(0, ioas)).not.toBeInstanceOf(Errno);
    expect(s.reaches(iova, 0)).toBe(true);
    expect(s.attach(s.fd, ioas)).toBe(EBUSY);
    expect(s.detach()).toBe(0);
    expect(s.reaches(iova, 0)).toBe(true);
    expect(s.destroy(ioas)).toBe(EBUSY);
    expect(s.detachPasid(0)).toBe(0);
    expect(s.reaches(iova, 0)).toBe(false);
  });
});

test("§5 row 13: a BAR that is mapped into the process cannot be pinned, so IOAS_MAP of it answers EFAULT", () => {
  const s = new Scene();
  const ioas = s.ioas();
  expect(s.attach(s.fd, ioas)).toBe(0);
  const user_va = ok(s.run(s.process.sys.mmap(0n, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd, 0n)));
  const cmd = IommuIoasMap.alloc({ size: IommuIoasMap.size, ioas_id: ioas, user_va, length: RAM_BYTES, flags: IOMMU_IOAS_MAP_READABLE });
  s.run(s.process.space.store(user_va, Uint8Array.from([1, 2, 3, 4])));
  expect(s.ioctl(s.iommufd, IOMMU_IOAS_MAP, cmd)).toBe(EFAULT);
  // The CPU goes on reaching it.
  expect(s.pread(s.fd, 0, 0, 4)).toEqual(Uint8Array.from([1, 2, 3, 4]));
});

describe("a page table of another IOMMU driver", () => {
  test("is refused to an attach and, unlike Linux's, to a replace (N23)", () => {
    const r = new IommufdRig();
    r.kernel.iommu.addUnit({ kind: "amd" });
    const [a, b] = [r.allocIoas(), r.allocIoas()];
    ok(r.mapFile({ ioas_id: a, fd: r.dmabuf(), length: 0x4000n, iova: 0x10000n, flags: RW | FIXED }));
    const intel = r.bind();
    const amd = r.bind(r.device({ unit: 1 }));
    const theirs = ok(r.attach(amd, b));
    expect(r.attach(intel, theirs)).toBe(EINVAL);
    const ours = ok(r.attach(intel, a));
    expect(r.replace(intel, theirs)).toBe(EINVAL);
    expect(r.kernel.iommu.translate(intel.dev.rid, 0x10000n, true)).not.toBeInstanceOf(IommuFault);
    expect(r.destroy(ours)).toBe(EBUSY);
    r.check();
    // The IOAS itself takes both: each gets a table of its own.
    expect(r.replace(intel, b)).not.toBe(theirs);
    r.check();
    expect(r.kernel.iommu.translate(intel.dev.rid, 0x10000n, true)).toBeInstanceOf(IommuFault);
  });
});
