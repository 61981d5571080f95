/**
 * VFIO_DEVICE_FEATURE_DMA_BUF over the ioctl of a real device file: every check
 * by itself, in the order of the checks, and of every two faults at once the
 * earlier one's errno.
 */
import { describe, expect, it } from "vitest";
import { vfioPciDriver } from "../../src/kernel/vfio/pci/vfio_pci.ts";
import { Errno } from "../../src/lib/errno.ts";
import { PROT_READ } from "../../src/uapi/index.ts";
import * as V from "../../src/uapi/vfio.ts";
import { Bench, RAM_BYTES, TINY } from "../kernel/vfio/bench.ts";

const GET = V.VFIO_DEVICE_FEATURE_GET;
const SET = V.VFIO_DEVICE_FEATURE_SET;
const PROBE = V.VFIO_DEVICE_FEATURE_PROBE;
const HEAD = V.VfioDeviceFeature.size;
const FIXED = V.VfioDeviceFeatureDmaBuf.size;
const RANGE = V.VfioRegionDmaRange.size;
const PAGE = 0x1000n;
const IO_BAR = 5;
const WITH_IO: typeof TINY = { ...TINY, bars: [...TINY.bars, { index: IO_BAR, size: 0x20n, kind: "io" }] };

/** One call, and the machine it is made on. The defaults make it succeed. */
class Request {
  op: number = GET;
  /** Payload bytes announced; the ranges need not be. */
  argsz: number = FIXED;
  region = 0;
  openFlags = 0;
  flags = 0;
  ranges: { offset: bigint; length: bigint }[] = [{ offset: 0n, length: PAGE }];
  count: number | undefined = undefined;
  /** Bytes after the header that can be read; the rest is beyond the end of the mapping. */
  readable: number | undefined = undefined;
  variant = false;
  unregistering = false;
  moduleGone = false;
  fdsFull = false;
  memoryOff = false;
}

function perform(r: Request): { result: number | Errno; b: Bench; fd: number } {
  const b = new Bench({ functions: [WITH_IO], bind: false });
  const k = b.kernel;
  const [bdf = ""] = b.bdfs;
  const driver = r.variant ? "variant-vfio-pci" : "vfio-pci";
  if (r.variant) k.pci.registerDriver(vfioPciDriver(driver, {}, {}));
  b.pdev(bdf).driverOverride = driver;
  expect(b.kernelRun(k.pci.bind(driver, bdf))).toBeUndefined();
  const fd = b.device();
  // COMMAND: memory and I/O decode.
  b.configWrite(fd, 4, 2, r.memoryOff ? 1 : 3);
  if (r.unregistering) {
    k.sched.spawn("unbind", () => k.pci.unbind(bdf));
    b.settle();
  }
  const payload = new Uint8Array(FIXED + r.ranges.length * RANGE);
  payload.set(
    V.VfioDeviceFeatureDmaBuf.alloc({
      region_index: r.region,
      open_flags: r.openFlags,
      flags: r.flags,
      nr_ranges: r.count ?? r.ranges.length,
    }).bytes,
  );
  for (const [i, range] of r.ranges.entries()) payload.set(V.VfioRegionDmaRange.alloc(range).bytes, FIXED + i * RANGE);
  const pages = b.ok(b.process.sys.mmap(0n, 0x2000n, 3, 0x22, -1));
  const readable = r.readable ?? payload.length;
  const arg = pages + PAGE - BigInt(HEAD + readable);
  const header = V.VfioDeviceFeature.alloc({ argsz: HEAD + r.argsz, flags: r.op | V.VFIO_DEVICE_FEATURE_DMA_BUF });
  b.process.space.write(arg, header.bytes);
  b.process.space.write(arg + BigInt(HEAD), payload);
  b.run(b.process.sys.munmap(pages + PAGE, PAGE));
  if (r.moduleGone) k.modules.unload("vfio_pci_core");
  const { nofile } = b.process.rlimits;
  if (r.fdsFull) b.process.rlimits.nofile = b.process.files.size;
  const files = b.process.files.size;
  const result = b.run(b.process.sys.ioctl(fd, V.VFIO_DEVICE_FEATURE, arg));
  b.process.rlimits.nofile = nofile;
  if (result instanceof Errno) expect(b.process.files.size).toBe(files);
  return { result, b, fd };
}

interface Fault {
  readonly name: string;
  readonly errno: string;
  /** Faults of one part of the call cannot be had together. */
  readonly part: string;
  readonly apply: (r: Request) => void;
}

/** In the order in which the kernel looks. */
const FAULTS: readonly Fault[] = [
  { name: "§2 row 1: the driver exports nothing", errno: "EOPNOTSUPP", part: "driver", apply: (r) => (r.variant = true) },
  { name: "§2 row 2: SET", errno: "EINVAL", part: "op", apply: (r) => (r.op = SET) },
  { name: "§2 row 4: neither GET nor SET", errno: "EINVAL", part: "op", apply: (r) => (r.op = 0) },
  { name: "§2 row 5: argsz is short of the fixed part", errno: "EINVAL", part: "argsz", apply: (r) => (r.argsz = FIXED - 1) },
  { name: "§2 row 6: the fixed part cannot be read", errno: "EFAULT", part: "memory", apply: (r) => (r.readable = FIXED - 1) },
  { name: "§2 row 7: no ranges", errno: "EINVAL", part: "count", apply: (r) => (r.count = 0) },
  { name: "§2 row 7: flags", errno: "EINVAL", part: "flags", apply: (r) => (r.flags = 1) },
  { name: "§2 row 8: a region that is no BAR", errno: "ENODEV", part: "region", apply: (r) => (r.region = 6) },
  { name: "§2 row 8: a BAR the device has not", errno: "ENODEV", part: "region", apply: (r) => (r.region = 1) },
  { name: "§2 row 9: more ranges than can be copied", errno: "ENOMEM", part: "count", apply: (r) => (r.count = 262145) },
  { name: "§2 row 9: ranges that cannot be read", errno: "EFAULT", part: "memory", apply: (r) => (r.readable = FIXED) },
  { name: "§2 row 10: an empty range", errno: "EINVAL", part: "range", apply: (r) => (r.ranges = [{ offset: 0n, length: 0n }]) },
  { name: "§2 row 10: an unaligned offset", errno: "EINVAL", part: "range", apply: (r) => (r.ranges = [{ offset: 1n, length: PAGE }]) },
  {
    name: "§2 row 10: an unaligned length",
    errno: "EINVAL",
    part: "range",
    apply: (r) => (r.ranges = [{ offset: 0n, length: PAGE + 1n }]),
  },
  {
    name: "§2 row 10: a total that wraps",
    errno: "EINVAL",
    part: "range",
    apply: (r) => (r.ranges = Array.from({ length: 4 }, () => ({ offset: 0n, length: 1n << 62n }))),
  },
  {
    name: "§2 row 10: a total with the highest bit",
    errno: "EINVAL",
    part: "range",
    apply: (r) => (r.ranges = [{ offset: 0n, length: 1n << 63n }]),
  },
  { name: "§2 row 12: a BAR of I/O ports", errno: "EINVAL", part: "region", apply: (r) => (r.region = IO_BAR) },
  {
    name: "§2 row 13: a start that wraps",
    errno: "EOVERFLOW",
    part: "range",
    apply: (r) => (r.ranges = [{ offset: -PAGE, length: PAGE }]),
  },
  {
    name: "§2 row 14: beyond the BAR",
    errno: "EINVAL",
    part: "range",
    apply: (r) => (r.ranges = [{ offset: RAM_BYTES - PAGE, length: 2n * PAGE }]),
  },
  { name: "§2 row 16: a module that is being unloaded", errno: "ENOENT", part: "module", apply: (r) => (r.moduleGone = true) },
  { name: "§2 row 18: no descriptor left", errno: "EMFILE", part: "fds", apply: (r) => (r.fdsFull = true) },
];

const outcome = (...faults: readonly Fault[]): string => {
  const r = new Request();
  // Later checks first, so that what an earlier one needs wins.
  for (const f of [...faults].reverse()) f.apply(r);
  const { result } = perform(r);
  return result instanceof Errno ? result.name : "ok";
};

describe("each check by itself", () => {
  it.each(FAULTS)("$name: $errno", (f) => {
    expect(outcome(f)).toBe(f.errno);
  });
});

describe("of two faults at once the earlier check decides", () => {
  const pairs = FAULTS.flatMap((a, i) => FAULTS.slice(i + 1).map((b) => [a, b] as const));
  const apart = pairs.filter(([a, b]) => a.part !== b.part && a.errno !== b.errno);
  it.each(apart.map(([a, b]) => [a.name, b.name, a, b] as const))("%s, and %s", (_a, _b, a, b) => {
    expect(outcome(a, b)).toBe(a.errno);
  });

  it.each<[string, [bigint, bigint][], string]>([
    [
      "§2 rows 10 and 13: every range is looked at for its form before any for its place",
      [
        [-PAGE, PAGE],
        [0n, 0n],
      ],
      "EINVAL",
    ],
    [
      "§2 rows 13 and 14: places are looked at in order: beyond, then wrapping",
      [
        [RAM_BYTES, PAGE],
        [-PAGE, PAGE],
      ],
      "EINVAL",
    ],
    [
      "§2 rows 13 and 14: places are looked at in order: wrapping, then beyond",
      [
        [-PAGE, PAGE],
        [RAM_BYTES, PAGE],
      ],
      "EOVERFLOW",
    ],
  ])("%s", (_name, ranges, errno) => {
    const r = new Request();
    r.ranges = ranges.map(([offset, length]) => ({ offset, length }));
    expect((perform(r).result as Errno).name).toBe(errno);
  });
});

describe("a probe", () => {
  it("§2 row 3: of GET answers 0 and looks at nothing else", () => {
    const r = new Request();
    Object.assign(r, { op: GET | PROBE, argsz: 0, region: 9, flags: 1, unregistering: true });
    expect(perform(r).result).toBe(0);
    r.op = PROBE;
    expect(perform(r).result).toBe(0);
  });

  it("§2 rows 1 and 2: of SET answers EINVAL, with or without GET; of a driver that exports nothing EOPNOTSUPP", () => {
    const r = new Request();
    for (const op of [SET | PROBE, SET | GET | PROBE]) {
      r.op = op;
      expect((perform(r).result as Errno).name).toBe("EINVAL");
    }
    r.op = GET | PROBE;
    r.variant = true;
    expect((perform(r).result as Errno).name).toBe("EOPNOTSUPP");
  });
});

describe("success", () => {
  const made = (change: Partial<Request>) => {
    const r = Object.assign(new Request(), change);
    const { result, b, fd } = perform(r);
    if (result instanceof Errno) throw new Error(result.name);
    return { b, fd, buf: result };
  };

  it("§2 row 19, §2 fact 6: answers a descriptor; the size of the buffer is the sum of the lengths", () => {
    const { b, buf } = made({
      ranges: [
        { offset: 0n, length: 2n * PAGE },
        { offset: PAGE, length: PAGE },
        { offset: 0n, length: RAM_BYTES },
      ],
    });
    expect(b.run(b.process.sys.lseek(buf, 0n, 2))).toBe(RAM_BYTES + 3n * PAGE);
    expect(b.process.files.cloexec(buf)).toBe(false);
  });

  it("§2 fact 2: ranges may overlap, repeat, descend, and be 64", () => {
    const { b, buf } = made({ ranges: Array.from({ length: 64 }, (_, i) => ({ offset: BigInt(15 - (i % 16)) * PAGE, length: PAGE })) });
    expect(b.run(b.process.sys.lseek(buf, 0n, 2))).toBe(64n * PAGE);
  });

  it("§2 fact 3: takes any open flags and keeps mode, O_NONBLOCK and O_CLOEXEC", () => {
    const { b, buf } = made({ openFlags: 0xffff_ffff });
    expect(b.process.files.cloexec(buf)).toBe(true);
    expect(b.ok(b.process.sys.fcntl(buf, 3)) & ~3).toBe(0o4000);
  });

  it("§2 row 17, §2 fact 1: with decode off gives a buffer that is born revoked, with decode on a live one", () => {
    for (const memoryOff of [false, true]) {
      const { b, fd, buf } = made({ memoryOff, ranges: [{ offset: 0n, length: RAM_BYTES }] });
      const ioas = b.ioas();
      expect(b.attach(fd, ioas)).toBe(0);
      const r = b.mapFile(ioas, buf);
      expect(r instanceof Errno ? r.name : "ok").toBe(memoryOff ? "ENODEV" : "ok");
    }
  });

  it("is had even while the driver waits to be unbound: the open file still holds the registration", () => {
    const { b, fd, buf } = made({ unregistering: true });
    expect(b.exists()).toBe(false);
    b.close(fd);
    b.settle();
    expect(b.pdev().driver).toBeUndefined();
    b.close(buf);
  });

  it("§2 fact 6: cannot be read, written or mapped", () => {
    const { b, buf } = made({ openFlags: 2 });
    const { sys } = b.process;
    const at = b.user(new Uint8Array(16));
    const answers = [b.run(sys.read(buf, at, 16)), b.run(sys.write(buf, at, 16)), b.run(sys.mmap(0n, PAGE, PROT_READ, 1, buf))];
    expect(answers.map((a) => (a as Errno).name)).toEqual(["EINVAL", "EINVAL", "EINVAL"]);
  });
});

it.each(["vfio_pci_dma_buf", "phys_vec"])(
  "§2 row 11: no memory for the exporter's %s is ENOMEM, and the device stays free to go",
  (what) => {
    const b = new Bench();
    const fd = b.device();
    b.kernel.fault.decide((p) => p.what === what);
    expect((b.exportBar(fd) as Errno).name).toBe("ENOMEM");
    b.kernel.fault.decide(undefined);
    expect(b.exportBar(fd)).toBeTypeOf("number");
  },
);
