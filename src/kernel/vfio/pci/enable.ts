/**
 * Opening and closing the function itself.
 *
 * At open it is woken, reset if it can be, its config space copied, and every
 * BAR reserved and mapped; a BAR that somebody else has stays unusable, and the
 * open goes on. At close the exported buffers die first (nobody may reach a
 * function that is being taken apart), then DMA, interrupts and BARs end, then
 * the function is reset and its config space put back as it was found.
 *
 * Lock order: dev_set->lock (held by the caller) → igate → ML.
 * Source: vfio_pci_core_enable, _disable, _close_device, _finish_enable.
 */
import { PAGE_SIZE_N } from "../../../lib/addr.ts";
import { EAGAIN, EBUSY, ENODEV, ENOMEM, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import {
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_QSIZE,
  PCI_MSIX_TABLE,
  PCI_MSIX_TABLE_BIR,
  PCI_MSIX_TABLE_OFFSET,
} from "../../../uapi/pci_regs.ts";
import { vfioConfigFree, vfioConfigInit } from "./config_init.ts";
import { vfioPciDevSetTryReset } from "./hot_reset.ts";
import { vfioPciIoeventfdsCleanup } from "./ioeventfd.ts";
import { vfioPciRuntimePmExit } from "./low_power.ts";
import { countTokenUser } from "./vf_token.ts";
import { NO_MSIX_BAR, PCI_D0, PCI_STD_NUM_BARS, type VfioPciCoreDevice } from "./vfio_pci_core.ts";
import { vfioPciDmaBufCleanup } from "./vfio_pci_dmabuf.ts";
import { vfioPciIrqsDisable, vfioPciLinesRelease } from "./vfio_pci_intrs.ts";

const MSIX_ENTRY_BYTES = 16;

/** EAGAIN: the function's lock is taken, so it cannot be reset; ENOMEM; else why it cannot be woken or enabled. */
export function* vfioPciOpenDevice(vdev: VfioPciCoreDevice): Step<Errno | undefined> {
  const { pdev } = vdev;
  if (!vdev.disableIdleD3) {
    const awake = yield* pdev.pmRuntimeResumeAndGet();
    if (awake instanceof Errno) return awake;
  }
  const error = yield* enable(vdev);
  if (error !== undefined) {
    if (!vdev.disableIdleD3) pdev.pmRuntimePut();
    return error;
  }
  for (let bar = 0; bar < PCI_STD_NUM_BARS; bar++) vdev.barMmapSupported[bar] = canMmap(vdev, bar);
  yield* countTokenUser(vdev, 1);
  return undefined;
}

function* enable(vdev: VfioPciCoreDevice): Step<Errno | undefined> {
  const { pdev } = vdev;
  // What is saved below must not have the function master the bus.
  pdev.setMaster(false);
  const error = pdev.enable();
  if (error !== undefined) return error;
  const reset = yield* pdev.tryResetFunction();
  if (reset === EAGAIN) {
    pdev.disable();
    return EAGAIN;
  }
  vdev.resetWorks = reset === undefined;
  pdev.saveState();
  vdev.savedState = pdev.storeSavedState();
  vdev.pci23 = !vdev.nointxmask && pdev.intxMaskSupported;
  const cmd = pdev.configRead(PCI_COMMAND, 2);
  if (vdev.pci23 && (cmd & PCI_COMMAND_INTX_DISABLE) !== 0) pdev.configWrite(PCI_COMMAND, 2, cmd & ~PCI_COMMAND_INTX_DISABLE);
  if (lacksConfig(vdev)) {
    vdev.savedState = undefined;
    pdev.disable();
    return ENOMEM;
  }
  vfioConfigInit(vdev);
  findMsixTable(vdev);
  mapBars(vdev);
  return undefined;
}

/** There is no memory for the image of config space. */
function lacksConfig({ kernel, pdev }: VfioPciCoreDevice): boolean {
  const { fault } = kernel;
  return fault.slab("pci_config_map", pdev.cfgSize) || fault.slab("vconfig", pdev.cfgSize) || (pdev.msiCap !== 0 && fault.slab("msi_perm"));
}

function findMsixTable(vdev: VfioPciCoreDevice): void {
  const { pdev } = vdev;
  vdev.msixBar = NO_MSIX_BAR;
  if (pdev.msixCap === 0) return;
  const table = pdev.configRead(pdev.msixCap + PCI_MSIX_TABLE, 4);
  vdev.msixBar = table & PCI_MSIX_TABLE_BIR;
  vdev.msixOffset = (table & PCI_MSIX_TABLE_OFFSET) >>> 0;
  vdev.msixSize = ((pdev.configRead(pdev.msixCap + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1) * MSIX_ENTRY_BYTES;
}

function mapBars(vdev: VfioPciCoreDevice): void {
  const { pdev } = vdev;
  for (let bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
    vdev.barmap[bar] = ENODEV;
    if (pdev.nonMappableBars || (pdev.resources[bar]?.length ?? 0n) === 0n) continue;
    vdev.barmap[bar] = pdev.requestRegion(bar, "vfio") === undefined ? undefined : EBUSY;
  }
}

/** Whole pages, or the start of a page of its own: a smaller BAR shares its page with another. */
function canMmap(vdev: VfioPciCoreDevice, bar: number): boolean {
  const res = vdev.pdev.resources[bar];
  if (res === undefined || vdev.pdev.nonMappableBars || !res.flags.mem || res.length === 0n) return false;
  if (!vdev.mapRegisters && vdev.pdev.model.barMemory(bar) === undefined) return false;
  return res.length >= PAGE_SIZE_N || res.start % PAGE_SIZE_N === 0n;
}

/** The last close. */
export function* vfioPciCloseDevice(vdev: VfioPciCoreDevice): Step<void> {
  yield* countTokenUser(vdev, -1);
  yield* vfioPciDmaBufCleanup(vdev);
  yield* disable(vdev);
  yield* vdev.igate.lock();
  vfioPciLinesRelease(vdev);
  vdev.igate.unlock();
}

function* disable(vdev: VfioPciCoreDevice): Step<void> {
  const { pdev } = vdev;
  vdev.vdev.devSet.lock.assertHeld();
  // Low power ends first: a reset through the power state needs D0, and so does what is restored below.
  yield* vfioPciRuntimePmExit(vdev);
  yield* pdev.pmRuntimeResume();
  yield* vdev.setPowerState(PCI_D0);
  pdev.setMaster(false);
  yield* vfioPciIrqsDisable(vdev);
  yield* vfioPciIoeventfdsCleanup(vdev);
  vdev.virqDisabled = false;
  vfioConfigFree(vdev);
  for (let bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
    if (vdev.barmap[bar] === undefined) pdev.releaseRegion(bar);
    vdev.barmap[bar] = ENODEV;
  }
  vdev.needsReset = true;
  pdev.loadSavedState(vdev.savedState);
  vdev.savedState = undefined;
  pdev.configWrite(PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
  if (vdev.resetWorks) yield* resetIfUnlocked(vdev);
  pdev.restoreState();
  pdev.disable();
  yield* vfioPciDevSetTryReset(vdev.vdev.devSet);
  if (!vdev.disableIdleD3) pdev.pmRuntimePut();
}

/** Locks are only tried: an unbind that waits for this very close holds one. */
function* resetIfUnlocked(vdev: VfioPciCoreDevice): Step<void> {
  const { pdev } = vdev;
  const bridge = pdev.upstreamBridge;
  if (bridge !== undefined && !(yield* bridge.devTryLock())) return;
  if (yield* pdev.devTryLock()) {
    if ((yield* pdev.rawResetFunctionLocked()) === undefined) vdev.needsReset = false;
    pdev.devUnlock();
  }
  bridge?.devUnlock();
}
