/**
 * A command on its way through the ioctl table: the caller's structure, copied
 * in, and the way back. Source: struct iommufd_ucmd.
 */
import { EFAULT, type Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { StructView } from "../../uapi/struct.ts";
import { copyToUser } from "../mm/user_memory.ts";
import type { IommufdCtx } from "./ctx.ts";

export interface Ucmd {
  readonly ctx: IommufdCtx;
  /** Where the caller's structure is. */
  readonly ubuffer: bigint;
  /** Bytes the caller says it has. */
  readonly userSize: number;
}

/** What executes a command: undefined for success. A number, which only the selftest answers, is what the call returns. */
export type UcmdHandler<V> = (ucmd: Ucmd, cmd: V) => Step<Errno | number | undefined>;

/** Copies the structure back, as much of it as the caller has room for; EFAULT. */
export function respond(ucmd: Ucmd, cmd: StructView): Errno | undefined {
  const { bytes } = cmd;
  const out = ucmd.userSize < bytes.length ? bytes.subarray(0, ucmd.userSize) : bytes;
  return copyToUser(ucmd.ctx.kernel, ucmd.ubuffer, out) > 0 ? EFAULT : undefined;
}
