/**
 * Selftest operations that look behind an I/O page table: is every IOVA where
 * the program's memory is, is each page pinned as often as it should be; and one
 * that writes dirty bits as hardware would.
 *
 * Source: iommufd_test_md_check_pa, iommufd_test_md_check_refs,
 * iommufd_test_dirty in drivers/iommu/iommufd/selftest.c.
 */
import { PAGE_MASK_N, PAGE_SHIFT, PAGE_SIZE_N, type Pfn, U64_MAX } from "../../lib/addr.ts";
import { EFAULT, EINVAL, EIO, ENOMEM, EOVERFLOW, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { type IommuTestCmd, MOCK_NESTED_DOMAIN_IOTLB_ID_MAX } from "../../uapi/iommufd_test.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { MockDomain } from "../iommu/mock.ts";
import { MockNestedDomain } from "../iommu/mock_viommu.ts";
import type { Kernel } from "../kernel.ts";
import { AddressSpace } from "../mm/address_space.ts";
import { copyFromUser } from "../mm/user_memory.ts";
import type { IommufdCtx } from "./ctx.ts";
import { smallestPage } from "./domain.ts";
import { HwptPaging } from "./hw_pagetable.ts";
import { HwptNested } from "./hwpt_nested.ts";
import { getObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";

type TestCmd = ViewOf<typeof IommuTestCmd>;

/** The frame behind an address of the calling process, as a fault finds it; EFAULT; EOVERFLOW on the last page of all. No reference is kept. */
export function userPage(kernel: Kernel, addr: bigint): Pfn | Errno {
  const { memory } = kernel.current.mm;
  const page = addr & ~PAGE_MASK_N;
  if (page + PAGE_SIZE_N > U64_MAX) return EOVERFLOW;
  const pfns = memory.pin(page, 1, false);
  if (pfns instanceof Errno) return pfns;
  memory.unpin(pfns, false);
  return pfns[0] ?? EFAULT;
}

const AT_A_TIME = 512;

/** The frames behind the pages from the one of `start` to that of `last`, in order; an error where one cannot be had, and no more. */
function* userPages(kernel: Kernel, start: bigint, last: bigint): Generator<Pfn | Errno, void, void> {
  const { memory } = kernel.current.mm;
  for (let at = start & ~PAGE_MASK_N; at <= last; ) {
    const n = Math.min(Number((last - at) / PAGE_SIZE_N) + 1, AT_A_TIME);
    const pfns = memory.pin(at, n, false);
    if (!(pfns instanceof Errno)) {
      memory.unpin(pfns, false);
      yield* pfns;
    }
    for (let k = 0; pfns instanceof Errno && k < n; k++) {
      const pfn = userPage(kernel, at + BigInt(k) * PAGE_SIZE_N);
      yield pfn;
      if (pfn instanceof Errno) return;
    }
    at += BigInt(n) * PAGE_SIZE_N;
  }
}

/** A hardware page table of the mock unit, with a reference. ENOENT; EINVAL: another unit's. */
function mockHwpt(ctx: IommufdCtx, id: number): { hwpt: HwptPaging; domain: MockDomain } | Errno {
  const hwpt = getObject(ctx, id, HwptPaging);
  if (hwpt instanceof Errno) return hwpt;
  const { domain } = hwpt;
  if (domain instanceof MockDomain) return { hwpt, domain };
  putObject(ctx, hwpt);
  return EINVAL;
}

/** IOMMU_TEST_OP_MD_CHECK_MAP. EINVAL: unaligned to the table's smallest page, or some IOVA leads elsewhere. */
export function* checkMap(ctx: IommufdCtx, id: number, { iova, length, uptr }: TestCmd["check_map"]): Step<Errno | undefined> {
  const t = mockHwpt(ctx, id);
  if (t instanceof Errno) return t;
  try {
    const step = smallestPage(t.domain);
    if (((iova | length | uptr) & (step - 1n)) !== 0n || uptr + length > U64_MAX) return EINVAL;
    let at = 0n;
    if (length === 0n) return undefined;
    for (const pfn of userPages(ctx.kernel, uptr, uptr + length - 1n)) {
      if (pfn instanceof Errno) return pfn;
      // The table's pages may be smaller than the memory's.
      do {
        if (t.domain.iovaToPhys(iova + at) !== (BigInt(pfn) << BigInt(PAGE_SHIFT)) + ((uptr + at) & PAGE_MASK_N)) return EINVAL;
        at += step;
      } while (at < length && ((uptr + at) & PAGE_MASK_N) !== 0n);
    }
    return undefined;
  } finally {
    putObject(ctx, t.hwpt);
  }
}

/** IOMMU_TEST_OP_MD_CHECK_IOTLB. ENOENT: no nested table; EINVAL: another unit's, no such word, or it holds something else. */
export function checkIotlb(ctx: IommufdCtx, id: number, { id: word, iotlb }: TestCmd["check_iotlb"]): Errno | undefined {
  const hwpt = getObject(ctx, id, HwptNested);
  if (hwpt instanceof Errno) return hwpt;
  const { domain } = hwpt;
  const same = domain instanceof MockNestedDomain && word <= MOCK_NESTED_DOMAIN_IOTLB_ID_MAX && domain.iotlb[word] === iotlb;
  putObject(ctx, hwpt);
  return same ? undefined : EINVAL;
}

/** IOMMU_TEST_OP_MD_CHECK_REFS. EIO: a page has another number of pins. Huge pages, whose pins Linux counts elsewhere, are not looked at. */
export function checkRefs({ kernel }: IommufdCtx, { length, uptr, refs }: TestCmd["check_refs"]): Errno | undefined {
  if (((length | uptr) & PAGE_MASK_N) !== 0n || uptr + length > U64_MAX) return EINVAL;
  const { memory } = kernel.current.mm;
  if (length === 0n) return undefined;
  let at = uptr;
  for (const pfn of userPages(kernel, uptr, uptr + length - 1n)) {
    if (pfn instanceof Errno) return pfn;
    const huge = memory instanceof AddressSpace && memory.find(at)?.cache?.huge === true;
    if (!huge && kernel.frames.pins(pfn) !== refs) return EIO;
    at += PAGE_SIZE_N;
  }
  return undefined;
}

const MOST_BITS = 16n * 1024n * 1024n * 8n;

/** IOMMU_TEST_OP_DIRTY: marks the pages whose bits are set. EINVAL also while tracking is off. */
export function* checkDirty(ucmd: Ucmd, cmd: TestCmd): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const { iova, length, page_size: step, uptr } = cmd.dirty;
  if (step === 0n || length === 0n || iova % step !== 0n || length % step !== 0n || uptr === 0n) return EINVAL;
  const bits = length / step;
  if (bits > MOST_BITS) return EOVERFLOW;
  const t = mockHwpt(ctx, cmd.id);
  if (t instanceof Errno) return t;
  try {
    if (!t.domain.dirtyTracking) return EINVAL;
    if (ctx.kernel.fault.slab("bitmap", Number((bits + 7n) / 8n))) return ENOMEM;
    const bitmap = new Uint8Array(Number((bits + 7n) / 8n));
    if (copyFromUser(ctx.kernel, bitmap, uptr) !== 0) return EFAULT;
    let marked = 0n;
    for (let i = 0; i < Number(bits); i++) {
      if (((bitmap[i >> 3] as number) & (1 << (i & 7))) === 0) continue;
      t.domain.pageTable.setDirty(iova + BigInt(i) * step);
      marked++;
    }
    cmd.dirty.out_nr_dirty = marked;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, t.hwpt);
  }
}
