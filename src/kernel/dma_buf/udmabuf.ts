/**
 * /dev/udmabuf: a process's memfd pages as a buffer for devices.
 *
 * The memfd must be sealed against shrinking, so that the pages stay, and not
 * against writing, for a device could not be stopped from it. The pages are
 * pinned from the creation to the release of the buffer. The CPU may map it,
 * shared; an end of CPU access without a beginning is refused.
 *
 * Source: drivers/dma-buf/udmabuf.c.
 */
import { isPageAligned, PAGE_SIZE_N, type Pfn, physOfPfn } from "../../lib/addr.ts";
import { EBADFD, EFAULT, EINVAL, ENOMEM, ENOTTY, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  F_SEAL_FUTURE_WRITE,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  O_CLOEXEC,
  O_RDWR,
  UDMABUF_CREATE,
  UDMABUF_CREATE_LIST,
  UDMABUF_FLAGS_CLOEXEC,
  UdmabufCreate,
  UdmabufCreateItem,
  UdmabufCreateList,
} from "../../uapi/index.ts";
import { Device } from "../device.ts";
import type { File, FileOps } from "../fs/file.ts";
import { pageSourceOf } from "../fs/memfd.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser } from "../mm/user_memory.ts";
import type { DmaBuf, DmaBufOps } from "./buffer.ts";
import { dmaBufExport, dmaBufFd, dmaBufPut } from "./dma_buf.ts";
import { freeRamSgt, type PhysVec, pageRuns, ramToSgt, type SgTable } from "./mapping.ts";
import { ramExporter } from "./negotiated/ram_exporter.ts";

const MODULE = "udmabuf";
/** Pieces of one buffer, at most; the default of the module's parameter. */
const LIST_LIMIT = 1024;
/** Pages of one buffer, at most: the default limit is 2^31 - 1 MiB. */
const PAGE_LIMIT = (0x7fff_ffffn << 20n) / PAGE_SIZE_N;
/** Largest array the kernel allocates for it, bytes. */
const ARRAY_LIMIT = 0x7fff_ffffn;

interface Item {
  readonly memfd: number;
  readonly offset: bigint;
  readonly size: bigint;
}

class Udmabuf {
  readonly dev: Device;
  readonly pages: readonly Pfn[];
  readonly runs: readonly PhysVec[];
  /** Made at the first CPU access, for the misc device, and kept. */
  cpuSgt: SgTable | undefined = undefined;

  constructor(dev: Device, pages: readonly Pfn[]) {
    this.dev = dev;
    this.pages = pages;
    this.runs = pageRuns(pages);
  }
}

const udmabufOf = (dmabuf: DmaBuf): Udmabuf => dmabuf.priv as Udmabuf;

const udmabufOps: DmaBufOps = {
  *mapDmaBuf(att, dir): Step<SgTable | Errno> {
    return ramToSgt(att.dev, udmabufOf(att.dmabuf).runs, dir);
  },

  *unmapDmaBuf(att, sgt): Step<void> {
    freeRamSgt(att.dev, sgt);
  },

  negotiated: ramExporter((dmabuf) => udmabufOf(dmabuf).runs),

  *release(dmabuf): Step<void> {
    const u = udmabufOf(dmabuf);
    if (u.cpuSgt !== undefined) freeRamSgt(u.dev, u.cpuSgt);
    for (const pfn of u.pages) dmabuf.kernel.frames.unpin(pfn);
  },

  mmap(dmabuf, vma) {
    if (!vma.shared) return EINVAL;
    const { pages } = udmabufOf(dmabuf);
    vma.ops = {
      fault(_vma, pageOffset) {
        const pfn = pages[pageOffset];
        return pfn === undefined ? "SIGBUS" : physOfPfn(pfn);
      },
    };
    return undefined;
  },

  *beginCpuAccess(dmabuf, dir): Step<Errno | undefined> {
    const u = udmabufOf(dmabuf);
    if (u.cpuSgt !== undefined) return undefined;
    const sgt = ramToSgt(u.dev, u.runs, dir);
    if (sgt instanceof Errno) return sgt;
    u.cpuSgt = sgt;
    return undefined;
  },

  *endCpuAccess(dmabuf): Step<Errno | undefined> {
    return udmabufOf(dmabuf).cpuSgt === undefined ? EINVAL : undefined;
  },
};

/** EBADFD for what is no memory file, EINVAL for one whose seals do not fit. */
function checkSeals(memfd: File): Errno | undefined {
  const seals = memfd.ops.getSeals?.(memfd);
  if (seals === undefined || seals instanceof Errno || pageSourceOf(memfd) === undefined) return EBADFD;
  if ((seals & F_SEAL_SHRINK) === 0 || (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) !== 0) return EINVAL;
  return undefined;
}

/** The number of pages asked for; EINVAL, or ENOMEM for more than could be listed. */
function countPages(items: readonly Item[]): number | Errno {
  let pages = 0n;
  for (const { offset, size } of items) {
    if (!isPageAligned(offset) || !isPageAligned(size)) return EINVAL;
    pages += size / PAGE_SIZE_N;
    if (pages > PAGE_LIMIT) return EINVAL;
  }
  if (pages === 0n) return EINVAL;
  return pages * 8n > ARRAY_LIMIT ? ENOMEM : Number(pages);
}

function pinItem(kernel: Kernel, item: Item): Pfn[] | Errno {
  const memfd = kernel.current.files.get(item.memfd | 0);
  if (memfd instanceof Errno) return EBADFD;
  const err = checkSeals(memfd);
  if (err !== undefined) return err;
  const source = pageSourceOf(memfd);
  if (source === undefined) return EBADFD;
  if ((item.offset + item.size) >> 63n) return EINVAL;
  return source.pin(Number(item.offset / PAGE_SIZE_N), Number(item.size / PAGE_SIZE_N));
}

function create(kernel: Kernel, dev: Device, flags: number, items: readonly Item[]): number | Errno {
  if (kernel.fault.slab("udmabuf")) return ENOMEM;
  const count = countPages(items);
  if (count instanceof Errno) return count;
  if (["folios", "offsets", "pinned_folios"].some((what) => kernel.fault.slab(what, count * 8))) return ENOMEM;
  const pages: Pfn[] = [];
  const undo = (err: Errno): Errno => {
    for (const pfn of pages) kernel.frames.unpin(pfn);
    return err;
  };
  for (const item of items) {
    const pinned = pinItem(kernel, item);
    if (pinned instanceof Errno) return undo(pinned);
    for (const pfn of pinned) pages.push(pfn);
  }
  const dmabuf = dmaBufExport(kernel, {
    expName: MODULE,
    owner: MODULE,
    ops: udmabufOps,
    size: BigInt(count) * PAGE_SIZE_N,
    flags: O_RDWR,
    priv: new Udmabuf(dev, pages),
  });
  if (dmabuf instanceof Errno) return undo(dmabuf);
  const fd = dmaBufFd(kernel.current, dmabuf, (flags & UDMABUF_FLAGS_CLOEXEC) !== 0 ? O_CLOEXEC : 0);
  if (fd instanceof Errno) dmaBufPut(dmabuf);
  return fd;
}

function createOne(kernel: Kernel, dev: Device, arg: bigint): number | Errno {
  const a = UdmabufCreate.alloc();
  if (copyFromUser(kernel, a.bytes, arg) !== 0) return EFAULT;
  return create(kernel, dev, a.flags, [a]);
}

function createList(kernel: Kernel, dev: Device, arg: bigint): number | Errno {
  const head = UdmabufCreateList.alloc();
  if (copyFromUser(kernel, head.bytes, arg) !== 0) return EFAULT;
  if (head.count > LIST_LIMIT) return EINVAL;
  if (kernel.fault.slab("list", head.count * UdmabufCreateItem.size)) return ENOMEM;
  const bytes = new Uint8Array(head.count * UdmabufCreateItem.size);
  if (copyFromUser(kernel, bytes, arg + BigInt(UdmabufCreateList.size)) !== 0) return EFAULT;
  const items = Array.from({ length: head.count }, (_, i) => UdmabufCreateItem.over(bytes, i * UdmabufCreateItem.size));
  return create(kernel, dev, head.flags, items);
}

/** Loads the module: the device appears. */
export function udmabufInit(kernel: Kernel): void {
  const dev = new Device(MODULE, "misc", 0);
  const ops: FileOps = {
    name: MODULE,
    *ioctl(_f, cmd, arg): Step<number | Errno> {
      switch (cmd) {
        case UDMABUF_CREATE:
          return createOne(kernel, dev, arg);
        case UDMABUF_CREATE_LIST:
          return createList(kernel, dev, arg);
        default:
          return ENOTTY;
      }
    },
  };
  kernel.modules.load(MODULE);
  kernel.fs.registerDevice("/dev/udmabuf", { major: 10, minor: 125, ops });
}
