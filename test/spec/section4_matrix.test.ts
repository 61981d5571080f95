/**
 * Sections 4.2 and 4.3 of the interconnect's specification: what MAP_FILE
 * answers for every kind of file, and what reaches the IOMMU.
 */
import { describe, expect, test } from "vitest";
import { dmaBufFd } from "../../src/kernel/dma_buf/dma_buf.ts";
import { Errno } from "../../src/lib/errno.ts";
import * as u from "../../src/uapi/index.ts";
import { Exporter } from "../kernel/dma_buf/support.ts";
import { AT, bookkeeping, ENGINE, errnoOf, PAGE, PEER, Scene, SIZE } from "./p2p_scene.ts";

const FIXED_RW = u.IOMMU_IOAS_MAP_FIXED_IOVA | u.IOMMU_IOAS_MAP_READABLE | u.IOMMU_IOAS_MAP_WRITEABLE;
const READ = 1;
const WRITE = 2;
const CACHE = 4;
const MMIO = 16;

function must<T>(r: T | Errno): T {
  if (r instanceof Errno) throw new Error(`unexpected ${r.name}`);
  return r;
}

function memfd(s: Scene, flags = 0, size: bigint = SIZE): number {
  const fd = must(s.host.os.memfdCreate("m", flags));
  must(s.host.os.ftruncate(fd, size));
  return fd;
}

function udmabuf(s: Scene): number {
  const fd = memfd(s, u.MFD_ALLOW_SEALING);
  must(s.host.os.fcntl(fd, u.F_ADD_SEALS, u.F_SEAL_SHRINK));
  const dev = must(s.host.os.open("/dev/udmabuf", u.O_RDWR));
  return must(s.host.os.ioctlBytes(dev, u.UDMABUF_CREATE, u.UdmabufCreate.alloc({ memfd: fd, size: SIZE }).bytes));
}

function heap(s: Scene): number {
  const dev = must(s.host.os.open("/dev/dma_heap/system", u.O_RDWR));
  const a = u.DmaHeapAllocationData.alloc({ len: SIZE, fd_flags: u.O_RDWR | u.O_CLOEXEC });
  must(s.host.os.ioctlBytes(dev, u.DMA_HEAP_IOCTL_ALLOC, a.bytes));
  return a.fd;
}

function tmpfs(s: Scene): number {
  const fd = must(s.host.os.open("/tmp/f", u.O_RDWR | u.O_CREAT));
  must(s.host.os.ftruncate(fd, SIZE));
  s.host.kernel.fs.unlink("/tmp/f");
  return fd;
}

interface Row {
  readonly file: string;
  /** With a domain on the IOAS, and without. */
  readonly errno: string;
  readonly withoutDomain?: string;
  readonly length?: bigint;
  readonly make: (s: Scene) => number;
}

const HUGE = 0x20_0000n;
const ROWS: readonly Row[] = [
  { file: "§4.2 row 1: a live dma-buf of one range", errno: "0", make: (s) => s.export().fd },
  { file: "§4.2 row 2: a dma-buf of two ranges", errno: "EOPNOTSUPP", make: (s) => s.export(2).fd },
  {
    file: "§4.2 row 2: a dma-buf of two ranges, adjacent, of which the first is asked for",
    errno: "EOPNOTSUPP",
    length: PAGE,
    make: (s) => s.export(2).fd,
  },
  {
    file: "§4.2 row 3: a dma-buf that is revoked for now",
    errno: "ENODEV",
    make: (s) => {
      const { fd } = s.export();
      s.peer.setMemoryEnabled(false);
      return fd;
    },
  },
  {
    file: "§4.2 row 3: a dma-buf born while memory was off",
    errno: "ENODEV",
    make: (s) => {
      s.peer.setMemoryEnabled(false);
      return s.export().fd;
    },
  },
  {
    file: "§4.2 row 3: a dma-buf whose device is closed",
    errno: "ENODEV",
    make: (s) => {
      const { fd } = s.export();
      s.peer.close();
      return fd;
    },
  },
  {
    file: "§4.2 row 3: a dma-buf of two ranges that is revoked",
    errno: "ENODEV",
    make: (s) => {
      const { fd } = s.export(2);
      s.peer.setMemoryEnabled(false);
      return fd;
    },
  },
  { file: "§4.2 row 6: another exporter's dma-buf, of the system heap", errno: "EOPNOTSUPP", make: heap },
  { file: "§4.2 row 7: a udmabuf, which is not taken for its memfd", errno: "EOPNOTSUPP", make: udmabuf },
  { file: "§4.2 row 8: a memfd", errno: "0", make: memfd },
  { file: "§4.2 row 8: a file of tmpfs", errno: "0", make: tmpfs },
  { file: "§4.2 row 8: a memfd of huge pages", errno: "0", length: HUGE, make: (s) => memfd(s, u.MFD_HUGETLB, HUGE) },
  { file: "§4.2 row 8: a memfd that is too short", errno: "EINVAL", withoutDomain: "0", make: (s) => memfd(s, 0, PAGE) },
  { file: "§4.2 row 8: a character device", errno: "EINVAL", withoutDomain: "0", make: (s) => must(s.host.os.open("/dev/null", u.O_RDWR)) },
  { file: "§4.2 row 8: the exporter's own node", errno: "EINVAL", withoutDomain: "0", make: (s) => s.peer.fd },
  { file: "§4.2 row 8: the iommufd itself", errno: "EINVAL", withoutDomain: "0", make: (s) => s.iommufd.fd },
];

describe("the outcome by kind of file", () => {
  for (const row of ROWS) {
    test(`${row.file} → ${row.errno}`, () => {
      const s = new Scene();
      const fd = row.make(s);
      const empty = s.iommufd.allocIoas();
      const before = [s.held("iommufd pages"), s.held("dma_buf attachment")];
      expect(errnoOf(() => s.ioas.mapFile(fd, { length: row.length ?? SIZE, iova: 2n * HUGE }))).toBe(row.errno);
      expect(s.reaches(2n * HUGE) !== undefined).toBe(row.errno === "0");
      if (row.errno !== "0") expect([s.held("iommufd pages"), s.held("dma_buf attachment")]).toEqual(before);
      expect(errnoOf(() => empty.mapFile(fd, { length: row.length ?? SIZE, iova: 2n * HUGE }))).toBe(row.withoutDomain ?? row.errno);
      // An iommufd that maps its own descriptor, or that of a device bound to it, would keep itself alive for ever.
      errnoOf(() => empty.unmapAll());
    });
  }

  test("§4.2 row 8: a file that cannot be pinned, taken without a domain, stops the attach", () => {
    const s = new Scene();
    const other = s.iommufd.allocIoas();
    other.mapFile(must(s.host.os.open("/dev/null", u.O_RDWR)), { length: SIZE, iova: AT });
    expect(errnoOf(() => s.engine.attach(other))).toBe("EINVAL");
  });

  test("§4.2 row 6: another exporter's buffer really is pinned before it is refused", () => {
    const s = new Scene();
    const exporter = new Exporter({ pins: true });
    const { process } = s.host.os;
    const fd = process.run(
      (function* () {
        return dmaBufFd(process, exporter.export(s.host, SIZE), u.O_RDWR);
      })(),
    );
    s.events.length = 0;
    expect(errnoOf(() => s.ioas.mapFile(must(fd), { length: SIZE, iova: AT }))).toBe("EOPNOTSUPP");
    expect(exporter.log).toEqual(["attach", "pin", "unpin", "detach"]);
    expect(s.since(bookkeeping).filter((x) => x === "pin" || x === "unpin")).toEqual(["pin", "unpin"]);
  });
});

describe("§4.2 row 4: revoked between the private map and the filling of the domains", () => {
  /** MAP_FILE runs until the address is handed out and the reservation free; then `meanwhile`, then the rest. */
  function race(s: Scene, fd: number, meanwhile: () => void): number | Errno {
    const { os } = s.host;
    const { sched } = s.host.kernel;
    const { thread, sys } = os.process;
    const m = u.IommuIoasMapFile.alloc({ size: u.IommuIoasMapFile.size, flags: FIXED_RW, ioas_id: s.ioas.id, fd, length: SIZE, iova: AT });
    return os.withMemory((allocate) => {
      const at = allocate(m.bytes.length);
      at.set(m.bytes);
      s.events.length = 0;
      sched.interleave = true;
      sched.start(thread, sys.ioctl(s.iommufd.fd, u.IOMMU_IOAS_MAP_FILE, at.address));
      const handedOut = (): boolean => {
        const i = s.events.findIndex((e) => e.type === "dma_buf.private_map");
        return i >= 0 && s.events.slice(i).some((e) => e.type === "sched.unlock" && e.lock === "RESV");
      };
      while (!handedOut()) sched.step(thread);
      sched.interleave = false;
      meanwhile();
      return sched.finish(thread) as number | Errno;
    });
  }

  test("the call succeeds, nothing is mapped, and the area is dead for good", () => {
    const s = new Scene();
    const buf = s.export();
    const child = s.host.os.fork();
    const command = s.peer.config.info.offset + BigInt(u.PCI_COMMAND);
    const memory = (on: number): void => void must(child.pwrite(s.peer.fd, Uint8Array.of(on, 0), command));
    expect(race(s, buf.fd, () => memory(0))).toBe(0);
    expect(s.events.filter((e) => e.type === "iommu.map")).toEqual([]);
    expect(s.reaches(AT)).toBeUndefined();
    memory(u.PCI_COMMAND_MEMORY);
    expect(s.reaches(AT)).toBeUndefined();
    const copy = s.ioas.copyFrom(s.ioas, AT, SIZE);
    expect(s.reaches(copy)).toBeUndefined();
    expect(s.ioas.unmap(AT, SIZE)).toBe(SIZE);
    expect(s.reaches(s.ioas.mapFile(buf, { length: SIZE, iova: AT }))).toBe(s.bar);
    child.exit();
  });

  test("without the revoke the same steps map it", () => {
    const s = new Scene();
    expect(race(s, s.export().fd, () => {})).toBe(0);
    expect(s.reaches(AT)).toBe(s.bar);
  });
});

describe("sub-ranges and accounting", () => {
  test("§4.2: any page of the buffer can be mapped by itself, at any free page", () => {
    const s = new Scene();
    const buf = s.export();
    for (const [start, length] of [
      [0n, PAGE],
      [PAGE, PAGE],
      [PAGE, 3n * PAGE],
      [3n * PAGE, PAGE],
    ] as const) {
      const iova = s.ioas.mapFile(buf, { start, length });
      expect(s.reaches(iova)).toBe(s.bar + start);
      expect(s.reaches(iova + length - 1n)).toBe(s.bar + start + length - 1n);
    }
  });

  test("§4.2: with a domain bytes must be pages, without one they need not, and the attach that follows is refused", () => {
    const s = new Scene();
    const buf = s.export();
    for (const o of [{ start: 1n, length: PAGE }, { length: 1n }, { start: 0x800n, length: 0x800n }]) {
      expect(errnoOf(() => s.ioas.mapFile(buf, o))).toBe("EINVAL");
    }
    const other = s.iommufd.allocIoas();
    expect(other.mapFile(buf, { start: 1n, length: 7n, iova: AT + 1n })).toBe(AT + 1n);
    expect(errnoOf(() => s.engine.attach(other))).toBe("EADDRINUSE");
  });

  test("§4.2: the kernel aligns its choice by the offset in the buffer, not by the BAR's address", () => {
    const s = new Scene();
    const buf = s.export(1, 2n * HUGE);
    expect(s.bar % HUGE).toBe(0n);
    expect(s.ioas.mapFile(buf, { start: PAGE, length: HUGE })).toBe(PAGE);
    expect(s.ioas.mapFile(buf, { length: HUGE })).toBe(2n * HUGE);
  });

  test("§4.2: nothing is charged for device memory, whatever the limit; the mapping process is held all the same", () => {
    const s = new Scene();
    const buf = s.export();
    const child = s.host.os.fork();
    child.process.rlimits.memlock = 0n;
    child.dropPrivileges(1234);
    const map = (fd: number, iova: bigint): unknown =>
      child.ioctlBytes(
        s.iommufd.fd,
        u.IOMMU_IOAS_MAP_FILE,
        u.IommuIoasMapFile.alloc({ size: 40, flags: FIXED_RW, ioas_id: s.ioas.id, fd, length: SIZE, iova }).bytes,
      );
    expect(map(buf.fd, AT)).toBe(0);
    expect(s.host.kernel.fs.lockedVm).toBe(0);
    const m = must(child.memfdCreate("m", 0));
    must(child.ftruncate(m, SIZE));
    expect((map(m, 2n * AT) as Errno).name).toBe("ENOMEM");
    child.exit();
    expect(s.host.kernel.fs.liveMms).toBe(2);
    s.ioas.unmap(AT, SIZE);
    expect(s.host.kernel.fs.liveMms).toBe(1);
  });
});

describe("what reaches the IOMMU", () => {
  const maps = (s: Scene): [length: bigint, prot: number][] =>
    s.events.flatMap((e): [bigint, number][] => (e.type === "iommu.map" ? [[e.length, e.prot]] : []));

  for (const [what, options, prot] of [
    ["read and write", {}, READ | WRITE],
    ["read only", { writeable: false }, READ],
    ["write only", { readable: false }, WRITE],
  ] as const) {
    test(`§4.3: device memory is MMIO and never cached: ${what}`, () => {
      const s = new Scene();
      s.ioas.mapFile(s.export(), { length: SIZE, ...options });
      expect(maps(s)).toEqual([[SIZE, prot | MMIO]]);
    });
    test(`§4.3: the process's memory is cached: ${what}`, () => {
      const s = new Scene();
      s.ioas.mapFile(memfd(s), { length: PAGE, ...options });
      expect(maps(s)).toEqual([[PAGE, prot | CACHE]]);
    });
  }

  test("§4.3: nor in a second domain, nor by a copy: never read back from the first as memory", () => {
    const s = new Scene();
    const iova = s.ioas.mapFile(s.export(), { length: SIZE });
    s.events.length = 0;
    s.ioas.copyFrom(s.ioas, iova, SIZE, { writeable: false });
    const hwpt = s.iommufd.allocHwpt({ device: s.peer.id, parent: s.ioas.id });
    const other = s.iommufd.allocIoas();
    other.copyFrom(s.ioas, iova, SIZE);
    s.peer.attach(other);
    s.peer.attach(hwpt);
    expect(maps(s).map(([, prot]) => prot & (CACHE | MMIO))).toEqual([MMIO, MMIO, MMIO, MMIO]);
  });

  test("§4.3: one map for the whole run, of which the driver picks page sizes; one per page without huge pages", () => {
    const s = new Scene();
    const buf = s.export(1, HUGE);
    const iova = s.ioas.mapFile(buf, { length: HUGE });
    expect(maps(s)).toEqual([[HUGE, READ | WRITE | MMIO]]);
    expect(s.host.lookUp(ENGINE, iova)?.pageSize).toBe(s.bar % HUGE === 0n ? HUGE : PAGE);
    const small = s.iommufd.allocIoas();
    small.setHugePages(false);
    s.engine.attach(small);
    s.events.length = 0;
    const at = small.mapFile(buf, { length: SIZE });
    expect(maps(s)).toEqual(Array.from({ length: 4 }, () => [PAGE, READ | WRITE | MMIO]));
    expect([0n, 1n, 2n, 3n].map((i) => s.reaches(at + i * PAGE))).toEqual([0n, 1n, 2n, 3n].map((i) => s.bar + i * PAGE));
    s.events.length = 0;
    expect(small.unmap(at, SIZE)).toBe(SIZE);
    expect(s.reaches(at)).toBeUndefined();
  });

  test("§4.3: memory and device memory side by side keep each their own kind", () => {
    const s = new Scene();
    s.ioas.mapFile(s.export(), { length: PAGE, iova: AT });
    s.ioas.mapFile(memfd(s), { length: PAGE, iova: AT + PAGE });
    s.ioas.mapFile(s.export(), { length: PAGE, iova: AT + 2n * PAGE });
    const both = s.iommufd.allocIoas();
    s.events.length = 0;
    both.copyFrom(s.ioas, AT, 3n * PAGE, { iova: AT });
    s.engine.attach(both);
    expect(maps(s).map(([length, prot]) => [length, prot & (CACHE | MMIO)])).toEqual([
      [PAGE, MMIO],
      [PAGE, CACHE],
      [PAGE, MMIO],
    ]);
    expect(s.host.barAddress(PEER, 2)).toBe(s.reaches(AT + 2n * PAGE));
  });
});
