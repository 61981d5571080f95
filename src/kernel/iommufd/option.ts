/** IOMMU_OPTION: RLIMIT_MODE of a context, HUGE_PAGES of an IOAS; negotiated, DMABUF_REVALIDATE of an IOAS too. Source: drivers/iommu/iommufd/{main,ioas}.c. */
import { EBUSY, EFAULT, EINVAL, EOPNOTSUPP, EPERM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_OPTION_HUGE_PAGES,
  IOMMU_OPTION_OP_GET,
  IOMMU_OPTION_OP_SET,
  IOMMU_OPTION_RLIMIT_MODE,
  IommuOption,
} from "../../uapi/iommufd.ts";
import { IOMMU_OPTION_DMABUF_REVALIDATE } from "../../uapi/proposed.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { copyToUser } from "../mm/user_memory.ts";
import type { IommufdCtx } from "./ctx.ts";
import { IommufdIoas } from "./ioas.ts";
import { getObject, putObject } from "./object.ts";
import type { Ucmd } from "./ucmd.ts";

type Cmd = ViewOf<typeof IommuOption>;

export function* option(ucmd: Ucmd, cmd: Cmd): Step<Errno | undefined> {
  if (cmd.__reserved !== 0) return EOPNOTSUPP;
  let e: Errno | undefined;
  if (cmd.option_id === IOMMU_OPTION_RLIMIT_MODE) e = rlimitMode(ucmd.ctx, cmd);
  else if (cmd.option_id === IOMMU_OPTION_HUGE_PAGES) e = yield* ioasOption(ucmd.ctx, cmd);
  else if (cmd.option_id === IOMMU_OPTION_DMABUF_REVALIDATE && ucmd.ctx.kernel.interconnect === "negotiated") e = revalidate(ucmd.ctx, cmd);
  else e = EOPNOTSUPP;
  if (e !== undefined) return e;
  const { val64: at } = IommuOption.offsets;
  return copyToUser(ucmd.ctx.kernel, ucmd.ubuffer + BigInt(at), cmd.bytes.subarray(at, at + IommuOption.widths.val64)) > 0
    ? EFAULT
    : undefined;
}

/** Whose limit counts: 0 the user's, 1 the process's. Only before anything exists. */
function rlimitMode(ctx: IommufdCtx, cmd: Cmd): Errno | undefined {
  if (cmd.object_id !== 0) return EOPNOTSUPP;
  if (cmd.op === IOMMU_OPTION_OP_GET) {
    cmd.val64 = ctx.accountMode === "mm" ? 1n : 0n;
    return undefined;
  }
  if (cmd.op !== IOMMU_OPTION_OP_SET) return EOPNOTSUPP;
  if (!ctx.kernel.current.capable("CAP_SYS_RESOURCE")) return EPERM;
  if (!ctx.objects.empty) return EBUSY;
  if (cmd.val64 > 1n) return EINVAL;
  ctx.accountMode = cmd.val64 === 1n ? "mm" : "user";
  return undefined;
}

function* ioasOption(ctx: IommufdCtx, cmd: Cmd): Step<Errno | undefined> {
  const ioas = getObject(ctx, cmd.object_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    if (cmd.op === IOMMU_OPTION_OP_GET) {
      cmd.val64 = ioas.iopt.disableLargePages ? 0n : 1n;
      return undefined;
    }
    if (cmd.op !== IOMMU_OPTION_OP_SET) return EOPNOTSUPP;
    if (cmd.val64 > 1n) return EINVAL;
    return yield* ioas.iopt.setLargePages(cmd.val64 === 1n);
  } finally {
    putObject(ctx, ioas);
  }
}

/** Do mappings of dma-bufs that are made from now on come back after a temporary revoke? */
function revalidate(ctx: IommufdCtx, cmd: Cmd): Errno | undefined {
  const ioas = getObject(ctx, cmd.object_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    if (cmd.op === IOMMU_OPTION_OP_GET) {
      cmd.val64 = ioas.iopt.revalidate ? 1n : 0n;
      return undefined;
    }
    if (cmd.op !== IOMMU_OPTION_OP_SET) return EOPNOTSUPP;
    if (cmd.val64 > 1n) return EINVAL;
    ioas.iopt.revalidate = cmd.val64 === 1n;
    return undefined;
  } finally {
    putObject(ctx, ioas);
  }
}
