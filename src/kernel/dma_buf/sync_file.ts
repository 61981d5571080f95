/**
 * A fence as a file: what EXPORT_SYNC_FILE hands out and IMPORT_SYNC_FILE takes.
 *
 * It can be polled (IN once signalled), merged with another, and asked what it
 * consists of.
 *
 * Source: drivers/dma-buf/sync_file.c, include/uapi/linux/sync_file.h.
 */
import { EFAULT, EINVAL, ENOENT, ENOMEM, ENOTTY, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  O_CLOEXEC,
  POLLIN,
  SYNC_IOC_FILE_INFO,
  SYNC_IOC_MERGE,
  SYNC_IOC_SET_DEADLINE,
  SyncFenceInfo,
  SyncFileInfo,
  SyncMergeData,
  SyncSetDeadline,
} from "../../uapi/index.ts";
import type { File, FileOps } from "../fs/file.ts";
import type { Process } from "../fs/process.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import { dmaBufStats } from "./buffer.ts";
import { type DmaFence, DmaFenceArray, type FenceCallback, unwrapFence } from "./fence.ts";

class SyncFile {
  readonly fence: DmaFence;
  /** Given by a merge; otherwise made from the fence. */
  readonly userName: string;
  /** Set by the first poll; taken back at release. */
  wake: FenceCallback | undefined = undefined;

  constructor(fence: DmaFence, userName = "") {
    this.fence = fence;
    this.userName = userName;
  }

  get name(): string {
    const { driver, timeline, context, seqno } = this.fence;
    return this.userName !== "" ? this.userName : `${driver}-${timeline}${context}-${seqno}`;
  }
}

const syncOf = (f: File): SyncFile => f.privateData as SyncFile;

const syncFileOps: FileOps = {
  name: "sync_file",
  stream: true,

  poll(f) {
    const s = syncOf(f);
    if (s.fence.signalled) return POLLIN;
    if (s.wake === undefined) {
      s.wake = () => f.pollQueue.wakeUp();
      s.fence.addCallback(s.wake);
    }
    return 0;
  },

  *ioctl(f, cmd, arg): Step<number | Errno> {
    switch (cmd) {
      case SYNC_IOC_MERGE:
        return merge(f, arg) ?? 0;
      case SYNC_IOC_FILE_INFO:
        return fileInfo(f, arg) ?? 0;
      case SYNC_IOC_SET_DEADLINE:
        return setDeadline(f, arg) ?? 0;
      default:
        return ENOTTY;
    }
  },

  *release(f): Step<void> {
    const { wake, fence } = syncOf(f);
    if (wake !== undefined) fence.removeCallback(wake);
  },
};

/** A file with one reference, the caller's; ENOMEM. */
export function syncFileCreate(kernel: Kernel, fence: DmaFence, userName = ""): File | Errno {
  if (kernel.fault.slab("sync_file")) return ENOMEM;
  return kernel.fs.allocAnonFile(syncFileOps, { flags: 0, privateData: new SyncFile(fence, userName), path: "anon_inode:sync_file" });
}

/** The fence behind a descriptor; undefined when it is no sync file. */
export function syncFileGetFence(process: Process, fd: number): DmaFence | undefined {
  const file = process.files.get(fd);
  return file instanceof Errno || file.ops !== syncFileOps ? undefined : syncOf(file).fence;
}

/** All pending fences of both as one; of one timeline the latest. */
function mergeFences(kernel: Kernel, a: DmaFence, b: DmaFence): DmaFence {
  const { fences: contexts } = dmaBufStats(kernel);
  const latest = new Map<bigint, DmaFence>();
  for (const f of [...unwrapFence(a), ...unwrapFence(b)]) {
    if (f.signalled) continue;
    const have = latest.get(f.context);
    if (have === undefined || f.isLaterOrSame(have)) latest.set(f.context, f);
  }
  const pending = [...latest.values()];
  const [only] = pending;
  if (only === undefined) return contexts.stub();
  return pending.length === 1 ? only : new DmaFenceArray(kernel.sched, contexts.alloc(), pending);
}

function merge(f: File, arg: bigint): Errno | undefined {
  const { kernel } = f;
  const { files } = kernel.current;
  const fd = files.getUnused(O_CLOEXEC);
  if (fd instanceof Errno) return fd;
  const made = mergeInto(f, arg, fd);
  if (made instanceof Errno) {
    files.putUnused(fd);
    return made;
  }
  files.install(fd, made);
  return undefined;
}

function mergeInto(f: File, arg: bigint, fd: number): File | Errno {
  const { kernel } = f;
  const data = SyncMergeData.alloc();
  if (copyFromUser(kernel, data.bytes, arg) !== 0) return EFAULT;
  if (data.flags !== 0 || data.pad !== 0) return EINVAL;
  const other = syncFileGetFence(kernel.current, data.fd2);
  if (other === undefined) return ENOENT;
  data.name[data.name.length - 1] = 0;
  if (kernel.fault.slab("fence")) return ENOMEM;
  const file = syncFileCreate(kernel, mergeFences(kernel, syncOf(f).fence, other), textOf(data.name));
  if (file instanceof Errno) return file;
  data.fence = fd;
  if (copyToUser(kernel, arg, data.bytes) === 0) return file;
  kernel.fs.fput(file);
  return EFAULT;
}

function fileInfo(f: File, arg: bigint): Errno | undefined {
  const { kernel } = f;
  const s = syncOf(f);
  const info = SyncFileInfo.alloc();
  if (copyFromUser(kernel, info.bytes, arg) !== 0) return EFAULT;
  if (info.flags !== 0 || info.pad !== 0) return EINVAL;
  const fences = unwrapFence(s.fence);
  if (info.num_fences === 0) {
    info.status = s.fence.status;
  } else {
    if (info.num_fences < fences.length) return EINVAL;
    if (kernel.fault.slab("sync_fence_info", fences.length * SyncFenceInfo.size)) return ENOMEM;
    info.status = 1;
    const out = new Uint8Array(fences.length * SyncFenceInfo.size);
    for (const [i, fence] of fences.entries()) {
      const v = SyncFenceInfo.over(out, i * SyncFenceInfo.size);
      putText(v.obj_name, fence.timeline);
      putText(v.driver_name, fence.driver);
      v.status = fence.status;
      v.timestamp_ns = fence.signalled ? BigInt(fence.timestamp) : 0n;
      if (info.status > 0) info.status = fence.status;
    }
    if (copyToUser(kernel, info.sync_fence_info, out) !== 0) return EFAULT;
  }
  putText(info.name, s.name);
  info.num_fences = fences.length;
  return copyToUser(kernel, arg, info.bytes) === 0 ? undefined : EFAULT;
}

function setDeadline(f: File, arg: bigint): Errno | undefined {
  const ts = SyncSetDeadline.alloc();
  if (copyFromUser(f.kernel, ts.bytes, arg) !== 0) return EFAULT;
  if (ts.pad !== 0n) return EINVAL;
  syncOf(f).fence.setDeadline(ts.deadline_ns);
  return undefined;
}

/** The characters before the first NUL. */
function textOf(bytes: Uint8Array): string {
  const nul = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, nul < 0 ? bytes.length : nul));
}

/** Cut to fit with its NUL. */
function putText(dst: Uint8Array, text: string): void {
  dst.fill(0);
  for (let i = 0; i < Math.min(text.length, dst.length - 1); i++) dst[i] = text.charCodeAt(i) & 0xff;
}
