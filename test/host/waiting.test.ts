import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  AT_FDCWD,
  AT_SYMLINK_NOFOLLOW,
  closeFd,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  Epoll,
  eventfdCreate,
  eventfdSignal,
  eventfdTake,
  ftruncateFd,
  kill,
  makePipe,
  memfdCreate,
  mknodAt,
  POLLIN,
  POLLOUT,
  preadFd,
  pwriteFd,
  readFd,
  statAt,
  waitPid,
} from "../../src/host/index.ts";
import { sizeOfFd, writeMapped } from "../../src/host/mapping.ts";
import { eventfdTakeNow, fileSeals, pollNow } from "../../src/host/nowait.ts";
import { readMaps } from "../../src/host/proc.ts";
import { ProcessMaps } from "../../src/host/procmap.ts";
import { nextData } from "../../src/host/sparse.ts";
import { failure, leavesNothing, ok, python, start } from "./support.ts";

leavesNothing();

describe("epoll", () => {
  it("names the descriptors that are ready, and for what", () => {
    const epoll = new Epoll();
    const [out, into] = ok(makePipe());
    const event = ok(eventfdCreate());
    for (const fd of [out, event]) expect(epoll.add(fd)).toBeUndefined();
    expect(epoll.add(into, EPOLLOUT)).toBeUndefined();
    expect(failure(epoll.add(out))).toBe("EEXIST");
    const wait = (): [number, number][] =>
      Array.from({ length: ok(epoll.wait(0)) }, (_, i): [number, number] => [epoll.readyFd(i), epoll.readyMask(i)]).sort(
        (a, b) => a[0] - b[0],
      );
    expect(wait()).toEqual([[into, EPOLLOUT]]);
    eventfdSignal(event);
    expect(epoll.remove(into)).toBeUndefined();
    closeFd(into);
    expect(wait()).toEqual([
      [out, EPOLLHUP],
      [event, EPOLLIN],
    ]);
    expect(() => epoll.readyFd(2)).toThrow(RangeError);
    expect(failure(epoll.remove(into))).toBe("EBADF");
    for (const fd of [out, event]) closeFd(fd);
    expect(epoll.wait(1)).toBe(0);
    epoll.close();
    expect(failure(epoll.wait(0))).toBe("EBADF");
  });
});

describe("a call that must not wait", () => {
  it("does not, on an eventfd that was made to wait", () => {
    const EFD_CLOEXEC = 0o2000000;
    const fd = ok(eventfdCreate(3, EFD_CLOEXEC));
    expect(pollNow(fd, POLLIN | POLLOUT)).toBe(POLLIN | POLLOUT);
    expect(eventfdTakeNow(fd)).toBe(3n);
    expect(failure(eventfdTakeNow(fd))).toBe("EAGAIN");
    expect(pollNow(fd, POLLIN)).toBe(0);
    eventfdSignal(fd);
    expect(eventfdTake(fd)).toBe(1n);
    closeFd(fd);
  });
});

describe("a file", () => {
  it("tells where it has data, its size and its seals", () => {
    const MFD_CLOEXEC_ALLOW_SEALING = 3;
    const fd = ok(memfdCreate("sparse", MFD_CLOEXEC_ALLOW_SEALING));
    expect(nextData(fd, 0)).toBeUndefined();
    ftruncateFd(fd, 1 << 30);
    expect(nextData(fd, 0)).toBeUndefined();
    pwriteFd(fd, new Uint8Array([1]), 0x5000);
    pwriteFd(fd, new Uint8Array([1]), 0x9fff);
    expect(nextData(fd, 0)).toEqual({ start: 0x5000, end: 0x6000 });
    expect(nextData(fd, 0x5800)).toEqual({ start: 0x5800, end: 0x6000 });
    expect(nextData(fd, 0x6000)).toEqual({ start: 0x9000, end: 0xa000 });
    expect(nextData(fd, 0xa000)).toBeUndefined();
    expect(sizeOfFd(fd)).toBe(1 << 30);
    expect(fileSeals(fd)).toBe(0);
    closeFd(fd);
    expect(failure(sizeOfFd(fd))).toBe("EBADF");
    expect(failure(nextData(fd, 0))).toBe("EBADF");
    const [out, into] = ok(makePipe());
    expect(failure(fileSeals(out))).toBe("EINVAL");
    closeFd(out);
    closeFd(into);
  });

  it("is written through a mapping, and a file that ends sooner is EFAULT, not the end of this process", () => {
    const fd = ok(memfdCreate("mapped"));
    ftruncateFd(fd, 4096);
    expect(writeMapped(fd, 4000, new Uint8Array([1, 2, 3]), 8192)).toBe(3);
    const back = new Uint8Array(5);
    expect(preadFd(fd, back, 3999)).toBe(5);
    expect([...back]).toEqual([0, 1, 2, 3, 0]);
    expect(failure(writeMapped(fd, 4096, new Uint8Array(3), 8192))).toBe("EFAULT");
    closeFd(fd);
    expect(failure(writeMapped(fd, 0, new Uint8Array(3), 4096))).toBe("EBADF");
  });

  it("can be a node without a device, without a privilege", () => {
    const dir = mkdtempSync(join(tmpdir(), "barlink-node-"));
    try {
      const S_IFCHR = 0o20000;
      expect(mknodAt(AT_FDCWD, join(dir, "n"), S_IFCHR | 0o600, 0)).toBeUndefined();
      const s = ok(statAt(AT_FDCWD, join(dir, "n"), AT_SYMLINK_NOFOLLOW));
      expect([s.mode & 0o170000, s.rdevMajor, s.rdevMinor]).toEqual([S_IFCHR, 0, 0]);
      expect(failure(mknodAt(AT_FDCWD, join(dir, "n"), S_IFCHR, 0))).toBe("EEXIST");
      writeFileSync(join(dir, "f"), "");
      expect(failure(mknodAt(AT_FDCWD, join(dir, "f", "n"), S_IFCHR, 0))).toBe("ENOTDIR");
      expect(failure(mknodAt(AT_FDCWD, "x".repeat(5000), S_IFCHR, 0))).toBe("ENAMETOOLONG");
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

describe("one mapping of a process", () => {
  it("is found by any address, as the whole list has it", () => {
    const [out, into] = ok(makePipe());
    const { pid } = start(python("import time; print(1, flush=True); time.sleep(100)", into));
    closeFd(into);
    ok(readFd(out, new Uint8Array(4)));
    const maps = ok(ProcessMaps.open(pid));
    const all = readMaps(pid) ?? [];
    expect(maps.all()).toEqual(all);
    const mapped = all.filter((m) => m.path !== "[vsyscall]");
    for (const m of mapped) {
      for (const address of [m.start, m.end - 1n]) expect(maps.from(address)).toEqual(m);
    }
    expect(maps.from(0n)).toEqual(mapped[0]);
    kill(pid, 9);
    waitPid(pid, { block: true });
    closeFd(out);
    expect(maps.from(0n)).toBeUndefined();
    expect(maps.all()).toEqual([]);
    maps.close();
    expect(failure(ProcessMaps.open(pid))).toBe("ESRCH");
  });
});
