/**
 * Fault injection itself: who is asked, and what the knobs and fail-nth decide.
 * Expected values are those of lib/fault-inject.c and its users.
 */
import { beforeEach, describe, expect, test } from "vitest";
import type { FaultAttr } from "../../src/kernel/fault_attr.ts";
import { openTaskFault, type TaskFaultFile } from "../../src/kernel/fs/fail_nth.ts";
import type { Process } from "../../src/kernel/fs/process.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { copyFromUser, copyToUser, getUserU32, putUserU32 } from "../../src/kernel/mm/user_memory.ts";
import { EFAULT, EINVAL, ENOMEM, EPERM, ERANGE, Errno } from "../../src/lib/errno.ts";
import type { Step } from "../../src/sched/task.ts";
import * as u from "../../src/uapi/index.ts";
import { boot, memory, ok, peek, poke, text, unprivileged } from "../harness.ts";

let kernel: Kernel;
let p: Process;
beforeEach(() => {
  ({ kernel, p } = boot());
});

/** Runs plain code as a call of the process. */
function call<T>(f: () => T, of: Process = p): T {
  return of.run(
    (function* (): Step<T> {
      return f();
    })(),
  );
}

/** Which of `n` calls of `ask` failed, from 1. */
const failing = (n: number, ask: () => boolean): number[] =>
  call(() => Array.from({ length: n }, (_, i) => (ask() ? i + 1 : 0)).filter((i) => i > 0));

const slab = (): boolean => kernel.fault.slab("x");
const wait = (on: boolean): void => {
  kernel.fault.knobs.slabFilter.ignoreWait = on;
};
/** Sets a knob as debugfs does. */
function set(attr: string, name: string, value: bigint | boolean): void {
  const knob = kernel.fault.knobs
    .directories()
    .find((d) => d.name === attr)
    ?.knobs.find((k) => k.name === name);
  if (knob === undefined) throw new Error(`no ${attr}/${name}`);
  if (knob.kind === "bool") knob.set(value as boolean);
  else knob.set(value as bigint);
}

describe("without a decision", () => {
  test("nothing fails", () => {
    const { fault } = kernel;
    expect(failing(100, () => fault.slab("x") || fault.page("x") || fault.userPage("x") || fault.userCopy() || fault.iommufd("x"))).toEqual(
      [],
    );
  });
});

describe("a decision that a test makes", () => {
  test("is asked about every point, by kind, thing and size, and is told of by an event", () => {
    const seen: string[] = [];
    const events: string[] = [];
    kernel.trace.listen(({ event }) => {
      if (event.type === "mm.fail") events.push(`${event.by} ${event.what}`);
    });
    kernel.fault.decide((q) => {
      seen.push(`${q.name} ${q.what} ${q.size}${q.mayWait ? "" : " atomic"}${q.highmem ? " user" : ""}`);
      return q.what === "b";
    });
    const { fault } = kernel;
    expect(
      call(() => [
        fault.slab("a", 100),
        fault.slabAtomic("b"),
        fault.page("c", 2),
        fault.userPage("d"),
        fault.userCopy(),
        fault.iommufd("e"),
      ]),
    ).toEqual([false, true, false, false, false, false]);
    expect(seen).toEqual([
      "failslab a 100",
      "failslab b 64 atomic",
      "fail_page_alloc c 4",
      "fail_page_alloc d 1 user",
      "fail_usercopy copy 1",
      "fail_iommufd e 1",
    ]);
    expect(events).toEqual(["failslab b"]);
    fault.decide(undefined);
    expect(call(() => fault.slabAtomic("b"))).toBe(false);
  });

  test("a copy that fails copies nothing, and zeroes what it should have filled; single words cannot fail", () => {
    const at = memory(p, 4096);
    poke(p, at, "abcdefgh");
    kernel.fault.decide(() => true);
    const dst = new Uint8Array(4).fill(7);
    expect(call(() => copyFromUser(kernel, dst, at))).toBe(4);
    expect([...dst]).toEqual([0, 0, 0, 0]);
    expect(call(() => copyToUser(kernel, at, Uint8Array.of(1, 2, 3)))).toBe(3);
    expect(text(peek(p, at, 4))).toBe("abcd");
    expect(call(() => getUserU32(kernel, at))).toBe(0x64636261);
    expect(call(() => putUserU32(kernel, at, 0x30303030))).toBeUndefined();
    expect(text(peek(p, at, 4))).toBe("0000");
  });
});

describe("fail-nth", () => {
  beforeEach(() => wait(false));

  test("has the n-th point of that thread fail, and no other of it or of another", () => {
    kernel.fault.setNth(p.thread, 3);
    const other = kernel.fs.createProcess({ name: "other" });
    expect(call(() => [1, 2, 3, 4, 5].map(() => slab()), other)).toEqual([false, false, false, false, false]);
    expect(failing(8, slab)).toEqual([3]);
    expect(p.thread.failNth).toBe(0);
  });

  test("counts points of every kind together", () => {
    kernel.fault.setNth(p.thread, 4);
    const { fault } = kernel;
    expect(call(() => [fault.slab("a"), fault.userCopy(), fault.iommufd("b"), fault.userCopy(), fault.slab("c")])).toEqual([
      false,
      false,
      false,
      true,
      false,
    ]);
  });

  test("counts only what the filters let through: nothing that may wait at first, and single pages never until min-order says so", () => {
    const { fault } = kernel;
    wait(true);
    kernel.fault.setNth(p.thread, 1);
    expect(call(() => [fault.slab("a"), fault.page("b"), fault.page("c", 1), fault.slabAtomic("d")])).toEqual([false, false, false, true]);
    set("fail_page_alloc", "ignore-gfp-wait", false);
    kernel.fault.setNth(p.thread, 1);
    expect(call(() => [fault.page("b"), fault.userPage("u", 1), fault.page("c", 1)])).toEqual([false, false, true]);
    set("fail_page_alloc", "min-order", 0n);
    set("fail_page_alloc", "ignore-gfp-highmem", false);
    kernel.fault.setNth(p.thread, 2);
    expect(call(() => [fault.page("b"), fault.userPage("u")])).toEqual([false, true]);
  });

  test("with cache-filter no cache is marked, and none fails", () => {
    set("failslab", "cache-filter", true);
    kernel.fault.setNth(p.thread, 1);
    expect(failing(3, slab)).toEqual([]);
    expect(p.thread.failNth).toBe(1);
  });

  test("0 calls it off", () => {
    kernel.fault.setNth(p.thread, 2);
    kernel.fault.setNth(p.thread, 0);
    expect(failing(8, slab)).toEqual([]);
  });

  test("a call fails where it is told to, and leaves nothing", () => {
    const results = [1, 2, 3].map((n) => {
      const fd = ok(p.run(p.sys.memfdCreate("m", 0)));
      kernel.fault.setNth(p.thread, n);
      const r = p.run(p.sys.eventfd(0));
      kernel.fault.setNth(p.thread, 0);
      if (!(r instanceof Errno)) p.run(p.sys.close(r));
      p.run(p.sys.close(fd));
      return r;
    });
    expect(results).toEqual([ENOMEM, ENOMEM, ENOMEM]);
    expect(kernel.fs.openFiles).toBe(0);
    expect(kernel.fs.eventfds).toBe(0);
  });
});

describe("the file fail-nth", () => {
  let fd = 0;
  let at = 0n;
  const open = (what: TaskFaultFile): void => {
    const file = ok(openTaskFault(kernel, what, p.thread, u.O_RDWR, `/proc/self/${what}`));
    fd = ok(call(() => p.files.getUnused(0)));
    call(() => p.files.install(fd, file));
  };
  const write = (s: string): number | Errno => {
    poke(p, at, s);
    return p.run(p.sys.pwrite(fd, at, s.length, 0n));
  };
  const read = (count = 300, pos = 0n): string | Errno => {
    const r = p.run(p.sys.pread(fd, at, count, pos));
    return r instanceof Errno ? r : text(peek(p, at, r));
  };
  beforeEach(() => {
    at = memory(p, 4096);
    open("fail-nth");
  });

  test("tells what is left, 0 when it has failed", () => {
    wait(false);
    expect(read()).toBe("0\n");
    expect(write("5")).toBe(1);
    expect(failing(3, slab)).toEqual([]);
    // The read is a point itself: of the two that were left, this is one.
    expect(read()).toBe("2\n");
    expect(failing(3, slab)).toEqual([1]);
    expect(read()).toBe("0\n");
  });

  test("reading and writing are points themselves", () => {
    write("1");
    expect(read()).toBe(EFAULT);
    expect(read()).toBe("0\n");
    write("1");
    expect(write("0")).toBe(EFAULT);
    expect(write("0")).toBe(1);
  });

  test.each<[string, number | Errno, string]>([
    ["0x10", 4, "16\n"],
    ["010\n", 4, "8\n"],
    ["+7", 2, "7\n"],
    ["4294967295", 10, "4294967295\n"],
    ["4294967296", ERANGE, "0\n"],
    ["-1", EINVAL, "0\n"],
    ["", EINVAL, "0\n"],
    ["1 ", EINVAL, "0\n"],
  ])("%j is read as kstrtouint reads it", (s, result, then) => {
    expect(write(s)).toBe(result);
    kernel.fault.knobs.failUsercopy.probability = 0n;
    expect(p.thread.failNth).toBe(Number.parseInt(then, 10));
  });

  test("is read from where one says", () => {
    write("123");
    expect(read(2)).toBe("12");
    expect(p.thread.failNth).toBe(122);
    expect(read(10, 1n)).toBe("22\n");
    expect(read(10, 4n)).toBe("");
  });

  test("make-it-fail takes 0 and 1, from who has CAP_SYS_RESOURCE", () => {
    open("make-it-fail");
    expect(read()).toBe("0\n");
    expect(write("1")).toBe(1);
    expect(p.thread.makeItFail).toBe(true);
    expect(write("2")).toBe(EINVAL);
    expect(read()).toBe("1\n");
    p = unprivileged(kernel, 0n);
    at = memory(p, 4096);
    open("make-it-fail");
    expect(write("1")).toBe(EPERM);
  });
});

describe("the attributes", () => {
  let a: FaultAttr;
  beforeEach(() => {
    wait(false);
    a = kernel.fault.knobs.failslab;
  });

  test("probability 100 fails as often as times says, -1 without end", () => {
    set("failslab", "probability", 100n);
    expect(failing(4, slab)).toEqual([1]);
    expect(a.times).toBe(0);
    set("failslab", "times", 2n);
    expect(failing(4, slab)).toEqual([1, 2]);
    set("failslab", "times", -1n);
    expect(failing(4, slab)).toEqual([1, 2, 3, 4]);
    set("failslab", "probability", 0n);
    expect(failing(4, slab)).toEqual([]);
  });

  test("interval lets all but every n-th through", () => {
    set("failslab", "times", -1n);
    set("failslab", "interval", 3n);
    set("failslab", "probability", 100n);
    expect(failing(9, slab)).toEqual([3, 6, 9]);
  });

  test("space is used up before anything fails", () => {
    set("failslab", "times", -1n);
    set("failslab", "space", 250n);
    set("failslab", "probability", 100n);
    expect(failing(6, () => kernel.fault.slab("x", 100))).toEqual([3, 4, 5, 6]);
  });

  test("task-filter picks only threads with make-it-fail", () => {
    set("failslab", "times", -1n);
    set("failslab", "probability", 100n);
    set("failslab", "task-filter", true);
    expect(failing(2, slab)).toEqual([]);
    p.thread.makeItFail = true;
    expect(failing(2, slab)).toEqual([1, 2]);
  });

  test("a probability in between fails some, the same ones on every boot", () => {
    const some = (): number[] => {
      ({ kernel, p } = boot());
      wait(false);
      set("failslab", "times", -1n);
      set("failslab", "probability", 30n);
      return failing(1000, slab);
    };
    const first = some();
    expect(first.length).toBeGreaterThan(230);
    expect(first.length).toBeLessThan(370);
    expect(some()).toEqual(first);
  });

  test("a kind's attributes are its own", () => {
    set("fail_usercopy", "probability", 100n);
    set("fail_usercopy", "times", -1n);
    expect(failing(3, slab)).toEqual([]);
    expect(failing(3, () => kernel.fault.userCopy())).toEqual([1, 2, 3]);
  });

  test("verbose writes a line for each, as Linux's begins", () => {
    const lines: string[] = [];
    kernel.trace.listen(({ event }) => {
      if (event.type === "sched.printk") lines.push(event.text);
    });
    set("failslab", "probability", 100n);
    expect(failing(2, slab)).toEqual([1]);
    expect(lines).toEqual(["FAULT_INJECTION: forcing a failure.\nname failslab, interval 1, probability 100, space 0, times 1"]);
    set("failslab", "verbose", 0n);
    set("failslab", "times", 1n);
    expect(failing(2, slab)).toEqual([1]);
    expect(lines.length).toBe(1);
  });

  test("debugfs has the directories and files that Linux makes", () => {
    const standard = [
      "probability",
      "interval",
      "times",
      "space",
      "verbose",
      "verbose_ratelimit_interval_ms",
      "verbose_ratelimit_burst",
      "task-filter",
    ];
    expect(kernel.fault.knobs.directories().map((d) => [d.name, d.knobs.map((k) => k.name)])).toEqual([
      ["failslab", [...standard, "ignore-gfp-wait", "cache-filter"]],
      ["fail_page_alloc", [...standard, "ignore-gfp-wait", "ignore-gfp-highmem", "min-order"]],
      ["fail_usercopy", standard],
      ["fail_iommufd", standard],
    ]);
    const initial = kernel.fault.knobs.directories()[1]?.knobs.map((k) => k.get());
    expect(initial).toEqual([0n, 1n, 1n, 0n, 2n, 0n, 10n, false, true, true, 1n]);
  });
});
