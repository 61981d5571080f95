/**
 * Queues of events for user space: what fault queues (`fault.ts`) and the event
 * queues of virtual IOMMUs (`veventq.ts`) share.
 *
 * A queue is an object with a file of its own. The file holds a user of the
 * object, so the object cannot be destroyed while it is open, and a reference on
 * the context, which therefore outlives the close of /dev/iommu.
 *
 * A read never waits: an empty queue gives 0 bytes, O_NONBLOCK or not, and poll
 * tells when there is something. Files without a position: an offset is ESPIPE.
 *
 * Source: drivers/iommu/iommufd/eventq.c.
 */
import { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import { O_CLOEXEC, O_RDWR, POLLIN, POLLOUT, POLLRDNORM } from "../../uapi/index.ts";
import type { File, FileOps } from "../fs/file.ts";
import { type IommufdCtx, iommufdCtxGet, iommufdCtxPut } from "./ctx.ts";
import { decUsers, IommufdObject } from "./object.ts";

export abstract class IommufdEventq extends IommufdObject {
  readonly ctx: IommufdCtx;
  #file: File | undefined = undefined;

  constructor(ctx: IommufdCtx) {
    super();
    this.ctx = ctx;
  }

  /** Something waits to be read. */
  abstract get readable(): boolean;

  /** Makes the file and reserves a descriptor for it. ENOMEM, EMFILE; what was done stays, for `abort` to undo. */
  openFile(ops: FileOps, name: string): number | Errno {
    const { fs, current } = this.ctx.kernel;
    const file = fs.allocAnonFile(ops, { flags: O_RDWR, privateData: this, path: `anon_inode:${name}` });
    if (file instanceof Errno) return file;
    this.#file = file;
    iommufdCtxGet(this.ctx);
    this.users++;
    return current.files.getUnused(O_CLOEXEC);
  }

  /** Nothing can fail any more: the descriptor refers to the file. */
  installFile(fd: number): void {
    if (this.#file === undefined) throw new KernelBug(`event queue ${this.id} has no file`);
    this.ctx.kernel.current.files.install(fd, this.#file);
  }

  /** Whoever polls looks again. */
  wake(): void {
    this.#file?.pollQueue.wakeUp();
  }

  /** Undoes `openFile`, whose reference is the only one yet. */
  protected *closeFile(): Step<void> {
    if (this.#file !== undefined) yield* this.ctx.kernel.fs.fputSync(this.#file);
  }

  override *abort(): Step<void> {
    yield* this.closeFile();
    yield* this.destroy();
  }
}

/** What is common to the files of event queues. */
export const eventqFops: Required<Pick<FileOps, "stream" | "poll" | "release">> = {
  stream: true,

  poll(f) {
    const q = f.privateData as IommufdEventq;
    return (q.type === "fault" ? POLLOUT : 0) | (q.readable ? POLLIN | POLLRDNORM : 0);
  },

  *release(f) {
    const q = f.privateData as IommufdEventq;
    decUsers(q);
    iommufdCtxPut(q.ctx);
  },
};

/** What a transfer answers: the bytes that went through, or why the first did not. */
export function transferred(done: number, e: Errno | undefined): number | Errno {
  return done === 0 && e !== undefined ? e : done;
}
