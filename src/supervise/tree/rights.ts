/**
 * Who may do what with a file of the tree.
 *
 * All files belong to root. Whoever started barlink is root here, and so is
 * the real root: they may what CAP_DAC_OVERRIDE lets root do. Anybody else (a
 * program that changed its user) goes by the permissions for others. sysfs
 * refuses even root an access for which no permission bit is set.
 *
 * Source: generic_permission, kernfs_fop_open.
 */
import { readStatus } from "../../host/index.ts";
import { EACCES, type Errno } from "../../lib/errno.ts";
import { O_ACCMODE, O_RDONLY, O_WRONLY } from "../../uapi/fcntl.ts";
import type { TrappedCall } from "../types.ts";
import type { TreeContext } from "./context.ts";
import { modeOf, type Node } from "./node.ts";

export const MAY_READ = 4;
export const MAY_WRITE = 2;
export const MAY_EXECUTE = 1;

/** Permissions as stat says them, with what the program changed. */
export function permissions(context: TreeContext, node: Node): number {
  const changed = context.ownership.get(node.path)?.mode;
  return changed === undefined ? modeOf(node) : (modeOf(node) & ~0o7777) | changed;
}

/** As access(2) asks; `real` by the real uid, else by the file system uid. */
export function checkAccess(context: TreeContext, call: TrappedCall, node: Node, want: number, real = false): Errno | undefined {
  const mode = permissions(context, node);
  // What anybody may do needs no look at who it is.
  if ((mode & want) === want && !context.ownership.has(node.path)) return undefined;
  const uids = readStatus(call.tid)?.uids;
  const uid = real ? uids?.[0] : uids?.[3];
  if (uid === 0 || uid === process.geteuid?.()) {
    const executable = node.kind === "dir" || (mode & 0o111) !== 0;
    return (want & MAY_EXECUTE) !== 0 && !executable ? EACCES : undefined;
  }
  const own = context.ownership.get(node.path);
  const bits = uid !== undefined && own?.uid === uid ? mode >> 6 : mode;
  return (bits & want) === want ? undefined : EACCES;
}

/** The access that an open asks for. */
export function checkOpen(context: TreeContext, call: TrappedCall, node: Node, flags: number): Errno | undefined {
  const access = flags & O_ACCMODE;
  const want = (access === O_WRONLY ? 0 : MAY_READ) | (access === O_RDONLY ? 0 : MAY_WRITE);
  const refused = checkAccess(context, call, node, want);
  if (refused !== undefined || node.kind !== "file") return refused;
  const mode = permissions(context, node);
  if ((want & MAY_READ) !== 0 && ((mode & 0o444) === 0 || (node.show === undefined && node.refuse === undefined))) return EACCES;
  if ((want & MAY_WRITE) !== 0 && ((mode & 0o222) === 0 || (node.store === undefined && node.refuse === undefined))) return EACCES;
  return undefined;
}
