/**
 * A real process's memory, as the embedded kernel uses it.
 *
 * **Copies** (an ioctl's struct) go through process_vm_readv and _writev: page
 * protections count as they do for the process itself, and a copy stops at the
 * exact byte that cannot be accessed. They go by the thread whose call is served,
 * which waits for us: no number is as sure. A copy for another process than the
 * caller's goes by its memory instead, and by the list of its mappings.
 *
 * **Pins.** Linux pins pages; from outside no page can be pinned, so a page is
 * pinned by name (`pins.ts`), and what may be pinned is decided as
 * get_user_pages with FOLL_LONGTERM decides it, from the process's mappings:
 *
 * | Mapping | Pinned as | Its bytes survive |
 * |---|---|---|
 * | shared, of memfd, tmpfs, hugetlbfs, /dev/zero | (device, inode, offset) | munmap, close and exit, through a descriptor of ours |
 * | the same, and no descriptor can be had | the same, reached through the mappings | munmap (set apart), exit while another process maps it |
 * | shared, of a file on disk | for reading only | as above |
 * | private | this memory and the address | munmap, MAP_FIXED, MADV_DONTNEED (set apart); not exit, not exec |
 * | hole, PROT_NONE, wrong protection, a device's, past the end of a file | EFAULT | |
 * | a BAR or a buffer of ours | EFAULT: VM_PFNMAP on Linux | |
 *
 * "This memory" is a descriptor of /proc/PID/mem, which belongs to the memory
 * and not to the pid: after an exec or the process's end it reads nothing,
 * whoever has the pid then. It also goes past page protections, as DMA does: an
 * mprotect after the pin stops no device. And it reaches the page that is at the
 * address now, which in a process that forked is the parent's own, where Linux
 * leaves the pin.
 *
 * **What leaves.** munmap, mmap with MAP_FIXED, mremap, madvise and brk put
 * something else, or nothing, where a pinned page was; Linux keeps the page for
 * the device. `leaving` is told before the real call is made (`memory_calls.ts`)
 * and takes the bytes, so that the device goes on with them, apart from the
 * program. At most 512 MiB are held so.
 *
 * Limits, each an `mm.lost` event when a device comes for such a page:
 * - the process was killed or ran another program, or had more than 16 MiB
 *   pinned when it exited: private bytes are gone (Linux holds the page until
 *   its last unpin);
 * - a pinned page that mremap moved to an address of the kernel's choice: the
 *   device does not follow it (Linux's does);
 * - a page that was cut off a file by ftruncate;
 * - a file that was sealed against writing after the fact.
 * Limits without an event: a page of a private file mapping that was pinned for
 * reading and never written shows later changes of the file (Linux copies it at
 * the pin); holes punched into a pinned file are seen by the device; guard
 * regions (MADV_GUARD_INSTALL) inside of a pinned range are not found by `pin`.
 *
 * Source: mm/gup.c (check_vma_flags, writable_file_mapping_allowed), fs/proc/base.c (mem_rw).
 */
import { readdirSync, readFileSync } from "node:fs";
import { closeFd } from "../host/fd.ts";
import { AT_FDCWD, openAt } from "../host/openat.ts";
import { pidfdGetFd, pidfdOpen } from "../host/pidfd.ts";
import type { Mapping } from "../host/proc.ts";
import { readMemory, writeMemory } from "../host/process_vm.ts";
import { encodeDev, statAt, statFd } from "../host/stat.ts";
import type { Kernel } from "../kernel/kernel.ts";
import type { UserMemory } from "../kernel/mm/user_memory.ts";
import { hex, minN, PAGE_MASK_N, PAGE_SHIFT, PAGE_SIZE_N, type Pfn, type PhysAddr } from "../lib/addr.ts";
import { EFAULT, EPERM, Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import type { LostReason } from "../trace/events/mm.ts";
import { O_CLOEXEC, O_NOCTTY, O_NONBLOCK, O_RDONLY } from "../uapi/index.ts";
import { AddressStore } from "./address_store.ts";
import { devicePage, heldIdOf } from "./device_mappings.ts";
import type { PinnedPages } from "./pins.ts";
import { type FileKind, type FileView, HUGE_PAGE, type MappedMemory, type RealFile, type RealMemory } from "./real_file.ts";

/** How the process is reached: `Target` of the supervisor. */
export interface MemoryTarget {
  readonly pid: number;
  /** A thread of it that lives. */
  readonly tid: number;
  /** False once it ended, or executed another program. */
  readonly alive: boolean;
}

/** No address of a program lies here or above; with five levels of page tables the half of the address space is 2^56. */
const TASK_END = 1n << 56n;
const OURS = "/memfd:barlink:";
const ANON_HUGE = "/anon_hugepage";
const SHMEM_NAMES = ["/memfd:", "/dev/zero (deleted)", "/SYSV", "/dev/shm/"];

/** Pages of a process's memory, or of a file that it maps shared. */
interface Part {
  readonly pages: PinnedPages;
  readonly first: number;
  npages: number;
  /** 4 KiB pages to a page. */
  readonly unit: number;
  /** A user of the file, to put when all is pinned. */
  readonly file: RealFile | undefined;
}

export class ProcessMemory implements UserMemory, MappedMemory {
  readonly kernel: Kernel;
  readonly shared: RealMemory;
  readonly target: MemoryTarget;
  readonly #space: AddressStore;
  readonly #ahead = new Ahead();

  constructor(shared: RealMemory, target: MemoryTarget) {
    this.kernel = shared.kernel;
    this.shared = shared;
    this.target = target;
    this.#space = new AddressStore(shared, target);
    shared.memories.add(this);
  }

  read(addr: bigint, dst: Uint8Array): number {
    if (!this.target.alive || addr >= TASK_END) return dst.length;
    const tid = this.shared.caller(this.target);
    if (tid === undefined) return this.#space.copy(addr, dst, false);
    if (dst.length === SIZE_FIELD) return this.#ahead.readSize(tid, addr, dst, this.shared.calls);
    if (this.#ahead.take(addr, dst, this.shared.calls)) return 0;
    const n = readMemory(tid, addr, dst);
    return n instanceof Errno ? dst.length : dst.length - n;
  }

  write(addr: bigint, src: Uint8Array): number {
    if (!this.target.alive || addr >= TASK_END) return src.length;
    this.#ahead.drop();
    const tid = this.shared.caller(this.target);
    if (tid === undefined) return this.#space.copy(addr, src, true);
    const n = writeMemory(tid, addr, src);
    return n instanceof Errno ? src.length : src.length - n;
  }

  pin(addr: bigint, npages: number, write: boolean): Pfn[] | Errno {
    const end = addr + (BigInt(npages) << BigInt(PAGE_SHIFT));
    if (end > TASK_END) return EFAULT;
    const parts: Part[] = [];
    try {
      for (let at = addr; at < end; ) {
        const to = this.#part(at, end, write, parts);
        if (to instanceof Errno) return to;
        at = to;
      }
      const pfns = this.#pinParts(parts);
      const { trace } = this.kernel;
      if (trace.on && !(pfns instanceof Errno)) {
        trace.emit({ type: "mm.pin", from: `${this.#space.name} ${hex(addr)}`, npages, write });
      }
      return pfns;
    } finally {
      for (const p of parts) p.file?.put();
    }
  }

  *followPfnmap(addr: bigint, write: boolean): Step<PhysAddr | Errno | undefined> {
    const mapping = this.mappingFrom(addr);
    if (mapping === undefined || mapping.start > addr) return undefined;
    const id = heldIdOf(mapping);
    const file = id === undefined ? undefined : this.shared.heldFile(id);
    return file === undefined ? undefined : yield* devicePage(file, mapping, addr, write);
  }

  unpin(pfns: readonly Pfn[], _dirty: boolean): void {
    const { frames, trace } = this.kernel;
    for (const p of pfns) frames.unpin(p);
    if (trace.on) trace.emit({ type: "mm.unpin", npages: pfns.length });
  }

  /**
   * Mappings in [addr, addr + length) are about to go, or their private pages to
   * be dropped (`privateOnly`). Pinned bytes that nothing else shows are taken
   * now; with `lost` they are not.
   */
  leaving(addr: bigint, length: bigint, why: string, options: { privateOnly?: boolean; lost?: LostReason } = {}): void {
    const start = addr & ~PAGE_MASK_N;
    const end = minN(addr + length + PAGE_MASK_N, TASK_END) & ~PAGE_MASK_N;
    if (end <= start) return;
    this.#space.pages.setApart(vpnOf(start), vpnOf(end), why, options.lost);
    if (options.privateOnly !== true) this.#removeViews(start, end, why, options.lost);
  }

  /** A page is pinned by address, or one of a file that is mapped here: only then `leaving` matters. */
  get pinned(): boolean {
    if (this.#space.pages.size > 0) return true;
    for (const f of this.shared.files.values()) if (f.views.some((v) => v.memory === this.#space)) return true;
    return false;
  }

  /** Frames that stand for private pages of it. */
  get privatePins(): number {
    return this.#space.pages.live;
  }

  /** Does descriptor `fd` of it refer to anything? */
  hasDescriptor(fd: number): boolean {
    return fd >= 0 && !(statAt(AT_FDCWD, `/proc/${this.target.tid}/fd/${fd}`) instanceof Errno);
  }

  /** No address of a program lies here or above. */
  get end(): bigint {
    return TASK_END;
  }

  /** The mapping that contains `addr`, or the next one above; undefined when there is none. */
  mappingFrom(addr: bigint): Mapping | undefined {
    return this.#space.mappingFrom(addr);
  }

  /** The process is gone, or is another program now. Its pins stay until they are undone. */
  destroy(): void {
    this.shared.memories.delete(this);
    this.#removeViews(0n, TASK_END, "exit", "exited");
    this.#space.destroy();
  }

  viewsOf(key: string): FileView[] {
    return this.#space
      .mappings()
      .filter((m) => m.shared && keyOf(m) === key)
      .map((m) => this.#viewOf(m));
  }

  #viewOf(m: Mapping): FileView {
    return { memory: this.#space, first: vpnOf(m.offset), npages: vpnOf(m.end) - vpnOf(m.start), address: m.start, writable: m.writable };
  }

  #removeViews(start: bigint, end: bigint, why: string, lost: LostReason | undefined): void {
    for (const f of [...this.shared.files.values()]) f.removeViews(this.#space, start, end, why, lost);
  }

  /** What to pin from `at` on, up to `end` or the end of the mapping: adds it, and answers where it ended. */
  #part(at: bigint, end: bigint, write: boolean, parts: Part[]): bigint | Errno {
    const m = this.#space.mappingFrom(at);
    if (m === undefined || m.start > at || !(write ? m.writable : m.readable)) return EFAULT;
    if (m.path.startsWith(OURS)) return EFAULT;
    const to = minN(m.end, end);
    // Asks the kernel what the list of mappings does not show: VM_IO, VM_PFNMAP, secret memory, the end of a file.
    if (m.readable && !(this.#readable(at) && (to - at <= PAGE_SIZE_N || this.#readable(to - PAGE_SIZE_N)))) return EFAULT;
    const npages = vpnOf(to) - vpnOf(at);
    if (!m.shared || m.inode === 0n) {
      const { pages } = this.#space;
      const last = parts.at(-1);
      const unit = m.path.startsWith(ANON_HUGE) ? HUGE_PAGE / Number(PAGE_SIZE_N) : 1;
      if (last?.pages === pages && last.unit === unit && last.first + last.npages === vpnOf(at)) last.npages += npages;
      else parts.push({ pages, first: vpnOf(at), npages, unit, file: undefined });
      return to;
    }
    const file = this.#fileOf(m);
    parts.push({ pages: file.pages, first: vpnOf(m.offset + (at - m.start)), npages, unit: file.unit, file });
    // A device's writes could not be told from the file system's own: refused for long pins.
    return write && file.kind === "disk" ? EFAULT : to;
  }

  #pinParts(parts: readonly Part[]): Pfn[] | Errno {
    const out: Pfn[][] = [];
    for (const { pages, first, npages, unit } of parts) {
      const pfns = pages.pin(first, npages, unit);
      if (pfns instanceof Errno) {
        for (const done of out) for (const p of done) this.kernel.frames.unpin(p);
        return pfns;
      }
      out.push(pfns);
    }
    return out.length === 1 ? (out[0] as Pfn[]) : out.flat();
  }

  #readable(addr: bigint): boolean {
    return this.read(addr, probe) === 0;
  }

  /** The file behind a shared mapping, with one more user, by the best way there is to it. */
  #fileOf(m: Mapping): RealFile {
    const dev = encodeDev(m.devMajor, m.devMinor);
    const known = this.shared.files.get(keyOf(m));
    const good = known !== undefined && (known.held || (known.fd >= 0 && !m.writable));
    const fd = good ? undefined : (this.#mapFile(m) ?? this.#programsDescriptor(m));
    const opened = fd === undefined ? undefined : this.shared.fileOf(fd, m.path, m.writable);
    const file = opened === undefined || opened instanceof Errno ? this.shared.file(dev, m.inode, this.#kindByName(m), m.path) : opened;
    file.addView(this.#viewOf(m));
    return file;
  }

  /** Through /proc/PID/map_files, if that is allowed. */
  #mapFile(m: Mapping): number | undefined {
    if (!this.shared.mapFiles) return undefined;
    const path = `/proc/${this.target.tid}/map_files/${m.start.toString(16)}-${m.end.toString(16)}`;
    const fd = openAt(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd === EPERM) this.shared.mapFiles = false;
    return fd instanceof Errno ? undefined : sameFile(fd, m);
  }

  /** Through one of the program's own descriptors. */
  #programsDescriptor(m: Mapping): number | undefined {
    const { pid, tid } = this.target;
    const dev = encodeDev(m.devMajor, m.devMinor);
    for (const name of descriptorsOf(tid)) {
      const st = statAt(AT_FDCWD, `/proc/${tid}/fd/${name}`);
      if (st instanceof Errno || st.ino !== m.inode || encodeDev(st.devMajor, st.devMinor) !== dev) continue;
      const fd = descriptorOf(pid, tid, Number(name));
      const same = fd instanceof Errno ? undefined : sameFile(fd, m);
      if (same !== undefined) return same;
    }
    return undefined;
  }

  #kindByName(m: Mapping): FileKind {
    if (m.path.startsWith(ANON_HUGE)) return "hugetlb";
    if (SHMEM_NAMES.some((n) => m.path.startsWith(n))) return "shmem";
    return kindByMount(this.target.tid, m);
  }
}

/** An ioctl's struct begins with its own size, a u32, which is read before the rest. */
const SIZE_FIELD = 4;
/** The longest of them have 72. */
const AHEAD_BYTES = 128;

/**
 * What follows a struct's size, read along with it: the copy of the whole that comes next then costs no system call of
 * its own. It serves that one copy, from the same address, in the same call, with nothing written and no other call
 * served in between: the program cannot tell it from a copy that was made at once.
 */
class Ahead {
  readonly #bytes = new Uint8Array(AHEAD_BYTES);
  #address = 0n;
  #call = 0;
  #length = 0;

  /** Reads the 4 bytes at `addr`, and what follows in its page; the count of bytes that could not be read. */
  readSize(tid: number, addr: bigint, dst: Uint8Array, call: number): number {
    const inPage = Number(addr & PAGE_MASK_N);
    const room = Number(PAGE_SIZE_N) - inPage;
    this.#length = 0;
    if (room < AHEAD_BYTES) {
      const n = readMemory(tid, addr, dst);
      return n instanceof Errno ? dst.length : dst.length - n;
    }
    const n = readMemory(tid, addr, this.#bytes);
    if (n instanceof Errno || n < AHEAD_BYTES) return dst.length;
    for (let i = 0; i < SIZE_FIELD; i++) dst[i] = this.#bytes[i] as number;
    this.#address = addr;
    this.#call = call;
    this.#length = n;
    return 0;
  }

  /** The copy of the whole, if it is the next one. */
  take(addr: bigint, dst: Uint8Array, call: number): boolean {
    const good = this.#length >= dst.length && this.#call === call && this.#address === addr;
    this.#length = 0;
    if (!good) return false;
    dst.set(dst.length === AHEAD_BYTES ? this.#bytes : this.#bytes.subarray(0, dst.length));
    return true;
  }

  drop(): void {
    this.#length = 0;
  }
}

/** As `RealMemory.files` has it. */
const keyOf = (m: Mapping): string => `${encodeDev(m.devMajor, m.devMinor)}:${m.inode}`;

const probe = new Uint8Array(1);
const vpnOf = (addr: bigint): number => Number(addr >> BigInt(PAGE_SHIFT));

function descriptorsOf(tid: number): string[] {
  try {
    return readdirSync(`/proc/${tid}/fd`);
  } catch {
    return [];
  }
}

/** `fd` if it is the mapping's file; else it is closed. */
function sameFile(fd: number, m: Mapping): number | undefined {
  const st = statFd(fd);
  if (!(st instanceof Errno) && st.ino === m.inode && st.devMajor === m.devMajor && st.devMinor === m.devMinor) return fd;
  closeFd(fd);
  return undefined;
}

/** A descriptor of ours for descriptor `fd` of a thread. */
export function descriptorOf(pid: number, tid: number, fd: number): number | Errno {
  const pidfd = pidfdOpen(tid, { thread: tid !== pid });
  if (pidfd instanceof Errno) return pidfd;
  const dup = pidfdGetFd(pidfd, fd);
  closeFd(pidfd);
  return dup;
}

/** What file system a device number stands for where the process is. */
function kindByMount(tid: number, m: Mapping): FileKind {
  let text = "";
  try {
    text = readFileSync(`/proc/${tid}/mountinfo`, "latin1");
  } catch {
    return "disk";
  }
  for (const line of text.split("\n")) {
    const [left = "", right = ""] = line.split(" - ");
    if (left.split(" ")[2] !== `${m.devMajor}:${m.devMinor}`) continue;
    const type = right.split(" ")[0];
    return type === "tmpfs" ? "shmem" : type === "hugetlbfs" ? "hugetlb" : "disk";
  }
  return "disk";
}
