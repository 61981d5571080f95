/**
 * Nested hardware page tables: a guest's own table on a parent that maps the
 * guest's memory; and IOMMU_HWPT_INVALIDATE, by which the guest says what it
 * changed.
 *
 * A nested table holds a user of the parent it was made on, or of the virtual
 * IOMMU, which holds the parent. Attaching one reserves what its device needs in
 * the parent's IOAS.
 *
 * Source: drivers/iommu/iommufd/hw_pagetable.c.
 */
import { PAGE_SIZE } from "../../lib/addr.ts";
import { EFAULT, EINVAL, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_FAULT_ID_VALID, type IommuHwptInvalidate } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { IommuDomain } from "../iommu/domain.ts";
import type { IommuUserData, IommuUserDataArray } from "../iommu/user_data.ts";
import type { IommufdCtx } from "./ctx.ts";
import type { IommufdDevice } from "./group.ts";
import type { HwptPaging } from "./hw_pagetable.ts";
import { IommufdHwpt } from "./hwpt.ts";
import { abortObject, allocObject, decUsers, getAnyObject, type IommufdObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";
import { IommufdViommu } from "./viommu.ts";

const NESTED_FLAGS = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

/** Most requests of one call, so that none runs for long. */
const MOST_REQUESTS = 1 << 19;

export class HwptNested extends IommufdHwpt {
  readonly type = "hwpt_nested";
  readonly parent: HwptPaging;
  /** What it was made on, and keeps: `parent` or a virtual IOMMU. */
  readonly #on: IommufdObject;

  constructor(on: HwptPaging | IommufdViommu, flags: number) {
    super((flags & IOMMU_HWPT_ALLOC_PASID) !== 0);
    this.parent = on instanceof IommufdViommu ? on.hwpt : on;
    this.#on = on;
  }

  override get paging(): HwptPaging {
    return this.parent;
  }

  override *put(): Step<void> {
    decUsers(this);
  }

  override *destroy(): Step<void> {
    this.freeDomain();
    decUsers(this.#on);
  }
}

/** Reserves the id, takes the domain. */
function* create(
  ctx: IommufdCtx,
  on: HwptPaging | IommufdViommu,
  flags: number,
  makeDomain: (driverFlags: number) => IommuDomain | Errno,
): Step<HwptNested | Errno> {
  const hwpt = allocObject(ctx, new HwptNested(on, flags));
  if (hwpt instanceof Errno) return hwpt;
  on.users++;
  const domain = makeDomain(flags & ~IOMMU_HWPT_FAULT_ID_VALID);
  if (domain instanceof Errno) {
    yield* abortObject(ctx, hwpt);
    return domain;
  }
  hwpt.setDomain(domain);
  return hwpt;
}

/**
 * A table nested in `parent`, not published. EOPNOTSUPP: a flag that is not for nested tables, no data, or a driver that does
 * not nest. EINVAL: `parent` was not made for it, or is another driver's.
 */
export function* allocHwptNested(
  ctx: IommufdCtx,
  parent: HwptPaging,
  idev: IommufdDevice,
  flags: number,
  data: IommuUserData,
): Step<HwptNested | Errno> {
  const { unit } = idev.group.group;
  if ((flags & ~NESTED_FLAGS) !== 0 || data.length === 0 || unit.domainAllocNested === undefined) return EOPNOTSUPP;
  if (parent.autoDomain || !parent.nestParent || parent.domain.owner !== unit.ops) return EINVAL;
  return yield* create(ctx, parent, flags, (f) => unit.domainAllocNested?.(idev.dev, parent.domain, f, data) ?? EOPNOTSUPP);
}

/** The same on a virtual IOMMU. EINVAL: the device is behind another unit. */
export function* allocHwptOnViommu(
  viommu: IommufdViommu,
  idev: IommufdDevice,
  flags: number,
  data: IommuUserData,
): Step<HwptNested | Errno> {
  if (viommu.unit !== idev.group.group.unit) return EINVAL;
  const { ops } = viommu;
  if ((flags & ~NESTED_FLAGS) !== 0 || data.length === 0 || ops?.allocDomainNested === undefined) return EOPNOTSUPP;
  return yield* create(viommu.ctx, viommu, flags, (f) => ops.allocDomainNested?.(f, data) ?? EOPNOTSUPP);
}

/** What carries out requests for an object. EINVAL: it is neither a nested table nor a virtual IOMMU. EOPNOTSUPP: its driver does not. */
function invalidator(obj: IommufdObject): ((array: IommuUserDataArray) => Errno | undefined) | Errno {
  if (obj instanceof HwptNested) {
    const { domain } = obj;
    return domain.cacheInvalidateUser?.bind(domain) ?? EOPNOTSUPP;
  }
  if (obj instanceof IommufdViommu) return obj.ops?.cacheInvalidate?.bind(obj.ops) ?? EOPNOTSUPP;
  return EINVAL;
}

/** How a call went: the driver's error and how many requests were carried out before it. */
function carryOut(ctx: IommufdCtx, cmd: ViewOf<typeof IommuHwptInvalidate>): { e: Errno | undefined; done: number } {
  const { entry_num: entryNum, entry_len: entryLength } = cmd;
  if (cmd.__reserved !== 0) return { e: EOPNOTSUPP, done: 0 };
  if (entryNum > 0 && (cmd.data_uptr === 0n || entryLength === 0 || entryLength > PAGE_SIZE || entryNum > MOST_REQUESTS)) {
    return { e: EINVAL, done: 0 };
  }
  const obj = getAnyObject(ctx, cmd.hwpt_id);
  if (obj instanceof Errno) return { e: obj, done: 0 };
  try {
    const invalidate = invalidator(obj);
    if (invalidate instanceof Errno) return { e: invalidate, done: 0 };
    const array: IommuUserDataArray = { type: cmd.data_type, address: cmd.data_uptr, entryLength, entryNum };
    const e = invalidate(array);
    return { e, done: array.entryNum };
  } finally {
    putObject(ctx, obj);
  }
}

/** IOMMU_HWPT_INVALIDATE. `entry_num` comes back as the requests carried out, also on failure, which ends them. */
export function* hwptInvalidate(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwptInvalidate>): Step<Errno | undefined> {
  const { e, done } = carryOut(ucmd.ctx, cmd);
  cmd.entry_num = done;
  return respond(ucmd, cmd) === undefined ? e : EFAULT;
}
