/** Calls that meet: exports, maps, COMMAND writes, resets, faults and closes, interleaved at every lock. */
import { expect, test } from "vitest";
import { IommuFault } from "../../../src/kernel/iommu/iommu.ts";
import { EAGAIN, EBADF, EBUSY, EINVAL, ENODEV, Errno } from "../../../src/lib/errno.ts";
import type { Task } from "../../../src/sched/task.ts";
import { MAP_SHARED, PROT_READ } from "../../../src/uapi/index.ts";
import { IOMMU_IOAS_MAP_FILE, IommuIoasMapFile } from "../../../src/uapi/iommufd.ts";
import { PCI_COMMAND, PCI_COMMAND_MEMORY } from "../../../src/uapi/pci_regs.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, RAM_BYTES } from "./bench.ts";

/** A small generator of numbers below `n`; the same seed gives the same run. */
function random(seed: number): (n: number) => number {
  let x = (seed + 1) * 0x9e37_79b1;
  return (n) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % n;
  };
}

class Race {
  readonly b: Bench = new Bench();
  readonly fd: number = this.b.device();
  readonly ioas: number = this.b.ioas();
  readonly buf: number;
  readonly results: Map<string, (number | Errno | undefined)[]> = new Map();
  readonly mapped: bigint[] = [];
  readonly #tasks: Task[] = [];

  constructor() {
    const { b, fd } = this;
    expect(b.attach(fd, this.ioas)).toBe(0);
    b.configWrite(fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    this.buf = b.exportBar(fd) as number;
  }

  /** A thread that calls with memory of its own to pass structs in. */
  thread(name: string, calls: readonly (() => Generator<never, number | Errno | undefined, void>)[]): void {
    const results: (number | Errno | undefined)[] = [];
    this.results.set(name, results);
    const task = this.b.process.newThread(name);
    this.b.kernel.sched.start(
      task,
      (function* () {
        for (const call of calls) results.push(yield* call());
      })(),
    );
    this.#tasks.push(task);
  }

  run(seed: number): void {
    const { sched } = this.b.kernel;
    const pick = random(seed);
    sched.interleave = true;
    for (let steps = 0; this.#tasks.some((t) => !t.finished); steps++) {
      if (steps > 20_000) throw new Error("no end");
      const able = sched.liveTasks().filter((t) => t.state === "runnable");
      const next = able[pick(Math.max(able.length, 1))];
      if (next !== undefined) sched.step(next);
      else if (sched.pendingTimers > 0) sched.advance(100_000_000);
      else throw new Error(`deadlock: ${this.#tasks.map((t) => `${t.name} on ${t.blockedOn?.name}`).join(", ")}`);
    }
    sched.interleave = false;
    for (const t of this.#tasks) if (t.state === "failed") throw t.error;
    sched.settle();
  }
}

type Call = () => Generator<never, number | Errno | undefined, void>;

function calls(r: Race) {
  const { b, fd } = r;
  const { sys } = b.process;
  let pages = 0;
  const own = (): bigint => b.user(new Uint8Array(0)) + BigInt(++pages * 256);
  return {
    command(value: number): Call {
      const at = own();
      return (() => {
        b.process.space.write(at, Uint8Array.from([value, 0]));
        return sys.pwrite(fd, at, 2, (7n << 40n) | BigInt(PCI_COMMAND));
      }) as unknown as Call;
    },
    reset: (() => sys.ioctl(fd, V.VFIO_DEVICE_RESET, 0n)) as unknown as Call,
    hotReset(): Call {
      const at = own();
      return (() => {
        b.process.space.write(at, V.VfioPciHotReset.alloc({ argsz: 12 }).bytes);
        return sys.ioctl(fd, V.VFIO_DEVICE_PCI_HOT_RESET, at);
      }) as unknown as Call;
    },
    map(): Call {
      const at = own();
      return function* () {
        const m = IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, flags: 6, ioas_id: r.ioas, fd: r.buf, length: RAM_BYTES });
        b.process.space.write(at, m.bytes);
        const result = (yield* sys.ioctl(b.iommufd, IOMMU_IOAS_MAP_FILE, at)) as number | Errno;
        if (!(result instanceof Errno)) {
          b.process.space.read(at, m.bytes);
          r.mapped.push(m.iova);
        }
        return result;
      } as unknown as Call;
    },
    fault(at: bigint): Call {
      return function* () {
        yield* b.process.space.load(at, new Uint8Array(4));
        return 0;
      } as unknown as Call;
    },
    close: (() => sys.close(fd)) as unknown as Call,
  };
}

const SEEDS = 40;

test.each([
  ["a COMMAND toggle", (c: ReturnType<typeof calls>) => [c.command(0), c.command(PCI_COMMAND_MEMORY)]],
  ["a reset", (c: ReturnType<typeof calls>) => [c.reset]],
  ["a hot reset", (c: ReturnType<typeof calls>) => [c.hotReset()]],
])("%s against maps and a BAR fault never deadlocks, and no mapping outlives the revoke that came after it", (_name, trigger) => {
  const seen = new Set<string>();
  for (let seed = 0; seed < SEEDS; seed++) {
    const r = new Race();
    const { b } = r;
    const c = calls(r);
    const bar = b.run(b.process.sys.mmap(0n, RAM_BYTES, PROT_READ, MAP_SHARED, r.fd)) as bigint;
    r.thread("trigger", trigger(c));
    r.thread("map 1", [c.map(), c.map()]);
    r.thread("map 2", [c.map()]);
    r.thread("fault", [c.fault(bar), c.fault(bar + 4096n)]);
    r.run(seed);
    for (const x of r.results.get("trigger") ?? []) expect([0, 2, EAGAIN, EBUSY]).toContain(x);
    for (const name of ["map 1", "map 2"]) for (const x of r.results.get(name) ?? []) expect([0, ENODEV]).toContain(x);
    // Turned off now, nothing may be left that translates to the BAR.
    b.configWrite(r.fd, PCI_COMMAND, 2, 0);
    for (const iova of r.mapped) expect(b.kernel.iommu.translate(b.pdev().rid, iova, true)).toBeInstanceOf(IommuFault);
    for (const p of b.core().dmabufs) expect(p.revoked).toBe(true);
    seen.add([...r.results.values()].flat().join(" "));
    b.finish();
  }
  // The schedules do differ.
  expect(seen.size).toBeGreaterThan(1);
});

test("a close against a map and a reset leaves the buffer dead and nothing behind", () => {
  for (let seed = 0; seed < SEEDS; seed++) {
    const r = new Race();
    const { b } = r;
    const c = calls(r);
    r.thread("close", [c.close]);
    r.thread("map", [c.map(), c.map()]);
    r.thread("reset", [c.reset]);
    r.run(seed);
    for (const x of r.results.get("map") ?? []) expect([0, ENODEV]).toContain(x);
    expect([0, EAGAIN, EBADF, EINVAL]).toContain(r.results.get("reset")?.[0]);
    expect(b.core().vdev.openCount).toBe(0);
    expect(b.mapFile(r.ioas, r.buf)).toBe(ENODEV);
    b.finish();
  }
});

test("an unbind against the user's calls ends with the close, in every order", () => {
  for (let seed = 0; seed < SEEDS; seed++) {
    const r = new Race();
    const { b } = r;
    const c = calls(r);
    const unbind = b.kernel.sched.spawn("sysfs", () => b.kernel.pci.unbind(b.bdfs[0] as string));
    r.thread("user", [c.command(0), c.reset, c.command(PCI_COMMAND_MEMORY), c.map(), c.close]);
    r.run(seed);
    expect(unbind.finished).toBe(true);
    expect(b.pdev().driver).toBeUndefined();
    b.finish();
  }
});
