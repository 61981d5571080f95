import { fstatSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  AT_FDCWD,
  AT_SYMLINK_NOFOLLOW,
  arch,
  closeFd,
  createHeldMemfd,
  dupFd,
  encodeDev,
  encodeStat,
  encodeStatx,
  FdLinks,
  fdFlags,
  ftruncateFd,
  heldMemfdId,
  IN_CLOSE,
  IN_CLOSE_WRITE,
  IN_IGNORED,
  Inotify,
  isOpen,
  kill,
  MFD_CLOEXEC,
  memfdCreate,
  openAt,
  POLLIN,
  PollSet,
  preadFd,
  punchHole,
  pwriteFd,
  RESOLVE_BENEATH,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
  readFd,
  readLinkAt,
  reopenFd,
  setFdFlags,
  statAt,
  statFd,
  waitPid,
  writeFd,
} from "../../src/host/index.ts";
import { failure, leavesNothing, ok, open, start } from "./support.ts";

leavesNothing();

const dir = mkdtempSync(join(tmpdir(), "barlink-files-"));
mkdirSync(join(dir, "in"));
writeFileSync(join(dir, "in", "file"), "hello");
symlinkSync("file", join(dir, "in", "link"));
symlinkSync("/etc/passwd", join(dir, "in", "out"));
symlinkSync("../..", join(dir, "in", "up"));
afterAll(() => rmSync(dir, { recursive: true }));

const O_PATH = 0o10000000;
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;

describe("a memory file", () => {
  it("is sized, written and read at any offset, and its holes are zeros", () => {
    const fd = ok(memfdCreate("test", MFD_CLOEXEC));
    expect(ftruncateFd(fd, 1n << 43n)).toBeUndefined();
    const far = (3n << 40n) + 0xffen;
    for (const length of [4, 9000]) {
      const bytes = new Uint8Array(length).map((_, i) => i + 1);
      expect(pwriteFd(fd, bytes, far)).toBe(length);
      const back = new Uint8Array(length + 2);
      expect(preadFd(fd, back, far - 1n)).toBe(length + 2);
      expect([...back.subarray(1, -1)]).toEqual([...bytes]);
      expect(back[0]).toBe(0);
      expect(punchHole(fd, 3n << 40n, 1 << 20)).toBeUndefined();
      preadFd(fd, back, far - 1n);
      expect(back.every((b) => b === 0)).toBe(true);
    }
    ftruncateFd(fd, 10);
    expect(preadFd(fd, new Uint8Array(20), 0)).toBe(10);
    expect(preadFd(fd, new Uint8Array(20), 10)).toBe(0);
    expect(failure(ftruncateFd(fd, -1))).toBe("EINVAL");
    closeFd(fd);
    expect(failure(preadFd(fd, new Uint8Array(20), 0))).toBe("EBADF");
    expect(failure(memfdCreate("x".repeat(300)))).toBe("EINVAL");
    expect(failure(memfdCreate("a\0b"))).toBe("EINVAL");
  });

  it("that is held is told by its id from any other descriptor, in any process", () => {
    const fd = ok(createHeldMemfd(4_000_000_000));
    const copy = ok(dupFd(fd, 100));
    expect(copy).toBeGreaterThanOrEqual(100);
    const plain = ok(memfdCreate("barlink:x12"));
    const child = start({
      program: "sleep",
      argv: ["sleep", "100"],
      fds: [
        [5, fd],
        [6, plain],
      ],
    });
    for (const pid of [process.pid, child.pid]) {
      const links = ok(FdLinks.open(pid));
      const [held, other] = pid === process.pid ? [copy, plain] : [5, 6];
      expect(links.heldId(held)).toBe(4_000_000_000);
      expect(heldMemfdId(pid, held)).toBe(4_000_000_000);
      expect(links.heldId(other)).toBe(0);
      expect(heldMemfdId(pid, other)).toBe(0);
      expect(links.heldId(12345)).toBe(-1);
      expect(heldMemfdId(pid, 12345)).toBe(-1);
      expect(links.heldId(-1)).toBe(-1);
      expect(links.read(held)).toBe("/memfd:barlink:4000000000 (deleted)");
      expect(failure(links.read(12345))).toBe("ENOENT");
      links.close();
    }
    const links = ok(FdLinks.open(child.pid));
    kill(child.pid, 9);
    waitPid(child.pid, { block: true });
    // The folder stays that process's: whoever gets its pid is not found here.
    expect(links.heldId(5)).toSatisfy((id) => id === -1 || failure(id) === "ESRCH");
    links.close();
    expect(failure(FdLinks.open(child.pid))).toBe("ENOENT");
    for (const f of [fd, copy, plain]) closeFd(f);
  });
});

describe("inotify", () => {
  it("sees the last close of a held memfd exactly once, whoever closes it", () => {
    const inotify = new Inotify();
    const fd = ok(createHeldMemfd(1));
    const watch = ok(inotify.watchFd(fd, IN_CLOSE));
    expect(inotify.watchFd(fd, IN_CLOSE)).toBe(watch);
    const events: [number, number][] = [];
    const drain = (): number => inotify.drain((w, mask) => events.push([w, mask]));
    const copy = ok(dupFd(fd));
    closeFd(fd);
    expect(drain()).toBe(0);
    const child = start({ program: "sleep", argv: ["sleep", "100"], fds: [[5, copy]] });
    closeFd(copy);
    expect(drain()).toBe(0);
    kill(child.pid, 9);
    waitPid(child.pid, { block: true });
    // The pages go with the inode, and the watch with it.
    expect(drain()).toBe(2);
    expect(events).toEqual([
      [watch, IN_CLOSE_WRITE],
      [watch, IN_IGNORED],
    ]);
    expect(failure(inotify.unwatch(watch))).toBe("EINVAL");
    inotify.close();
  });

  it("gives many events in order, and can watch and unwatch from within", () => {
    const inotify = new Inotify();
    const set = new PollSet([{ fd: inotify.fd, events: POLLIN }]);
    expect(set.wait(0n)).toBe(0);
    const watches = new Map<number, number>();
    for (let i = 0; i < 2000; i++) {
      const fd = ok(createHeldMemfd(i + 1));
      watches.set(ok(inotify.watchFd(fd, IN_CLOSE)), i);
      closeFd(fd);
    }
    expect(set.wait(0n)).toBe(1);
    const order: number[] = [];
    const total = inotify.drain((w, mask) => {
      if ((mask & IN_CLOSE) !== 0) order.push(watches.get(w) ?? -1);
    });
    expect(total).toBe(4000);
    expect(order).toEqual(Array.from({ length: 2000 }, (_, i) => i));
    expect(inotify.drain(() => {})).toBe(0);
    expect(failure(inotify.watch("/no/such/file", IN_CLOSE))).toBe("ENOENT");
    inotify.close();
  });

  it("does not see the close of a memfd that was not opened anew", () => {
    const inotify = new Inotify();
    const raw = ok(memfdCreate("raw"));
    const fd = ok(dupFd(raw));
    ok(inotify.watchFd(raw, IN_CLOSE));
    const opened = ok(reopenFd(raw));
    closeFd(opened);
    expect(inotify.drain((_, mask) => expect(mask).toBe(IN_CLOSE_WRITE))).toBe(1);
    closeFd(raw);
    expect(inotify.drain((_, mask) => expect(mask & IN_CLOSE).toBe(0))).toBe(0);
    closeFd(fd);
    inotify.close();
  });
});

describe("openat2", () => {
  const at = (path: string, resolve: number, flags = O_PATH): number | unknown => {
    const root = open(join(dir, "in"), O_PATH);
    const fd = openAt(root, path, flags, { resolve });
    closeFd(root);
    if (typeof fd === "number") closeFd(fd);
    return typeof fd === "number" ? "open" : failure(fd);
  };

  it("keeps a path in its folder, when asked to", () => {
    expect(at("file", RESOLVE_BENEATH)).toBe("open");
    expect(at("link", RESOLVE_BENEATH)).toBe("open");
    expect(at("link", RESOLVE_NO_SYMLINKS)).toBe("ELOOP");
    expect(at("out", RESOLVE_BENEATH)).toBe("EXDEV");
    expect(at("out", RESOLVE_IN_ROOT)).toBe("ENOENT");
    expect(at("up/in/file", RESOLVE_BENEATH)).toBe("EXDEV");
    expect(at("../in/file", RESOLVE_BENEATH)).toBe("EXDEV");
    expect(at("../file", RESOLVE_IN_ROOT)).toBe("open");
    expect(at("/proc/self/exe", RESOLVE_NO_MAGICLINKS)).toBe("ELOOP");
  });

  it("makes files, and refuses what no path can be", () => {
    const root = open(dir, O_PATH);
    const fd = ok(openAt(root, "made", O_RDWR | 0o100, { mode: 0o640 }));
    expect(ok(statFd(fd)).mode & 0o777).toBe(0o640);
    closeFd(fd);
    expect(failure(openAt(root, "a\0b", O_PATH))).toBe("ENAMETOOLONG");
    expect(failure(openAt(root, "x".repeat(5000), O_PATH))).toBe("ENAMETOOLONG");
    expect(failure(openAt(root, "absent", O_PATH))).toBe("ENOENT");
    closeFd(root);
    expect(readLinkAt(AT_FDCWD, join(dir, "in", "up"))).toBe("../..");
    expect(failure(readLinkAt(AT_FDCWD, dir))).toBe("EINVAL");
  });
});

describe("statx", () => {
  it("says what Node's stat says, and follows links only when it may", () => {
    for (const path of [join(dir, "in/file"), dir, "/dev/null", "/dev/zero", "/proc/self/status", "/"]) {
      const ours = ok(statAt(AT_FDCWD, path));
      const theirs = lstatSync(path, { bigint: true });
      expect([ours.mode, ours.uid, ours.gid, ours.nlink].map(BigInt)).toEqual([theirs.mode, theirs.uid, theirs.gid, theirs.nlink]);
      expect([ours.ino, encodeDev(ours.devMajor, ours.devMinor), encodeDev(ours.rdevMajor, ours.rdevMinor)]).toEqual([
        theirs.ino,
        theirs.dev,
        theirs.rdev,
      ]);
      expect([ours.size, ours.blocks, BigInt(ours.blksize)]).toEqual([theirs.size, theirs.blocks, theirs.blksize]);
    }
    const link = join(dir, "in/link");
    expect(ok(statAt(AT_FDCWD, link)).size).toBe(5n);
    expect(ok(statAt(AT_FDCWD, link, AT_SYMLINK_NOFOLLOW)).size).toBe(4n);
    expect(failure(statAt(AT_FDCWD, "/no/such"))).toBe("ENOENT");
    expect(failure(statFd(-1))).toBe("EBADF");
  });

  it.skipIf(arch.name !== "x64")("is written as struct stat as the C compiler lays it out on x86-64", () => {
    const fd = open("/dev/zero");
    const s = ok(statFd(fd));
    closeFd(fd);
    const bytes = encodeStat(s);
    const view = new DataView(bytes.buffer);
    // offsetof(struct stat, st_*) by gcc: dev 0, ino 8, nlink 16, mode 24, uid 28, gid 32, rdev 40, size 48, blksize 56, blocks 64, mtim 88.
    expect(bytes.length).toBe(144);
    expect(view.getUint32(24, true)).toBe(s.mode);
    expect(view.getBigUint64(40, true)).toBe(0x105n);
    expect(view.getBigUint64(16, true)).toBe(BigInt(s.nlink));
    expect(view.getBigInt64(88, true)).toBe(s.mtime.sec);
    expect(view.getBigUint64(96, true)).toBe(BigInt(s.mtime.nsec));
    expect(encodeDev(0x123, 0x45678)).toBe(0x4561_2378n);
  });

  it("is written back as it was read", () => {
    const s = ok(statAt(AT_FDCWD, "/dev/null"));
    const bytes = encodeStatx(s);
    const view = new DataView(bytes.buffer);
    expect(bytes.length).toBe(256);
    expect([view.getUint32(128, true), view.getUint32(132, true)]).toEqual([1, 3]);
    expect(view.getUint16(28, true)).toBe(s.mode);
    expect(view.getBigUint64(32, true)).toBe(s.ino);
  });
});

describe("a descriptor", () => {
  it("is read, written, duplicated, and closed once", () => {
    const fd = open(join(dir, "in/file"), O_RDWR);
    expect(isOpen(fd)).toBe(true);
    const big = new Uint8Array(5000);
    expect(readFd(fd, big)).toBe(5);
    expect(Buffer.from(big.subarray(0, 5)).toString()).toBe("hello");
    expect(writeFd(fd, big)).toBe(5000);
    expect(readFd(fd, new Uint8Array(4))).toBe(0);
    expect(fstatSync(fd).size).toBe(5005);
    expect(ok(fdFlags(fd)) & O_NONBLOCK).toBe(0);
    expect(setFdFlags(fd, O_NONBLOCK)).toBeUndefined();
    expect(ok(fdFlags(fd)) & O_NONBLOCK).toBe(O_NONBLOCK);
    expect(closeFd(fd)).toBeUndefined();
    expect(failure(closeFd(fd))).toBe("EBADF");
    expect(isOpen(fd)).toBe(false);
    expect(failure(dupFd(fd))).toBe("EBADF");
    expect(failure(readFd(fd, big))).toBe("EBADF");
    expect(failure(writeFd(fd, big.subarray(0, 1)))).toBe("EBADF");
  });
});
