import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  closeFd,
  EFD_SEMAPHORE,
  eventfdCreate,
  eventfdSignal,
  ftruncateFd,
  MFD_ALLOW_SEALING,
  memfdCreate,
  POLLIN,
  POLLOUT,
  preadFd,
  readMaps,
} from "../../src/host/index.ts";
import { sizeOfFd, writeMapped } from "../../src/host/mapping.ts";
import { eventfdTakeNow, fileSeals, pollNow } from "../../src/host/nowait.ts";
import { ProcessMaps } from "../../src/host/procmap.ts";
import { EAGAIN, EBADF, EFAULT, EINVAL, ESRCH } from "../../src/lib/errno.ts";
import { ok } from "./support.ts";

describe("a process's mappings", () => {
  let maps: ProcessMaps;
  beforeAll(() => {
    maps = ok(ProcessMaps.open(process.pid));
  });
  afterAll(() => maps.close());

  it("are found one by one as the list has them", () => {
    // Only what does not move while this runs: the executable and the stack.
    const listed = (readMaps(process.pid) ?? []).filter((m) => m.path === process.execPath || m.path === "[stack]" || m.path === "[vdso]");
    expect(listed.length).toBeGreaterThan(2);
    for (const m of listed) {
      if (m.path !== "[stack]") expect(maps.from(m.start)).toEqual(m);
      expect(maps.from(m.end - 1n)?.path).toBe(m.path);
    }
    expect(maps.all().filter((m) => m.path === process.execPath)).toEqual(listed.filter((m) => m.path === process.execPath));
  });

  it("above an address that has none, the next one is found; above the last, none", () => {
    expect(maps.from(0n)?.start).toBe(maps.all()[0]?.start);
    expect(maps.from(0xffff_ffff_ffff_f000n)).toBeUndefined();
  });

  it("of nobody are ESRCH", () => {
    expect(ProcessMaps.open(2 ** 22 + 1)).toBe(ESRCH);
  });
});

describe("an eventfd that waits", () => {
  it("is taken without waiting", () => {
    const fd = ok(eventfdCreate(0, 0));
    expect(eventfdTakeNow(fd)).toBe(EAGAIN);
    expect(pollNow(fd, POLLIN | POLLOUT)).toBe(POLLOUT);
    eventfdSignal(fd, 3n);
    expect(pollNow(fd, POLLIN | POLLOUT)).toBe(POLLIN | POLLOUT);
    expect(eventfdTakeNow(fd)).toBe(3n);
    eventfdSignal(fd, 0xffff_ffff_ffff_fffen);
    expect(pollNow(fd, POLLIN | POLLOUT)).toBe(POLLIN);
    closeFd(fd);
    expect(eventfdTakeNow(-1)).toBe(EBADF);
  });

  it("is taken by one as a semaphore", () => {
    const fd = ok(eventfdCreate(2, EFD_SEMAPHORE));
    expect([eventfdTakeNow(fd), eventfdTakeNow(fd), eventfdTakeNow(fd)]).toEqual([1n, 1n, EAGAIN]);
    closeFd(fd);
  });
});

describe("a memfd", () => {
  it("tells its seals and its size", () => {
    const fd = ok(memfdCreate("seals", MFD_ALLOW_SEALING));
    expect([fileSeals(fd), sizeOfFd(fd)]).toEqual([0, 0]);
    ftruncateFd(fd, 5 * 2 ** 32);
    expect(sizeOfFd(fd)).toBe(5 * 2 ** 32);
    closeFd(fd);
    expect(sizeOfFd(-1)).toBe(EBADF);
    const e = ok(eventfdCreate());
    expect(fileSeals(e)).toBe(EINVAL);
    closeFd(e);
  });

  it("is written through a mapping; past its end that is an error and no SIGBUS", () => {
    const fd = ok(memfdCreate("mapped"));
    ftruncateFd(fd, 8192);
    expect(writeMapped(fd, 4096 + 10, Uint8Array.of(1, 2, 3), 4096)).toBe(3);
    const dst = new Uint8Array(4);
    expect(preadFd(fd, dst, 4096 + 10)).toBe(4);
    expect([...dst]).toEqual([1, 2, 3, 0]);
    expect(writeMapped(fd, 8192, Uint8Array.of(1), 4096)).toBe(EFAULT);
    closeFd(fd);
    expect(writeMapped(-1, 0, Uint8Array.of(1), 4096)).toBe(EBADF);
  });
});
