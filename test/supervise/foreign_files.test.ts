import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { pollNow } from "../../src/host/nowait.ts";
import { type EventfdCtx, eventfdCtxFromFile } from "../../src/kernel/fs/eventfd.ts";
import type { File } from "../../src/kernel/fs/file.ts";
import { memfdSeals, pinFilePages, unpinFilePages } from "../../src/kernel/fs/memfd.ts";
import type { Process } from "../../src/kernel/fs/process.ts";
import { Kernel } from "../../src/kernel/kernel.ts";
import type { Pfn } from "../../src/lib/addr.ts";
import { EBADF, EINVAL, Errno } from "../../src/lib/errno.ts";
import { ForeignFiles } from "../../src/supervise/foreign_files.ts";
import { ProcessMemory } from "../../src/supervise/process_memory.ts";
import { RealMemory } from "../../src/supervise/real_file.ts";
import { POLLIN } from "../../src/uapi/index.ts";
import { expectNothingLeaks } from "../harness.ts";
import { ownDescriptors, Peer } from "./peer.ts";

let peer: Peer;
let kernel: Kernel;
let p: Process;
let shared: RealMemory;
let foreign: ForeignFiles;
let before: string[];
/** Descriptors that are watched, and what to do when they are readable. */
let watched: Map<number, () => void>;

beforeEach(async () => {
  before = ownDescriptors();
  kernel = new Kernel();
  p = kernel.fs.createProcess();
  shared = new RealMemory(kernel);
  watched = new Map();
  foreign = new ForeignFiles(shared, (fd, callback) => {
    watched.set(fd, callback);
    return () => watched.delete(fd);
  });
  peer = await Peer.start();
});

afterEach(async () => {
  await peer.end();
  expectNothingLeaks(kernel);
  expect(foreign.size).toBe(0);
  expect(shared.files.size).toBe(0);
  expect(watched.size).toBe(0);
  expect(ownDescriptors()).toEqual(before);
});

async function open(fd: number): Promise<File | Errno> {
  const link = await peer.ask<string | { errno: number }>(`os.readlink("/proc/self/fd/%d" % ${fd})`);
  return foreign.open(peer.pid, peer.pid, fd, typeof link === "string" ? link : "");
}

async function opened(code: string): Promise<{ fd: number; file: File }> {
  const fd = await peer.ask(code);
  const file = await open(fd);
  if (file instanceof Errno) throw new Error(file.name);
  return { fd, file };
}

const put = (...files: File[]): void => p.run(puts(files));
function* puts(files: File[]): Generator<never, void, void> {
  for (const f of files) kernel.fs.fput(f);
}

const pinFile = (f: File, start: number, n: number): Pfn[] | Errno => p.run(pinFilePages(f, start, n, true));

/** What readiness the loop would find. */
function poll(): void {
  for (const [fd, callback] of [...watched]) if ((pollNow(fd, POLLIN) & POLLIN) !== 0) callback();
}

function ctxOf(file: File): EventfdCtx {
  const ctx = eventfdCtxFromFile(file);
  if (ctx instanceof Errno) throw new Error(ctx.name);
  return ctx;
}

describe("an eventfd of the program", () => {
  it("counts what the embedded kernel signals, and goes on when the file is put", async () => {
    const { fd, file } = await opened("os.eventfd(0, os.EFD_NONBLOCK)");
    const ctx = ctxOf(file);
    put(file);
    expect(foreign.size).toBe(0);
    ctx.signal();
    ctx.signal(41);
    expect(ctx.count).toBe(42n);
    expect(await peer.ask(`os.eventfd_read(${fd})`)).toBe(42);
    expect(ctx.count).toBe(0n);
    expect(await peer.ask(`os.eventfd_read(${fd})`)).toEqual({ errno: 11 });
    ctx.put();
  });

  it("is read without waiting, though the program opened it to wait", async () => {
    const { fd, file } = await opened("os.eventfd(0)");
    const ctx = ctxOf(file);
    expect(ctx.consume()).toBe(0n);
    await peer.ask(`os.eventfd_write(${fd}, 5)`);
    expect(ctx.consume()).toBe(5n);
    expect(ctx.consume()).toBe(0n);
    ctx.put();
    put(file);
  });

  it("takes one at a time as a semaphore", async () => {
    const { file } = await opened("os.eventfd(3, os.EFD_SEMAPHORE)");
    const ctx = ctxOf(file);
    expect([ctx.semaphore, ctx.consume(), ctx.count]).toEqual([true, 1n, 2n]);
    ctx.put();
    put(file);
  });

  it("never makes barlink wait, even when its counter is full", async () => {
    const { fd, file } = await opened("os.eventfd(0)");
    await peer.ask(`os.write(${fd}, (2**64 - 2).to_bytes(8, "little"))`);
    const ctx = ctxOf(file);
    ctx.signal();
    expect(ctx.count).toBe(0xffff_ffff_ffff_fffen);
    ctx.put();
    put(file);
  });

  it("is watched while somebody listens, and tells each signal of the program", async () => {
    const { fd, file } = await opened("os.eventfd(0)");
    const ctx = ctxOf(file);
    const heard: bigint[] = [];
    const listener = (): void => {
      heard.push(ctx.consume());
    };
    expect(watched.size).toBe(0);
    ctx.pollQueue.add(listener);
    poll();
    await peer.ask(`os.eventfd_write(${fd}, 2)`);
    poll();
    poll();
    await peer.ask(`os.eventfd_write(${fd}, 1)`);
    poll();
    expect(heard).toEqual([2n, 1n]);
    expect(file.pollQueue).toBe(ctx.pollQueue);
    ctx.pollQueue.remove(listener);
    expect(watched.size).toBe(0);
    ctx.put();
    put(file);
  });

  it("is one file and one counter, whichever descriptor leads to it, and another for another", async () => {
    const { fd, file } = await opened("os.eventfd(0)");
    const same = (await open(await peer.ask(`os.dup(${fd})`))) as File;
    const other = (await opened("os.eventfd(0)")).file;
    expect(same).toBe(file);
    expect(other).not.toBe(file);
    const ctx = ctxOf(file);
    put(file, same);
    const later = (await open(fd)) as File;
    expect(later).not.toBe(file);
    expect(ctxOf(later)).toBe(ctx);
    ctx.put();
    ctx.put();
    put(later, other);
  });
});

describe("a memfd of the program", () => {
  it("has its pages pinned as a file's, the same that a mapping of it gives", async () => {
    const { fd, file } = await opened("memfd(4 * PAGE)");
    const a = BigInt(await peer.ask(`mmap(2 * PAGE, RW, SHARED, ${fd}, PAGE)`));
    const memory = new ProcessMemory(shared, peer.target);
    const pfns = pinFile(file, 0, 4) as Pfn[];
    const mapped = memory.pin(a, 2, true) as Pfn[];
    expect(mapped).toEqual(pfns.slice(1, 3));
    put(file);
    expect(kernel.frames.writeFrame(pfns[3] as Pfn, 10, new TextEncoder().encode("dma"))).toBe(true);
    expect(await peer.ask(`os.pread(${fd}, 3, 3 * PAGE + 10).decode()`)).toBe("dma");
    await peer.end();
    const dst = new Uint8Array(3);
    expect(kernel.frames.readFrame(pfns[3] as Pfn, 10, dst)).toBe(true);
    expect(new TextDecoder().decode(dst)).toBe("dma");
    memory.unpin(mapped, true);
    memory.destroy();
    unpinFilePages(kernel, pfns);
  });

  it("has no pages past its end, and as many as it has when it is asked", async () => {
    const { fd, file } = await opened("memfd(PAGE + 1)");
    expect(pinFile(file, 0, 2)).toBe(EINVAL);
    expect(pinFile(file, 1, 1)).toBe(EINVAL);
    expect(pinFile(file, 0, 0)).toBe(EINVAL);
    await peer.ask(`os.ftruncate(${fd}, 2 * PAGE)`);
    unpinFilePages(kernel, pinFile(file, 0, 2) as Pfn[]);
    put(file);
  });

  it("shows its seals as they are; what is no memory has none", async () => {
    const { fd, file } = await opened("memfd(PAGE)");
    expect(memfdSeals(file)).toBe(0);
    await peer.ask(`fcntl.fcntl(${fd}, 1033, 2)`);
    expect(memfdSeals(file)).toBe(2);
    const unsealable = (await opened("memfd(PAGE, 0)")).file;
    expect(memfdSeals(unsealable)).toBe(1);
    const pipe = (await opened("os.pipe()[0]")).file;
    expect(memfdSeals(pipe)).toBe(EINVAL);
    put(file, unsealable, pipe);
  });

  it("is one file for every descriptor with the same flags, and one set of pages for all", async () => {
    const { fd, file } = await opened("memfd(PAGE)");
    const dup = (await open(await peer.ask(`os.dup(${fd})`))) as File;
    const readOnly = (await open(await peer.ask(`os.open("/proc/self/fd/%d" % ${fd}, os.O_RDONLY)`))) as File;
    expect(dup).toBe(file);
    expect(readOnly).not.toBe(file);
    expect([file.writable, readOnly.writable]).toEqual([true, false]);
    const a = pinFile(file, 0, 1) as Pfn[];
    const b = pinFile(readOnly, 0, 1) as Pfn[];
    expect(a).toEqual(b);
    expect(shared.files.size).toBe(1);
    unpinFilePages(kernel, [...a, ...b]);
    put(file, dup, readOnly);
  });

  it("that was opened to be read can be written by a device, as on Linux", async () => {
    const { file } = await opened(`os.open("/proc/self/fd/%d" % memfd(PAGE), os.O_RDONLY)`);
    const pfns = pinFile(file, 0, 1) as Pfn[];
    expect(kernel.frames.writeFrame(pfns[0] as Pfn, 0, Uint8Array.of(1))).toBe(true);
    unpinFilePages(kernel, pfns);
    put(file);
  });
});

it.skipIf(process.geteuid?.() !== 0)("another user's file of tmpfs, opened to be read, is not written by a device", async () => {
  await peer.ask("os.open('/dev/shm/barlink-test', os.O_CREAT | os.O_RDWR, 0o644) and os.truncate('/dev/shm/barlink-test', PAGE)");
  const fd = await peer.ask(
    "globals().update(ro=os.open('/dev/shm/barlink-test', os.O_RDONLY)) or os.unlink('/dev/shm/barlink-test') or ro",
  );
  await peer.ask("libc.setuid(65534)");
  const file = foreign.open(peer.pid, peer.pid, fd, "/dev/shm/barlink-test (deleted)") as File;
  const pfns = pinFile(file, 0, 1) as Pfn[];
  expect(kernel.frames.readFrame(pfns[0] as Pfn, 0, new Uint8Array(1))).toBe(true);
  expect(kernel.frames.writeFrame(pfns[0] as Pfn, 0, Uint8Array.of(1))).toBe(false);
  expect(shared.budget.lost).toBe(1);
  // Not even when another program may write to it.
  const other = await Peer.start();
  const rw = await other.ask(`os.open("/proc/${peer.pid}/fd/${fd}", os.O_RDWR)`);
  const theirs = foreign.open(other.pid, other.pid, rw, "/dev/shm/barlink-test (deleted)") as File;
  const theirPfns = pinFile(theirs, 0, 1) as Pfn[];
  expect(kernel.frames.writeFrame(theirPfns[0] as Pfn, 0, Uint8Array.of(7))).toBe(true);
  expect(kernel.frames.writeFrame(pfns[0] as Pfn, 0, Uint8Array.of(1))).toBe(false);
  const dst = new Uint8Array(1);
  kernel.frames.readFrame(pfns[0] as Pfn, 0, dst);
  expect(dst[0]).toBe(7);
  await other.end();
  unpinFilePages(kernel, [...pfns, ...theirPfns]);
  put(theirs);
  put(file);
});

/** Huge pages that are free: tests that need one are skipped without (sysctl vm.nr_hugepages=4). */
const hugePages = Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync("/proc/meminfo", "latin1"))?.[1] ?? 0);

describe.skipIf(hugePages < 2)("a memfd of huge pages (sysctl vm.nr_hugepages=4)", () => {
  it("is read and written by devices, mapped or not", async () => {
    const { fd, file } = await opened("memfd(4 << 20, 4)");
    const pfns = pinFile(file, 511, 2) as Pfn[];
    expect(kernel.frames.writeFrame(pfns[1] as Pfn, 4090, new TextEncoder().encode("huge"))).toBe(true);
    const a = BigInt(await peer.ask(`mmap(4 << 20, RW, SHARED, ${fd})`));
    expect(await peer.ask(`bytes.fromhex(peek(${a} + (2 << 20) + 4090, 4)).decode()`)).toBe("huge");
    const memory = new ProcessMemory(shared, peer.target);
    const mapped = memory.pin(a + 511n * 4096n, 2, true) as Pfn[];
    expect(mapped).toEqual(pfns);
    await peer.ask(`poke(${a} + 511 * PAGE, "41")`);
    const dst = new Uint8Array(1);
    expect([kernel.frames.readFrame(pfns[0] as Pfn, 0, dst), dst[0]]).toEqual([true, 0x41]);
    memory.unpin(mapped, true);
    memory.destroy();
    unpinFilePages(kernel, pfns);
    put(file);
  });
});

describe("any other descriptor", () => {
  it.each([
    "os.pipe()[1]",
    "os.open('/dev/null', os.O_RDWR)",
    "__import__('socket').socket().detach()",
    "os.open('/etc/passwd', os.O_RDONLY)",
    "os.open('/tmp', os.O_RDONLY)",
    "os.pidfd_open(os.getpid())",
  ])("%s has neither pages nor a counter", async (code) => {
    const { file } = await opened(code);
    expect(pinFile(file, 0, 1)).toBe(EINVAL);
    expect(eventfdCtxFromFile(file)).toBe(EINVAL);
    expect(file.ops.ioctl).toBeUndefined();
    put(file);
  });

  it("that is closed is EBADF; one of O_PATH names its file and is nothing else", async () => {
    expect(foreign.open(peer.pid, peer.pid, 999, "")).toBe(EBADF);
    expect(foreign.open(peer.pid, peer.pid, -1, "")).toBe(EBADF);
    const { file } = await opened(`os.open("/proc/self/fd/%d" % memfd(PAGE), os.O_PATH)`);
    expect(file.isPath).toBe(true);
    put(file);
    await peer.end();
    expect(foreign.open(peer.pid, peer.pid, 0, "")).toBe(EBADF);
  });

  it("is looked at as it is now, whatever its name was", async () => {
    const fd = await peer.ask("memfd(PAGE)");
    const file = foreign.open(peer.pid, peer.pid, fd, "anon_inode:[eventfd]") as File;
    expect(eventfdCtxFromFile(file)).toBe(EINVAL);
    const pipe = foreign.open(peer.pid, peer.pid, await peer.ask("os.pipe()[0]"), "anon_inode:[eventfd]") as File;
    expect(eventfdCtxFromFile(pipe)).toBe(EINVAL);
    expect(pinFile(pipe, 0, 1)).toBe(EINVAL);
    put(file, pipe);
  });
});

it("a descriptor of a thread other than the leader is found by the thread", async () => {
  const tid = await peer.ask(
    "globals().update(threading=__import__('threading')) or threading.Thread(target=lambda: __import__('time').sleep(30), daemon=True).start() or [t.native_id for t in threading.enumerate()][-1]",
  );
  expect(tid).not.toBe(peer.pid);
  const fd = await peer.ask("memfd(PAGE)");
  const file = foreign.open(peer.pid, tid, fd, "/memfd:peer (deleted)") as File;
  unpinFilePages(kernel, pinFile(file, 0, 1) as Pfn[]);
  put(file);
});
