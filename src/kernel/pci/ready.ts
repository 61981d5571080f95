/**
 * Waiting for a function, or for the link to it, after a reset.
 *
 * The kernel polls with doubling pauses and gives up with ENOTTY. A link is
 * polled every millisecond for a second; here that is one sleep to the poll
 * that would have seen it, which ends at the same virtual time.
 *
 * Source: drivers/pci/pci.c (pci_dev_wait, pci_bridge_wait_for_secondary_bus).
 */
import { ENOTTY, type Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { PCI_COMMAND, PCI_EXP_LNKSTA, PCI_EXP_LNKSTA_DLLLA } from "../../uapi/pci_regs.ts";
import type { PciDev } from "./pci_dev.ts";

const MS = 1_000_000;
/** PCI_RESET_WAIT: every device must answer within a second. */
const PCI_RESET_WAIT_MS = 1000;
/** How long a reset function may take at most. */
export const PCIE_RESET_READY_POLL_MS = 60_000;
/** PCIE_LINK_RETRAIN_TIMEOUT_MS. */
const LINK_TIMEOUT_MS = 1000;
/** PCI_PM_D3COLD_WAIT, of a device with a PM capability; 0 without. */
const D3COLD_DELAY_MS = 100;

/** pci_dev_wait: ENOTTY when config space still gives all ones after `timeout` ms. */
export function* devWait(dev: PciDev, what: string, timeout: number): Step<Errno | undefined> {
  let delay = 1;
  for (;;) {
    if (dev.disconnected) return ENOTTY;
    if (dev.configRead(PCI_COMMAND, 4) !== 0xffff_ffff) break;
    if (delay > timeout) {
      dev.kernel.printk(`${dev.name}: not ready ${delay - 1}ms after ${what}; giving up`);
      return ENOTTY;
    }
    if (delay > PCI_RESET_WAIT_MS) dev.kernel.printk(`${dev.name}: not ready ${delay - 1}ms after ${what}; waiting`);
    yield* dev.kernel.sched.sleep(delay * MS);
    delay *= 2;
  }
  if (delay > PCI_RESET_WAIT_MS) dev.kernel.printk(`${dev.name}: ready ${delay - 1}ms after ${what}`);
  return undefined;
}

/** pci_bridge_wait_for_secondary_bus: ENOTTY when the link or the first device below does not come back. */
export function* bridgeWaitForSecondaryBus(bridge: PciDev, what: string): Step<Errno | undefined> {
  const bus = bridge.subordinate;
  if (bridge.disconnected || bus === undefined) return undefined;
  const child = bus.devices[0];
  if (child === undefined) return undefined;
  // pci_bus_max_d3cold_delay: without a PM capability anywhere there is nothing to wait for.
  const delay = bus.devices.some((d) => d.pmCap !== 0) ? D3COLD_DELAY_MS : 0;
  if (delay === 0) return undefined;
  // Only root ports and downstream ports have a link below.
  if (bridge.fn.template.port === "upstream-port") return undefined;
  const sched = bridge.kernel.sched;
  yield* sched.sleep(20 * MS);
  if (!(yield* waitForLink(bridge))) {
    bridge.kernel.printk(`${bridge.name}: Data Link Layer Link Active not set in ${delay} msec`);
    return ENOTTY;
  }
  yield* sched.sleep(delay * MS);
  return yield* devWait(child, what, PCIE_RESET_READY_POLL_MS - delay);
}

const linkActive = (port: PciDev): boolean => (port.configRead(port.pcieCap + PCI_EXP_LNKSTA, 2) & PCI_EXP_LNKSTA_DLLLA) !== 0;

function* waitForLink(port: PciDev): Step<boolean> {
  const sched = port.kernel.sched;
  if (linkActive(port)) return true;
  const polls = Math.ceil((port.fn.linkUpAt - sched.now) / MS);
  yield* sched.sleep(Math.max(1, Math.min(polls, LINK_TIMEOUT_MS)) * MS);
  return linkActive(port);
}
