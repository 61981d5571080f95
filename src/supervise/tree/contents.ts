/**
 * What the program has open of the tree's files.
 *
 * An open file is a memory file of its own with the content as it was at the
 * open, and follows the kernel while it is open: config space read twice
 * through one descriptor is read twice. Its name, which the real kernel shows
 * in /proc/PID/fd, tells which node it is.
 *
 * Who can only write gets one that is sealed: a write that is served never
 * reaches it, and one that is not, being too long to be trapped, fails with
 * EPERM and not in silence.
 */
import {
  closeFd,
  fcntl,
  ftruncateFd,
  IN_CLOSE,
  IN_IGNORED,
  Inotify,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  memfdCreate,
  pwriteFd,
  reopenFd,
} from "../../host/index.ts";
import { Errno } from "../../lib/errno.ts";
import * as O from "../../uapi/fcntl.ts";
import type { FileNode } from "./node.ts";
import type { Tree } from "./tree.ts";

const SEALS = O.F_SEAL_SEAL | O.F_SEAL_SHRINK | O.F_SEAL_GROW | O.F_SEAL_WRITE;
/** What an open of the program's may say beside how it will access the file. */
const KEPT = O.O_ACCMODE | O.O_APPEND | O.O_NONBLOCK | O.O_DSYNC | O.O_SYNC | O.O_NOATIME;

interface Open {
  readonly path: string;
  /** Ours, through which the content is changed; undefined where there is none to read. */
  readonly fd: number | undefined;
  readonly writable: boolean;
  content: Uint8Array;
}

const NOTHING = new Uint8Array();

export class Contents {
  readonly #tree: Tree;
  readonly #inotify: Inotify = new Inotify();
  readonly #numbers: Map<string, number> = new Map();
  readonly #paths: string[] = [];
  /** By watch: what is open. */
  readonly #open: Map<number, Open> = new Map();
  #writable = 0;

  constructor(tree: Tree) {
    this.#tree = tree;
  }

  /** Readable when something was closed. */
  get watchFd(): number {
    return this.#inotify.fd;
  }

  /** Files that the program has open. */
  get count(): number {
    return this.#open.size;
  }

  /** What the link of a descriptor stands for: a node's path, and whether it was opened for its content; undefined when it is none of ours. */
  ofLink(link: string): { readonly path: string; readonly isContent: boolean } | undefined {
    const [, what, number] = /^\/memfd:barlink-(sysfs|path):(\d+)(?: \(deleted\))?$/.exec(link) ?? [];
    const path = number === undefined ? undefined : this.#paths[Number(number)];
    return path === undefined ? undefined : { path, isContent: what === "sysfs" };
  }

  /** A descriptor that only names a node (O_PATH: none such can be handed over, so it is an empty file that nobody can change). */
  name(path: string): number | Errno {
    const fd = memfdCreate(`barlink-path:${this.#number(path)}`, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (!(fd instanceof Errno)) fcntl(fd, O.F_ADD_SEALS, SEALS);
    return fd;
  }

  /** Whether a write could be one to the tree: something is open to be written. */
  get anyWritable(): boolean {
    if (this.#writable > 0) this.drain();
    return this.#writable > 0;
  }

  /** A descriptor for the program, ours to close. */
  open(node: FileNode, flags: number): number | Errno {
    const access = flags & O.O_ACCMODE;
    const raw = memfdCreate(`barlink-sysfs:${this.#number(node.path)}`, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (raw instanceof Errno) return raw;
    const readable = access !== O.O_WRONLY;
    const content = readable ? contentOf(node) : NOTHING;
    if (readable) pwriteFd(raw, content, 0);
    // One with positions takes what was served as well, so that its position moves on.
    else if (!node.binary) fcntl(raw, O.F_ADD_SEALS, SEALS);
    const fd = reopenFd(raw, flags & KEPT);
    const watch = fd instanceof Errno ? fd : this.#inotify.watchFd(fd, IN_CLOSE);
    if (watch instanceof Errno) {
      closeFd(raw);
      // Without a watch nothing would say when it is closed.
      if (!(fd instanceof Errno)) closeFd(fd);
      return watch;
    }
    if (!readable) closeFd(raw);
    const writable = access !== O.O_RDONLY;
    if (writable) this.#writable++;
    this.#open.set(watch, { path: node.path, fd: readable ? raw : undefined, writable, content });
    return fd;
  }

  /** Content of what is open, as it is now. */
  sync(): void {
    if (this.#open.size === 0) return;
    this.drain();
    for (const open of this.#open.values()) {
      if (open.fd === undefined) continue;
      const node = this.#tree.lookup(open.path);
      if (node?.kind !== "file" || node.show === undefined) continue;
      const content = contentOf(node);
      if (equal(content, open.content)) continue;
      open.content = content;
      pwriteFd(open.fd, content, 0);
      ftruncateFd(open.fd, content.length);
    }
  }

  /** Takes note of what was closed. */
  drain(): void {
    this.#inotify.drain((watch, mask) => {
      const open = this.#open.get(watch);
      if (open === undefined || (mask & (IN_CLOSE | IN_IGNORED)) === 0) return;
      this.#open.delete(watch);
      if (open.fd !== undefined) closeFd(open.fd);
      if (open.writable) this.#writable--;
      if ((mask & IN_IGNORED) === 0) this.#inotify.unwatch(watch);
    });
  }

  close(): void {
    for (const open of this.#open.values()) if (open.fd !== undefined) closeFd(open.fd);
    this.#open.clear();
    this.#inotify.close();
  }

  #number(path: string): number {
    let n = this.#numbers.get(path);
    if (n === undefined) {
      n = this.#paths.push(path) - 1;
      this.#numbers.set(path, n);
    }
    return n;
  }
}

const encoder = new TextEncoder();

function contentOf(node: FileNode): Uint8Array {
  const shown = node.show?.() ?? "";
  return typeof shown === "string" ? encoder.encode(shown) : shown;
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
