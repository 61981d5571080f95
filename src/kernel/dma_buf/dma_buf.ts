/**
 * Sharing memory by file descriptor: the calls of exporters and importers.
 *
 * A buffer lives as long as its file: `dmaBufGet`/`dmaBufPut` count the file's
 * references, and the exporter's `release` runs when the last is gone (from
 * task work, so with no lock held). While a buffer lives its exporter's module
 * cannot be unloaded.
 *
 * Source: drivers/dma-buf/dma-buf.c, spec sections 1, 3 and 9.
 */
import { EBADF, EINVAL, ENOENT, ENOMEM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { O_ACCMODE, O_NONBLOCK } from "../../uapi/index.ts";
import type { Process } from "../fs/process.ts";
import type { Kernel } from "../kernel.ts";
import { DmaBuf, type DmaBufExportInfo } from "./buffer.ts";
import { dmaBufFileOps } from "./dma_buf_file.ts";

export { DmaBuf, type DmaBufOps } from "./buffer.ts";

/**
 * Wraps an exporter's memory into a buffer with one reference, the caller's.
 * ENOENT when the owning module is on its way out; ENOMEM.
 */
export function dmaBufExport(kernel: Kernel, info: DmaBufExportInfo): DmaBuf | Errno {
  if ((info.ops.pin === undefined) !== (info.ops.unpin === undefined)) throw new KernelBug(`${info.expName}: pin without unpin`);
  if (!kernel.modules.tryGet(info.owner)) return ENOENT;
  const { fault, fs } = kernel;
  const flags = info.flags & (O_ACCMODE | O_NONBLOCK);
  // The buffer itself is asked for before its file exists, which Linux makes first: so there is no file to take back.
  const file = fault.slab("inode") || fault.slab("dma_buf") ? ENOMEM : fs.allocAnonFile(dmaBufFileOps, { flags, path: "/dmabuf:" });
  if (file instanceof Errno) {
    kernel.modules.put(info.owner);
    return file;
  }
  const dmabuf = new DmaBuf(kernel, info, file);
  dmabuf.stats.buffers.add(dmabuf);
  if (kernel.trace.on) kernel.trace.emit({ type: "dma_buf.export", ino: dmabuf.ino, exporter: info.expName, size: info.size });
  return dmabuf;
}

/**
 * A descriptor for the buffer; it takes over the caller's reference. Of
 * `flags` only O_CLOEXEC matters. EMFILE; the reference is then still the
 * caller's.
 */
export function dmaBufFd(process: Process, dmabuf: DmaBuf, flags: number): number | Errno {
  const fd = process.files.getUnused(flags);
  if (fd instanceof Errno) return fd;
  dmaBufFdInstall(process, dmabuf, fd);
  return fd;
}

/** Publishes the buffer under a descriptor reserved before; takes over the caller's reference and cannot fail. */
export function dmaBufFdInstall(process: Process, dmabuf: DmaBuf, fd: number): void {
  const { trace } = dmabuf.kernel;
  // First the event: once installed, another thread may close it.
  if (trace.on) trace.emit({ type: "dma_buf.fd", ino: dmabuf.ino, fd });
  process.files.install(fd, dmabuf.file);
}

/** The buffer behind a descriptor, with a reference. EBADF without a file, EINVAL for another kind of file. */
export function dmaBufGet(process: Process, fd: number): DmaBuf | Errno {
  const file = process.files.get(fd);
  if (file instanceof Errno) return EBADF;
  if (file.ops !== dmaBufFileOps) return EINVAL;
  file.get();
  const dmabuf = file.privateData as DmaBuf;
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.get", ino: dmabuf.ino, fd });
  return dmabuf;
}

/** Drops a reference; after the last the buffer is released from task work. */
export function dmaBufPut(dmabuf: DmaBuf): void {
  const { trace, fs } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.put", ino: dmabuf.ino });
  fs.fput(dmabuf.file);
}
