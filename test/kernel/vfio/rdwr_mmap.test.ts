/** BARs by read, write and map: vfio_pci_rdwr.c, and the fault path of vfio_pci_core.c. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { EEXIST, EFAULT, EINVAL, EIO, ENODEV, Errno } from "../../../src/lib/errno.ts";
import { MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import { PCI_COMMAND, PCI_COMMAND_MEMORY, PCI_PM_CTRL } from "../../../src/uapi/pci_regs.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, RAM_BYTES, TINY } from "./bench.ts";

const memory = (b: Bench, fd: number, on: boolean): void => {
  expect(b.configWrite(fd, PCI_COMMAND, 2, on ? PCI_COMMAND_MEMORY : 0)).toBe(2);
};

describe("read and write", () => {
  test("memory gives back what was written, and an access stops at the BAR's end", () => {
    const b = new Bench();
    const fd = b.device();
    fc.assert(
      fc.property(fc.nat(Number(RAM_BYTES) - 1), fc.uint8Array({ minLength: 1, maxLength: 40 }), (at, bytes) => {
        const n = Math.min(bytes.length, Number(RAM_BYTES) - at);
        expect(b.pwrite(fd, 0, at, [...bytes])).toBe(n);
        expect(b.pread(fd, 0, at, bytes.length)).toEqual(bytes.subarray(0, n));
      }),
      { numRuns: 100 },
    );
    expect(b.pread(fd, 0, Number(RAM_BYTES), 1)).toBe(EINVAL);
  });

  test("an access goes out in the widest aligned pieces", () => {
    const b = new Bench();
    const fd = b.device();
    const seen = b.model().accesses;
    seen.length = 0;
    b.pread(fd, 2, 1, 23);
    expect(seen).toEqual([
      [1, 1],
      [2, 2],
      [4, 4],
      [8, 8],
      [16, 8],
    ]);
    seen.length = 0;
    b.pwrite(fd, 2, 6, [1, 2, 3, 4, 5, 6, 7]);
    expect(seen).toEqual([
      [6, 2, 0x0201n],
      [8, 4, 0x06050403n],
      [12, 1, 7n],
    ]);
  });

  test("the MSI-X table is a hole: ones, and writes vanish", () => {
    const b = new Bench();
    const fd = b.device();
    expect(b.pread(fd, 4, 0x7fe, 6)).toEqual(Uint8Array.from([0x11, 0x22, 0xff, 0xff, 0xff, 0xff]));
    b.model().accesses.length = 0;
    expect(b.pwrite(fd, 4, 0x87e, [1, 2, 3, 4])).toBe(4);
    expect(b.model().accesses).toEqual([[0x880, 2, 0x0403n]]);
  });

  test("with memory off every access is EIO, but not in the hole", () => {
    const b = new Bench();
    const fd = b.device();
    memory(b, fd, false);
    expect(b.pread(fd, 0, 0, 8)).toBe(EIO);
    expect(b.pwrite(fd, 0, 0, [1])).toBe(EIO);
    expect(b.pread(fd, 4, 0x800, 8)).toEqual(new Uint8Array(8).fill(0xff));
    memory(b, fd, true);
    expect(b.pread(fd, 0, 0, 8)).toHaveLength(8);
  });

  test("in D3hot it is EIO too", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, b.pdev().pmCap + PCI_PM_CTRL, 2, 3);
    expect(b.pread(fd, 0, 0, 4)).toBe(EIO);
  });

  test("a bad buffer is EFAULT on a read, and comes before EIO on a write", () => {
    const b = new Bench();
    const fd = b.device();
    expect(b.run(b.process.sys.pread(fd, 0x10n, 8, 0n))).toBe(EFAULT);
    memory(b, fd, false);
    expect(b.run(b.process.sys.pwrite(fd, 0x10n, 8, 0n))).toBe(EFAULT);
    expect(b.run(b.process.sys.pread(fd, 0x10n, 8, 0n))).toBe(EIO);
  });

  test("a BAR that somebody else has stays unusable, and cannot be exported", () => {
    const b = new Bench();
    b.pdev().requestRegion(0, "somebody");
    const fd = b.device();
    expect(b.pread(fd, 0, 0, 4)).toBeInstanceOf(Errno);
    expect(b.exportBar(fd)).toBe(ENODEV);
    expect(b.pread(fd, 2, 0, 4)).toHaveLength(4);
    b.close(fd);
    expect(b.pdev().regionOwner(0)).toBe("somebody");
    expect(b.pdev().regionOwner(2)).toBeUndefined();
    b.pdev().releaseRegion(0);
  });
});

describe("mmap", () => {
  const map = (b: Bench, fd: number, length = RAM_BYTES, offset = 0n, flags: number = MAP_SHARED): bigint | Errno =>
    b.run(b.process.sys.mmap(0n, length, PROT_READ | PROT_WRITE, flags, fd, offset));

  const load = (b: Bench, addr: bigint): unknown => b.run(b.process.space.load(addr, new Uint8Array(4)));

  test.each([
    ["private", RAM_BYTES, 0n, MAP_PRIVATE],
    ["longer than the BAR", RAM_BYTES + 4096n, 0n, MAP_SHARED],
    ["past its end", 4096n, RAM_BYTES, MAP_SHARED],
    ["of config space", 4096n, 7n << 40n, MAP_SHARED],
    ["of the ROM", 4096n, 6n << 40n, MAP_SHARED],
    ["of no region", 4096n, 9n << 40n, MAP_SHARED],
    ["of a BAR that is not there", 4096n, 1n << 40n, MAP_SHARED],
  ])("a map %s is refused", (_name, length, offset, flags) => {
    const b = new Bench();
    const fd = b.device();
    expect(map(b, fd, length, offset, flags)).toBe(EINVAL);
  });

  test("stores reach the BAR and loads see it", () => {
    const b = new Bench();
    const fd = b.device();
    const at = map(b, fd) as bigint;
    b.run(b.process.space.store(at + 0x1004n, Uint8Array.from([1, 2, 3, 4])));
    expect(b.pread(fd, 0, 0x1004, 4)).toEqual(Uint8Array.from([1, 2, 3, 4]));
  });

  test("turning memory off takes the pages out: SIGBUS until it is on again", () => {
    const b = new Bench();
    const fd = b.device();
    const at = map(b, fd) as bigint;
    const fine = load(b, at);
    memory(b, fd, false);
    expect(load(b, at)).not.toEqual(fine);
    expect(JSON.stringify(load(b, at))).toContain("SIGBUS");
    memory(b, fd, true);
    expect(load(b, at)).toEqual(fine);
  });

  test("low power gives SIGBUS though a read through the file wakes the device", () => {
    const b = new Bench();
    const fd = b.device();
    const at = map(b, fd) as bigint;
    const fine = load(b, at);
    expect(b.feature(fd, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)).toBe(0);
    expect(load(b, at)).not.toEqual(fine);
    expect(b.pread(fd, 0, 0, 4)).toHaveLength(4);
    expect(b.feature(fd, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)).toBe(0);
    expect(load(b, at)).toEqual(fine);
  });

  test("a map outlives the close of the descriptor and keeps the device open", () => {
    const b = new Bench();
    const fd = b.device();
    const at = map(b, fd) as bigint;
    b.close(fd);
    expect(b.core().vdev.openCount).toBe(1);
    b.run(b.process.sys.munmap(at, RAM_BYTES));
    b.settle();
    expect(b.core().vdev.openCount).toBe(0);
  });
});

describe("GET_REGION_INFO", () => {
  const info = (b: Bench, fd: number, index: number, argsz: number = V.VfioRegionInfo.size) => {
    const bytes = new Uint8Array(64);
    const v = V.VfioRegionInfo.over(bytes);
    v.argsz = argsz;
    v.index = index;
    return { result: b.ioctl(fd, V.VFIO_DEVICE_GET_REGION_INFO, { bytes }), info: v, bytes };
  };

  test("sizes, offsets and flags", () => {
    const b = new Bench();
    const fd = b.device();
    const rw = V.VFIO_REGION_INFO_FLAG_READ | V.VFIO_REGION_INFO_FLAG_WRITE;
    expect(info(b, fd, 0).info).toMatchObject({ size: RAM_BYTES, offset: 0n, flags: rw | V.VFIO_REGION_INFO_FLAG_MMAP });
    expect(info(b, fd, 1).info).toMatchObject({ size: 0n, offset: 1n << 40n, flags: 0 });
    expect(info(b, fd, 7).info).toMatchObject({ size: 4096n, offset: 7n << 40n, flags: rw });
    expect(info(b, fd, 6).info).toMatchObject({ size: 0n, flags: 0 });
    for (const index of [8, 9, 0xffff_ffff]) expect(info(b, fd, index).result).toBe(EINVAL);
    expect(info(b, fd, 0, 31).result).toBe(EINVAL);
  });

  test("the BAR of the MSI-X table says that it may be mapped; a short answer tells the size it needs", () => {
    const b = new Bench();
    const fd = b.device();
    const short = info(b, fd, 4);
    expect(short.info).toMatchObject({ argsz: 40, cap_offset: 0 });
    expect(short.info.flags & V.VFIO_REGION_INFO_FLAG_CAPS).not.toBe(0);
    const long = info(b, fd, 4, 40);
    expect(long.info.cap_offset).toBe(32);
    expect([...long.bytes.subarray(32, 40)]).toEqual([3, 0, 1, 0, 0, 0, 0, 0]);
  });
});

describe("ioeventfd", () => {
  const set = (b: Bench, fd: number, offset: bigint, flags: number, data: bigint, efd: number): number | Errno =>
    b.ioctl(fd, V.VFIO_DEVICE_IOEVENTFD, V.VfioDeviceIoeventfd.alloc({ argsz: V.VfioDeviceIoeventfd.size, flags, offset, data, fd: efd }));

  test("a signal writes the value, until it is taken away", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    const at = (2n << 40n) + 8n;
    expect(set(b, fd, at, 4, 0xaabbccddn, e)).toBe(0);
    expect(set(b, fd, at, 4, 0xaabbccddn, e)).toBe(EEXIST);
    b.model().accesses.length = 0;
    b.signalEventfd(e);
    expect(b.model().accesses).toEqual([[8, 4, 0xaabbccddn]]);
    expect(set(b, fd, at, 4, 0xaabbccddn, -1)).toBe(0);
    expect(set(b, fd, at, 4, 0xaabbccddn, -1)).toBe(ENODEV);
    b.signalEventfd(e);
    expect(b.model().accesses).toHaveLength(1);
  });

  test("with memory off the write is dropped", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    expect(set(b, fd, 2n << 40n, 1, 1n, e)).toBe(0);
    memory(b, fd, false);
    b.model().accesses.length = 0;
    b.signalEventfd(e);
    expect(b.model().accesses).toEqual([]);
  });

  test("not in the MSI-X table, past a BAR, of no width or two, or elsewhere", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    expect(set(b, fd, (4n << 40n) + 0x7fcn, 8, 0n, e)).toBe(EINVAL);
    expect(set(b, fd, (4n << 40n) + 0x7f8n, 8, 0n, e)).toBe(0);
    expect(set(b, fd, (2n << 40n) + 0xfdn, 4, 0n, e)).toBe(EINVAL);
    for (const flags of [0, 3, 16]) expect(set(b, fd, 2n << 40n, flags, 0n, e)).toBe(EINVAL);
    expect(set(b, fd, 7n << 40n, 4, 0n, e)).toBe(EINVAL);
    expect(set(b, fd, 2n << 40n, 4, 0n, -2)).toBe(EINVAL);
  });
});

test("a function whose BARs cannot be mapped offers neither map nor access", () => {
  const b = new Bench({ functions: [{ ...TINY, nonMappableBars: true }] });
  const fd = b.device();
  expect(b.run(b.process.sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, fd))).toBe(EINVAL);
  expect(b.pread(fd, 0, 0, 4)).toBe(ENODEV);
});
