import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { File } from "../../../src/kernel/fs/file.ts";
import { memfdSeals, pageSourceOf, pinFilePages, unpinFilePages } from "../../../src/kernel/fs/memfd.ts";
import type { Process } from "../../../src/kernel/fs/process.ts";
import type { Kernel } from "../../../src/kernel/kernel.ts";
import type { Pfn } from "../../../src/lib/addr.ts";
import { EBADF, EBUSY, EFAULT, EFBIG, EINVAL, ENODEV, ENOMEM, ENXIO, EOVERFLOW, EPERM } from "../../../src/lib/errno.ts";
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  MAP_PRIVATE,
  MAP_SHARED,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_EXEC,
  MFD_HUGE_1GB,
  MFD_HUGE_2MB,
  MFD_HUGETLB,
  MFD_NOEXEC_SEAL,
  O_APPEND,
  O_CREAT,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  PROT_READ,
  PROT_WRITE,
  S_IFREG,
  SEEK_CUR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  SEEK_SET,
} from "../../../src/uapi/index.ts";
import { boot, expectNothingLeaks, failFrames, memory, ok, peek, poke, run, text } from "../../harness.ts";

const RW = PROT_READ | PROT_WRITE;
const HUGE = 0x20_0000n;
let kernel: Kernel;
let p: Process;
let buf: bigint;
beforeEach(() => {
  ({ kernel, p } = boot());
  buf = memory(p, 16 * 4096);
});
afterEach(() => expectNothingLeaks(kernel));

function memfd(size: bigint, flags = 0): number {
  const fd = run(p, p.sys.memfdCreate("m", flags));
  run(p, p.sys.ftruncate(fd, size));
  return fd;
}
const file = (fd: number): File => ok(p.files.get(fd));

describe("memfd_create", () => {
  it("refuses unknown flags, contradictions, long names and page sizes that are not there", () => {
    const make = (name: string, flags: number): unknown => p.run(p.sys.memfdCreate(name, flags));
    expect(make("m", 0x20)).toBe(EINVAL);
    expect(make("m", MFD_HUGE_2MB)).toBe(EINVAL);
    expect(make("m", MFD_EXEC | MFD_NOEXEC_SEAL)).toBe(EINVAL);
    expect(make("x".repeat(250), 0)).toBe(EINVAL);
    expect(make("ö".repeat(125), 0)).toBe(EINVAL);
    expect(make("m", MFD_HUGETLB | MFD_HUGE_1GB)).toBe(ENODEV);
    expect(make("x".repeat(249), MFD_CLOEXEC)).toBe(0);
    expect(make("m", MFD_HUGETLB | MFD_HUGE_2MB)).toBe(1);
    expect(p.files.cloexec(0)).toBe(true);
    expect(run(p, p.sys.readlinkFd(1))).toBe("/memfd:m (deleted)");
  });

  it("makes a regular file of no size", () => {
    const fd = run(p, p.sys.memfdCreate("m", 0));
    const st = run(p, p.sys.fstat(fd));
    expect([st.mode, st.size, st.nlink, st.blksize]).toEqual([S_IFREG | 0o777, 0n, 0, 4096]);
    expect(run(p, p.sys.read(fd, buf, 10))).toBe(0);
  });
});

describe("a memfd's content", () => {
  it("is written, sought and read across pages", () => {
    const fd = run(p, p.sys.memfdCreate("m", 0));
    const data = new Uint8Array(9000).map((_, i) => i % 251);
    poke(p, buf, data);
    expect(run(p, p.sys.pwrite(fd, buf, 9000, 100n))).toBe(9000);
    expect(run(p, p.sys.fstat(fd)).size).toBe(9100n);
    expect(run(p, p.sys.lseek(fd, 100n, SEEK_SET))).toBe(100n);
    expect(run(p, p.sys.read(fd, buf + 0x4000n, 20000))).toBe(9000);
    expect(peek(p, buf + 0x4000n, 9000)).toEqual(data);
    expect(run(p, p.sys.lseek(fd, -1n, SEEK_CUR))).toBe(9099n);
    expect(run(p, p.sys.lseek(fd, 10n, SEEK_END))).toBe(9110n);
    expect(run(p, p.sys.read(fd, buf, 1))).toBe(0);
    expect(p.run(p.sys.lseek(fd, -1n, SEEK_SET))).toBe(EINVAL);
    expect(p.run(p.sys.lseek(fd, 0x7fff_ffff_ffff_ffffn, SEEK_END))).toBe(EOVERFLOW);
    expect(p.run(p.sys.lseek(fd, 0n, 9))).toBe(EINVAL);
  });

  it("has holes that can be found", () => {
    const fd = memfd(5n * 4096n);
    run(p, p.sys.pwrite(fd, buf, 1, 2n * 4096n));
    expect(run(p, p.sys.lseek(fd, 0n, SEEK_DATA))).toBe(8192n);
    expect(run(p, p.sys.lseek(fd, 8192n, SEEK_HOLE))).toBe(3n * 4096n);
    expect(run(p, p.sys.lseek(fd, 5n, SEEK_HOLE))).toBe(5n);
    expect(p.run(p.sys.lseek(fd, 3n * 4096n, SEEK_DATA))).toBe(ENXIO);
    expect(p.run(p.sys.lseek(fd, 5n * 4096n, SEEK_HOLE))).toBe(ENXIO);
    expect(run(p, p.sys.fstat(fd)).blocks).toBe(8n);
  });

  it("is read and written up to the byte where the caller's memory ends", () => {
    const end = buf + 16n * 4096n;
    const fd = memfd(8192n);
    poke(p, end - 10n, "0123456789");
    expect(run(p, p.sys.write(fd, end - 10n, 100))).toBe(10);
    expect(p.run(p.sys.write(fd, end, 1))).toBe(EFAULT);
    expect(run(p, p.sys.pread(fd, end - 4n, 100, 0n))).toBe(4);
    expect(text(peek(p, end - 4n, 4))).toBe("0123");
    expect(p.run(p.sys.pread(fd, end, 1, 0n))).toBe(EFAULT);
  });

  it("is appended to with O_APPEND", () => {
    const fd = run(p, p.sys.open("/tmp/log", O_RDWR | O_CREAT | O_APPEND));
    run(p, p.sys.write(fd, buf, poke(p, buf, "one")));
    run(p, p.sys.lseek(fd, 0n, SEEK_SET));
    run(p, p.sys.write(fd, buf, poke(p, buf, "two")));
    expect(run(p, p.sys.pread(fd, buf, 10, 0n))).toBe(6);
    expect(text(peek(p, buf, 6))).toBe("onetwo");
    expect(file(fd).pos).toBe(6n);
  });

  it("is cut by ftruncate, to the byte", () => {
    const fd = memfd(8192n);
    poke(p, buf, new Uint8Array(8192).fill(7));
    run(p, p.sys.write(fd, buf, 8192));
    run(p, p.sys.ftruncate(fd, 10n));
    run(p, p.sys.ftruncate(fd, 8192n));
    run(p, p.sys.pread(fd, buf, 8192, 0n));
    const got = peek(p, buf, 8192);
    expect(got.subarray(0, 10)).toEqual(new Uint8Array(10).fill(7));
    expect(got.subarray(10).every((b) => b === 0)).toBe(true);
    expect(p.run(p.sys.ftruncate(fd, 0x7fff_ffff_ffff_ffffn))).toBe(EFBIG);
  });

  it("belongs to the file, not to the descriptor: another open has its own position and mode", () => {
    const fd = memfd(4096n);
    run(p, p.sys.write(fd, buf, poke(p, buf, "abc")));
    const ro = run(p, p.sys.open(`/proc/self/fd/${fd}`, O_RDONLY));
    expect(run(p, p.sys.read(ro, buf + 16n, 3))).toBe(3);
    expect(text(peek(p, buf + 16n, 3))).toBe("abc");
    run(p, p.sys.close(fd));
    expect(run(p, p.sys.pread(ro, buf, 3, 0n))).toBe(3);
    expect(p.run(p.sys.ftruncate(ro, 0n))).toBe(EINVAL);
    expect(p.run(p.sys.fcntl(ro, F_ADD_SEALS, 0))).toBe(EPERM);
  });
});

describe("a memfd by name only", () => {
  it("keeps the content, says what it is, and can be opened from there", () => {
    const fd = memfd(4096n);
    run(p, p.sys.write(fd, buf, poke(p, buf, "abc")));
    const path = run(p, p.sys.open(`/proc/self/fd/${fd}`, O_PATH));
    run(p, p.sys.close(fd));
    expect(p.run(p.sys.read(path, buf, 1))).toBe(EBADF);
    expect(run(p, p.sys.fstat(path)).size).toBe(4096n);
    const again = run(p, p.sys.open(`/proc/self/fd/${path}`, O_RDWR));
    expect(run(p, p.sys.read(again, buf + 16n, 3))).toBe(3);
    expect(text(peek(p, buf + 16n, 3))).toBe("abc");
    run(p, p.sys.open(`/proc/self/fd/${again}`, O_RDWR | O_TRUNC));
    expect(run(p, p.sys.fstat(path)).size).toBe(0n);
  });
});

describe("seals", () => {
  it("forbid what they say, for good", () => {
    const fd = memfd(4096n, MFD_ALLOW_SEALING);
    const seal = (s: number): unknown => p.run(p.sys.fcntl(fd, F_ADD_SEALS, s));
    expect(seal(0x100)).toBe(EINVAL);
    expect(seal(F_SEAL_SHRINK | F_SEAL_GROW)).toBe(0);
    expect(p.run(p.sys.ftruncate(fd, 0n))).toBe(EPERM);
    expect(p.run(p.sys.ftruncate(fd, 8192n))).toBe(EPERM);
    expect(p.run(p.sys.ftruncate(fd, 4096n))).toBeUndefined();
    expect(p.run(p.sys.pwrite(fd, buf, 10, 4090n))).toBe(6);
    expect(p.run(p.sys.pwrite(fd, buf, 4, 4096n))).toBe(EPERM);
    expect(seal(F_SEAL_FUTURE_WRITE)).toBe(0);
    expect(p.run(p.sys.write(fd, buf, 1))).toBe(EPERM);
    expect(p.run(p.sys.mmap(0n, 4096n, RW, MAP_SHARED, fd))).toBe(EPERM);
    expect(typeof p.run(p.sys.mmap(0n, 4096n, RW, MAP_PRIVATE, fd))).toBe("bigint");
    expect(seal(F_SEAL_SEAL)).toBe(0);
    expect(seal(F_SEAL_WRITE)).toBe(EPERM);
    expect(run(p, p.sys.fcntl(fd, F_GET_SEALS))).toBe(F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
    expect(memfdSeals(file(fd))).toBe(F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
  });

  it("against writing wait until nobody maps it writable and nothing is pinned", () => {
    const fd = memfd(4096n, MFD_ALLOW_SEALING);
    const seal = (): unknown => p.run(p.sys.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    const at = run(p, p.sys.mmap(0n, 4096n, RW, MAP_SHARED, fd));
    expect(seal()).toBe(EBUSY);
    run(p, p.sys.munmap(at, 4096n));
    const pfns = run(p, pinFilePages(file(fd), 0, 1, true));
    expect(seal()).toBe(EBUSY);
    unpinFilePages(kernel, pfns);
    expect(seal()).toBe(0);
    const ro = run(p, p.sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, fd));
    expect(p.run(p.sys.mprotect(ro, 4096n, RW))).not.toBe(undefined);
  });

  it("are closed from the start unless asked for", () => {
    expect(run(p, p.sys.fcntl(memfd(0n), F_GET_SEALS))).toBe(F_SEAL_SEAL);
    expect(run(p, p.sys.fcntl(memfd(0n, MFD_NOEXEC_SEAL), F_GET_SEALS))).toBe(F_SEAL_EXEC);
    const x = memfd(0n, MFD_ALLOW_SEALING);
    run(p, p.sys.fcntl(x, F_ADD_SEALS, F_SEAL_EXEC));
    expect(run(p, p.sys.fcntl(x, F_GET_SEALS)) & F_SEAL_WRITE).toBe(F_SEAL_WRITE);
    const tmp = run(p, p.sys.open("/tmp/x", O_RDWR | O_CREAT));
    expect(run(p, p.sys.fcntl(tmp, F_GET_SEALS))).toBe(F_SEAL_SEAL);
  });
});

describe("huge pages", () => {
  it("come two megabytes at a time, adjacent and aligned", () => {
    const fd = memfd(HUGE, MFD_HUGETLB);
    expect(p.run(p.sys.ftruncate(fd, 4096n))).toBe(EINVAL);
    expect(p.run(p.sys.write(fd, buf, 1))).toBe(EINVAL);
    const at = run(p, p.sys.mmap(0n, 4096n, RW, MAP_SHARED, fd));
    expect(at % HUGE).toBe(0n);
    expect(p.run(p.sys.mmap(0n, HUGE, RW, MAP_SHARED, fd, 4096n))).toBe(EINVAL);
    const pfns = run(p, pinFilePages(file(fd), 0, 512, true));
    expect((pfns[0] as Pfn) % 512).toBe(0);
    expect(pfns[511]).toBe((pfns[0] as Pfn) + 511);
    poke(p, at + HUGE - 1n, "e");
    expect(kernel.frames.bytes(pfns[511] as Pfn)[4095]).toBe(0x65);
    unpinFilePages(kernel, pfns);
    expect(run(p, p.sys.fstat(fd)).blksize).toBe(2 << 20);
    run(p, p.sys.ftruncate(fd, 0n));
    expect(kernel.frames.live).toBe(0);
  });
});

describe("pinning pages of a file", () => {
  it("fails for what is not memory, and past the end to the byte", () => {
    const pin = (fd: number, start: number, n: number): unknown => p.run(pinFilePages(file(fd), start, n, true));
    for (const fd of [run(p, p.sys.eventfd(0)), run(p, p.sys.open("/dev/null", O_RDWR)), run(p, p.sys.pipe())[0]]) {
      expect(pin(fd, 0, 1)).toBe(EINVAL);
      expect(pageSourceOf(file(fd))).toBeUndefined();
    }
    const fd = memfd(2n * 4096n - 1n);
    expect(pin(fd, 0, 2)).toBe(EINVAL);
    expect(pin(fd, 0, 0)).toBe(EINVAL);
    const [pfn] = pin(fd, 0, 1) as Pfn[];
    expect(kernel.frames.pins(pfn as Pfn)).toBe(1);
    unpinFilePages(kernel, [pfn as Pfn]);
    failFrames(kernel, 2);
    run(p, p.sys.ftruncate(fd, 4n * 4096n));
    expect(pin(fd, 0, 4)).toBe(ENOMEM);
    failFrames(kernel, undefined);
    expect(kernel.frames.pinned).toBe(0);
  });

  it("does not mind how the file was opened", () => {
    const ro = run(p, p.sys.open(`/proc/self/fd/${memfd(4096n)}`, O_RDONLY));
    const pfns = run(p, pinFilePages(file(ro), 0, 1, true));
    unpinFilePages(kernel, pfns, true);
    const tmp = run(p, p.sys.open("/tmp/f", O_RDWR | O_CREAT));
    run(p, p.sys.ftruncate(tmp, 0x2000n));
    unpinFilePages(kernel, run(p, pinFilePages(file(tmp), 1, 1, true)));
  });

  it("keeps the pages through truncation and the end of the file", () => {
    const fd = memfd(4096n);
    run(p, p.sys.write(fd, buf, poke(p, buf, "keep")));
    const pfns = run(p, pinFilePages(file(fd), 0, 1, true));
    run(p, p.sys.ftruncate(fd, 0n));
    run(p, p.sys.ftruncate(fd, 4096n));
    run(p, p.sys.pread(fd, buf, 4, 0n));
    expect(peek(p, buf, 4)).toEqual(new Uint8Array(4));
    run(p, p.sys.close(fd));
    expect(text(kernel.frames.bytes(pfns[0] as Pfn).subarray(0, 4))).toBe("keep");
    unpinFilePages(kernel, pfns);
  });
});
