/**
 * Section 4 of the interconnect's specification: the checks of
 * IOMMU_IOAS_MAP_FILE, in their order, end to end over ioctls. Every fault is
 * tried alone, and with every later one that it does not exclude: the earlier
 * one answers.
 */
import { beforeEach, describe, expect, test } from "vitest";
import { dmaBufFd } from "../../src/kernel/dma_buf/dma_buf.ts";
import {
  E2BIG,
  EBADF,
  EEXIST,
  EFAULT,
  EINVAL,
  ENODEV,
  ENOENT,
  ENOMEM,
  ENOSPC,
  EOPNOTSUPP,
  EOVERFLOW,
  type Errno,
} from "../../src/lib/errno.ts";
import {
  IOMMU_IOAS_ALLOW_IOVAS,
  IOMMU_IOAS_MAP_FILE,
  IommuIoasAllowIovas,
  IommuIoasMapFile,
  IommuIovaRange,
  O_PATH,
  O_RDWR,
  PROT_READ,
} from "../../src/uapi/index.ts";
import { Exporter } from "../kernel/dma_buf/support.ts";
import { FIXED, IommufdRig, type MapFileInit, ok, RW } from "../kernel/iommufd/support.ts";

const MAX = 0xffff_ffff_ffff_ffffn;

interface Setting {
  readonly r: IommufdRig;
  /** With a domain. */
  readonly ioas: number;
  /** 4 pages, live. */
  readonly dmabuf: number;
  /** Two ranges. */
  readonly twoRanges: number;
  readonly foreign: number;
}

let s: Setting;

beforeEach(() => {
  const r = new IommufdRig();
  const ioas = r.allocIoas();
  r.attached(ioas);
  const twoRanges = r.vfio.export([
    { offset: 0n, length: 0x2000n },
    { offset: 0x2000n, length: 0x2000n },
  ]);
  const buf = new Exporter().export(r, 0x4000n);
  const foreign = ok(r.call(() => dmaBufFd(r.process, buf, 0)));
  s = { r, ioas, dmabuf: r.dmabuf(), twoRanges, foreign };
  ok(r.mapFile({ ioas_id: ioas, fd: s.dmabuf, length: 0x1000n, iova: 0x80000n, flags: RW | FIXED }));
});

interface Fault {
  /** Row of the table. */
  readonly row: string;
  readonly errno: Errno;
  readonly what: string;
  /** Members of the command that it sets. */
  set(s: Setting): MapFileInit;
  /** What else it does first. */
  before?(s: Setting): void;
}

const good = (s: Setting): MapFileInit => ({
  size: IommuIoasMapFile.size,
  ioas_id: s.ioas,
  fd: s.dmabuf,
  length: 0x1000n,
  iova: 0x10000n,
  flags: RW | FIXED,
});

const FAULTS: readonly Fault[] = [
  { row: "§4.1 row 1", errno: EINVAL, what: "the structure is too short", set: () => ({ size: 32 }) },
  { row: "§4.1 row 2", errno: EOPNOTSUPP, what: "an unknown flag", set: () => ({ flags: RW | FIXED | 8 }) },
  { row: "§4.1 row 3", errno: EOVERFLOW, what: "iova is the last one", set: () => ({ iova: MAX }) },
  { row: "§4.1 row 3", errno: EOVERFLOW, what: "length is everything", set: () => ({ length: MAX }) },
  { row: "§4.1 row 4", errno: EINVAL, what: "neither readable nor writeable", set: () => ({ flags: FIXED }) },
  { row: "§4.1 row 5", errno: ENOENT, what: "no such IOAS", set: () => ({ ioas_id: 99 }) },
  { row: "§4.1 row 6", errno: EINVAL, what: "no bytes", set: () => ({ length: 0n }) },
  { row: "§4.1 row 7", errno: EOVERFLOW, what: "start + length wraps", set: () => ({ start: MAX - 0xfffn, length: 0x2000n }) },
  { row: "§4.1 row 8", errno: EBADF, what: "a closed descriptor", set: () => ({ fd: 99 }) },
  { row: "§4.1 row 9", errno: EINVAL, what: "past the end of the buffer", set: () => ({ start: 0x4000n }) },
  { row: "§4.1 row 11", errno: ENODEV, what: "revoked before the attach", set: (x) => ({ fd: x.dmabuf }), before: (x) => x.r.revoke(true) },
  { row: "§4.1 row 13", errno: EOPNOTSUPP, what: "another exporter's buffer", set: (x) => ({ fd: x.foreign }) },
  { row: "§4.1 row 14", errno: EOPNOTSUPP, what: "a buffer of two ranges", set: (x) => ({ fd: x.twoRanges }) },
  { row: "§4.1 row 16", errno: EINVAL, what: "length is no multiple of a page", set: () => ({ length: 0x1010n }) },
  { row: "§4.1 row 17'", errno: EINVAL, what: "iova is not on a page", set: () => ({ iova: 0x10010n }) },
  { row: "§4.1 row 17'", errno: EOVERFLOW, what: "iova + length wraps", set: () => ({ iova: MAX - 0xfffn, length: 0x2000n }) },
  { row: "§4.1 row 17'", errno: EINVAL, what: "iova is in the interrupt window", set: () => ({ iova: 0xfee0_0000n }) },
  { row: "§4.1 row 17'", errno: EINVAL, what: "iova is past the aperture", set: () => ({ iova: 0x1_0000_0000_0000n }) },
  { row: "§4.1 row 17'", errno: EEXIST, what: "iova is taken", set: () => ({ iova: 0x80000n }) },
  { row: "§4.1 row 18", errno: EINVAL, what: "start is not on a page", set: () => ({ start: 0x10n }) },
];

describe("the order of checks", () => {
  test("§4.2 row 1: without a fault it is mapped", () => {
    expect(s.r.mapFile(good(s))).toBe(0x10000n);
    s.r.check();
  });

  test("§4.1 row 1: unknown bytes behind the structure are too big, before anything of the structure is looked at", () => {
    const bytes = new Uint8Array(IommuIoasMapFile.size + 8);
    const cmd = IommuIoasMapFile.over(bytes.subarray(0, IommuIoasMapFile.size));
    Object.assign(cmd, { ...good(s), size: bytes.length, flags: 0x80 });
    bytes[bytes.length - 1] = 1;
    const at = s.r.put(bytes);
    expect(s.r.run(s.r.process.sys.ioctl(s.r.fd, IOMMU_IOAS_MAP_FILE, at))).toBe(E2BIG);
  });

  for (const f of FAULTS) {
    test(`${f.row}: ${f.what} → ${f.errno.name}`, () => {
      f.before?.(s);
      const areas = s.r.leaks()["iommufd area"];
      expect(s.r.mapFile({ ...good(s), ...f.set(s) })).toBe(f.errno);
      expect(s.r.leaks()["iommufd area"]).toBe(areas);
      s.r.check();
    });
  }

  for (const [i, first] of FAULTS.entries()) {
    test(`${first.row}: ${first.what} comes before every later fault`, () => {
      for (const later of FAULTS.slice(i + 1)) {
        const a = first.set(s);
        const b = later.set(s);
        if (later.row === first.row || Object.keys(a).some((k) => k in b)) continue;
        // A revoke stays: it is tried in a test of its own.
        if (later.before !== undefined) continue;
        first.before?.(s);
        expect(s.r.mapFile({ ...good(s), ...b, ...a }), `${first.what}, and ${later.what}`).toBe(first.errno);
      }
      s.r.check();
    });
  }

  test("a fault before row 11 comes before a revoke, one after it does not", () => {
    s.r.revoke(true);
    const at = FAULTS.findIndex((f) => f.row === "§4.1 row 11");
    for (const [i, f] of FAULTS.entries()) {
      if (i === at || f.row === "§4.1 row 13") continue;
      expect(s.r.mapFile({ ...good(s), ...f.set(s) }), f.what).toBe(i < at ? f.errno : ENODEV);
    }
  });
});

describe("the rest of the table", () => {
  test("§4.1 row 17: the kernel looks for an IOVA in what is allowed, and says when there is none", () => {
    const at = s.r.put(IommuIovaRange.alloc({ start: 0x3000n, last: 0x4fffn }).bytes);
    const allow = IommuIoasAllowIovas.alloc({ size: IommuIoasAllowIovas.size, ioas_id: s.ioas, num_iovas: 1, allowed_iovas: at });
    expect(s.r.ioctl(IOMMU_IOAS_ALLOW_IOVAS, allow)).toBe(0);
    const auto = { ...good(s), flags: RW };
    expect(s.r.mapFile({ ...auto, length: 0x4000n })).toBe(ENOSPC);
    expect(s.r.mapFile(auto)).toBe(0x3000n);
    expect(s.r.mapFile(auto)).toBe(0x4000n);
    expect(s.r.mapFile(auto)).toBe(ENOSPC);
    expect(s.r.mapFile({ ...auto, start: 0x10n })).toBe(EINVAL);
    s.r.check();
  });

  test("§4.1 row 20: when the answer cannot be copied back the mapping stays", () => {
    const cmd = IommuIoasMapFile.alloc(good(s));
    const at = s.r.put(cmd.bytes);
    ok(s.r.run(s.r.process.sys.mprotect(at, 4096n, PROT_READ)) ?? 0);
    expect(s.r.run(s.r.process.sys.ioctl(s.r.fd, IOMMU_IOAS_MAP_FILE, at))).toBe(EFAULT);
    expect(s.r.mapFile(good(s))).toBe(EEXIST);
    expect(s.r.unmap(s.ioas, 0x10000n, 0x1000n)).toBe(0x1000n);
  });

  test("§4.2 rows 2 and 3, §3 order: a revoked buffer of two ranges is gone rather than unsupported", () => {
    s.r.revoke(true);
    expect(s.r.mapFile({ ...good(s), fd: s.twoRanges })).toBe(ENODEV);
  });

  test("§4.1 row 8: an O_PATH descriptor is no descriptor, a pipe is no memory", () => {
    const path = ok(s.r.run(s.r.process.sys.open("/dev/iommu", O_RDWR | O_PATH)));
    expect(s.r.mapFile({ ...good(s), fd: path })).toBe(EBADF);
    expect(s.r.mapFile({ ...good(s), fd: s.r.fd })).toBe(EINVAL);
    expect(s.r.mapFile({ ...good(s), fd: s.r.memfd(0x1000), length: 0x2000n })).toBe(EINVAL);
    expect(s.r.mapFile({ ...good(s), fd: s.r.memfd(0x2000), length: 0x2000n })).toBe(0x10000n);
    s.r.check();
  });

  test("§4.2 row 8: without a domain any file is taken, as nothing pins it", () => {
    const ioas = s.r.allocIoas();
    expect(s.r.mapFile({ ...good(s), ioas_id: ioas, fd: s.r.fd })).toBe(0x10000n);
    expect(s.r.unmap(ioas, 0x10000n, 0x1000n)).toBe(0x1000n);
    s.r.check();
  });

  test("§4.2 sub-ranges: without a domain bytes need no alignment", () => {
    const ioas = s.r.allocIoas();
    expect(s.r.mapFile({ ...good(s), ioas_id: ioas, start: 0x13n, length: 5n, iova: 0x10007n })).toBe(0x10007n);
  });

  test("§4.2 accounting, §4.2 row 8: memory of files is charged, device memory is not", () => {
    s.r.process.creds.capabilities.clear();
    s.r.process.rlimits.memlock = 0x1000n;
    expect(s.r.mapFile({ ...good(s), fd: s.r.memfd(0x2000), length: 0x2000n })).toBe(ENOMEM);
    expect(s.r.mapFile({ ...good(s), length: 0x2000n })).toBe(0x10000n);
    s.r.check();
  });

  test("§4.3 points 2 and 3: one map for the whole run, or one per page without large pages", () => {
    s.r.events.length = 0;
    ok(s.r.mapFile({ ...good(s), length: 0x4000n }));
    const maps = s.r.events.filter((e) => e.type === "iommu.map");
    expect(maps).toMatchObject([{ iova: 0x10000n, length: 0x4000n, prot: 1 | 2 | 16 }]);
  });
});
