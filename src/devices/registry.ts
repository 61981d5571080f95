/** The models that a machine description names, by that name. */
import type { PciModel } from "../kernel/pci/pci_model.ts";
import { Edu } from "./edu.ts";
import { Ivshmem } from "./ivshmem.ts";
import { Nvme } from "./nvme.ts";

/** What a description gives a model: validated by the machine layer, sizes and masks as bigint. */
export type DeviceOptions = Readonly<Record<string, bigint | number | boolean | string | undefined>>;

/** Makes one device. Throws `RangeError` for an option out of range. */
export type DeviceModel = (options: DeviceOptions) => PciModel;

const size = (options: DeviceOptions, key: string): bigint | undefined => {
  const v = options[key];
  if (v === undefined || typeof v === "bigint") return v;
  if (typeof v === "number") return BigInt(v);
  throw new TypeError(`${key}: ${JSON.stringify(v)} is not a number of bytes`);
};

const flag = (options: DeviceOptions, key: string): boolean | undefined => {
  const v = options[key];
  if (v === undefined || typeof v === "boolean") return v;
  throw new TypeError(`${key}: ${typeof v === "string" ? v : String(v)} is neither true nor false`);
};

/** Leaves out what is undefined: the models' options are exact. */
function given<T extends object>(options: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(options).filter(([, v]) => v !== undefined)) as T;
}

export const deviceModels: Record<string, DeviceModel> = {
  edu: (o) => new Edu(given({ dmaMask: size(o, "dmaMask") })),
  ivshmem: (o) => new Ivshmem(given({ size: size(o, "size") })),
  nvme: (o) => new Nvme(given({ cmbSize: size(o, "cmbSize"), pmrSize: size(o, "pmrSize"), busResetFails: flag(o, "busResetFails") })),
};
