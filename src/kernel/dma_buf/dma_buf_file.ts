/**
 * What user space can do with a buffer's descriptor.
 *
 * No read, no write; lseek tells the size; poll and the sync-file ioctls look
 * at the fences: IN waits for writers, OUT for everybody. An armed poll holds a
 * reference to the file until its fence is signalled, so that the buffer is
 * there when it is woken.
 *
 * Unlike Linux, poll does not take the reservation: it only reads the list of
 * fences, which no task can change in between. And it arms both sides, whatever
 * the caller asked for.
 *
 * Source: drivers/dma-buf/dma-buf.c (dma_buf_fops), drivers/dma-buf/sync_file.c;
 * answers as recorded on Linux 7.3.4.
 */

import { PAGE_SIZE_N } from "../../lib/addr.ts";
import { EFAULT, EINVAL, ENOMEM, ENOTTY, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  DMA_BUF_IOCTL_EXPORT_SYNC_FILE,
  DMA_BUF_IOCTL_IMPORT_SYNC_FILE,
  DMA_BUF_IOCTL_SYNC,
  DMA_BUF_NAME_LEN,
  DMA_BUF_SET_NAME_A,
  DMA_BUF_SET_NAME_B,
  DMA_BUF_SYNC_END,
  DMA_BUF_SYNC_READ,
  DMA_BUF_SYNC_RW,
  DMA_BUF_SYNC_VALID_FLAGS_MASK,
  DMA_BUF_SYNC_WRITE,
  DmaBufExportSyncFile,
  DmaBufImportSyncFile,
  DmaBufSync,
  O_CLOEXEC,
  POLLIN,
  POLLOUT,
  SEEK_END,
  SEEK_SET,
} from "../../uapi/index.ts";
import { DMA_BUF_IOCTL_QUERY_STATE } from "../../uapi/proposed.ts";
import type { File, FileOps } from "../fs/file.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { DmaDirection } from "./attachment.ts";
import { type DmaBuf, dmaBufBeginCpuAccess, dmaBufEndCpuAccess, dmaBufRelease } from "./buffer.ts";
import { unwrapFence } from "./fence.ts";
import { pollState, queryState } from "./negotiated/state_file.ts";
import { Usage, usageRw } from "./resv.ts";
import { syncFileCreate, syncFileGetFence } from "./sync_file.ts";

const bufOf = (f: File): DmaBuf => f.privateData as DmaBuf;

export const dmaBufFileOps: FileOps = {
  name: "dma-buf",
  stream: true,

  mmap(f, vma) {
    const dmabuf = bufOf(f);
    if (dmabuf.ops.mmap === undefined) return EINVAL;
    if (vma.offset + vma.length > dmabuf.size - (dmabuf.size % PAGE_SIZE_N)) return EINVAL;
    return dmabuf.ops.mmap(dmabuf, vma);
  },

  *llseek(f, offset, whence): Step<bigint | Errno> {
    if (whence !== SEEK_END && whence !== SEEK_SET) return EINVAL;
    if (offset !== 0n) return EINVAL;
    return whence === SEEK_END ? bufOf(f).size : 0n;
  },

  poll(f) {
    return pollSide(f, "in") | pollSide(f, "out") | pollState(bufOf(f));
  },

  *ioctl(f, cmd, arg): Step<number | Errno> {
    const dmabuf = bufOf(f);
    switch (cmd) {
      case DMA_BUF_IOCTL_SYNC:
        return (yield* sync(dmabuf, arg)) ?? 0;
      case DMA_BUF_SET_NAME_A:
      case DMA_BUF_SET_NAME_B:
        return setName(dmabuf, arg) ?? 0;
      case DMA_BUF_IOCTL_EXPORT_SYNC_FILE:
        return exportSyncFile(dmabuf, arg) ?? 0;
      case DMA_BUF_IOCTL_IMPORT_SYNC_FILE:
        return (yield* importSyncFile(dmabuf, arg)) ?? 0;
      case DMA_BUF_IOCTL_QUERY_STATE:
        return queryState(dmabuf, arg) ?? 0;
      default:
        return ENOTTY;
    }
  },

  fdinfo(f) {
    const { size, expName, name } = bufOf(f);
    const lines = [`size:\t${size}`, `count:\t${f.count.count}`, `exp_name:\t${expName}`];
    if (name !== undefined) lines.push(`name:\t${name}`);
    return lines;
  },

  stat(f) {
    const { size, ino } = bufOf(f);
    return { mode: 0o600, size, ino, nlink: 1, blksize: 4096, blocks: size / 512n };
  },

  release(f) {
    return dmaBufRelease(bufOf(f));
  },
};

/** The bit when nothing is pending on that side; otherwise arms the wake-up, unless somebody has. */
function pollSide(f: File, side: "in" | "out"): number {
  const dmabuf = bufOf(f);
  const armed = dmabuf.pollArmed;
  if (armed[side]) return 0;
  const [fence] = dmabuf.resv.pending(usageRw(side === "out"));
  if (fence === undefined) return side === "in" ? POLLIN : POLLOUT;
  armed[side] = true;
  f.get();
  fence.addCallback(() => {
    armed[side] = false;
    f.pollQueue.wakeUp();
    f.kernel.fs.fput(f);
  });
  return 0;
}

function directionOf(flags: bigint): DmaDirection | undefined {
  switch (flags & DMA_BUF_SYNC_RW) {
    case DMA_BUF_SYNC_READ:
      return "from_device";
    case DMA_BUF_SYNC_WRITE:
      return "to_device";
    case DMA_BUF_SYNC_RW:
      return "bidirectional";
    default:
      return undefined;
  }
}

function* sync(dmabuf: DmaBuf, arg: bigint): Step<Errno | undefined> {
  const a = DmaBufSync.alloc();
  if (copyFromUser(dmabuf.kernel, a.bytes, arg) !== 0) return EFAULT;
  if ((a.flags & ~DMA_BUF_SYNC_VALID_FLAGS_MASK) !== 0n) return EINVAL;
  const dir = directionOf(a.flags);
  if (dir === undefined) return EINVAL;
  return yield* (a.flags & DMA_BUF_SYNC_END) !== 0n ? dmaBufEndCpuAccess(dmabuf, dir) : dmaBufBeginCpuAccess(dmabuf, dir);
}

/** A NUL-terminated string of at most 32 bytes with its NUL: EINVAL when longer, EFAULT when the NUL cannot be reached. */
function setName(dmabuf: DmaBuf, arg: bigint): Errno | undefined {
  const bytes = new Uint8Array(DMA_BUF_NAME_LEN);
  const left = copyFromUser(dmabuf.kernel, bytes, arg);
  const nul = bytes.subarray(0, bytes.length - left).indexOf(0);
  if (nul < 0) return left > 0 ? EFAULT : EINVAL;
  if (dmabuf.kernel.fault.slab("name")) return ENOMEM;
  const name = Array.from(bytes.subarray(0, nul), (b) => String.fromCharCode(b)).join("");
  dmabuf.name = name;
  dmabuf.file.path = `/dmabuf:${name}`;
  return undefined;
}

/** True for READ, WRITE or both, and nothing else. */
const isReadWrite = (flags: number): boolean => flags !== 0 && (BigInt(flags) & ~DMA_BUF_SYNC_RW) === 0n;

const hasWrite = (flags: number): boolean => (BigInt(flags) & DMA_BUF_SYNC_WRITE) !== 0n;

/** What is pending now, as a file of its own; the descriptor is published after the answer is copied out. */
function exportSyncFile(dmabuf: DmaBuf, arg: bigint): Errno | undefined {
  const { kernel } = dmabuf;
  const { files } = kernel.current;
  const a = DmaBufExportSyncFile.alloc();
  if (copyFromUser(kernel, a.bytes, arg) !== 0) return EFAULT;
  if (!isReadWrite(a.flags)) return EINVAL;
  const fd = files.getUnused(O_CLOEXEC);
  if (fd instanceof Errno) return fd;
  const { fences } = dmabuf.stats;
  const fence = dmabuf.resv.singleton(kernel.sched, fences, usageRw(hasWrite(a.flags)));
  const file = kernel.fault.slab("fence") ? ENOMEM : syncFileCreate(kernel, fence ?? fences.stub());
  if (file instanceof Errno) {
    files.putUnused(fd);
    return file;
  }
  a.fd = fd;
  if (copyToUser(kernel, arg, a.bytes) !== 0) {
    kernel.fs.fput(file);
    files.putUnused(fd);
    return EFAULT;
  }
  files.install(fd, file);
  return undefined;
}

/** Another file's fences become this buffer's. EINVAL when `fd` is no sync file. */
function* importSyncFile(dmabuf: DmaBuf, arg: bigint): Step<Errno | undefined> {
  const { kernel, resv } = dmabuf;
  const a = DmaBufImportSyncFile.alloc();
  if (copyFromUser(kernel, a.bytes, arg) !== 0) return EFAULT;
  if (!isReadWrite(a.flags)) return EINVAL;
  const fence = syncFileGetFence(kernel.current, a.fd);
  if (fence === undefined) return EINVAL;
  const usage = hasWrite(a.flags) ? Usage.write : Usage.read;
  const fences = unwrapFence(fence);
  if (fences.length === 0) return undefined;
  // dma_resv_reserve_fences: the list grows under the lock, before anything is added.
  if (kernel.fault.slab("dma_resv_list")) return ENOMEM;
  yield* resv.lock();
  resv.reserveFences(fences.length);
  for (const f of fences) resv.addFence(f, usage);
  resv.unlock();
  return undefined;
}
