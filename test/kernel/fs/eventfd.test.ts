import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { eventfdCtxFromFd } from "../../../src/kernel/fs/eventfd.ts";
import type { Process } from "../../../src/kernel/fs/process.ts";
import type { PollEntry } from "../../../src/kernel/fs/syscalls.ts";
import type { Kernel } from "../../../src/kernel/kernel.ts";
import { EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EPIPE, type Errno, ESPIPE } from "../../../src/lib/errno.ts";
import { WouldBlock } from "../../../src/sched/index.ts";
import { EFD_NONBLOCK, EFD_SEMAPHORE, O_NONBLOCK, POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, S_IFIFO } from "../../../src/uapi/index.ts";
import { boot, expectNothingLeaks, memory, ok, peek, poke, run, text } from "../../harness.ts";

let kernel: Kernel;
let p: Process;
let buf: bigint;
beforeEach(() => {
  ({ kernel, p } = boot());
  buf = memory(p, 0x2_0000);
});
afterEach(() => expectNothingLeaks(kernel));

function write64(fd: number, n: bigint): number | Errno {
  const b = new Uint8Array(8);
  new DataView(b.buffer).setBigUint64(0, n, true);
  poke(p, buf, b);
  return p.run(p.sys.write(fd, buf, 8));
}

function read64(fd: number): bigint | Errno {
  const r = p.run(p.sys.read(fd, buf + 64n, 8));
  return r === 8 ? new DataView(peek(p, buf + 64n, 8).buffer).getBigUint64(0, true) : (r as Errno);
}

function poll(fd: number, events: number): number {
  const e: PollEntry[] = [{ fd, events }];
  run(p, p.sys.poll(e, 0));
  return e[0]?.revents ?? -1;
}

const MAX = 0xffff_ffff_ffff_ffffn;

describe("an eventfd", () => {
  it("adds what is written and hands out all of it", () => {
    const fd = run(p, p.sys.eventfd(3, EFD_NONBLOCK));
    expect(write64(fd, 4n)).toBe(8);
    expect(read64(fd)).toBe(7n);
    expect(read64(fd)).toBe(EAGAIN);
  });

  it("hands out one at a time as a semaphore", () => {
    const fd = run(p, p.sys.eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE));
    expect([read64(fd), read64(fd), read64(fd)]).toEqual([1n, 1n, EAGAIN]);
  });

  it("is never written up to 2^64 - 1, but signalled there", () => {
    const fd = run(p, p.sys.eventfd(0, EFD_NONBLOCK));
    expect(write64(fd, MAX)).toBe(EINVAL);
    expect(write64(fd, MAX - 1n)).toBe(8);
    expect(write64(fd, 1n)).toBe(EAGAIN);
    expect(write64(fd, 0n)).toBe(8);
    expect(poll(fd, POLLIN | POLLOUT)).toBe(POLLIN);
    const ctx = ok(eventfdCtxFromFd(p, fd));
    ctx.signal();
    ctx.signal(5);
    expect(ctx.count).toBe(MAX);
    expect(poll(fd, POLLIN | POLLOUT)).toBe(POLLIN | POLLERR);
    expect(read64(fd)).toBe(MAX);
    expect(poll(fd, POLLIN | POLLOUT)).toBe(POLLOUT);
    ctx.put();
  });

  it("takes eight bytes, from memory that is there", () => {
    const fd = run(p, p.sys.eventfd(1));
    expect(p.run(p.sys.read(fd, buf, 7))).toBe(EINVAL);
    expect(p.run(p.sys.write(fd, buf, 7))).toBe(EINVAL);
    expect(p.run(p.sys.write(fd, buf, 9))).toBe(EINVAL);
    expect(p.run(p.sys.write(fd, 8n, 8))).toBe(EFAULT);
    expect(p.run(p.sys.pread(fd, buf, 8, 0n))).toBe(ESPIPE);
    expect(p.run(p.sys.read(fd, 8n, 8))).toBe(EFAULT);
    expect(p.run(p.sys.eventfd(0, 0x100))).toBe(EINVAL);
  });

  it("makes readers and writers wait for each other", () => {
    const fd = run(p, p.sys.eventfd(0));
    expect(() => read64(fd)).toThrow(WouldBlock);
    const parked = p.thread;
    const t = p.newThread();
    poke(p, buf, new Uint8Array([5, 0, 0, 0, 0, 0, 0, 0]));
    kernel.sched.execute(t, p.sys.write(fd, buf, 8));
    expect(kernel.sched.finish(parked)).toBe(8);
    expect(peek(p, buf + 64n, 1)[0]).toBe(5);
  });

  it("lets a signal end the wait", () => {
    const fd = run(p, p.sys.eventfd(0));
    expect(() => read64(fd)).toThrow(WouldBlock);
    kernel.sched.interrupt(p.thread);
    expect(kernel.sched.finish(p.thread)).toBe(EINTR);
    expect(p.thread.signalled).toBe(false);
  });

  it("has a context that outlives its file, and hangs up on who listens", () => {
    const fd = run(p, p.sys.eventfd(0));
    const ctx = ok(eventfdCtxFromFd(p, fd));
    const heard: boolean[] = [];
    ctx.pollQueue.add((hungUp) => heard.push(hungUp));
    ctx.signal();
    run(p, p.sys.close(fd));
    ctx.signal();
    expect(heard).toEqual([false, true]);
    expect(kernel.fs.eventfds).toBe(1);
    ctx.put();
    expect(eventfdCtxFromFd(p, fd)).toBe(EBADF);
    expect(eventfdCtxFromFd(p, run(p, p.sys.memfdCreate("m", 0)))).toBe(EINVAL);
  });
});

describe("poll", () => {
  it("skips negative descriptors and marks bad ones", () => {
    const fd = run(p, p.sys.eventfd(1));
    const e: PollEntry[] = [
      { fd: -1, events: POLLIN },
      { fd: 99, events: 0 },
      { fd, events: POLLIN },
    ];
    expect(run(p, p.sys.poll(e, -1))).toBe(2);
    expect(e.map((x) => x.revents)).toEqual([0, POLLNVAL, POLLIN]);
  });

  it("waits for one of several files, for as long as it is told", () => {
    const [a, b] = [run(p, p.sys.eventfd(0)), run(p, p.sys.eventfd(0))];
    const entries = (): PollEntry[] => [
      { fd: a, events: POLLIN },
      { fd: b, events: POLLIN },
    ];
    expect(run(p, p.sys.poll(entries(), 5))).toBe(0);
    expect(kernel.sched.now).toBe(5e6);
    const e = entries();
    const ctx = ok(eventfdCtxFromFd(p, b));
    kernel.sched.timer(1e6, () => ctx.signal());
    expect(run(p, p.sys.poll(e, 50))).toBe(1);
    expect(e.map((x) => x.revents)).toEqual([0, POLLIN]);
    expect([kernel.sched.now, kernel.sched.pendingTimers]).toEqual([6e6, 0]);
    expect(ctx.pollQueue.size).toBe(0);
    read64(b);
    expect(() => p.run(p.sys.poll(entries(), -1))).toThrow(WouldBlock);
    kernel.sched.interrupt(p.thread);
    expect(kernel.sched.finish(p.thread)).toBe(EINTR);
    ctx.put();
  });

  it("keeps a file that is closed meanwhile", () => {
    const fd = run(p, p.sys.eventfd(0));
    const ctx = ok(eventfdCtxFromFd(p, fd));
    expect(() => p.run(p.sys.poll([{ fd, events: POLLIN }], -1))).toThrow(WouldBlock);
    kernel.sched.execute(p.newThread(), p.sys.close(fd));
    expect(kernel.fs.openFiles).toBe(1);
    ctx.signal();
    expect(kernel.sched.finish(p.thread)).toBe(1);
    expect(kernel.fs.openFiles).toBe(0);
    ctx.put();
  });
});

describe("a pipe", () => {
  it("carries bytes in order, and ends when the writers are gone", () => {
    const [r, w] = run(p, p.sys.pipe());
    run(p, p.sys.write(w, buf, poke(p, buf, "hello ")));
    run(p, p.sys.write(w, buf, poke(p, buf, "world")));
    expect(run(p, p.sys.read(r, buf + 100n, 8))).toBe(8);
    expect(text(peek(p, buf + 100n, 8))).toBe("hello wo");
    expect(poll(r, POLLIN)).toBe(POLLIN);
    run(p, p.sys.close(w));
    expect(poll(r, POLLIN)).toBe(POLLIN | POLLHUP);
    expect(run(p, p.sys.read(r, buf, 100))).toBe(3);
    expect(run(p, p.sys.read(r, buf, 100))).toBe(0);
    expect(poll(r, POLLIN)).toBe(POLLHUP);
  });

  it("fills up, wraps, and breaks when the readers are gone", () => {
    const [r, w] = run(p, p.sys.pipe(O_NONBLOCK));
    expect(p.run(p.sys.read(r, buf, 1))).toBe(EAGAIN);
    expect(run(p, p.sys.write(w, buf, 0x1_8000))).toBe(65536);
    expect(p.run(p.sys.write(w, buf, 1))).toBe(EAGAIN);
    expect(poll(w, POLLOUT)).toBe(0);
    expect(run(p, p.sys.read(r, buf, 1000))).toBe(1000);
    expect(p.run(p.sys.write(w, buf, 1001))).toBe(EAGAIN);
    expect(run(p, p.sys.write(w, buf, 1000))).toBe(1000);
    expect(run(p, p.sys.read(r, buf, 0x1_0000))).toBe(65536);
    run(p, p.sys.close(r));
    expect(poll(w, POLLOUT)).toBe(POLLOUT | POLLERR);
    expect(p.run(p.sys.write(w, buf, 1))).toBe(EPIPE);
  });

  it("makes a reader wait for a writer, and a big writer for a reader", () => {
    const [r, w] = run(p, p.sys.pipe());
    expect(() => p.run(p.sys.read(r, buf, 10))).toThrow(WouldBlock);
    const t = p.newThread();
    kernel.sched.execute(t, p.sys.write(w, buf, 4));
    expect(kernel.sched.finish(p.thread)).toBe(4);
    expect(() => p.run(p.sys.write(w, buf, 70000))).toThrow(WouldBlock);
    expect(kernel.sched.execute(t, p.sys.read(r, buf, 65536))).toBe(65536);
    expect(kernel.sched.finish(p.thread)).toBe(70000);
    expect(kernel.sched.execute(t, p.sys.read(r, buf, 65536))).toBe(70000 - 65536);
  });

  it("cannot be sought, mapped or read at a position, and each end goes one way", () => {
    const [r, w] = run(p, p.sys.pipe());
    expect(p.run(p.sys.lseek(r, 0n, 0))).toBe(ESPIPE);
    expect(p.run(p.sys.pread(r, buf, 1, 0n))).toBe(ESPIPE);
    expect(p.run(p.sys.write(r, buf, 1))).toBe(EBADF);
    expect(p.run(p.sys.read(w, buf, 1))).toBe(EBADF);
    expect(run(p, p.sys.fstat(r)).mode).toBe(S_IFIFO | 0o600);
    expect(run(p, p.sys.readlinkFd(w))).toMatch(/^pipe:\[\d+\]$/);
    expect(p.run(p.sys.pipe(1))).toBe(EINVAL);
    expect(p.run(p.sys.write(w, 8n, 1))).toBe(EFAULT);
  });
});
