/**
 * VFIO_DEVICE_IOEVENTFD: a signal of an eventfd writes a value to a BAR.
 *
 * A write that memory cannot take is dropped. While ML is contended the write
 * is left to a worker.
 *
 * Lock order: ioeventfdsLock; ML alone.
 * Source: vfio_pci_ioeventfd in vfio_pci_rdwr.c.
 */
import { EEXIST, EFAULT, EINVAL, ENODEV, ENOMEM, ENOSPC, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import * as V from "../../../uapi/vfio.ts";
import { copyFromUser } from "../../mm/user_memory.ts";
import { Virqfd } from "../virqfd.ts";
import { REGION_MASK, type VfioPciCoreDevice } from "./vfio_pci_core.ts";
import { vfioPciIo } from "./vfio_pci_rdwr.ts";

const MAX_IOEVENTFDS = 1000;

export interface IoEventfd {
  readonly bar: number;
  readonly pos: bigint;
  readonly data: bigint;
  /** Bytes written: 1, 2, 4 or 8. */
  readonly count: number;
  readonly virqfd: Virqfd;
}

/** EINVAL: not wholly in a BAR, or in the MSI-X table; EEXIST: there already; ENODEV: nothing to take away; ENOSPC: 1000 are there. */
export function* vfioPciIoctlIoeventfd(vdev: VfioPciCoreDevice, arg: bigint): Step<number | Errno> {
  const a = V.VfioDeviceIoeventfd.alloc();
  const minsz = V.VfioDeviceIoeventfd.endOf("fd");
  if (copyFromUser(vdev.kernel, a.bytes.subarray(0, minsz), arg) !== 0) return EFAULT;
  if (a.argsz < minsz || (a.flags & ~V.VFIO_DEVICE_IOEVENTFD_SIZE_MASK) !== 0) return EINVAL;
  const count = a.flags;
  if (count !== 1 && count !== 2 && count !== 4 && count !== 8) return EINVAL;
  if (a.fd < -1) return EINVAL;
  const { data, fd } = a;
  const pos = a.offset & REGION_MASK;
  const bar = vdev.regionAt(a.offset);
  if (bar < 0 || bar > V.VFIO_PCI_BAR5_REGION_INDEX) return EINVAL;
  const res = vdev.pdev.resources[bar];
  const end = Number(pos) + count;
  if (res === undefined || BigInt(end) > res.length) return EINVAL;
  if (bar === vdev.msixBar && end > vdev.msixOffset && Number(pos) < vdev.msixOffset + vdev.msixSize) return EINVAL;
  const unmapped = vdev.iomapBar(bar);
  if (unmapped !== undefined) return unmapped;

  yield* vdev.ioeventfdsLock.lock();
  try {
    const at = vdev.ioeventfds.findIndex((e) => e.pos === pos && e.bar === bar && e.data === data && e.count === count);
    if (at >= 0) {
      if (fd !== -1) return EEXIST;
      const [gone] = vdev.ioeventfds.splice(at, 1);
      if (gone !== undefined) yield* gone.virqfd.disable();
      return 0;
    }
    if (fd < 0) return ENODEV;
    if (vdev.ioeventfds.length >= MAX_IOEVENTFDS) return ENOSPC;
    if (vdev.kernel.fault.slab("vfio_pci_ioeventfd")) return ENOMEM;
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, data, true);
    const value = bytes.subarray(0, count);
    const testMem = res.flags.mem;
    const now = (): boolean => {
      // Nobody holds ML and nothing can come between: as good as taking it.
      if (testMem && vdev.memoryLock.locked) return true;
      if (!testMem || (vdev.memoryEnabled() && !vdev.pdev.decodeFenced)) vdev.pdev.barWrite(bar, Number(pos), value);
      return false;
    };
    const later = function* (): Step<void> {
      yield* vfioPciIo(vdev, testMem, bar, Number(pos), value, true);
    };
    const virqfd = Virqfd.enable(vdev.kernel, fd, false, now, later);
    if (virqfd instanceof Errno) return virqfd;
    vdev.ioeventfds.push({ bar, pos, data, count, virqfd });
    return 0;
  } finally {
    vdev.ioeventfdsLock.unlock();
  }
}

/** The device is being closed; a write that was left to a worker still goes out. ML not held. */
export function* vfioPciIoeventfdsCleanup(vdev: VfioPciCoreDevice): Step<void> {
  for (const e of vdev.ioeventfds.splice(0)) yield* e.virqfd.disable();
}
