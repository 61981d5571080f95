/**
 * Files of the machine that were named by way of the tree.
 *
 * The real kernel cannot walk such a path (`../../../etc/hostname` from one of
 * our directories), so it must be opened here, and that is only done for who
 * has exactly our rights: same ids, capabilities, namespaces, root. Only
 * directories and plain files, and only to be read. Everything else is EACCES.
 */

import type { FileStatus } from "../../host/index.ts";
import { closeFd, openAt, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, readLinkAt, reopenFd, statAt, statFd } from "../../host/index.ts";
import { EACCES, Errno } from "../../lib/errno.ts";
import * as O from "../../uapi/fcntl.ts";
import type { ThreadView } from "./view.ts";

const AT_FDCWD = -100;
const HARMLESS = O.O_DIRECTORY | O.O_NOFOLLOW | O.O_CLOEXEC | O.O_NONBLOCK | O.O_NOCTTY | O.O_LARGEFILE | O.O_PATH | O.O_NOATIME;
const RESOLVE = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;

function allowed(view: ThreadView, path: string): boolean {
  // What /proc says depends on who asks.
  return path.startsWith("/") && path !== "/proc" && !path.startsWith("/proc/") && view.hasOurRights;
}

/** A descriptor, ours to close. */
export function openOutside(view: ThreadView, path: string, flags: number): number | Errno {
  if ((flags & ~HARMLESS) !== 0 || !allowed(view, path)) return EACCES;
  const named = openAt(AT_FDCWD, path, O.O_PATH | O.O_CLOEXEC | (flags & (O.O_NOFOLLOW | O.O_DIRECTORY)), { resolve: RESOLVE });
  if (named instanceof Errno) return named;
  try {
    const found = statFd(named);
    if (found instanceof Errno) return found;
    const kind = found.mode & O.S_IFMT;
    // Opening a device or a pipe does things, and may wait.
    if (kind !== O.S_IFREG && kind !== O.S_IFDIR) return EACCES;
    return reopenFd(named, flags & ~(O.O_NOFOLLOW | O.O_PATH));
  } finally {
    closeFd(named);
  }
}

export function statOutside(view: ThreadView, path: string, flags: number): FileStatus | Errno {
  return allowed(view, path) ? statAt(AT_FDCWD, path, flags) : EACCES;
}

export function readlinkOutside(view: ThreadView, path: string): string | Errno {
  return allowed(view, path) ? readLinkAt(AT_FDCWD, path) : EACCES;
}
