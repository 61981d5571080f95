/**
 * Power states, as the kernel changes them: pci_set_power_state and friends.
 *
 * `currentState` caches what PMCSR last said. A function without a PM
 * capability is always in D0 as far as this layer knows. Leaving D3hot without
 * No_Soft_Reset resets the function, so its BARs are written again.
 *
 * D1 and D2 are not offered by any function here; asking for them does
 * nothing, as for a device that does not support them. D3cold needs a platform
 * that can cut the power: there is none, so it ends in D3hot, as on a machine
 * without ACPI power resources.
 *
 * Source: drivers/pci/pci.c (pci_power_up, pci_set_low_power_state).
 */
import { EINVAL, EIO, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { PCI_BASE_ADDRESS_0, PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET, PCI_PM_CTRL_STATE_MASK } from "../../uapi/pci_regs.ts";
import type { PciDev } from "./pci_dev.ts";
import { devWait, PCIE_RESET_READY_POLL_MS } from "./ready.ts";
import { NUM_BARS } from "./resource.ts";

export const D0 = 0;
export const D1 = 1;
export const D2 = 2;
export const D3HOT = 3;
export const D3COLD = 4;

/** PCI_PM_D3HOT_WAIT: how long a function settles after entering or leaving D3hot. */
export const D3HOT_DELAY_NS = 10_000_000;

const NO_ANSWER = 0xffff;

/** pci_update_current_state: what PMCSR says, or `state` without a PM capability. */
export function updateCurrentState(dev: PciDev, state: number): void {
  if (dev.pmCap === 0) {
    dev.currentState = state;
    return;
  }
  const pmcsr = dev.configRead(dev.pmCap + PCI_PM_CTRL, 2);
  dev.currentState = pmcsr === NO_ANSWER ? D3COLD : pmcsr & PCI_PM_CTRL_STATE_MASK;
}

/** pci_set_power_state. See `PciDev.setPowerState`. */
export function* setPowerState(dev: PciDev, wanted: number): Step<Errno | undefined> {
  const state = Math.max(D0, Math.min(wanted, D3COLD));
  if (state === D1 || state === D2 || dev.currentState === state) return undefined;
  if (state === D0) return yield* setFullPower(dev);
  if (dev.fn.template.description.noD3 === true) return undefined;
  return yield* setLowPower(dev, D3HOT);
}

/** What a power-up must do next; an Errno when it did not happen. */
type PowerUp = Errno | { readonly restoreBars: boolean; readonly settle: boolean; readonly wasReset: boolean };

/** The register part of pci_power_up. */
function powerUp(dev: PciDev): PowerUp {
  if (dev.pmCap === 0) {
    dev.currentState = D0;
    return EIO;
  }
  const pmcsr = dev.configRead(dev.pmCap + PCI_PM_CTRL, 2);
  if (dev.disconnected || pmcsr === NO_ANSWER) {
    if (!dev.disconnected)
      dev.kernel.printk(`${dev.name}: Unable to change power state from D${dev.currentState} to D0, device inaccessible`);
    dev.currentState = D3COLD;
    return EIO;
  }
  const state = pmcsr & PCI_PM_CTRL_STATE_MASK;
  const soft = (pmcsr & PCI_PM_CTRL_NO_SOFT_RESET) === 0;
  const restoreBars = (state === D3HOT || dev.currentState >= D3HOT) && soft;
  if (state !== D0) dev.configWrite(dev.pmCap + PCI_PM_CTRL, 2, 0);
  return { restoreBars, settle: state === D3HOT, wasReset: state === D3HOT && soft };
}

/** pci_power_up with its waits; true when the BARs must be restored. */
export function* powerUpAndWait(dev: PciDev): Step<boolean | Errno> {
  const r = powerUp(dev);
  if (r instanceof Errno) return r;
  if (r.settle) yield* dev.kernel.sched.sleep(D3HOT_DELAY_NS);
  if (r.wasReset) {
    const late = yield* devWait(dev, "power up D3hot->D0uninitialized", PCIE_RESET_READY_POLL_MS);
    if (late !== undefined) {
      dev.currentState = D3COLD;
      return EIO;
    }
  }
  dev.currentState = D0;
  return r.restoreBars;
}

function* setFullPower(dev: PciDev): Step<Errno | undefined> {
  const r = yield* powerUpAndWait(dev);
  if (r instanceof Errno) return dev.currentState === D0 ? undefined : r;
  poweredUp(dev, r);
  return undefined;
}

function poweredUp(dev: PciDev, restore: boolean): void {
  dev.currentState = dev.configRead(dev.pmCap + PCI_PM_CTRL, 2) & PCI_PM_CTRL_STATE_MASK;
  if (dev.currentState !== D0) dev.kernel.printk(`${dev.name}: Refused to change power state from D${dev.currentState} to D0`);
  else if (restore) restoreBars(dev);
}

/** The same without sleeping, for callers that cannot: the function is used before it has settled. */
export function powerUpNow(dev: PciDev): Errno | undefined {
  if (dev.currentState === D0) return undefined;
  const r = powerUp(dev);
  if (r instanceof Errno) return dev.currentState === D0 ? undefined : r;
  poweredUp(dev, r.restoreBars);
  return undefined;
}

function* setLowPower(dev: PciDev, state: number): Step<Errno | undefined> {
  if (dev.pmCap === 0) return undefined;
  if (dev.currentState > state) return EINVAL;
  const at = dev.pmCap + PCI_PM_CTRL;
  const pmcsr = dev.configRead(at, 2);
  if (pmcsr === NO_ANSWER) {
    dev.kernel.printk(`${dev.name}: Unable to change power state from D${dev.currentState} to D${state}, device inaccessible`);
    dev.currentState = D3COLD;
    return EIO;
  }
  dev.configWrite(at, 2, (pmcsr & ~PCI_PM_CTRL_STATE_MASK) | state);
  yield* dev.kernel.sched.sleep(D3HOT_DELAY_NS);
  dev.currentState = dev.configRead(at, 2) & PCI_PM_CTRL_STATE_MASK;
  if (dev.currentState !== state) dev.kernel.printk(`${dev.name}: Refused to change power state from D${dev.currentState} to D${state}`);
  return undefined;
}

/** pci_restore_bars: the assigned addresses, into the registers. */
export function restoreBars(dev: PciDev): void {
  if (dev.isVirtfn) return;
  for (let i = 0; i < NUM_BARS; i++) {
    const r = dev.resources[i];
    if (r === undefined || r.length === 0n) continue;
    const off = PCI_BASE_ADDRESS_0 + 4 * i;
    dev.configWrite(off, 4, Number(r.start & 0xffff_ffffn));
    if (r.flags.mem64) dev.configWrite(off + 4, 4, Number(r.start >> 32n));
  }
}
