import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ARCHITECTURES, arch, BPF_MAXINSNS, BpfAssembler, type Comparison, runFilter } from "../../src/host/index.ts";

const ALLOW = 0x7fff_0000;
const TRAP = 0x7fc0_0000;

describe("the assembler", () => {
  it("encodes as the C macros BPF_STMT and BPF_JUMP do", () => {
    const program = new BpfAssembler().loadNr().if("eq", 16, "trap").ret(ALLOW).label("trap").ret(TRAP).assemble();
    // gcc: {BPF_STMT(BPF_LD|BPF_W|BPF_ABS, 0), BPF_JUMP(BPF_JMP|BPF_JEQ|BPF_K, 16, 1, 0), BPF_STMT(BPF_RET|BPF_K, …)}.
    expect(Buffer.from(program).toString("hex")).toBe("20000000000000001500010010000000060000000000ff7f060000000000c07f");
  });

  it("puts a far jump behind a condition that does not reach, on either side", () => {
    for (const [then, otherwise] of [
      ["far", undefined],
      [undefined, "far"],
      ["far", "farther"],
    ] as const) {
      const asm = new BpfAssembler().loadNr().if("ge", 100, then, otherwise);
      for (let i = 0; i < 300; i++) asm.and(0xffff_ffff);
      const program = asm.ret(1).label("far").ret(2).label("farther").ret(3).assemble();
      const at = (nr: number): number => runFilter(program, { nr, arch: 0 });
      expect(at(100)).toBe(then === "far" ? 2 : 1);
      expect(at(99)).toBe(otherwise === "far" ? 2 : otherwise === "farther" ? 3 : 1);
    }
  });

  it("refuses a label that is missing, doubled or behind, a word outside of seccomp_data, and a program that is too long", () => {
    expect(() => new BpfAssembler().goto("x").ret(0).assemble()).toThrow("no label x");
    expect(() => new BpfAssembler().label("x").ret(0).label("x").ret(0).assemble()).toThrow("twice");
    expect(() => new BpfAssembler().label("x").ret(0).goto("x").ret(0).assemble()).toThrow("behind");
    expect(() => new BpfAssembler().load(64)).toThrow("no word at 64");
    expect(() => new BpfAssembler().load(2)).toThrow("no word at 2");
    const long = new BpfAssembler();
    for (let i = 0; i <= BPF_MAXINSNS; i++) long.ret(0);
    expect(() => long.assemble()).toThrow("at most 4096");
  });

  it("sees both halves of an argument, and compares without a sign", () => {
    const program = new BpfAssembler().loadArgHigh(3).if("ge", 0x100, "high").ret(1).label("high").ret(2).assemble();
    const of = (offset: bigint): number => runFilter(program, { nr: 17, arch: arch.audit, args: [0n, 0n, 0n, offset, 0n, 0n] });
    expect(of(0xff_ffff_ffffn)).toBe(1);
    expect(of(1n << 40n)).toBe(2);
    expect(of(0xffff_ffff_ffff_ffffn)).toBe(2);
  });

  it("divides words without a sign, which seccomp takes", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 0xffff_ffff }), fc.integer({ min: 1, max: 0xffff_ffff }), (word, k) => {
        const program = new BpfAssembler()
          .loadRest(16, k)
          .if("eq", word % k, "right")
          .ret(1)
          .label("right")
          .ret(2)
          .assemble();
        expect(runFilter(program, { nr: 0, arch: 0, args: [BigInt(word)] })).toBe(2);
      }),
    );
  });

  it("decides as the comparisons written in TypeScript do, however the program is spread out", () => {
    const holds = { eq: (a, k) => a === k, gt: (a, k) => a > k, ge: (a, k) => a >= k, set: (a, k) => (a & k) !== 0 } satisfies Record<
      Comparison,
      (a: number, k: number) => boolean
    >;
    const row = fc.record({
      comparison: fc.constantFrom<Comparison>("eq", "gt", "ge", "set"),
      k: fc.oneof(fc.nat(40), fc.integer({ min: 0, max: 0xffff_ffff })),
      padding: fc.constantFrom(0, 1, 254, 255, 256, 300),
      negate: fc.boolean(),
    });
    fc.assert(
      fc.property(
        fc.array(row, { minLength: 1, maxLength: 6 }),
        fc.oneof(fc.nat(40), fc.integer({ min: 0, max: 0x7fff_ffff })),
        (rows, nr) => {
          const asm = new BpfAssembler().loadNr();
          for (const [i, r] of rows.entries()) {
            if (r.negate) asm.if(r.comparison, r.k, undefined, `hit${i}`);
            else asm.if(r.comparison, r.k, `hit${i}`);
            for (let n = 0; n < r.padding; n++) asm.alu("add", 0);
          }
          asm.ret(ALLOW);
          for (const i of rows.keys()) asm.label(`hit${i}`).ret(TRAP + i);
          const first = rows.findIndex((r) => holds[r.comparison](nr, r.k) !== r.negate);
          expect(runFilter(asm.assemble(), { nr, arch: 0 })).toBe(first === -1 ? ALLOW : TRAP + first);
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe("the table of system calls", () => {
  it("has the numbers of the kernel's tables", () => {
    const x64 = Object.entries({
      read: 0,
      ioctl: 16,
      pread64: 17,
      clone: 56,
      openat: 257,
      seccomp: 317,
      statx: 332,
      io_uring_setup: 425,
      pidfd_getfd: 438,
      mseal: 462,
    });
    const arm64 = Object.entries({
      ioctl: 29,
      openat: 56,
      read: 63,
      newfstatat: 79,
      fstat: 80,
      seccomp: 277,
      statx: 291,
      mmap: 222,
      pidfd_getfd: 438,
    });
    for (const [name, rows] of [
      ["x64", x64],
      ["arm64", arm64],
    ] as const) {
      const table = ARCHITECTURES.get(name);
      for (const [call, number] of rows) {
        expect(table?.numbers.get(call), `${name} ${call}`).toBe(number);
        expect(table?.names.get(number)).toBe(call);
      }
    }
    expect(ARCHITECTURES.get("arm64")?.numbers.has("open")).toBe(false);
  });

  it("has every call that this layer makes by number, on both architectures", () => {
    const folder = join(import.meta.dirname, "../../src/host");
    const used = readdirSync(folder)
      .filter((f) => f.endsWith(".ts"))
      .flatMap((f) => [...readFileSync(join(folder, f), "utf8").matchAll(/\bnr\("(\w+)"\)/g)].map((m) => m[1] ?? ""));
    expect(used.length).toBeGreaterThan(10);
    for (const { name, numbers } of ARCHITECTURES.values()) {
      for (const call of used) expect([name, call, numbers.has(call)]).toEqual([name, call, true]);
    }
  });

  const header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";
  it.skipIf(!existsSync(header))("holds every call of this machine's header", () => {
    const rows = [...readFileSync(header, "latin1").matchAll(/^#define __NR_(\w+) (\d+)$/gm)];
    expect(rows.length).toBeGreaterThan(300);
    const table = ARCHITECTURES.get("x64");
    for (const [, name = "", number] of rows) expect([name, table?.numbers.get(name)]).toEqual([name, Number(number)]);
  });
});
