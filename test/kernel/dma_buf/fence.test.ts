import { describe, expect, it } from "vitest";
import { DmaFence, DmaFenceArray, FenceContexts, unwrapFence } from "../../../src/kernel/dma_buf/fence.ts";
import { EINTR, EIO } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { Sched } from "../../../src/sched/sched.ts";

const make = (sched: Sched, context = 1n, seqno = 1n) => new DmaFence(sched, { context, seqno, driver: "test", timeline: "line" });

describe("a fence", () => {
  it("is signalled once, runs its callbacks once, and never goes back", () => {
    const sched = new Sched();
    const f = make(sched);
    const ran: string[] = [];
    expect(f.addCallback(() => ran.push("a"))).toBe(true);
    const b = () => ran.push("b");
    f.addCallback(b);
    expect(f.removeCallback(b)).toBe(true);
    expect(f.status).toBe(0);
    sched.now = 70;
    f.signal();
    expect(ran).toEqual(["a"]);
    expect([f.status, f.timestamp, f.signalled]).toEqual([1, 70, true]);
    expect(f.addCallback(() => ran.push("late"))).toBe(false);
    expect(f.removeCallback(b)).toBe(false);
    expect(() => f.signal()).toThrow(KernelBug);
  });

  it("tells the failure of its work as a negative errno", () => {
    const f = make(new Sched());
    f.signal(EIO);
    expect(f.status).toBe(-5);
  });

  it("blocks a waiter until the signal, which may come from no task at all", () => {
    const sched = new Sched();
    const f = make(sched);
    sched.timer(100, () => f.signal());
    const t = sched.spawn("waiter", function* () {
      return yield* f.waitTimeout(false, Number.POSITIVE_INFINITY);
    });
    sched.settle();
    expect([t.state, sched.now, t.result]).toEqual(["done", 100, Number.POSITIVE_INFINITY]);
  });

  it("answers 0 when the time runs out and what is left when it does not", () => {
    const sched = new Sched();
    const f = make(sched);
    const wait = (ns: number) => sched.execute(sched.thread("w"), f.waitTimeout(false, ns));
    expect(wait(0)).toBe(0);
    expect(wait(50)).toBe(0);
    expect(sched.now).toBe(50);
    sched.timer(10, () => f.signal());
    expect(wait(50)).toBe(40);
    expect(wait(0)).toBe(1);
    expect(sched.pendingTimers).toBe(0);
  });

  it("lets a signal interrupt an interruptible wait and no other", () => {
    const sched = new Sched();
    const f = make(sched);
    const t = sched.thread("w");
    t.signalled = true;
    expect(sched.execute(t, f.waitTimeout(true, Number.POSITIVE_INFINITY))).toBe(EINTR);
    sched.timer(5, () => f.signal());
    expect(sched.execute(t, f.waitTimeout(false, 100))).toBe(95);
  });

  it("orders fences of one timeline only", () => {
    const sched = new Sched();
    expect(make(sched, 1n, 2n).isLaterOrSame(make(sched, 1n, 1n))).toBe(true);
    expect(make(sched, 1n, 1n).isLaterOrSame(make(sched, 1n, 2n))).toBe(false);
    expect(make(sched, 2n, 9n).isLaterOrSame(make(sched, 1n, 1n))).toBe(false);
  });

  it("keeps the earliest deadline", () => {
    const f = make(new Sched());
    f.setDeadline(50n);
    f.setDeadline(70n);
    f.setDeadline(40n);
    expect(f.deadline).toBe(40n);
  });
});

describe("an array of fences", () => {
  it("is signalled by the last of them, with the first error", () => {
    const sched = new Sched();
    const [a, b] = [make(sched, 1n), make(sched, 2n)];
    const both = new DmaFenceArray(sched, 3n, [a, b]);
    b.signal(EIO);
    expect(both.signalled).toBe(false);
    a.signal();
    expect([both.signalled, both.error]).toEqual([true, EIO]);
    expect(unwrapFence(both)).toEqual([a, b]);
    expect(unwrapFence(a)).toEqual([a]);
  });

  it("of fences that have all ended is signalled from the start", () => {
    const sched = new Sched();
    const a = make(sched);
    a.signal();
    expect(new DmaFenceArray(sched, 2n, [a]).signalled).toBe(true);
  });

  it("hands a deadline on to each", () => {
    const sched = new Sched();
    const [a, b] = [make(sched, 1n), make(sched, 2n)];
    new DmaFenceArray(sched, 3n, [a, b]).setDeadline(9n);
    expect([a.deadline, b.deadline]).toEqual([9n, 9n]);
  });
});

it("timelines are handed out in order, and the stub is one fence that ended long ago", () => {
  const c = new FenceContexts(new Sched());
  expect([c.alloc(), c.alloc(3), c.alloc()]).toEqual([1n, 2n, 5n]);
  expect(c.stub()).toBe(c.stub());
  expect(c.stub().signalled).toBe(true);
});
