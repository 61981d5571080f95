/**
 * An iommufd context: one open of /dev/iommu.
 *
 * It lives as long as its file; whoever needs it holds a reference on the file
 * (a bound device does, an in-kernel access does). Lock order: see spec of the
 * interconnect, ioasCreationLock → iova lock of every IOAS in id order.
 * Source: drivers/iommu/iommufd/main.c, iommufd_private.h.
 */
import { EBADF, EBADFD, Errno } from "../../lib/errno.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { RwSem } from "../../sched/locks.ts";
import { WaitQueue } from "../../sched/wait.ts";
import type { File } from "../fs/file.ts";
import type { Process } from "../fs/process.ts";
import type { Kernel } from "../kernel.ts";
import type { IommufdGroup } from "./group.ts";
import { MmapTable } from "./mmap.ts";
import type { IommufdObject } from "./object.ts";
import { ObjectTable } from "./object.ts";

const CREATION_LOCK: LockClass = new LockClass("iommufd.ioas_creation_lock");

export class IommufdCtx {
  readonly kernel: Kernel;
  readonly file: File;
  /** Number of this context since boot, for the trace. */
  readonly serial: number;
  readonly objects: ObjectTable = new ObjectTable();
  /** By id of the IOMMU group. */
  readonly groups: Map<number, IommufdGroup> = new Map();
  readonly destroyWait: WaitQueue;
  /** Read: an IOAS is being published. Write: every IOAS is being locked. */
  readonly ioasCreationLock: RwSem;
  /** Mode given to user and file pages of a process without CAP_IPC_LOCK. */
  accountMode: "user" | "mm" = "user";
  /** What can be mapped through the descriptor. */
  readonly mmaps: MmapTable = new MmapTable();
  /** The IOAS that stands for a type1 container. */
  vfioIoas: IommufdObject | undefined = undefined;

  constructor(kernel: Kernel, file: File, serial: number) {
    this.kernel = kernel;
    this.file = file;
    this.serial = serial;
    this.destroyWait = new WaitQueue(kernel.sched, "iommufd.destroy_wait");
    this.ioasCreationLock = new RwSem(kernel.sched, CREATION_LOCK);
  }
}

/** Takes a reference; the caller already holds one. */
export function iommufdCtxGet(ctx: IommufdCtx): void {
  ctx.file.get();
}

/** Drops a reference; the context may be released from task work. */
export function iommufdCtxPut(ctx: IommufdCtx): void {
  ctx.kernel.fs.fput(ctx.file);
}

/** The context of an open /dev/iommu, with a reference of its own; EBADFD for any other file. */
export function iommufdCtxFromFile(file: File): IommufdCtx | Errno {
  const ctx = file.privateData;
  if (!(ctx instanceof IommufdCtx)) return EBADFD;
  iommufdCtxGet(ctx);
  return ctx;
}

/** The context behind a descriptor, with a reference; EBADF, EBADFD. */
export function iommufdCtxFromFd(process: Process, fd: number): IommufdCtx | Errno {
  const file = process.files.get(fd);
  if (file instanceof Errno) return EBADF;
  return iommufdCtxFromFile(file);
}
