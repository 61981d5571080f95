/**
 * What a write to a file of sysfs does.
 *
 * Each function makes the `Store` of one attribute. A store answers what the
 * writer gets: as a rule all that was written. It runs as a task on the
 * writer's thread and may wait, as an unbind does while the device is open.
 *
 * Source: drivers/base/{bus,dd}.c, drivers/pci/{pci-driver,pci-sysfs,iov,pci}.c.
 */

import type { IommuGroup } from "../../kernel/iommu/group.ts";
import type { Kernel } from "../../kernel/kernel.ts";
import { bindDriver, type PciDeviceId, unbindDriver } from "../../kernel/pci/driver.ts";
import type { PciDev } from "../../kernel/pci/pci_dev.ts";
import { initialResetMethods, type ResetMethod, setResetMethods } from "../../kernel/pci/reset.ts";
import { EBUSY, EINVAL, EIO, ENODEV, ENOTTY, EOPNOTSUPP, EPERM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { Store } from "./node.ts";
import { checkUevent, lineOf, parseBoolean, parseHexFields, parseUnsigned, textOf } from "./parse.ts";
import type { FunctionAttributes, TreeState } from "./state.ts";

const PAGE = 4096;
const D3COLD = 4;

/** The device a line names. ENODEV. */
function deviceOf(kernel: Kernel, data: Uint8Array): PciDev | Errno {
  return kernel.pci.devices.get(lineOf(data)) ?? ENODEV;
}

export function bind(kernel: Kernel, driver: string): Store {
  return function* (data) {
    const dev = deviceOf(kernel, data);
    if (dev instanceof Errno) return dev;
    const d = kernel.pci.driver(driver);
    if (d === undefined) return ENODEV;
    return (yield* bindDriver(dev, d)) ?? data.length;
  };
}

/** ENODEV when this driver does not have it. Waits until every user of the device has let go. */
export function unbind(kernel: Kernel, driver: string): Store {
  return function* (data) {
    const dev = deviceOf(kernel, data);
    if (dev instanceof Errno) return dev;
    const d = kernel.pci.driver(driver);
    if (d === undefined || dev.driver !== d) return ENODEV;
    return (yield* unbindDriver(dev, d)) ?? data.length;
  };
}

type ExactId = PciDeviceId & { readonly vendor: number; readonly device: number };

/** `vendor device [subvendor subdevice [class mask [data]]]`. EINVAL with fewer than two. */
function parseId(data: Uint8Array): ExactId | Errno {
  const [vendor, device, subsystemVendor, subsystemDevice, cls, classMask] = parseHexFields(data);
  if (vendor === undefined || device === undefined) return EINVAL;
  return {
    vendor,
    device,
    ...(subsystemVendor === undefined || subsystemVendor === 0xffff_ffff ? {} : { subsystemVendor }),
    ...(subsystemDevice === undefined || subsystemDevice === 0xffff_ffff ? {} : { subsystemDevice }),
    ...(cls === undefined ? {} : { class: cls, classMask: classMask ?? 0 }),
  };
}

export function newId(kernel: Kernel, driver: string): Store {
  return function* (data) {
    const id = parseId(data);
    if (id instanceof Errno) return id;
    const d = kernel.pci.driver(driver);
    if (d === undefined) return EINVAL;
    // Data for the driver must be some that its own table has: vfio-pci's has none but 0.
    if ((parseHexFields(data)[6] ?? 0) !== 0) return EINVAL;
    return (yield* kernel.pci.addDynamicId(d, id)) ?? data.length;
  };
}

export function removeId(kernel: Kernel, driver: string): Store {
  return function* (data) {
    const id = parseId(data);
    if (id instanceof Errno) return id;
    const d = kernel.pci.driver(driver);
    return d === undefined ? ENODEV : (kernel.pci.removeDynamicId(d, id) ?? data.length);
  };
}

/** Lets whichever driver matches have the device; that none does is no error. */
export function driversProbe(kernel: Kernel): Store {
  return function* (data) {
    const dev = deviceOf(kernel, data);
    if (dev instanceof Errno) return dev;
    if (dev.driver === undefined) yield* kernel.pci.probe(dev);
    return data.length;
  };
}

export function driversAutoprobe(state: TreeState): Store {
  return function* (data) {
    state.autoprobe = textOf(data)[0] !== "0";
    return data.length;
  };
}

export function resourceAlignment(state: TreeState): Store {
  return function* (data) {
    const text = lineOf(data);
    state.resourceAlignment = text === "" ? "" : `${text}\n`;
    return data.length;
  };
}

/** Nothing is found that was not there: a machine's slots do not fill by themselves. */
export function rescan(_kernel: Kernel): Store {
  return function* (data) {
    const value = parseUnsigned(data);
    return value instanceof Errno ? value : data.length;
  };
}

export const uevent: Store = function* (data) {
  return checkUevent(data) ?? data.length;
};

/** Hot-unplug, as the driver of the port would do it. */
export function remove(dev: PciDev): Store {
  return function* (data) {
    const value = parseUnsigned(data);
    if (value instanceof Errno) return value;
    if (value !== 0n) yield* dev.kernel.pci.removeDevice(dev.name);
    return data.length;
  };
}

/** The only driver that may have the device; an empty line takes the word back. */
export function driverOverride(dev: PciDev): Store {
  return function* (data) {
    // One page less one byte, and room for the newline that reading adds.
    if (data.length >= PAGE - 1) return EINVAL;
    const name = textOf(data).split("\n")[0] ?? "";
    yield* dev.lock.lock(true);
    dev.driverOverride = name === "" ? undefined : name;
    dev.lock.unlock();
    return data.length;
  };
}

export function reset(dev: PciDev): Store {
  return function* (data) {
    const value = parseUnsigned(data);
    if (value instanceof Errno || value !== 1n) return EINVAL;
    yield* dev.pm.getSync();
    const failed = yield* dev.resetFunction();
    dev.pm.put();
    return failed ?? data.length;
  };
}

/** A write of 1 resets the bus below a port. */
export function resetSubordinate(dev: PciDev): Store {
  return function* (data) {
    const value = parseUnsigned(data);
    if (value instanceof Errno) return value;
    if (value !== 1n) return data.length;
    const first = dev.subordinate?.devices[0];
    return first === undefined ? ENOTTY : ((yield* first.resetBus()) ?? data.length);
  };
}

const RESET_METHODS: readonly string[] = ["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus"];

export function resetMethod(dev: PciDev, attributes: FunctionAttributes): Store {
  return function* (data) {
    const text = lineOf(data).trim();
    attributes.resetMethodsCleared = text === "";
    if (text === "") {
      dev.resetMethods = [];
    } else if (text === "default") {
      dev.resetMethods = initialResetMethods(dev);
    } else {
      const names = text.split(/\s+/);
      const wanted: ResetMethod[] = [];
      for (const name of names) {
        if (!RESET_METHODS.includes(name)) return EINVAL;
        // A name that is there twice counts once.
        if (!wanted.includes(name as ResetMethod)) wanted.push(name as ResetMethod);
      }
      const failed = setResetMethods(dev, wanted);
      if (failed !== undefined) return failed;
    }
    return data.length;
  };
}

/** Counts up or down while no driver has the function. EBUSY: one has; EIO: nothing to take back. */
export function enable(dev: PciDev): Store {
  return function* (data) {
    const value = parseUnsigned(data);
    if (value instanceof Errno) return value;
    yield* dev.lock.lock(true);
    try {
      if (dev.driver !== undefined) return EBUSY;
      if (value !== 0n) return dev.enable() ?? data.length;
      if (!dev.enabled) return EIO;
      dev.disable();
      return data.length;
    } finally {
      dev.lock.unlock();
    }
  };
}

/** An attribute that is a number to write and a flag to keep. */
export function flag(set: (on: boolean) => void): Store {
  return function* (data) {
    const value = parseUnsigned(data);
    if (value instanceof Errno) return value;
    set(value !== 0n);
    return data.length;
  };
}

/** An attribute that takes y, n, 1, 0, on, off. */
export function boolean(set: (on: boolean) => void): Store {
  return function* (data) {
    const value = parseBoolean(data);
    if (value instanceof Errno) return value;
    set(value);
    return data.length;
  };
}

/** A parameter of a module: a flag, or a number where it is one. */
export function moduleParameter(state: TreeState, key: string, before: string): Store {
  return function* (data) {
    const value = /^\d+$/.test(before) ? parseUnsigned(data, 0xffff_ffffn) : parseBoolean(data);
    if (value instanceof Errno) return value;
    state.parameters.set(key, typeof value === "boolean" ? (value ? "Y" : "N") : `${value}`);
    return data.length;
  };
}

/** One node, which has no number. */
export const numaNode: Store = function* (data) {
  return lineOf(data) === "-1" ? data.length : EINVAL;
};

/** `on` keeps the function awake, `auto` lets it sleep. */
export function powerControl(dev: PciDev): Store {
  return function* (data) {
    const word = lineOf(data);
    if (word === "auto") dev.pm.allow();
    else if (word === "on") yield* dev.pm.forbid();
    else return EINVAL;
    return data.length;
  };
}

export const powerControlFixed: Store = function* (data) {
  return ["auto", "on"].includes(lineOf(data)) ? data.length : EINVAL;
};

/** How many VFs; EINVAL for no number of 16 bits. New VFs find drivers as new functions do. */
export function sriovNumvfs(dev: PciDev, state: TreeState): Store {
  return function* (data) {
    const n = parseUnsigned(data, 0xffffn);
    if (n instanceof Errno) return n;
    const failed = yield* dev.kernel.pci.setNumVfs(dev.name, Number(n));
    if (failed !== undefined) return failed;
    if (n > 0n && state.autoprobe) for (const vf of [...(dev.iov?.vfs ?? [])]) yield* dev.kernel.pci.probe(vf);
    return data.length;
  };
}

/** Writes to config space in the largest aligned accesses, as the kernel makes them. */
export function config(dev: PciDev): Store {
  return function* (data, position): Step<number | Errno> {
    if (position >= BigInt(dev.cfgSize)) return 0;
    let off = Number(position);
    const end = Math.min(off + data.length, dev.cfgSize);
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const base = off;
    // It is woken from D3cold only: in any other state config space answers.
    dev.pm.getNoresume();
    if (dev.currentState === D3COLD) yield* dev.pm.resume();
    while (off < end) {
      const left = end - off;
      const at = off - base;
      if ((off & 3) === 0 && left >= 4) {
        yield* dev.userConfigWrite(off, 4, view.getUint32(at, true));
        off += 4;
      } else if ((off & 1) === 0 && left >= 2) {
        yield* dev.userConfigWrite(off, 2, view.getUint16(at, true));
        off += 2;
      } else {
        yield* dev.userConfigWrite(off, 1, view.getUint8(at));
        off += 1;
      }
    }
    dev.pm.put();
    return end - base;
  };
}

const GROUP_TYPES: readonly string[] = ["identity", "DMA", "DMA-FQ", "auto"];

/** The DMA API's kind of domain. EPERM while a driver or user space has the group. */
export function groupType(group: IommuGroup, state: TreeState): Store {
  return function* (data) {
    const word = lineOf(data);
    if (!GROUP_TYPES.includes(word)) return EINVAL;
    if (group.devices.length === 0 || group.ownerCount > 0) return EPERM;
    // The machine decides about passthrough when it boots.
    if (word === "identity") return EOPNOTSUPP;
    state.groupTypes.set(group.id, word === "auto" ? "DMA-FQ" : word);
    return data.length;
  };
}
