/**
 * What all handlers of paths share: the tree and what stands for it in the
 * program, and the way from a call's arguments to a file.
 */
import { Errno } from "../../lib/errno.ts";
import type { Supervisor, TrappedCall } from "../types.ts";
import { Contents } from "./contents.ts";
import { WorkingDirectories } from "./cwds.ts";
import type { Node } from "./node.ts";
import { type Walked, type WalkOptions, walk } from "./paths.ts";
import { Shadow } from "./shadow.ts";
import { claimFolder } from "./sweep.ts";
import { Tree } from "./tree.ts";
import { type Start, ThreadView, type TreeDescriptor } from "./view.ts";

export const AT_FDCWD = -100;

/**
 * A path that may be one of ours has one of these in it: the last name of a
 * mount, a descriptor's link, or our folder. What gets by is a symbolic link
 * from outside that was there before the program ran, under another name.
 */
const SUSPECT = /pci|vfio|iommu|udmabuf|dma_heap|\/fd\/|dev\/char|kernel\/+debug|barlink-[0-9a-f]{12}/;

/** A directory whose listing is the machine's and ours. */
const MERGED = /^\/+(?:dev|sys\/+(?:bus|class(?:\/+misc)?|devices(?:\/+virtual(?:\/+misc)?)?|kernel|module|dev\/+char))(?:\/+\.?)*$/;

/** Owner and permissions that the program gave a file, in place of root's and the kernel's. */
export interface Ownership {
  mode?: number;
  uid?: number;
  gid?: number;
}

export class TreeContext {
  readonly supervisor: Supervisor;
  readonly tree: Tree;
  readonly cwds: WorkingDirectories = new WorkingDirectories();
  readonly ownership: Map<string, Ownership> = new Map();
  /** The program has one of our directories, or a descriptor that names one of our files. */
  anyDescriptor = false;
  /** The program has made a link that may lead to us: every path is looked at. */
  anyLink = false;
  #shadow: Shadow | undefined = undefined;
  #contents: Contents | undefined = undefined;

  constructor(supervisor: Supervisor) {
    this.supervisor = supervisor;
    this.tree = new Tree(supervisor.kernel, supervisor.options.selftest);
  }

  /** Made on first use: most programs need a few files of it, and some none. */
  get shadow(): Shadow {
    if (this.#shadow === undefined) {
      this.#shadow = new Shadow(this.tree, `${this.supervisor.directory}/tree`);
      claimFolder(this.supervisor.directory);
    }
    return this.#shadow;
  }

  get contents(): Contents {
    if (this.#contents === undefined) {
      const made = new Contents(this.tree);
      this.#contents = made;
      this.supervisor.onReadable(made.watchFd, () => made.drain());
    }
    return this.#contents;
  }

  /** The program has a file open for its content. */
  get anyOpen(): boolean {
    return (this.#contents?.count ?? 0) > 0;
  }

  /** A write may be one to the tree. */
  get anyWritable(): boolean {
    return this.#contents?.anyWritable === true;
  }

  /** A descriptor may stand for a node: a file, a directory or an open device. */
  get anyNode(): boolean {
    return this.anyDescriptor || this.anyOpen || this.anyWritable || this.supervisor.files.count > 0;
  }

  /** Brings what the program has of the tree in step with the kernel. */
  sync(): void {
    this.#shadow?.sync();
    this.#contents?.sync();
  }

  close(): void {
    this.#contents?.close();
    this.#shadow?.close();
  }

  view(call: TrappedCall): ThreadView {
    return new ThreadView(call.pid, call.tid, this);
  }

  /** The node that the link of a descriptor stands for. */
  nodeOfLink(link: string): TreeDescriptor | undefined {
    const held = this.#contents?.ofLink(link);
    const path = held?.path ?? this.#shadow?.treePath(link);
    if (path === undefined) return undefined;
    return { path, node: this.tree.lookup(path), isContent: held?.isContent === true };
  }

  /** Quickly: whether a path of this call could lead to us. `dirfd`, `path`: which arguments. */
  suspects(call: TrappedCall, dirfd: number | undefined, path: number): boolean {
    const text = call.path(path);
    if (typeof text !== "string" || text === "") return false;
    if (this.anyLink || SUSPECT.test(text)) return true;
    if (text.startsWith("/")) return false;
    return dirfd === undefined || call.int(dirfd) === AT_FDCWD ? this.cwds.any : this.anyDescriptor;
  }

  /** The same for an open, which may list a directory. */
  suspectsOpen(call: TrappedCall, dirfd: number | undefined, path: number): boolean {
    const text = call.path(path);
    return typeof text === "string" && (MERGED.test(text) || this.suspects(call, dirfd, path));
  }

  /**
   * Where a path leads; undefined when it is surely not ours. `base`: a
   * descriptor, or AT_FDCWD.
   */
  resolve(call: TrappedCall, base: number, path: string, options: WalkOptions): Walked | undefined {
    const walked = this.walk(call, base, path, options);
    return walked?.kind === "machine" && !walked.escaped ? undefined : walked;
  }

  /** The same for a path of the machine's too. */
  walk(call: TrappedCall, base: number, path: string, options: WalkOptions): Walked | undefined {
    const view = this.view(call);
    if (!view.seesTree) return undefined;
    if (path.startsWith("/") && options.resolve === undefined) return walk(this.tree, view, "/", path, options);
    const start = this.#start(view, base);
    // A bad descriptor, or a place that has no name: the real kernel's to answer.
    if (start === undefined) return undefined;
    return walk(this.tree, view, start.place, path, { ...options, detached: start.detached });
  }

  #start(view: ThreadView, base: number): Start | undefined {
    if (base !== AT_FDCWD) return view.descriptor(base);
    const virtual = this.cwds.get(view.pid);
    if (virtual === undefined) return view.cwd;
    const place = this.tree.lookup(virtual);
    return place === undefined ? undefined : { place, detached: true };
  }

  machineDirectory(path: string): boolean {
    return this.tree.isMerged(path);
  }

  /** The node behind a descriptor of the caller's, an open device among them. */
  nodeOfDescriptor(call: TrappedCall, fd: number): Node | undefined {
    const known = this.view(call).nodeOf(fd)?.node;
    if (known !== undefined) return known;
    const file = call.fd(fd);
    const node = file === undefined ? undefined : this.tree.lookup(file.path);
    return node?.kind === "char" ? node : undefined;
  }
}

/** The path argument of a call, when it can be read. */
export function textOf(call: TrappedCall, arg: number): string | undefined {
  const text = call.path(arg);
  return text instanceof Errno ? undefined : text;
}
