/** Why the bytes of a pinned page cannot be reached. */
export type LostReason =
  /** The process ended, or executed another program, and nothing else shows the page. */
  | "exited"
  /** It is not mapped there any more, and too much was unmapped at once to be kept. */
  | "unmapped"
  /** mremap moved the page to where barlink does not know. */
  | "moved"
  /** The file was cut before it. */
  | "truncated"
  /** The file can be read here, and not written: it is sealed, or its owner may only read it. */
  | "read-only";

/** Events of memory and files. `mm.<what>` and `fs.<what>`; addresses and lengths are bytes. */
export type MmEvent =
  /** A process mapped something at [addr, addr + length). */
  | { readonly type: "mm.mmap"; readonly addr: bigint; readonly length: bigint; readonly prot: number; readonly what: string }
  | { readonly type: "mm.munmap"; readonly addr: bigint; readonly length: bigint }
  /** A page was missing, or not writable: what the fault came to. */
  | { readonly type: "mm.fault"; readonly addr: bigint; readonly write: boolean; readonly outcome: string }
  /** Mappings of a file's range were taken away; the next access faults again. */
  | { readonly type: "mm.zap"; readonly offset: bigint; readonly length: bigint; readonly pages: number }
  /** Pages were pinned for DMA, from an address or from a file. */
  | { readonly type: "mm.pin"; readonly from: string; readonly npages: number; readonly write: boolean }
  | { readonly type: "mm.unpin"; readonly npages: number }
  /**
   * A device reached for a pinned page of a real program whose bytes barlink
   * cannot reach any more, where Linux would still hold the page. `origin` is
   * whose page it was, `page` its number there (an address or an offset / 4096);
   * `pinned` pages of that origin are pinned. See supervise/pins.ts.
   */
  | {
      readonly type: "mm.lost";
      readonly origin: string;
      readonly page: number;
      readonly pfn: number;
      readonly pinned: number;
      readonly write: boolean;
      readonly why: LostReason;
    }
  /** Pinned pages of a real program left its memory: barlink holds their bytes from now on, as Linux does. */
  | { readonly type: "mm.kept"; readonly origin: string; readonly page: number; readonly npages: number; readonly why: string }
  /** Fault injection made an allocation or a copy fail: which knob, and what was not made. */
  | { readonly type: "mm.fail"; readonly by: string; readonly what: string }
  /** Somebody reached RAM that has no owner. */
  | { readonly type: "mm.stray"; readonly pfn: number; readonly write: boolean }
  /** Pages charged to RLIMIT_MEMLOCK (negative: given back), and whether the limit allowed it. */
  | { readonly type: "mm.account"; readonly mode: string; readonly npages: number; readonly ok: boolean }
  | { readonly type: "fs.open"; readonly path: string; readonly flags: number }
  /** The last reference is gone and the file is being released. */
  | { readonly type: "fs.release"; readonly path: string }
  | { readonly type: "fs.install"; readonly fd: number; readonly path: string; readonly pid: number }
  | { readonly type: "fs.close"; readonly fd: number; readonly path: string; readonly pid: number }
  | { readonly type: "fs.fork"; readonly pid: number; readonly child: number }
  | { readonly type: "fs.exit"; readonly pid: number }
  | { readonly type: "fs.eventfd_signal"; readonly path: string; readonly count: bigint };
