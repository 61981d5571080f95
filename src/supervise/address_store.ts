/**
 * A process's memory by address, as devices reach it: past protections, and
 * never another process's.
 *
 * Two descriptors, opened while the process is known to be itself: of
 * /proc/PID/mem and of /proc/PID/maps. Both belong to the memory: once the
 * process has ended or executed another program they find nothing. They are kept
 * until the memory is told to be gone and no page of it is pinned.
 */
import { closeFd, preadFd, pwriteFd } from "../host/fd.ts";
import { AT_FDCWD, openAt } from "../host/openat.ts";
import type { Mapping } from "../host/proc.ts";
import { ProcessMaps } from "../host/procmap.ts";
import { minN, PAGE_SHIFT } from "../lib/addr.ts";
import { Errno } from "../lib/errno.ts";
import type { LostReason } from "../trace/events/mm.ts";
import { O_CLOEXEC, O_RDWR } from "../uapi/index.ts";
import { type PageStore, PinnedPages } from "./pins.ts";
import type { MemoryTarget } from "./process_memory.ts";
import type { AddressedMemory, RealMemory } from "./real_file.ts";

export class AddressStore implements PageStore, AddressedMemory {
  readonly name: string;
  readonly target: MemoryTarget;
  /** Private pages that are pinned; a page's number is its address / 4096. */
  readonly pages: PinnedPages;
  #mem: number | undefined = undefined;
  #maps: ProcessMaps | undefined = undefined;
  #destroyed = false;

  constructor(shared: RealMemory, target: MemoryTarget) {
    this.name = `process ${target.pid}`;
    this.target = target;
    this.pages = new PinnedPages(shared.kernel, this, shared.budget);
  }

  mappingFrom(addr: bigint): Mapping | undefined {
    return this.#open() ? this.#maps?.from(addr) : undefined;
  }

  /** All of them, by address; none when it cannot be asked. */
  mappings(): Mapping[] {
    return this.#open() ? (this.#maps?.all() ?? []) : [];
  }

  peek(address: bigint, dst: Uint8Array): LostReason | undefined {
    return outcome(this.#mem === undefined ? 0 : preadFd(this.#mem, dst, address), dst.length);
  }

  poke(address: bigint, src: Uint8Array): LostReason | undefined {
    return outcome(this.#mem === undefined ? 0 : pwriteFd(this.#mem, src, address), src.length);
  }

  /**
   * Copies as the process itself could, by its mappings' protections, from or to
   * `address`: the bytes NOT copied.
   */
  copy(address: bigint, buf: Uint8Array, write: boolean): number {
    for (let done = 0; done < buf.length; ) {
      const at = address + BigInt(done);
      const m = this.mappingFrom(at);
      if (m === undefined || m.start > at || !(write ? m.writable : m.readable)) return buf.length - done;
      const n = Number(minN(m.end - at, BigInt(buf.length - done)));
      const part = buf.subarray(done, done + n);
      const r = this.#mem === undefined ? 0 : write ? pwriteFd(this.#mem, part, at) : preadFd(this.#mem, part, at);
      const got = r instanceof Errno ? 0 : r;
      done += got;
      if (got < n) return buf.length - done;
    }
    return 0;
  }

  read(page: number, offset: number, dst: Uint8Array): LostReason | undefined {
    return this.peek(addressOf(page, offset), dst);
  }

  write(page: number, offset: number, src: Uint8Array): LostReason | undefined {
    return this.poke(addressOf(page, offset), src);
  }

  destroy(): void {
    this.#destroyed = true;
    this.idle();
  }

  idle(): void {
    if (!this.#destroyed || this.pages.live > 0) return;
    if (this.#mem !== undefined) closeFd(this.#mem);
    this.#maps?.close();
    this.#mem = undefined;
    this.#maps = undefined;
  }

  #open(): boolean {
    if (this.#mem !== undefined) return true;
    const { pid, tid, alive } = this.target;
    if (!alive || this.#destroyed) return false;
    // By both numbers: a thread's own may be another process's by now.
    const maps = ProcessMaps.open(pid, tid);
    if (maps instanceof Errno) return false;
    const mem = openAt(AT_FDCWD, `/proc/${pid}/task/${tid}/mem`, O_RDWR | O_CLOEXEC);
    if (mem instanceof Errno) {
      maps.close();
      return false;
    }
    this.#maps = maps;
    this.#mem = mem;
    return true;
  }
}

const addressOf = (page: number, offset: number): bigint => (BigInt(page) << BigInt(PAGE_SHIFT)) + BigInt(offset);

/** The memory of a process that is gone reads as empty; an address that nothing is mapped at, EIO. */
function outcome(n: number | Errno, want: number): LostReason | undefined {
  if (n === want) return undefined;
  return n === 0 ? "exited" : "unmapped";
}
