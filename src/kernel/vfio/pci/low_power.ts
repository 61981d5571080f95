/**
 * Low power on the user's request, and what runtime PM calls back.
 *
 * ENTRY revokes, then gives up the one reference that keeps the device awake
 * while open: when the call ends the device may suspend. Any later call wakes
 * it for its own length. EXIT takes the reference back and restores the
 * buffers. With a wakeup eventfd a wake ends low power by itself: it signals
 * and takes the reference back, but restores nothing; the user's EXIT, COMMAND
 * write or reset does (spec §6).
 *
 * Lock order: ML → reservation; igate after ML is released.
 * Source: the pm functions of vfio_pci_core.c.
 */
import { EFAULT, EINVAL, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import { VFIO_DEVICE_FEATURE_SET, VFIO_PCI_INTX_IRQ_INDEX, VfioDeviceLowPowerEntryWithWakeup } from "../../../uapi/vfio.ts";
import { type EventfdCtx, eventfdCtxFromFd } from "../../fs/eventfd.ts";
import { copyFromUser } from "../../mm/user_memory.ts";
import { vfioCheckFeature } from "../vfio_main.ts";
import { PCI_D0, type VfioPciCoreDevice } from "./vfio_pci_core.ts";
import { vfioPciDmaBufMove, vfioPciDmaBufSettle } from "./vfio_pci_dmabuf.ts";
import { vfioPciIntxMask, vfioPciIntxUnmask } from "./vfio_pci_intrs.ts";

/** VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY. EINVAL: already entered, and the buffers stay revoked. */
export function* vfioPciCorePmEntry(vdev: VfioPciCoreDevice, flags: number, argsz: number): Step<number | Errno> {
  const go = vfioCheckFeature(flags, argsz, VFIO_DEVICE_FEATURE_SET, 0);
  if (go !== "go") return go;
  return (yield* enter(vdev, undefined)) ?? 0;
}

/** VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP. EBADF, EINVAL: not an eventfd. */
export function* vfioPciCorePmEntryWithWakeup(vdev: VfioPciCoreDevice, flags: number, arg: bigint, argsz: number): Step<number | Errno> {
  const go = vfioCheckFeature(flags, argsz, VFIO_DEVICE_FEATURE_SET, VfioDeviceLowPowerEntryWithWakeup.size);
  if (go !== "go") return go;
  const entry = VfioDeviceLowPowerEntryWithWakeup.alloc();
  if (copyFromUser(vdev.kernel, entry.bytes, arg) !== 0) return EFAULT;
  if (entry.wakeup_eventfd < 0) return EINVAL;
  const ctx = eventfdCtxFromFd(vdev.kernel.current, entry.wakeup_eventfd);
  if (ctx instanceof Errno) return ctx;
  const error = yield* enter(vdev, ctx);
  if (error !== undefined) ctx.put();
  return error ?? 0;
}

function* enter(vdev: VfioPciCoreDevice, wakeup: EventfdCtx | undefined): Step<Errno | undefined> {
  yield* vdev.zapAndDownWriteMemoryLock();
  try {
    yield* vfioPciDmaBufMove(vdev, true);
    if (vdev.pmRuntimeEngaged) return EINVAL;
    vdev.pmRuntimeEngaged = true;
    vdev.pmWakeEventfd = wakeup;
    vdev.pdev.pm.putNoidle();
    note(vdev, wakeup === undefined ? "entry" : "entry-with-wakeup");
    return undefined;
  } finally {
    vdev.memoryLock.upWrite();
  }
}

/** VFIO_DEVICE_FEATURE_LOW_POWER_EXIT; no effect on power when not entered. */
export function* vfioPciCorePmExit(vdev: VfioPciCoreDevice, flags: number, argsz: number): Step<number | Errno> {
  const go = vfioCheckFeature(flags, argsz, VFIO_DEVICE_FEATURE_SET, 0);
  if (go !== "go") return go;
  yield* vfioPciRuntimePmExit(vdev);
  return 0;
}

export function* vfioPciRuntimePmExit(vdev: VfioPciCoreDevice): Step<void> {
  yield* vdev.memoryLock.downWrite();
  try {
    leave(vdev, "exit");
    yield* vfioPciDmaBufSettle(vdev);
  } finally {
    vdev.memoryLock.upWrite();
  }
}

/** ML(W) held. */
function leave(vdev: VfioPciCoreDevice, what: "exit" | "wake"): void {
  if (!vdev.pmRuntimeEngaged) return;
  vdev.pmRuntimeEngaged = false;
  vdev.pdev.pmRuntimeGetNoresume();
  vdev.pmWakeEventfd?.put();
  vdev.pmWakeEventfd = undefined;
  note(vdev, what);
}

/** The device is about to be suspended. A user's D3hot is undone first, so that its config space is what is saved. */
export function* vfioPciCoreRuntimeSuspend(vdev: VfioPciCoreDevice): Step<Errno | undefined> {
  yield* vdev.memoryLock.downWrite();
  try {
    yield* vdev.setPowerState(PCI_D0);
  } finally {
    vdev.memoryLock.upWrite();
  }
  vdev.pmIntxMasked = vdev.irqType === VFIO_PCI_INTX_IRQ_INDEX && (yield* vfioPciIntxMask(vdev));
  return undefined;
}

/** The device is awake again. */
export function* vfioPciCoreRuntimeResume(vdev: VfioPciCoreDevice): Step<Errno | undefined> {
  yield* vdev.memoryLock.downWrite();
  try {
    if (vdev.pmWakeEventfd !== undefined) {
      vdev.pmWakeEventfd.signal();
      leave(vdev, "wake");
      // Linux 7.3 leaves the buffers revoked until the user asks.
      if (vdev.kernel.interconnect === "negotiated") yield* vfioPciDmaBufSettle(vdev);
    }
  } finally {
    vdev.memoryLock.upWrite();
  }
  if (vdev.pmIntxMasked) yield* vfioPciIntxUnmask(vdev);
  return undefined;
}

function note(vdev: VfioPciCoreDevice, what: "entry" | "entry-with-wakeup" | "exit" | "wake"): void {
  if (vdev.kernel.trace.on) vdev.kernel.trace.emit({ type: "vfio.low_power", device: vdev.pdev.name, what });
}
