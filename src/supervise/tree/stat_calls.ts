/**
 * stat and its relatives, access, readlink.
 *
 * Device and inode numbers are those of the private folder, so that a file is
 * the same by any path and by its descriptor; everything else is the node's.
 */
import {
  AT_EMPTY_PATH,
  AT_SYMLINK_NOFOLLOW,
  arch,
  encodeStat,
  encodeStatx,
  type FileStatus,
  readLinkAt,
  statAt,
} from "../../host/index.ts";
import { EFAULT, EINVAL, ENODATA, ENOENT, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import * as sys from "../numbers.ts";
import { answer, type Handler, type Outcome, type TrappedCall } from "../types.ts";
import { AT_FDCWD, type TreeContext, textOf } from "./context.ts";
import type { Node } from "./node.ts";
import { readlinkOutside, statOutside } from "./outside.ts";
import { checkAccess, permissions } from "./rights.ts";

const AT_EACCESS = 0x200;
const AT_KNOWN = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_EACCESS | 0x800 | 0x6000;
const encoder = new TextEncoder();

export function registerStats(context: TreeContext): void {
  const { supervisor } = context;
  const add = (nr: number | undefined, body: Handler, concerns: (call: TrappedCall) => boolean): void => {
    if (nr !== undefined)
      supervisor.handle(
        nr,
        Object.assign((call: TrappedCall) => body(call), { concerns }),
      );
  };
  const stat = (nr: number, base: number | undefined, path: number, buffer: number, flags: number | "follow" | "nofollow"): void => {
    const flagsOf = (c: TrappedCall): number => (typeof flags === "number" ? c.int(flags) : flags === "follow" ? 0 : AT_SYMLINK_NOFOLLOW);
    const concerns = (c: TrappedCall): boolean => (isSelf(c, path, flagsOf(c)) ? context.anyNode : context.suspects(c, base, path));
    add(nr, (c) => statPath(context, c, base === undefined ? AT_FDCWD : c.int(base), path, flagsOf(c), buffer), concerns);
  };
  stat(sys.SYS_stat, undefined, 0, 1, "follow");
  stat(sys.SYS_lstat, undefined, 0, 1, "nofollow");
  stat(sys.SYS_newfstatat, 0, 1, 2, 3);
  stat(sys.SYS_statx, 0, 1, 4, 2);
  add(
    sys.SYS_fstat,
    (c) => statDescriptor(context, c, c.int(0), 1),
    () => context.anyNode,
  );
  const access = (nr: number, base: number | undefined, path: number, mode: number, flags: number | undefined): void =>
    add(
      nr,
      (c) => accessPath(context, c, base === undefined ? AT_FDCWD : c.int(base), path, c.int(mode), flags === undefined ? 0 : c.int(flags)),
      (c) => context.suspects(c, base, path),
    );
  access(sys.SYS_access, undefined, 0, 1, undefined);
  access(sys.SYS_faccessat, 0, 1, 2, undefined);
  access(sys.SYS_faccessat2, 0, 1, 2, 3);
  add(
    sys.SYS_readlink,
    (c) => readlink(context, c, AT_FDCWD, 0, 1),
    (c) => context.suspects(c, undefined, 0),
  );
  add(
    sys.SYS_readlinkat,
    (c) => readlink(context, c, c.int(0), 1, 2),
    (c) => (textOf(c, 1) === "" ? context.anyDescriptor : context.suspects(c, 0, 1)),
  );
  const xattr = (name: string, follow: boolean): void => {
    const nr = arch.numbers.get(name);
    add(
      nr,
      (c) => noAttributes(context, c, follow, name.includes("list")),
      (c) => context.suspects(c, undefined, 0),
    );
  };
  xattr("getxattr", true);
  xattr("lgetxattr", false);
  xattr("listxattr", true);
  xattr("llistxattr", false);
}

/** The file is the descriptor itself: AT_EMPTY_PATH with "" or, for newer programs, NULL. */
function isSelf(call: TrappedCall, path: number, flags: number): boolean {
  return (flags & AT_EMPTY_PATH) !== 0 && (call.args[path] === 0n || call.path(path) === "");
}

/** What stat says of a node. */
export function statusOf(context: TreeContext, node: Node): FileStatus | Errno {
  context.shadow.sync();
  const real = context.shadow.status(node);
  if (real instanceof Errno) return real;
  const own = context.ownership.get(node.path);
  let links = 1;
  if (node.kind === "dir") {
    links = 2;
    for (const c of node.children.values()) if (c.kind === "dir") links++;
  }
  return {
    ...real,
    mode: permissions(context, node),
    uid: own?.uid ?? 0,
    gid: own?.gid ?? 0,
    nlink: links,
    size: node.kind === "file" ? BigInt(node.size) : 0n,
    blocks: 0n,
    blksize: 4096,
    rdevMajor: node.kind === "char" ? node.major : 0,
    rdevMinor: node.kind === "char" ? node.minor : 0,
  };
}

function tell(call: TrappedCall, buffer: number, status: FileStatus | Errno): Outcome {
  if (status instanceof Errno) return answer(status);
  const bytes = call.nr === sys.SYS_statx ? encodeStatx(status) : encodeStat(status);
  return answer(call.memory.write(call.args[buffer] as bigint, bytes) > 0 ? EFAULT : 0);
}

function* statDescriptor(context: TreeContext, call: TrappedCall, fd: number, buffer: number): Step<Outcome | undefined> {
  const node = context.nodeOfDescriptor(call, fd);
  if (node !== undefined) return tell(call, buffer, statusOf(context, node));
  const start = context.anyDescriptor ? context.view(call).descriptor(fd) : undefined;
  if (start === undefined || !start.detached || typeof start.place !== "string") return undefined;
  return tell(call, buffer, statAt(AT_FDCWD, `/proc/${call.tid}/root${start.place}`, 0));
}

function* statPath(
  context: TreeContext,
  call: TrappedCall,
  base: number,
  path: number,
  flags: number,
  buffer: number,
): Step<Outcome | undefined> {
  if (isSelf(call, path, flags)) {
    if (base !== AT_FDCWD) return yield* statDescriptor(context, call, base, buffer);
    return undefined;
  }
  const text = textOf(call, path);
  if (text === undefined || (flags & ~AT_KNOWN) !== 0) return undefined;
  const follow = (flags & AT_SYMLINK_NOFOLLOW) === 0;
  const found = context.resolve(call, base, text, { follow });
  if (found === undefined || !call.valid()) return undefined;
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      return answer(ENOENT);
    case "machine":
      return tell(call, buffer, statOutside(context.view(call), found.path, follow ? 0 : AT_SYMLINK_NOFOLLOW));
    case "node":
      return tell(call, buffer, statusOf(context, found.node));
  }
}

function* accessPath(
  context: TreeContext,
  call: TrappedCall,
  base: number,
  path: number,
  mode: number,
  flags: number,
): Step<Outcome | undefined> {
  const text = textOf(call, path);
  if (text === undefined || (mode & ~7) !== 0 || (flags & ~AT_KNOWN) !== 0) return undefined;
  const found = context.resolve(call, base, text, { follow: (flags & AT_SYMLINK_NOFOLLOW) === 0 });
  if (found === undefined || !call.valid()) return undefined;
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      return answer(ENOENT);
    case "machine": {
      const status = statOutside(context.view(call), found.path, 0);
      // That it is there is all that can be told from here.
      return answer(status instanceof Errno ? status : 0);
    }
    case "node":
      return answer(checkAccess(context, call, found.node, mode, (flags & AT_EACCESS) === 0) ?? 0);
  }
}

function* readlink(context: TreeContext, call: TrappedCall, base: number, path: number, buffer: number): Step<Outcome | undefined> {
  const text = textOf(call, path);
  if (text === undefined) return undefined;
  const size = call.int(buffer + 1);
  if (size <= 0) return undefined;
  if (text === "") {
    const node = context.view(call).nodeOf(base)?.node;
    if (node === undefined) return undefined;
    return node.kind === "link" ? copyText(call, buffer, size, node.text) : answer(ENOENT);
  }
  const shown = descriptorLink(context, call, text);
  if (shown !== undefined) return copyText(call, buffer, size, shown);
  const found = context.resolve(call, base, text, { follow: false });
  if (found === undefined || !call.valid()) return undefined;
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      return answer(ENOENT);
    case "machine": {
      const link = readlinkOutside(context.view(call), found.path);
      return link instanceof Errno ? answer(link) : copyText(call, buffer, size, link);
    }
    case "node":
      return found.node.kind === "link" ? copyText(call, buffer, size, found.node.text) : answer(EINVAL);
  }
}

/** /proc/self/fd/N of one of our files: its path, not the one that stands for it. */
function descriptorLink(context: TreeContext, call: TrappedCall, text: string): string | undefined {
  const [, who, fd] = /^\/(?:proc\/(self|thread-self|\d+)|dev)\/fd\/(\d+)$/.exec(text) ?? [];
  if (fd === undefined || !context.anyNode) return undefined;
  const pid = who === undefined || who.endsWith("self") ? call.tid : Number(who);
  if (pid !== call.tid && context.supervisor.process(pid) === undefined) return undefined;
  const link = readLinkAt(AT_FDCWD, `/proc/${pid}/fd/${fd}`);
  if (link instanceof Errno) return undefined;
  const known = context.nodeOfLink(link);
  if (known !== undefined) return known.node === undefined && !context.tree.isMerged(known.path) ? `${known.path} (deleted)` : known.path;
  return pid === call.tid ? call.fd(Number(fd))?.path : undefined;
}

function copyText(call: TrappedCall, buffer: number, size: number, text: string): Outcome {
  const bytes = encoder.encode(text).subarray(0, size);
  return answer(call.memory.write(call.args[buffer] as bigint, bytes) > 0 ? EFAULT : bytes.length);
}

/** Files of ours have no extended attributes. */
function* noAttributes(context: TreeContext, call: TrappedCall, follow: boolean, list: boolean): Step<Outcome | undefined> {
  const text = textOf(call, 0);
  if (text === undefined) return undefined;
  const found = context.resolve(call, AT_FDCWD, text, { follow });
  if (found === undefined) return undefined;
  if (found.kind === "machine") return answer(EOPNOTSUPP);
  if (found.kind === "error") return answer(found.errno);
  if (found.kind === "missing") return answer(ENOENT);
  return answer(list ? 0 : ENODATA);
}
