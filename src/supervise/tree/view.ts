/**
 * The machine as one thread of the program sees it: its root, its working
 * directory, its descriptors, by way of /proc.
 *
 * Everything here only tells places apart; nothing is opened for the program
 * on the strength of it. What it reads may be out of date when it returns.
 */
import { AT_SYMLINK_NOFOLLOW, readFdInfo, readLinkAt, readStatus, statAt } from "../../host/index.ts";
import { ENOENT, Errno } from "../../lib/errno.ts";
import type { Node } from "./node.ts";
import type { MachineView, Place, Probe } from "./paths.ts";

const AT_FDCWD = -100;
const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFLNK = 0o120000;

/** A descriptor that stands for a node of the tree. */
export interface TreeDescriptor {
  readonly path: string;
  /** undefined: it is gone, as a device's files are after its removal. */
  readonly node: Node | undefined;
  /** It was opened for its content; else it is a directory, or names a file only. */
  readonly isContent: boolean;
}

/** Where a relative path begins. */
export interface Start {
  readonly place: Place;
  /** See `WalkOptions.detached`. */
  readonly detached: boolean;
}

export interface ShadowView {
  /** The directory of the machine's that one of ours stands for. */
  machineDirectory(path: string): boolean;
  /** The node a path of the private folder, or the link of one of our memory files, stands for. */
  nodeOfLink(link: string): TreeDescriptor | undefined;
}

export class ThreadView implements MachineView {
  readonly pid: number;
  readonly tid: number;
  readonly #shadow: ShadowView;
  #root: string | undefined = undefined;
  #sees: boolean | undefined = undefined;

  constructor(pid: number, tid: number, shadow: ShadowView) {
    this.pid = pid;
    this.tid = tid;
    this.#shadow = shadow;
  }

  /** Its root as we would write it; "/" unless it has changed it. Undefined when we may not know. */
  get root(): string | undefined {
    if (this.#root === undefined) {
      const link = readLinkAt(AT_FDCWD, `/proc/${this.tid}/root`);
      if (link instanceof Errno) return undefined;
      this.#root = link;
    }
    return this.#root;
  }

  /** Whether /sys and /dev are to it what they are to us: the tree covers those alone. */
  get seesTree(): boolean {
    this.#sees ??=
      this.root === "/" ||
      (this.root !== undefined && same(`/proc/${this.tid}/root/sys`, "/sys") && same(`/proc/${this.tid}/root/dev`, "/dev"));
    return this.#sees;
  }

  probe(path: string): Probe {
    const self = this.#selfLink(path);
    if (self !== undefined) return { link: self, magic: false };
    const real = `/proc/${this.tid}/root${path}`;
    const found = statAt(AT_FDCWD, real, AT_SYMLINK_NOFOLLOW);
    if (found instanceof Errno) return found;
    const type = found.mode & S_IFMT;
    if (type === S_IFDIR) return "directory";
    if (type !== S_IFLNK) return "other";
    const link = readLinkAt(AT_FDCWD, real);
    if (link instanceof Errno) return link;
    // Links of /proc that are more than their text.
    const magic = /^\/proc\/\d+\/(task\/\d+\/)?(cwd|root|exe|fd\/\d+|map_files\/[^/]+)$/.test(path);
    return { link: magic ? this.#inRoot(link) : link, magic };
  }

  /** /proc/self is the program's, not ours. */
  #selfLink(path: string): string | undefined {
    if (path === "/proc/self") return `${this.pid}`;
    if (path === "/proc/thread-self") return `${this.pid}/task/${this.tid}`;
    return undefined;
  }

  shadowNode(path: string): Node | undefined {
    return this.#shadow.nodeOfLink(path)?.node;
  }

  /** Where a descriptor leads: a node, a directory of the machine, or nowhere that a path can start from. */
  descriptor(fd: number): Start | undefined {
    const link = readLinkAt(AT_FDCWD, `/proc/${this.tid}/fd/${fd}`);
    return link instanceof Errno ? undefined : this.#place(link);
  }

  /** What a descriptor stands for. */
  nodeOf(fd: number): TreeDescriptor | undefined {
    const link = readLinkAt(AT_FDCWD, `/proc/${this.tid}/fd/${fd}`);
    return link instanceof Errno ? undefined : this.#shadow.nodeOfLink(link);
  }

  /** O_* of a descriptor, and where its position is. */
  fileState(fd: number): { readonly flags: number; readonly position: bigint } | undefined {
    const info = readFdInfo(this.tid, fd);
    if (info === undefined) return undefined;
    return { flags: Number.parseInt(info.get("flags") ?? "0", 8), position: BigInt(info.get("pos") ?? "0") };
  }

  /** The working directory. */
  get cwd(): Start | undefined {
    const link = readLinkAt(AT_FDCWD, `/proc/${this.tid}/cwd`);
    return link instanceof Errno ? undefined : this.#place(link);
  }

  /** It may do at a path what we may: the same ids, groups, capabilities, namespaces and root. */
  get hasOurRights(): boolean {
    const its = readStatus(this.tid);
    const ours = readStatus(process.pid);
    if (its === undefined || ours === undefined || this.root !== "/") return false;
    for (const ns of ["user", "mnt", "pid"]) {
      if (readLinkAt(AT_FDCWD, `/proc/${this.tid}/ns/${ns}`) !== readLinkAt(AT_FDCWD, `/proc/self/ns/${ns}`)) return false;
    }
    return (
      its.uids[3] === ours.uids[3] && its.gids[3] === ours.gids[3] && its.capEff === ours.capEff && `${its.groups}` === `${ours.groups}`
    );
  }

  #place(link: string): Start | undefined {
    const known = this.#shadow.nodeOfLink(link);
    if (known?.node !== undefined) return { place: known.node, detached: true };
    if (known !== undefined) return this.#shadow.machineDirectory(known.path) ? { place: known.path, detached: true } : undefined;
    const path = this.#inRoot(link);
    return path.startsWith("/") && !path.endsWith(" (deleted)") ? { place: path, detached: false } : undefined;
  }

  /** A path that /proc writes from our root, from the thread's. */
  #inRoot(link: string): string {
    const root = this.root ?? "/";
    if (root === "/" || !link.startsWith("/")) return link;
    if (link === root) return "/";
    return link.startsWith(`${root}/`) ? link.slice(root.length) : link;
  }
}

function same(a: string, b: string): boolean {
  const [x, y] = [statAt(AT_FDCWD, a), statAt(AT_FDCWD, b)];
  if (x instanceof Errno || y instanceof Errno) return x === ENOENT && y === ENOENT;
  return x.ino === y.ino && x.devMajor === y.devMajor && x.devMinor === y.devMinor;
}
