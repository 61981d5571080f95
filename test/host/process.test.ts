import { spawnSync } from "node:child_process";
import { afterEach, describe, expect, it, vi } from "vitest";
import {
  type ChildEvent,
  closeFd,
  createHeldMemfd,
  dupFd,
  EFD_SEMAPHORE,
  eventfdCreate,
  eventfdSignal,
  eventfdTake,
  FdLinks,
  getRlimit,
  inheritedNofile,
  kill,
  makePipe,
  POLLHUP,
  POLLIN,
  POLLNVAL,
  POLLOUT,
  PollSet,
  PR_GET_CHILD_SUBREAPER,
  parseMapping,
  parseStat,
  parseStatus,
  pidfdGetFd,
  pidfdOpen,
  pidfdSendSignal,
  prctl,
  RLIM_INFINITY,
  RLIMIT_MEMLOCK,
  RLIMIT_NOFILE,
  readChildren,
  readFd,
  readFdInfo,
  readFds,
  readMaps,
  readStat,
  readStatus,
  readThreads,
  SHUT_WR,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
  SOCK_STREAM,
  sameOpenFile,
  setChildSubreaper,
  setRlimit,
  sharesResource,
  shellStatus,
  shutdownFd,
  socketPair,
  tgkill,
  waitPid,
  waitPidfd,
  writeFd,
} from "../../src/host/index.ts";
import { failure, leavesNothing, ok, python, start } from "./support.ts";

leavesNothing();

const EFD_NONBLOCK = 0o4000;
const SIGSTOP = 19;
const SIGCONT = 18;
const SIGKILL = 9;
const sleeper = (): number => start({ program: "sleep", argv: ["sleep", "100"] }).pid;

/** The end of a child that is about to end. */
function ended(pid: number): ChildEvent | undefined {
  return ok(waitPid(pid, { block: true }));
}

describe("an eventfd", () => {
  it("adds up what is signalled, and gives it at once or one by one", () => {
    const [all, each] = [ok(eventfdCreate()), ok(eventfdCreate(2, EFD_SEMAPHORE | EFD_NONBLOCK))];
    expect(failure(eventfdTake(all))).toBe("EAGAIN");
    expect(eventfdSignal(all)).toBeUndefined();
    expect(eventfdSignal(all, 41n)).toBeUndefined();
    expect(eventfdTake(all)).toBe(42n);
    expect([eventfdTake(each), eventfdTake(each)]).toEqual([1n, 1n]);
    expect(failure(eventfdTake(each))).toBe("EAGAIN");
    expect(eventfdSignal(all, 0xffff_ffff_ffff_fffen)).toBeUndefined();
    expect(failure(eventfdSignal(all))).toBe("EAGAIN");
    closeFd(all);
    closeFd(each);
    expect(failure(eventfdSignal(all))).toBe("EBADF");
  });
});

describe("poll", () => {
  it("says which descriptors are ready, with those passed over that are negative", () => {
    const fd = ok(eventfdCreate());
    const [out, into] = ok(makePipe());
    const set = new PollSet([
      { fd, events: POLLIN },
      { fd: -1, events: POLLIN },
      { fd: out, events: POLLIN },
      { fd: into, events: POLLOUT },
    ]);
    expect(set.wait(0n)).toBe(1);
    expect([0, 1, 2, 3].map((i) => set.revents(i))).toEqual([0, 0, 0, POLLOUT]);
    eventfdSignal(fd);
    set.set(1, 9999, POLLIN);
    expect(set.wait()).toBe(3);
    closeFd(into);
    expect([0, 1, 2, 3].map((i) => set.revents(i))).toEqual([POLLIN, POLLNVAL, 0, POLLOUT]);
    set.wait();
    expect([2, 3].map((i) => set.revents(i))).toEqual([POLLHUP, POLLNVAL]);
    closeFd(fd);
    closeFd(out);
    expect(() => set.set(4, 0, 0)).toThrow(RangeError);
    expect(() => new PollSet(Array.from({ length: 513 }, () => ({ fd: -1, events: 0 })))).toThrow(RangeError);
  });

  it("keeps time in nanoseconds, and a time that is past is now", () => {
    const set = new PollSet([]);
    const began = process.hrtime.bigint();
    expect(set.wait(2_500_000n)).toBe(0);
    expect(process.hrtime.bigint() - began).toBeGreaterThanOrEqual(2_500_000n);
    expect(set.wait(-5n)).toBe(0);
  });
});

describe("a socket pair", () => {
  it("carries bytes or messages both ways, and tells the end", () => {
    const [a, b] = ok(socketPair(SOCK_STREAM, SOCK_NONBLOCK));
    writeFd(a, new Uint8Array(3));
    writeFd(a, new Uint8Array(4));
    expect(readFd(b, new Uint8Array(100))).toBe(7);
    expect(failure(readFd(b, new Uint8Array(1)))).toBe("EAGAIN");
    writeFd(b, new Uint8Array(2));
    expect(readFd(a, new Uint8Array(100))).toBe(2);
    expect(shutdownFd(a, SHUT_WR)).toBeUndefined();
    expect(readFd(b, new Uint8Array(1))).toBe(0);
    closeFd(a);
    expect(failure(writeFd(b, new Uint8Array(1)))).toBe("EPIPE");
    closeFd(b);
    const [c, d] = ok(socketPair(SOCK_SEQPACKET));
    writeFd(c, new Uint8Array(3));
    writeFd(c, new Uint8Array(4));
    expect([readFd(d, new Uint8Array(100)), readFd(d, new Uint8Array(100))]).toEqual([3, 4]);
    expect(failure(shutdownFd(0xffff, SHUT_WR))).toBe("EBADF");
    closeFd(c);
    closeFd(d);
  });
});

describe("a pidfd", () => {
  it("gives a copy of a target's descriptor, and delivers signals", () => {
    const event = ok(eventfdCreate());
    const { pid } = start({ program: "sleep", argv: ["sleep", "100"], fds: [[7, event]] });
    const pidfd = ok(pidfdOpen(pid));
    const copy = ok(pidfdGetFd(pidfd, 7));
    eventfdSignal(copy, 5n);
    expect(eventfdTake(event)).toBe(5n);
    expect(sameOpenFile(process.pid, copy, pid, 7)).toBe(true);
    expect(failure(pidfdGetFd(pidfd, 8))).toBe("EBADF");
    closeFd(event);
    closeFd(copy);
    const set = new PollSet([{ fd: pidfd, events: POLLIN }]);
    expect(set.wait(0n)).toBe(0);
    expect(pidfdSendSignal(pidfd, 0)).toBeUndefined();
    expect(pidfdSendSignal(pidfd, SIGKILL)).toBeUndefined();
    set.wait();
    expect(set.revents(0) & POLLIN).toBe(POLLIN);
    expect(waitPidfd(pidfd)).toEqual({ pid, kind: "killed", status: SIGKILL });
    expect(failure(pidfdSendSignal(pidfd, 0))).toBe("ESRCH");
    expect(failure(pidfdGetFd(pidfd, 0))).toBe("ESRCH");
    closeFd(pidfd);
    expect(failure(pidfdOpen(pid))).toBe("ESRCH");
  });

  it("can be of a thread that leads no process", () => {
    const [out, into] = ok(makePipe());
    const code =
      "import threading,time\nt=threading.Thread(target=time.sleep,args=(100,),daemon=True)\nt.start()\nprint(1,flush=True)\ntime.sleep(100)";
    const { pid } = start(python(code, into));
    closeFd(into);
    readFd(out, new Uint8Array(8));
    const tid = readThreads(pid)?.find((t) => t !== pid) ?? -1;
    expect(readStatus(tid)).toMatchObject({ tgid: pid });
    expect(["EINVAL", "ENOENT"]).toContain(failure(pidfdOpen(tid)));
    const pidfd = ok(pidfdOpen(tid, { thread: true }));
    const copy = ok(pidfdGetFd(pidfd, 1));
    closeFd(copy);
    closeFd(pidfd);
    closeFd(out);
    expect(sharesResource(pid, tid, "files")).toBe(true);
    expect(sharesResource(pid, tid, "vm")).toBe(true);
    expect(sharesResource(pid, process.pid, "files")).toBe(false);
    expect(tgkill(pid, tid, 0)).toBeUndefined();
    expect(failure(tgkill(process.pid, tid, 0))).toBe("ESRCH");
  });
});

describe("kcmp", () => {
  it("tells one open file from two of one inode", () => {
    const fd = ok(createHeldMemfd(3));
    const copy = ok(dupFd(fd));
    const links = ok(FdLinks.open(process.pid));
    const other = ok(createHeldMemfd(3));
    expect(sameOpenFile(process.pid, fd, process.pid, copy)).toBe(true);
    expect(sameOpenFile(process.pid, fd, process.pid, other)).toBe(false);
    expect(failure(sameOpenFile(process.pid, fd, process.pid, 9999))).toBe("EBADF");
    expect(failure(sharesResource(process.pid, 2 ** 22, "vm"))).toBe("ESRCH");
    links.close();
    for (const f of [fd, copy, other]) closeFd(f);
  });
});

describe("waiting", () => {
  it("tells an exit, a kill, a stop and a continuation, once each", () => {
    const exits = start({ program: "sh", argv: ["sh", "-c", "exit 7"] }).pid;
    expect(waitPid(exits, { block: true, keep: true })).toEqual({ pid: exits, kind: "exited", status: 7 });
    expect(ended(exits)).toEqual({ pid: exits, kind: "exited", status: 7 });
    expect(failure(waitPid(exits))).toBe("ECHILD");
    const pid = sleeper();
    expect(waitPid(pid)).toBeUndefined();
    kill(pid, SIGSTOP);
    expect(waitPid(pid, { block: true, stops: true })).toEqual({ pid, kind: "stopped", status: SIGSTOP });
    expect(waitPid(pid, { stops: true })).toBeUndefined();
    kill(pid, SIGCONT);
    expect(waitPid(pid, { block: true, stops: true })).toEqual({ pid, kind: "continued", status: SIGCONT });
    kill(pid, 15);
    const event = ended(pid);
    expect(event).toEqual({ pid, kind: "killed", status: 15 });
    expect(event && shellStatus(event)).toBe(143);
    expect(shellStatus({ pid, kind: "exited", status: 3 })).toBe(3);
    expect(failure(kill(pid, 0))).toBe("ESRCH");
  });

  it("reaches an orphan, when this process is a subreaper", () => {
    expect(setChildSubreaper(true)).toBeUndefined();
    try {
      const [out, into] = ok(makePipe());
      const code = "import os,sys,time\nif os.fork()==0:\n  os.write(1, b'%d' % os.getpid()); time.sleep(0.2); os._exit(9)";
      const { pid } = start(python(code, into));
      closeFd(into);
      const text = new Uint8Array(16);
      const orphan = Number(Buffer.from(text.subarray(0, ok(readFd(out, text)))).toString());
      closeFd(out);
      expect(ended(pid)).toMatchObject({ kind: "exited", status: 0 });
      expect(ended(orphan)).toEqual({ pid: orphan, kind: "exited", status: 9 });
    } finally {
      expect(setChildSubreaper(false)).toBeUndefined();
    }
    expect(failure(prctl(9999))).toBe("EINVAL");
    expect(failure(prctl(PR_GET_CHILD_SUBREAPER, 0))).toBe("EFAULT");
  });
});

describe("limits", () => {
  it("are read and set, of this process and of another", () => {
    const pid = sleeper();
    const before = getRlimit(0, RLIMIT_NOFILE);
    expect(setRlimit(pid, RLIMIT_NOFILE, { soft: 20n, hard: 30n })).toBeUndefined();
    expect(getRlimit(pid, RLIMIT_NOFILE)).toEqual({ soft: 20n, hard: 30n });
    expect(setRlimit(pid, RLIMIT_MEMLOCK, { soft: 0n, hard: RLIM_INFINITY })).toSatisfy((r) => r === undefined || failure(r) === "EPERM");
    expect(getRlimit(0, RLIMIT_NOFILE)).toEqual(before);
    expect(failure(setRlimit(pid, RLIMIT_NOFILE, { soft: 31n, hard: 30n }))).toBe("EINVAL");
    expect(failure(getRlimit(2 ** 22, RLIMIT_NOFILE))).toBe("ESRCH");
    expect(inheritedNofile()).toSatisfy((n) => n === undefined || (typeof n === "bigint" && n > 0n));
  });
});

describe("/proc", () => {
  it("is read for this process and a child as they are", () => {
    const pid = sleeper();
    expect(readStatus(pid)).toMatchObject({ tgid: pid, ppid: process.pid, threads: 1, tracerPid: 0 });
    expect(readStatus(process.pid)).toMatchObject({
      uids: [process.getuid?.(), process.geteuid?.(), process.geteuid?.(), process.geteuid?.()],
    });
    expect(readStat(pid)).toMatchObject({ pid, ppid: process.pid });
    expect(readStat(pid)?.startTime).toBeGreaterThanOrEqual(readStat(process.pid)?.startTime ?? Number.POSITIVE_INFINITY);
    expect(readFds(pid)).toEqual(expect.arrayContaining([0, 1, 2]));
    expect(readThreads(pid)).toEqual([pid]);
    expect(readChildren(process.pid) ?? [pid]).toContain(pid);
    expect(readFdInfo(pid, 0)?.get("pos")).toMatch(/^\d+$/);
    expect(readFdInfo(pid, 999)).toBeUndefined();
    const stack = readMaps(pid)?.find((m) => m.path === "[stack]");
    expect(stack).toMatchObject({ readable: true, writable: true, shared: false, inode: 0n });
  });

  it("has nothing to say of a process that is gone, and says that a zombie is one", () => {
    const pid = sleeper();
    kill(pid, SIGKILL);
    waitPid(pid, { block: true, keep: true });
    expect(readStatus(pid)?.state).toBe("Z");
    expect(readMaps(pid) ?? []).toEqual([]);
    waitPid(pid);
    for (const read of [readStatus, readStat, readMaps, readFds, readThreads, readChildren]) expect(read(pid)).toBeUndefined();
  });

  it("is parsed whatever the names in it hold", () => {
    expect(parseStat("12 (a b) (c) d) S 1 2 3 34816 5 6 7 8 9 10 140 15 16 17 18 19 20 21 99 0 0\n")).toMatchObject({
      pid: 12,
      name: "a b) (c) d",
      state: "S",
      ppid: 1,
      pgrp: 2,
      session: 3,
      tty: 34816,
      utime: 140,
      stime: 15,
      startTime: 99,
    });
    expect(parseMapping("7f1f2f-7f3f2f rw-s 100000000000 00:01 4711                       /memfd:barlink:5 (deleted)")).toEqual({
      start: 0x7f1f2fn,
      end: 0x7f3f2fn,
      readable: true,
      writable: true,
      executable: false,
      shared: true,
      offset: 1n << 44n,
      devMajor: 0,
      devMinor: 1,
      inode: 4711n,
      path: "/memfd:barlink:5 (deleted)",
    });
    expect(parseMapping("00400000-00401000 r-xp 00000000 103:02 7 /a\\012b  c")?.path).toBe("/a\nb  c");
    expect(parseMapping("00400000-00401000 ---p 00000000 00:00 0 ")).toMatchObject({ path: "", readable: false, shared: false });
    expect(parseMapping("")).toBeUndefined();
    const status = parseStatus(
      "Name:\ta:b\nState:\tS (sleeping)\nTgid:\t5\nUid:\t1\t2\t3\t4\nGroups:\t4 24 \nCapEff:\t000001ffffffffff\nCapBnd:\t000001fffeffffff\nVmRSS:\t  1234 kB\n",
    );
    expect(status).toMatchObject({
      name: "a:b",
      state: "S",
      tgid: 5,
      uids: [1, 2, 3, 4],
      groups: [4, 24],
      capEff: 0x1ff_ffff_ffffn,
      capBnd: 0x1ff_feff_ffffn,
      vmRss: 1234,
    });
  });
});

describe("this layer", () => {
  const here = process.platform;
  afterEach(() => {
    Object.defineProperty(process, "platform", { value: here });
    vi.resetModules();
  });

  it("says in one sentence that another system will not do", async () => {
    vi.resetModules();
    Object.defineProperty(process, "platform", { value: "darwin" });
    await expect(import("../../src/host/index.ts")).rejects.toThrow(
      `running programs under barlink needs Linux on x86-64 or arm64, and this is darwin on ${process.arch}; the embedded kernel (import barlink) runs here`,
    );
  });

  it.each([
    ["../../src/client/index.ts", false],
    ["../../src/host/index.ts", true],
  ])("is loaded by a program that imports %s: %s", (module, loads) => {
    const code = `import { createRequire } from "node:module";
      import ${JSON.stringify(new URL(module, import.meta.url).href)};
      process.stdout.write(String(Object.keys(createRequire(import.meta.url).cache).some((f) => f.includes("koffi"))));`;
    const argv = ["--import", "tsx", "--input-type=module", "-e", code];
    const child = spawnSync(process.execPath, argv, { cwd: import.meta.dirname, encoding: "utf8" });
    expect([child.stderr, child.stdout]).toEqual(["", String(loads)]);
  });
});
