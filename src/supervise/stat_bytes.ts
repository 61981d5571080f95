/** What fstat says of a file of the embedded kernel, as the host's struct. */
import { type FileStatus, STATX_BASIC_STATS } from "../host/index.ts";
import type { FileStat } from "../kernel/fs/file.ts";

/** Minor number of the anonymous file system in which files without a name are. */
const ANON_DEV = 0x10;
const NEVER = { sec: 0n, nsec: 0 };

/** Times are 0: the embedded kernel keeps none. `uid`, `gid`: who started barlink. */
export function hostStatus(s: Required<FileStat>, uid: number, gid: number): FileStatus {
  return {
    mask: STATX_BASIC_STATS,
    blksize: s.blksize,
    nlink: s.nlink,
    uid,
    gid,
    mode: s.mode,
    ino: BigInt(s.ino),
    size: s.size,
    blocks: s.blocks,
    atime: NEVER,
    btime: NEVER,
    ctime: NEVER,
    mtime: NEVER,
    rdevMajor: s.rdev >>> 8,
    rdevMinor: s.rdev & 0xff,
    devMajor: 0,
    devMinor: ANON_DEV,
    mountId: 0n,
  };
}
