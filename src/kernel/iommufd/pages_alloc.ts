/**
 * Making `IoptPages`: of user memory, of a file, of a dma-buf.
 *
 * Checks stand in the order in which Linux makes them; see the table of
 * IOMMU_IOAS_MAP_FILE in spec section 4.1.
 * Source: iopt_alloc_user_pages, iopt_alloc_file_pages, iopt_alloc_dmabuf_pages.
 */
import { PAGE_MASK_N, PAGE_SHIFT, PAGE_SIZE_N, U32_MAX, U64_MAX } from "../../lib/addr.ts";
import { EBADF, EINVAL, ENOMEM, EOVERFLOW, Errno } from "../../lib/errno.ts";
import type { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import { type DmaBuf, dmaBufGet, dmaBufPut } from "../dma_buf/dma_buf.ts";
import { ioptMapDmabuf } from "../dma_buf/interconnect.ts";
import type { File } from "../fs/file.ts";
import type { IommufdCtx } from "./ctx.ts";
import type { IoPagetable, PagesSlice } from "./io_pagetable.ts";
import { iommufdModule } from "./module.ts";
import { IoptPages, pagesFor } from "./pages.ts";
import { ioptDmabufAttachOps, PagesDmabuf, PrivateMapDmabuf, type PrivateMapPages } from "./pages_dmabuf.ts";
import { NegotiatedDmabuf } from "./pages_negotiated.ts";
import { PagesSource } from "./source.ts";

/** Pages of `length` bytes from byte `start` of the origin; takes over the reference of `backing` when it succeeds. */
function allocPages(
  ctx: IommufdCtx,
  start: bigint,
  length: bigint,
  writable: boolean,
  backing: File | PagesDmabuf | undefined,
): PagesSlice | Errno {
  const startByte = start & PAGE_MASK_N;
  const npages = pagesFor(startByte, length);
  if (npages instanceof Errno) return npages;
  if (ctx.kernel.fault.slab("iopt_pages")) return ENOMEM;
  const { current } = ctx.kernel;
  const counted = !(backing instanceof PagesDmabuf) && !current.capable("CAP_IPC_LOCK");
  const pages = new IoptPages(ctx.kernel, {
    npages,
    basePage: Number(start >> BigInt(PAGE_SHIFT)),
    writable,
    source: PagesSource.of(current),
    accountMode: counted ? ctx.accountMode : "none",
    backing,
  });
  return { pages, startByte, length };
}

/** The caller's memory. EOVERFLOW past the end of the address space, EINVAL for no bytes; ENOMEM. */
export function allocUserPages(ctx: IommufdCtx, addr: bigint, length: bigint, writable: boolean): PagesSlice | Errno {
  if (addr + length > U64_MAX) return EOVERFLOW;
  return allocPages(ctx, addr, length, writable, undefined);
}

/**
 * What descriptor `fd` of the caller refers to. A dma-buf is attached, pinned and
 * asked for its physical range; any other file is taken as it is, and pinned when
 * something needs it. `iopt` is the table that will show them. EINVAL, EOVERFLOW, EBADF, or the exporter's refusal.
 */
export function* allocFdPages(
  ctx: IommufdCtx,
  iopt: IoPagetable,
  fd: number,
  start: bigint,
  length: bigint,
  writable: boolean,
): Step<PagesSlice | Errno> {
  if (length === 0n) return EINVAL;
  const last = start + length - 1n;
  if (last > U64_MAX) return EOVERFLOW;
  const { current } = ctx.kernel;
  const dmabuf = dmaBufGet(current, fd);
  if (!(dmabuf instanceof Errno)) {
    const slice = yield* allocDmabufPages(iopt, ctx, dmabuf, start, length, writable);
    if (slice instanceof Errno) dmaBufPut(dmabuf);
    return slice;
  }
  // Not a dma-buf, or not open: it is looked up anew, and may be something else by now.
  const file = current.files.get(fd);
  if (file instanceof Errno || file.isPath) return EBADF;
  file.get();
  const slice = allocPages(ctx, start, length, writable, file);
  if (slice instanceof Errno) ctx.kernel.fs.fput(file);
  return slice;
}

/** On success the pages own the caller's reference on the dma-buf. */
function* allocDmabufPages(
  iopt: IoPagetable,
  ctx: IommufdCtx,
  dmabuf: DmaBuf,
  start: bigint,
  length: bigint,
  writable: boolean,
): Step<PagesSlice | Errno> {
  if (dmabuf.size <= start + length - 1n || length / PAGE_SIZE_N >= BigInt(U32_MAX)) return EINVAL;
  const { kernel } = ctx;
  const backing =
    kernel.interconnect === "negotiated"
      ? new NegotiatedDmabuf(start - (start & PAGE_MASK_N), writable, iopt.revalidate)
      : new PrivateMapDmabuf();
  const slice = allocPages(ctx, start, length, writable, backing);
  if (slice instanceof Errno) return slice;
  const e = yield* attachDmabuf(iopt, slice.pages.mutex, backing, dmabuf);
  if (e === undefined) return slice;
  yield* slice.pages.put();
  return e;
}

function* attachDmabuf(
  iopt: IoPagetable,
  mutex: Mutex,
  backing: NegotiatedDmabuf | PrivateMapDmabuf,
  dmabuf: DmaBuf,
): Step<Errno | undefined> {
  if (backing instanceof NegotiatedDmabuf) return yield* backing.attach(dmabuf, mutex, () => iopt.requesters.keys());
  const { kernel } = iopt;
  const shared: PrivateMapPages = { kernel, mutex, dmabuf: backing };
  return yield* ioptMapDmabuf(kernel, shared, dmabuf, ioptDmabufAttachOps, iommufdModule(kernel).selftest?.privateMap);
}
