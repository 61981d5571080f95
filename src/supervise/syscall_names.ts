/** Names of the system calls that barlink knows. */
import * as sys from "./numbers.ts";

const names: ReadonlyMap<number, string> = new Map(
  Object.entries(sys).flatMap(([k, v]) => (typeof v === "number" ? [[v, k.replace(/^SYS_/, "")] as const] : [])),
);

/** `ioctl`; `syscall_999` for a number that is not known. */
export const syscallName = (nr: number): string => names.get(nr) ?? `syscall_${nr}`;
