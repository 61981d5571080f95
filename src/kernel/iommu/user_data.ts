/**
 * A driver's own structs in the calling process's memory: one, or an array of
 * them, with the type that says which.
 *
 * A caller built against an older header gives a shorter struct, down to the
 * last member of its first version: what is missing is zero. One longer than
 * this kernel knows is EINVAL for a single struct and for an element read by
 * itself, and accepted while the rest is zero where a whole array is read.
 *
 * Source: iommu_copy_struct_from_user and its kin in include/linux/iommu.h.
 */
import { EFAULT, EINVAL, Errno } from "../../lib/index.ts";
import type { AnyStruct } from "../../uapi/struct.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyStructFromUser, copyToUser } from "../mm/user_memory.ts";

/** A struct in user memory. */
export interface IommuUserData {
  /** Which struct: IOMMU_HWPT_DATA_*, IOMMU_VIOMMU_TYPE_*. */
  readonly type: number;
  readonly address: bigint;
  /** Bytes, as the program says. */
  readonly length: number;
}

/** Requests in user memory. */
export interface IommuUserDataArray {
  /** Which struct: IOMMU_HWPT_INVALIDATE_DATA_*, IOMMU_VIOMMU_INVALIDATE_DATA_*. */
  readonly type: number;
  readonly address: bigint;
  /** Bytes from one to the next, as the program says. */
  readonly entryLength: number;
  /** How many there are; the driver leaves how many it carried out. */
  entryNum: number;
}

/** A struct with its views. */
export interface StructOf<V> extends Pick<AnyStruct, "name" | "size" | "offsets" | "widths"> {
  over(bytes: Uint8Array, offset?: number): V;
}

const endOf = (struct: Pick<AnyStruct, "name" | "offsets" | "widths">, member: string): number => {
  const offset = struct.offsets[member];
  const width = struct.widths[member];
  if (offset === undefined || width === undefined) throw new RangeError(`${struct.name} has no member ${member}`);
  return offset + width;
};

/** The struct. EINVAL: another type, shorter than up to `minLast`, or longer than this kernel knows. EFAULT. */
export function copyStructFromUserData<V>(
  kernel: Kernel,
  struct: StructOf<V>,
  data: IommuUserData,
  type: number,
  minLast: string,
): V | Errno {
  if (data.type !== type || data.length < endOf(struct, minLast) || data.length > struct.size) return EINVAL;
  return copyStructFromUser(kernel, struct, data.address, data.length);
}

/** One element of an array; errors as of `copyStructFromUserData`. */
export function copyStructFromUserArray<V>(
  kernel: Kernel,
  struct: StructOf<V>,
  array: IommuUserDataArray,
  index: number,
  { type, minLast }: { readonly type: number; readonly minLast: string },
): V | Errno {
  if (index >= array.entryNum) throw new RangeError(`element ${index} of ${array.entryNum}`);
  const address = array.address + BigInt(array.entryLength) * BigInt(index);
  return copyStructFromUserData(kernel, struct, { type: array.type, address, length: array.entryLength }, type, minLast);
}

/** The whole array. EINVAL: another type, or empty. E2BIG: a longer element is not zero beyond what this kernel knows. EFAULT. */
export function copyStructsFromUserArray<V>(kernel: Kernel, struct: StructOf<V>, array: IommuUserDataArray, type: number): V[] | Errno {
  if (array.type !== type || array.entryNum === 0) return EINVAL;
  const out: V[] = [];
  if (array.entryLength === struct.size) {
    const bytes = new Uint8Array(array.entryNum * struct.size);
    if (copyFromUser(kernel, bytes, array.address) > 0) return EFAULT;
    for (let i = 0; i < array.entryNum; i++) out.push(struct.over(bytes.subarray(i * struct.size, (i + 1) * struct.size)));
    return out;
  }
  for (let i = 0; i < array.entryNum; i++) {
    const v = copyStructFromUser(kernel, struct, array.address + BigInt(array.entryLength) * BigInt(i), array.entryLength);
    if (v instanceof Errno) return v;
    out.push(v);
  }
  return out;
}

/** Gives a struct back, as much of it as the caller has room for; errors as of `copyStructFromUserData`. */
export function copyStructToUserData(
  kernel: Kernel,
  data: IommuUserData,
  struct: AnyStruct,
  bytes: Uint8Array,
  { type, minLast }: { readonly type: number; readonly minLast: string },
): Errno | undefined {
  if (data.type !== type || data.length < endOf(struct, minLast) || data.length > struct.size) return EINVAL;
  return copyToUser(kernel, data.address, bytes.subarray(0, data.length)) > 0 ? EFAULT : undefined;
}
