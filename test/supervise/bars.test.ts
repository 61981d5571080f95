import { readFileSync } from "node:fs";
import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import type { PciModel } from "../../src/kernel/pci/pci_model.ts";
import { physAddr } from "../../src/lib/addr.ts";
import { EACCES, EBUSY, EINVAL, ENOMEM, ENXIO, EOVERFLOW } from "../../src/lib/errno.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PROT_READ } from "../../src/uapi/index.ts";
import * as V from "../../src/uapi/vfio.ts";
import { BarBench, forgetMapper, type HeldDevice, mapper, sleep } from "./bar_bench.ts";

const ORACLE = JSON.parse(readFileSync(new URL("../../machines/oracle.json", import.meta.url), "utf8")) as MachineDescription;
const MEM = PCI_COMMAND_MEMORY;
const REGISTERS = 0;
const MEMORY = 2;

let b: BarBench;
beforeEach(() => {
  b = new BarBench(ORACLE);
});
afterEach(async () => {
  await b.finish();
  expect(b.timers).toBe(0);
  expect(b.devices.windows).toBe(0);
});
afterAll(forgetMapper);

const pattern = (n: number, seed = 1): Uint8Array => Uint8Array.from({ length: n }, (_, i) => (i * 7 + seed) & 0xff);

function enabled(model: string): HeldDevice {
  const d = b.device(model);
  b.command(d, MEM | PCI_COMMAND_MASTER);
  return d;
}

describe("a mapping of a BAR is refused as Linux refuses it", () => {
  const last = (16n << 20n) - 4096n;
  it.each([
    ["past the BAR's end", MEMORY, last, 8192n, MAP_SHARED, EINVAL],
    ["that begins at the BAR's end", MEMORY, 16n << 20n, 4096n, MAP_SHARED, EINVAL],
    ["that is private", MEMORY, 0n, 4096n, MAP_PRIVATE, EINVAL],
    ["that is neither shared nor private", MEMORY, 0n, 4096n, 0, EINVAL],
    ["of no bytes", MEMORY, 0n, 0n, MAP_SHARED, EINVAL],
    ["between pages", MEMORY, 12n, 4096n, MAP_SHARED, EINVAL],
    ["of a BAR that is not there", 1, 0n, 4096n, MAP_SHARED, EINVAL],
    ["of config space", V.VFIO_PCI_CONFIG_REGION_INDEX, 0n, 4096n, MAP_SHARED, EINVAL],
    ["of the ROM", V.VFIO_PCI_ROM_REGION_INDEX, 0n, 4096n, MAP_SHARED, EINVAL],
    ["of no region", 9, 0n, 4096n, MAP_SHARED, EINVAL],
    ["below the first region", -1, 0n, 4096n, MAP_SHARED, EINVAL],
    ["of more than there are addresses", MEMORY, 0n, 1n << 47n, MAP_SHARED, ENOMEM],
    ["that leaves the offsets", MEMORY, (1n << 63n) - (3n << 40n), (1n << 46n) - 4096n, MAP_SHARED, EINVAL],
  ])("%s", (_, region, offset, length, flags, errno) => {
    const d = enabled("ivshmem");
    expect(b.mmap(d, b.regionOffset(region) + offset, length, flags)).toBe(errno);
    expect(b.devices.windows).toBe(0);
  });

  it("and one whose offset overflows, with EOVERFLOW", () => {
    const d = enabled("ivshmem");
    expect(b.mmap(d, 0xffff_ffff_ffff_f000n, 8192n)).toBe(EOVERFLOW);
  });

  it("of a file that is not bound yet", () => {
    const d = b.open("ivshmem");
    expect(b.mmap(d, b.regionOffset(MEMORY), 4096n)).toBe(EINVAL);
  });

  it("for writing, of a file that was opened for reading", () => {
    const d = enabled("ivshmem");
    d.file.flags = 0;
    expect(b.mmap(d, b.regionOffset(MEMORY), 4096n)).toBe(EACCES);
    expect(b.mmap(d, b.regionOffset(MEMORY), 4096n, MAP_SHARED, PROT_READ)).toBeUndefined();
  });

  it("of another file, as that file refuses it", () => {
    const d = enabled("ivshmem");
    const iommu = b.process.files.get(b.iommufd);
    const other = { ...d, file: iommu } as HeldDevice;
    expect(b.mmap(other, b.regionOffset(MEMORY), 4096n)).toBe(ENXIO);
  });

  it("and an anonymous one is not ours", () => {
    const d = enabled("ivshmem");
    expect(b.mmap(d, 0n, 4096n, MAP_SHARED | MAP_ANONYMOUS)).toBeUndefined();
    expect(b.devices.windows).toBe(0);
  });

  it("through a second open file of the same function", () => {
    const d = enabled("ivshmem");
    expect(b.mmap(d, b.regionOffset(MEMORY), 4096n)).toBeUndefined();
    const again = b.open("ivshmem");
    (again.file.privateData as { accessGranted: boolean }).accessGranted = true;
    expect(b.mmap(again, b.regionOffset(MEMORY), 4096n)).toBe(EBUSY);
    (again.file.privateData as { accessGranted: boolean }).accessGranted = false;
    expect(b.warnings[0]).toMatch(/another open file/);
  });
});

describe.skipIf(mapper() === undefined)("memory behind a BAR and a program's mapping of it", () => {
  it("are the same bytes: for pread, for a peer, and for the program", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    d.dev.fn.barWrite(MEMORY, 0x1000, pattern(64));
    const m = await b.map(d, p, MEMORY);
    expect(await p.read(m, 0x1000, 1)).toBe(BigInt(pattern(1)[0] as number));
    expect(await p.read(m, 0x2000)).toBe(0n);

    await p.write(m, 0x3000, 0x1122334455667788n);
    expect(b.pread(d, MEMORY, 0x3000, 8)).toEqual(Uint8Array.of(0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11));
    const peer = new Uint8Array(4);
    expect(d.dev.fn.barRead(MEMORY, 0x3000, peer)).toBe(true);
    expect(peer).toEqual(Uint8Array.of(0x88, 0x77, 0x66, 0x55));

    b.pwrite(d, MEMORY, 0xff_fff8, pattern(8, 9));
    expect(await p.read(m, 0xff_fff8, 1)).toBe(9n);
    d.dev.fn.barWrite(MEMORY, 5, Uint8Array.of(0xab));
    expect(await p.read(m, 5, 1)).toBe(0xabn);
  });

  it("are a peer's target: its DMA shows in the mapping, and reads what was stored", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    const bar = d.dev.resources[MEMORY]?.start ?? 0n;
    await p.write(m, 0x40, 0xfeedn);
    const got = new Uint8Array(8);
    expect(b.kernel.phys.read(physAddr(bar + 0x40n), got)).toBe(true);
    expect(got[0]).toBe(0xed);
    expect(b.kernel.phys.write(physAddr(bar + 0x80n), pattern(16))).toBe(true);
    expect(await p.read(m, 0x80, 1)).toBe(BigInt(pattern(1)[0] as number));
  });

  it("stay together through ranges, several mappings, fork, and the close of the descriptor", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const whole = await b.map(d, p, MEMORY);
    const part = await b.map(d, p, MEMORY, 0x10_0000n, 0x2000n);
    await p.write(part, 0x1008, 77n);
    expect(await p.read(whole, 0x10_1008)).toBe(77n);
    expect(await p.ask("u 0")).toBe("0");
    expect(await p.ask("c")).toBe("0");
    expect(Number(await p.ask("f"))).toBeGreaterThan(0);
    expect(await p.read(part, 0x1008)).toBe(77n);
    await p.write(part, 0, 5n);
    expect(b.pread(d, MEMORY, 0x10_0000, 1)).toEqual(Uint8Array.of(5));
  });

  it("part at the last close, when the bytes stay with the device", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    await p.write(m, 0x8000, 0x55n);
    await p.end();
    b.closed(d);
    const again = enabled("ivshmem");
    expect(b.pread(again, MEMORY, 0x8000, 1)).toEqual(Uint8Array.of(0x55));
    const q = b.program(again);
    const n = await b.map(again, q, MEMORY);
    expect(await q.read(n, 0x8000)).toBe(0x55n);
  });

  it("are the model's own too: it clears them, and the program sees it", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    await p.write(m, 0x8000, 0x55n);
    (d.dev.fn.model as PciModel & { memory: { clear(): void } }).memory.clear();
    expect(await p.read(m, 0x8000)).toBe(0n);
    await p.write(m, 0x8000, 0x66n);
    expect(b.pread(d, MEMORY, 0x8000, 1)).toEqual(Uint8Array.of(0x66));
  });
});

describe.skipIf(mapper() === undefined)("a revoke", () => {
  it("takes every mapping away until memory can be reached again, with all that was in it", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    const n = await b.map(d, p, MEMORY, 0x1000n, 0x1000n);
    await p.write(n, 8, 0x1234n);
    b.command(d, 0, MEM);
    expect(await p.read(m, 0)).toBe("SIGBUS");
    expect(await p.read(n, 8)).toBe("SIGBUS");
    expect(await p.write(m, 0, 1)).toBe("SIGBUS");
    b.command(d, MEM);
    expect(await p.read(m, 0x1008)).toBe(0x1234n);
    await p.write(m, 0x1008, 0x4321n);
    expect(await p.read(n, 8)).toBe(0x4321n);
  });

  it("takes it away from a child too, and from a mapping whose descriptor is closed", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    await p.ask("c");
    await p.ask("f");
    b.command(d, 0, MEM);
    expect(await p.read(m, 0)).toBe("SIGBUS");
    b.command(d, MEM);
    expect(await p.read(m, 0)).toBe(0n);
  });

  it("is not seen at all when it ends with memory reachable: a reset", async () => {
    const d = enabled("nvme");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    await p.write(m, 16, 9n);
    const events: string[] = [];
    b.kernel.trace.listen((r) => events.push(r.event.type));
    expect(b.ioctl(d.fd, V.VFIO_DEVICE_RESET)).toBe(0);
    expect(events).toContain("vfio.reset");
    expect(events).not.toContain("vfio.bar_window");
    expect(await p.read(m, 16)).toBe(9n);
  });

  it("holds while the program asked for low power", async () => {
    const d = enabled("nvme");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    await p.write(m, 16, 9n);
    const feature = (f: number): number => {
      const v = V.VfioDeviceFeature.alloc({ argsz: V.VfioDeviceFeature.size, flags: V.VFIO_DEVICE_FEATURE_SET | f });
      return b.ioctl(d.fd, V.VFIO_DEVICE_FEATURE, v) as number;
    };
    expect(feature(V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)).toBe(0);
    expect(await p.read(m, 16)).toBe("SIGBUS");
    expect(feature(V.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)).toBe(0);
    expect(await p.read(m, 16)).toBe(9n);
  });

  it("holds for a mapping made meanwhile, of this BAR or of another", async () => {
    const d = enabled("nvme");
    const p = b.program(d);
    await b.map(d, p, MEMORY);
    b.command(d, 0, MEM);
    const m = await b.map(d, p, MEMORY);
    const r = await b.map(d, p, REGISTERS);
    expect(await p.read(m, 0)).toBe("SIGBUS");
    expect(await p.read(r, 8, 4)).toBe("SIGBUS");
    b.command(d, MEM);
    expect(await p.read(m, 0)).toBe(0n);
    expect(await p.read(r, 8, 4)).toBe(0x10400n);
  });

  it("keeps the last store that went through, however close it came", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    // Much to be kept behind it, so that there is time for stores.
    for (let at = 0x20_0000; at < 16 << 20; at += 65536) d.dev.fn.barWrite(MEMORY, at, new Uint8Array(65536).fill(1));
    for (let i = 0; i < 10; i++) {
      const at = 0x10_0000 + 8 * i;
      const last = p.ask(`h ${m} ${at}`);
      // Until the program is at it.
      const word = new Uint8Array(8);
      while (word.every((x) => x === 0)) {
        await sleep(1);
        d.dev.fn.barRead(MEMORY, at, word);
      }
      b.command(d, 0, MEM);
      const count = BigInt(await last);
      expect(count).toBeGreaterThan(0n);
      b.command(d, MEM);
      expect(await p.read(m, at)).toBe(count);
    }
  });

  it("ends with each page's content there before the page is", async () => {
    const d = enabled("nvme");
    const p = b.program(d);
    const low = await b.map(d, p, MEMORY);
    const registers = await b.map(d, p, REGISTERS);
    b.write32(d, REGISTERS, 0xe04, 1);
    const high = await b.map(d, p, 4);
    const chunk = new Uint8Array(65536).fill(0x77);
    for (let at = 0; at < 2 << 20; at += chunk.length) d.dev.fn.barWrite(MEMORY, at, chunk);
    for (let at = 0; at < 16 << 20; at += chunk.length) d.dev.fn.barWrite(4, at, chunk);
    for (const [mapping, offset, want] of [
      [low, 0x1f_f000, 0x7777_7777_7777_7777n],
      [high, 0xff_f000, 0x7777_7777_7777_7777n],
      [high, 0, 0x7777_7777_7777_7777n],
      [registers, 8, 0x10400n],
    ] as const) {
      b.command(d, 0, MEM);
      const first = p.ask(`l ${mapping} ${offset}`);
      await sleep(2);
      b.command(d, MEM);
      expect(BigInt(await first)).toBe(want);
    }
  });

  it("keeps every page", async () => {
    const d = enabled("ivshmem");
    expect(b.mmap(d, b.regionOffset(MEMORY), 4096n)).toBeUndefined();
    for (let at = 0; at < 16 << 20; at += 4096) d.dev.fn.barWrite(MEMORY, at, Uint8Array.of(at >> 12, 1));
    b.command(d, 0, MEM);
    b.command(d, MEM);
    const got = new Uint8Array(2);
    for (let at = 0; at < 16 << 20; at += 4096) {
      d.dev.fn.barRead(MEMORY, at, got);
      if (got[0] !== ((at >> 12) & 0xff) || got[1] !== 1) throw new Error(`lost at ${at}`);
    }
  });

  it("keeps 16 MiB", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    const chunk = pattern(65536, 3);
    for (let at = 0; at < 16 << 20; at += chunk.length) d.dev.fn.barWrite(MEMORY, at, chunk);
    b.command(d, 0, MEM);
    b.command(d, MEM);
    for (const at of [0, 65535, 0x80_0001, 0xff_ffff]) expect(await p.read(m, at, 1)).toBe(BigInt(chunk[at % 65536] as number));
  });
});

describe.skipIf(mapper() === undefined)("memory that is switched on and off", () => {
  it("shows zeros while it is off, forgets what is stored then, and keeps what it has", async () => {
    const d = enabled("nvme");
    const p = b.program(d);
    const m = await b.map(d, p, 4);
    expect(await p.read(m, 0)).toBe(0n);
    await p.write(m, 64, 1n);
    await sleep(20);
    expect(await p.read(m, 64)).toBe(0n);
    b.write32(d, REGISTERS, 0xe04, 1);
    await p.write(m, 64, 2n);
    expect(b.pread(d, 4, 64, 1)).toEqual(Uint8Array.of(2));
    b.write32(d, REGISTERS, 0xe04, 0);
    expect(await p.read(m, 64)).toBe(0n);
    b.write32(d, REGISTERS, 0xe04, 1);
    expect(await p.read(m, 64)).toBe(2n);
  });

  it("is off after a reset", async () => {
    const d = enabled("nvme");
    const p = b.program(d);
    const m = await b.map(d, p, 4);
    b.write32(d, REGISTERS, 0xe04, 1);
    await p.write(m, 64, 2n);
    expect(b.ioctl(d.fd, V.VFIO_DEVICE_RESET)).toBe(0);
    expect(await p.read(m, 64)).toBe(0n);
    b.write32(d, REGISTERS, 0xe04, 1);
    expect(await p.read(m, 64)).toBe(2n);
  });

  it("shows ones when the function does not answer", async () => {
    const d = enabled("ivshmem");
    const p = b.program(d);
    const m = await b.map(d, p, MEMORY);
    await p.write(m, 0, 3n);
    d.dev.fn.parent?.configWrite(4, 2, 0);
    b.devices.beforeCall();
    expect(await p.read(m, 0)).toBe(0xffff_ffff_ffff_ffffn);
    d.dev.fn.parent?.configWrite(4, 2, 7);
    b.devices.beforeCall();
    expect(await p.read(m, 0)).toBe(3n);
  });
});
