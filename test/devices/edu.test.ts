import { beforeEach, describe, expect, it } from "vitest";
import { Edu } from "../../src/devices/index.ts";
import { FakePort } from "./fake_port.ts";

const MS = 1_000_000;
const ONES = 0xffff_ffff_ffff_ffffn;
let edu: Edu;
let port: FakePort;

beforeEach(() => {
  edu = new Edu();
  port = new FakePort();
  edu.attach(port);
});

/** What QEMU 7.2's device answered a Linux 7.3.4 that read its registers after boot, [offset, size, value]. */
const recorded: [number, number, bigint][] = [
  [0x00, 4, 0x010000edn],
  [0x04, 4, 0n],
  [0x08, 4, 0n],
  [0x0c, 4, ONES],
  [0x20, 4, 0n],
  [0x24, 4, 0n],
  [0x60, 4, ONES],
  [0x64, 4, ONES],
  [0x80, 4, 0n],
  [0x84, 4, ONES],
  [0x88, 4, 0n],
  [0x90, 4, 0n],
  [0x98, 4, 0n],
  [0x40000, 4, ONES],
  [0xffffc, 4, ONES],
  [0x00, 1, 0n],
  [0x00, 2, 0n],
  [0x00, 8, ONES],
  [0x80, 8, 0n],
];
it.each(recorded)("reads at 0x%x of %i bytes what was recorded", (offset, size, value) => {
  expect(edu.barRead(0, offset, size) & ((1n << BigInt(8 * size)) - 1n)).toBe(value & ((1n << BigInt(8 * size)) - 1n));
});

it("inverts what is written to the liveness register", () => {
  edu.barWrite(0, 4, 4, 0x12345678n);
  expect(edu.barRead(0, 4, 4)).toBe(0xedcba987n);
});

it("ignores a write of a size the register does not take", () => {
  edu.barWrite(0, 4, 8, 1n);
  edu.barWrite(0, 4, 2, 1n);
  expect(edu.barRead(0, 4, 4)).toBe(0n);
});

describe("the factorial", () => {
  it.each([
    [0n, 1n],
    [1n, 1n],
    [5n, 120n],
    [13n, 0x7328cc00n],
    [33n, 0x80000000n],
    [34n, 0n],
    [0xffffffffn, 0n],
  ])("of %i is %i", (n, f) => {
    edu.barWrite(0, 8, 4, n);
    expect(edu.barRead(0, 0x20, 4)).toBe(1n);
    edu.barWrite(0, 8, 4, 7n);
    port.sched.settle();
    expect([edu.barRead(0, 8, 4), edu.barRead(0, 0x20, 4)]).toEqual([f, 0n]);
    expect(port.messages).toEqual([]);
  });

  it("interrupts when asked to", () => {
    edu.barWrite(0, 0x20, 4, 0xffn);
    expect(edu.barRead(0, 0x20, 4)).toBe(0x80n);
    edu.barWrite(0, 8, 4, 3n);
    port.sched.settle();
    expect([edu.barRead(0, 0x24, 4), port.intx, port.messages]).toEqual([1n, true, [0]]);
  });
});

it("holds INTx until every cause is acknowledged", () => {
  edu.barWrite(0, 0x60, 4, 0x3n);
  edu.barWrite(0, 0x60, 4, 0x100n);
  expect(edu.barRead(0, 0x24, 4)).toBe(0x103n);
  edu.barWrite(0, 0x64, 4, 0x3n);
  expect(port.intx).toBe(true);
  edu.barWrite(0, 0x64, 4, 0x100n);
  expect([port.intx, edu.barRead(0, 0x24, 4)]).toEqual([false, 0n]);
});

describe("DMA", () => {
  const program = (src: bigint, dst: bigint, count: bigint, cmd: bigint): void => {
    edu.barWrite(0, 0x80, 8, src);
    edu.barWrite(0, 0x88, 8, dst);
    edu.barWrite(0, 0x90, 8, count);
    edu.barWrite(0, 0x98, 8, cmd);
  };

  it("takes 100 ms, cannot be changed under way, and goes both ways", () => {
    port.memory.set([1, 2, 3, 4], 0x1000);
    program(0x1000n, 0x40010n, 4n, 1n);
    expect(edu.barRead(0, 0x98, 4)).toBe(1n);
    edu.barWrite(0, 0x80, 8, 0x9999n);
    port.sched.advance(99 * MS);
    expect([port.dma, edu.barRead(0, 0x98, 4)]).toEqual([[], 1n]);
    port.sched.advance(1 * MS);
    expect([port.dma, edu.barRead(0, 0x98, 4)]).toEqual([["read 0x1000 4"], 0n]);
    program(0x40010n, 0x2000n, 4n, 3n);
    port.sched.settle();
    expect([...port.memory.subarray(0x2000, 0x2004)]).toEqual([1, 2, 3, 4]);
    expect(port.messages).toEqual([]);
  });

  it("interrupts at the end when asked to", () => {
    program(0x40000n, 0n, 8n, 7n);
    port.sched.settle();
    expect([edu.barRead(0, 0x24, 4), port.intx, port.messages]).toEqual([0x100n, true, [0]]);
  });

  it("loses the address bits above 28", () => {
    program(0x40000n, 0x1234_5000_1000n, 8n, 3n);
    port.sched.settle();
    expect(port.dma).toEqual(["write 0x1000 8"]);
    const wide = new Edu({ dmaMask: ONES });
    wide.attach(port);
    edu = wide;
    program(0x40000n, 0x1234_5000_1000n, 8n, 3n);
    port.sched.settle();
    expect(port.dma[1]).toBe("write 0x123450001000 8");
  });

  it("does not leave the device's buffer", () => {
    for (const [src, count] of [
      [0x40000n, 4097n],
      [0x40fffn, 2n],
      [0x3ffffn, 2n],
      [0n, 1n],
    ] as const) {
      program(src, 0n, count, 3n);
      port.sched.settle();
    }
    expect([port.dma, edu.barRead(0, 0x98, 4)]).toEqual([[], 2n]);
  });

  it("reads zeros where the access was refused", () => {
    edu.buffer.fill(0xaa);
    program(0xff_0000n, 0x40000n, 16n, 1n);
    port.sched.settle();
    expect(edu.buffer.subarray(0, 17)).toEqual(new Uint8Array([...new Array(16).fill(0), 0xaa]));
  });

  it("goes on through a reset, which leaves the registers alone", () => {
    program(0x40000n, 0x1000n, 8n, 3n);
    edu.reset("bus");
    port.sched.settle();
    expect(port.dma).toEqual(["write 0x1000 8"]);
  });
});
