/**
 * The encoding of an ioctl command (linux/ioctl.h, asm-generic layout).
 *
 *      31 30 29           16 15        8 7          0
 *     +-----+---------------+-----------+------------+
 *     | dir |     size      |   type    |   number   |
 *     +-----+---------------+-----------+------------+
 *
 * `dir` is seen from the caller: WRITE means that the kernel reads. iommufd and VFIO use `_IO` throughout, because their
 * structures carry their own size.
 */
import type { AnyStruct } from "./struct.ts";

export const _IOC_NONE = 0;
export const _IOC_WRITE = 1;
export const _IOC_READ = 2;

/** A type given as a character, `';'`, or as its code. */
type Magic = string | number;
/** The argument's type: a structure, or the width in bytes of a plain value. */
type Argument = AnyStruct | number;

const sizeOf = (argument: Argument): number => (typeof argument === "number" ? argument : argument.size);

export const _IOC = (dir: number, type: Magic, nr: number, size: number): number =>
  ((dir << 30) | (size << 16) | ((typeof type === "string" ? type.charCodeAt(0) : type) << 8) | nr) >>> 0;
export const _IO = (type: Magic, nr: number): number => _IOC(_IOC_NONE, type, nr, 0);
export const _IOW = (type: Magic, nr: number, argument: Argument): number => _IOC(_IOC_WRITE, type, nr, sizeOf(argument));
export const _IOR = (type: Magic, nr: number, argument: Argument): number => _IOC(_IOC_READ, type, nr, sizeOf(argument));
export const _IOWR = (type: Magic, nr: number, argument: Argument): number => _IOC(_IOC_READ | _IOC_WRITE, type, nr, sizeOf(argument));

export const _IOC_DIR = (cmd: number): number => cmd >>> 30;
export const _IOC_SIZE = (cmd: number): number => (cmd >>> 16) & 0x3fff;
export const _IOC_TYPE = (cmd: number): number => (cmd >>> 8) & 0xff;
export const _IOC_NR = (cmd: number): number => cmd & 0xff;
