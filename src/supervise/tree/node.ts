/**
 * A file of the tree that programs walk: what sysfs and devtmpfs would hold.
 *
 * A tree is rendered from the kernel's state and never changed: when the state
 * changes, another tree is rendered. What a file says is asked for when it is
 * opened, not when the tree is made.
 *
 * Paths are absolute, without `.`, `..` or a slash at the end.
 */
import type { Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";

interface Common {
  readonly path: string;
}

export interface DirNode extends Common {
  readonly kind: "dir";
  readonly mode: number;
  readonly children: Map<string, Node>;
}

export interface FileNode extends Common {
  readonly kind: "file";
  /** Permission bits. Who is root may still not open against all of them, as in sysfs. */
  readonly mode: number;
  /** What stat says: a page for text, whatever the text. */
  readonly size: number;
  /** What a reader finds; absent where nobody can read. */
  readonly show?: (() => string | Uint8Array) | undefined;
  /** Waits until it can be read. */
  readonly ready?: (() => Step<void>) | undefined;
  /** Takes what was written: how much of it, or why not. */
  readonly store?: Store | undefined;
  /** Bytes at positions, not a text: `position` counts. */
  readonly binary: boolean;
  /** The file can be looked at and not opened. */
  readonly refuse?: Errno | undefined;
}

export type Store = (data: Uint8Array, position: bigint) => Step<number | Errno>;

export interface LinkNode extends Common {
  readonly kind: "link";
  /** As readlink gives it. */
  readonly text: string;
}

export interface CharNode extends Common {
  readonly kind: "char";
  readonly mode: number;
  readonly major: number;
  readonly minor: number;
}

export type Node = DirNode | FileNode | LinkNode | CharNode;

/** What stat says of the size of a text attribute. */
export const ATTRIBUTE_SIZE = 4096;

/** A tree being made. Directories come into being with what is put into them. */
export class TreeBuilder {
  readonly root: DirNode = { kind: "dir", path: "/", mode: 0o755, children: new Map() };
  readonly #dirs: Map<string, DirNode> = new Map([["/", this.root]]);

  dir(path: string): DirNode {
    const have = this.#dirs.get(path);
    if (have !== undefined) return have;
    const made: DirNode = { kind: "dir", path, mode: 0o755, children: new Map() };
    this.#dirs.set(path, made);
    this.dir(parentOf(path)).children.set(baseOf(path), made);
    return made;
  }

  /** A text that anybody may read: 0444, or 0644 with a `store`. */
  text(path: string, show: () => string, store?: Store): void {
    this.#put({ kind: "file", path, mode: store === undefined ? 0o444 : 0o644, size: ATTRIBUTE_SIZE, show, store, binary: false });
  }

  /** A file to be written only: 0200, as `bind`. */
  trigger(path: string, store: Store, mode = 0o200): void {
    this.#put({ kind: "file", path, mode, size: ATTRIBUTE_SIZE, store, binary: false });
  }

  file(node: Omit<FileNode, "kind">): void {
    this.#put({ kind: "file", ...node });
  }

  /** A link to `target`, an absolute path, in the way sysfs writes it: up to the directory they share, the target itself not counted. */
  link(path: string, target: string): void {
    this.#put({ kind: "link", path, text: linkText(path, target) });
  }

  char(path: string, mode: number, major: number, minor: number): void {
    this.#put({ kind: "char", path, mode, major, minor });
  }

  #put(node: Node): void {
    this.dir(parentOf(node.path)).children.set(baseOf(node.path), node);
  }
}

/** `/` for what is directly in it. */
export const parentOf = (path: string): string => path.slice(0, path.lastIndexOf("/")) || "/";
export const baseOf = (path: string): string => path.slice(path.lastIndexOf("/") + 1);

function linkText(path: string, target: string): string {
  const from = path.split("/");
  const to = target.split("/");
  let common = 0;
  // Neither the link's own name nor the target's counts.
  while (common < from.length - 1 && common < to.length - 1 && from[common] === to[common]) common++;
  return "../".repeat(from.length - 1 - common) + to.slice(common).join("/");
}

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;

/** st_mode. */
export function modeOf(node: Node): number {
  switch (node.kind) {
    case "dir":
      return S_IFDIR | node.mode;
    case "file":
      return S_IFREG | node.mode;
    case "link":
      return S_IFLNK | 0o777;
    case "char":
      return S_IFCHR | node.mode;
  }
}
