import { readFileSync } from "node:fs";
import fc from "fast-check";
import { afterAll, afterEach, beforeEach, describe, expect, it } from "vitest";
import { Edu, Ivshmem, Nvme, PciTestdev } from "../../src/devices/index.ts";
import { type BarStore, type PciFunctionDescription, PciModel, type PciPort } from "../../src/kernel/pci/pci_model.ts";
import { builtinModels } from "../../src/machine/models.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import { BUSY_MS, CALM_MS, Doorbells, LAZY_MS, RegisterImage } from "../../src/supervise/doorbells.ts";
import { PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../src/uapi/index.ts";
import { BarBench, forgetMapper, type HeldDevice, mapper, type Program, sleep } from "./bar_bench.ts";

const ORACLE = JSON.parse(readFileSync(new URL("../../machines/oracle.json", import.meta.url), "utf8")) as MachineDescription;
const ID = 0;
const LIVENESS = 4;
const FACTORIAL = 8;
const STATUS = 0x20;
const IRQ_STATUS = 0x24;
const IRQ_RAISE = 0x60;
const IRQ_ACK = 0x64;
const SRC = 0x80;
const DST = 0x88;
const COUNT = 0x90;
const CMD = 0x98;
const BUFFER = 0x40000n;
/** Long enough for any machine: what takes longer hangs. */
const PATIENCE_MS = 20_000;

let b: BarBench;
const open = (machine: MachineDescription = ORACLE, options = {}): BarBench => {
  b = new BarBench(machine, options);
  return b;
};
afterEach(async () => {
  await b?.finish();
  expect(b?.timers ?? 0).toBe(0);
});
afterAll(forgetMapper);

function enabled(model: string): HeldDevice {
  const d = b.device(model);
  b.command(d, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  return d;
}

async function eventually(what: () => Promise<boolean> | boolean): Promise<void> {
  const until = performance.now() + PATIENCE_MS;
  while (!(await what())) {
    if (performance.now() > until) throw new Error(`not within ${PATIENCE_MS} ms`);
    await sleep(0);
  }
}

describe.skipIf(mapper() === undefined)("registers in a mapping", () => {
  let edu: HeldDevice;
  let p: Program;
  let m: number;
  beforeEach(async () => {
    open();
    edu = enabled("edu");
    p = b.program(edu);
    m = await b.map(edu, p, 0);
  });

  it("read as the device answers, and as nothing answers elsewhere", async () => {
    expect(await p.read(m, ID, 4)).toBe(0x010000edn);
    for (const off of [0xc, 0xa0, 0xffc, 0x1000, 0xf_fffc]) expect(await p.read(m, off, 4)).toBe(0xffff_ffffn);
    expect(await p.read(m, SRC, 8)).toBe(0n);
  });

  it("take what is stored to the device, and show what it makes of it", async () => {
    expect(await p.ask(`s ${m} ${LIVENESS} 4 0x12345678 ${LIVENESS} 4 0xffffffff 0xedcba987`)).not.toBe("TIMEOUT");
    expect(b.read32(edu, 0, LIVENESS)).toBe(0xedcba987);
    expect(await p.ask(`s ${m} ${FACTORIAL} 4 10 ${FACTORIAL} 4 0xffffffff 3628800`)).not.toBe("TIMEOUT");
  });

  it("show what a call changed before the call returns", async () => {
    b.write32(edu, 0, LIVENESS, 0);
    expect(await p.read(m, LIVENESS, 4)).toBe(0xffff_ffffn);
    b.write32(edu, 0, IRQ_RAISE, 3);
    expect(await p.read(m, IRQ_STATUS, 4)).toBe(3n);
  });

  it("take what was stored before a call to the device before the call", async () => {
    await p.write(m, LIVENESS, 1, 4);
    expect(b.read32(edu, 0, LIVENESS)).toBe(0xfffffffe);
  });

  it("start a transfer by stores in the order of a driver, 64 bits wide, and show its end", async () => {
    await p.write(m, SRC, BUFFER, 8);
    await p.write(m, DST, 0x1000n, 8);
    await p.write(m, COUNT, 64n, 8);
    expect(Number(await p.ask(`s ${m} ${CMD} 4 7 ${CMD} 4 1 0`))).toBeGreaterThan(50_000);
    const { fn } = edu.dev;
    const reg = new Uint8Array(8);
    fn.barRead(0, DST, reg);
    expect(reg[1]).toBe(0x10);
    expect(await p.read(m, IRQ_STATUS, 4)).toBe(0x100n);
    await p.write(m, IRQ_ACK, 0x100, 4);
    await eventually(async () => (await p.read(m, IRQ_STATUS, 4)) === 0n);
  });

  it("take the same value again where the device shows another", async () => {
    for (let i = 0; i < 3; i++) {
      expect(await p.ask(`s ${m} ${IRQ_RAISE} 4 1 ${IRQ_STATUS} 4 1 1`)).not.toBe("TIMEOUT");
      expect(await p.ask(`s ${m} ${IRQ_ACK} 4 1 ${IRQ_STATUS} 4 1 0`)).not.toBe("TIMEOUT");
    }
  });

  it("forget what is stored where there are none", async () => {
    await p.write(m, 0xa0, 1, 4);
    await p.write(m, 0x5_0000, 1, 4);
    await eventually(async () => (await p.read(m, 0xa0, 4)) === 0xffff_ffffn);
    await eventually(async () => (await p.read(m, 0x5_0000, 4)) === 0xffff_ffffn);
  });

  it("cannot be reached while memory is off, and show what happened when it is on again", async () => {
    await p.write(m, LIVENESS, 5, 4);
    b.command(edu, 0, PCI_COMMAND_MEMORY);
    expect(await p.read(m, LIVENESS, 4)).toBe("SIGBUS");
    expect(b.timers).toBe(0);
    b.command(edu, PCI_COMMAND_MEMORY);
    expect(b.timers).toBe(1);
    expect(await p.read(m, LIVENESS, 4)).toBe(0xffff_fffan);
    expect(b.read32(edu, 0, LIVENESS)).toBe(0xfffffffa);
  });

  it("get the last stores of a program that ends without another word", async () => {
    const stores: number[] = [];
    b.kernel.trace.listen((r) => {
      if (r.event.type === "vfio.bar_store") stores.push(r.event.offset);
    });
    await p.write(m, LIVENESS, 1, 4);
    await p.end();
    b.closed(edu);
    expect(stores).toEqual([LIVENESS]);
  });

  it("reach the device when it is idle", async () => {
    expect(await p.ask(`s ${m} ${LIVENESS} 4 9 ${LIVENESS} 4 0xffffffff 0xfffffff6`)).not.toBe("TIMEOUT");
  });

  it("tell the trace of each store", async () => {
    const stores: unknown[] = [];
    b.kernel.trace.listen((r) => {
      if (r.event.type === "vfio.bar_store") stores.push([r.event.offset, r.event.length, r.event.value]);
    });
    await p.write(m, STATUS, 0x80, 4);
    await p.write(m, SRC, 0x1_0000_0001n, 8);
    b.devices.beforeCall();
    expect(stores).toEqual([
      [STATUS, 4, 0x80n],
      [SRC, 8, 0x1_0000_0001n],
    ]);
  });
});

/** Counts accesses; declares nothing. BAR 0: 256 KiB of registers that hold what is written. BAR 2: one that is cleared by reading. */
const PLAIN: PciFunctionDescription = {
  name: "plain",
  vendor: 0x1234,
  device: 0x9999,
  class: 0xff0000,
  bars: [
    { index: 0, size: 0x4_0000n, kind: "mem32" },
    { index: 2, size: 0x1000n, kind: "mem32", accessSize: 2 },
  ],
  capabilities: { pcie: { flr: true }, pm: {} },
};
class Plain extends PciModel {
  readonly description = PLAIN;
  readonly held: Map<number, number> = new Map();
  readonly writes: [number, number, number][] = [];
  port: PciPort | undefined;
  pending = 0;
  override attach(port: PciPort): void {
    this.port = port;
  }
  override barRead(bar: number, offset: number, size: number): bigint {
    if (bar === 2) {
      const was = this.pending;
      this.pending = 0;
      return BigInt(was);
    }
    return BigInt(this.held.get(offset) ?? 0) & ((1n << BigInt(8 * size)) - 1n);
  }
  override barPeek(bar: number, offset: number, size: number): bigint {
    return bar === 2 ? BigInt(offset === 0 ? this.pending : 0) : this.barRead(bar, offset, size);
  }
  override barWrite(bar: number, offset: number, size: number, value: bigint): void {
    this.writes.push([bar, offset, Number(value)]);
    if (bar === 0 && size === 4) this.held.set(offset, Number(value));
    if (bar === 2 && offset === 2) this.pending = Number(value);
  }
}

const CUSTOM: MachineDescription = {
  name: "custom",
  iommu: { kind: "intel-legacy" },
  pci: { children: [{ type: "root-port", children: [{ type: "device", model: "plain" }] }] },
} as MachineDescription;

describe.skipIf(mapper() === undefined)("registers of a model that declares none", () => {
  let d: HeldDevice;
  let model: Plain;
  let p: Program;
  beforeEach(() => {
    open(CUSTOM, { models: { ...builtinModels, plain: { resolve: () => () => new Plain() } } });
    d = enabled("plain");
    model = d.dev.fn.model as Plain;
    p = b.program(d);
  });

  it("may be anywhere: a store far out is found by the sweep, the next one at once", async () => {
    const m = await b.map(d, p, 0);
    await p.write(m, 0x3_0010, 7, 4);
    await eventually(() => model.held.get(0x3_0010) === 7);
    await p.write(m, 0x3_0010, 8, 4);
    b.devices.beforeCall();
    expect(model.held.get(0x3_0010)).toBe(8);
  });

  it("arrive in ascending order, each once, those that did not change not at all", async () => {
    const m = await b.map(d, p, 0);
    for (const off of [0x30, 8, 0x20]) await p.write(m, off, off + 1, 4);
    b.devices.beforeCall();
    const seen = model.writes.map(([, o]) => o);
    expect(new Set(seen)).toEqual(new Set([8, 0x20, 0x30]));
    expect(seen.length).toBe(3);
    await p.write(m, 8, 9, 4);
    b.devices.beforeCall();
    await sleep(20);
    expect(model.writes.length).toBe(3);
  });

  it("show far out, too, what the device changed", async () => {
    const m = await b.map(d, p, 0);
    b.write32(d, 0, 0x2_0000, 99);
    await eventually(async () => (await p.read(m, 0x2_0000, 4)) === 99n);
  });

  it("are not read with effect by being shown", async () => {
    const m = await b.map(d, p, 2);
    b.pwrite(d, 2, 2, Uint8Array.of(5, 0));
    expect(await p.read(m, 0, 2)).toBe(5n);
    await sleep(20);
    expect(await p.read(m, 0, 2)).toBe(5n);
    expect(b.pread(d, 2, 0, 2)).toEqual(Uint8Array.of(5, 0));
    expect(await p.read(m, 0, 2)).toBe(0n);
  });

  it("show what a timer of the device changed", async () => {
    const m = await b.map(d, p, 0);
    model.port?.delay(5_000_000, () => model.held.set(0x40, 0x1234));
    await eventually(async () => (await p.read(m, 0x40, 4)) === 0x1234n);
  });
});

describe.skipIf(mapper() === undefined)("the table of MSI-X in a mapping", () => {
  it("is the function's", async () => {
    open();
    const d = enabled("nvme");
    const p = b.program(d);
    const m = await b.map(d, p, 0);
    expect(await p.read(m, 0x200c, 4)).toBe(1n);
    await p.write(m, 0x200c, 0, 4);
    b.devices.beforeCall();
    expect(d.dev.fn.msix?.masked(0)).toBe(false);
    expect(d.dev.fn.msix?.masked(1)).toBe(true);
  });
});

/** A store that somebody writes to between our accesses. */
class Shaken implements BarStore {
  readonly bytes: Uint8Array;
  /** Called before each access of ours. */
  before: (what: "read" | "write", offset: number) => void = () => {};
  constructor(size: number) {
    this.bytes = new Uint8Array(size);
  }
  read(offset: number, dst: Uint8Array): void {
    // As the real one: byte after byte, while others store.
    for (let i = 0; i < dst.length; i++) {
      this.before("read", offset + i);
      dst[i] = this.bytes[offset + i] as number;
    }
  }
  write(offset: number, src: Uint8Array): void {
    this.before("write", offset);
    this.bytes.set(src, offset);
  }
  clear(): void {
    this.bytes.fill(0);
  }
  data(): Iterable<{ offset: number; length: number }> {
    return [{ offset: 0, length: this.bytes.length }];
  }
}

describe("a look while the program stores", () => {
  it("never takes a later store without an earlier one", () => {
    open(CUSTOM, { models: { ...builtinModels, plain: { resolve: () => () => new Plain() } } });
    const d = enabled("plain");
    const model = d.dev.fn.model as Plain;
    const store = new Shaken(0x4_0000);
    const image = new RegisterImage(d.dev.fn, 0, store);
    // While the look is past 0x10 the program stores to 0x10, then to 0x20.
    let stored = false;
    store.bytes[4] = 1;
    store.before = (what, offset) => {
      if (stored || what !== "read" || offset !== 0x18) return;
      stored = true;
      store.bytes[0x10] = 1;
      store.bytes[0x20] = 1;
    };
    image.look();
    const order = model.writes.map(([, o]) => o);
    expect(order).toEqual([4, 0x10, 0x20]);
  });

  it("does not write over a store that came while it was busy", () => {
    open();
    const d = enabled("edu");
    const store = new Shaken(0x10_0000);
    const image = new RegisterImage(d.dev.fn, 0, store);
    store.bytes[LIVENESS] = 1;
    let stores = 0;
    let seen = 0;
    // Between what it found and what it writes back there is a second store.
    store.before = (what, offset) => {
      if (what !== "read" || offset !== LIVENESS) return;
      if (++seen === 3) {
        stores++;
        store.bytes.set([2, 0, 0, 0], LIVENESS);
      }
    };
    image.look();
    expect(stores).toBe(1);
    expect(store.bytes.subarray(LIVENESS, LIVENESS + 4)).toEqual(Uint8Array.of(0xfd, 0xff, 0xff, 0xff));
  });
});

describe("an image, whatever the program and the device do", () => {
  const SPAN = 0x2_0000;
  const place = fc.oneof(
    fc.constantFrom(0, 4, 8, 0xffc, 0x1000, 0x8000, SPAN - 4),
    fc.nat(SPAN / 4 - 1).map((n) => 4 * n),
  );
  const step = fc.oneof(
    { weight: 4, arbitrary: fc.record({ op: fc.constant("store" as const), at: place, value: fc.integer({ min: 0, max: 3 }) }) },
    { weight: 2, arbitrary: fc.record({ op: fc.constant("change" as const), at: place, value: fc.integer({ min: 0, max: 3 }) }) },
    { weight: 2, arbitrary: fc.constant({ op: "look" as const }) },
    { weight: 1, arbitrary: fc.constant({ op: "sweep" as const }) },
  );

  it("ends as the device is, and the device has every last store", () => {
    open(CUSTOM, { models: { ...builtinModels, plain: { resolve: () => () => new Plain() } } });
    const d = enabled("plain");
    const model = d.dev.fn.model as Plain;
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        model.held.clear();
        const store = new Shaken(0x4_0000);
        const image = new RegisterImage(d.dev.fn, 0, store);
        const words = new DataView(store.bytes.buffer);
        const expected = new Map<number, number>();
        /** Stored and perhaps not seen yet: what the device does there meanwhile, the store overrides. */
        const pending = new Set<number>();
        for (const s of steps) {
          if (s.op === "store") {
            // A store of what is shown is no change, and loses against the device's own.
            if (words.getUint32(s.at, true) === s.value && !pending.has(s.at)) continue;
            words.setUint32(s.at, s.value, true);
            expected.set(s.at, s.value);
            pending.add(s.at);
          } else if (s.op === "change") {
            if (pending.has(s.at)) continue;
            model.held.set(s.at, s.value);
            expected.set(s.at, s.value);
            image.refresh();
            // Far out the image may be behind; there a store that equals what is shown still must count.
            image.sweepAll();
            image.look();
            pending.clear();
          } else if (s.op === "look") image.look();
          else image.sweep();
        }
        for (let i = 0; i < SPAN / 4096; i++) image.sweepAll();
        image.look();
        for (const [at, value] of expected) {
          expect([at, model.held.get(at) ?? 0]).toEqual([at, value]);
          expect([at, words.getUint32(at, true)]).toEqual([at, value]);
        }
      }),
      { numRuns: 40 },
    );
  });
});

describe("what barlink's own models declare of their registers", () => {
  const models: [string, PciModel][] = [
    ["edu", new Edu()],
    ["nvme", new Nvme()],
    ["pci-testdev", new PciTestdev()],
    ["ivshmem", new Ivshmem()],
  ];
  const cases = models.flatMap(([name, model]) =>
    model.description.bars.filter((bar) => bar.registers !== undefined).map((bar) => [name, bar, model] as const),
  );
  it.each(cases)("%s: elsewhere everything reads the same, before and after it is written", (name, bar, model) => {
    const map = bar.registers;
    if (map === undefined) return;
    const msix = model.description.capabilities?.msix;
    const ones = (1n << 32n) - 1n;
    const look = (): void => {
      for (let off = 0; off < Number(bar.size); off += 4) {
        if (map.ranges.some((r) => off >= r.offset && off < r.offset + r.length)) continue;
        if (msix?.tableBar === bar.index && off >= msix.tableOffset) continue;
        const v = model.barPeek(bar.index, off, 4) & ones;
        if (v !== (map.elsewhere === 0 ? 0n : ones))
          throw new Error(`${name} BAR ${bar.index}: ${off.toString(16)} reads ${v.toString(16)}`);
      }
    };
    look();
    for (let off = 0; off < Number(bar.size); off += 4) {
      if (!map.ranges.some((r) => off >= r.offset && off < r.offset + r.length)) model.barWrite(bar.index, off, 4, 0x5a5a5a5an);
    }
    look();
    for (const r of map.ranges) expect([r.offset % r.width, r.length % r.width]).toEqual([0, 0]);
  });
});

describe("the pace of looking", () => {
  it("costs nothing while there is nothing to look at", () => {
    let asked = 0;
    const d = new Doorbells(() => {
      asked++;
      return () => {};
    });
    d.look();
    expect([asked, d.size, d.interval]).toEqual([0, 0, 0]);
  });

  it("becomes slower while nothing happens, and fast again at once when something does", () => {
    open();
    const edu = enabled("edu");
    const store = new Shaken(0x10_0000);
    let now = 0;
    let tick = (): void => {};
    const d = new Doorbells(
      (_ms, callback) => {
        tick = callback;
        return () => {
          tick = (): void => {};
        };
      },
      () => now,
    );
    const later = (ms: number): number => {
      now += ms;
      tick();
      return d.interval;
    };
    const image = new RegisterImage(edu.dev.fn, 0, store);
    d.add(image);
    expect([d.interval, later(99), later(1), later(899), later(1), later(60_000)]).toEqual([
      BUSY_MS,
      BUSY_MS,
      CALM_MS,
      CALM_MS,
      LAZY_MS,
      LAZY_MS,
    ]);
    store.bytes[LIVENESS] = 1;
    expect([later(LAZY_MS), later(99), later(1)]).toEqual([BUSY_MS, BUSY_MS, CALM_MS]);
    d.remove(image);
    image.stop();
    expect([d.interval, d.size]).toEqual([0, 0]);
  });
});
