/**
 * open, openat, openat2, creat.
 *
 * Source: fs/namei.c (path_openat), fs/kernfs/file.c.
 */
import { EACCES, EAGAIN, EEXIST, EFAULT, EINVAL, EISDIR, ELOOP, ENOENT, ENOMEM, ENOTDIR, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import * as O from "../../uapi/fcntl.ts";
import * as sys from "../numbers.ts";
import { answer, type Handler, type Outcome, type TrappedCall } from "../types.ts";
import { AT_FDCWD, type TreeContext, textOf } from "./context.ts";
import type { Node } from "./node.ts";
import { openOutside } from "./outside.ts";
import { RESOLVE_CACHED } from "./paths.ts";
import { checkOpen } from "./rights.ts";

interface OpenRequest {
  readonly base: number;
  readonly path: string;
  readonly flags: number;
  readonly resolve?: number;
}

export function registerOpens(context: TreeContext): void {
  const { supervisor } = context;
  const add = (nr: number, dirfd: number | undefined, path: number, read: (call: TrappedCall) => OpenRequest | undefined): void => {
    const handler: Handler = (call) => open(context, call, read(call));
    handler.concerns = (call) => context.suspectsOpen(call, dirfd, path);
    supervisor.handle(nr, handler);
  };
  add(sys.SYS_open, undefined, 0, (c) => request(AT_FDCWD, textOf(c, 0), c.int(1)));
  add(sys.SYS_creat, undefined, 0, (c) => request(AT_FDCWD, textOf(c, 0), O.O_CREAT | O.O_WRONLY | O.O_TRUNC));
  add(sys.SYS_openat, 0, 1, (c) => request(c.int(0), textOf(c, 1), c.int(2)));
  add(sys.SYS_openat2, 0, 1, openat2);
}

const request = (base: number, path: string | undefined, flags: number, resolve = 0): OpenRequest | undefined =>
  path === undefined ? undefined : { base, path, flags, ...(resolve === 0 ? {} : { resolve }) };

/** Reads struct open_how. What is wrong with it, the real kernel says. */
function openat2(call: TrappedCall): OpenRequest | undefined {
  const size = Number(call.args[3]);
  const how = new Uint8Array(24);
  if (size < how.length || call.memory.read(call.args[2] as bigint, how) > 0) return undefined;
  const view = new DataView(how.buffer);
  return request(call.int(0), textOf(call, 1), Number(BigInt.asUintN(32, view.getBigUint64(0, true))) | 0, view.getUint32(16, true));
}

function* open(context: TreeContext, call: TrappedCall, r: OpenRequest | undefined): Step<Outcome | undefined> {
  if (r === undefined) return undefined;
  const { flags } = r;
  const exclusive = (flags & O.O_CREAT) !== 0 && (flags & O.O_EXCL) !== 0;
  const follow = (flags & O.O_NOFOLLOW) === 0 && !exclusive;
  const found = context.walk(call, r.base, r.path, r.resolve === undefined ? { follow } : { follow, resolve: r.resolve });
  if (found === undefined || !call.valid()) return undefined;
  if (found.kind === "machine") {
    const both = merged(context, call, found.path, flags);
    if (both !== undefined) return both;
    if (!found.escaped) return undefined;
  }
  if (r.resolve !== undefined && (r.resolve & RESOLVE_CACHED) !== 0) return answer(EAGAIN);
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      // Nobody makes files in sysfs; in our directories of /dev neither.
      return answer(found.last && (flags & O.O_CREAT) !== 0 && (flags & O.O_PATH) === 0 ? EACCES : ENOENT);
    case "machine": {
      const fd = openOutside(context.view(call), found.path, flags);
      return fd instanceof Errno ? answer(fd) : give(fd, flags);
    }
    case "node":
      // The path is copied in first, for which there must be room.
      if (context.supervisor.kernel.fault.slab("name")) return answer(ENOMEM);
      if (context.supervisor.kernel.fault.userCopy()) return answer(EFAULT);
      return yield* openNode(context, call, found.node, flags, exclusive);
  }
}

const give = (hostFd: number, flags: number): Outcome => ({ kind: "addfd", hostFd, cloexec: (flags & O.O_CLOEXEC) !== 0, close: true });

function* openNode(context: TreeContext, call: TrappedCall, node: Node, flags: number, exclusive: boolean): Step<Outcome> {
  const path = (flags & O.O_PATH) !== 0;
  if (exclusive && !path) return answer(EEXIST);
  if ((flags & O.O_DIRECTORY) !== 0 && node.kind !== "dir") return answer(ENOTDIR);
  if (path) return named(context, node, flags);
  if (node.kind === "link") return answer(ELOOP);
  const temporary = (flags & O.O_TMPFILE) === O.O_TMPFILE;
  if (node.kind === "dir") {
    if (temporary) return answer((flags & O.O_ACCMODE) === O.O_RDONLY ? EINVAL : EOPNOTSUPP);
    if ((flags & (O.O_ACCMODE | O.O_CREAT)) !== 0) return answer(EISDIR);
  }
  const refused = checkOpen(context, call, node, flags);
  if (refused !== undefined) return answer(refused);
  switch (node.kind) {
    case "dir":
      return named(context, node, flags);
    case "char": {
      const file = yield* context.supervisor.kernel.fs.openPath(node.path, flags | O.O_LARGEFILE);
      return file instanceof Errno ? answer(file) : { kind: "file", file, flags };
    }
    case "file": {
      if (node.refuse !== undefined) return answer(node.refuse);
      if (node.ready !== undefined) yield* node.ready();
      const fd = context.contents.open(node, flags);
      return fd instanceof Errno ? answer(fd) : give(fd, flags);
    }
  }
}

/** A directory, or a descriptor that only names a file. */
function named(context: TreeContext, node: Node, flags: number): Outcome {
  context.shadow.sync();
  const fd = node.kind === "dir" ? context.shadow.openDirectory(node, flags) : context.contents.name(node.path);
  if (fd instanceof Errno) return answer(fd);
  context.anyDescriptor = true;
  return give(fd, flags);
}

/**
 * A directory of the machine's in which something of ours is, to be listed;
 * undefined when the machine's own will do: it has those names too, or the
 * program only names it, or may not list it.
 */
function merged(context: TreeContext, call: TrappedCall, path: string, flags: number): Outcome | undefined {
  if (!context.tree.isMerged(path) || (flags & (O.O_ACCMODE | O.O_CREAT | O.O_PATH)) !== 0) return undefined;
  const fd = context.shadow.openMerged(path, `/proc/${call.tid}/root${path}`);
  if (fd === undefined || fd instanceof Errno) return undefined;
  context.anyDescriptor = true;
  return give(fd, flags);
}
