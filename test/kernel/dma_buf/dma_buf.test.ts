import { describe, expect, it } from "vitest";
import { type DmaBuf, dmaBufExport, dmaBufFd, dmaBufGet, dmaBufPut } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { DmaFence } from "../../../src/kernel/dma_buf/fence.ts";
import { Usage } from "../../../src/kernel/dma_buf/resv.ts";
import { EBADF, EFAULT, EINVAL, EMFILE, ENOENT, ENOTTY, Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import type { Step } from "../../../src/sched/task.ts";
import {
  DMA_BUF_IOCTL_EXPORT_SYNC_FILE,
  DMA_BUF_IOCTL_IMPORT_SYNC_FILE,
  DMA_BUF_IOCTL_SYNC,
  DMA_BUF_SET_NAME_A,
  DMA_BUF_SET_NAME_B,
  DMA_BUF_SYNC_END,
  DMA_BUF_SYNC_READ,
  DMA_BUF_SYNC_RW,
  DMA_BUF_SYNC_START,
  DMA_BUF_SYNC_WRITE,
  DmaBufExportSyncFile,
  DmaBufImportSyncFile,
  DmaBufSync,
  MAP_PRIVATE,
  MAP_SHARED,
  O_CLOEXEC,
  POLLIN,
  POLLOUT,
  PROT_READ,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
  SYNC_IOC_FILE_INFO,
  SYNC_IOC_MERGE,
  SYNC_IOC_SET_DEADLINE,
  SyncFenceInfo,
  SyncFileInfo,
  SyncMergeData,
  SyncSetDeadline,
} from "../../../src/uapi/index.ts";
import { Exporter, Importer, ok, plainDevice, Rig } from "./support.ts";

const text = (bytes: Uint8Array): string => String.fromCharCode(...bytes.subarray(0, bytes.indexOf(0)));
const cString = (s: string): Uint8Array => Uint8Array.from([...s, "\0"].map((c) => c.charCodeAt(0)));

function setUp(size = 0x3000n) {
  const rig = new Rig();
  const exporter = new Exporter();
  const buf = exporter.export(rig, size);
  const fd = ok(rig.call(() => dmaBufFd(rig.process, buf, O_CLOEXEC)));
  const { sys } = rig.process;
  let seqno = 0n;
  const fence = (context = 9n) => new DmaFence(rig.kernel.sched, { context, seqno: ++seqno, driver: "gpu", timeline: "ring" });
  const add = (f: DmaFence, usage: Usage): DmaFence => {
    const body = function* (): Step<void> {
      yield* buf.resv.lock();
      buf.resv.reserveFences(1);
      buf.resv.addFence(f, usage);
      buf.resv.unlock();
    };
    rig.run(body());
    return f;
  };
  const ioctl = (cmd: number, arg: bigint, of = fd): number | Errno => rig.run(sys.ioctl(of, cmd, arg));
  const poll = (events: number): number => {
    const e = { fd, events, revents: 0 };
    rig.run(sys.poll([e], 0));
    return e.revents;
  };
  return { rig, exporter, buf, fd, sys, fence, add, ioctl, poll };
}

describe("a buffer", () => {
  it("lives as long as its last reference, and then its exporter releases it once", () => {
    const { rig, exporter, buf, fd, sys } = setUp();
    const again = ok(rig.call(() => dmaBufGet(rig.process, fd)));
    expect(again).toBe(buf);
    expect(rig.leaks()).toEqual({ dma_buf: 1 });
    rig.run(sys.close(fd));
    expect(exporter.log).toEqual([]);
    rig.call(() => dmaBufPut(buf));
    expect(exporter.log).toEqual(["release"]);
    expect(rig.leaks()).toEqual({});
    expect(rig.kernel.modules.refcount("exporter")).toBe(0);
  });

  it("holds its exporter's module, which cannot go before it", () => {
    const { rig, fd, sys } = setUp();
    expect(rig.kernel.modules.unload("exporter")).toBe(false);
    rig.run(sys.close(fd));
    expect(rig.kernel.modules.unload("exporter")).toBe(true);
  });

  it("is not made when the module is on its way out: ENOENT", () => {
    const rig = new Rig();
    const { ops } = new Exporter();
    expect(rig.call(() => dmaBufExport(rig.kernel, { expName: "x", owner: "gone", ops, size: 4096n, flags: 0, priv: 1 }))).toBe(ENOENT);
    expect(rig.kernel.fs.openFiles).toBe(0);
  });

  it("that is released while attached is a bug: an importer must hold a reference", () => {
    const { rig, buf, fd, sys } = setUp();
    ok(rig.run(new Importer(plainDevice()).attach(buf)));
    expect(() => rig.run(sys.close(fd))).toThrow(/with 1 attachments/);
  });

  it("of an exporter with pin but not unpin is a bug", () => {
    const rig = new Rig();
    rig.kernel.modules.load("x");
    const ops = { ...new Exporter().ops, pin: () => undefined };
    expect(() => rig.call(() => dmaBufExport(rig.kernel, { expName: "x", owner: "x", ops, size: 4096n, flags: 0, priv: 1 }))).toThrow(
      KernelBug,
    );
  });

  it("that no descriptor is left for stays the caller's: EMFILE", () => {
    const rig = new Rig();
    const exporter = new Exporter();
    const buf = exporter.export(rig);
    rig.process.rlimits.nofile = 0;
    expect(rig.call(() => dmaBufFd(rig.process, buf, 0))).toBe(EMFILE);
    expect(exporter.log).toEqual([]);
    rig.call(() => dmaBufPut(buf));
    expect(exporter.log).toEqual(["release"]);
  });

  it("is found by a descriptor: EBADF for none, EINVAL for another kind of file", () => {
    const { rig, sys } = setUp();
    const other = ok(rig.run(sys.open("/dev/null", 0)));
    expect(rig.call(() => dmaBufGet(rig.process, 99))).toBe(EBADF);
    expect(rig.call(() => dmaBufGet(rig.process, -1))).toBe(EBADF);
    expect(rig.call(() => dmaBufGet(rig.process, other))).toBe(EINVAL);
  });

  it("keeps of the open flags the access mode, O_NONBLOCK and for the descriptor O_CLOEXEC", () => {
    const rig = new Rig();
    rig.kernel.modules.load("x");
    const { ops } = new Exporter();
    const buf = ok(
      rig.call(() => dmaBufExport(rig.kernel, { expName: "x", owner: "x", ops, size: 4096n, flags: 0xffff_ffff | 0, priv: 1 })),
    );
    expect(buf.file.flags & ~3).toBe(0x800);
  });
});

describe("the descriptor", () => {
  it("tells the size by lseek to the end, goes back to 0, and to nowhere else", () => {
    const { rig, fd, sys } = setUp();
    const seek = (off: bigint, whence: number) => rig.run(sys.lseek(fd, off, whence));
    expect(seek(0n, SEEK_END)).toBe(0x3000n);
    expect(seek(0n, SEEK_SET)).toBe(0n);
    expect(seek(0n, SEEK_CUR)).toBe(EINVAL);
    expect(seek(4096n, SEEK_SET)).toBe(EINVAL);
    expect(seek(-1n, SEEK_END)).toBe(EINVAL);
    expect(seek(0n, 3)).toBe(EINVAL);
  });

  it("cannot be read, written, or mapped when the exporter maps nothing", () => {
    const { rig, fd, sys } = setUp();
    const addr = rig.user(4096);
    expect(rig.run(sys.read(fd, addr, 16))).toBe(EINVAL);
    expect(rig.run(sys.write(fd, addr, 16))).toBe(EINVAL);
    for (const flags of [MAP_SHARED, MAP_PRIVATE]) expect(rig.run(sys.mmap(0n, 4096n, PROT_READ, flags, fd))).toBe(EINVAL);
  });

  it("shows its size in stat, and who made it, its count and its name in fdinfo", () => {
    const { rig, fd, sys, ioctl } = setUp();
    expect(ok(rig.run(sys.fstat(fd)))).toMatchObject({ size: 0x3000n, mode: 0o600, ino: 1, blocks: 24n });
    const lines = (): string[] =>
      ok(rig.run(sys.fdinfo(fd)))
        .trimEnd()
        .split("\n")
        .slice(3);
    expect(lines()).toEqual(["ino:\t1", "size:\t12288", "count:\t1", "exp_name:\texporter"]);
    expect(rig.run(sys.readlinkFd(fd))).toBe("/dmabuf:");
    expect(ioctl(DMA_BUF_SET_NAME_B, rig.put(cString("oracle")))).toBe(0);
    expect(lines().at(-1)).toBe("name:\toracle");
    expect(rig.run(sys.readlinkFd(fd))).toBe("/dmabuf:oracle");
  });

  it("takes a name of up to 31 characters: EINVAL for more, EFAULT when its end cannot be read", () => {
    const { rig, buf, ioctl } = setUp();
    expect(ioctl(DMA_BUF_SET_NAME_A, rig.put(cString("x".repeat(31))))).toBe(0);
    expect(buf.name).toHaveLength(31);
    expect(ioctl(DMA_BUF_SET_NAME_B, rig.put(cString("x".repeat(32))))).toBe(EINVAL);
    expect(ioctl(DMA_BUF_SET_NAME_B, 8n)).toBe(EFAULT);
    const page = rig.user(4096);
    const atEnd = page + 4096n - 4n;
    rig.process.mm.memory.write(atEnd, cString("abc"));
    expect(ioctl(DMA_BUF_SET_NAME_B, atEnd)).toBe(0);
    expect(buf.name).toBe("abc");
    expect(ioctl(DMA_BUF_SET_NAME_A, rig.put(cString("")))).toBe(0);
    expect(buf.name).toBe("");
  });

  it("answers ENOTTY to what it does not know", () => {
    const { ioctl } = setUp();
    expect(ioctl(0x6299, 0n)).toBe(ENOTTY);
  });
});

describe("DMA_BUF_IOCTL_SYNC", () => {
  it("checks its flags", () => {
    const { rig, ioctl } = setUp();
    const sync = (flags: bigint) => ioctl(DMA_BUF_IOCTL_SYNC, rig.put(DmaBufSync.alloc({ flags }).bytes));
    expect(sync(DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW)).toBe(0);
    expect(sync(DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW)).toBe(0);
    expect(sync(DMA_BUF_SYNC_START)).toBe(EINVAL);
    expect(sync(DMA_BUF_SYNC_END)).toBe(EINVAL);
    expect(sync(DMA_BUF_SYNC_READ | 8n)).toBe(EINVAL);
    expect(sync(DMA_BUF_SYNC_READ | (1n << 40n))).toBe(EINVAL);
    expect(ioctl(DMA_BUF_IOCTL_SYNC, 8n)).toBe(EFAULT);
  });

  it("a start waits for what is pending: a reader for writers, a writer for readers too; an end waits for nothing", () => {
    const { rig, fd, sys, fence, add } = setUp();
    const reader = add(fence(), Usage.read);
    const sync = (flags: bigint) => {
      const arg = rig.put(DmaBufSync.alloc({ flags }).bytes);
      return rig.start("sync", () => sys.ioctl(fd, DMA_BUF_IOCTL_SYNC, arg));
    };
    expect(sync(DMA_BUF_SYNC_READ).state).toBe("done");
    expect(sync(DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE).state).toBe("done");
    const writer = sync(DMA_BUF_SYNC_WRITE);
    expect(writer.state).toBe("blocked");
    reader.signal();
    rig.kernel.sched.settle();
    expect([writer.state, writer.result]).toEqual(["done", 0]);
  });
});

describe("poll", () => {
  it("finds an idle buffer ready both ways", () => {
    const { poll } = setUp();
    expect(poll(POLLIN | POLLOUT)).toBe(POLLIN | POLLOUT);
  });

  it("IN waits for writers, OUT for readers too, neither for bookkeeping", () => {
    const { fence, add, poll } = setUp();
    add(fence(1n), Usage.bookkeep);
    expect(poll(POLLIN | POLLOUT)).toBe(POLLIN | POLLOUT);
    const read = add(fence(2n), Usage.read);
    expect(poll(POLLIN | POLLOUT)).toBe(POLLIN);
    const write = add(fence(3n), Usage.write);
    expect(poll(POLLIN | POLLOUT)).toBe(0);
    write.signal();
    expect(poll(POLLIN | POLLOUT)).toBe(POLLIN);
    read.signal();
    expect(poll(POLLIN | POLLOUT)).toBe(POLLIN | POLLOUT);
  });

  it("is woken by the signal, and holds the buffer until then", () => {
    const { rig, exporter, fd, sys, fence, add, poll } = setUp();
    const f = add(fence(), Usage.write);
    const e = { fd, events: POLLIN, revents: 0 };
    const t = rig.start("poll", () => sys.poll([e], -1));
    expect(t.state).toBe("blocked");
    f.signal();
    rig.kernel.sched.settle();
    expect([t.result, e.revents]).toEqual([1, POLLIN]);
    // A poll that did not wait still holds it.
    const g = add(fence(), Usage.write);
    expect(poll(POLLIN)).toBe(0);
    rig.run(sys.close(fd));
    expect(exporter.log).toEqual([]);
    g.signal();
    rig.kernel.sched.settle();
    expect(exporter.log).toEqual(["release"]);
    expect(rig.leaks()).toEqual({});
  });
});

describe("sync files", () => {
  const exportFile = ({ rig, ioctl }: ReturnType<typeof setUp>, flags: bigint): number | Errno => {
    const arg = rig.put(DmaBufExportSyncFile.alloc({ flags: Number(flags), fd: -1 }).bytes);
    const r = ioctl(DMA_BUF_IOCTL_EXPORT_SYNC_FILE, arg);
    return r instanceof Errno ? r : DmaBufExportSyncFile.over(rig.peek(arg, 8)).fd;
  };
  const infoOf = ({ rig, ioctl }: ReturnType<typeof setUp>, fd: number, room = 0) => {
    const fences = rig.user(4096);
    const arg = rig.put(SyncFileInfo.alloc({ num_fences: room, sync_fence_info: fences }).bytes);
    const r = ioctl(SYNC_IOC_FILE_INFO, arg, fd);
    if (r instanceof Errno) return r;
    const info = SyncFileInfo.over(rig.peek(arg, SyncFileInfo.size));
    const list =
      room === 0
        ? []
        : Array.from({ length: info.num_fences }, (_, i) =>
            SyncFenceInfo.over(rig.peek(fences + BigInt(i * SyncFenceInfo.size), SyncFenceInfo.size)),
          );
    return {
      name: text(info.name),
      status: info.status,
      count: info.num_fences,
      fences: list.map((f) => [text(f.driver_name), text(f.obj_name), f.status]),
    };
  };

  it("hold what was pending at the time: pollable, with O_CLOEXEC", () => {
    const s = setUp();
    const f = s.add(s.fence(), Usage.write);
    const fd = ok(exportFile(s, DMA_BUF_SYNC_READ));
    expect(s.rig.process.files.cloexec(fd)).toBe(true);
    const e = { fd, events: POLLIN, revents: 0 };
    const t = s.rig.start("poll", () => s.sys.poll([e], -1));
    expect(t.state).toBe("blocked");
    expect(infoOf(s, fd, 4)).toMatchObject({ name: "gpu-ring9-1", status: 0, fences: [["gpu", "ring", 0]] });
    s.add(s.fence(), Usage.write);
    f.signal();
    s.rig.kernel.sched.settle();
    expect([t.result, e.revents]).toEqual([1, POLLIN]);
    expect(infoOf(s, fd)).toMatchObject({ status: 1, count: 1 });
  });

  it("of an idle buffer are signalled already", () => {
    const s = setUp();
    expect(infoOf(s, ok(exportFile(s, DMA_BUF_SYNC_RW)))).toMatchObject({
      name: expect.stringContaining("stub-stub"),
      status: 1,
      count: 1,
    });
  });

  it("for a writer hold readers and writers, as one", () => {
    const s = setUp();
    s.add(s.fence(1n), Usage.write);
    s.add(s.fence(2n), Usage.read);
    expect(infoOf(s, ok(exportFile(s, DMA_BUF_SYNC_WRITE)))).toMatchObject({ count: 2 });
    expect(infoOf(s, ok(exportFile(s, DMA_BUF_SYNC_READ)))).toMatchObject({ count: 1 });
  });

  it("are not made with wrong flags, and no descriptor is lost when the answer cannot be written", () => {
    const s = setUp();
    for (const flags of [0n, 4n, 8n | DMA_BUF_SYNC_READ]) expect(exportFile(s, flags)).toBe(EINVAL);
    expect(s.ioctl(DMA_BUF_IOCTL_EXPORT_SYNC_FILE, 8n)).toBe(EFAULT);
    const readOnly = s.rig.put(DmaBufExportSyncFile.alloc({ flags: Number(DMA_BUF_SYNC_READ) }).bytes);
    s.rig.run(s.sys.mprotect(readOnly, 4096n, PROT_READ));
    const { size } = s.rig.process.files;
    expect(s.ioctl(DMA_BUF_IOCTL_EXPORT_SYNC_FILE, readOnly)).toBe(EFAULT);
    expect(s.rig.process.files.size).toBe(size);
    expect(s.rig.kernel.fs.openFiles).toBe(1);
    s.rig.process.rlimits.nofile = size;
    expect(exportFile(s, DMA_BUF_SYNC_READ)).toBe(EMFILE);
  });

  it("imported become fences of the buffer: read or write, each of them", () => {
    const s = setUp();
    const [a, b] = [s.add(s.fence(1n), Usage.write), s.add(s.fence(2n), Usage.write)];
    const fd = ok(exportFile(s, DMA_BUF_SYNC_RW));
    const t = setUp();
    const other: DmaBuf = s.buf;
    expect(t.buf).not.toBe(other);
    const into = new Exporter().export(s.rig);
    const intoFd = ok(s.rig.call(() => dmaBufFd(s.rig.process, into, 0)));
    const importFile = (flags: bigint, file: number) =>
      s.ioctl(DMA_BUF_IOCTL_IMPORT_SYNC_FILE, s.rig.put(DmaBufImportSyncFile.alloc({ flags: Number(flags), fd: file }).bytes), intoFd);
    expect(importFile(DMA_BUF_SYNC_READ, fd)).toBe(0);
    expect(into.resv.pending(Usage.write)).toEqual([]);
    expect(into.resv.pending(Usage.read)).toEqual([a, b]);
    expect(importFile(DMA_BUF_SYNC_RW, fd)).toBe(0);
    expect(into.resv.pending(Usage.write)).toEqual([a, b]);
    expect(importFile(DMA_BUF_SYNC_READ, intoFd)).toBe(EINVAL);
    expect(importFile(DMA_BUF_SYNC_READ, 99)).toBe(EINVAL);
    expect(importFile(0n, fd)).toBe(EINVAL);
    expect(s.ioctl(DMA_BUF_IOCTL_IMPORT_SYNC_FILE, 8n, intoFd)).toBe(EFAULT);
  });

  it("merge into one with a name of its own; of one timeline the latest counts", () => {
    const s = setUp();
    s.add(s.fence(1n), Usage.write);
    const first = ok(exportFile(s, DMA_BUF_SYNC_RW));
    s.add(s.fence(1n), Usage.write);
    s.add(s.fence(2n), Usage.write);
    const second = ok(exportFile(s, DMA_BUF_SYNC_RW));
    const merge = (init: Parameters<typeof SyncMergeData.alloc>[0]) => {
      const arg = s.rig.put(SyncMergeData.alloc({ name: cString("both"), fd2: second, ...init }).bytes);
      const r = s.ioctl(SYNC_IOC_MERGE, arg, first);
      return r instanceof Errno ? r : SyncMergeData.over(s.rig.peek(arg, SyncMergeData.size)).fence;
    };
    const { size } = s.rig.process.files;
    expect(merge({ flags: 1 })).toBe(EINVAL);
    expect(merge({ pad: 1 })).toBe(EINVAL);
    expect(merge({ fd2: s.fd })).toBe(ENOENT);
    expect(s.ioctl(SYNC_IOC_MERGE, 8n, first)).toBe(EFAULT);
    const readOnly = s.rig.put(SyncMergeData.alloc({ fd2: second }).bytes);
    s.rig.run(s.sys.mprotect(readOnly, 4096n, PROT_READ));
    expect(s.ioctl(SYNC_IOC_MERGE, readOnly, first)).toBe(EFAULT);
    expect(s.rig.process.files.size).toBe(size);
    expect(infoOf(s, ok(merge({})), 8)).toMatchObject({ name: "both", count: 2, status: 0 });
  });

  it("answer to info with too little room EINVAL, to unknown calls ENOTTY, and pass a deadline on", () => {
    const s = setUp();
    const f = s.add(s.fence(1n), Usage.write);
    s.add(s.fence(2n), Usage.write);
    const fd = ok(exportFile(s, DMA_BUF_SYNC_RW));
    expect(infoOf(s, fd, 1)).toBe(EINVAL);
    expect(s.ioctl(SYNC_IOC_FILE_INFO, s.rig.put(SyncFileInfo.alloc({ flags: 1 }).bytes), fd)).toBe(EINVAL);
    expect(s.ioctl(SYNC_IOC_FILE_INFO, s.rig.put(SyncFileInfo.alloc({ num_fences: 2, sync_fence_info: 8n }).bytes), fd)).toBe(EFAULT);
    expect(s.ioctl(0x3e99, 0n, fd)).toBe(ENOTTY);
    expect(s.ioctl(SYNC_IOC_SET_DEADLINE, s.rig.put(SyncSetDeadline.alloc({ deadline_ns: 5n, pad: 1n }).bytes), fd)).toBe(EINVAL);
    expect(s.ioctl(SYNC_IOC_SET_DEADLINE, s.rig.put(SyncSetDeadline.alloc({ deadline_ns: 5n }).bytes), fd)).toBe(0);
    expect(f.deadline).toBe(5n);
  });

  it("leave nothing behind when closed while pending", () => {
    const s = setUp();
    const f = s.add(s.fence(), Usage.write);
    const fd = ok(exportFile(s, DMA_BUF_SYNC_READ));
    s.rig.run(s.sys.poll([{ fd, events: POLLIN, revents: 0 }], 0));
    s.rig.run(s.sys.close(fd));
    f.signal();
    s.rig.run(s.sys.close(s.fd));
    expect(s.rig.kernel.fs.openFiles).toBe(0);
  });
});
