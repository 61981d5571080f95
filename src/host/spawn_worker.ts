/**
 * The thread that starts a program: see spawn.ts. Once the filter is in force it calls nothing that a filter of ours traps,
 * except at its end.
 */
import { receiveMessageOnPort, workerData } from "node:worker_threads";
import { EACCES, EINVAL, ENODEV, ENOENT, ENOEXEC, ENOTDIR, Errno, ESTALE, ETIMEDOUT, errnoOf } from "../lib/errno.ts";
import { closeFd, dupFd } from "./fd.ts";
import { addressOf, checkVoid, libcFunction, nr, putPath, reserve, syscall4 } from "./ffi.ts";
import { getRlimit, RLIMIT_NOFILE, setRlimit } from "./rlimit.ts";
import { installListener } from "./seccomp.ts";
import { CULPRIT, ORDERED, type SpawnOrder, type SpawnThreadData, STAGE, WORD } from "./spawn_order.ts";

const { words, port } = workerData as SpawnThreadData;

/** Sleeps until there is an order: not by an event of the port, because a thread that blocks may have sent it. undefined: nothing to start. */
function takeOrder(): SpawnOrder | undefined {
  Atomics.wait(words, WORD.ordered, ORDERED.notYet);
  if (Atomics.load(words, WORD.ordered) === ORDERED.nothing) {
    port.close();
    return undefined;
  }
  const received = receiveMessageOnPort(port) as { message: SpawnOrder } | undefined;
  port.close();
  if (received === undefined) throw new RangeError("woken without an order");
  return received.message;
}

const CLONE_FS = 0x200;
const SIG_SETMASK = 2;
const POSIX_SPAWN_SETPGROUP = 0x02;
const POSIX_SPAWN_SETSIGDEF = 0x04;
const POSIX_SPAWN_SETSIGMASK = 0x08;
const POSIX_SPAWN_SETSID = 0x80;

const ptr = "uintptr_t";
const posixSpawn = libcFunction("posix_spawn", "int", [ptr, ptr, ptr, ptr, ptr, ptr]);
const attrInit = libcFunction("posix_spawnattr_init", "int", [ptr]);
const attrSetFlags = libcFunction("posix_spawnattr_setflags", "int", [ptr, "int"]);
const attrSetSigdefault = libcFunction("posix_spawnattr_setsigdefault", "int", [ptr, ptr]);
const attrSetSigmask = libcFunction("posix_spawnattr_setsigmask", "int", [ptr, ptr]);
const attrSetPgroup = libcFunction("posix_spawnattr_setpgroup", "int", [ptr, "int"]);
const actionsInit = libcFunction("posix_spawn_file_actions_init", "int", [ptr]);
const actionsAddDup2 = libcFunction("posix_spawn_file_actions_adddup2", "int", [ptr, "int", "int"]);
const actionsDestroy = libcFunction("posix_spawn_file_actions_destroy", "int", [ptr]);
const access = libcFunction("access", "int", [ptr, "int"]);

// More than glibc's and musl's structs need: 336, 80 and 128 bytes.
const attr = reserve(512);
const actions = reserve(256);
const sigset = reserve(128);
const pidOut = reserve(8);

/** What the addresses handed to libc point into. */
const kept: Uint8Array[] = [];

function setStage(stage: number): void {
  Atomics.store(words, WORD.stage, stage);
  Atomics.notify(words, WORD.stage);
}

/** Strings and the array of pointers to them, NULL at its end. */
function vector(strings: readonly (string | Uint8Array)[]): { address: number } {
  const parts = strings.map((s) => (typeof s === "string" ? new TextEncoder().encode(s) : s));
  const head = 8 * (parts.length + 1);
  const keep = new Uint8Array(new ArrayBuffer(parts.reduce((sum, p) => sum + p.length + 1, head)));
  const pointers = new BigUint64Array(keep.buffer, 0, parts.length + 1);
  const address = addressOf(keep);
  let at = head;
  for (const [i, part] of parts.entries()) {
    pointers[i] = BigInt(address + at);
    keep.set(part, at);
    at += part.length + 1;
  }
  kept.push(keep);
  return { address };
}

function prepareAttributes(order: SpawnOrder): void {
  attrInit(attr.address);
  let flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
  sigset.bytes.fill(0);
  attrSetSigmask(attr.address, sigset.address);
  // All 64 of them: sigfillset would leave out two that libc uses, and the child would ignore those.
  sigset.bytes.fill(0xff);
  attrSetSigdefault(attr.address, sigset.address);
  if (order.processGroup !== undefined) {
    flags |= POSIX_SPAWN_SETPGROUP;
    attrSetPgroup(attr.address, order.processGroup);
  }
  if (order.session) flags |= POSIX_SPAWN_SETSID;
  attrSetFlags(attr.address, flags);
}

/** Says which descriptors the child has; returns the copies to close afterwards. */
function prepareDescriptors(order: SpawnOrder): number[] | Errno {
  actionsInit(actions.address);
  const copies: number[] = [];
  // Sources first move out of the way of all targets; a dup2 onto itself clears FD_CLOEXEC.
  const above = Math.max(2, ...order.fds.map(([child]) => child)) + 1;
  for (const [child, ours] of order.fds) {
    let from = ours;
    if (child !== ours) {
      const copy = dupFd(ours, above);
      if (copy instanceof Errno) return copy;
      copies.push(copy);
      from = copy;
    }
    const failed = actionsAddDup2(actions.address, from, child);
    if (failed !== 0) return errnoOf(failed);
  }
  return copies;
}

/** As execvp: the next candidate after some failures, EACCES when nothing else came of it, a shell for a script without #!. */
function execvp(candidates: readonly string[], argv: number, env: number, args: readonly (string | Uint8Array)[]): number | Errno {
  const passOver: readonly Errno[] = [EACCES, ENOENT, ESTALE, ENOTDIR, ENODEV, ETIMEDOUT];
  let last: Errno = ENOENT;
  let denied = false;
  for (const path of candidates) {
    let errno = spawnAt(path, argv, env);
    if (errno === ENOEXEC) {
      const shell = vector(["/bin/sh", path, ...args.slice(1)]);
      errno = spawnAt("/bin/sh", shell.address, env);
    }
    if (errno === undefined) return pidOut.s32[0] as number;
    if (!passOver.includes(errno)) return errno;
    denied ||= errno === EACCES;
    last = errno;
  }
  return denied ? EACCES : last;
}

function spawnAt(path: string, argv: number, env: number): Errno | undefined {
  const address = putPath(path);
  if (address === 0) return ENOENT;
  const code = posixSpawn(pidOut.address, address, actions.address, attr.address, argv, env);
  return code === 0 ? undefined : errnoOf(code);
}

/** With the soft limit on descriptors that the child is to have: it is copied when the child is made. */
function withNofile<T>(soft: bigint | undefined, run: () => T): T {
  const ours = getRlimit(0, RLIMIT_NOFILE);
  if (soft === undefined || ours instanceof Errno || soft >= ours.soft) return run();
  setRlimit(0, RLIMIT_NOFILE, { soft, hard: ours.hard });
  try {
    return run();
  } finally {
    setRlimit(0, RLIMIT_NOFILE, ours);
  }
}

function enterFolder(path: string): Errno | undefined {
  // The folder of this thread alone: the child's, because it is this thread that makes it.
  const failed = checkVoid(syscall4(nr("unshare"), CLONE_FS, 0, 0, 0));
  if (failed !== undefined) return failed;
  const address = putPath(path);
  return address === 0 ? EINVAL : checkVoid(syscall4(nr("chdir"), address, 0, 0, 0));
}

/** What became of it, for the words. */
interface Outcome {
  readonly culprit: number;
  readonly result: number | Errno;
}

function main(order: SpawnOrder): Outcome {
  if (order.cwd !== undefined) {
    const failed = enterFolder(order.cwd);
    if (failed !== undefined) return { culprit: CULPRIT.chdir, result: failed };
  }
  // Before the filter, which may trap access: folders of PATH that have nothing by that name are not worth a child.
  const there = order.candidates.filter((path) => access(putPath(path), 0) === 0);
  const candidates = there.length > 0 ? there : order.candidates.slice(-1);
  const argv = vector(order.argv);
  const env = vector(order.env);
  prepareAttributes(order);
  const copies = prepareDescriptors(order);
  if (copies instanceof Errno) return { culprit: CULPRIT.preparation, result: copies };
  if (order.filter !== undefined) {
    // No handler of Node's runs on a thread whose calls wait for an answer. The child starts with an empty mask.
    syscall4(nr("rt_sigprocmask"), SIG_SETMASK, sigset.address, 0, 8);
    const listener = installListener(order.filter);
    if (listener instanceof Errno) return { culprit: CULPRIT.seccomp, result: listener };
    words[WORD.listener] = listener;
  }
  setStage(STAGE.filtered);
  const pid = withNofile(order.nofile, () => execvp(candidates, argv.address, env.address, order.argv));
  for (const fd of copies) closeFd(fd);
  actionsDestroy(actions.address);
  kept.length = 0;
  return { culprit: CULPRIT.execve, result: pid };
}

function finish({ culprit, result }: Outcome): void {
  words[WORD.culprit] = culprit;
  words[WORD.errno] = result instanceof Errno ? result.code : 0;
  words[WORD.pid] = result instanceof Errno ? -1 : result;
  setStage(STAGE.done);
}

try {
  const order = takeOrder();
  if (order !== undefined) finish(main(order));
} catch {
  finish({ culprit: CULPRIT.preparation, result: EINVAL });
}
