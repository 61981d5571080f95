/**
 * Where device memory is that a program has mapped: what a type1 container maps
 * when it is given an address inside of a BAR.
 *
 * The program maps a memory file that stands for the device's; at that offset
 * the device's own mmap is asked which physical page it would show there now.
 */
import type { Mapping } from "../host/proc.ts";
import type { File } from "../kernel/fs/file.ts";
import { AddressSpace } from "../kernel/mm/address_space.ts";
import { Vma } from "../kernel/mm/vma.ts";
import { PAGE_SIZE_N, type PhysAddr } from "../lib/addr.ts";
import { EFAULT, Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import { PROT_READ, PROT_WRITE } from "../uapi/index.ts";

const HELD = /^\/memfd:barlink:(\d+) \(deleted\)$/;

/** The id of the file of ours that a mapping shows; undefined: it shows something else. */
export function heldIdOf(mapping: Mapping): number | undefined {
  const id = HELD.exec(mapping.path)?.[1];
  return id === undefined ? undefined : Number(id);
}

/** The page of `file` behind `addr`, which `mapping` covers. EFAULT: no access of that kind, or the device does not answer; undefined: no device memory. */
export function* devicePage(file: File, mapping: Mapping, addr: bigint, write: boolean): Step<PhysAddr | Errno | undefined> {
  if (!(write ? mapping.writable : mapping.readable)) return EFAULT;
  const page = addr & ~(PAGE_SIZE_N - 1n);
  const space = new AddressSpace(file.kernel);
  const offset = mapping.offset + (page - mapping.start);
  const vma = new Vma(space, page, page + PAGE_SIZE_N, write ? PROT_READ | PROT_WRITE : PROT_READ, mapping.shared, file, offset);
  if (file.ops.mmap === undefined || file.ops.mmap(file, vma) instanceof Errno || vma.ops === undefined) return undefined;
  const r = vma.ops.fault(vma, Number(offset / PAGE_SIZE_N));
  const at = typeof r === "object" ? yield* r : r;
  vma.ops.close?.(vma);
  return at === "SIGBUS" ? EFAULT : at;
}
