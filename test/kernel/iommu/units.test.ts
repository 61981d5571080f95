import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { AmdIommu } from "../../../src/kernel/iommu/amd.ts";
import { IntelIommu } from "../../../src/kernel/iommu/intel.ts";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { EINVAL, EOPNOTSUPP, Errno } from "../../../src/lib/index.ts";
import { IommuHwInfoAmd, IommuHwInfoVtd } from "../../../src/uapi/iommufd.ts";
import { attachNew, groupOf, miniKernel, unitOf } from "./mini_kernel.ts";

interface RecordedUnit {
  readonly name: string;
  readonly cap: string;
  readonly ecap: string;
  readonly iovaRanges: readonly (readonly [string, string])[];
  readonly hwptAlloc: Readonly<Record<string, string>>;
}

const recorded: RecordedUnit[] = JSON.parse(readFileSync(new URL("../../data/iommu/recorded_units.json", import.meta.url), "utf8"));

const described: Record<string, IommuDescription> = {
  amdv1: { kind: "amd" },
  "vtdss-legacy-48": { kind: "intel-legacy" },
  "vtdss-legacy-48-coherent": { kind: "intel-legacy", coherentWalk: true },
  "vtdss-legacy-48-snoop": { kind: "intel-legacy", snoopControl: true },
  "vtdss-scalable-48": { kind: "intel-scalable" },
  "vtdss-scalable-48-snoop": { kind: "intel-scalable", snoopControl: true },
  "vtdss-scalable-48-coherent-nest-dirty": { kind: "intel-scalable", coherentWalk: true, nesting: true, dirtyTracking: true },
  "x86_64-vtd-first-stage": { kind: "intel-first-stage" },
  "x86_64-vtd-first-stage-coherent": { kind: "intel-first-stage", coherentWalk: true },
  "x86_64-vtd-first-stage-snoop": { kind: "intel-first-stage", snoopControl: true },
};

const flags: Record<string, number> = { nest_parent: 1, dirty_tracking: 2, pasid: 8 };

describe.each(recorded)("the recorded unit $name", (r) => {
  const description = described[r.name];
  if (description === undefined) throw new Error(`no description of ${r.name}`);
  const m = miniKernel(description);
  const dev = m.device(1);
  const unit = unitOf(dev);

  it("has the recorded registers", () => {
    if (unit instanceof IntelIommu) {
      expect([unit.cap, unit.ecap]).toEqual([BigInt(r.cap), BigInt(r.ecap)]);
    } else if (unit instanceof AmdIommu) expect(unit.efr).toBe(BigInt(r.ecap));
  });

  it("offers the recorded IOVA ranges: the aperture less the reserved regions", () => {
    const domain = attachNew(m, dev);
    let at = domain.geometry.apertureStart;
    const ranges: [bigint, bigint][] = [];
    for (const region of unit.reservedRegions(dev)) {
      ranges.push([at, region.start - 1n]);
      at = region.start + region.length;
    }
    ranges.push([at, domain.geometry.apertureEnd]);
    expect(ranges).toEqual(r.iovaRanges.map(([a, b]) => [BigInt(a), BigInt(b)]));
  });

  it.each(Object.entries(r.hwptAlloc))("answers a domain with %s as recorded (%s)", (what, errno) => {
    const domain = m.run(unit.domainAllocPagingFlags(dev, flags[what] ?? 0));
    if (errno === "") expect(domain).not.toBeInstanceOf(Errno);
    else expect(domain).toMatchObject({ name: errno });
  });

  it("refuses a flag that no driver knows", () => {
    expect(m.run(unit.domainAllocPagingFlags(dev, 0x10))).toBe(EOPNOTSUPP);
  });
});

describe("IOMMU_GET_HW_INFO", () => {
  it("tells VT-d's registers and that the device has no ATS", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const info = unitOf(dev).hwInfo(dev);
    if (info instanceof Errno) throw new Error(info.name);
    expect(info).toMatchObject({ type: 1, capabilities: 8n, maxPasidLog2: 0 });
    const vtd = IommuHwInfoVtd.over(info.data);
    expect(info.data.length).toBe(24);
    expect([vtd.flags, vtd.cap_reg, vtd.ecap_reg]).toEqual([1, 0xd2008c222f0606n, 0xf00f4an]);
  });

  it("tells AMD's extended features", () => {
    const m = miniKernel({ kind: "amd", dirtyTracking: true });
    const dev = m.device(1);
    const info = unitOf(dev).hwInfo(dev);
    if (info instanceof Errno) throw new Error(info.name);
    expect(info).toMatchObject({ type: 4, capabilities: 9n });
    expect(IommuHwInfoAmd.over(info.data).efr & 0xffffn).toBe(0x29d3n);
  });

  it("has no data of another vendor's type", () => {
    const m = miniKernel({ kind: "amd" });
    const dev = m.device(1);
    expect(unitOf(dev).hwInfo(dev, 1)).toBe(EOPNOTSUPP);
  });
});

describe("which domains a unit takes", () => {
  it("refuses a domain of another vendor's driver", () => {
    const m = miniKernel({ kind: "intel-legacy" }, { kind: "amd" });
    const intel = m.device(1);
    const amd = m.device(2, { unit: m.iommu.units[1] as (typeof m.iommu.units)[0] });
    const domain = attachNew(m, amd);
    m.run(groupOf(intel).claimDmaOwner(m));
    expect(m.run(groupOf(intel).attachHandle(domain, { domain }))).toBe(EINVAL);
  });

  it.each<[string, IommuDescription, IommuDescription]>([
    ["wider than it translates", { kind: "intel-legacy" }, { kind: "intel-legacy", addressWidth: 39 }],
    ["with pages larger than it has", { kind: "intel-legacy" }, { kind: "intel-legacy", pages1g: false }],
    ["written for a walker that snoops", { kind: "intel-legacy", coherentWalk: true }, { kind: "intel-legacy" }],
    ["of the first stage", { kind: "intel-first-stage" }, { kind: "intel-scalable" }],
  ])("refuses a table %s, and leaves the device blocked", (_what, theirs, ours) => {
    const m = miniKernel(theirs, ours);
    const first = m.device(1);
    const second = m.device(2, { unit: m.iommu.units[1] as (typeof m.iommu.units)[0] });
    const domain = attachNew(m, first);
    m.run(groupOf(second).claimDmaOwner(m));
    expect(m.run(groupOf(second).attachHandle(domain, { domain }))).toBe(EINVAL);
    expect(m.iommu.translate(second.rid, 0n, true)).toMatchObject({ cause: "no-domain" });
  });

  it("AMD: refuses a domain with dirty bits that it does not set, and leaves the device where it was", () => {
    const m = miniKernel({ kind: "amd", dirtyTracking: true }, { kind: "amd" });
    const first = m.device(1);
    const second = m.device(2, { unit: m.iommu.units[1] as (typeof m.iommu.units)[0] });
    const dirty = attachNew(m, first, 2);
    const own = attachNew(m, second);
    own.map(0x1000n, 0x5000n, 0x1000n, 3);
    expect(m.run(groupOf(second).replaceHandle(dirty, { domain: dirty }))).toBe(EINVAL);
    expect(groupOf(second).domain).toBe(own);
    expect(m.iommu.translate(second.rid, 0x1000n, true)).toMatchObject({ pa: 0x5000n });
  });

  it("shares a domain between units that are alike", () => {
    const m = miniKernel({ kind: "intel-legacy" }, { kind: "intel-legacy" });
    const a = m.device(1);
    const b = m.device(2, { unit: m.iommu.units[1] as (typeof m.iommu.units)[0] });
    const domain = attachNew(m, a);
    m.run(groupOf(b).claimDmaOwner(m));
    expect(m.run(groupOf(b).attachHandle(domain, { domain }))).toBeUndefined();
    expect(domain.map(0x1000n, 0x5000n, 0x1000n, 3)).toBeUndefined();
    for (const d of [a, b]) expect(m.iommu.translate(d.rid, 0x1000n, true)).toMatchObject({ pa: 0x5000n });
    domain.unmap(0x1000n, 0x1000n);
    for (const d of [a, b]) expect(m.iommu.translate(d.rid, 0x1000n, true)).toMatchObject({ reason: 5 });
  });
});

describe("cache coherency", () => {
  it("is enforced by a bit in every leaf, device memory's too, where the unit has snoop control", () => {
    const m = miniKernel({ kind: "intel-legacy", snoopControl: true });
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    expect(unitOf(dev).capable("enforce-cache-coherency")).toBe(true);
    expect(domain.enforceCacheCoherency()).toBe(true);
    domain.map(0x1000n, 0xfd00_0000n, 0x1000n, 1 | 2 | 16);
    const leaf = [...domain.pageTable.walk()].at(-1);
    expect((leaf?.value ?? 0n) & 0x800n).toBe(0x800n);
  });

  it("cannot be enforced by a unit without snoop control once it has the domain", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const domain = attachNew(m, m.device(1));
    expect(domain.enforceCacheCoherency()).toBe(false);
  });

  it("is always there on AMD", () => {
    const m = miniKernel({ kind: "amd" });
    expect(attachNew(m, m.device(1)).enforceCacheCoherency()).toBe(true);
  });
});

it("refuses a read-only page in the parent of nested domains", () => {
  const m = miniKernel({ kind: "intel-scalable", nesting: true });
  const domain = attachNew(m, m.device(1), 1);
  expect(domain.map(0x1000n, 0x1000n, 0x1000n, 1)).toBe(EINVAL);
  expect(domain.map(0x1000n, 0x1000n, 0x1000n, 3)).toBeUndefined();
});

it("throws when device memory is mapped cacheable", () => {
  const m = miniKernel({ kind: "amd" });
  const domain = attachNew(m, m.device(1));
  expect(() => domain.map(0n, 0n, 0x1000n, 3 | 4 | 16)).toThrow(/cacheable/);
});

it.each([39, 48, 57] as const)("gives a legacy unit of %i bits that aperture", (addressWidth) => {
  const m = miniKernel({ kind: "intel-legacy", addressWidth });
  const domain = attachNew(m, m.device(1));
  expect(domain.geometry.apertureEnd).toBe((1n << BigInt(addressWidth)) - 1n);
  const last = domain.geometry.apertureEnd - 0xfffn;
  expect(domain.map(last, 0x4000n, 0x1000n, 3)).toBeUndefined();
  expect(m.iommu.translate(0x100, last, false)).toMatchObject({ pa: 0x4000n });
  expect(m.iommu.translate(0x100, domain.geometry.apertureEnd + 1n, false)).toMatchObject({ reason: 4 });
});

it("maps up to the last byte of 64 bits on an AMD unit that has them", () => {
  const m = miniKernel({ kind: "amd", addressWidth: 64 });
  const domain = attachNew(m, m.device(1));
  expect(domain.geometry.apertureEnd).toBe(0xffff_ffff_ffff_ffffn);
  expect(domain.map(0xffff_ffff_ffff_f000n, 0x4000n, 0x1000n, 3)).toBeUndefined();
  expect(m.iommu.translate(0x100, 0xffff_ffff_ffff_fff8n, true)).toEqual({ pa: 0x4ff8n, last: 0xffff_ffff_ffff_ffffn });
  expect(domain.unmap(0xffff_ffff_ffff_f000n, 0x1000n)).toBe(0x1000n);
  expect(m.iommu.translate(0x100, 0xffff_ffff_ffff_fff8n, true)).toMatchObject({ cause: "not-present" });
});

it.each<IommuDescription>([
  { kind: "intel-legacy", addressWidth: 64 },
  { kind: "amd", addressWidth: 39 },
])("refuses widths that $kind never has", (description) => {
  expect(() => miniKernel(description)).toThrow(RangeError);
});

it("maps with pages no larger than the unit has", () => {
  for (const [description, sizes] of [
    [{ kind: "intel-legacy", pages1g: false }, 0x20_1000n],
    [{ kind: "intel-legacy", pages2m: false, pages1g: false }, 0x1000n],
    [{ kind: "intel-first-stage" }, 0x4020_1000n],
    [{ kind: "amd", pages2m: false }, 0x1000n],
  ] as const) {
    const m = miniKernel(description);
    const domain = attachNew(m, m.device(1));
    expect(domain.pgsizeBitmap).toBe(sizes);
    expect(domain.pageTable.pgsizeBitmap).toBe(sizes);
    domain.map(0n, 0n, 0x4000_0000n, 3);
    const largest = [0x4000_0000n, 0x20_0000n, 0x1000n].find((s) => (sizes & s) !== 0n) ?? 0n;
    expect(m.iommu.translate(0x100, 0x234n, true)).toMatchObject({ last: largest - 1n });
  }
});
