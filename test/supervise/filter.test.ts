/** The filter does exactly what the conditions say, and `matches` says the same of a trapped call. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { arch, runFilter, SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF } from "../../src/host/index.ts";
import { AUDIT_ARCH_I386, compileFilter, matches, X32_BIT } from "../../src/supervise/filter.ts";
import { SYS_execve, SYS_munmap, SYS_openat } from "../../src/supervise/numbers.ts";
import type { When } from "../../src/supervise/types.ts";

const OPENAT = arch.numbers.get("openat") ?? -1;
const asked = (traps: Map<number, When[]>, nr: number, args: bigint[] = [], audit = arch.audit): boolean => {
  const action = runFilter(compileFilter(traps), { nr, arch: audit, args });
  expect([SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF]).toContain(action);
  return action === SECCOMP_RET_USER_NOTIF;
};

const arg = fc.integer({ min: 0, max: 5 });
const word = fc.oneof(fc.integer({ min: 0, max: 0xffff_ffff }), fc.constantFrom(0, 1, 0x3b, 0x3b81, 0x100, 0x8000_0000, 0xffff_ffff));
const when: fc.Arbitrary<When> = fc.oneof(
  fc.constant({ kind: "always" } as const),
  fc.record({ kind: fc.constant("ioctl-type" as const), arg, types: fc.array(fc.integer({ min: 0, max: 255 }), { maxLength: 4 }) }),
  fc.record({ kind: fc.constant("equals" as const), arg, values: fc.array(word, { maxLength: 4 }) }),
  fc.record({ kind: fc.constant("high-half" as const), arg, least: fc.integer({ min: 0, max: 0x7fff_ffff }) }),
  fc.record({ kind: fc.constant("at-most" as const), arg, most: word }),
  fc.record({ kind: fc.constant("multiple" as const), arg, of: fc.integer({ min: 1, max: 100 }) }),
  fc.record({ kind: fc.constant("bits" as const), arg, bits: word }),
);
const register = fc.oneof(
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  word.map(BigInt),
  fc.tuple(word, word).map(([h, l]) => (BigInt(h) << 32n) | BigInt(l)),
);

describe("the filter", () => {
  it("traps a call exactly when one of its conditions holds", () => {
    const traps = fc.dictionary(fc.integer({ min: 0, max: 450 }).map(String), fc.array(when, { minLength: 1, maxLength: 4 }), {
      maxKeys: 12,
    });
    fc.assert(
      fc.property(traps, fc.integer({ min: 0, max: 450 }), fc.array(register, { minLength: 6, maxLength: 6 }), (dictionary, nr, args) => {
        const map = new Map(Object.entries(dictionary).map(([k, w]) => [Number(k), w]));
        for (const call of [nr, ...map.keys()]) {
          expect(asked(map, call, args)).toBe((map.get(call) ?? []).some((w) => matches(w, args)));
        }
      }),
      { numRuns: 300 },
    );
  });

  it("lets calls of 32-bit programs pass, except for opens, which are reported", () => {
    const traps = new Map<number, When[]>([[16, [{ kind: "always" }]]]);
    expect(asked(traps, 16, [], AUDIT_ARCH_I386)).toBe(false);
    expect([5, 295].map((nr) => asked(traps, nr, [], AUDIT_ARCH_I386))).toEqual([true, true]);
    expect(asked(traps, 5, [], 0x1234)).toBe(false);
  });

  it("takes an x32 program's open for what it is", () => {
    const traps = new Map<number, When[]>([[OPENAT, [{ kind: "equals", arg: 0, values: [1] }]]]);
    expect(asked(traps, (OPENAT | X32_BIT) >>> 0, [0n])).toBe(true);
    expect(asked(traps, (OPENAT + 1) | X32_BIT, [0n])).toBe(false);
  });
});

describe("what the thread that starts the program calls, and the child that becomes it,", () => {
  const own = { start: 0x7f12_3456_0000n, end: 0x7f12_3470_0000n };
  const traps = new Map<number, readonly When[]>([
    [SYS_munmap, [{ kind: "always" }]],
    [SYS_execve, [{ kind: "always" }]],
    [SYS_openat, [{ kind: "always" }]],
  ]);
  const from = (nr: number, ip: bigint): boolean =>
    runFilter(compileFilter(traps, own), { nr, arch: arch.audit, ip }) === SECCOMP_RET_USER_NOTIF;

  it("is let through from its own library alone, to the byte", () => {
    expect(from(SYS_munmap, own.start - 1n)).toBe(true);
    expect(from(SYS_munmap, own.start)).toBe(false);
    expect(from(SYS_munmap, own.end - 1n)).toBe(false);
    expect(from(SYS_munmap, own.end)).toBe(true);
    expect(from(SYS_munmap, own.start + (1n << 32n))).toBe(true);
    expect(from(SYS_execve, own.start)).toBe(false);
    expect(from(SYS_execve, own.end)).toBe(true);
  });

  it("is no way to open a file", () => {
    expect(from(SYS_openat, own.start)).toBe(true);
  });
});
