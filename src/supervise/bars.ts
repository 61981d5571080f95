/**
 * A function's BARs in a real program's memory.
 *
 * The descriptor that the program holds is a memfd, and what it maps is that
 * memfd, so a BAR that it maps is one range of it, at the offset that
 * GET_REGION_INFO tells. From the first mapping of a BAR to the last close of
 * the file the BAR's bytes live there (a *window*):
 *
 * - plain memory (`BarMemory` that can move) moves into the memfd: the device,
 *   a peer's DMA, pread and the mapping all work on the same pages;
 * - anything else (registers, memory that is switched off, a function that does
 *   not answer) shows an image, which `RegisterImage` keeps in step.
 *
 * A revoke truncates the memfd: every mapping of every process then raises
 * SIGBUS. What was in it, up to the last store that went through, waits in the
 * model until memory can be reached again. Then it is written in ascending
 * order, each page before the file's end passes it: nobody sees a page without
 * its content.
 * Whether it can is looked at whenever a writer releases ML, so that a reset
 * that ends with memory reachable is not seen at all: in Linux an access in
 * between would have waited.
 *
 * Nothing here maps the memfd: the program can truncate it, and an access of
 * ours would then be our end.
 */
import { closeFd, preadFd, pwriteFd } from "../host/fd.ts";
import { ftruncateFd, memfdCreate, punchHole } from "../host/memfd.ts";
import { nextData } from "../host/sparse.ts";
import { type FilePiece, truncateKeeping } from "../host/steal.ts";
import type { BarMemory, BarStore } from "../kernel/pci/pci_model.ts";
import type { VfioPciCoreDevice } from "../kernel/vfio/pci/vfio_pci_core.ts";
import { Errno } from "../lib/errno.ts";
import { type Doorbells, RegisterImage } from "./doorbells.ts";

const PAGE = 4096;
const wholePages = (n: number): number => Math.ceil(n / PAGE) * PAGE;

/** A range of a memfd. What lies past the file's end (the program truncated it) reads as zeros. */
export class MemfdStore implements BarStore {
  /** What there was when the memfd was truncated: read instead of it, until `clear`. */
  kept: readonly FilePiece[] | undefined = undefined;
  readonly #fd: number;
  readonly #base: number;
  readonly #length: number;

  constructor(fd: number, base: number, length: number) {
    this.#fd = fd;
    this.#base = base;
    this.#length = length;
  }

  read(offset: number, dst: Uint8Array): void {
    if (this.kept !== undefined) {
      readKept(this.kept, this.#base + offset, dst);
      return;
    }
    let done = 0;
    while (done < dst.length) {
      const n = preadFd(this.#fd, done === 0 ? dst : dst.subarray(done), this.#base + offset + done);
      if (n instanceof Errno || n === 0) break;
      done += n;
    }
    dst.fill(0, done);
  }

  write(offset: number, src: Uint8Array): void {
    const length = Math.min(src.length, this.#length - offset);
    for (let done = 0; done < length; ) {
      const n = pwriteFd(this.#fd, src.subarray(done, length), this.#base + offset + done);
      if (n instanceof Errno) throw new Error(`the memory of a BAR cannot be written: ${n.name}, ${n.meaning}`);
      done += n;
    }
  }

  clear(): void {
    this.kept = undefined;
    punchHole(this.#fd, this.#base, wholePages(this.#length));
  }

  *data(): Generator<{ readonly offset: number; readonly length: number }, void, void> {
    for (const { start, bytes } of this.kept ?? []) yield { offset: start - this.#base, length: bytes.length };
    if (this.kept !== undefined) return;
    const end = this.#base + this.#length;
    for (let at = this.#base; at < end; ) {
      const run = nextData(this.#fd, at);
      if (run === undefined || run instanceof Errno || run.start >= end) return;
      const to = Math.min(run.end, end);
      yield { offset: run.start - this.#base, length: to - run.start };
      at = to;
    }
  }
}

let longEnough = 0;

/** Whether the host lets us make a file of so many bytes, tried on another: EFBIG under RLIMIT_FSIZE. */
function tooLong(bytes: number): Errno | undefined {
  if (bytes <= longEnough) return undefined;
  const fd = memfdCreate("barlink-length");
  if (fd instanceof Errno) return fd;
  const error = ftruncateFd(fd, bytes);
  closeFd(fd);
  if (error === undefined) longEnough = bytes;
  return error;
}

function readKept(pieces: readonly FilePiece[], at: number, dst: Uint8Array): void {
  dst.fill(0);
  for (const { start, bytes } of pieces) {
    const from = Math.max(start, at);
    const to = Math.min(start + bytes.length, at + dst.length);
    if (from < to) dst.set(bytes.subarray(from - start, to - start), from - at);
  }
}

/** What stands behind a BAR just now: memory that moved, or an image of what reads give. */
interface Source {
  /** Tells one from another. */
  readonly what: BarMemory | "registers" | "nobody answers";
  readonly moves: boolean;
}

const SILENT: Source = { what: "nobody answers", moves: false };
const REGISTERS: Source = { what: "registers", moves: false };

/** One BAR that is, or was, mapped. */
class MappedBar {
  readonly store: MemfdStore;
  /** Its range of the memfd, whole pages. */
  readonly start: number;
  readonly end: number;
  readonly #vdev: VfioPciCoreDevice;
  readonly #bar: number;
  readonly #doorbells: Doorbells;
  #source: Source | undefined = undefined;
  #image: RegisterImage | undefined = undefined;

  constructor(vdev: VfioPciCoreDevice, bar: number, memfd: number, doorbells: Doorbells) {
    this.#vdev = vdev;
    this.#bar = bar;
    this.#doorbells = doorbells;
    const base = Number(vdev.regionOffset(bar));
    const size = this.#size;
    this.store = new MemfdStore(memfd, base, size);
    this.start = base;
    this.end = base + wholePages(size);
  }

  get #size(): number {
    return Number(this.#vdev.pdev.resources[this.#bar]?.length ?? 0n);
  }

  /** Shows what stands behind the BAR now; `changed`: registers may show something else than they did. */
  show(changed: boolean): void {
    const now = this.#now();
    const was = this.#source;
    if (was?.what === now.what) {
      if (changed) this.#image?.refresh();
      return;
    }
    this.hide();
    this.#source = now;
    if (typeof now.what === "object" && now.moves) now.what.moveTo?.(this.store);
    else {
      this.#image = new RegisterImage(this.#vdev.pdev.fn, this.#bar, this.store);
      this.#doorbells.add(this.#image);
    }
  }

  /** Runs of the memfd that hold memory, if it is memory that is shown. */
  *held(): Generator<{ readonly start: number; readonly end: number }, void, void> {
    if (this.#source?.moves !== true) return;
    for (const { offset, length } of this.store.data()) yield { start: this.start + offset, end: this.start + offset + length };
  }

  /** Carries out what was stored and not seen yet, wherever it is. */
  lastLook(): void {
    this.#image?.look();
    this.#image?.sweepAll();
  }

  /** Takes it out of the memfd, which is all zeros there after that. */
  hide(): void {
    const was = this.#source;
    this.#source = undefined;
    if (was === undefined) return;
    if (typeof was.what === "object" && was.moves) {
      was.what.moveTo?.(undefined);
      return;
    }
    if (this.#image !== undefined) {
      this.#image.stop();
      this.#doorbells.remove(this.#image);
      this.#image = undefined;
    }
    this.store.clear();
  }

  #now(): Source {
    const { fn } = this.#vdev.pdev;
    if (!fn.barAnswers(this.#bar)) return SILENT;
    const memory = fn.model.barMemory(this.#bar);
    if (memory === undefined) return REGISTERS;
    // The table of MSI-X lies in front of the memory: who writes it must be noticed.
    const hasTable = fn.msix?.touches(this.#bar, 0, this.#size) === true;
    return { what: memory, moves: memory.moveTo !== undefined && !hasTable };
  }
}

/** The BARs of one function as one file shows them. */
export class BarWindow {
  readonly vdev: VfioPciCoreDevice;
  readonly #memfd: number;
  readonly #doorbells: Doorbells;
  readonly #bars: Map<number, MappedBar> = new Map();
  #shown = false;
  #closed = false;
  #busy = false;

  /** Only one window of a function can be open at a time. `memfd` is the file's, and stays open until `close`. */
  constructor(vdev: VfioPciCoreDevice, memfd: number, doorbells: Doorbells) {
    this.vdev = vdev;
    this.#memfd = memfd;
    this.#doorbells = doorbells;
    vdev.memoryLock.released = () => this.#settle(true);
    vdev.pdev.fn.onActivity = () => this.#settle(true);
  }

  /** Memory can be reached: the mappings work. */
  get shown(): boolean {
    return this.#shown;
  }

  /** A BAR is about to be mapped for the first time, or again. Errno: the host does not let us make the memfd so long (RLIMIT_FSIZE). */
  map(bar: number): Errno | undefined {
    if (!this.#bars.has(bar)) {
      const mapped = new MappedBar(this.vdev, bar, this.#memfd, this.#doorbells);
      this.#bars.set(bar, mapped);
      const error = tooLong(mapped.end);
      if (error !== undefined) {
        this.#bars.delete(bar);
        return error;
      }
      if (this.#shown) this.#quietly(() => mapped.show(false));
      if (this.#shown) this.#grow();
    }
    this.#settle(false);
    return undefined;
  }

  /** Looks again whether memory can be reached, and what stands behind each BAR. */
  look(): void {
    this.#settle(false);
  }

  /** The last descriptor and mapping are gone: the bytes go back to where the model keeps them. */
  close(): void {
    if (this.#closed) return;
    // What was stored before the end still counts.
    for (const bar of this.#bars.values()) bar.lastLook();
    this.#closed = true;
    this.vdev.memoryLock.released = undefined;
    this.vdev.pdev.fn.onActivity = undefined;
    this.#quietly(() => this.#hide());
  }

  #settle(changed: boolean): void {
    // Between a zap and the release of ML nothing is decided; and moving bytes is no activity.
    if (this.#busy || this.#closed || this.#bars.size === 0 || this.vdev.memoryLock.heldForWriting) return;
    this.#quietly(() => {
      const reachable = this.vdev.barsReachable();
      if (!reachable) {
        if (this.#shown) this.#hide();
        return;
      }
      for (const bar of this.#inOrder()) bar.show(changed);
      if (this.#shown) return;
      // The content is there: the end of the file may pass what is left of it, zeros.
      this.#grow();
      this.#shown = true;
      this.#trace("shown");
    });
  }

  #hide(): void {
    if (!this.#shown) return;
    this.#shown = false;
    const bars = this.#inOrder();
    const kept = truncateKeeping(
      this.#memfd,
      bars.flatMap((bar) => [...bar.held()]),
    );
    for (const bar of bars) {
      bar.store.kept = kept.filter((piece) => piece.start >= bar.start && piece.start < bar.end);
      bar.hide();
      bar.store.kept = undefined;
    }
    this.#trace("revoked");
  }

  #inOrder(): MappedBar[] {
    return [...this.#bars.values()].sort((a, b) => a.start - b.start);
  }

  #grow(): void {
    let size = 0;
    for (const bar of this.#bars.values()) size = Math.max(size, bar.end);
    ftruncateFd(this.#memfd, size);
  }

  #quietly(action: () => void): void {
    this.#busy = true;
    try {
      action();
    } finally {
      this.#busy = false;
    }
  }

  #trace(state: "shown" | "revoked"): void {
    const { trace } = this.vdev.kernel;
    if (trace.on) trace.emit({ type: "vfio.bar_window", device: this.vdev.pdev.name, bars: [...this.#bars.keys()], state });
  }
}
