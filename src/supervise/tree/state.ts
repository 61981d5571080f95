/** What user space has set through sysfs and the kernel itself does not keep. */
import type { PciDev } from "../../kernel/pci/pci_dev.ts";

/** Of the whole machine. */
export interface TreeState {
  /** /sys/bus/pci/drivers_autoprobe. */
  autoprobe: boolean;
  resourceAlignment: string;
  /** Types that a write asked for, by group. */
  readonly groupTypes: Map<number, string>;
  /** Parameters of modules that were written, `module.parameter`, as they read. Nothing here acts on them. */
  readonly parameters: Map<string, string>;
}

export function newTreeState(): TreeState {
  return { autoprobe: true, resourceAlignment: "", groupTypes: new Map(), parameters: new Map() };
}

/** Of one function. */
export interface FunctionAttributes {
  brokenParity: boolean;
  msiAllowed: boolean;
  d3coldAllowed: boolean;
  vfAutoprobe: boolean;
  /** A write took all reset methods away: the files stay. */
  resetMethodsCleared: boolean;
}

const attributes: WeakMap<PciDev, FunctionAttributes> = new WeakMap();

export function attributesOf(dev: PciDev): FunctionAttributes {
  let a = attributes.get(dev);
  if (a === undefined) {
    a = {
      brokenParity: false,
      msiAllowed: true,
      // Looked for at discovery, with the power management capability.
      d3coldAllowed: dev.pmCap !== 0,
      vfAutoprobe: true,
      resetMethodsCleared: false,
    };
    attributes.set(dev, a);
  }
  return a;
}
