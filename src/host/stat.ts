/** What a file is (statx(2)), and how struct stat and struct statx say so. */
import { ENAMETOOLONG, type Errno } from "../lib/errno.ts";
import { arch, checkVoid, nr, putPath, reserve, syscall6 } from "./ffi.ts";

export const AT_SYMLINK_NOFOLLOW = 0x100;
export const AT_NO_AUTOMOUNT = 0x800;
export const AT_EMPTY_PATH = 0x1000;
export const STATX_BASIC_STATS = 0x7ff;
export const STATX_BTIME = 0x800;
export const STATX_MNT_ID = 0x1000;

export interface StatTime {
  /** Seconds since 1970. */
  readonly sec: bigint;
  readonly nsec: number;
}

export interface FileStatus {
  readonly mask: number;
  readonly blksize: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  /** S_IF* and permissions. */
  readonly mode: number;
  readonly ino: bigint;
  readonly size: bigint;
  /** Of 512 bytes. */
  readonly blocks: bigint;
  readonly atime: StatTime;
  readonly btime: StatTime;
  readonly ctime: StatTime;
  readonly mtime: StatTime;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly devMajor: number;
  readonly devMinor: number;
  readonly mountId: bigint;
}

const STATX = nr("statx");
export const STATX_BYTES = 256;
const buffer = reserve(STATX_BYTES);
const view = new DataView(buffer.bytes.buffer, buffer.bytes.byteOffset, STATX_BYTES);

/** The status of a path, or of `dirfd` itself (path "" with AT_EMPTY_PATH). */
export function statAt(dirfd: number, path: string | Uint8Array, flags = 0): FileStatus | Errno {
  const address = putPath(path);
  if (address === 0) return ENAMETOOLONG;
  const failed = checkVoid(syscall6(STATX, dirfd, address, flags, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, buffer.address, 0));
  if (failed !== undefined) return failed;
  const time = (at: number): StatTime => ({ sec: view.getBigInt64(at, true), nsec: view.getUint32(at + 8, true) });
  return {
    mask: view.getUint32(0, true),
    blksize: view.getUint32(4, true),
    nlink: view.getUint32(16, true),
    uid: view.getUint32(20, true),
    gid: view.getUint32(24, true),
    mode: view.getUint16(28, true),
    ino: view.getBigUint64(32, true),
    size: view.getBigUint64(40, true),
    blocks: view.getBigUint64(48, true),
    atime: time(64),
    btime: time(80),
    ctime: time(96),
    mtime: time(112),
    rdevMajor: view.getUint32(128, true),
    rdevMinor: view.getUint32(132, true),
    devMajor: view.getUint32(136, true),
    devMinor: view.getUint32(140, true),
    mountId: view.getBigUint64(144, true),
  };
}

export function statFd(fd: number): FileStatus | Errno {
  return statAt(fd, "", AT_EMPTY_PATH);
}

/** A device number as struct stat holds it. */
export function encodeDev(major: number, minor: number): bigint {
  return (BigInt(minor) & 0xffn) | (BigInt(major) << 8n) | ((BigInt(minor) & ~0xffn) << 12n);
}

/** struct stat of this architecture (asm/stat.h): 144 bytes on x86-64, 128 on arm64. */
export function encodeStat(s: FileStatus): Uint8Array {
  const x64 = arch.name === "x64";
  const bytes = new Uint8Array(x64 ? 144 : 128);
  const out = new DataView(bytes.buffer);
  out.setBigUint64(0, encodeDev(s.devMajor, s.devMinor), true);
  out.setBigUint64(8, s.ino, true);
  if (x64) out.setBigUint64(16, BigInt(s.nlink), true);
  else out.setUint32(20, s.nlink, true);
  const ids = x64 ? 28 : 24;
  out.setUint32(x64 ? 24 : 16, s.mode, true);
  out.setUint32(ids, s.uid, true);
  out.setUint32(ids + 4, s.gid, true);
  out.setBigUint64(x64 ? 40 : 32, encodeDev(s.rdevMajor, s.rdevMinor), true);
  out.setBigUint64(48, s.size, true);
  out.setUint32(56, s.blksize, true);
  out.setBigUint64(64, s.blocks, true);
  for (const [at, t] of [
    [72, s.atime],
    [88, s.mtime],
    [104, s.ctime],
  ] as const) {
    out.setBigInt64(at, t.sec, true);
    out.setBigUint64(at + 8, BigInt(t.nsec), true);
  }
  return bytes;
}

/** struct statx: 256 bytes on every architecture. */
export function encodeStatx(s: FileStatus): Uint8Array {
  const bytes = new Uint8Array(STATX_BYTES);
  const out = new DataView(bytes.buffer);
  out.setUint32(0, s.mask, true);
  out.setUint32(4, s.blksize, true);
  out.setUint32(16, s.nlink, true);
  out.setUint32(20, s.uid, true);
  out.setUint32(24, s.gid, true);
  out.setUint16(28, s.mode, true);
  out.setBigUint64(32, s.ino, true);
  out.setBigUint64(40, s.size, true);
  out.setBigUint64(48, s.blocks, true);
  for (const [at, t] of [
    [64, s.atime],
    [80, s.btime],
    [96, s.ctime],
    [112, s.mtime],
  ] as const) {
    out.setBigInt64(at, t.sec, true);
    out.setUint32(at + 8, t.nsec, true);
  }
  out.setUint32(128, s.rdevMajor, true);
  out.setUint32(132, s.rdevMinor, true);
  out.setUint32(136, s.devMajor, true);
  out.setUint32(140, s.devMinor, true);
  out.setBigUint64(144, s.mountId, true);
  return bytes;
}
