/**
 * RAM of the embedded kernel that a program maps: a buffer of a dma-heap, pages
 * that a driver offers through /dev/iommu.
 *
 * A mapping of one of our descriptors is a mapping of the memfd it really is. So
 * when the program maps such memory for the first time its frames' bytes move
 * into the memfd, and the frames are backed by it: devices and program see the
 * same bytes from then on. They move back when the program has let go of its
 * last descriptor and mapping; the memory may live on. Where a frame is freed
 * before that, its page of the memfd is zeros again.
 *
 * A file with a size is one such memory. In one without, what a mapping begins
 * at is memory of its own, as long as the mapping.
 *
 * A buffer made of the program's own memory (udmabuf) cannot be shown so: its
 * bytes are in another file already, and a mapping is of one file. It is refused,
 * which Linux does not, and the user is told; the program's own mapping of the
 * memfd shows the same pages.
 *
 * Limit: a private mapping made before the first shared one shows zeros.
 */
import { preadFd, pwriteFd } from "../host/fd.ts";
import { ftruncateFd, punchHole } from "../host/memfd.ts";
import type { File } from "../kernel/fs/file.ts";
import type { Kernel } from "../kernel/kernel.ts";
import type { FrameBacking } from "../kernel/mm/frames.ts";
import type { Vma } from "../kernel/mm/vma.ts";
import { PAGE_SIZE, type Pfn, pfnOf } from "../lib/addr.ts";
import { ENODEV, type Errno } from "../lib/errno.ts";
import type { SupervisedFiles } from "./types.ts";

/** What is needed of the supervisor. */
export interface WindowHost {
  readonly kernel: Kernel;
  readonly files: Pick<SupervisedFiles, "memfd" | "onLastClose">;
  warn(message: string): void;
}

/** The windows into one file. */
interface FileWindows {
  readonly open: Set<FrameWindow>;
  /** Pages that the memfd holds. */
  pages: number;
}

const windows: WeakMap<File, FileWindows> = new WeakMap();

/**
 * Lets the program see the frames behind `file`, of which it is about to map
 * `vma`; ENODEV when that cannot be. Nothing to do for a file whose faults give
 * no RAM.
 */
export function showFrames(host: WindowHost, file: File, vma: Vma): Errno | undefined {
  const size = file.ops.stat?.(file).size ?? 0n;
  const first = size > 0n ? 0 : vma.pageOffset(Number(vma.start >> 12n));
  const known = windows.get(file);
  for (const w of known?.open ?? []) if (w.first === first) return undefined;
  const pfns = framesOf(host.kernel, vma, first, Number((size > 0n ? size : vma.length) / BigInt(PAGE_SIZE)));
  if (pfns.length === 0) return undefined;
  const memfd = host.files.memfd(file);
  if (memfd === undefined) return ENODEV;
  if (pfns.some((p) => host.kernel.frames.isBacked(p))) {
    host.warn(`${file.path} is made of the program's own memory, and cannot be mapped through its descriptor here: map the memfd`);
    return ENODEV;
  }
  const of = known ?? open(host, file, Number(size / BigInt(PAGE_SIZE)));
  if (first + pfns.length > of.pages) {
    of.pages = first + pfns.length;
    ftruncateFd(memfd, of.pages * PAGE_SIZE);
  }
  of.open.add(new FrameWindow(host.kernel, memfd, first, pfns, (w) => of.open.delete(w)));
  return undefined;
}

function open(host: WindowHost, file: File, pages: number): FileWindows {
  const of: FileWindows = { open: new Set(), pages };
  windows.set(file, of);
  host.files.onLastClose(file, () => {
    windows.delete(file);
    for (const w of of.open) w.close();
  });
  return of;
}

/** The frames of `npages` pages of the file from page `first` on, in order; none when some page is not RAM. */
function framesOf(kernel: Kernel, vma: Vma, first: number, npages: number): Pfn[] {
  const { ops } = vma;
  const pfns: Pfn[] = [];
  for (let i = 0; ops !== undefined && i < npages; i++) {
    const at = ops.fault(vma, first + i);
    if (typeof at !== "bigint" || !kernel.frames.isRam(pfnOf(at))) return [];
    pfns.push(pfnOf(at));
  }
  return pfns;
}

class FrameWindow implements FrameBacking {
  /** Page of the file where it begins. */
  readonly first: number;
  readonly #kernel: Kernel;
  readonly #memfd: number;
  readonly #emptied: (w: FrameWindow) => void;
  /** Page of the file, by frame. */
  readonly #pages: Map<Pfn, number> = new Map();

  constructor(kernel: Kernel, memfd: number, first: number, pfns: readonly Pfn[], emptied: (w: FrameWindow) => void) {
    this.first = first;
    this.#kernel = kernel;
    this.#memfd = memfd;
    this.#emptied = emptied;
    const bytes = new Uint8Array(PAGE_SIZE);
    for (const [i, pfn] of pfns.entries()) {
      kernel.frames.readFrame(pfn, 0, bytes);
      if (bytes.some((b) => b !== 0)) pwriteFd(memfd, bytes, (first + i) * PAGE_SIZE);
      this.#pages.set(pfn, first + i);
      kernel.frames.adopt(pfn, this);
    }
  }

  read(offset: number, dst: Uint8Array, pfn: Pfn): boolean {
    return preadFd(this.#memfd, dst, this.#at(pfn) + offset) === dst.length;
  }

  write(offset: number, src: Uint8Array, pfn: Pfn): boolean {
    return pwriteFd(this.#memfd, src, this.#at(pfn) + offset) === src.length;
  }

  release(pfn: Pfn): void {
    punchHole(this.#memfd, this.#at(pfn), PAGE_SIZE);
    this.#pages.delete(pfn);
    if (this.#pages.size === 0) this.#emptied(this);
  }

  /** The bytes go back to the frames that are still there. */
  close(): void {
    const { frames } = this.#kernel;
    const bytes = new Uint8Array(PAGE_SIZE);
    for (const pfn of this.#pages.keys()) {
      if (frames.refs(pfn) === 0) continue;
      const whole = this.read(0, bytes, pfn);
      frames.adopt(pfn, undefined);
      if (whole && bytes.some((b) => b !== 0)) frames.writeFrame(pfn, 0, bytes);
    }
    this.#pages.clear();
  }

  #at(pfn: Pfn): number {
    return (this.#pages.get(pfn) ?? 0) * PAGE_SIZE;
  }
}
