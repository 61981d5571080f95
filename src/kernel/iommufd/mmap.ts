/**
 * Memory of a driver that a program maps through /dev/iommu.
 *
 * A driver that makes an object for the program (a virtual IOMMU) registers
 * whole pages and tells the program the offset they got; the first page of the
 * descriptor is never given. A mapping is of all of them or none, shared, not
 * executable, and holds a user of the object, which cannot be destroyed before.
 *
 * Invariant: the ranges of a context do not overlap.
 * Source: iommufd_fops_mmap in drivers/iommu/iommufd/main.c, _iommufd_alloc_mmap in driver.c.
 */
import { PAGE_MASK_N, PAGE_SIZE_N, type PhysAddr, physAddr } from "../../lib/addr.ts";
import { EINVAL, ENOMEM, ENXIO, EPERM, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { PROT_EXEC } from "../../uapi/mman.ts";
import type { Kernel } from "../kernel.ts";
import type { Vma, VmaOps } from "../mm/vma.ts";
import { decUsers, type IommufdObject } from "./object.ts";

/** What an offset leads to. */
interface Immap {
  readonly owner: IommufdObject;
  readonly offset: bigint;
  readonly length: bigint;
  readonly pa: PhysAddr;
}

export class MmapTable {
  /** In ascending order of offsets. */
  readonly #maps: Immap[] = [];

  /** The lowest offset with room. EINVAL: not whole pages, or none. ENOMEM. */
  alloc(kernel: Kernel, owner: IommufdObject, pa: PhysAddr, length: number): bigint | Errno {
    const bytes = BigInt(length);
    if ((pa & PAGE_MASK_N) !== 0n || bytes === 0n || (bytes & PAGE_MASK_N) !== 0n) return EINVAL;
    if (kernel.fault.slab("iommufd mmap")) return ENOMEM;
    let offset = PAGE_SIZE_N;
    let i = 0;
    for (const m of this.#maps) {
      if (offset + bytes <= m.offset) break;
      offset = m.offset + m.length;
      i++;
    }
    this.#maps.splice(i, 0, { owner, offset, length: bytes, pa });
    return offset;
  }

  /** Nobody maps it any more, as its owner has no user left. */
  destroy(owner: IommufdObject, offset: bigint): void {
    const i = this.#maps.findIndex((m) => m.offset === offset);
    if (this.#maps[i]?.owner !== owner) throw new KernelBug(`offset ${offset} of /dev/iommu is not the object's that gives it up`);
    this.#maps.splice(i, 1);
  }

  get size(): number {
    return this.#maps.length;
  }

  /** mmap of the descriptor. EINVAL: not shared. EPERM: executable. ENXIO: not exactly what a driver offers there. */
  mmap(vma: Vma): Errno | undefined {
    if (!vma.shared) return EINVAL;
    if ((vma.prot & PROT_EXEC) !== 0) return EPERM;
    const map = this.#maps.find((m) => m.offset === vma.offset);
    if (map === undefined || map.owner.users === 0 || map.length !== vma.length) return ENXIO;
    map.owner.users++;
    vma.privateData = map;
    vma.ops = vmaOps;
    return undefined;
  }
}

const mapOf = (vma: Vma): Immap => vma.privateData as Immap;

const vmaOps: VmaOps = {
  fault(vma, pageOffset) {
    const { pa, offset } = mapOf(vma);
    return physAddr(pa + BigInt(pageOffset) * PAGE_SIZE_N - offset);
  },
  open(vma) {
    mapOf(vma).owner.users++;
  },
  close(vma) {
    decUsers(mapOf(vma).owner);
  },
};
