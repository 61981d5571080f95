/**
 * Resets: of one function, by the first method that works, and of a whole bus
 * or slot.
 *
 * A function reset runs with the device lock and config access held: the
 * function is woken, its config space saved and COMMAND cleared (no decoding,
 * no DMA, no MSI), the method runs, config space is restored, whatever the
 * outcome. Methods are tried in Linux's order; ENOTTY from one lets the next
 * try, any other answer ends it.
 *
 * A bus reset takes the lock of the bridge and of every device below, top down
 * (`try`: EAGAIN as soon as one is taken), saves all, resets the secondary bus,
 * waits for the link and the first device (ENOTTY), and restores all.
 *
 * Lock order: device lock of a bridge → device locks below it.
 * Source: drivers/pci/pci.c.
 */
import { EAGAIN, EINVAL, ENOTTY, type Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  PCI_AF_CAP,
  PCI_AF_CAP_FLR,
  PCI_AF_CAP_TP,
  PCI_AF_CTRL,
  PCI_AF_CTRL_FLR,
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_PM_CTRL,
  PCI_PM_CTRL_NO_SOFT_RESET,
  PCI_PM_CTRL_STATE_MASK,
} from "../../uapi/pci_regs.ts";
import type { PciBus } from "./bus.ts";
import type { PciDev } from "./pci_dev.ts";
import { D0, D3HOT, D3HOT_DELAY_NS, setPowerState } from "./power.ts";
import { bridgeWaitForSecondaryBus, devWait, PCIE_RESET_READY_POLL_MS } from "./ready.ts";

const MS = 1_000_000;

export type ResetMethod = "device_specific" | "acpi" | "flr" | "af_flr" | "pm" | "bus" | "cxl_bus";

interface Method {
  readonly name: ResetMethod;
  /** Whether the device can be reset so: undefined, or ENOTTY. */
  probe(dev: PciDev): Errno | undefined;
  reset(dev: PciDev): Step<Errno | undefined>;
}

const description = (dev: PciDev) => dev.fn.template.description;

/** Whether config space answers; says so in the log when not. */
function configAccessible(dev: PciDev, what: string): boolean {
  if (dev.configRead(PCI_COMMAND, 4) !== 0xffff_ffff) return true;
  dev.kernel.printk(`${dev.name}: Device config space inaccessible; unable to ${what}`);
  return false;
}

function probeFlr(dev: PciDev): Errno | undefined {
  if (dev.pcieCap === 0 || description(dev).noFlrReset === true) return ENOTTY;
  // DEVCAP as it was read at boot.
  return description(dev).capabilities?.pcie?.flr === true ? undefined : ENOTTY;
}

function* flr(dev: PciDev): Step<Errno | undefined> {
  const no = probeFlr(dev);
  if (no !== undefined) return no;
  if (!configAccessible(dev, "FLR")) return ENOTTY;
  const at = dev.pcieCap + PCI_EXP_DEVCTL;
  dev.configWrite(at, 2, dev.configRead(at, 2) | PCI_EXP_DEVCTL_BCR_FLR);
  yield* dev.kernel.sched.sleep(100 * MS);
  return yield* devWait(dev, "FLR", PCIE_RESET_READY_POLL_MS);
}

const afCap = (dev: PciDev): number => dev.fn.template.afCap;

function probeAf(dev: PciDev): Errno | undefined {
  if (afCap(dev) === 0 || description(dev).noFlrReset === true) return ENOTTY;
  const cap = dev.configRead(afCap(dev) + PCI_AF_CAP, 1);
  return (cap & PCI_AF_CAP_TP) !== 0 && (cap & PCI_AF_CAP_FLR) !== 0 ? undefined : ENOTTY;
}

function* afFlr(dev: PciDev): Step<Errno | undefined> {
  const no = probeAf(dev);
  if (no !== undefined) return no;
  dev.configWrite(afCap(dev) + PCI_AF_CTRL, 1, PCI_AF_CTRL_FLR);
  yield* dev.kernel.sched.sleep(100 * MS);
  return yield* devWait(dev, "AF_FLR", PCIE_RESET_READY_POLL_MS);
}

function probePm(dev: PciDev): Errno | undefined {
  if (dev.pmCap === 0 || description(dev).noPmReset === true) return ENOTTY;
  return (dev.configRead(dev.pmCap + PCI_PM_CTRL, 2) & PCI_PM_CTRL_NO_SOFT_RESET) !== 0 ? ENOTTY : undefined;
}

/** D3hot and back: without No_Soft_Reset that resets. EINVAL from another state than D0. */
function* pmReset(dev: PciDev): Step<Errno | undefined> {
  const no = probePm(dev);
  if (no !== undefined) return no;
  if (dev.currentState !== D0) return EINVAL;
  const at = dev.pmCap + PCI_PM_CTRL;
  const csr = dev.configRead(at, 2) & ~PCI_PM_CTRL_STATE_MASK;
  dev.configWrite(at, 2, csr | D3HOT);
  yield* dev.kernel.sched.sleep(D3HOT_DELAY_NS);
  dev.configWrite(at, 2, csr | D0);
  yield* dev.kernel.sched.sleep(D3HOT_DELAY_NS);
  return yield* devWait(dev, "PM D3hot->D0", PCIE_RESET_READY_POLL_MS);
}

/** Alone below its bridge (or in a slot that resets by itself): only then may the bus be reset for it. */
function probeBusFunction(dev: PciDev): Errno | undefined {
  if (dev.subordinate !== undefined || dev.upstreamBridge === undefined || description(dev).noBusReset === true) return ENOTTY;
  if (dev.hasResetSlot && !dev.multifunction) return undefined;
  return dev.pciBus.devices.every((d) => d === dev) ? undefined : ENOTTY;
}

function* busFunction(dev: PciDev): Step<Errno | undefined> {
  const no = probeBusFunction(dev);
  const bridge = dev.upstreamBridge;
  if (no !== undefined || bridge === undefined) return no ?? ENOTTY;
  return yield* secondaryBusReset(bridge);
}

function* deviceSpecific(dev: PciDev): Step<Errno | undefined> {
  dev.fn.reset("device_specific");
  return yield* devWait(dev, "device specific reset", PCIE_RESET_READY_POLL_MS);
}

const absent = (): Errno => ENOTTY;
function* absentReset(): Step<Errno | undefined> {
  return ENOTTY;
}

/** In the order in which they are tried. No ACPI and no CXL on this machine. */
const METHODS: readonly Method[] = [
  { name: "device_specific", probe: (dev) => (description(dev).deviceSpecificReset === true ? undefined : ENOTTY), reset: deviceSpecific },
  { name: "acpi", probe: absent, reset: absentReset },
  { name: "flr", probe: probeFlr, reset: flr },
  { name: "af_flr", probe: probeAf, reset: afFlr },
  { name: "pm", probe: probePm, reset: pmReset },
  { name: "bus", probe: probeBusFunction, reset: busFunction },
  { name: "cxl_bus", probe: absent, reset: absentReset },
];

/**
 * The methods that the kernel lists when it discovers the device. It looks before the device is on its bus, so the first
 * one there is listed with a bus reset whoever follows; carrying it out answers ENOTTY when it is not alone.
 */
export function initialResetMethods(dev: PciDev): ResetMethod[] {
  const bus = dev.upstreamBridge !== undefined && dev.firstOnBus && description(dev).noBusReset !== true;
  return METHODS.filter((m) => (m.name === "bus" ? bus : m.probe(dev) === undefined)).map((m) => m.name);
}

/** Which ones it supports as things are now. */
function supportedResetMethods(dev: PciDev): ResetMethod[] {
  return METHODS.filter((m) => m.probe(dev) === undefined).map((m) => m.name);
}

function prepare(dev: PciDev): void {
  const handler = dev.driver?.errHandler;
  if (handler?.resetPrepare !== undefined) handler.resetPrepare(dev);
  else if (dev.driver !== undefined) dev.kernel.printk(`${dev.driver.name} ${dev.name}: resetting`);
}

/** pci_dev_save_and_disable. */
function* saveAndDisable(dev: PciDev): Step<void> {
  dev.lock.assertHeld();
  prepare(dev);
  yield* setPowerState(dev, D0);
  if (!configAccessible(dev, "save state")) return;
  dev.saveState();
  dev.configWrite(PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
}

/** pci_dev_restore. */
function restore(dev: PciDev): void {
  dev.restoreState();
  const handler = dev.driver?.errHandler;
  if (handler?.resetDone !== undefined) handler.resetDone(dev);
  else if (dev.driver !== undefined) dev.kernel.printk(`${dev.driver.name} ${dev.name}: reset done`);
}

/** __pci_reset_function_locked. */
export function* rawResetFunctionLocked(dev: PciDev): Step<Errno | undefined> {
  dev.lock.assertHeld();
  for (const name of dev.resetMethods) {
    const method = METHODS.find((m) => m.name === name);
    const rc = method === undefined ? ENOTTY : yield* method.reset(dev);
    const trace = dev.kernel.trace;
    if (trace.on) trace.emit({ type: "pci.reset", device: dev.name, method: name, result: rc?.name ?? "ok" });
    if (rc !== ENOTTY) return rc;
  }
  return ENOTTY;
}

/** pci_reset_function_locked. */
export function* resetFunctionLocked(dev: PciDev): Step<Errno | undefined> {
  dev.lock.assertHeld();
  if (dev.resetMethods.length === 0) return ENOTTY;
  yield* saveAndDisable(dev);
  const rc = yield* rawResetFunctionLocked(dev);
  restore(dev);
  return rc;
}

/** pci_reset_function. */
export function* resetFunction(dev: PciDev): Step<Errno | undefined> {
  if (dev.resetMethods.length === 0) return ENOTTY;
  const bridge = dev.upstreamBridge;
  if (bridge !== undefined) yield* bridge.devLock();
  try {
    yield* dev.devLock();
    try {
      return yield* resetFunctionLocked(dev);
    } finally {
      dev.devUnlock();
    }
  } finally {
    bridge?.devUnlock();
  }
}

/** pci_try_reset_function. */
export function* tryResetFunction(dev: PciDev): Step<Errno | undefined> {
  if (dev.resetMethods.length === 0) return ENOTTY;
  if (!(yield* dev.devTryLock())) return EAGAIN;
  try {
    return yield* resetFunctionLocked(dev);
  } finally {
    dev.devUnlock();
  }
}

/** pci_bridge_secondary_bus_reset: ENOTTY when nothing comes back. */
export function* secondaryBusReset(bridge: PciDev): Step<Errno | undefined> {
  const ctrl = bridge.configRead(PCI_BRIDGE_CONTROL, 2);
  bridge.configWrite(PCI_BRIDGE_CONTROL, 2, ctrl | PCI_BRIDGE_CTL_BUS_RESET);
  yield* bridge.kernel.sched.sleep(2 * MS);
  bridge.configWrite(PCI_BRIDGE_CONTROL, 2, ctrl & ~PCI_BRIDGE_CTL_BUS_RESET);
  return yield* bridgeWaitForSecondaryBus(bridge, "bus reset");
}

/** pci_bus_resettable: nobody on or below forbids it. */
function busResettable(bus: PciBus): boolean {
  if (bus.self !== undefined && description(bus.self).noBusReset === true) return false;
  return bus.devices.every((d) => description(d).noBusReset !== true && (d.subordinate === undefined || busResettable(d.subordinate)));
}

/** pci_probe_reset_bus. */
export function probeResetBus(bus: PciBus): Errno | undefined {
  return bus.self !== undefined && busResettable(bus) ? undefined : ENOTTY;
}

/** pci_probe_reset_slot. A slot here is all of the bus below a hotplug port. */
export function probeResetSlot(dev: PciDev): Errno | undefined {
  return dev.hasResetSlot && busResettable(dev.pciBus) ? undefined : ENOTTY;
}

/** pci_reset_bus: the slot when it can, else the bus; both reset the secondary bus of the bridge above. */
export function* resetBus(dev: PciDev): Step<Errno | undefined> {
  const bus = dev.pciBus;
  const bridge = bus.self;
  if (bridge === undefined || (probeResetSlot(dev) !== undefined && probeResetBus(bus) !== undefined)) return ENOTTY;
  const locked: PciDev[] = [];
  if (!(yield* tryLockBus(bus, locked))) {
    unlockAll(locked);
    return EAGAIN;
  }
  try {
    for (const d of bus.subtree()) yield* saveAndDisable(d);
    const rc = yield* secondaryBusReset(bridge);
    yield* restoreBus(bus);
    const trace = dev.kernel.trace;
    if (trace.on) {
      const devices = [...bus.subtree()].map((d) => d.name);
      trace.emit({ type: "pci.bus_reset", bridge: bridge.name, devices, result: rc?.name ?? "ok" });
    }
    return rc;
  } finally {
    unlockAll(locked);
  }
}

/** pci_bus_trylock: the bridge, then all below, top down. What was taken is in `locked` either way. */
function* tryLockBus(bus: PciBus, locked: PciDev[]): Step<boolean> {
  if (bus.self !== undefined) {
    if (!(yield* bus.self.devTryLock())) return false;
    locked.push(bus.self);
  }
  for (const dev of bus.devices) {
    if (dev.subordinate !== undefined) {
      if (!(yield* tryLockBus(dev.subordinate, locked))) return false;
    } else {
      if (!(yield* dev.devTryLock())) return false;
      locked.push(dev);
    }
  }
  return true;
}

function unlockAll(locked: readonly PciDev[]): void {
  for (let i = locked.length - 1; i >= 0; i--) locked[i]?.devUnlock();
}

/** Top down: a bridge must forward again before what is below it can be reached. */
function* restoreBus(bus: PciBus): Step<void> {
  for (const dev of bus.devices) {
    restore(dev);
    if (dev.subordinate === undefined) continue;
    yield* bridgeWaitForSecondaryBus(dev, "bus reset");
    yield* restoreBus(dev.subordinate);
  }
}

/** A write to reset_method: only these, in this order; none: no reset at all. EINVAL: one the device does not support. */
export function setResetMethods(dev: PciDev, names: readonly ResetMethod[]): Errno | undefined {
  const supported = supportedResetMethods(dev);
  if (names.some((n) => !supported.includes(n))) return EINVAL;
  dev.resetMethods = [...names];
  return undefined;
}
