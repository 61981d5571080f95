import { describe, expect, it } from "vitest";
import { EALREADY, EDEADLK, EINTR } from "../../src/lib/errno.ts";
import { KernelBug } from "../../src/lib/kernel_bug.ts";
import {
  LockClass,
  Mutex,
  Refcount,
  RwSem,
  Sched,
  type Step,
  type Task,
  WaitQueue,
  WouldBlock,
  WwAcquireCtx,
  WwMutex,
} from "../../src/sched/index.ts";
import { Completion } from "../../src/sched/wait.ts";

const A = new LockClass("a");
const B = new LockClass("b");
const C = new LockClass("c");

/** Runs each body as a task until all are done; returns what they logged. */
function together(sched: Sched, bodies: Record<string, (log: (s: string) => void) => Step<unknown>>): string[] {
  const out: string[] = [];
  for (const [name, body] of Object.entries(bodies)) sched.spawn(name, () => body((s) => out.push(`${name} ${s}`)));
  sched.settle();
  return out;
}

describe("a mutex", () => {
  it("keeps a second task out until the first lets go", () => {
    const s = new Sched();
    const m = new Mutex(s, A);
    const log = together(s, {
      one: function* (say) {
        yield* m.lock();
        say("in");
        yield* s.yield();
        say("out");
        m.unlock();
      },
      two: function* (say) {
        yield* m.lock();
        say("in");
        m.unlock();
      },
    });
    expect(log).toEqual(["one in", "one out", "two in"]);
  });

  it("does not wait in a trylock", () => {
    const s = new Sched();
    const m = new Mutex(s, A);
    const log = together(s, {
      one: function* () {
        yield* m.lock();
        yield* s.sleep(10);
        m.unlock();
      },
      two: function* (say) {
        say(String(yield* m.tryLock()));
        yield* s.sleep(20);
        say(String(yield* m.tryLock()));
        m.unlock();
      },
    });
    expect(log).toEqual(["two false", "two true"]);
  });

  it("is released only by its holder", () => {
    const s = new Sched();
    const m = new Mutex(s, A);
    const t = s.thread("t");
    expect(() =>
      s.execute(
        t,
        (function* () {
          m.unlock();
        })(),
      ),
    ).toThrow(KernelBug);
  });

  it("must not be held when a call returns", () => {
    const s = new Sched();
    const m = new Mutex(s, A);
    expect(() => s.execute(s.thread("t"), m.lock())).toThrow(/t returns with a held/);
  });

  it("cannot be touched outside of a task", () => {
    const s = new Sched();
    expect(() => new Mutex(s, A).assertHeld()).toThrow(/no task is running/);
  });

  it("knows whether the running task holds it", () => {
    const s = new Sched();
    const m = new Mutex(s, A);
    s.execute(
      s.thread("t"),
      (function* () {
        expect(() => m.assertHeld()).toThrow(KernelBug);
        yield* m.lock();
        m.assertHeld();
        expect(m.locked).toBe(true);
        m.unlock();
      })(),
    );
  });
});

describe("a rw-semaphore", () => {
  it("lets readers share and keeps a writer out", () => {
    const s = new Sched();
    const r = new RwSem(s, A);
    const reader = function* (say: (s: string) => void): Step<void> {
      yield* r.downRead();
      say("in");
      yield* s.sleep(10);
      say("out");
      r.upRead();
    };
    const log = together(s, {
      r1: reader,
      r2: reader,
      w: function* (say) {
        yield* r.downWrite();
        say("in");
        r.upWrite();
      },
    });
    expect(log).toEqual(["r1 in", "r2 in", "r1 out", "r2 out", "w in"]);
  });

  it("makes a reader that comes later wait behind a waiting writer", () => {
    const s = new Sched();
    const r = new RwSem(s, A);
    const log = together(s, {
      r1: function* (say) {
        yield* r.downRead();
        yield* s.sleep(10);
        say("out");
        r.upRead();
      },
      w: function* (say) {
        yield* r.downWrite();
        say("in");
        r.upWrite();
      },
      r2: function* (say) {
        expect(yield* r.tryDownRead()).toBe(false);
        yield* r.downRead();
        say("in");
        r.upRead();
      },
    });
    expect(log).toEqual(["r1 out", "w in", "r2 in"]);
  });

  it("becomes a reader's without a gap for another writer", () => {
    const s = new Sched();
    const r = new RwSem(s, A);
    const log = together(s, {
      w1: function* (say) {
        yield* r.downWrite();
        r.assertHeldWrite();
        yield* s.sleep(1);
        r.downgradeWrite();
        say("reads");
        yield* s.sleep(10);
        expect(() => r.assertHeldWrite()).toThrow(KernelBug);
        r.upRead();
      },
      w2: function* (say) {
        yield* s.sleep(2);
        expect(yield* r.tryDownWrite()).toBe(false);
        yield* r.downWrite();
        say("writes");
        r.upWrite();
      },
    });
    expect(log).toEqual(["w1 reads", "w2 writes"]);
    expect(r.locked).toBe(false);
  });

  it("takes unbalanced releases for a bug", () => {
    const s = new Sched();
    const r = new RwSem(s, A);
    const run = (body: () => Step<void>): (() => void) => {
      return () => s.execute(s.thread("t"), body());
    };
    expect(
      run(function* () {
        r.upRead();
      }),
    ).toThrow(KernelBug);
    expect(
      run(function* () {
        r.upWrite();
      }),
    ).toThrow(KernelBug);
    expect(
      run(function* () {
        yield* r.downRead();
        r.downgradeWrite();
      }),
    ).toThrow(KernelBug);
  });
});

describe("a ww-mutex", () => {
  it("turns a younger context that holds locks away from an older one's", () => {
    const s = new Sched();
    const [m1, m2] = [new WwMutex(s, A), new WwMutex(s, A)];
    const old = new WwAcquireCtx(1);
    const young = new WwAcquireCtx(2);
    const log = together(s, {
      old: function* (say) {
        yield* m1.lock(old);
        yield* s.yield();
        // The younger one holds it: the older waits.
        expect(yield* m2.lock(old)).toBeUndefined();
        say("has both");
        m2.unlock();
        m1.unlock();
      },
      young: function* (say) {
        yield* m2.lock(young);
        const r = yield* m1.lock(young);
        say(String(r));
        expect(r).toBe(EDEADLK);
        m2.unlock();
        // With nothing held it waits for the contended one and starts again from there.
        expect(yield* m1.lock(young)).toBeUndefined();
        expect(yield* m2.lock(young)).toBeUndefined();
        say("has both");
        m1.unlock();
        m2.unlock();
      },
    });
    expect(log).toEqual(["young EDEADLK", "old has both", "young has both"]);
    expect(young.acquired).toBe(0);
  });

  it("says so when its context has it already", () => {
    const s = new Sched();
    const m = new WwMutex(s, A);
    s.execute(
      s.thread("t"),
      (function* () {
        const ctx = new WwAcquireCtx(1);
        yield* m.lock(ctx);
        expect(yield* m.lock(ctx)).toBe(EALREADY);
        m.unlock();
        expect(yield* m.tryLock()).toBe(true);
        m.unlock();
      })(),
    );
  });
});

describe("waiting", () => {
  it("counts completions, one for each wait", () => {
    const s = new Sched();
    const c = new Completion(s, "c");
    const log = together(s, {
      w1: function* (say) {
        yield* c.wait();
        say("woke");
      },
      w2: function* (say) {
        yield* c.wait();
        say("woke");
      },
      done: function* (say) {
        c.complete();
        yield* s.sleep(5);
        say("again");
        c.complete();
      },
    });
    expect(log).toEqual(["w1 woke", "done again", "w2 woke"]);
    c.completeAll();
    s.execute(s.thread("t"), c.wait());
    s.execute(s.thread("t"), c.wait());
    c.reinit();
    expect(c.done).toBe(false);
  });

  it("gives up on a completion after its time", () => {
    const s = new Sched();
    const c = new Completion(s, "c");
    expect(s.execute(s.thread("t"), c.waitTimeout(100))).toBe(false);
    expect(s.now).toBe(100);
    c.complete();
    expect(s.execute(s.thread("t"), c.waitTimeout(100))).toBe(true);
    expect(s.pendingTimers).toBe(0);
    const t = s.thread("t");
    s.start(t, c.waitTimeoutInterruptible(100));
    s.step(t);
    s.interrupt(t);
    expect(s.finish(t)).toBe(EINTR);
  });

  it("ends an interruptible wait by a signal, and no other", () => {
    const s = new Sched();
    const q = new WaitQueue(s, "q");
    let ready = false;
    const [soft, hard] = [s.thread("soft"), s.thread("hard")];
    s.start(
      soft,
      q.waitEventInterruptible(() => ready),
    );
    s.start(
      hard,
      q.waitEvent(() => ready),
    );
    for (const t of [soft, hard]) s.step(t);
    for (const t of [soft, hard]) s.interrupt(t);
    expect(s.finish(soft)).toBe(EINTR);
    expect(() => s.finish(hard)).toThrow(WouldBlock);
    ready = true;
    q.wakeUp();
    expect(s.finish(hard)).toBeUndefined();
  });

  it("throws when nothing that is left could end the wait, and can be resumed", () => {
    const s = new Sched();
    const q = new WaitQueue(s, "a bell");
    let rung = false;
    const t = s.thread("t");
    const call = q.waitEvent(() => rung);
    expect(() => s.execute(t, call)).toThrow(/t waits for a bell/);
    expect(s.liveTasks()).toEqual([t]);
    rung = true;
    q.wakeUp();
    s.settle();
    expect(t.finished).toBe(true);
    expect(s.liveTasks()).toEqual([]);
  });
});

describe("the scheduler", () => {
  it("fires timers in order of time, then of creation, and moves the clock", () => {
    const s = new Sched();
    const log: string[] = [];
    s.timer(20, () => log.push(`late ${s.now}`));
    s.timer(10, () => log.push(`first ${s.now}`));
    s.timer(10, () => log.push(`second ${s.now}`));
    s.timer(15, () => log.push("never")).cancel();
    s.advance(12);
    expect(log).toEqual(["first 10", "second 10"]);
    expect(s.now).toBe(12);
    s.settle();
    expect(log).toEqual(["first 10", "second 10", "late 20"]);
  });

  it("sleeps in virtual time", () => {
    const s = new Sched();
    s.execute(s.thread("t"), s.sleep(1_000_000));
    expect(s.now).toBe(1_000_000);
  });

  it("runs deferred work after the call, the last deferred first", () => {
    const s = new Sched();
    const log: string[] = [];
    const t = s.thread("t");
    const r = s.execute(
      t,
      (function* (): Step<number> {
        for (const n of [1, 2]) {
          t.taskWork.push(function* () {
            log.push(`work ${n}`);
            if (n === 2)
              t.taskWork.push(function* () {
                log.push("work of work");
              });
          });
        }
        log.push("call");
        return 7;
      })(),
    );
    expect(r).toBe(7);
    expect(log).toEqual(["call", "work 2", "work 1", "work of work"]);
  });

  it("passes on what a call threw", () => {
    const s = new Sched();
    const t = s.thread("t");
    const boom = function* (): Step<void> {
      throw new Error("boom");
    };
    expect(() => s.execute(t, boom())).toThrow("boom");
    s.spawn("kthread", boom);
    expect(() => s.settle()).toThrow("boom");
  });

  it("yields before every lock operation when it interleaves", () => {
    const s = new Sched();
    s.interleave = true;
    const m = new Mutex(s, A);
    const r = new RwSem(s, B);
    const w = new WwMutex(s, C);
    const t = s.thread("t");
    s.start(
      t,
      (function* () {
        yield* m.lock();
        m.unlock();
        if (yield* m.tryLock()) m.unlock();
        yield* r.downRead();
        r.upRead();
        yield* r.downWrite();
        r.upWrite();
        if (yield* r.tryDownRead()) r.upRead();
        if (yield* r.tryDownWrite()) r.upWrite();
        yield* w.lock();
        w.unlock();
        if (yield* w.tryLock()) w.unlock();
      })(),
    );
    const points: string[] = [];
    while (!t.finished) {
      s.step(t);
      if (t.point !== undefined) points.push(`${t.point.op} ${t.point.on.name}`);
    }
    expect(points).toEqual(["lock a", "trylock a", "lock-read b", "lock b", "trylock b", "trylock b", "lock c", "trylock c"]);
  });

  it("tells an observer of every acquisition, release, block and wake", () => {
    const s = new Sched();
    const log: string[] = [];
    s.observer = {
      acquired: (t: Task, l) => log.push(`${t.name} takes ${l.name}`),
      released: (t: Task, l) => log.push(`${t.name} frees ${l.name}`),
      blocked: (t: Task, on) => log.push(`${t.name} waits for ${on.name}`),
      woken: (t: Task) => log.push(`${t.name} wakes`),
    };
    const m = new Mutex(s, A);
    const body = function* (): Step<void> {
      yield* m.lock();
      yield* s.yield();
      m.unlock();
    };
    together(s, { one: body, two: body });
    expect(log).toEqual(["one takes a", "two waits for a", "one frees a", "two wakes", "two takes a", "two frees a"]);
  });
});

describe("lockdep", () => {
  const nest = (s: Sched, name: string, ...locks: Mutex[]): void => {
    s.execute(
      s.thread(name),
      (function* () {
        for (const l of locks) yield* l.lock();
        for (const l of locks.reverse()) l.unlock();
      })(),
    );
  };

  it("reports a cycle that no run has closed, with the chains of both directions", () => {
    const s = new Sched();
    const [a, b, c] = [new Mutex(s, A), new Mutex(s, B), new Mutex(s, C)];
    nest(s, "t1", a, b);
    nest(s, "t2", b, c);
    let report = "";
    try {
      nest(s, "t3", c, a);
    } catch (e) {
      expect(e).toBeInstanceOf(KernelBug);
      report = (e as Error).message;
    }
    expect(report).toContain("t3 takes a while holding c");
    expect(report).toContain("now:     c → a  (t3)");
    expect(report).toContain("earlier: a → b  (t1)");
    expect(report).toContain("earlier: b → c  (t2)");
  });

  it("refuses two locks of one class unless told that they nest", () => {
    const s = new Sched();
    const [a1, a2] = [new Mutex(s, A), new Mutex(s, A)];
    expect(() => nest(s, "t", a1, a2)).toThrow(/without saying that they nest/);
    const s1 = new Sched();
    const twice = new Mutex(s1, A);
    expect(() => nest(s1, "t", twice, twice)).toThrow(/takes a twice/);
    const s2 = new Sched();
    const [b1, b2] = [new Mutex(s2, A), new Mutex(s2, A)];
    s2.execute(
      s2.thread("t"),
      (function* () {
        yield* b1.lock();
        yield* b2.lock(true);
        b2.unlock();
        b1.unlock();
      })(),
    );
  });

  it("adds no edge to a lock that was only tried", () => {
    const s = new Sched();
    const [a, b] = [new Mutex(s, A), new Mutex(s, B)];
    s.execute(
      s.thread("t"),
      (function* () {
        yield* a.lock();
        yield* b.tryLock();
        b.unlock();
        a.unlock();
      })(),
    );
    expect(s.lockdep.edges()).toEqual([]);
    nest(s, "t", b, a);
    expect(s.lockdep.edges()).toEqual([["b", "a"]]);
  });
});

describe("a reference count", () => {
  it("never goes below zero nor comes back from it", () => {
    const r = new Refcount("r");
    r.get();
    expect(r.put()).toBe(false);
    expect(r.put()).toBe(true);
    expect(r.getNotZero()).toBe(false);
    expect(() => r.put()).toThrow(/underflow/);
    expect(() => r.get()).toThrow(/use after free/);
    r.reinit();
    expect(r.getNotZero()).toBe(true);
    expect(r.count).toBe(2);
  });
});
