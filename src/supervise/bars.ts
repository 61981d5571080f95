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
 * SIGBUS. What was in it waits in the model until memory can be reached again.
 * Whether it can is looked at whenever a writer releases ML, so that a reset
 * that ends with memory reachable is not seen at all: in Linux an access in
 * between would have waited.
 *
 * Nothing here maps the memfd: the program can truncate it, and an access of
 * ours would then be our end.
 */
import { preadFd, pwriteFd } from "../host/fd.ts";
import { ftruncateFd, punchHole } from "../host/memfd.ts";
import { nextData } from "../host/sparse.ts";
import type { BarMemory, BarStore } from "../kernel/pci/pci_model.ts";
import type { VfioPciCoreDevice } from "../kernel/vfio/pci/vfio_pci_core.ts";
import { Errno } from "../lib/errno.ts";
import { type Doorbells, RegisterImage } from "./doorbells.ts";

const PAGE = 4096;
const wholePages = (n: number): number => Math.ceil(n / PAGE) * PAGE;

/** A range of a memfd. What lies past the file's end (the program truncated it) reads as zeros. */
export class MemfdStore implements BarStore {
  readonly #fd: number;
  readonly #base: number;
  readonly #length: number;

  constructor(fd: number, base: number, length: number) {
    this.#fd = fd;
    this.#base = base;
    this.#length = length;
  }

  read(offset: number, dst: Uint8Array): void {
    let done = 0;
    while (done < dst.length) {
      const n = preadFd(this.#fd, done === 0 ? dst : dst.subarray(done), this.#base + offset + done);
      if (n instanceof Errno || n === 0) break;
      done += n;
    }
    dst.fill(0, done);
  }

  write(offset: number, src: Uint8Array): void {
    for (let done = 0; done < src.length; ) {
      const n = pwriteFd(this.#fd, done === 0 ? src : src.subarray(done), this.#base + offset + done);
      if (n instanceof Errno) throw new Error(`the memory of a BAR cannot be written: ${n.name}, ${n.meaning}`);
      done += n;
    }
  }

  clear(): void {
    punchHole(this.#fd, this.#base, wholePages(this.#length));
  }

  *data(): Generator<{ readonly offset: number; readonly length: number }, void, void> {
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
      if (this.#shown) {
        const error = this.#grow();
        if (error !== undefined) {
          this.#bars.delete(bar);
          return error;
        }
      }
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
      if (!this.#shown) {
        const error = this.#grow();
        if (error !== undefined) return;
        this.#shown = true;
        this.#trace("shown");
      }
      for (const bar of this.#bars.values()) bar.show(changed);
    });
  }

  #hide(): void {
    if (!this.#shown) return;
    this.#shown = false;
    for (const bar of this.#bars.values()) bar.hide();
    ftruncateFd(this.#memfd, 0);
    this.#trace("revoked");
  }

  #grow(): Errno | undefined {
    let size = 0;
    for (const bar of this.#bars.values()) size = Math.max(size, bar.end);
    return ftruncateFd(this.#memfd, size);
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
