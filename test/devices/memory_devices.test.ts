import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Edu, Ivshmem, Nvme, type PciModel } from "../../src/devices/index.ts";
import { configTemplate } from "../../src/kernel/pci/config_template.ts";

describe("ivshmem", () => {
  it("has memory of the size asked, zero at first, that a reset leaves alone", () => {
    const dev = new Ivshmem({ size: 0x4000_0000n });
    expect(dev.description.bars.map((b) => [b.index, b.size])).toEqual([
      [0, 256n],
      [2, 0x4000_0000n],
    ]);
    const memory = dev.barMemory(2);
    const buf = new Uint8Array([9, 9, 9]);
    memory?.read(0x3fff_fffd, buf);
    expect([...buf]).toEqual([0, 0, 0]);
    memory?.write(0x1234_fffe, new Uint8Array([1, 2, 3]));
    dev.reset();
    memory?.read(0x1234_fffe, buf);
    expect([...buf]).toEqual([1, 2, 3]);
  });

  it("keeps the interrupt mask, and clears the status when it is read", () => {
    const dev = new Ivshmem();
    dev.barWrite(0, 0, 4, 0xffn);
    dev.barWrite(0, 4, 4, 0x5n);
    dev.barWrite(0, 12, 4, 0x1n);
    expect([0, 4, 4, 8, 12, 0xfc].map((o) => dev.barRead(0, o, 4))).toEqual([0xffn, 5n, 0n, 0n, 0n, 0n]);
  });

  it.each([0n, 2048n, 0x1001n])("refuses %i bytes", (size) => {
    expect(() => new Ivshmem({ size })).toThrow(RangeError);
  });
});

describe("nvme", () => {
  const read = (dev: Nvme, offset: number, size = 4): bigint => dev.barRead(0, offset, size);

  /** As recorded: [offset, value] with a CMB of 2 MiB and a PMR of 16 MiB, after a controller reset. */
  it.each([
    [0x00, 0x0f0107ffn],
    [0x04, 0x03401820n],
    [0x08, 0x00010400n],
    [0x0c, 0n],
    [0x14, 0n],
    [0x1c, 0n],
    [0x20, 0n],
    [0x38, 0n],
    [0x3c, 0n],
    [0x50, 0n],
    [0x58, 0n],
    [0xe00, 0x01000898n],
    [0xe04, 0n],
    [0xe08, 0n],
    [0xe14, 0n],
    [0x1000, 0n],
    [0x3ffc, 0n],
  ])("reads at 0x%x what was recorded", (offset, value) => {
    expect(read(new Nvme(), offset)).toBe(value);
  });

  it("reads a 64-bit register at once, and the bytes of a word", () => {
    const dev = new Nvme();
    expect(read(dev, 0, 8)).toBe(0x0340_1820_0f01_07ffn);
    expect([0, 1, 2, 3].map((i) => read(dev, 8 + i, 1))).toEqual([0n, 4n, 1n, 0n]);
  });

  it("becomes ready once it has admin queues, and forgets CC when it is disabled", () => {
    const dev = new Nvme();
    dev.barWrite(0, 0x14, 4, 0x460001n);
    expect(read(dev, 0x1c)).toBe(2n);
    dev.barWrite(0, 0x14, 4, 0x460000n);
    dev.barWrite(0, 0x24, 4, 0x1f001fn);
    dev.barWrite(0, 0x28, 8, 0x1_0000_0000n | 0x1000n);
    dev.barWrite(0, 0x30, 8, 0x2000n);
    dev.barWrite(0, 0x14, 4, 0x460001n);
    expect([read(dev, 0x14), read(dev, 0x1c), read(dev, 0x28, 8)]).toEqual([0x460001n, 1n, 0x1_0000_1000n]);
    dev.barWrite(0, 0x14, 4, 0x464001n);
    expect(read(dev, 0x1c)).toBe(9n);
    dev.barWrite(0, 0x14, 4, 0x460000n);
    expect([read(dev, 0x14), read(dev, 0x1c)]).toEqual([0n, 0n]);
  });

  it("shows where its memory buffer is once asked to", () => {
    const dev = new Nvme();
    dev.barWrite(0, 0x50, 4, 1n);
    expect([read(dev, 0x38), read(dev, 0x3c)]).toEqual([0x62n, 0x221dn]);
  });

  it("has a persistent region that answers only while enabled, disabled by any reset, never losing its contents", () => {
    const dev = new Nvme();
    const look = (): number => {
      const b = new Uint8Array(1);
      dev.barMemory(4)?.read(0x100, b);
      return b[0] ?? -1;
    };
    const put = (v: number): void => dev.barMemory(4)?.write(0x100, new Uint8Array([v]));
    put(1);
    expect(look()).toBe(0);
    dev.barWrite(0, 0xe04, 4, 1n);
    expect([read(dev, 0xe04), look()]).toEqual([1n, 0]);
    put(2);
    expect(look()).toBe(2);
    for (const kind of ["flr", "bus", "pm"] as const) {
      dev.reset(kind);
      expect([read(dev, 0xe04), look()]).toEqual([0n, 0]);
      put(3);
      dev.barWrite(0, 0xe04, 4, 1n);
      expect(look()).toBe(2);
    }
  });

  it("has neither region when their sizes are 0", () => {
    const dev = new Nvme({ cmbSize: 0n, pmrSize: 0n });
    expect(dev.description.bars.map((b) => b.index)).toEqual([0]);
    dev.barWrite(0, 0xe04, 4, 1n);
    dev.barWrite(0, 0x50, 4, 1n);
    expect([read(dev, 4) >> 24n, read(dev, 0xe00), read(dev, 0xe04), read(dev, 0x3c)]).toEqual([0n, 0n, 0n, 0n]);
    expect(() => new Nvme({ pmrSize: 0x3000n })).toThrow(/persistent memory region/);
  });
});

/** Recorded config space, rows of zeros filled in. */
function recordedConfig(name: string): Uint8Array {
  const text = readFileSync(new URL(`../data/devices/${name}.config.txt`, import.meta.url), "utf8");
  const size = Number(/Size (\d+)/.exec(text)?.[1]);
  const bytes = new Uint8Array(size);
  for (const line of text.split("\n").slice(1)) {
    const [at, row] = line.split(": ");
    row?.split(" ").forEach((b, i) => {
      bytes[Number.parseInt(at ?? "", 16) + i] = Number.parseInt(b, 16);
    });
  }
  return bytes;
}

/** Registers that software had written when the dump was made, or that depend on the slot: [offset, bytes]. */
const WRITTEN: [number, number][] = [
  [0x04, 2],
  [0x0c, 1],
  [0x3c, 1],
];
const BARS: [number, number][] = [[0x10, 24]];

describe("config space, against the recorded one", () => {
  const cases: [string, PciModel, [number, number][]][] = [
    ["edu", new Edu(), []],
    ["ivshmem", new Ivshmem(), []],
    // PMCSR's state (the idle device was in D3hot).
    ["nvme", new Nvme(), [[0x64, 1]]],
  ];
  it.each(cases)("%s has every byte of it that no software wrote", (name, model, written) => {
    const recorded = recordedConfig(name);
    const ours = configTemplate(model.description).bytes.slice();
    expect(ours.length).toBe(recorded.length);
    for (const [at, n] of [...WRITTEN, ...written, ...BARS]) {
      recorded.fill(0, at, at + n);
      ours.fill(0, at, at + n);
    }
    const differing: string[] = [];
    for (let i = 0; i < ours.length; i++) {
      if (ours[i] !== recorded[i]) differing.push(`${i.toString(16)}: ${ours[i]?.toString(16)} for ${recorded[i]?.toString(16)}`);
    }
    expect(differing).toEqual([]);
  });

  it.each(cases)("%s has the recorded kinds of BARs", (name, model) => {
    const recorded = new DataView(recordedConfig(name).buffer);
    const ours = new DataView(configTemplate(model.description).bytes.buffer);
    for (let i = 0; i < 6; i++) {
      const before = i === 0 ? 0 : ours.getUint32(0x0c + 4 * i, true);
      if ((before & 6) === 4) continue;
      expect(ours.getUint32(0x10 + 4 * i, true) & 15).toBe(recorded.getUint32(0x10 + 4 * i, true) & 15);
    }
  });
});

it("gives devices of one kind and size one description object, as the PCI layer asks", () => {
  expect(new Edu().description).toBe(new Edu({ dmaMask: 1n }).description);
  expect(new Ivshmem({ size: 65536n }).description).toBe(new Ivshmem({ size: 65536n }).description);
  expect(new Nvme().description).toBe(new Nvme().description);
  expect(new Nvme({ busResetFails: false }).description).not.toBe(new Nvme().description);
});
