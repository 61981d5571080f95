/**
 * Reads and writes of BARs through the device file.
 *
 * The file offset names the region and the byte in it (`regionAt`). An access goes out in the widest
 * naturally aligned pieces of 8, 4, 2 and 1 bytes; each takes ML for reading
 * and fails with EIO when memory cannot be reached. The MSI-X table is a hole:
 * reads give ones, writes vanish.
 *
 * The user's memory is touched only with ML released, because a fault on a BAR
 * takes ML under mmap_lock. Source: vfio_pci_rdwr.c.
 */
import { EFAULT, EINVAL, EIO, ENOMEM, type Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import { copyFromUser, copyToUser } from "../../mm/user_memory.ts";
import { PCI_ROM_RESOURCE, REGION_MASK, type VfioPciCoreDevice } from "./vfio_pci_core.ts";

/** A range that is not there. */
interface Hole {
  readonly start: number;
  readonly end: number;
}

/** One transfer to or from the function, with memory known to be reachable when `testMem`; EIO otherwise. */
export function* vfioPciIo(
  vdev: VfioPciCoreDevice,
  testMem: boolean,
  bar: number,
  off: number,
  bytes: Uint8Array,
  isWrite: boolean,
): Step<Errno | undefined> {
  if (!testMem) {
    transfer(vdev, bar, off, bytes, isWrite);
    return undefined;
  }
  yield* vdev.memoryLock.downRead();
  try {
    if (!vdev.memoryEnabled() || vdev.pdev.decodeFenced) return EIO;
    transfer(vdev, bar, off, bytes, isWrite);
    return undefined;
  } finally {
    vdev.memoryLock.upRead();
  }
}

function transfer(vdev: VfioPciCoreDevice, bar: number, off: number, bytes: Uint8Array, isWrite: boolean): void {
  // What nobody answers is not an error to the kernel: a read is all ones.
  if (isWrite) vdev.pdev.barWrite(bar, off, bytes);
  else vdev.pdev.barRead(bar, off, bytes);
}

/**
 * Bytes moved, at most to the end of the BAR. EINVAL: no such BAR, or past it;
 * ENODEV, EBUSY: it was not reserved at open; ENOMEM: a ROM without an image; EIO: memory cannot be reached;
 * EFAULT. Pieces before a failure were carried out.
 */
export function* vfioPciBarRw(vdev: VfioPciCoreDevice, buf: bigint, count: number, pos: bigint, isWrite: boolean): Step<number | Errno> {
  const bar = vdev.regionAt(pos);
  const res = vdev.pdev.resources[bar];
  if (res === undefined || res.start === 0n || res.length === 0n) return EINVAL;
  const off = pos & REGION_MASK;
  if (off >= res.length) return EINVAL;
  const start = Number(off);
  const end = Number(res.length);
  // A ROM BAR whose image does not begin with its signature cannot be mapped; no function here carries an image.
  if (bar === PCI_ROM_RESOURCE) return ENOMEM;
  const error = vdev.iomapBar(bar);
  if (error !== undefined) return error;
  const isMsix = bar === vdev.msixBar;
  const hole = { start: isMsix ? vdev.msixOffset : 0, end: isMsix ? vdev.msixOffset + vdev.msixSize : 0 };
  return yield* ioRw(vdev, res.flags.mem, bar, buf, start, Math.min(count, end - start), hole, isWrite);
}

function* ioRw(
  vdev: VfioPciCoreDevice,
  testMem: boolean,
  bar: number,
  buf: bigint,
  from: number,
  count: number,
  hole: Hole,
  isWrite: boolean,
): Step<number | Errno> {
  const k = vdev.kernel;
  let done = 0;
  while (done < count) {
    const off = from + done;
    const left = count - done;
    const user = buf + BigInt(done);
    const fillable = off < hole.start ? Math.min(left, hole.start - off) : off >= hole.end ? left : 0;
    if (fillable === 0) {
      const filled = Math.min(left, hole.end - off);
      if (!isWrite && copyToUser(k, user, new Uint8Array(filled).fill(0xff)) !== 0) return EFAULT;
      done += filled;
      continue;
    }
    let width = 8;
    while (width > 1 && (fillable < width || off % width !== 0)) width /= 2;
    const bytes = new Uint8Array(width);
    if (isWrite && copyFromUser(k, bytes, user) !== 0) return EFAULT;
    const error = yield* vfioPciIo(vdev, testMem, bar, off, bytes, isWrite);
    if (error !== undefined) return error;
    if (!isWrite && copyToUser(k, user, bytes) !== 0) return EFAULT;
    done += width;
  }
  return done;
}
