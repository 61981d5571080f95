/** The checker itself: each invariant, broken by hand, is told by its name. */
import { beforeEach, describe, expect, test } from "vitest";
import type { IommuDomain } from "../../../src/kernel/iommu/domain.ts";
import { ledgerOf } from "../../../src/kernel/iommu/ledger.ts";
import type { IoptDomain } from "../../../src/kernel/iommufd/domain.ts";
import type { IommufdIoas } from "../../../src/kernel/iommufd/ioas.ts";
import { BAR_START } from "../vfio/dmabuf_support.ts";
import { FIXED, IommufdRig, ok, RW } from "./support.ts";

const AT = 0x10000n;
const MMIO = 16;
const CACHE = 4;
let r: IommufdRig;
let ioas: number;
let domain: IoptDomain;

beforeEach(() => {
  r = new IommufdRig();
  ioas = r.allocIoas();
  r.attached(ioas);
  ok(r.mapFile({ ioas_id: ioas, fd: r.dmabuf(), length: 0x4000n, iova: AT, flags: RW | FIXED }));
  ok(r.map({ ioas_id: ioas, user_va: r.user(0x2000), length: 0x2000n, iova: 0x20000n, flags: RW | FIXED }));
  domain = (r.ctx.objects.load(ioas) as IommufdIoas).iopt.domains[0] as IoptDomain;
  r.check();
});

describe("the checker finds", () => {
  test("device memory that is cacheable (I7)", () => {
    domain.unmap(AT + 0x1000n, 0x1000n);
    domain.map(AT + 0x1000n, BAR_START + 0x1000n, 0x1000n, 3 | CACHE);
    expect(() => r.check()).toThrow("(I7)");
  });

  test("device memory that is neither (I7), and more rights than were asked for", () => {
    domain.unmap(AT, 0x1000n);
    domain.map(AT, BAR_START, 0x1000n, 3);
    expect(() => r.check()).toThrow("(I7)");
    domain.unmap(AT, 0x1000n);
    domain.map(AT, BAR_START, 0x1000n, 3 | MMIO);
    r.check();
    domain.unmap(AT, 0x1000n);
    domain.map(AT, BAR_START, 0x1000n, 1 | MMIO);
    expect(() => r.check()).toThrow("(I7)");
  });

  test("memory that is mapped as a device", () => {
    const pa = domain.iovaToPhys(0x20000n) as bigint;
    domain.unmap(0x20000n, 0x1000n);
    domain.map(0x20000n, pa, 0x1000n, 3 | MMIO);
    expect(() => r.check()).toThrow("(I7)");
  });

  test("device memory that a domain maps outside of iommufd, as memory (I7)", () => {
    const bar = r.kernel.phys.addMmio(0x30_0000_0000n as never, 0x1000n, { read: () => true, write: () => true }, "bar");
    const other = ok(r.run(r.bind().group.group.unit.domainAllocPagingFlags(r.device(), 0))) as IommuDomain;
    expect(other.map(0x1000n, 0x30_0000_0000n, 0x1000n, 3 | CACHE)).toBeUndefined();
    expect(() => r.check()).toThrow("(I7)");
    other.free();
    r.check();
    r.kernel.phys.removeMmio(bar);
  });

  test("a page that is missing (I3)", () => {
    domain.unmap(AT + 0x3000n, 0x1000n);
    expect(() => r.check()).toThrow("(I3)");
  });

  test("a mapping that belongs to no area (I1)", () => {
    domain.map(0x90000n, BAR_START, 0x1000n, 3 | MMIO);
    expect(() => r.check()).toThrow("(I1)");
  });

  test("a revoked buffer that is still mapped (I1)", () => {
    r.revoke(true);
    r.check();
    domain.map(AT, BAR_START, 0x1000n, 3 | MMIO);
    expect(() => r.check()).toThrow("(I1)");
  });
});

test("the ledger cuts its entries as an unmap does, and refuses what overlaps", () => {
  const id = (domain as IommuDomain).id;
  const held = (): [bigint, bigint, bigint][] =>
    [...(ledgerOf(r.kernel)?.overlaps(id, AT, AT + 0x3fffn) ?? [])].map((e) => [e.start, e.last, e.pa]);
  expect(held()).toEqual([[AT, AT + 0x3fffn, BAR_START]]);
  domain.unmap(AT + 0x1000n, 0x2000n);
  expect(held()).toEqual([
    [AT, AT + 0xfffn, BAR_START],
    [AT + 0x3000n, AT + 0x3fffn, BAR_START + 0x3000n],
  ]);
  domain.map(AT + 0x1000n, BAR_START + 0x1000n, 0x2000n, 3 | MMIO);
  r.check();
});
