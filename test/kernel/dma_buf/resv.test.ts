import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DmaFence, DmaFenceArray, FenceContexts } from "../../../src/kernel/dma_buf/fence.ts";
import { Resv, Usage, usageRw } from "../../../src/kernel/dma_buf/resv.ts";
import { EINTR } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { Sched } from "../../../src/sched/sched.ts";
import type { Step } from "../../../src/sched/task.ts";

const FOREVER = Number.POSITIVE_INFINITY;

function setUp() {
  const sched = new Sched();
  const resv = new Resv(sched);
  const fence = (context: bigint, seqno = 1n) => new DmaFence(sched, { context, seqno, driver: "test", timeline: "line" });
  const run = <T>(body: Step<T>): T => sched.execute(sched.thread("test"), body);
  const locked = (fn: () => void): void =>
    run(
      (function* () {
        yield* resv.lock();
        try {
          fn();
        } finally {
          resv.unlock();
        }
      })(),
    );
  const add = (f: DmaFence, usage: Usage): void =>
    locked(() => {
      resv.reserveFences(1);
      resv.addFence(f, usage);
    });
  return { sched, resv, fence, run, locked, add };
}

describe("a reservation", () => {
  it("counts a usage in with every larger one", () => {
    const { resv, fence, add } = setUp();
    const usages = [Usage.kernel, Usage.write, Usage.read, Usage.bookkeep];
    for (const u of usages) add(fence(BigInt(u)), u);
    expect(usages.map((u) => resv.pending(u).length)).toEqual([1, 2, 3, 4]);
    expect(usageRw(false)).toBe(Usage.write);
    expect(usageRw(true)).toBe(Usage.read);
  });

  it("is changed only with its lock held", () => {
    const { resv, fence, run } = setUp();
    const naked = (fn: () => void) =>
      run(
        (function* () {
          fn();
        })(),
      );
    expect(() => naked(() => resv.assertHeld())).toThrow(/not held/);
    expect(() => naked(() => resv.reserveFences(1))).toThrow(KernelBug);
    expect(() => naked(() => resv.addFence(fence(1n), Usage.read))).toThrow(KernelBug);
    expect(() => naked(() => resv.replaceFences(1n, fence(2n), Usage.read))).toThrow(KernelBug);
  });

  it("takes a fence only into a slot reserved under the same holding of the lock", () => {
    const { resv, fence, locked } = setUp();
    expect(() => locked(() => resv.addFence(fence(1n), Usage.read))).toThrow(/reserved slot/);
    locked(() => resv.reserveFences(2));
    expect(() => locked(() => resv.addFence(fence(1n), Usage.read))).toThrow(/reserved slot/);
    locked(() => {
      resv.reserveFences(2);
      resv.addFence(fence(1n), Usage.read);
      resv.addFence(fence(2n), Usage.read);
      expect(() => resv.addFence(fence(3n), Usage.read)).toThrow(/reserved slot/);
    });
    expect(() => locked(() => resv.reserveFences(0))).toThrow(KernelBug);
  });

  it("lets a later fence of the same timeline take the place of an earlier one of no smaller usage", () => {
    const { resv, fence, add } = setUp();
    add(fence(1n, 1n), Usage.read);
    const write = fence(1n, 2n);
    add(write, Usage.write);
    expect(resv.pending(Usage.bookkeep)).toEqual([write]);
    // The other way round it must not: the write would be forgotten.
    const read = fence(1n, 3n);
    add(read, Usage.read);
    expect(resv.pending(Usage.write)).toEqual([write]);
    expect(resv.pending(Usage.read)).toEqual([write, read]);
  });

  it("uses the slot of a fence that has ended again", () => {
    const { resv, fence, add, locked } = setUp();
    const old = fence(1n);
    add(old, Usage.read);
    old.signal();
    const f = fence(2n);
    locked(() => resv.addFence(f, Usage.write));
    expect(resv.pending(Usage.bookkeep)).toEqual([f]);
  });

  it("replaces every fence of a timeline", () => {
    const { resv, fence, add, locked } = setUp();
    add(fence(1n), Usage.bookkeep);
    const kept = fence(2n);
    add(kept, Usage.read);
    const flush = fence(3n);
    locked(() => resv.replaceFences(1n, flush, Usage.kernel));
    expect(resv.pending(Usage.kernel)).toEqual([flush]);
    expect(resv.pending(Usage.bookkeep)).toEqual([flush, kept]);
  });

  it("takes no array of fences", () => {
    const { resv, sched, locked } = setUp();
    expect(() => locked(() => resv.addFence(new DmaFenceArray(sched, 1n, []), Usage.read))).toThrow(/array/);
  });

  it("makes one fence of many, of one itself, of none nothing", () => {
    const { resv, sched, fence, add } = setUp();
    const contexts = new FenceContexts(sched);
    expect(resv.singleton(sched, contexts, Usage.read)).toBeUndefined();
    const [a, b] = [fence(1n), fence(2n)];
    add(a, Usage.write);
    expect(resv.singleton(sched, contexts, Usage.read)).toBe(a);
    add(b, Usage.read);
    const both = resv.singleton(sched, contexts, Usage.read);
    expect((both as DmaFenceArray).fences).toEqual([a, b]);
    expect(resv.singleton(sched, contexts, Usage.write)).toBe(a);
  });

  it("waits for what the usage includes, and not for more", () => {
    const { resv, sched, fence, add, run } = setUp();
    const [w, b] = [fence(1n), fence(2n)];
    add(w, Usage.write);
    add(b, Usage.bookkeep);
    sched.timer(10, () => w.signal());
    sched.timer(30, () => b.signal());
    expect(run(resv.waitTimeout(Usage.kernel, false, 100))).toBe(100);
    expect(run(resv.waitTimeout(Usage.read, false, 100))).toBe(90);
    expect(sched.now).toBe(10);
    expect(run(resv.waitTimeout(Usage.bookkeep, false, FOREVER))).toBe(FOREVER);
    expect(sched.now).toBe(30);
    expect(resv.testSignalled(Usage.bookkeep)).toBe(true);
  });

  it("shares one time out among all it waits for", () => {
    const { resv, sched, fence, add, run } = setUp();
    for (const [i, ns] of [40, 80, 120].entries()) {
      const f = fence(BigInt(i));
      add(f, Usage.read);
      sched.timer(ns, () => f.signal());
    }
    expect(run(resv.waitTimeout(Usage.read, false, 100))).toBe(0);
    expect(sched.now).toBe(100);
    expect(run(resv.waitTimeout(Usage.read, false, 0))).toBe(0);
    expect(run(resv.waitTimeout(Usage.read, false, 50))).toBe(30);
    expect(run(resv.waitTimeout(Usage.read, false, 0))).toBe(1);
  });

  it("answers EINTR to an interrupted wait", () => {
    const { resv, sched, fence, add } = setUp();
    add(fence(1n), Usage.read);
    const t = sched.thread("t");
    t.signalled = true;
    expect(sched.execute(t, resv.waitTimeout(Usage.read, true, FOREVER))).toBe(EINTR);
  });

  it("agrees with a list of (timeline, place, usage, ended) about what is pending", () => {
    const ops = fc.array(
      fc.oneof(
        fc.record({ op: fc.constant("add" as const), context: fc.bigInt(1n, 3n), usage: fc.constantFrom<Usage>(0, 1, 2, 3) }),
        fc.record({ op: fc.constant("signal" as const), pick: fc.nat(20) }),
      ),
      { maxLength: 40 },
    );
    fc.assert(
      fc.property(ops, (steps) => {
        const { resv, fence, add } = setUp();
        let seqno = 0n;
        const model: { f: DmaFence; usage: Usage }[] = [];
        for (const s of steps) {
          if (s.op === "add") {
            const f = fence(s.context, ++seqno);
            add(f, s.usage);
            model.push({ f, usage: s.usage });
          } else {
            const live = model.filter((m) => !m.f.signalled);
            const last = live[s.pick % Math.max(live.length, 1)]?.f;
            // The end of one fence is the end of every earlier one of its timeline.
            for (const m of live) if (last?.isLaterOrSame(m.f)) m.f.signal();
          }
          for (const u of [0, 1, 2, 3] as const) {
            // Whoever waits for what is pending has waited for everything of the model.
            const pending = resv.pending(u);
            for (const m of model) {
              if (m.f.signalled || m.usage > u) continue;
              expect(pending.some((p) => p.isLaterOrSame(m.f))).toBe(true);
            }
            for (const p of pending) expect(model.some((m) => m.f === p && m.usage <= u)).toBe(true);
          }
        }
      }),
    );
  });
});
