/**
 * RAM of the embedded kernel that a program maps: a buffer of a dma-heap.
 *
 * A mapping of one of our descriptors is a mapping of the memfd it really is. So
 * when the program maps such a buffer for the first time its frames' bytes move
 * into the memfd, and the frames are backed by it: devices and program see the
 * same bytes from then on. They move back when the program has let go of its
 * last descriptor and mapping; the buffer may live on.
 *
 * A buffer made of the program's own memory (udmabuf) cannot be shown so: its
 * bytes are in another file already, and a mapping is of one file. It is refused,
 * which Linux does not, and the user is told; the program's own mapping of the
 * memfd shows the same pages.
 *
 * Limit: a private mapping made before the first shared one shows zeros.
 */
import { preadFd, pwriteFd } from "../host/fd.ts";
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

const windows: WeakMap<File, FrameWindow> = new WeakMap();

/**
 * Lets the program see the frames behind `file`, of which it is about to map
 * `vma`; ENODEV when that cannot be. Nothing to do for a file whose faults give
 * no RAM.
 */
export function showFrames(host: WindowHost, file: File, vma: Vma): Errno | undefined {
  if (windows.has(file)) return undefined;
  const pfns = framesOf(host.kernel, file, vma);
  if (pfns.length === 0) return undefined;
  const memfd = host.files.memfd(file);
  if (memfd === undefined) return ENODEV;
  if (pfns.some((p) => host.kernel.frames.isBacked(p))) {
    host.warn(`${file.path} is made of the program's own memory, and cannot be mapped through its descriptor here: map the memfd`);
    return ENODEV;
  }
  const w = new FrameWindow(host.kernel, memfd, pfns);
  windows.set(file, w);
  host.files.onLastClose(file, () => {
    windows.delete(file);
    w.close();
  });
  return undefined;
}

/** The frames of the whole file, in order. */
function framesOf(kernel: Kernel, file: File, vma: Vma): Pfn[] {
  const { ops } = vma;
  const pages = Number((file.ops.stat?.(file).size ?? 0n) / BigInt(PAGE_SIZE));
  const pfns: Pfn[] = [];
  for (let i = 0; ops !== undefined && i < pages; i++) {
    const at = ops.fault(vma, i);
    if (typeof at !== "bigint" || !kernel.frames.isRam(pfnOf(at))) return [];
    pfns.push(pfnOf(at));
  }
  return pfns;
}

class FrameWindow implements FrameBacking {
  readonly #kernel: Kernel;
  readonly #memfd: number;
  readonly #pages: Map<Pfn, number> = new Map();

  constructor(kernel: Kernel, memfd: number, pfns: readonly Pfn[]) {
    this.#kernel = kernel;
    this.#memfd = memfd;
    const bytes = new Uint8Array(PAGE_SIZE);
    for (const [i, pfn] of pfns.entries()) {
      kernel.frames.readFrame(pfn, 0, bytes);
      if (bytes.some((b) => b !== 0)) pwriteFd(memfd, bytes, i * PAGE_SIZE);
      this.#pages.set(pfn, i);
      kernel.frames.adopt(pfn, this);
    }
  }

  read(offset: number, dst: Uint8Array, pfn: Pfn): boolean {
    return preadFd(this.#memfd, dst, this.#at(pfn) + offset) === dst.length;
  }

  write(offset: number, src: Uint8Array, pfn: Pfn): boolean {
    return pwriteFd(this.#memfd, src, this.#at(pfn) + offset) === src.length;
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
