import { afterEach, describe, expect, it } from "vitest";
import { EBUSY, EINVAL, EOPNOTSUPP, EPERM } from "../../../src/lib/index.ts";
import { attachNew, groupOf, type MiniKernel, miniKernel, unitOf } from "./mini_kernel.ts";

let m: MiniKernel;
const users = (): number =>
  m.events.reduce((n, e) => n + (e.type === "iommu.claim" && e.errno === undefined ? 1 : e.type === "iommu.release" ? -1 : 0), 0);

describe("DMA ownership of a group", () => {
  it("blocks the group until something is attached, and gives it back to the DMA API at the end", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const group = groupOf(dev);
    expect(group.domain).toBe(group.defaultDomain);
    expect(m.run(group.claimDmaOwner("a"))).toBeUndefined();
    expect(group.domain?.type).toBe("blocked");
    expect(m.iommu.translate(dev.rid, 0n, true)).toMatchObject({ cause: "no-domain" });
    const domain = attachNew(m, dev);
    expect(group.domain).toBe(domain);
    m.run(group.detachHandle(domain));
    expect(group.domain?.type).toBe("blocked");
    m.run(group.releaseDmaOwner());
    expect(group.domain).toBe(group.defaultDomain);
  });

  it("is shared by claims of one owner and refused to another", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const group = groupOf(m.device(1));
    expect(m.run(group.claimDmaOwner("a"))).toBeUndefined();
    expect(m.run(group.claimDmaOwner("a"))).toBeUndefined();
    expect(m.run(group.claimDmaOwner("b"))).toBe(EPERM);
    expect(m.run(group.claimWholeGroup("a"))).toBe(EPERM);
    m.run(group.releaseDmaOwner());
    expect(m.run(group.claimDmaOwner("b"))).toBe(EPERM);
    m.run(group.releaseDmaOwner());
    expect(m.run(group.claimDmaOwner("b"))).toBeUndefined();
    m.run(group.releaseDmaOwner());
    expect(users()).toBe(0);
  });

  it("is refused while a driver uses the DMA API, and the DMA API while it is owned", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const group = groupOf(m.device(1));
    expect(m.run(group.useDefaultDomain())).toBeUndefined();
    expect(m.run(group.claimDmaOwner("a"))).toBe(EPERM);
    m.run(group.unuseDefaultDomain());
    m.run(group.claimDmaOwner("a"));
    expect(m.run(group.useDefaultDomain())).toBe(EBUSY);
    m.run(group.releaseDmaOwner());
    expect(m.run(group.useDefaultDomain())).toBeUndefined();
  });

  it("is refused to a group with a device that firmware wants mapped one to one", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const group = groupOf(m.device(1, { requireDirect: true }));
    expect(m.run(group.claimDmaOwner("a"))).toBe(EINVAL);
    expect(group.domain).toBe(group.defaultDomain);
    expect(group.dmaOwnerClaimed).toBe(false);
  });

  it("cannot be given back with something attached, or by nobody", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    attachNew(m, dev);
    expect(() => m.run(groupOf(dev).releaseDmaOwner())).toThrow(/ownership/);
    const other = groupOf(m.device(2));
    expect(() => m.run(other.releaseDmaOwner())).toThrow(/ownership/);
  });
});

describe("the domain of a group", () => {
  it("is taken once: a second attach is busy, a replace moves every device at once", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const a = m.device(1);
    const b = m.device(2, { group: groupOf(a) });
    const first = attachNew(m, a);
    const second = m.run(unitOf(a).domainAllocPagingFlags(a, 0));
    if (!("map" in second)) throw new Error(second.name);
    expect(m.run(groupOf(a).attachHandle(second, { domain: second }))).toBe(EBUSY);
    second.map(0x1000n, 0x9000n, 0x1000n, 3);
    const handle = { domain: second };
    expect(m.run(groupOf(a).replaceHandle(second, handle))).toBeUndefined();
    expect(groupOf(b).handleOf()).toBe(handle);
    for (const d of [a, b]) expect(m.iommu.translate(d.rid, 0x1000n, false)).toMatchObject({ pa: 0x9000n });
    expect(first.users.size).toBe(0);
    expect(second.users.size).toBe(2);
    expect(() => second.free()).toThrow(/2 devices attached/);
    m.run(groupOf(a).detachHandle(second));
    second.free();
    first.free();
    m.run(groupOf(a).releaseDmaOwner());
  });

  it("goes back where it was when one device of the group refuses the new one", () => {
    m = miniKernel({ kind: "intel-legacy" }, { kind: "intel-legacy", addressWidth: 39 });
    const narrow = m.iommu.units[1];
    if (narrow === undefined) throw new Error("no second unit");
    const a = m.device(1);
    const b = m.device(2, { group: groupOf(a), unit: narrow });
    const made = m.run(narrow.domainAllocPagingFlags(b, 0));
    const wide = m.run(unitOf(a).domainAllocPagingFlags(a, 0));
    if (!("map" in made) || !("map" in wide)) throw new Error("no domain");
    m.run(groupOf(a).claimDmaOwner("x"));
    expect(m.run(groupOf(a).attachHandle(made, { domain: made }))).toBeUndefined();
    expect(m.run(groupOf(a).replaceHandle(wide, { domain: wide }))).toBe(EINVAL);
    expect(groupOf(a).domain).toBe(made);
    made.map(0n, 0x1000n, 0x1000n, 3);
    expect(m.iommu.translate(a.rid, 0n, true)).toMatchObject({ pa: 0x1000n });
    // The device that refused was blocked before it looked, and stays so: as Linux leaves it.
    expect(m.iommu.translate(b.rid, 0n, true)).toMatchObject({ cause: "no-domain" });
  });
});

describe("a PASID", () => {
  const setup = (maxPasids: number) => {
    m = miniKernel({ kind: "intel-scalable", pasid: true });
    const dev = m.device(1, { maxPasids });
    const domain = m.run(unitOf(dev).domainAllocPagingFlags(dev, 8));
    if (!("map" in domain)) throw new Error(domain.name);
    m.run(groupOf(dev).claimDmaOwner("x"));
    return { dev, domain, group: groupOf(dev) };
  };

  it("has its own domain, apart from the requests without one", () => {
    const { dev, domain, group } = setup(16);
    domain.map(0x1000n, 0x5000n, 0x1000n, 3);
    expect(m.run(group.attachPasid(domain, dev, 3, { domain }))).toBeUndefined();
    expect(m.iommu.translate(dev.rid, 0x1000n, true, 3)).toMatchObject({ pa: 0x5000n });
    expect(m.iommu.translate(dev.rid, 0x1000n, true, 4)).toMatchObject({ cause: "no-pasid" });
    expect(m.iommu.translate(dev.rid, 0x1000n, true)).toMatchObject({ cause: "no-domain" });
    expect(m.run(group.attachPasid(domain, dev, 3, { domain }))).toBe(EBUSY);
    expect(m.run(group.attachPasid(domain, dev, 16, { domain }))).toBe(EINVAL);
    expect(m.run(group.attachPasid(domain, dev, 0, { domain }))).toBe(EINVAL);
    expect(m.run(group.replacePasid(domain, dev, 5, { domain }))).toBe(EINVAL);
    expect(group.attachedPasids).toEqual([3]);
    m.run(group.detachPasid(3));
    expect(m.iommu.translate(dev.rid, 0x1000n, true, 3)).toMatchObject({ cause: "no-pasid", text: expect.stringContaining("PASID 0x3") });
    domain.free();
  });

  it("moves to another domain", () => {
    const { dev, domain, group } = setup(16);
    const other = m.run(unitOf(dev).domainAllocPagingFlags(dev, 8));
    if (!("map" in other)) throw new Error(other.name);
    other.map(0x1000n, 0x8000n, 0x1000n, 3);
    m.run(group.attachPasid(domain, dev, 3, { domain }));
    expect(m.run(group.replacePasid(other, dev, 3, { domain: other }))).toBeUndefined();
    expect(m.iommu.translate(dev.rid, 0x1000n, true, 3)).toMatchObject({ pa: 0x8000n });
    m.run(group.detachPasid(3));
    expect([domain.users.size, other.users.size]).toEqual([0, 0]);
  });

  it("cannot be attached for a unit without PASIDs", () => {
    m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1, { maxPasids: 16 });
    const direct = unitOf(dev);
    expect(direct.requesters.get(dev.rid)?.maxPasids).toBe(0);
    expect(direct.setPasid(dev, 1, direct.identityDomain)).toBe(EOPNOTSUPP);
  });
});

afterEach(() => {
  for (const e of m.events) if (e.type === "iommu.detach") expect(e.device).not.toBe("");
});
