/**
 * IOMMU_HWPT_ALLOC: a hardware page table on an IOAS, nested in another table,
 * or nested in a virtual IOMMU. Source: iommufd_hwpt_alloc in
 * drivers/iommu/iommufd/hw_pagetable.c.
 */
import { EINVAL, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_HWPT_DATA_NONE, IOMMU_HWPT_FAULT_ID_VALID, type IommuHwptAlloc } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { IommuUserData } from "../iommu/user_data.ts";
import { setHwptFault } from "./fault.ts";
import { IommufdDevice, NO_PASID } from "./group.ts";
import { allocHwptPaging, HwptPaging } from "./hw_pagetable.ts";
import type { IommufdHwpt } from "./hwpt.ts";
import { allocHwptNested, allocHwptOnViommu } from "./hwpt_nested.ts";
import { IommufdIoas } from "./ioas.ts";
import { abortObject, finalizeObject, getAnyObject, getObject, type IommufdObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";
import { IommufdViommu } from "./viommu.ts";

/** IOMMU_HWPT_ALLOC: on an IOAS, or nested in another table or in a virtual IOMMU. */
export function* hwptAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwptAlloc>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if (cmd.__reserved !== 0) return EOPNOTSUPP;
  if ((cmd.data_type === IOMMU_HWPT_DATA_NONE) !== (cmd.data_len === 0)) return EINVAL;
  const idev = getObject(ctx, cmd.dev_id, IommufdDevice);
  if (idev instanceof Errno) return idev;
  try {
    const pt = getAnyObject(ctx, cmd.pt_id);
    if (pt instanceof Errno) return EINVAL;
    try {
      return yield* hwptAllocOn(ucmd, cmd, idev, pt);
    } finally {
      putObject(ctx, pt);
    }
  } finally {
    putObject(ctx, idev);
  }
}

function* hwptAllocOn(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwptAlloc>, idev: IommufdDevice, pt: IommufdObject): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const { flags } = cmd;
  const data: IommuUserData = { type: cmd.data_type, address: cmd.data_uptr, length: cmd.data_len };
  const ioas = pt instanceof IommufdIoas ? pt : undefined;
  if (ioas !== undefined) yield* ioas.mutex.lock();
  try {
    let hwpt: IommufdHwpt | Errno = EINVAL;
    if (ioas !== undefined) {
      const given = data.length === 0 ? {} : { data };
      hwpt = yield* allocHwptPaging(ctx, ioas, idev, { pasid: NO_PASID, flags, attach: false, ...given });
    } else if (pt instanceof HwptPaging) {
      hwpt = yield* allocHwptNested(ctx, pt, idev, flags, data);
    } else if (pt instanceof IommufdViommu) {
      hwpt = yield* allocHwptOnViommu(pt, idev, flags, data);
    }
    return hwpt instanceof Errno ? hwpt : yield* finishHwpt(ucmd, cmd, hwpt);
  } finally {
    ioas?.mutex.unlock();
  }
}

/** What is left of an allocation: the table's fault queue, the answer, and publication. An IOAS's mutex is held for a table on it. */
function* finishHwpt(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwptAlloc>, hwpt: IommufdHwpt): Step<Errno | undefined> {
  const { ctx } = ucmd;
  let e = (cmd.flags & IOMMU_HWPT_FAULT_ID_VALID) === 0 ? undefined : setHwptFault(ctx, hwpt, cmd.fault_id);
  if (e === undefined) {
    cmd.out_hwpt_id = hwpt.id;
    e = respond(ucmd, cmd);
  }
  if (e === undefined) finalizeObject(ctx, hwpt);
  else yield* abortObject(ctx, hwpt);
  return e;
}
