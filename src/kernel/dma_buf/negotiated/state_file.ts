/**
 * The state of a negotiated buffer, as user space asks for it and waits for it.
 *
 * Source: this design; docs/negotiation.md.
 */
import { EFAULT, ENOTTY, type Errno } from "../../../lib/errno.ts";
import { POLLPRI } from "../../../uapi/index.ts";
import { DMA_BUF_STATE_DEAD, DMA_BUF_STATE_LIVE, DMA_BUF_STATE_REVOKED, DmaBufQueryState } from "../../../uapi/proposed.ts";
import { copyToUser } from "../../mm/user_memory.ts";
import type { DmaBuf } from "../buffer.ts";

const STATES = { live: DMA_BUF_STATE_LIVE, revoked: DMA_BUF_STATE_REVOKED, dead: DMA_BUF_STATE_DEAD } as const;

/** DMA_BUF_IOCTL_QUERY_STATE. ENOTTY for a buffer without a contract; EFAULT, and the change stays to be seen. */
export function queryState({ negotiated, kernel }: DmaBuf, arg: bigint): Errno | undefined {
  if (negotiated === undefined) return ENOTTY;
  const { state, attachments, fenced, epoch, changes } = negotiated;
  const out = DmaBufQueryState.alloc({ state: STATES[state], importers: attachments.length, fenced, epoch: BigInt(epoch.number) });
  if (copyToUser(kernel, arg, out.bytes) !== 0) return EFAULT;
  // Not what has changed since the copy.
  negotiated.seen = changes;
  return undefined;
}

/** POLLPRI while the state has changed since it was last asked for. */
export const pollState = ({ negotiated }: DmaBuf): number =>
  negotiated !== undefined && negotiated.changes !== negotiated.seen ? POLLPRI : 0;
