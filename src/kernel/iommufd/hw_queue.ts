/**
 * Hardware queues: a queue of the unit that a guest works itself, in the
 * guest's memory.
 *
 * The hardware finds the queue by physical address. So its memory must be
 * contiguous, and an access pins it for as long as the queue lives: what a queue
 * uses cannot be unmapped from the nesting parent's IOAS.
 *
 * Source: drivers/iommu/iommufd/viommu.c, driver.c.
 */
import { PAGE_MASK_N, PAGE_SIZE_N, type Pfn, physAddr, physOfPfn, U64_MAX } from "../../lib/addr.ts";
import { EFAULT, EINVAL, ENOMEM, EOPNOTSUPP, EOVERFLOW, ERANGE, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_HW_QUEUE_TYPE_DEFAULT, type IommuHwQueueAlloc } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { HwQueueCore, HwQueueOps, Undo } from "../iommu/viommu.ts";
import {
  type IommufdAccess,
  iommufdAccessAttachInternal,
  iommufdAccessCreateInternal,
  iommufdAccessDestroy,
  iommufdAccessDetach,
  iommufdAccessPinPages,
  iommufdAccessUnpinPages,
} from "./access.ts";
import { abortObject, allocObject, decUsers, finalizeObject, getObject, IommufdObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";
import { IommufdViommu } from "./viommu.ts";

/** What a queue's memory covers: whole pages. */
interface PageRange {
  readonly start: bigint;
  readonly length: bigint;
}

/** Most pages whose list Linux can allocate (2^31 - 1 bytes). */
const MOST_PAGES = 0x7fff_ffffn / 8n;

/** A queue's memory, pinned. */
interface Pinned extends PageRange {
  readonly access: IommufdAccess;
}

export class IommufdHwQueue extends IommufdObject implements HwQueueCore {
  readonly type = "hw_queue";
  readonly viommu: IommufdViommu;
  readonly queueType: number;
  readonly baseAddr: bigint;
  readonly length: bigint;
  #pinned: Pinned | undefined = undefined;
  /** How the driver takes it back. */
  #undo: Undo | undefined = undefined;

  constructor(viommu: IommufdViommu, cmd: ViewOf<typeof IommuHwQueueAlloc>) {
    super();
    this.viommu = viommu;
    this.queueType = cmd.type;
    this.baseAddr = cmd.nesting_parent_iova;
    this.length = cmd.length;
  }

  depend(other: HwQueueCore): Errno | undefined {
    if (other === this || !(other instanceof IommufdHwQueue) || other.viommu !== this.viommu) return EINVAL;
    other.users++;
    return undefined;
  }

  undepend(other: HwQueueCore): void {
    if (other === this || !(other instanceof IommufdHwQueue)) throw new KernelBug("a hardware queue does not depend on that");
    decUsers(other);
  }

  /** Pins its memory and hands it to the driver. ERANGE: the last page ends beyond the last address. EFAULT: not contiguous. */
  *start(queues: HwQueueOps, index: number): Step<Errno | undefined> {
    const start = this.baseAddr & ~PAGE_MASK_N;
    const offset = this.baseAddr - start;
    const end = offset + this.length + PAGE_MASK_N;
    if (end > U64_MAX) return ERANGE;
    const length = end & ~PAGE_MASK_N;
    if (length / PAGE_SIZE_N > MOST_PAGES) return ENOMEM;
    const pfns = yield* this.#pin(start, length);
    if (pfns instanceof Errno) return pfns;
    if (!contiguous(pfns)) return EFAULT;
    const undo = yield* queues.initPhys(this, index, physAddr(physOfPfn(pfns[0] as Pfn) + offset));
    if (undo instanceof Errno) return undo;
    this.#undo = undo;
    return undefined;
  }

  *#pin(start: bigint, length: bigint): Step<Pfn[] | Errno> {
    const { ctx, hwpt } = this.viommu;
    if (ctx.kernel.fault.slab("pages of a hardware queue")) return ENOMEM;
    const access = iommufdAccessCreateInternal(ctx);
    if (access instanceof Errno) return access;
    const e = yield* iommufdAccessAttachInternal(access, hwpt.ioas);
    const pfns = e ?? (yield* iommufdAccessPinPages(access, start, length, 0));
    if (pfns instanceof Errno) {
      if (e === undefined) yield* iommufdAccessDetach(access);
      yield* iommufdAccessDestroy(access);
    } else {
      this.#pinned = { access, start, length };
    }
    return pfns;
  }

  override *destroy(): Step<void> {
    if (this.#undo !== undefined) yield* this.#undo();
    if (this.#pinned !== undefined) {
      const { access, start, length } = this.#pinned;
      yield* iommufdAccessUnpinPages(access, start, length);
      yield* iommufdAccessDetach(access);
      yield* iommufdAccessDestroy(access);
    }
    decUsers(this.viommu);
  }
}

const contiguous = (pfns: readonly Pfn[]): boolean => pfns.every((pfn, i) => i === 0 || pfn === (pfns[i - 1] as Pfn) + 1);

/**
 * IOMMU_HW_QUEUE_ALLOC. EOPNOTSUPP: the unit has no queues of that type. EINVAL, EOVERFLOW: no memory, or beyond the last
 * address. ENOENT: no such virtual IOMMU, or a hole in the memory. EFAULT: memory that is not contiguous. Else the driver's.
 */
export function* hwQueueAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwQueueAlloc>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if (cmd.flags !== 0 || cmd.type === IOMMU_HW_QUEUE_TYPE_DEFAULT) return EOPNOTSUPP;
  if (cmd.length === 0n) return EINVAL;
  if (cmd.nesting_parent_iova + cmd.length - 1n > U64_MAX) return EOVERFLOW;
  const viommu = getObject(ctx, cmd.viommu_id, IommufdViommu);
  if (viommu instanceof Errno) return viommu;
  try {
    const queues = viommu.ops?.hwQueues;
    if (queues?.supports(cmd.type) !== true) return EOPNOTSUPP;
    // Its id comes before that of the access which pins its memory.
    const queue = allocObject(ctx, new IommufdHwQueue(viommu, cmd));
    if (queue instanceof Errno) return queue;
    viommu.users++;
    let e = yield* queue.start(queues, cmd.index);
    if (e === undefined) {
      cmd.out_hw_queue_id = queue.id;
      e = respond(ucmd, cmd);
    }
    if (e === undefined) finalizeObject(ctx, queue);
    else yield* abortObject(ctx, queue);
    return e;
  } finally {
    putObject(ctx, viommu);
  }
}
