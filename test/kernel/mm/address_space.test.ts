import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { File, FileOps } from "../../../src/kernel/fs/file.ts";
import type { Process } from "../../../src/kernel/fs/process.ts";
import type { Kernel } from "../../../src/kernel/kernel.ts";
import { accountSourceOf, charge, defaultAccountMode, uncharge, update } from "../../../src/kernel/mm/account.ts";
import { TASK_SIZE } from "../../../src/kernel/mm/address_space.ts";
import {
  checkZeroedUser,
  clearUser,
  copyFromUser,
  copyStructFromUser,
  copyToUser,
  getUserU32,
  getUserU64,
  putUserU32,
  putUserU64,
} from "../../../src/kernel/mm/user_memory.ts";
import { type FaultResult, type Vma, zapVmaRange } from "../../../src/kernel/mm/vma.ts";
import { type Pfn, type PhysAddr, physAddr } from "../../../src/lib/addr.ts";
import { E2BIG, EACCES, EBADF, EEXIST, EFAULT, EINVAL, ENODEV, ENOMEM, EOVERFLOW } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { LockClass, Mutex, RwSem, type Step } from "../../../src/sched/index.ts";
import {
  IommuDestroy,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_FIXED_NOREPLACE,
  MAP_HUGETLB,
  MAP_PRIVATE,
  MAP_SHARED,
  O_RDONLY,
  O_RDWR,
  PROT_EXEC,
  PROT_NONE,
  PROT_READ,
  PROT_WRITE,
} from "../../../src/uapi/index.ts";
import { boot, expectNothingLeaks, failFrames, memory, ok, peek, poke, run, text, unprivileged } from "../../harness.ts";

const RW = PROT_READ | PROT_WRITE;
const ANON = MAP_PRIVATE | MAP_ANONYMOUS;
let kernel: Kernel;
let p: Process;
beforeEach(() => {
  ({ kernel, p } = boot());
});
afterEach(() => expectNothingLeaks(kernel));

/** Runs a plain function as if inside a system call of `p`. */
function inCall<T>(f: () => T): T {
  return p.run(
    (function* (): Step<T> {
      return f();
    })(),
  );
}

/** A memfd of `size` bytes. */
function memfd(size: bigint): number {
  const fd = run(p, p.sys.memfdCreate("m", 0));
  run(p, p.sys.ftruncate(fd, size));
  return fd;
}

const load = (addr: bigint, n: number, dst = new Uint8Array(n)): [string, number[]] => [p.run(p.space.load(addr, dst)), [...dst]];

describe("mmap", () => {
  it("checks its arguments in Linux's order", () => {
    const map = (length: bigint, flags: number, fd = -1, offset = 0n, prot = RW, addr = 0n): unknown =>
      p.run(p.sys.mmap(addr, length, prot, flags, fd, offset));
    expect(map(4096n, ANON, -1, 1n)).toBe(EINVAL);
    expect(map(4096n, MAP_PRIVATE, 99)).toBe(EBADF);
    expect(map(0n, ANON)).toBe(EINVAL);
    expect(map(TASK_SIZE + 1n, ANON)).toBe(ENOMEM);
    expect(map(4096n, MAP_ANONYMOUS)).toBe(EINVAL);
    expect(map(4096n, ANON | MAP_FIXED, -1, 0n, RW, 1n)).toBe(EINVAL);
    expect(map(4096n, ANON | MAP_FIXED, -1, 0n, RW, TASK_SIZE)).toBe(ENOMEM);
    const fd = memfd(4096n);
    expect(map(8192n, MAP_SHARED, fd, 0xffff_ffff_ffff_f000n)).toBe(EOVERFLOW);
    const ro = run(p, p.sys.open(`/proc/self/fd/${fd}`, O_RDONLY));
    expect(map(4096n, MAP_SHARED, ro)).toBe(EACCES);
    expect(typeof map(4096n, MAP_PRIVATE, ro)).toBe("bigint");
    const nul = run(p, p.sys.open("/dev/null", O_RDWR));
    expect(map(4096n, MAP_SHARED, nul)).toBe(ENODEV);
  });

  it("keeps a shared mapping of a read-only file from ever becoming writable", () => {
    const ro = run(p, p.sys.open(`/proc/self/fd/${memfd(4096n)}`, O_RDONLY));
    const at = run(p, p.sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, ro));
    expect(p.run(p.sys.mprotect(at, 4096n, RW))).toBe(EACCES);
  });

  it("places mappings from the top down, at the hint when it is free, and where it is told", () => {
    const a = memory(p, 4096);
    const b = memory(p, 4096);
    expect(b).toBe(a - 4096n);
    expect(run(p, p.sys.mmap(0x4000_0000n, 4096n, RW, ANON, -1))).toBe(0x4000_0000n);
    expect(run(p, p.sys.mmap(0x4000_0000n, 4096n, RW, ANON, -1))).toBe(b - 4096n);
    expect(p.run(p.sys.mmap(0x4000_0000n, 4096n, RW, ANON | MAP_FIXED_NOREPLACE, -1))).toBe(EEXIST);
    poke(p, 0x4000_0000n, "old");
    run(p, p.sys.mmap(0x4000_0000n, 4096n, RW, ANON | MAP_FIXED, -1));
    expect(peek(p, 0x4000_0000n, 3)).toEqual(new Uint8Array(3));
    run(p, p.sys.munmap(a, 4096n));
    expect(memory(p, 4096)).toBe(a);
  });

  it("cuts mappings where a part is unmapped", () => {
    const at = memory(p, 5 * 4096);
    for (let i = 0; i < 5; i++) poke(p, at + BigInt(i) * 4096n, String(i));
    expect(p.run(p.sys.munmap(at + 4096n, 4096n))).toBeUndefined();
    run(p, p.sys.munmap(at + 3n * 4096n, 1n));
    expect(p.space.vmas.map((v) => [Number(v.start - at) / 4096, Number(v.end - at) / 4096])).toEqual([
      [0, 1],
      [2, 3],
      [4, 5],
    ]);
    expect(text(peek(p, at + 2n * 4096n, 1))).toBe("2");
    expect(p.mm.memory.read(at + 4096n, new Uint8Array(1))).toBe(1);
    expect(kernel.frames.live).toBe(3);
    expect(p.run(p.sys.munmap(at, 5n * 4096n))).toBeUndefined();
    expect(kernel.frames.live).toBe(0);
    expect(p.run(p.sys.munmap(at + 1n, 4096n))).toBe(EINVAL);
    expect(p.run(p.sys.munmap(at, 0n))).toBe(EINVAL);
  });
});

describe("copies", () => {
  it("stop at the exact byte", () => {
    const at = memory(p, 8192);
    run(p, p.sys.munmap(at + 4096n, 4096n));
    const src = new Uint8Array(100).fill(5);
    expect(p.mm.memory.write(at + 4066n, src)).toBe(70);
    expect(peek(p, at + 4066n, 30)).toEqual(src.subarray(0, 30));
    const dst = new Uint8Array(100).fill(1);
    expect(inCall(() => copyFromUser(kernel, dst, at + 4066n))).toBe(70);
    expect([...dst]).toEqual([...new Array(30).fill(5), ...new Array(70).fill(0)]);
    expect(inCall(() => copyToUser(kernel, at + 4095n, src))).toBe(99);
    expect(inCall(() => clearUser(kernel, at + 4066n, 30))).toBe(0);
    expect(peek(p, at + 4066n, 30)).toEqual(new Uint8Array(30));
  });

  it("honour the protection", () => {
    const at = memory(p, 4096, PROT_READ);
    expect(p.mm.memory.write(at, new Uint8Array(1))).toBe(1);
    expect(p.mm.memory.read(at, new Uint8Array(1))).toBe(0);
    run(p, p.sys.mprotect(at, 4096n, RW));
    poke(p, at, "x");
    run(p, p.sys.mprotect(at, 4096n, PROT_NONE));
    expect(p.mm.memory.read(at, new Uint8Array(1))).toBe(1);
    run(p, p.sys.mprotect(at, 4096n, PROT_WRITE));
    expect(text(peek(p, at, 1))).toBe("x");
    run(p, p.sys.mprotect(at, 4096n, PROT_EXEC));
    expect(text(peek(p, at, 1))).toBe("x");
    expect(p.mm.memory.write(at, new Uint8Array(1))).toBe(1);
  });

  it("move words", () => {
    const at = memory(p, 4096);
    inCall(() => {
      expect(putUserU64(kernel, at, 0x1122_3344_5566_7788n)).toBeUndefined();
      expect(getUserU32(kernel, at)).toBe(0x5566_7788);
      expect(putUserU32(kernel, at + 4092n, 7)).toBeUndefined();
      expect(putUserU64(kernel, at + 4092n, 7n)).toBe(EFAULT);
      expect(getUserU64(kernel, at + 4096n)).toBe(EFAULT);
      expect(getUserU64(kernel, at)).toBe(0x1122_3344_5566_7788n);
    });
  });

  it("read versioned structs as Linux does", () => {
    const at = memory(p, 4096);
    poke(p, at, new Uint8Array([8, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]));
    inCall(() => {
      const get = (usize: number, min = 0, from = at): unknown => {
        const v = copyStructFromUser(kernel, IommuDestroy, from, usize, min);
        return v === EINVAL || v === E2BIG || v === EFAULT ? v : IommuDestroy.toObject(v as never);
      };
      expect(get(8)).toEqual({ size: 8, id: 9 });
      expect(get(12)).toEqual({ size: 8, id: 9 });
      expect(get(4)).toEqual({ size: 8, id: 0 });
      expect(get(4, 8)).toBe(EINVAL);
      expect(get(4096 + 4)).toBe(EFAULT);
      expect(get(8, 0, at + 4092n)).toBe(EFAULT);
      p.mm.memory.write(at + 11n, new Uint8Array([1]));
      expect(get(12)).toBe(E2BIG);
      expect(get(4096 + 4)).toBe(E2BIG);
      expect(checkZeroedUser(kernel, at + 12n, 4096 - 12)).toBe(true);
      expect(checkZeroedUser(kernel, at + 12n, 4096)).toBe(EFAULT);
    });
  });

  it("record the mmap lock as taken inside whatever is held", () => {
    const at = memory(p, 4096);
    const lock = new Mutex(kernel.sched, new LockClass("driver"));
    p.run(
      (function* (): Step<void> {
        yield* lock.lock();
        copyFromUser(kernel, new Uint8Array(1), at);
        lock.unlock();
      })(),
    );
    expect(() =>
      p.run(
        (function* (): Step<void> {
          yield* p.mm.mmapLock.downRead();
          yield* lock.lock();
        })(),
      ),
    ).toThrow(/possible deadlock/);
    // The failed call died with the lock in its hands, and the memory with it.
    expect(kernel.sched.lockdep.edges()).toContainEqual(["driver", "mm.mmap_lock"]);
    ({ kernel, p } = boot());
  });

  it("belong to a process: a kernel thread has none", () => {
    kernel.sched.spawn("kthread", function* () {
      copyFromUser(kernel, new Uint8Array(1), 0n);
    });
    expect(() => kernel.sched.settle()).toThrow(KernelBug);
  });
});

describe("copy on write", () => {
  it("separates parent and child at the first write", () => {
    const at = memory(p, 4096);
    poke(p, at, "parent");
    const child = p.fork();
    expect(text(peek(child, at, 6))).toBe("parent");
    expect(kernel.frames.live).toBe(1);
    poke(child, at, "child!");
    expect(text(peek(p, at, 6))).toBe("parent");
    expect(kernel.frames.live).toBe(2);
    const before = p.space.translate(at);
    poke(p, at, "again!");
    expect(p.space.translate(at)).toBe(before);
    expect(text(peek(child, at, 6))).toBe("child!");
  });

  it("shares shared memory with the child, anonymous too", () => {
    const at = run(p, p.sys.mmap(0n, 4096n, RW, MAP_SHARED | MAP_ANONYMOUS, -1));
    const child = p.fork();
    poke(child, at, "hello");
    expect(text(peek(p, at, 5))).toBe("hello");
  });

  it("keeps a private mapping of a file apart from the file, once written", () => {
    const fd = memfd(8192n);
    const shared = run(p, p.sys.mmap(0n, 8192n, RW, MAP_SHARED, fd));
    const own = run(p, p.sys.mmap(0n, 8192n, RW, MAP_PRIVATE, fd));
    poke(p, shared, "file");
    expect(text(peek(p, own, 4))).toBe("file");
    poke(p, shared, "more");
    expect(text(peek(p, own, 4))).toBe("more");
    poke(p, own, "mine");
    poke(p, shared, "last");
    expect(text(peek(p, own, 4))).toBe("mine");
    p.space.discard(own, 8192n);
    expect(text(peek(p, own, 4))).toBe("last");
  });

  it("never moves a pinned page from under its owner", () => {
    const at = memory(p, 4096);
    poke(p, at, "dma");
    const [pfn] = ok(p.mm.memory.pin(at, 1, true)) as [Pfn];
    const child = p.fork();
    poke(p, at, "new");
    expect(text(kernel.frames.bytes(pfn).subarray(0, 3))).toBe("new");
    expect(text(peek(child, at, 3))).toBe("dma");
    p.mm.memory.unpin([pfn], true);
  });
});

describe("pins", () => {
  it("fault for holes, protection and device memory, and then hold nothing", () => {
    const at = memory(p, 3 * 4096);
    run(p, p.sys.mprotect(at + 8192n, 4096n, PROT_READ));
    expect(p.mm.memory.pin(at, 3, true)).toBe(EFAULT);
    expect(p.mm.memory.pin(at, 4, false)).toBe(EFAULT);
    expect(kernel.frames.pinned).toBe(0);
    const pfns = ok(p.mm.memory.pin(at, 3, false));
    expect(kernel.frames.pinned).toBe(3);
    p.mm.memory.unpin(pfns, false);
    const wo = memory(p, 4096, PROT_WRITE);
    expect(p.mm.memory.pin(wo, 1, false)).toBe(EFAULT);
    p.mm.memory.unpin(ok(p.mm.memory.pin(wo, 1, true)), true);
    failFrames(kernel, 1);
    expect(p.mm.memory.pin(memory(p, 4096), 1, true)).toBe(ENOMEM);
    failFrames(kernel, undefined);
  });

  it("survive munmap and the process", () => {
    const child = p.fork();
    const at = memory(child, 4096);
    poke(child, at, "x");
    const pfns = ok(child.mm.memory.pin(at, 1, true));
    const mm = child.mm.grab();
    run(child, child.sys.munmap(at, 4096n));
    child.run(child.exit());
    expect(mm.getNotZero()).toBe(false);
    expect(kernel.frames.bytes(pfns[0] as Pfn)[0]).toBe(0x78);
    mm.memory.unpin(pfns, true);
    mm.drop();
  });

  it("break copy on write first, for reading too", () => {
    const at = memory(p, 8192);
    poke(p, at, "a");
    poke(p, at + 4096n, "b");
    const child = p.fork();
    const w = ok(p.mm.memory.pin(at, 1, true));
    const r = ok(p.mm.memory.pin(at + 4096n, 1, false));
    poke(p, at, "c");
    poke(p, at + 4096n, "d");
    expect(kernel.frames.bytes(w[0] as Pfn)[0]).toBe(0x63);
    expect(kernel.frames.bytes(r[0] as Pfn)[0]).toBe(0x64);
    expect(text(peek(child, at, 1))).toBe("a");
    expect(text(peek(child, at + 4096n, 1))).toBe("b");
    p.mm.memory.unpin([...w, ...r], true);
    const fd = memfd(4096n);
    const own = run(p, p.sys.mmap(0n, 4096n, PROT_READ, MAP_PRIVATE, fd));
    const f = ok(p.mm.memory.pin(own, 1, false));
    expect(f[0]).not.toBe((p.files.get(fd) as File).ops.pageCache?.(p.files.get(fd) as File).peek(0));
    p.mm.memory.unpin(f, false);
  });

  it("of shared file memory are the file's own pages", () => {
    const fd = memfd(8192n);
    const at = run(p, p.sys.mmap(0n, 8192n, RW, MAP_SHARED, fd));
    const pfns = ok(p.mm.memory.pin(at, 2, true));
    poke(p, at + 4096n, "z");
    expect(kernel.frames.bytes(pfns[1] as Pfn)[0]).toBe(0x7a);
    p.mm.memory.unpin(pfns, true);
  });
});

describe("memory of a file", () => {
  it("ends with SIGBUS past the end of the file, and with EFAULT for the kernel", () => {
    const fd = memfd(4096n);
    const at = run(p, p.sys.mmap(0n, 8192n, RW, MAP_SHARED, fd));
    expect(p.run(p.space.store(at, new Uint8Array(4)))).toBe("ok");
    expect(p.run(p.space.store(at + 4096n, new Uint8Array(4)))).toBe("SIGBUS");
    expect(p.mm.memory.read(at + 4090n, new Uint8Array(10))).toBe(4);
    expect(p.mm.memory.pin(at, 2, true)).toBe(EFAULT);
    run(p, p.sys.ftruncate(fd, 8192n));
    expect(p.run(p.space.store(at + 4096n, new Uint8Array(4)))).toBe("ok");
    run(p, p.sys.ftruncate(fd, 0n));
    expect(load(at, 1)[0]).toBe("SIGBUS");
  });

  it("comes in huge pages when asked", () => {
    const at = run(p, p.sys.mmap(0n, 4096n, RW, ANON | MAP_HUGETLB, -1));
    expect(at % 0x20_0000n).toBe(0n);
    expect(p.space.vmas[0]?.length).toBe(0x20_0000n);
    poke(p, at + 0x10_0000n, "h");
    const pfns = ok(p.mm.memory.pin(at, 512, true));
    expect(pfns.every((f, i) => f === (pfns[0] as Pfn) + i)).toBe(true);
    p.mm.memory.unpin(pfns, true);
  });
});

describe("device memory", () => {
  class Bar {
    readonly bytes = new Uint8Array(8192);
    read(o: number, dst: Uint8Array): boolean {
      dst.set(this.bytes.subarray(o, o + dst.length));
      return true;
    }
    write(o: number, src: Uint8Array): boolean {
      this.bytes.set(src, o);
      return true;
    }
  }

  function mapBar(fault: (vma: Vma, page: number) => FaultResult | Step<FaultResult>): { at: bigint; bar: Bar; file: File; log: string[] } {
    const bar = new Bar();
    kernel.phys.addMmio(physAddr(0xe000_0000n), 8192n, bar, "bar");
    const log: string[] = [];
    const ops: FileOps = {
      name: "dev",
      mmap(_f, vma) {
        vma.ops = { fault, open: () => log.push("open"), close: () => log.push("close") };
        return undefined;
      },
    };
    kernel.fs.registerDevice("/dev/bar", { major: 10, minor: 200, ops });
    const fd = run(p, p.sys.open("/dev/bar", O_RDWR));
    return { at: run(p, p.sys.mmap(0n, 8192n, RW, MAP_SHARED, fd)), bar, file: p.files.get(fd) as File, log };
  }

  const page = (n: number): PhysAddr => physAddr(0xe000_0000n + BigInt(n) * 4096n);

  it("is found page by page, is never pinned, and faults again once zapped", () => {
    const faults: number[] = [];
    let dead = false;
    const { at, bar, file } = mapBar((_v, n) => {
      faults.push(n);
      return dead ? "SIGBUS" : page(n);
    });
    expect(p.run(p.space.store(at + 4096n, new Uint8Array([7])))).toBe("ok");
    expect(bar.bytes[4096]).toBe(7);
    expect(load(at + 4096n, 1)).toEqual(["ok", [7]]);
    expect(faults).toEqual([1]);
    expect(p.mm.memory.pin(at, 1, true)).toBe(EFAULT);
    expect(inCall(() => copyFromUser(kernel, new Uint8Array(2), at))).toBe(0);
    dead = true;
    zapVmaRange(file, 4096n, 0n);
    expect(load(at, 1)[0]).toBe("ok");
    expect(load(at + 4096n, 1)[0]).toBe("SIGBUS");
    expect(p.mm.memory.read(at + 4095n, new Uint8Array(2))).toBe(1);
    zapVmaRange(file.mapping, 0n, 0n);
    expect(load(at, 1)[0]).toBe("SIGBUS");
    expect(load(0x1000n, 1)[0]).toBe("SIGSEGV");
    expect(faults).toEqual([1, 0, 1, 1, 0]);
  });

  it("tells the driver when a mapping is copied, cut and dropped", () => {
    const { at, log } = mapBar((_v, n) => page(n));
    load(at, 1);
    const child = p.fork();
    expect(child.space.translate(at)).toBe(page(0));
    expect(log).toEqual(["open"]);
    run(p, p.sys.munmap(at, 4096n));
    expect(log).toEqual(["open", "open", "close"]);
    expect(load(at + 4096n, 1)[0]).toBe("ok");
    child.run(child.exit());
    expect(log.length).toBe(4);
  });

  it("may sleep in its fault handler; a copy cannot wait for it", () => {
    const lock = new RwSem(kernel.sched, new LockClass("memory_lock"));
    const { at } = mapBar(function* (_v, n): Step<FaultResult> {
      yield* lock.downRead();
      lock.upRead();
      return page(n);
    });
    const log: string[] = [];
    kernel.sched.spawn("reset", function* () {
      yield* lock.downWrite();
      yield* kernel.sched.sleep(100);
      log.push("reset done");
      lock.upWrite();
    });
    kernel.sched.spawn("cpu", () => {
      const dst = new Uint8Array(1);
      return (function* () {
        log.push(`load ${yield* p.space.load(at, dst)}`);
      })();
    });
    const t = p.newThread();
    kernel.sched.spawn(
      "copy",
      function* () {
        log.push(`copy left ${copyFromUser(kernel, new Uint8Array(4), at + 4096n)}`);
      },
      t.owner,
    );
    kernel.sched.settle();
    expect(log).toEqual(["copy left 4", "reset done", "load ok"]);
    expect(inCall(() => copyFromUser(kernel, new Uint8Array(4), at + 4096n))).toBe(0);
  });
});

describe("locked memory", () => {
  it("is charged to the user, up to the limit, over all of its processes", () => {
    const a = unprivileged(kernel, 8n * 4096n);
    const b = unprivileged(kernel, 8n * 4096n);
    const mode = defaultAccountMode(a);
    expect(mode).toBe("user");
    expect(charge(accountSourceOf(a), mode, 5)).toBeUndefined();
    expect(charge(accountSourceOf(b), mode, 4)).toBe(ENOMEM);
    expect(charge(accountSourceOf(b), mode, 3)).toBeUndefined();
    expect([kernel.fs.lockedVm, a.mm.pinnedVm, b.mm.pinnedVm]).toEqual([8, 5, 3]);
    uncharge(accountSourceOf(a), mode, 5);
    uncharge(accountSourceOf(b), mode, 3);
    expect(() => uncharge(accountSourceOf(b), mode, 1)).toThrow(KernelBug);
  });

  it("is not limited for who may lock memory", () => {
    const root = accountSourceOf(p);
    p.rlimits.memlock = 0n;
    expect(defaultAccountMode(p)).toBe("none");
    expect(charge(root, "none", 1000)).toBeUndefined();
    expect(p.mm.pinnedVm).toBe(1000);
    expect(charge(root, "user", 1)).toBe(ENOMEM);
    uncharge(root, "none", 1000);
  });

  it("can be charged to the mm alone, which must be alive", () => {
    const a = unprivileged(kernel, 4096n);
    const s = accountSourceOf(a);
    s.mm.grab();
    expect(a.run(update(s, "mm", 1))).toBeUndefined();
    expect(a.run(update(s, "mm", 1))).toBe(ENOMEM);
    expect([s.mm.lockedVm, kernel.fs.lockedVm]).toEqual([1, 0]);
    expect(a.run(update(s, "mm", -1))).toBeUndefined();
    a.run(a.exit());
    expect(charge(s, "mm", 1)).toBe(EINVAL);
    s.mm.drop();
  });
});
