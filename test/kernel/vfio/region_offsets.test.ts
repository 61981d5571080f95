/** Region offsets that begin elsewhere, and what tells the one who shows BARs to a real process that memory comes and goes. */
import { describe, expect, test } from "vitest";
import { EINVAL, type Errno } from "../../../src/lib/errno.ts";
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import { PCI_COMMAND_MEMORY } from "../../../src/uapi/pci_regs.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench } from "./bench.ts";

const BASE = 1;
const at = (region: number, offset = 0): bigint => (BigInt(region + BASE) << 40n) + BigInt(offset);
const bench = (): Bench => new Bench({ params: { regionOffsetBase: BASE } });

describe("regions whose offsets begin at 1 << 40", () => {
  const call = (b: Bench, fd: number, offset: bigint, write: boolean): number | Errno => {
    const addr = b.user(new Uint8Array(8));
    return b.run(write ? b.process.sys.pwrite(fd, addr, 4, offset) : b.process.sys.pread(fd, addr, 4, offset));
  };

  test("are told so by GET_REGION_INFO", () => {
    const b = bench();
    const fd = b.device();
    for (let index = 0; index < V.VFIO_PCI_VGA_REGION_INDEX; index++) {
      const info = V.VfioRegionInfo.alloc({ argsz: V.VfioRegionInfo.size, index });
      expect(b.ioctl(fd, V.VFIO_DEVICE_GET_REGION_INFO, info)).toBe(0);
      expect(info.offset).toBe(at(index));
    }
  });

  test("are read and written there, and below there is nothing", () => {
    const b = bench();
    const fd = b.device();
    expect(call(b, fd, at(0), true)).toBe(4);
    expect(call(b, fd, at(V.VFIO_PCI_CONFIG_REGION_INDEX), false)).toBe(4);
    for (const offset of [0n, 0x1000n, at(0) - 4n]) {
      expect(call(b, fd, offset, false)).toBe(EINVAL);
      expect(call(b, fd, offset, true)).toBe(EINVAL);
    }
    expect(call(b, fd, at(9), false)).toBe(EINVAL);
  });

  test("are mapped there, and zapped there", () => {
    const b = bench();
    const fd = b.device();
    const map = (offset: bigint): bigint | Errno => b.run(b.process.sys.mmap(0n, 4096n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset));
    expect(map(0n)).toBe(EINVAL);
    expect(map(at(V.VFIO_PCI_CONFIG_REGION_INDEX))).toBe(EINVAL);
    const addr = map(at(0, 0x1000)) as bigint;
    const load = (): unknown => b.run(b.process.space.load(addr, new Uint8Array(4)));
    b.process.space.write(b.user(Uint8Array.of(0, 0)), Uint8Array.of(0, 0));
    b.run(b.process.sys.pwrite(fd, b.user(Uint8Array.of(PCI_COMMAND_MEMORY, 0)), 2, at(V.VFIO_PCI_CONFIG_REGION_INDEX, 4)));
    expect(load()).toBe("ok");
    b.run(b.process.sys.pwrite(fd, b.user(Uint8Array.of(0, 0)), 2, at(V.VFIO_PCI_CONFIG_REGION_INDEX, 4)));
    expect(load()).toBe("SIGBUS");
  });

  test("are where an ioeventfd writes", () => {
    const b = bench();
    const fd = b.device();
    const e = b.ok(b.process.sys.eventfd(0));
    const set = (offset: bigint): number | Errno =>
      b.ioctl(
        fd,
        V.VFIO_DEVICE_IOEVENTFD,
        V.VfioDeviceIoeventfd.alloc({ argsz: V.VfioDeviceIoeventfd.size, flags: 4, offset, data: 1n, fd: e }),
      );
    expect(set(8n)).toBe(EINVAL);
    expect(set(at(2, 8))).toBe(0);
  });
});

describe("who shows the BARs to a real process", () => {
  test("is told each time a writer lets go of the memory lock, and not before", () => {
    const b = bench();
    const fd = b.device();
    const core = b.core();
    const seen: boolean[] = [];
    core.memoryLock.released = () => {
      expect(core.memoryLock.heldForWriting).toBe(false);
      seen.push(core.barsReachable());
    };
    const command = (v: number): unknown =>
      b.run(b.process.sys.pwrite(fd, b.user(Uint8Array.of(v, 0)), 2, at(V.VFIO_PCI_CONFIG_REGION_INDEX, 4)));
    command(PCI_COMMAND_MEMORY);
    expect(seen.at(-1)).toBe(true);
    command(0);
    expect(seen.at(-1)).toBe(false);
    command(PCI_COMMAND_MEMORY);
    const before = seen.length;
    expect(b.ioctl(fd, V.VFIO_DEVICE_RESET)).toBe(0);
    expect(seen.slice(before)).toContain(true);
    expect(seen.slice(before)).not.toContain(false);
    core.memoryLock.released = undefined;
  });
});

describe("with mapRegisters off", () => {
  test("only memory can be mapped, and GET_REGION_INFO says so", () => {
    const b = new Bench({ params: { mapRegisters: false } });
    const fd = b.device();
    const mappable = (index: number): boolean => {
      const info = V.VfioRegionInfo.alloc({ argsz: V.VfioRegionInfo.size, index });
      expect(b.ioctl(fd, V.VFIO_DEVICE_GET_REGION_INFO, info)).toBe(0);
      return (info.flags & V.VFIO_REGION_INFO_FLAG_MMAP) !== 0;
    };
    expect([0, 2, 4].map(mappable)).toEqual([true, false, false]);
    const map = (offset: bigint): bigint | Errno => b.run(b.process.sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, fd, offset));
    expect(map(0n)).toBeTypeOf("bigint");
    expect(map(4n << 40n)).toBe(EINVAL);
  });
});
