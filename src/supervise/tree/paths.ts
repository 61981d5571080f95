/**
 * Which file a path of the program's names: one of the tree's, or one of the machine's.
 *
 * The walk goes component by component, as the kernel's does, over two kinds of
 * places: a node of the tree, and a directory of the machine, known by its
 * canonical path in the program's own root. It passes from one to the other at
 * the mounts, by `..` at their tops, and by symbolic links either way.
 *
 * Nothing is gained by racing it. A path that ends on a node is served from the
 * tree alone: whatever changed meanwhile, the program gets what anybody may
 * have. A path that never touched the tree goes to the real kernel, which walks
 * it again with the program's own rights. What remains are paths that went
 * through the tree and out of it (`escaped`): the real kernel cannot walk them,
 * and who serves them must look at rights; see `outside.ts`.
 *
 * Source: fs/namei.c.
 */
import { ELOOP, ENOTDIR, Errno, EXDEV } from "../../lib/errno.ts";
import { type DirNode, type Node, parentOf } from "./node.ts";

/** Links that one walk may follow. */
const MAX_LINKS = 40;

/** What the walk must know of the machine, as the program sees it. */
export interface MachineView {
  /** What there is at a canonical path: its last component is not followed. */
  probe(path: string): Probe;
  /** The node that a path of the supervisor's private folder stands for; a link of /proc/PID/fd may lead there. */
  shadowNode(path: string): Node | undefined;
}

export type Probe = "directory" | "other" | { readonly link: string; readonly magic: boolean } | Errno;

/** What the walk must know of the tree. */
export interface TreeView {
  lookup(path: string): Node | undefined;
  isMount(path: string): boolean;
  isAbove(path: string): boolean;
}

export type Place = Node | string;

export interface WalkOptions {
  /** A link at the end is followed. */
  readonly follow: boolean;
  /** The start is a directory of the machine's, but its descriptor is one of ours: the real kernel cannot walk from it. */
  readonly detached?: boolean;
  /** openat2's RESOLVE_* bits. */
  readonly resolve?: number;
}

export const RESOLVE_NO_XDEV = 0x01;
export const RESOLVE_NO_MAGICLINKS = 0x02;
export const RESOLVE_NO_SYMLINKS = 0x04;
export const RESOLVE_BENEATH = 0x08;
export const RESOLVE_IN_ROOT = 0x10;
export const RESOLVE_CACHED = 0x20;

export type Walked =
  | { readonly kind: "node"; readonly node: Node }
  /** Nothing of that name in a directory of the tree. `last`: it was the last component. */
  | { readonly kind: "missing"; readonly parent: DirNode | string; readonly last: boolean }
  | { readonly kind: "error"; readonly errno: Errno }
  /** The machine's. `escaped`: the way there led through the tree, and `path` (canonical, but for its last component) is where it ends. */
  | { readonly kind: "machine"; readonly escaped: boolean; readonly path: string };

const fail = (errno: Errno): Walked => ({ kind: "error", errno });

/**
 * Walks `path` from `start`, the directory a relative path begins in: a node
 * or a canonical path. `path` is not empty.
 */
export function walk(tree: TreeView, machine: MachineView, start: Place, path: string, options: WalkOptions): Walked {
  const resolve = options.resolve ?? 0;
  const scoped = (resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) !== 0;
  const inRoot = (resolve & RESOLVE_IN_ROOT) !== 0;
  const mustBeDirectory = /\/\.{0,2}$/.test(path) || path === "." || path === "..";
  let at: Place = start;
  let through = typeof start !== "string" || options.detached === true;
  let crossed = false;
  let links = 0;
  if (path.startsWith("/")) {
    if ((resolve & RESOLVE_BENEATH) !== 0) return fail(EXDEV);
    if (!inRoot) {
      at = "/";
      through = false;
    }
  }
  const names = split(path);
  while (names.length > 0) {
    const name = names.pop() as string;
    const last = names.length === 0;
    if (typeof at !== "string" && at.kind !== "dir") return fail(ENOTDIR);
    if (name === ".") continue;
    if (name === "..") {
      if (scoped && samePlace(at, start)) {
        if (inRoot) continue;
        return fail(EXDEV);
      }
      const up: string = parentOf(placePath(at));
      if (typeof at !== "string" && tree.isMount(at.path)) {
        at = up;
        crossed = true;
      } else at = typeof at === "string" ? up : (tree.lookup(up) ?? up);
      continue;
    }
    let link: string | undefined;
    let magic = false;
    if (typeof at !== "string") {
      const dir: DirNode = at as DirNode;
      const next: Node | undefined = dir.children.get(name);
      if (next === undefined) return { kind: "missing", parent: dir, last };
      if (next.kind === "link") {
        if (last && !options.follow && !mustBeDirectory) return { kind: "node", node: next };
        link = next.text;
      } else at = next;
    } else {
      const candidate: string = at === "/" ? `/${name}` : `${at}/${name}`;
      if (tree.isMount(candidate)) {
        crossed = true;
        const node = tree.lookup(candidate);
        if (node === undefined) return { kind: "missing", parent: at, last };
        through = true;
        if (node.kind === "link") {
          if (last && !options.follow && !mustBeDirectory) return { kind: "node", node };
          link = node.text;
        } else at = node;
      } else if (tree.isAbove(candidate)) at = candidate;
      else {
        if (last && !options.follow && !mustBeDirectory) return { kind: "machine", escaped: through, path: candidate };
        const found = machine.probe(candidate);
        if (found instanceof Errno || (found === "other" && !last)) {
          // The real kernel says what is wrong with it; where it cannot be asked, so do we.
          if (!through || last) return { kind: "machine", escaped: through, path: candidate };
          return fail(found instanceof Errno ? found : ENOTDIR);
        }
        if (typeof found === "string") at = candidate;
        else {
          link = found.link;
          magic = found.magic;
        }
      }
    }
    if (link === undefined) continue;
    if ((resolve & RESOLVE_NO_SYMLINKS) !== 0 || (magic && (resolve & RESOLVE_NO_MAGICLINKS) !== 0) || ++links > MAX_LINKS)
      return fail(ELOOP);
    if (link.startsWith("/") || magic) {
      if (scoped && (magic || (resolve & RESOLVE_BENEATH) !== 0)) return fail(EXDEV);
      const shadow = machine.shadowNode(link);
      if (shadow !== undefined) {
        at = shadow;
        through = true;
        crossed = true;
        continue;
      }
      // A descriptor's link that is no path: a pipe, a memory file. The real kernel knows how to follow it.
      if (magic && !link.startsWith("/")) return { kind: "machine", escaped: through, path: link };
      at = inRoot ? start : "/";
      if (magic) {
        // It leads there directly: links on that way have been followed already.
        const landed: Walked = walk(tree, machine, "/", link, { follow: false });
        if (landed.kind === "machine") at = link;
        else if (landed.kind === "node") at = landed.node;
        else return { kind: "machine", escaped: through, path: link };
        continue;
      }
    }
    names.push(...split(link));
  }
  if (crossed && (resolve & RESOLVE_NO_XDEV) !== 0) return fail(EXDEV);
  if (typeof at === "string") return { kind: "machine", escaped: through, path: at };
  if (mustBeDirectory && at.kind !== "dir") return fail(ENOTDIR);
  return { kind: "node", node: at };
}

/** Components, the first one last. */
function split(path: string): string[] {
  return path
    .split("/")
    .filter((n) => n !== "")
    .reverse();
}

const placePath = (p: Place): string => (typeof p === "string" ? p : p.path);
const samePlace = (a: Place, b: Place): boolean => placePath(a) === placePath(b);
