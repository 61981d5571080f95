/** Memory of a BAR that is kept elsewhere, looking without touching, and the function that tells of its activity. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type BarStore, SparseMemory } from "../../../src/kernel/pci/pci_model.ts";
import { PCI_COMMAND_MEMORY } from "../../../src/uapi/pci_regs.ts";
import { Bench } from "../vfio/bench.ts";

const SIZE = 0x4_0000;

/** The plainest store there is. */
class Flat implements BarStore {
  readonly bytes: Uint8Array = new Uint8Array(SIZE);
  read(offset: number, dst: Uint8Array): void {
    dst.set(this.bytes.subarray(offset, offset + dst.length));
  }
  write(offset: number, src: Uint8Array): void {
    this.bytes.set(src, offset);
  }
  clear(): void {
    this.bytes.fill(0);
  }
  *data(): Generator<{ offset: number; length: number }> {
    for (let at = 0; at < SIZE; at += 4096) {
      if (this.bytes.subarray(at, at + 4096).some((b) => b !== 0)) yield { offset: at, length: 4096 };
    }
  }
}

describe("a BAR's memory", () => {
  test("is the same wherever it is kept", () => {
    const step = fc.oneof(
      fc.record({ op: fc.constant("write" as const), at: fc.nat(SIZE - 64), bytes: fc.uint8Array({ minLength: 1, maxLength: 64 }) }),
      fc.record({ op: fc.constant("move" as const), out: fc.boolean() }),
      fc.record({ op: fc.constant("clear" as const) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const memory = new SparseMemory();
        const model = new Uint8Array(SIZE);
        let store: Flat | undefined;
        for (const s of steps) {
          if (s.op === "write") {
            memory.write(s.at, s.bytes);
            model.set(s.bytes, s.at);
          } else if (s.op === "clear") {
            memory.clear();
            model.fill(0);
          } else {
            const old = store;
            store = s.out ? new Flat() : undefined;
            memory.moveTo(store);
            expect(old === undefined || old.bytes.every((b) => b === 0)).toBe(true);
          }
          const got = new Uint8Array(SIZE);
          memory.read(0, got);
          expect(Buffer.compare(got, model)).toBe(0);
          if (store !== undefined) expect(Buffer.compare(store.bytes, model)).toBe(0);
        }
      }),
      { numRuns: 60 },
    );
  });
});

describe("looking at a BAR", () => {
  test("sees what a read would, the table of MSI-X and its pending bits included, and the model does not notice", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, 4, 2, PCI_COMMAND_MEMORY);
    const { fn } = b.pdev();
    fn.barWrite(
      4,
      0x810,
      Uint8Array.from({ length: 16 }, (_, i) => i + 1),
    );
    fn.msix?.pend(3);
    for (const [offset, length] of [
      [0x7f8, 0x98],
      [0x800, 16],
      [0xbf8, 16],
      [0xc00, 8],
      [0x810, 4],
    ] as const) {
      const seen = new Uint8Array(length);
      const read = new Uint8Array(length);
      fn.barRead(4, offset, read);
      fn.barPeek(4, offset, seen, 8);
      expect(seen).toEqual(read);
    }
    b.configWrite(fd, 4, 2, 0);
    const off = new Uint8Array(4);
    fn.barPeek(4, 0, off, 4);
    expect(off).toEqual(Uint8Array.of(0xff, 0xff, 0xff, 0xff));
    expect(() => fn.barPeek(4, 0xffe, off, 4)).toThrow(RangeError);
  });
});

describe("a function's activity", () => {
  test("is a write to a register, a timer of the model, decode that changes, a reset; not a write to plain memory", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, 4, 2, PCI_COMMAND_MEMORY);
    const { fn } = b.pdev();
    let n = 0;
    const counted = (what: () => void): number => {
      n = 0;
      what();
      return n;
    };
    fn.onActivity = () => n++;
    expect(counted(() => fn.barWrite(0, 0, Uint8Array.of(1)))).toBe(0);
    expect(counted(() => fn.barWrite(2, 0, Uint8Array.of(1, 2, 3, 4)))).toBe(1);
    expect(counted(() => fn.barRead(2, 0, new Uint8Array(4)))).toBe(0);
    expect(counted(() => b.configWrite(fd, 4, 2, 0))).toBeGreaterThan(0);
    expect(counted(() => fn.reset("flr"))).toBeGreaterThan(0);
    b.model().port?.delay(10, () => {});
    expect(counted(() => b.kernel.sched.advance(10))).toBe(1);
    fn.onActivity = undefined;
  });
});
