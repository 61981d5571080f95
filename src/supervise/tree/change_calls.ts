/**
 * Calls that would change the tree itself, and the working directory.
 *
 * Nobody makes or removes anything in sysfs; permissions and owners can be
 * given, and show.
 *
 * Source: fs/kernfs/{dir,inode}.c, fs/namei.c, fs/open.c.
 */
import { arch, statAt } from "../../host/index.ts";
import { EACCES, EEXIST, EFAULT, EISDIR, ENOENT, ENOTDIR, EPERM, ERANGE, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import * as O from "../../uapi/fcntl.ts";
import { answer, CONTINUE, type Outcome, type TrappedCall } from "../types.ts";
import { AT_FDCWD, type TreeContext, textOf } from "./context.ts";
import type { Node } from "./node.ts";
import type { Walked } from "./paths.ts";
import { checkAccess, MAY_EXECUTE, MAY_WRITE } from "./rights.ts";

type Body = (call: TrappedCall) => Step<Outcome | undefined>;

export function registerChanges(context: TreeContext): void {
  const { supervisor } = context;
  const add = (name: string, body: Body, concerns: (call: TrappedCall) => boolean): void => {
    const nr = arch.numbers.get(name);
    if (nr !== undefined) supervisor.handle(nr, Object.assign(body, { concerns }));
  };
  /** `base`: argument with the directory's descriptor, undefined for the working directory. */
  const onPath = (
    name: string,
    base: number | undefined,
    path: number,
    follow: boolean,
    serve: (found: Walked, call: TrappedCall) => Outcome,
  ): void =>
    add(
      name,
      (c) => atPath(context, c, base, path, follow, serve),
      (c) => context.suspects(c, base, path),
    );
  const refuse: [name: string, base: number | undefined, path: number, serve: (w: Walked) => Outcome][] = [
    ["mkdir", undefined, 0, making],
    ["mkdirat", 0, 1, making],
    ["mknod", undefined, 0, making],
    ["mknodat", 0, 1, making],
    ["symlink", undefined, 1, making],
    ["symlinkat", 1, 2, making],
    ["link", undefined, 1, making],
    ["linkat", 2, 3, making],
    ["rmdir", undefined, 0, removing],
    ["unlink", undefined, 0, removing],
    ["unlinkat", 0, 1, removing],
    ["rename", undefined, 0, removing],
    ["renameat", 0, 1, removing],
    ["renameat2", 0, 1, removing],
    ["rename", undefined, 1, making],
    ["renameat", 2, 3, making],
    ["renameat2", 2, 3, making],
  ];
  for (const [name, base, path, serve] of refuse) onPath(name, base, path, false, serve);
  for (const [name, path] of [
    ["symlink", 0],
    ["symlinkat", 0],
  ] as const) {
    add(
      name,
      (c) => watchLink(context, c),
      (c) => !context.anyLink && context.suspects(c, undefined, path),
    );
  }

  const change = (
    name: string,
    base: number | undefined,
    path: number,
    follow: boolean,
    set: (node: Node, call: TrappedCall) => void,
  ): void =>
    onPath(name, base, path, follow, (found, call) =>
      changing(found, (node) => {
        set(node, call);
        return 0;
      }),
    );
  const mode = (argument: number) => (node: Node, call: TrappedCall) => own(context, node, { mode: call.int(argument) & 0o7777 });
  change("chmod", undefined, 0, true, mode(1));
  change("fchmodat", 0, 1, true, mode(2));
  change("fchmodat2", 0, 1, true, mode(2));
  const owner = (argument: number) => (node: Node, call: TrappedCall) => {
    const [uid, gid] = [call.int(argument), call.int(argument + 1)];
    own(context, node, { ...(uid === -1 ? {} : { uid: uid >>> 0 }), ...(gid === -1 ? {} : { gid: gid >>> 0 }) });
  };
  change("chown", undefined, 0, true, owner(1));
  change("lchown", undefined, 0, false, owner(1));
  change("fchownat", 0, 1, true, owner(2));
  for (const [name, base, path] of [
    ["utime", undefined, 0],
    ["utimes", undefined, 0],
    ["futimesat", 0, 1],
    ["utimensat", 0, 1],
  ] as const) {
    change(name, base, path, true, () => undefined);
  }
  onPath("truncate", undefined, 0, true, (found, call) =>
    changing(found, (node) => (node.kind === "dir" ? EISDIR : (checkAccess(context, call, node, MAY_WRITE) ?? 0))),
  );
  onPath("statfs", undefined, 0, true, (found, call) => changing(found, (node) => statfs(call, node)));

  add(
    "chdir",
    (c) => chdir(context, c),
    (c) => context.suspects(c, undefined, 0) || context.cwds.any,
  );
  add(
    "fchdir",
    (c) => fchdir(context, c),
    () => context.anyDescriptor || context.cwds.any,
  );
  add(
    "getcwd",
    (c) => getcwd(context, c),
    () => context.cwds.any,
  );
}

function* atPath(
  context: TreeContext,
  call: TrappedCall,
  base: number | undefined,
  path: number,
  follow: boolean,
  serve: (found: Walked, call: TrappedCall) => Outcome,
): Step<Outcome | undefined> {
  const text = textOf(call, path);
  if (text === undefined || text === "") return undefined;
  const found = context.resolve(call, base === undefined ? AT_FDCWD : call.int(base), text, { follow });
  if (found === undefined || !call.valid()) return undefined;
  return serve(found, call);
}

function making(found: Walked): Outcome {
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      return answer(found.last ? EPERM : ENOENT);
    case "machine":
      return answer(EACCES);
    case "node":
      return answer(EEXIST);
  }
}

const removing = (found: Walked): Outcome => changing(found, () => EPERM);

function changing(found: Walked, change: (node: Node) => number | Errno): Outcome {
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      return answer(ENOENT);
    case "machine":
      return answer(EACCES);
    case "node":
      return answer(change(found.node));
  }
}

function own(context: TreeContext, node: Node, what: { mode?: number; uid?: number; gid?: number }): void {
  context.ownership.set(node.path, { ...context.ownership.get(node.path), ...what });
}

/** A link whose text may lead to us is made by the real kernel; from now on no path is let by unseen. */
function* watchLink(context: TreeContext, _call: TrappedCall): Step<Outcome | undefined> {
  context.anyLink = true;
  return undefined;
}

const SYSFS_MAGIC = 0x6265_6572;
const TMPFS_MAGIC = 0x0102_1994;

/** struct statfs: the kind of file system, and no room. */
function statfs(call: TrappedCall, node: Node): number | Errno {
  const bytes = new Uint8Array(120);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(node.path.startsWith("/sys") ? SYSFS_MAGIC : TMPFS_MAGIC), true);
  view.setBigUint64(8, 4096n, true);
  view.setBigUint64(64, 255n, true);
  view.setBigUint64(72, 4096n, true);
  return call.memory.write(call.args[1] as bigint, bytes) > 0 ? EFAULT : 0;
}

function* chdir(context: TreeContext, call: TrappedCall): Step<Outcome | undefined> {
  const text = textOf(call, 0);
  if (text === undefined || text === "") return undefined;
  const found = context.resolve(call, AT_FDCWD, text, { follow: true });
  if (!call.valid()) return undefined;
  if (found === undefined) {
    // Out of the tree by the real kernel, if it lets the program.
    const real = statAt(AT_FDCWD, text.startsWith("/") ? `/proc/${call.tid}/root${text}` : `/proc/${call.tid}/cwd/${text}`, 0);
    if (!(real instanceof Errno) && (real.mode & O.S_IFMT) === O.S_IFDIR) context.cwds.forget(call.pid);
    return undefined;
  }
  switch (found.kind) {
    case "error":
      return answer(found.errno);
    case "missing":
      return answer(ENOENT);
    case "machine":
      return answer(EACCES);
    case "node": {
      if (found.node.kind !== "dir") return answer(ENOTDIR);
      const refused = checkAccess(context, call, found.node, MAY_EXECUTE);
      if (refused !== undefined) return answer(refused);
      context.cwds.set(call.pid, found.node.path);
      return answer(0);
    }
  }
}

/** The real kernel does it, our directories being real ones; what was kept of an earlier chdir no longer holds. */
function* fchdir(context: TreeContext, call: TrappedCall): Step<Outcome | undefined> {
  const start = context.view(call).descriptor(call.int(0));
  if (start === undefined) return CONTINUE;
  if (typeof start.place !== "string" && start.place.kind !== "dir") return answer(ENOTDIR);
  if (start.detached) context.cwds.anyReal = true;
  context.cwds.forget(call.pid);
  return CONTINUE;
}

function* getcwd(context: TreeContext, call: TrappedCall): Step<Outcome | undefined> {
  let path = context.cwds.get(call.pid);
  if (path === undefined) {
    const start = context.view(call).cwd;
    if (start === undefined || !start.detached) return undefined;
    path = typeof start.place === "string" ? start.place : start.place.path;
  }
  const bytes = new TextEncoder().encode(`${path}\0`);
  if (BigInt(bytes.length) > (call.args[1] as bigint)) return answer(ERANGE);
  return answer(call.memory.write(call.args[0] as bigint, bytes) > 0 ? EFAULT : bytes.length);
}
