/**
 * The whole tree, kept in step with the kernel.
 *
 * `current` renders it anew when the kernel has changed since. Nothing else
 * changes a tree; its files read the kernel when they are opened.
 *
 * `MOUNTS` are the places at which the tree covers what the machine has:
 * at and below one of them, a path is ours, whether or not there is anything;
 * everywhere else the machine's own files show. A kernel that is built for its
 * own tests also has a debugfs.
 */
import type { Kernel } from "../../kernel/kernel.ts";
import { type DirNode, type Node, parentOf, TreeBuilder } from "./node.ts";
import { renderDevices, renderModules } from "./render_class.ts";
import { DEBUGFS, renderDebugfs } from "./render_debugfs.ts";
import { renderGroups } from "./render_groups.ts";
import { renderPci } from "./render_pci.ts";
import { newTreeState, type TreeState } from "./state.ts";

const MOUNTS: readonly string[] = [
  "/dev/dma_heap",
  "/dev/iommu",
  "/dev/udmabuf",
  "/dev/vfio",
  "/sys/bus/pci",
  "/sys/class/dma_heap",
  "/sys/class/iommu",
  "/sys/class/misc/iommu",
  "/sys/class/misc/udmabuf",
  "/sys/class/misc/vfio",
  "/sys/class/vfio",
  "/sys/class/vfio-dev",
  "/sys/devices/pci0000:00",
  "/sys/devices/virtual/dma_heap",
  "/sys/devices/virtual/iommu",
  "/sys/devices/virtual/misc/iommu",
  "/sys/devices/virtual/misc/udmabuf",
  "/sys/devices/virtual/misc/vfio",
  "/sys/devices/virtual/vfio",
  "/sys/kernel/iommu_groups",
  "/sys/module/iommufd",
  "/sys/module/vfio",
  "/sys/module/vfio_iommu_type1",
  "/sys/module/vfio_pci",
  "/sys/module/vfio_pci_core",
];

/** /sys/dev/char is the machine's; only the numbers of our nodes are ours. */
const BY_NUMBER = "/sys/dev/char/";

/** Where one tree covers the machine's. */
class Places {
  readonly mounts: ReadonlySet<string>;
  /** Directories on the way to a mount, the mounts themselves not among them. */
  readonly above: ReadonlySet<string>;
  /** Directories of the machine's that hold one of our mounts: their listing is both. */
  readonly merged: ReadonlySet<string>;

  constructor(mounts: readonly string[]) {
    const own = new Set(mounts);
    this.mounts = own;
    this.above = new Set(
      [...mounts, `${BY_NUMBER}0:0`].flatMap((m) => {
        const out: string[] = [];
        for (let d = parentOf(m); ; d = parentOf(d)) {
          out.push(d);
          if (d === "/") return out;
        }
      }),
    );
    this.merged = new Set([...mounts.map(parentOf), BY_NUMBER.slice(0, -1)].filter((d) => !own.has(d)));
  }
}

const PLACES = new Places(MOUNTS);

export class Tree {
  readonly kernel: Kernel;
  readonly state: TreeState = newTreeState();
  readonly #debugfs: boolean;
  readonly #places: Places;
  #root: DirNode | undefined = undefined;
  #numbers: ReadonlyMap<string, Node> = new Map();
  #seen = "";

  /** `debugfs`: a kernel for its own tests, whose debugfs is this tree's too. */
  constructor(kernel: Kernel, debugfs = false) {
    this.kernel = kernel;
    this.#debugfs = debugfs;
    this.#places = debugfs ? new Places([...MOUNTS, DEBUGFS]) : PLACES;
  }

  /** Counts up whenever the kernel is not what it was when the tree was rendered last. */
  get version(): string {
    const { pci, fs, iommu } = this.kernel;
    return `${pci.generation}.${fs.devices.size}.${iommu.groups.size}`;
  }

  /** The root, as things are. */
  get current(): DirNode {
    const now = this.version;
    if (this.#root === undefined || this.#seen !== now) {
      const t = new TreeBuilder();
      renderPci(t, this.kernel, this.state);
      renderGroups(t, this.kernel, this.state);
      renderDevices(t, this.kernel);
      renderModules(t, this.kernel, this.state);
      if (this.#debugfs) renderDebugfs(t, this.kernel);
      for (const m of MOUNTS) if (m === "/dev/vfio" || m === "/dev/dma_heap") t.dir(m);
      this.#root = t.root;
      this.#numbers = t.dir("/sys/dev/char").children;
      this.#seen = now;
    }
    return this.#root;
  }

  /** The node at a path of ours; links are not followed. undefined: there is none, or the path is not ours. */
  lookup(path: string): Node | undefined {
    let node: Node = this.current;
    let ours = false;
    for (const name of path.split("/")) {
      if (name === "") continue;
      if (node.kind !== "dir") return undefined;
      const next = node.children.get(name);
      if (next === undefined) return undefined;
      node = next;
      ours ||= this.isMount(node.path);
    }
    return ours ? node : undefined;
  }

  /** Where the tree begins: a mount, or a number in /sys/dev/char that is one of ours. */
  isMount(path: string): boolean {
    if (this.#places.mounts.has(path)) return true;
    if (!path.startsWith(BY_NUMBER)) return false;
    return this.current !== undefined && this.#numbers.has(path.slice(BY_NUMBER.length));
  }

  /** A directory of the machine's in which something of ours is. */
  isMerged(path: string): boolean {
    return this.#places.merged.has(path);
  }

  /** A directory of the machine's on the way to ours: it is a directory, whatever else the machine says. */
  isAbove(path: string): boolean {
    return this.#places.above.has(path);
  }
}
