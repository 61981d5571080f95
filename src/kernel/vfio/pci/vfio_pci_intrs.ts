/**
 * Interrupts to eventfds.
 *
 * One kind at a time: INTx, MSI or MSI-X. INTx is masked by the kernel when it
 * fires and stays so until the user unmasks, by a call or by an eventfd; an
 * unmask that finds the line still raised signals again at once. Message
 * interrupts need no unmask. The error and the request interrupt are lines of
 * the kernel's own. DATA_NONE and DATA_BOOL fire a trigger as hardware would.
 *
 * Lock order: igate → ML (vectors are programmed with decode on).
 * Source: vfio_pci_intrs.c.
 */
import { EINVAL, ENODEV, ENOMEM, ENOTTY, ERANGE, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import { PCI_INTERRUPT_PIN, PCI_MSI_FLAGS, PCI_MSI_FLAGS_QMASK, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_QSIZE } from "../../../uapi/pci_regs.ts";
import * as V from "../../../uapi/vfio.ts";
import { type EventfdCtx, eventfdCtxFromFd } from "../../fs/eventfd.ts";
import { Virqfd } from "../virqfd.ts";
import { IRQ_TYPE_NONE, type VfioPciCoreDevice } from "./vfio_pci_core.ts";

/** One vector in use. */
export interface IrqCtx {
  trigger: EventfdCtx | undefined;
  /** INTx only: fired and not unmasked, or masked by the user. */
  masked: boolean;
  /** INTx only: the eventfd that unmasks. */
  unmask: Virqfd | undefined;
}

/** SET_IRQS, checked: vectors [start, start + count), `data` as the flags say. */
export interface IrqSet {
  readonly flags: number;
  readonly index: number;
  readonly start: number;
  readonly count: number;
  readonly data: Uint8Array;
}

const has = (set: IrqSet, flag: number): boolean => (set.flags & flag) !== 0;
const isIntx = (vdev: VfioPciCoreDevice): boolean => vdev.irqType === V.VFIO_PCI_INTX_IRQ_INDEX;
const isNone = (vdev: VfioPciCoreDevice): boolean => vdev.irqType === IRQ_TYPE_NONE;
const fdAt = (set: IrqSet, i: number): number => new DataView(set.data.buffer, set.data.byteOffset).getInt32(4 * i, true);

/** Vectors of an index; 0 for one that is not there. */
export function vfioPciIrqCount(vdev: VfioPciCoreDevice, index: number): number {
  const { pdev } = vdev;
  switch (index) {
    case V.VFIO_PCI_INTX_IRQ_INDEX:
      return (vdev.vconfig[PCI_INTERRUPT_PIN] ?? 0) !== 0 ? 1 : 0;
    case V.VFIO_PCI_MSI_IRQ_INDEX:
      return pdev.msiCap === 0 ? 0 : 1 << ((pdev.configRead(pdev.msiCap + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_QMASK) >> 1);
    case V.VFIO_PCI_MSIX_IRQ_INDEX:
      return pdev.msixCap === 0 ? 0 : (pdev.configRead(pdev.msixCap + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1;
    case V.VFIO_PCI_ERR_IRQ_INDEX:
    case V.VFIO_PCI_REQ_IRQ_INDEX:
      return 1;
    default:
      return 0;
  }
}

/** Carries out a SET_IRQS; igate held, or nobody else there (close). ENOTTY: no such action on this index. */
export function* vfioPciSetIrqs(vdev: VfioPciCoreDevice, set: IrqSet): Step<Errno | undefined> {
  const action = set.flags & V.VFIO_IRQ_SET_ACTION_TYPE_MASK;
  const trigger = action === V.VFIO_IRQ_SET_ACTION_TRIGGER;
  switch (set.index) {
    case V.VFIO_PCI_INTX_IRQ_INDEX:
      if (trigger) return yield* setIntxTrigger(vdev, set);
      if (action === V.VFIO_IRQ_SET_ACTION_MASK) return setIntxMask(vdev, set);
      if (action === V.VFIO_IRQ_SET_ACTION_UNMASK) return yield* setIntxUnmask(vdev, set);
      return ENOTTY;
    case V.VFIO_PCI_MSI_IRQ_INDEX:
    case V.VFIO_PCI_MSIX_IRQ_INDEX:
      return trigger ? yield* setMsiTrigger(vdev, set) : ENOTTY;
    case V.VFIO_PCI_ERR_IRQ_INDEX:
      return trigger ? setLine(vdev, set, "errTrigger") : ENOTTY;
    case V.VFIO_PCI_REQ_IRQ_INDEX:
      return trigger ? setLine(vdev, set, "reqTrigger") : ENOTTY;
    default:
      return ENOTTY;
  }
}

/** Takes down whatever is set up; the device is being closed. */
export function* vfioPciIrqsDisable(vdev: VfioPciCoreDevice): Step<void> {
  if (isNone(vdev)) return;
  const flags = V.VFIO_IRQ_SET_DATA_NONE | V.VFIO_IRQ_SET_ACTION_TRIGGER;
  yield* vfioPciSetIrqs(vdev, { flags, index: vdev.irqType, start: 0, count: 0, data: new Uint8Array(0) });
}

// ---- INTx ---------------------------------------------------------------------

function intxCtx(vdev: VfioPciCoreDevice): IrqCtx {
  const ctx = vdev.irqCtx.get(0);
  if (ctx === undefined) throw new KernelBug(`${vdev.pdev.name}: INTx without its context`);
  return ctx;
}

function sendIntx(vdev: VfioPciCoreDevice): void {
  if (!isIntx(vdev) || vdev.virqDisabled) return;
  signal(vdev, intxCtx(vdev).trigger, "intx", 0);
}

/** Whether it was not masked before. */
function intxMask(vdev: VfioPciCoreDevice): boolean {
  if (!isIntx(vdev)) {
    // No INTx in use: the hardware's bit still follows the user's.
    if (vdev.pci23) vdev.pdev.intx(false);
    return false;
  }
  const ctx = intxCtx(vdev);
  if (ctx.masked) return false;
  if (vdev.pci23) vdev.pdev.intx(false);
  else vdev.pdev.irqs.disableLine();
  ctx.masked = true;
  return true;
}

/** True: it is pending still, and must be sent again. */
function intxUnmask(vdev: VfioPciCoreDevice): boolean {
  if (!isIntx(vdev)) {
    if (vdev.pci23) vdev.pdev.intx(true);
    return false;
  }
  const ctx = intxCtx(vdev);
  if (!ctx.masked || vdev.virqDisabled) return false;
  let pending = false;
  if (vdev.pci23) {
    pending = !vdev.pdev.checkAndUnmaskIntx();
    ctx.masked = pending;
  } else {
    // Enabling the line may deliver at once, and that masks again.
    ctx.masked = false;
    vdev.pdev.irqs.enableLine();
  }
  return pending;
}

const intxUnmaskAndResend = (vdev: VfioPciCoreDevice): void => {
  if (intxUnmask(vdev)) sendIntx(vdev);
};

export function* vfioPciIntxMask(vdev: VfioPciCoreDevice): Step<boolean> {
  yield* vdev.igate.lock();
  const changed = intxMask(vdev);
  vdev.igate.unlock();
  return changed;
}

export function* vfioPciIntxUnmask(vdev: VfioPciCoreDevice): Step<void> {
  yield* vdev.igate.lock();
  intxUnmaskAndResend(vdev);
  vdev.igate.unlock();
}

/** From the hardware. */
function intxHandler(vdev: VfioPciCoreDevice): void {
  const ctx = intxCtx(vdev);
  if (vdev.pci23) {
    if (ctx.masked || !vdev.pdev.checkAndMaskIntx()) return;
  } else {
    vdev.pdev.irqs.disableLine();
  }
  ctx.masked = true;
  sendIntx(vdev);
}

/** There is no memory for a vector: its name in /proc/interrupts, its context, the entry of that, its handler. */
function lacksContext({ kernel: { fault } }: VfioPciCoreDevice): boolean {
  return fault.slab("name") || fault.slab("vfio_pci_irq_ctx") || fault.slab("entry of ctx") || fault.slab("irqaction");
}

function intxEnable(vdev: VfioPciCoreDevice, trigger: EventfdCtx | undefined): Errno | undefined {
  const { pdev } = vdev;
  if (!isNone(vdev)) return EINVAL;
  if (pdev.irqs.available("intx") === 0) return ENODEV;
  if (lacksContext(vdev)) return ENOMEM;
  const ctx: IrqCtx = { trigger, masked: vdev.virqDisabled, unmask: undefined };
  vdev.irqCtx.set(0, ctx);
  vdev.irqType = V.VFIO_PCI_INTX_IRQ_INDEX;
  const vectors = pdev.allocIrqVectors("intx", 1);
  if (!(vectors instanceof Errno)) {
    if (vdev.pci23) pdev.intx(!ctx.masked);
    else if (ctx.masked) pdev.irqs.disableLine();
  }
  const error = vectors instanceof Errno ? vectors : pdev.requestIrq(0, () => intxHandler(vdev));
  if (error === undefined) return undefined;
  vdev.irqType = IRQ_TYPE_NONE;
  vdev.irqCtx.delete(0);
  return error;
}

function* intxDisable(vdev: VfioPciCoreDevice): Step<void> {
  const ctx = intxCtx(vdev);
  const { pdev } = vdev;
  if (ctx.unmask !== undefined) yield* ctx.unmask.disable();
  pdev.freeIrq(0);
  if (!vdev.pci23 && ctx.masked) pdev.irqs.enableLine();
  pdev.freeIrqVectors();
  ctx.trigger?.put();
  vdev.irqCtx.delete(0);
  vdev.irqType = IRQ_TYPE_NONE;
}

const isOneVector = (set: IrqSet): boolean => set.start === 0 && set.count === 1;

function* setIntxUnmask(vdev: VfioPciCoreDevice, set: IrqSet): Step<Errno | undefined> {
  if (!isIntx(vdev) || !isOneVector(set)) return EINVAL;
  if (has(set, V.VFIO_IRQ_SET_DATA_NONE)) {
    intxUnmaskAndResend(vdev);
  } else if (has(set, V.VFIO_IRQ_SET_DATA_BOOL)) {
    if (set.data[0] !== 0) intxUnmaskAndResend(vdev);
  } else {
    return yield* setUnmaskEventfd(vdev, fdAt(set, 0));
  }
  return undefined;
}

function* setUnmaskEventfd(vdev: VfioPciCoreDevice, fd: number): Step<Errno | undefined> {
  const ctx = intxCtx(vdev);
  if (fd < 0) {
    if (ctx.unmask !== undefined) yield* ctx.unmask.disable();
    ctx.unmask = undefined;
    return undefined;
  }
  const resend = function* (): Step<void> {
    sendIntx(vdev);
  };
  const v = Virqfd.enable(vdev.kernel, fd, ctx.unmask?.active === true, () => intxUnmask(vdev), resend);
  if (v instanceof Errno) return v;
  ctx.unmask = v;
  return undefined;
}

function setIntxMask(vdev: VfioPciCoreDevice, set: IrqSet): Errno | undefined {
  if (!isIntx(vdev) || !isOneVector(set)) return EINVAL;
  if (has(set, V.VFIO_IRQ_SET_DATA_EVENTFD)) return ENOTTY;
  if (has(set, V.VFIO_IRQ_SET_DATA_NONE) || set.data[0] !== 0) intxMask(vdev);
  return undefined;
}

function* setIntxTrigger(vdev: VfioPciCoreDevice, set: IrqSet): Step<Errno | undefined> {
  if (isIntx(vdev) && set.count === 0 && has(set, V.VFIO_IRQ_SET_DATA_NONE)) {
    yield* intxDisable(vdev);
    return undefined;
  }
  if (!(isIntx(vdev) || isNone(vdev)) || !isOneVector(set)) return EINVAL;
  if (has(set, V.VFIO_IRQ_SET_DATA_EVENTFD)) {
    const trigger = eventfdOrNone(vdev, fdAt(set, 0));
    if (trigger instanceof Errno) return trigger;
    if (!isIntx(vdev)) {
      const error = intxEnable(vdev, trigger);
      if (error !== undefined) trigger?.put();
      return error;
    }
    const ctx = intxCtx(vdev);
    const old = ctx.trigger;
    ctx.trigger = trigger;
    if (old !== undefined) {
      // A resend that is under way signals one of the two, and not one that is gone.
      if (ctx.unmask !== undefined) yield* ctx.unmask.flush();
      old.put();
    }
    return undefined;
  }
  if (!isIntx(vdev)) return EINVAL;
  if (has(set, V.VFIO_IRQ_SET_DATA_NONE) || set.data[0] !== 0) sendIntx(vdev);
  return undefined;
}

function eventfdOrNone(vdev: VfioPciCoreDevice, fd: number): EventfdCtx | undefined | Errno {
  return fd < 0 ? undefined : eventfdCtxFromFd(vdev.kernel.current, fd);
}

// ---- MSI, MSI-X -----------------------------------------------------------------

function* setMsiTrigger(vdev: VfioPciCoreDevice, set: IrqSet): Step<Errno | undefined> {
  const mine = vdev.irqType === set.index;
  if (mine && set.count === 0 && has(set, V.VFIO_IRQ_SET_DATA_NONE)) {
    yield* msiDisable(vdev);
    return undefined;
  }
  if (!(mine || isNone(vdev))) return EINVAL;
  if (has(set, V.VFIO_IRQ_SET_DATA_EVENTFD)) {
    if (mine) return yield* msiSetBlock(vdev, set);
    const error = (yield* msiEnable(vdev, set.start + set.count, set.index)) ?? (yield* msiSetBlock(vdev, set));
    if (error !== undefined && vdev.irqType === set.index) yield* msiDisable(vdev);
    return error;
  }
  if (!mine) return EINVAL;
  for (let i = 0; i < set.count; i++) {
    const ctx = vdev.irqCtx.get(set.start + i);
    if (ctx === undefined) continue;
    if (has(set, V.VFIO_IRQ_SET_DATA_NONE) || set.data[i] !== 0) signal(vdev, ctx.trigger, kindOf(vdev), set.start + i);
  }
  return undefined;
}

const kindOf = (vdev: VfioPciCoreDevice): "msi" | "msix" => (vdev.irqType === V.VFIO_PCI_MSIX_IRQ_INDEX ? "msix" : "msi");

function* msiEnable(vdev: VfioPciCoreDevice, nvec: number, index: number): Step<Errno | undefined> {
  const msix = index === V.VFIO_PCI_MSIX_IRQ_INDEX;
  // More MSI-X vectors can be asked for later, so all are taken; they cost nothing while they have no handler.
  const wanted = msix ? vfioPciIrqCount(vdev, index) : nvec;
  // Linux asks for at least one, at most none; MSI is refused before that where the function sleeps.
  if (nvec < 1) return msix || vdev.pdev.currentState === 0 ? ERANGE : EINVAL;
  const cmd = yield* vdev.memoryLockAndEnable();
  const got = vdev.pdev.allocIrqVectors(msix ? "msix" : "msi", wanted, wanted);
  vdev.memoryUnlockAndRestore(cmd);
  if (got instanceof Errno) return got;
  vdev.irqType = index;
  // Log2 of the vectors, rounded up: what the virtual capability then offers.
  if (!msix) vdev.msiQmax = 31 - Math.clz32(nvec * 2 - 1);
  return undefined;
}

function* msiSetBlock(vdev: VfioPciCoreDevice, set: IrqSet): Step<Errno | undefined> {
  for (let i = 0; i < set.count; i++) {
    const error = yield* msiSetVector(vdev, set.start + i, fdAt(set, i));
    if (error === undefined) continue;
    for (let j = 0; j <= i; j++) yield* msiSetVector(vdev, set.start + j, -1);
    return error;
  }
  return undefined;
}

function* msiSetVector(vdev: VfioPciCoreDevice, vector: number, fd: number): Step<Errno | undefined> {
  const old = vdev.irqCtx.get(vector);
  if (old !== undefined) {
    const cmd = yield* vdev.memoryLockAndEnable();
    vdev.pdev.freeIrq(vector);
    vdev.memoryUnlockAndRestore(cmd);
    old.trigger?.put();
    vdev.irqCtx.delete(vector);
  }
  if (fd < 0) return undefined;
  if (vector >= vdev.pdev.irqs.count) return EINVAL;
  if (lacksContext(vdev)) return ENOMEM;
  const trigger = eventfdCtxFromFd(vdev.kernel.current, fd);
  if (trigger instanceof Errno) return trigger;
  const kind = kindOf(vdev);
  vdev.irqCtx.set(vector, { trigger, masked: false, unmask: undefined });
  const cmd = yield* vdev.memoryLockAndEnable();
  const error = vdev.pdev.requestIrq(vector, () => signal(vdev, trigger, kind, vector));
  vdev.memoryUnlockAndRestore(cmd);
  if (error === undefined) return undefined;
  trigger.put();
  vdev.irqCtx.delete(vector);
  return error;
}

function* msiDisable(vdev: VfioPciCoreDevice): Step<void> {
  for (const vector of [...vdev.irqCtx.keys()].sort((a, b) => a - b)) yield* msiSetVector(vdev, vector, -1);
  const cmd = yield* vdev.memoryLockAndEnable();
  vdev.pdev.freeIrqVectors();
  vdev.memoryUnlockAndRestore(cmd);
  vdev.irqType = IRQ_TYPE_NONE;
}

// ---- the kernel's own lines -------------------------------------------------------

function setLine(vdev: VfioPciCoreDevice, set: IrqSet, line: "errTrigger" | "reqTrigger"): Errno | undefined {
  if (set.start !== 0 || set.count > 1) return EINVAL;
  const kind = line === "errTrigger" ? "err" : "req";
  const replace = (ctx: EventfdCtx | undefined): undefined => {
    vdev[line]?.put();
    vdev[line] = ctx;
  };
  if (has(set, V.VFIO_IRQ_SET_DATA_NONE)) {
    if (vdev[line] === undefined) return EINVAL;
    if (set.count === 0) return replace(undefined);
    signal(vdev, vdev[line], kind, 0);
    return undefined;
  }
  if (set.count === 0) return EINVAL;
  if (has(set, V.VFIO_IRQ_SET_DATA_BOOL)) {
    if (set.data[0] !== 0) signal(vdev, vdev[line], kind, 0);
    return undefined;
  }
  const fd = fdAt(set, 0);
  if (fd < -1) return EINVAL;
  const ctx = eventfdOrNone(vdev, fd);
  if (ctx instanceof Errno) return ctx;
  if (ctx !== undefined && vdev.kernel.fault.slab("vfio_pci_eventfd")) {
    ctx.put();
    return ENOMEM;
  }
  return replace(ctx);
}

/** An error was reported for the function (AER). */
export function vfioPciErrorDetected(vdev: VfioPciCoreDevice): void {
  signal(vdev, vdev.errTrigger, "err", 0);
}

/** Asks the user to let go of the device. */
export function vfioPciRequest(vdev: VfioPciCoreDevice, count: number): void {
  const { kernel, pdev } = vdev;
  const relayed = vdev.reqTrigger !== undefined;
  if (kernel.trace.on) kernel.trace.emit({ type: "vfio.request", device: pdev.name, count, relayed });
  if (relayed) {
    if (count % 10 === 0) kernel.printk(`vfio-pci ${pdev.name}: Relaying device request to user (#${count})`);
    signal(vdev, vdev.reqTrigger, "req", 0);
  } else if (count === 0) {
    kernel.printk(`vfio-pci ${pdev.name}: No device request channel registered, blocked until released by user`);
  }
}

/** The device is closed: its own lines are let go. igate held. */
export function vfioPciLinesRelease(vdev: VfioPciCoreDevice): void {
  vdev.errTrigger?.put();
  vdev.errTrigger = undefined;
  vdev.reqTrigger?.put();
  vdev.reqTrigger = undefined;
}

function signal(vdev: VfioPciCoreDevice, ctx: EventfdCtx | undefined, kind: "intx" | "msi" | "msix" | "err" | "req", vector: number): void {
  if (ctx === undefined) return;
  if (vdev.kernel.trace.on) vdev.kernel.trace.emit({ type: "vfio.irq", device: vdev.pdev.name, kind, vector });
  ctx.signal();
}
