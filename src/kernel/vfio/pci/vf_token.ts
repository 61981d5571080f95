/**
 * The secret that a physical function and its virtual functions share.
 *
 * Whoever opens a VF of a PF that vfio-pci drives must show the PF's token;
 * whoever opens the PF while VFs are in use must too, else sets it.
 * Source: vfio_pci_core_match_token_uuid in vfio_pci_core.c.
 */
import { EACCES, EFAULT, EINVAL, ENOTTY, type Errno } from "../../../lib/errno.ts";
import { LockClass } from "../../../sched/lockdep.ts";
import { Mutex } from "../../../sched/locks.ts";
import type { Step } from "../../../sched/task.ts";
import { VFIO_DEVICE_FEATURE_SET } from "../../../uapi/vfio.ts";
import type { Kernel } from "../../kernel.ts";
import { copyFromUser } from "../../mm/user_memory.ts";
import { vfioCheckFeature } from "../vfio_main.ts";
import type { VfioPciCoreDevice } from "./vfio_pci_core.ts";

const TOKEN_LOCK: LockClass = new LockClass("vfio vf_token->lock");
const UUID_BYTES = 16;

export class VfToken {
  readonly lock: Mutex;
  /** Guarded by `lock`, as is `users`. */
  uuid: Uint8Array;
  /** VFs open now. */
  users = 0;

  constructor(kernel: Kernel, uuid: Uint8Array) {
    this.lock = new Mutex(kernel.sched, TOKEN_LOCK);
    this.uuid = uuid;
  }
}

/**
 * A token that nobody can guess is not needed where nothing is secret: it is
 * made from the function's address, in the form of a random (version 4) UUID.
 */
export function initialToken(rid: number): Uint8Array {
  const uuid = new Uint8Array(UUID_BYTES).map((_, i) => (Math.imul(rid + 1, 0x9e37_79b1) >>> ((i % 4) * 8)) ^ (i * 0x1d));
  uuid[6] = ((uuid[6] as number) & 0x0f) | 0x40;
  uuid[8] = ((uuid[8] as number) & 0x3f) | 0x80;
  return uuid;
}

const same = (a: Uint8Array, b: Uint8Array): boolean => a.every((x, i) => x === b[i]);

/** May this open go on? EACCES: the token is missing or wrong; EINVAL: one was given where none is used. */
export function* vfioPciMatchToken(vdev: VfioPciCoreDevice, uuid: Uint8Array | undefined): Step<Errno | undefined> {
  if (vdev.pdev.isVirtfn) {
    const token = vdev.sriovPf?.vfToken;
    if (token === undefined) return uuid === undefined ? undefined : EINVAL;
    if (uuid === undefined) return EACCES;
    yield* token.lock.lock();
    try {
      return same(uuid, token.uuid) ? undefined : EACCES;
    } finally {
      token.lock.unlock();
    }
  }
  const token = vdev.vfToken;
  if (token === undefined) return uuid === undefined ? undefined : EINVAL;
  yield* token.lock.lock();
  try {
    if (token.users > 0) return uuid !== undefined && same(uuid, token.uuid) ? undefined : EACCES;
    if (uuid !== undefined) token.uuid = uuid.slice();
    return undefined;
  } finally {
    token.lock.unlock();
  }
}

/** VFIO_DEVICE_FEATURE_PCI_VF_TOKEN. ENOTTY: not a physical function. */
export function* vfioPciFeatureToken(vdev: VfioPciCoreDevice, flags: number, arg: bigint, argsz: number): Step<number | Errno> {
  const token = vdev.vfToken;
  if (token === undefined) return ENOTTY;
  const go = vfioCheckFeature(flags, argsz, VFIO_DEVICE_FEATURE_SET, UUID_BYTES);
  if (go !== "go") return go;
  const uuid = new Uint8Array(UUID_BYTES);
  if (copyFromUser(vdev.kernel, uuid, arg) !== 0) return EFAULT;
  yield* token.lock.lock();
  token.uuid = uuid;
  token.lock.unlock();
  return 0;
}

/** Counts an open VF on its PF's token. */
export function* countTokenUser(vdev: VfioPciCoreDevice, by: 1 | -1): Step<void> {
  const token = vdev.sriovPf?.vfToken;
  if (token === undefined) return;
  yield* token.lock.lock();
  token.users += by;
  token.lock.unlock();
}
