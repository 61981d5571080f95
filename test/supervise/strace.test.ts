import { describe, expect, it } from "vitest";
import { ENOENT, type Errno } from "../../src/lib/index.ts";
import * as sys from "../../src/supervise/numbers.ts";
import { openFlags, StraceWriter } from "../../src/supervise/strace.ts";
import type { TrappedCall } from "../../src/supervise/types.ts";
import * as u from "../../src/uapi/index.ts";

const AT = 0x1000n;

/** A call as the writer sees it: registers, one piece of memory at 0x1000, one device file behind descriptor 3. */
function call(nr: number, args: bigint[], memory: Uint8Array = new Uint8Array(0), path = "/dev/iommu"): TrappedCall {
  return {
    id: 1n,
    pid: 42,
    tid: 42,
    nr,
    args: [...args, 0n, 0n, 0n, 0n, 0n, 0n].slice(0, 6),
    int: (i: number) => Number(BigInt.asIntN(32, args[i] ?? 0n)),
    path: () => "/dev/iommu",
    fd: (fd: number) => (fd === 3 ? { path } : undefined),
    memory: {
      read: (at: bigint, dst: Uint8Array) => {
        const from = Number(at - AT);
        if (from < 0) return dst.length;
        const n = Math.max(0, Math.min(dst.length, memory.length - from));
        dst.set(memory.subarray(from, from + n));
        return dst.length - n;
      },
    },
  } as unknown as TrappedCall;
}

function lines(c: TrappedCall, result: bigint | undefined, error: Errno | undefined, change: () => void = () => {}): string[] {
  const out: string[] = [];
  const w = new StraceWriter((l) => out.push(l));
  w.begin(c);
  change();
  w.end(c, result, error);
  return out;
}

describe("--strace", () => {
  it("shows an ioctl's struct with its flags by name, and what the kernel changed in it", () => {
    const m = u.IommuIoasMapFile.alloc({
      size: u.IommuIoasMapFile.size,
      flags: 6,
      ioas_id: 3,
      fd: 9,
      start: 0n,
      length: 0x200000n,
      iova: 0n,
    });
    const c = call(sys.SYS_ioctl, [3n, BigInt(u.IOMMU_IOAS_MAP_FILE), AT], m.bytes);
    const [line = ""] = lines(c, 0n, undefined, () => {
      m.iova = 0x400000n;
    });
    expect(line).toBe(
      "[pid 42] ioctl(3</dev/iommu>, IOMMU_IOAS_MAP_FILE, {size=40, flags=IOMMU_IOAS_MAP_WRITEABLE|IOMMU_IOAS_MAP_READABLE, ioas_id=3, fd=9, start=0x0, length=0x200000, iova=0x0} => {iova=0x400000}) = 0",
    );
  });

  it("shows a failure with its errno and what that means", () => {
    const d = u.IommuDestroy.alloc({ size: u.IommuDestroy.size, id: 7 });
    const c = call(sys.SYS_ioctl, [3n, BigInt(u.IOMMU_DESTROY), AT], d.bytes);
    expect(lines(c, -2n, ENOENT)).toEqual([
      "[pid 42] ioctl(3</dev/iommu>, IOMMU_DESTROY, {size=8, id=7}) = -1 ENOENT (nothing by that name or id)",
    ]);
  });

  it("tells VFIO's numbers apart by what the descriptor is", () => {
    const r = u.VfioRegionInfo.alloc({ argsz: u.VfioRegionInfo.size, index: 2 });
    const c = call(sys.SYS_ioctl, [3n, BigInt(u.VFIO_DEVICE_GET_REGION_INFO), AT], r.bytes, "/dev/vfio/devices/vfio0");
    expect(lines(c, 0n, undefined)[0]).toContain("VFIO_DEVICE_GET_REGION_INFO, {argsz=32");
  });

  it("shows a pointer that cannot be read as the number it is", () => {
    const c = call(sys.SYS_ioctl, [3n, BigInt(u.IOMMU_DESTROY), 0x10n]);
    expect(lines(c, -14n, ENOENT)[0]).toContain("IOMMU_DESTROY, 0x10)");
  });

  it("shows the path and the flags of an open by name", () => {
    const c = call(sys.SYS_openat, [0xffffff9cn, AT, BigInt(u.O_RDWR | u.O_CLOEXEC)]);
    expect(lines(c, 5n, undefined)).toEqual(['[pid 42] openat(AT_FDCWD, "/dev/iommu", O_RDWR|O_CLOEXEC) = 5']);
    expect(openFlags(0x40000001)).toBe("O_WRONLY|0x40000000");
  });

  it("says nothing of a call that the real kernel answered", () => {
    expect(lines(call(sys.SYS_openat, [0xffffff9cn, AT, 0n]), undefined, undefined)).toEqual([]);
  });
});
