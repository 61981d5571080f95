/**
 * Taking a file's pages away from whoever has them mapped, and keeping what they hold.
 *
 * Copying first and truncating then would lose what is stored in between. So the pages go into pipes by splice(2), which
 * copies nothing and keeps the pages themselves; then the file is truncated, after which nobody can store into them any
 * more; then the pipes are read. What does not fit into pipes (`MAX_PIPES`, or the user's limit: pipe-user-pages-soft) is
 * copied first after all.
 */
import { Errno } from "../lib/errno.ts";
import { closeFd, fcntl, preadFd, readFd } from "./fd.ts";
import { check, libcFunction, reserve } from "./ffi.ts";
import { ftruncateFd } from "./memfd.ts";

const pipe2 = libcFunction("pipe2", "int", ["uintptr_t", "int"]);
const spliceFrom = libcFunction("splice", "intptr_t", ["int", "uintptr_t", "int", "uintptr_t", "uintptr_t", "uint"]);
const ends = reserve(8);
const position = reserve(8);
const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
const SPLICE_F_NONBLOCK = 2;
const F_SETPIPE_SZ = 1031;
const F_GETPIPE_SZ = 1032;
/** What an ordinary user's pipe may hold. */
const PIPE_BYTES = 1 << 20;
const MAX_PIPES = 64;
/** Smaller ones are not worth their descriptors. */
const LEAST_BYTES = 1 << 16;

/** Bytes of a file. */
export interface FilePiece {
  readonly start: number;
  readonly bytes: Uint8Array;
}

interface Pipe {
  readonly read: number;
  readonly write: number;
  /** What it holds, in order. */
  readonly runs: { start: number; length: number }[];
}

/** Truncates a memfd to nothing; returns what `ranges` of it held, in order. Past its end there is nothing to keep. */
export function truncateKeeping(fd: number, ranges: Iterable<{ readonly start: number; readonly end: number }>): FilePiece[] {
  const pipes: Pipe[] = [];
  const pieces: FilePiece[] = [];
  for (const { start, end } of ranges) {
    for (let at = start; at < end; ) {
      const n = steal(fd, at, end - at, pipes) ?? copy(fd, at, Math.min(end - at, PIPE_BYTES), pieces);
      if (n === 0) break;
      at += n;
    }
  }
  ftruncateFd(fd, 0);
  for (const pipe of pipes) {
    for (const run of pipe.runs) pieces.push({ start: run.start, bytes: drain(pipe.read, run.length) });
    closeFd(pipe.read);
    closeFd(pipe.write);
  }
  return pieces.sort((a, b) => a.start - b.start);
}

/** Bytes that went into a pipe; undefined: no pipe can be had. */
function steal(fd: number, at: number, length: number, pipes: Pipe[]): number | undefined {
  for (let fresh = false; ; fresh = true) {
    let pipe = pipes.at(-1);
    if (pipe === undefined || fresh) {
      if (pipes.length >= MAX_PIPES) return undefined;
      pipe = makePipe();
      if (pipe === undefined) return undefined;
      pipes.push(pipe);
    }
    position.u64[0] = BigInt(at);
    const n = check(spliceFrom(fd, position.address, pipe.write, 0, length, SPLICE_F_NONBLOCK));
    if (typeof n === "number" && n > 0) {
      pipe.runs.push({ start: at, length: n });
      return n;
    }
    // Full, if it held something already.
    if (fresh || pipe.runs.length === 0) return undefined;
  }
}

function makePipe(): Pipe | undefined {
  if (check(pipe2(ends.address, O_CLOEXEC | O_NONBLOCK)) instanceof Errno) return undefined;
  const [read, write] = [ends.s32[0] as number, ends.s32[1] as number];
  fcntl(write, F_SETPIPE_SZ, PIPE_BYTES);
  const size = fcntl(write, F_GETPIPE_SZ);
  if (typeof size === "number" && size >= LEAST_BYTES) return { read, write, runs: [] };
  closeFd(read);
  closeFd(write);
  return undefined;
}

function copy(fd: number, at: number, length: number, pieces: FilePiece[]): number {
  const bytes = new Uint8Array(length);
  const n = preadFd(fd, bytes, at);
  if (n instanceof Errno || n === 0) return 0;
  pieces.push({ start: at, bytes: bytes.subarray(0, n) });
  return n;
}

function drain(fd: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const n = readFd(fd, done === 0 ? bytes : bytes.subarray(done));
    if (n instanceof Errno || n === 0) break;
    done += n;
  }
  return bytes;
}
