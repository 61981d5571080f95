/**
 * Drivers: what one is, how it is matched, bound and unbound.
 *
 * Binding and unbinding run under the device lock, as do the driver's own
 * callbacks and a function reset, so `remove` never overlaps a reset. A driver
 * that does not manage DMA itself claims the device's IOMMU group for the
 * kernel before it probes; a group that user space owns refuses it.
 *
 * Lock order: device lock, then whatever the driver takes.
 * Source: drivers/pci/pci-driver.c, drivers/base/dd.c.
 */
import { EBUSY, ENODEV, type Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { PciDev } from "./pci_dev.ts";

/** An id a driver takes; an absent field matches all. */
export interface PciDeviceId {
  readonly vendor?: number;
  readonly device?: number;
  readonly subsystemVendor?: number;
  readonly subsystemDevice?: number;
  readonly class?: number;
  /** Bits of `class` that count; all 24 when absent. */
  readonly classMask?: number;
  /** Only a device whose driver_override names this driver (vfio's ids). */
  readonly overrideOnly?: boolean;
}

export interface PciErrorHandlers {
  /** Before the config space is saved for a reset; device lock held. */
  resetPrepare?(dev: PciDev): void;
  /** After it was restored; device lock held. */
  resetDone?(dev: PciDev): void;
}

export interface PciDriver {
  /** As in /sys/bus/pci/drivers: `vfio-pci`. */
  readonly name: string;
  readonly ids: readonly PciDeviceId[];
  /** The driver claims DMA ownership itself (vfio); others have the kernel's default domain claimed for them. */
  readonly driverManagedDma?: boolean;
  /** Device lock held. */
  probe(dev: PciDev): Step<Errno | undefined>;
  /** Device lock held; may wait for users to go away. */
  remove(dev: PciDev): Step<void>;
  sriovConfigure?(dev: PciDev, numVfs: number): Step<number | Errno>;
  runtimeSuspend?(dev: PciDev): Step<Errno | undefined>;
  runtimeResume?(dev: PciDev): Step<Errno | undefined>;
  readonly errHandler?: PciErrorHandlers;
}

const differs = (want: number | undefined, have: number): boolean => want !== undefined && want !== have;

type Identity = Pick<PciDev, "vendor" | "device" | "subsystemVendor" | "subsystemDevice" | "class">;

function idMatches(id: PciDeviceId, dev: Identity): boolean {
  if (differs(id.vendor, dev.vendor) || differs(id.device, dev.device)) return false;
  if (differs(id.subsystemVendor, dev.subsystemVendor) || differs(id.subsystemDevice, dev.subsystemDevice)) return false;
  const mask = id.classMask ?? 0xffffff;
  return id.class === undefined || (id.class & mask) === (dev.class & mask);
}

const added: WeakMap<PciDriver, PciDeviceId[]> = new WeakMap();

/** Ids that user space gave a driver (new_id), in order. */
export function dynamicIds(driver: PciDriver): PciDeviceId[] {
  let ids = added.get(driver);
  if (ids === undefined) {
    ids = [];
    added.set(driver, ids);
  }
  return ids;
}

/** Takes back the first such id that is about the same devices (an absent field only covers an absent one); false when there is none. */
export function dropDynamicId(driver: PciDriver, id: PciDeviceId): boolean {
  const ids = dynamicIds(driver);
  const covers = (want: number | undefined, have: number | undefined): boolean => want === undefined || want === have;
  const i = ids.findIndex(
    (d) =>
      d.vendor === id.vendor &&
      d.device === id.device &&
      covers(id.subsystemVendor, d.subsystemVendor) &&
      covers(id.subsystemDevice, d.subsystemDevice) &&
      (((id.class ?? 0) ^ (d.class ?? 0)) & (id.classMask ?? 0)) === 0,
  );
  if (i < 0) return false;
  ids.splice(i, 1);
  return true;
}

/** Whether the driver takes a device of exactly these ids, with no driver_override. */
export function takesId(driver: PciDriver, id: PciDeviceId & { readonly vendor: number; readonly device: number }): boolean {
  const like = {
    vendor: id.vendor,
    device: id.device,
    subsystemVendor: id.subsystemVendor ?? ANY,
    subsystemDevice: id.subsystemDevice ?? ANY,
    class: id.class ?? 0,
  };
  return matchesAny(driver, like);
}

/** PCI_ANY_ID, in a description of a device that is not there. */
const ANY = 0xffff_ffff;

function matchesAny(driver: PciDriver, dev: Identity): boolean {
  return (
    added.get(driver)?.some((id) => idMatches(id, dev)) === true || driver.ids.some((id) => id.overrideOnly !== true && idMatches(id, dev))
  );
}

/** Whether `driver` may take `dev`; driver_override names the only one that may, whatever its ids. */
export function driverMatches(driver: PciDriver, dev: PciDev): boolean {
  if (dev.driverOverride !== undefined) return dev.driverOverride === driver.name;
  return matchesAny(driver, dev);
}

/** ENODEV: it does not match, or the device is gone; EBUSY: another driver has it, or user space its group. */
export function* bindDriver(dev: PciDev, driver: PciDriver): Step<Errno | undefined> {
  if (!driverMatches(driver, dev)) return ENODEV;
  yield* dev.lock.lock(true);
  try {
    return yield* probeLocked(dev, driver);
  } finally {
    dev.lock.unlock();
  }
}

function* probeLocked(dev: PciDev, driver: PciDriver): Step<Errno | undefined> {
  if (dev.removed) return ENODEV;
  if (dev.driver !== undefined) return EBUSY;
  if (driver.driverManagedDma !== true) {
    const claimed = yield* useDefaultDomain(dev);
    if (claimed !== undefined) return claimed;
  }
  yield* dev.pm.getSync();
  dev.driver = driver;
  const failed = yield* driver.probe(dev);
  dev.kernel.pci.generation++;
  const trace = dev.kernel.trace;
  if (trace.on) trace.emit({ type: "pci.bind", device: dev.name, driver: driver.name, result: failed?.name ?? "ok" });
  if (failed === undefined) return undefined;
  forget(dev);
  yield* dev.pm.putSync();
  if (driver.driverManagedDma !== true) yield* unuseDefaultDomain(dev);
  return failed;
}

/** Takes the driver away; ENODEV when it has none (or not `driver`, when given). */
export function* unbindDriver(dev: PciDev, driver?: PciDriver): Step<Errno | undefined> {
  yield* dev.lock.lock(true);
  try {
    const bound = dev.driver;
    if (bound === undefined || (driver !== undefined && bound !== driver)) return ENODEV;
    yield* dev.pm.getSync();
    yield* bound.remove(dev);
    dev.pm.putNoidle();
    forget(dev);
    yield* dev.pm.putSync();
    if (bound.driverManagedDma !== true) yield* unuseDefaultDomain(dev);
    const trace = dev.kernel.trace;
    if (trace.on) trace.emit({ type: "pci.unbind", device: dev.name, driver: bound.name });
    return undefined;
  } finally {
    dev.lock.unlock();
  }
}

/** What belongs to the driver goes with it; its p2pdma providers too. */
function forget(dev: PciDev): void {
  dev.kernel.pci.generation++;
  dev.driver = undefined;
  dev.driverData = undefined;
  dev.p2pdma = undefined;
}

function* useDefaultDomain(dev: PciDev): Step<Errno | undefined> {
  return dev.iommuGroup === undefined ? undefined : yield* dev.iommuGroup.useDefaultDomain();
}

function* unuseDefaultDomain(dev: PciDev): Step<void> {
  if (dev.iommuGroup !== undefined) yield* dev.iommuGroup.unuseDefaultDomain();
}
