/**
 * The tree on disk: real directories with links and empty files in them, so
 * that listing one, and opening relative to it, need nobody's help.
 *
 * They stand in a private folder and are made when they are first needed, one
 * directory at a time, and kept in step with the tree. What stat says of them
 * comes from the node, except for device and inode number: those are the real
 * ones, the same by whatever way one comes.
 *
 * The folder belongs to the user, and so a program run by that user can change
 * it. It changes its own view at most: every path below it is walked beneath
 * the folder's descriptor, through no link. What the program opens for its
 * content is in `contents.ts`, out of its reach.
 */
import { type Dirent, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import {
  closeFd,
  type FileStatus,
  mknodAt,
  must,
  openAt,
  RESOLVE_BENEATH,
  RESOLVE_NO_SYMLINKS,
  readLinkAt,
  statAt,
} from "../../host/index.ts";
import { EEXIST, ENOENT, Errno, errnoOf } from "../../lib/errno.ts";
import * as O from "../../uapi/fcntl.ts";
import { baseOf, type DirNode, type Node, parentOf } from "./node.ts";
import type { Tree } from "./tree.ts";

const RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;
/** O_* of an open of a directory that the descriptor keeps. */
const KEPT = O.O_NONBLOCK | O.O_NOATIME;

export class Shadow {
  readonly tree: Tree;
  /** The folder, canonical. */
  readonly root: string;
  readonly #fd: number;
  /** Directories made, by path. */
  readonly #made: Set<string> = new Set(["/"]);
  /** What is ours in each of them, as it was made last. */
  readonly #filled: Map<string, string> = new Map();
  #seen: string | undefined = undefined;
  /** What was looked up, until the tree changes. */
  readonly #statuses: Map<string, FileStatus> = new Map();
  /** What the machine has in directories that list both. */
  readonly #machine: Map<string, ReadonlyMap<string, Node>> = new Map();
  /** Empty character devices can be made there, so that a listing shows their kind. */
  #makesNodes = true;

  /** Makes the folder; it is the caller's to remove. */
  constructor(tree: Tree, folder: string) {
    this.tree = tree;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    this.#fd = must("open", openAt(AT_FDCWD, folder, O.O_PATH | O.O_DIRECTORY | O.O_NOFOLLOW | O.O_CLOEXEC), folder);
    this.root = must("readlink", readLinkAt(AT_FDCWD, `/proc/self/fd/${this.#fd}`));
  }

  close(): void {
    closeFd(this.#fd);
  }

  /** The path in the tree that a path below the folder stands for. */
  treePath(hostPath: string): string | undefined {
    if (!hostPath.startsWith(this.root)) return undefined;
    const path = hostPath.slice(this.root.length).replace(/ \(deleted\)$/, "");
    return path.startsWith("/") ? path : undefined;
  }

  /** Real device and inode numbers and times of a node. */
  status(node: Node): FileStatus | Errno {
    const known = this.#statuses.get(node.path);
    if (known !== undefined) return known;
    const found = this.#inParent(node.path, (parent, name) => statAt(parent, name, AT_SYMLINK_NOFOLLOW));
    if (!(found instanceof Errno)) this.#statuses.set(node.path, found);
    return found;
  }

  /** A descriptor for the program, ours to close. Never with O_PATH: such a one cannot be handed over. */
  openDirectory(node: DirNode, flags: number): number | Errno {
    const failed = this.#make(node.path);
    if (failed !== undefined) return failed;
    return this.#open(node.path, (flags & KEPT) | O.O_DIRECTORY | O.O_NOFOLLOW | O.O_CLOEXEC);
  }

  /**
   * A descriptor of a directory that lists what `real`, a directory of the
   * machine's, has, and what is ours in it. undefined when there is nothing to
   * add, or not everybody may list the real one.
   */
  openMerged(path: string, real: string): number | Errno | undefined {
    const ours = this.#node(path);
    if (ours === undefined) return undefined;
    const found = statAt(AT_FDCWD, real, 0);
    if (!(found instanceof Errno) && (found.mode & 0o005) !== 0o005) return undefined;
    let entries: readonly Dirent[];
    try {
      entries = found instanceof Errno ? [] : readdirSync(real, { withFileTypes: true });
    } catch {
      return undefined;
    }
    const names = new Set(entries.map((e) => e.name));
    if ([...ours.children.keys()].every((n) => names.has(n))) return undefined;
    const children = new Map<string, Node>();
    for (const e of entries) children.set(e.name, placeholder(`${path}/${e.name}`, real, e));
    this.#machine.set(path, children);
    const failed = this.#make(path) ?? this.#fill(ours);
    return failed ?? this.#open(path, O.O_RDONLY | O.O_DIRECTORY | O.O_NOFOLLOW | O.O_CLOEXEC);
  }

  /** Brings the directories that were made up to date. */
  sync(): void {
    const now = this.tree.version;
    if (this.#seen === now) return;
    this.#seen = now;
    this.#statuses.clear();
    for (const path of [...this.#made].sort()) {
      const node = this.#node(path);
      if (node === undefined) this.#made.delete(path);
      else if (this.#filled.get(path) !== signature(node)) this.#fill(node);
    }
  }

  /** Directories of the tree and those above its mounts alike. */
  #node(path: string): DirNode | undefined {
    let at: Node = this.tree.current;
    for (const name of path.split("/")) {
      if (name === "") continue;
      const next: Node | undefined = at.kind === "dir" ? at.children.get(name) : undefined;
      if (next === undefined) return undefined;
      at = next;
    }
    return at.kind === "dir" ? at : undefined;
  }

  /** Makes a directory of the tree, with what is in it, and those above it. */
  #make(path: string): Errno | undefined {
    if (this.#made.has(path)) return undefined;
    const above = parentOf(path);
    const failed = this.#make(above);
    if (failed !== undefined) return failed;
    const node = this.#node(path);
    if (node === undefined) return ENOENT;
    this.#made.add(path);
    const made = this.#inParent(path, (parent, name) => makeDirectory(parent, name));
    return made instanceof Errno && made !== EEXIST ? made : this.#fill(node);
  }

  /** Makes what is missing in a directory that exists, and removes what the tree no longer has. */
  #fill(node: DirNode): Errno | undefined {
    const fd = this.#open(node.path, O.O_RDONLY | O.O_DIRECTORY | O.O_NOFOLLOW | O.O_CLOEXEC);
    if (fd instanceof Errno) return fd;
    const machine = this.#machine.get(node.path);
    const children = machine === undefined ? node.children : new Map([...machine, ...node.children]);
    try {
      const at = `/proc/self/fd/${fd}`;
      const there = new Map(readdirSync(at, { withFileTypes: true }).map((e) => [e.name, e]));
      for (const [name, entry] of there) {
        const child = children.get(name);
        // A link may lead elsewhere than before: it is made anew.
        const stays = child !== undefined && child.kind !== "link" && entry.isDirectory() === (child.kind === "dir");
        if (stays) continue;
        rmSync(`${at}/${name}`, { recursive: true, force: true });
        there.delete(name);
        this.#forget(`${node.path}/${name}`);
      }
      for (const [name, child] of children) if (!there.has(name)) this.#create(fd, name, child);
      this.#filled.set(node.path, signature(node));
      return undefined;
    } catch (e) {
      return errnoOfException(e);
    } finally {
      closeFd(fd);
    }
  }

  #create(dirfd: number, name: string, node: Node): void {
    const path = `/proc/self/fd/${dirfd}/${name}`;
    switch (node.kind) {
      case "dir":
        mkdirSync(path, { mode: 0o755 });
        break;
      case "link":
        symlinkSync(node.text, path);
        break;
      case "char":
        // Device 0:0 needs no privilege to make, and cannot be opened.
        if (this.#makesNodes && mknodAt(dirfd, name, O.S_IFCHR | 0o600, 0) === undefined) break;
        this.#makesNodes = false;
        writeFileSync(path, "", { flag: "wx", mode: 0o600 });
        break;
      case "file":
        writeFileSync(path, "", { flag: "wx", mode: 0o600 });
        break;
    }
  }

  #forget(path: string): void {
    for (const p of this.#made) if (p === path || p.startsWith(`${path}/`)) this.#made.delete(p);
  }

  /** Calls back with a descriptor of the directory that holds `path`, made if need be. */
  #inParent<T>(path: string, use: (parent: number, name: string) => T): T | Errno {
    const above = parentOf(path);
    const failed = this.#make(above);
    if (failed !== undefined) return failed;
    const parent = this.#open(above, O.O_PATH | O.O_DIRECTORY | O.O_CLOEXEC);
    if (parent instanceof Errno) return parent;
    try {
      return use(parent, baseOf(path));
    } finally {
      closeFd(parent);
    }
  }

  #open(path: string, flags: number): number | Errno {
    return openAt(this.#fd, path === "/" ? "." : path.slice(1), flags, { resolve: RESOLVE });
  }
}

/** Changes with what a listing of the directory shows. */
function signature(node: DirNode): string {
  let out = "";
  for (const [name, child] of node.children) out += `${name}\0${child.kind === "link" ? child.text : child.kind}\0`;
  return out;
}

/** What shows of a file of the machine's in a listing: its name and kind. */
function placeholder(path: string, real: string, e: Dirent): Node {
  if (e.isDirectory()) return { kind: "dir", path, mode: 0o755, children: new Map() };
  if (e.isCharacterDevice() || e.isBlockDevice()) return { kind: "char", path, mode: 0o600, major: 0, minor: 0 };
  if (e.isSymbolicLink()) {
    const text = readLinkAt(AT_FDCWD, `${real}/${e.name}`);
    if (!(text instanceof Errno)) return { kind: "link", path, text };
  }
  return { kind: "file", path, mode: 0o444, size: 0, binary: false };
}

function makeDirectory(parent: number, name: string): Errno | undefined {
  try {
    mkdirSync(`/proc/self/fd/${parent}/${name}`, { mode: 0o755 });
    return undefined;
  } catch (e) {
    return errnoOfException(e);
  }
}

function errnoOfException(e: unknown): Errno {
  const number = (e as { errno?: unknown }).errno;
  if (typeof number !== "number") throw e;
  return errnoOf(Math.abs(number));
}
