import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { File, FileOps } from "../../../src/kernel/fs/file.ts";
import type { Process } from "../../../src/kernel/fs/process.ts";
import type { Kernel } from "../../../src/kernel/kernel.ts";
import {
  EACCES,
  EBADF,
  EEXIST,
  EFAULT,
  EINVAL,
  EISDIR,
  EMFILE,
  ENODEV,
  ENOENT,
  ENOIOCTLCMD,
  ENOTDIR,
  ENOTTY,
  ENXIO,
  ESPIPE,
} from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { LockClass, Mutex, type Step } from "../../../src/sched/index.ts";
import {
  F_ADD_SEALS,
  F_DUPFD,
  F_DUPFD_CLOEXEC,
  F_GET_SEALS,
  F_GETFD,
  F_GETFL,
  F_SETFD,
  F_SETFL,
  FD_CLOEXEC,
  MAP_PRIVATE,
  MAP_SHARED,
  O_APPEND,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_LARGEFILE,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  PROT_READ,
  S_IFCHR,
  SEEK_END,
  SEEK_SET,
} from "../../../src/uapi/index.ts";
import { boot, expectNothingLeaks, memory, ok, peek, poke, run, text, unprivileged } from "../../harness.ts";

let kernel: Kernel;
let p: Process;
let log: string[];
let buf: bigint;
beforeEach(() => {
  ({ kernel, p } = boot());
  log = [];
  buf = memory(p, 4096);
});
afterEach(() => expectNothingLeaks(kernel));

/** A file whose release is logged; it can do nothing else, unless `more` says so. */
function probe(name: string, more: Partial<FileOps> = {}): File {
  const ops: FileOps = {
    name,
    *release() {
      log.push(`release ${name}`);
    },
    ...more,
  };
  return kernel.fs.newFile(ops, { flags: O_RDWR, path: `anon_inode:[${name}]` });
}

function install(f: File, flags = 0): number {
  const fd = ok(p.files.getUnused(flags));
  p.files.install(fd, f);
  return fd;
}

describe("descriptors", () => {
  it("are the lowest free number, up to the soft limit", () => {
    p.rlimits.nofile = 4;
    const fds = [0, 1, 2, 3].map(() => run(p, p.sys.eventfd(0)));
    expect(fds).toEqual([0, 1, 2, 3]);
    expect(p.run(p.sys.eventfd(0))).toBe(EMFILE);
    expect(p.run(p.sys.memfdCreate("m", 0))).toBe(EMFILE);
    expect(p.run(p.sys.open("/nowhere", O_RDONLY))).toBe(EMFILE);
    expect(p.run(p.sys.dup(0))).toBe(EMFILE);
    expect(p.run(p.sys.close(1))).toBeUndefined();
    expect(p.run(p.sys.close(0))).toBeUndefined();
    expect(p.run(p.sys.pipe())).toEqual([0, 1]);
    run(p, p.sys.close(2));
    expect(p.run(p.sys.pipe())).toBe(EMFILE);
    expect(run(p, p.sys.eventfd(0))).toBe(2);
  });

  it("are reserved before the file is there, and refer to nothing until then", () => {
    const fd = ok(p.files.getUnused(O_CLOEXEC));
    expect(p.files.get(fd)).toBe(EBADF);
    expect(p.run(p.sys.close(fd))).toBe(EBADF);
    expect(ok(p.files.getUnused(0))).toBe(fd + 1);
    p.files.putUnused(fd + 1);
    expect(() => p.files.putUnused(fd + 1)).toThrow(KernelBug);
    p.files.install(fd, probe("x"));
    expect(() => p.files.install(fd, probe("y"))).toThrow(KernelBug);
    expect(p.run(p.sys.fcntl(fd, F_GETFD))).toBe(FD_CLOEXEC);
    kernel.fs.openFiles--;
  });

  it("are copied by dup, dup2, dup3 and fcntl", () => {
    const fd = run(p, p.sys.eventfd(0, O_CLOEXEC));
    expect(run(p, p.sys.dup(fd))).toBe(1);
    expect(run(p, p.sys.fcntl(1, F_GETFD))).toBe(0);
    expect(run(p, p.sys.fcntl(fd, F_DUPFD, 10))).toBe(10);
    expect(run(p, p.sys.fcntl(fd, F_DUPFD_CLOEXEC, 10))).toBe(11);
    expect(run(p, p.sys.fcntl(11, F_GETFD))).toBe(FD_CLOEXEC);
    expect(p.run(p.sys.fcntl(fd, F_DUPFD, 1024))).toBe(EINVAL);
    expect(p.run(p.sys.fcntl(fd, F_DUPFD, -1))).toBe(EINVAL);
    expect(run(p, p.sys.dup2(fd, fd))).toBe(fd);
    expect(run(p, p.sys.dup2(fd, 20))).toBe(20);
    expect(p.run(p.sys.dup2(99, 21))).toBe(EBADF);
    expect(p.run(p.sys.dup2(fd, 1024))).toBe(EBADF);
    expect(p.run(p.sys.dup3(fd, fd, 0))).toBe(EINVAL);
    expect(p.run(p.sys.dup3(fd, 22, 1))).toBe(EINVAL);
    expect(run(p, p.sys.dup3(fd, 22, O_CLOEXEC))).toBe(22);
    expect(run(p, p.sys.fcntl(22, F_GETFD))).toBe(FD_CLOEXEC);
    run(p, p.sys.fcntl(22, F_SETFD, 0));
    expect(run(p, p.sys.fcntl(22, F_GETFD))).toBe(0);
    expect(kernel.fs.openFiles).toBe(1);
  });

  it("close what dup2 lands on", () => {
    const a = install(probe("a"));
    const b = install(probe("b"));
    run(p, p.sys.dup2(a, b));
    expect(log).toEqual(["release b"]);
  });

  it("lose their file at exec when they are close-on-exec", () => {
    install(probe("kept"));
    const gone = install(probe("gone"), O_CLOEXEC);
    run(p, p.exec());
    expect(log).toEqual(["release gone"]);
    expect(p.files.get(gone)).toBe(EBADF);
    expect(p.files.size).toBe(1);
  });
});

describe("a file", () => {
  it("is released by the close that drops its last reference, before that returns", () => {
    const fd = install(probe("x"));
    const other = run(p, p.sys.dup(fd));
    run(p, p.sys.close(fd));
    expect(log).toEqual([]);
    run(p, p.sys.close(other));
    expect(log).toEqual(["release x"]);
  });

  it("is released after the call when the last put comes inside one, never under the locks held there", () => {
    const m = new Mutex(kernel.sched, new LockClass("m"));
    p.run(
      (function* (): Step<void> {
        yield* m.lock();
        kernel.fs.fput(probe("a"));
        kernel.fs.fput(probe("b"));
        log.push("still here");
        m.unlock();
      })(),
    );
    expect(log).toEqual(["still here", "release b", "release a"]);
  });

  it("is released by a worker when the last put comes from no process", () => {
    kernel.fs.fput(probe("outside"));
    expect(log).toEqual([]);
    kernel.sched.settle();
    expect(log).toEqual(["release outside"]);
    kernel.sched.spawn("kthread", function* () {
      kernel.fs.fput(probe("thread"));
      log.push("put");
    });
    kernel.sched.settle();
    expect(log.slice(1)).toEqual(["put", "release thread"]);
  });

  it("can be taken by who only has a pointer, unless it is already dying", () => {
    const f = probe("x");
    expect(f.getActive()).toBe(true);
    kernel.fs.fput(f);
    kernel.fs.fput(f);
    expect(f.getActive()).toBe(false);
    expect(() => f.get()).toThrow(KernelBug);
    kernel.sched.settle();
  });

  it("lives through a call that is under way while it is closed", () => {
    const m = new Mutex(kernel.sched, new LockClass("m"));
    const fd = install(
      probe("x", {
        *ioctl() {
          yield* m.lock();
          m.unlock();
          log.push("ioctl done");
          return 0;
        },
      }),
    );
    const t = p.newThread();
    p.run(
      (function* (): Step<void> {
        yield* m.lock();
        kernel.sched.start(t, p.sys.ioctl(fd, 1, 0n));
        kernel.sched.step(t);
        yield* p.sys.close(fd);
        log.push("closed");
        m.unlock();
      })(),
    );
    kernel.sched.finish(t);
    expect(log).toEqual(["closed", "ioctl done", "release x"]);
  });

  it("fails as Linux does where it lacks an operation", () => {
    const fd = install(probe("x"));
    const { sys } = p;
    expect(p.run(sys.ioctl(fd, 0x3b80, 0n))).toBe(ENOTTY);
    expect(p.run(sys.read(fd, buf, 1))).toBe(EINVAL);
    expect(p.run(sys.write(fd, buf, 1))).toBe(EINVAL);
    expect(p.run(sys.lseek(fd, 0n, SEEK_SET))).toBe(ESPIPE);
    expect(p.run(sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, fd))).toBe(ENODEV);
    expect(p.run(sys.ftruncate(fd, 0n))).toBe(EINVAL);
    expect(p.run(sys.ftruncate(fd, -1n))).toBe(EINVAL);
    expect(p.run(sys.fsync(fd))).toBe(EINVAL);
    expect(p.run(sys.fcntl(fd, F_ADD_SEALS, 0))).toBe(EINVAL);
    expect(p.run(sys.fcntl(fd, F_GET_SEALS))).toBe(EINVAL);
    expect(p.run(sys.fcntl(fd, 12345))).toBe(EINVAL);
    expect(p.run(sys.pread(fd, buf, 1, -1n))).toBe(EINVAL);
    const poll = [{ fd, events: 0x5, revents: 0 }];
    expect(p.run(sys.poll(poll, -1))).toBe(1);
    expect(poll[0]?.revents).toBe(0x5);
  });

  it("answers EBADF to every call once closed", () => {
    const { sys } = p;
    const calls: Step<unknown>[] = [
      sys.close(7),
      sys.ioctl(7, 0, 0n),
      sys.read(7, buf, 1),
      sys.write(7, buf, 1),
      sys.pread(7, buf, 1, 0n),
      sys.pwrite(7, buf, 1, 0n),
      sys.lseek(7, 0n, 0),
      sys.mmap(0n, 4096n, PROT_READ, MAP_PRIVATE, 7),
      sys.ftruncate(7, 0n),
      sys.fsync(7),
      sys.fstat(7),
      sys.dup(7),
      sys.fcntl(7, F_GETFL),
      sys.readlinkFd(7),
      sys.fdinfo(7),
      sys.close(-1),
    ];
    expect(calls.map((c) => p.run(c))).toEqual(calls.map(() => EBADF));
  });

  it("turns an ioctl that its driver does not know into ENOTTY, and serves the common ones itself", () => {
    const fd = install(
      probe("x", {
        *ioctl(_f, cmd) {
          return cmd === 5 ? 42 : ENOIOCTLCMD;
        },
      }),
    );
    expect(p.run(p.sys.ioctl(fd, 5, 0n))).toBe(42);
    expect(p.run(p.sys.ioctl(fd, 6, 0n))).toBe(ENOTTY);
    expect(p.run(p.sys.ioctl(fd, 0x5451, 0n))).toBe(0);
    expect(p.files.cloexec(fd)).toBe(true);
    expect(p.run(p.sys.ioctl(fd, 0x5450, 0n))).toBe(0);
    expect(p.files.cloexec(fd)).toBe(false);
    poke(p, buf, new Uint8Array([1, 0, 0, 0]));
    expect(p.run(p.sys.ioctl(fd, 0x5421, buf))).toBe(0);
    expect((p.files.get(fd) as File).flags & O_NONBLOCK).toBe(O_NONBLOCK);
    expect(p.run(p.sys.ioctl(fd, 0x5421, 0n))).toBe(EFAULT);
  });

  it("moves its position by what was read or written, and not for pread", () => {
    const seen: bigint[] = [];
    const fd = install(
      probe("x", {
        *read(_f, _b, n, pos) {
          seen.push(pos);
          return n;
        },
        *write(_f, _b, n, pos) {
          seen.push(pos);
          return n;
        },
      }),
    );
    run(p, p.sys.read(fd, buf, 3));
    run(p, p.sys.pread(fd, buf, 5, 100n));
    run(p, p.sys.pwrite(fd, buf, 5, 200n));
    run(p, p.sys.write(fd, buf, 4));
    run(p, p.sys.read(fd, buf, 1));
    expect(seen).toEqual([0n, 100n, 200n, 3n, 7n]);
    expect(p.run(p.sys.read(fd, 0xffff_ffff_ffff_f000n, 1))).toBe(EFAULT);
    expect(p.run(p.sys.read(fd, buf, -1))).toBe(EINVAL);
  });

  it("is refused by its access mode", () => {
    const [r, w] = [run(p, p.sys.open("/dev/null", O_RDONLY)), run(p, p.sys.open("/dev/null", O_WRONLY))];
    expect(p.run(p.sys.write(r, buf, 1))).toBe(EBADF);
    expect(p.run(p.sys.read(w, buf, 1))).toBe(EBADF);
    expect(run(p, p.sys.write(w, buf, 9))).toBe(9);
    expect(run(p, p.sys.read(r, buf, 9))).toBe(0);
    expect(p.run(p.sys.mmap(0n, 4096n, PROT_READ, MAP_PRIVATE, w))).toBe(EACCES);
  });

  it("shows its flags, and lets only the status be changed", () => {
    const fd = run(p, p.sys.open("/dev/null", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    expect(run(p, p.sys.fcntl(fd, F_GETFL))).toBe(O_RDWR | O_NONBLOCK | O_LARGEFILE);
    run(p, p.sys.fcntl(fd, F_SETFL, O_APPEND | O_WRONLY));
    expect(run(p, p.sys.fcntl(fd, F_GETFL))).toBe(O_RDWR | O_APPEND | O_LARGEFILE);
  });
});

describe("opening a path", () => {
  it("finds device nodes, and passes on what their driver says", () => {
    let answer: typeof ENODEV | undefined;
    kernel.fs.registerDevice("/dev/vfio/devices/vfio0", {
      major: 511,
      minor: 3,
      ops: probe("unused").ops,
      *open(file) {
        log.push(`open ${file.path}`);
        file.privateData = 7;
        return answer;
      },
    });
    kernel.fs.openFiles--;
    const fd = run(p, p.sys.open("/dev/vfio/devices/vfio0", O_RDWR));
    expect((p.files.get(fd) as File).privateData).toBe(7);
    expect(run(p, p.sys.readlinkFd(fd))).toBe("/dev/vfio/devices/vfio0");
    const st = run(p, p.sys.fstat(fd));
    expect([st.mode, st.rdev]).toEqual([S_IFCHR | 0o600, (511 << 8) | 3]);
    answer = ENODEV;
    expect(p.run(p.sys.open("/dev/vfio/devices/vfio0", O_RDWR))).toBe(ENODEV);
    expect(p.files.size).toBe(1);
    kernel.fs.unregisterDevice("/dev/vfio/devices/vfio0");
    expect(p.run(p.sys.open("/dev/vfio/devices/vfio0", O_RDWR))).toBe(ENOENT);
    run(p, p.sys.close(fd));
    // The open that failed is not released: it never was open.
    expect(log).toEqual(["open /dev/vfio/devices/vfio0", "open /dev/vfio/devices/vfio0", "release unused"]);
    expect(() => kernel.fs.unregisterDevice("/dev/vfio/devices/vfio0")).toThrow(KernelBug);
    expect(() => kernel.fs.registerDevice("/dev/null", { major: 1, minor: 3, ops: probe("n").ops })).toThrow(KernelBug);
    kernel.fs.openFiles--;
  });

  it("answers for what cannot be opened", () => {
    const open = (path: string, flags: number): unknown => p.run(p.sys.open(path, flags));
    expect(open("/dev/nothing", O_RDWR)).toBe(ENOENT);
    expect(open("/dev", O_RDWR)).toBe(EISDIR);
    const dir = run(p, p.sys.open("/dev", O_RDONLY | O_DIRECTORY));
    expect(p.run(p.sys.read(dir, buf, 1))).toBe(EISDIR);
    run(p, p.sys.close(dir));
    expect(open("/dev/null", O_RDWR | O_DIRECTORY)).toBe(ENOTDIR);
    expect(open("/dev/null", O_CREAT | O_EXCL)).toBe(EEXIST);
    expect(open("/proc/self/fd/9", O_RDONLY)).toBe(ENOENT);
    const [r] = run(p, p.sys.pipe());
    expect(open(`/proc/self/fd/${run(p, p.sys.eventfd(0))}`, O_RDWR)).toBe(ENXIO);
    expect(r).toBe(0);
  });

  it("keeps root's devices from others", () => {
    kernel.fs.registerDevice("/dev/iommu", { major: 10, minor: 127, ops: { name: "iommu" } });
    const u = unprivileged(kernel, 0n);
    expect(u.run(u.sys.open("/dev/iommu", O_RDWR))).toBe(EACCES);
    expect(u.run(u.sys.open("/dev/null", O_RDWR))).toBe(0);
    u.creds.capabilities.add("CAP_DAC_OVERRIDE");
    expect(u.run(u.sys.open("/dev/iommu", O_RDWR))).toBe(1);
  });

  it("makes and keeps files below /tmp", () => {
    const fd = run(p, p.sys.open("/tmp/f", O_RDWR | O_CREAT, 0o600));
    run(p, p.sys.write(fd, buf, poke(p, buf, "hello")));
    run(p, p.sys.close(fd));
    expect(p.run(p.sys.open("/tmp/f", O_RDWR | O_CREAT | O_EXCL))).toBe(EEXIST);
    const again = run(p, p.sys.open("/tmp/f", O_RDONLY));
    expect(run(p, p.sys.read(again, buf + 100n, 50))).toBe(5);
    expect(text(peek(p, buf + 100n, 5))).toBe("hello");
    expect(run(p, p.sys.lseek(again, 0n, SEEK_END))).toBe(5n);
    run(p, p.sys.close(run(p, p.sys.open("/tmp/f", O_RDWR | O_TRUNC))));
    expect(run(p, p.sys.fstat(again)).size).toBe(0n);
    const u = unprivileged(kernel, 0n);
    expect(u.run(u.sys.open("/tmp/f", O_RDONLY))).toBe(EACCES);
    expect(p.run(p.sys.open("/tmp/none", O_RDWR))).toBe(ENOENT);
    expect(kernel.fs.unlink("/tmp/f")).toBeUndefined();
    expect(kernel.fs.unlink("/tmp/f")).toBe(ENOENT);
  });

  it("gives with O_PATH a descriptor that only names the file", () => {
    run(p, p.sys.close(run(p, p.sys.open("/tmp/f", O_RDWR | O_CREAT))));
    const nul = run(p, p.sys.open("/dev/null", O_PATH));
    expect(run(p, p.sys.fstat(nul)).mode).toBe(S_IFCHR | 0o666);
    const opened = run(p, p.sys.open(`/proc/self/fd/${nul}`, O_RDWR));
    expect(run(p, p.sys.write(opened, buf, 3))).toBe(3);
    const fd = run(p, p.sys.open("/tmp/f", O_PATH));
    const { sys } = p;
    for (const call of [
      sys.read(fd, buf, 1),
      sys.ioctl(fd, 1, 0n),
      sys.lseek(fd, 0n, 0),
      sys.mmap(0n, 4096n, 1, MAP_SHARED, fd),
      sys.fcntl(fd, F_SETFL, 0),
    ]) {
      expect(p.run<unknown>(call)).toBe(EBADF);
    }
    expect(p.files.get(fd)).toBe(EBADF);
    expect(run(p, sys.fcntl(fd, F_GETFL))).toBe(O_PATH);
    expect(run(p, sys.readlinkFd(run(p, sys.dup(fd))))).toBe("/tmp/f");
    expect(run(p, sys.close(fd))).toBeUndefined();
  });

  it("shows a descriptor's state in fdinfo", () => {
    const fd = run(p, p.sys.eventfd(3, O_CLOEXEC));
    const info = run(p, p.sys.fdinfo(fd)).split("\n");
    expect(info.slice(0, 3)).toEqual(["pos:\t0", "flags:\t02000002", "mnt_id:\t15"]);
    expect(info[4]).toBe("eventfd-count:                3");
  });
});

describe("processes", () => {
  it("share open files with a forked child, position and all, but not descriptors", () => {
    const fd = run(p, p.sys.open("/tmp/f", O_RDWR | O_CREAT));
    const child = p.fork();
    run(child, child.sys.write(fd, buf, poke(child, buf, "abc")));
    expect((p.files.get(fd) as File).pos).toBe(3n);
    run(child, child.sys.close(fd));
    expect(p.files.get(fd)).not.toBe(EBADF);
    expect(child.files.get(fd)).toBe(EBADF);
    child.rlimits.nofile = 1;
    expect(p.rlimits.nofile).toBe(1024);
    expect(child.pid).not.toBe(p.pid);
  });

  it("end with their memory first, then their files, the last descriptor's file first", () => {
    const child = p.fork();
    const maps = probe("mapped", {
      mmap: (_f, vma) => {
        vma.ops = { fault: () => "SIGBUS", close: () => log.push("unmapped") };
        return undefined;
      },
    });
    for (const f of [probe("fd0"), maps, probe("fd2")]) child.files.install(ok(child.files.getUnused(0)), f);
    run(child, child.sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, 1));
    run(child, child.sys.close(1));
    expect(log).toEqual([]);
    child.run(child.exit());
    expect(log).toEqual(["unmapped", "release fd2", "release fd0", "release mapped"]);
    expect(() => child.run(child.exit())).toThrow(KernelBug);
  });

  it("lose root's capabilities with root's uid", () => {
    const child = p.fork();
    expect(child.capable("CAP_IPC_LOCK")).toBe(true);
    child.setUid(1234);
    expect(child.capable("CAP_IPC_LOCK")).toBe(false);
    expect(p.capable("CAP_IPC_LOCK")).toBe(true);
    expect(child.creds.user).toBe(kernel.fs.user(1234));
  });
});
