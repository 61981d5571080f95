/**
 * Nested translation of VT-d: a guest's first stage, in the guest's memory, on
 * a second stage that maps that memory.
 *
 * The walk is the hardware's. Every address in the guest's table, its own
 * entries' included, is an address of the second stage; A and D bits are set in
 * the guest's memory, where the second stage must allow it, once nothing stands
 * against the access. Requests are a user's, so the supervisor bits of the
 * guest's configuration (SRE, WPE) change nothing.
 *
 * The IOTLB keeps the two stages as one, by the smaller of both pages. A change
 * of the first stage is invisible until the guest invalidates it; a change of
 * the second drops everything of the domains nested in it.
 *
 * Limit: an update of A and D is not atomic against a real program's stores.
 *
 * Source: VT-d specification 3.6 to 3.8, 9.7 (first-stage entries), 7.1.3;
 * drivers/iommu/intel/nested.c, cache.c, pasid.c.
 */
import { EINVAL, ENOMEM, EOPNOTSUPP, Errno, minN, PAGE_MASK_N, physAddr, U64_MAX } from "../../lib/index.ts";
import {
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
  IOMMU_VTD_INV_FLAGS_LEAF,
  IOMMU_VTD_S1_EAFE,
  IommuHwptVtdS1,
  IommuHwptVtdS1Invalidate,
} from "../../uapi/iommufd.ts";
import type { Kernel } from "../kernel.ts";
import { IommuDomain } from "./domain.ts";
import type { FaultCause } from "./fault.ts";
import type { IotlbEntry } from "./iotlb.ts";
import { copyStructFromUserArray, copyStructFromUserData, type IommuUserData, type IommuUserDataArray } from "./user_data.ts";

const P = 1n << 0n;
const RW = 1n << 1n;
const US = 1n << 2n;
const A = 1n << 5n;
const D = 1n << 6n;
const PS = 1n << 7n;
/** Extended accessed, where the guest asks for it. */
const EA = 1n << 10n;
const FRAME = 0xf_ffff_ffff_f000n;

/** An entry of the guest's table that a walk has used. */
interface Used {
  /** Where it is for the guest. */
  readonly gpa: bigint;
  readonly pa: bigint;
  readonly value: bigint;
  /** The second stage lets it be written. */
  readonly writable: boolean;
}

/** Where a guest's address leads in the first stage. */
interface FirstLeaf {
  readonly gpa: bigint;
  readonly size: bigint;
  readonly writable: boolean;
  readonly used: readonly Used[];
}

export class IntelNestedDomain extends IommuDomain {
  /** The second stage. */
  readonly parent: IommuDomain;
  /** IOMMU_VTD_S1_*. */
  readonly flags: bigint;
  /** Where the guest's top table is, for the guest. */
  readonly top: bigint;
  /** Bits of its input addresses, as the guest says: 48 or 57 can be attached. */
  readonly width: number;
  /** The first stage may have leaves of 1 GiB. */
  readonly #huge: boolean;

  constructor(parent: IommuDomain, cfg: { readonly flags: bigint; readonly top: bigint; readonly width: number; readonly huge: boolean }) {
    const { kernel, owner } = parent;
    super({ kernel, type: "nested", owner, id: kernel.iommu.getDomainId() });
    this.parent = parent;
    this.flags = cfg.flags;
    this.top = cfg.top & FRAME;
    this.width = cfg.width;
    this.#huge = cfg.huge;
    parent.nested.add(this);
  }

  override free(): void {
    this.parent.nested.delete(this);
    super.free();
  }

  override cacheInvalidateUser(array: IommuUserDataArray): Errno | undefined {
    let done = 0;
    let e: Errno | undefined = array.type === IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 ? undefined : EINVAL;
    while (e === undefined && done < array.entryNum) {
      e = this.#invalidate(array, done);
      if (e === undefined) done++;
    }
    array.entryNum = done;
    return e;
  }

  #invalidate(array: IommuUserDataArray, i: number): Errno | undefined {
    const type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
    const inv = copyStructFromUserArray(this.kernel, IommuHwptVtdS1Invalidate, array, i, { type, minLast: "__reserved" });
    if (inv instanceof Errno) return inv;
    if ((inv.flags & ~IOMMU_VTD_INV_FLAGS_LEAF) !== 0 || inv.__reserved !== 0) return EOPNOTSUPP;
    const { addr, npages } = inv;
    if ((addr & PAGE_MASK_N) !== 0n || (npages === U64_MAX && addr !== 0n)) return EINVAL;
    const { start, last } = invalidated(addr, BigInt.asUintN(64, addr + (npages << 12n) - 1n));
    this.flushRange(start, last);
    return undefined;
  }

  /** What both stages make of an access by a user, with A and D set; or why they refuse it. */
  walk(iova: bigint, write: boolean): IotlbEntry | FaultCause {
    const first = this.#firstStage(iova);
    if (typeof first === "string") return first;
    if (write && !first.writable) return "write-denied";
    const second = this.parent.pageTableOrNone?.translate(first.gpa);
    if (second === undefined) return "second-stage";
    if (write ? !second.writable : !second.readable) return write ? "write-denied" : "read-denied";
    const e = this.#markUsed(first.used, write);
    if (e !== undefined) return e;
    if (write) this.#markDirty(first.gpa);
    const size = minN(first.size, second.pageSize);
    const offset = iova & (size - 1n);
    const start = iova - offset;
    // Not to be written through unless D is set: the first write has to come here.
    return { start, last: start + size - 1n, pa: second.pa - offset, readable: true, writable: write, dirty: write };
  }

  #firstStage(iova: bigint): FirstLeaf | FaultCause {
    const high = BigInt.asIntN(64, iova) >> BigInt(this.width - 1);
    if (high !== 0n && high !== -1n) return "first-stage-not-canonical";
    const used: Used[] = [];
    const topLevel = this.width > 48 ? 4 : 3;
    let table = this.top;
    let writable = true;
    for (let level = topLevel; ; level--) {
      const shift = BigInt(12 + 9 * level);
      const entry = this.#entry(table + ((iova >> shift) & 0x1ffn) * 8n);
      if (typeof entry === "string") return entry;
      const { value } = entry;
      if ((value & P) === 0n) return "first-stage-not-present";
      const leaf = level === 0 || (value & PS) !== 0n;
      if (this.#reserved(value, level, leaf)) return "first-stage-reserved";
      if ((value & US) === 0n) return "first-stage-supervisor";
      writable &&= (value & RW) !== 0n;
      used.push(entry);
      if (leaf) {
        const size = 1n << shift;
        return { gpa: (value & FRAME & ~(size - 1n)) | (iova & (size - 1n)), size, writable, used };
      }
      table = value & FRAME;
    }
  }

  #entry(gpa: bigint): Used | FaultCause {
    if (gpa > this.parent.geometry.apertureEnd) return "first-stage-beyond-width";
    const at = this.parent.pageTableOrNone?.translate(gpa);
    if (at?.readable !== true) return "first-stage-unreadable";
    const bytes = new Uint8Array(8);
    if (!this.kernel.phys.read(physAddr(at.pa), bytes)) return "first-stage-lost";
    return { gpa, pa: at.pa, value: new DataView(bytes.buffer).getBigUint64(0, true), writable: at.writable };
  }

  #reserved(value: bigint, level: number, leaf: boolean): boolean {
    if (!leaf || level === 0) return false;
    if (level > 2 || (level === 2 && !this.#huge)) return true;
    // Below the frame of a large leaf only bit 12, which is the memory type's, is used.
    return (value & FRAME & ((1n << BigInt(12 + 9 * level)) - 1n) & ~0x1000n) !== 0n;
  }

  /** A in every entry, D in the leaf of a write. Nothing is changed when the second stage forbids one of them. */
  #markUsed(used: readonly Used[], write: boolean): FaultCause | undefined {
    const set = A | ((this.flags & IOMMU_VTD_S1_EAFE) !== 0n ? EA : 0n);
    const now = used.map((u, i) => u.value | set | (write && i === used.length - 1 ? D : 0n));
    if (used.some((u, i) => u.value !== now[i] && !u.writable)) return "first-stage-unwritable";
    const bytes = new Uint8Array(8);
    for (const [i, u] of used.entries()) {
      if (u.value === now[i]) continue;
      new DataView(bytes.buffer).setBigUint64(0, now[i] as bigint, true);
      if (!this.kernel.phys.write(physAddr(u.pa), bytes)) return "first-stage-lost";
      this.#markDirty(u.gpa);
    }
    return undefined;
  }

  /** The second stage's own D, where somebody tracks it. */
  #markDirty(gpa: bigint): void {
    if (this.parent.dirtyTracking) this.parent.pageTable.setDirty(gpa);
  }
}

/** What an invalidation of [start, last] drops: the hardware takes a power of two of pages, aligned to itself. */
function invalidated(start: bigint, last: bigint): { start: bigint; last: bigint } {
  const bits = (start ^ last).toString(2).length;
  if (bits >= 64) return { start: 0n, last: U64_MAX };
  const size = 1n << BigInt(Math.max(bits, 12));
  return { start: start & ~(size - 1n), last: start | (size - 1n) };
}

/** A nested domain as the program describes it, on a second stage made for it. EOPNOTSUPP: another kind of description; EINVAL, EFAULT. */
export function intelAllocNested(kernel: Kernel, parent: IommuDomain, data: IommuUserData, huge: boolean): IntelNestedDomain | Errno {
  const cfg = copyStructFromUserData(kernel, IommuHwptVtdS1, data, IOMMU_HWPT_DATA_VTD_S1, "__reserved");
  if (cfg instanceof Errno) return cfg;
  if (kernel.fault.slab("nested domain")) return ENOMEM;
  return new IntelNestedDomain(parent, { flags: cfg.flags, top: cfg.pgtbl_addr, width: cfg.addr_width, huge });
}
