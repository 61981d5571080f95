/** The contract itself: who agrees on what, and what becomes of those who do not keep it. Titles in quotes are objections of its reviewers. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BYTES, PAGE, PairScene } from "../../conformance/negotiate/scene.ts";
import type { DmaBuf, DmaBufOps } from "../../src/kernel/dma_buf/buffer.ts";
import { dmaBufExport, dmaBufPut } from "../../src/kernel/dma_buf/dma_buf.ts";
import { GpuImport } from "../../src/kernel/dma_buf/importers/gpu.ts";
import {
  dmaBufAcquire,
  dmaBufLeave,
  dmaBufNegotiate,
  dmaBufRelease,
  type NegotiatedAttachment,
  type NegotiatedImporter,
} from "../../src/kernel/dma_buf/negotiated/attachment.ts";
import {
  type ExporterOffer,
  type ImporterOffer,
  type PhysRange,
  RevokeLevel,
  type RevokeReason,
} from "../../src/kernel/dma_buf/negotiated/contract.ts";
import type { DmaHandle } from "../../src/kernel/dma_buf/negotiated/dma_converter.ts";
import type { MappingHandle } from "../../src/kernel/dma_buf/negotiated/handle.ts";
import type { IommuHandle } from "../../src/kernel/dma_buf/negotiated/iommu_converter.ts";
import { matchMapping } from "../../src/kernel/dma_buf/negotiated/match.ts";
import { dmaBufRestore, dmaBufRevoke } from "../../src/kernel/dma_buf/negotiated/revoke.ts";
import { dmaRead } from "../../src/kernel/pci/dma.ts";
import { physAddr } from "../../src/lib/addr.ts";
import { EBUSY, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EPERM, Errno } from "../../src/lib/errno.ts";
import type { Step } from "../../src/sched/task.ts";
import { O_RDWR } from "../../src/uapi/index.ts";
import { ok } from "../harness.ts";

const ADAPTER = "0000:04:00.0";

let s: PairScene;
beforeEach(() => {
  s = new PairScene();
});
afterEach(() => {
  s.host.kernel.sched.settle();
  expect(s.end()).toEqual({});
});

/** An exporter of the given ranges; what it was asked to do stands in `log`. */
function exported(ranges: readonly PhysRange[], offers: readonly ExporterOffer[], log: string[] = []): DmaBuf {
  const ops: DmaBufOps = {
    *mapDmaBuf(): Step<Errno> {
      return EOPNOTSUPP;
    },
    *unmapDmaBuf(): Step<void> {},
    *release(): Step<void> {},
    negotiated: {
      offers: () => offers,
      *place() {
        log.push("place");
        return ranges;
      },
      unplace: () => void log.push("unplace"),
      fence: () => void log.push("fence"),
      unfence: () => void log.push("unfence"),
    },
  };
  const size = ranges.reduce((n, r) => n + r.len, 0n);
  s.host.kernel.modules.load("test");
  return ok(dmaBufExport(s.host.kernel, { expName: "test", owner: "test", ops, size, flags: O_RDWR, priv: undefined }));
}

const ram = (paddr: bigint, len: bigint): PhysRange => ({
  paddr: physAddr(paddr),
  len,
  kind: "ram",
  cache: "cached",
  provider: undefined,
});

const put = (dmabuf: DmaBuf): void => s.run(drop(dmabuf));
function* drop(dmabuf: DmaBuf): Step<void> {
  dmaBufPut(dmabuf);
}

const acquire = (att: NegotiatedAttachment, write = true): MappingHandle | Errno => s.run(locked(att.dmabuf, dmaBufAcquire(att, write)));
const release = (handle: MappingHandle): void => s.run(locked(handle.att.dmabuf, releasing(handle)));
function* releasing(handle: MappingHandle): Step<void> {
  dmaBufRelease(handle);
}
function* locked<T>(dmabuf: DmaBuf, body: Step<T>): Step<T> {
  yield* dmabuf.resv.lock();
  try {
    return yield* body;
  } finally {
    dmabuf.resv.unlock();
  }
}

const negotiate = (dmabuf: DmaBuf, offers: readonly ImporterOffer[], importer: NegotiatedImporter): NegotiatedAttachment | Errno =>
  s.run(dmaBufNegotiate(dmabuf, offers, importer));

const contract = (dmabuf: DmaBuf): NonNullable<DmaBuf["negotiated"]> => {
  if (dmabuf.negotiated === undefined) throw new Error("no contract");
  return dmabuf.negotiated;
};

/** An importer that says it lets go, notes why it was asked, and does nothing. */
function stubborn(reasons: RevokeReason[] = [], answer?: Errno): NegotiatedImporter {
  return {
    name: "stubborn",
    *invalidate(_att, reason) {
      reasons.push(reason);
      return answer;
    },
  };
}

const SYNC_IOMMU: ImporterOffer = { type: "iommu", level: RevokeLevel.sync };
const ANY_IOMMU: ExporterOffer = { type: "iommu", minLevel: RevokeLevel.none };

describe("match", () => {
  const view = { trusted: new Set(["kvm"]), importerName: "someone" };
  const exp = (type: ExporterOffer["type"], minLevel: RevokeLevel = RevokeLevel.none): ExporterOffer => ({ type, minLevel });

  it("takes the exporter's first type that the importer knows, in whatever order the importer has them", () => {
    const importer: ImporterOffer[] = [{ type: "private", uuid: "x", level: RevokeLevel.none }, SYNC_IOMMU];
    const offers: ExporterOffer[] = [exp("iommu"), { ...exp("private"), uuid: "x" }];
    expect(matchMapping(offers, importer, view)).toMatchObject({ type: "iommu" });
    expect(matchMapping([...offers].reverse(), importer, view)).toMatchObject({ type: "private" });
  });

  it("goes on after a veto of 'not this one', and ends with any other", () => {
    const offers = (veto: Errno): ExporterOffer[] => [
      { ...exp("iommu"), veto: () => veto },
      { ...exp("private"), uuid: "x" },
    ];
    const importer: ImporterOffer[] = [SYNC_IOMMU, { type: "private", uuid: "x", level: RevokeLevel.none }];
    expect(matchMapping(offers(EOPNOTSUPP), importer, view)).toMatchObject({ type: "private" });
    expect(matchMapping(offers(EPERM), importer, view)).toBe(EPERM);
  });

  it("passes an importer by that lets go less well than the exporter needs: 'should unbounded fences claim revocable?'", () => {
    const bounded: ImporterOffer = { ...SYNC_IOMMU, level: RevokeLevel.bounded };
    expect(matchMapping([exp("iommu", RevokeLevel.sync)], [bounded], view)).toBe(EOPNOTSUPP);
    expect(matchMapping([exp("iommu", RevokeLevel.bounded)], [bounded], view)).toMatchObject({ type: "iommu" });
  });

  it("gives a private type to those that know its UUID: 'type versioning for out-of-tree modules'", () => {
    const offers: ExporterOffer[] = [{ ...exp("private"), uuid: "x-2" }];
    expect(matchMapping(offers, [{ type: "private", uuid: "x-1", level: RevokeLevel.none }], view)).toBe(EOPNOTSUPP);
    expect(matchMapping(offers, [{ type: "private", uuid: "x-2", level: RevokeLevel.none }], view)).toMatchObject({ type: "private" });
  });

  it("gives physical ranges to those on the core's list alone: 'raw addresses are a repeated disaster'", () => {
    const importer: ImporterOffer[] = [{ type: "phys", level: RevokeLevel.sync }];
    expect(matchMapping([exp("phys")], importer, view)).toBe(EOPNOTSUPP);
    expect(matchMapping([exp("phys")], importer, { ...view, importerName: "kvm" })).toMatchObject({ type: "phys" });
  });

  it("asks the exporter for nothing, and takes no lock: 'the callback asserted a lock that attach does not hold'", () => {
    const log: string[] = [];
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [{ ...ANY_IOMMU, veto: () => EPERM }], log);
    const { sched } = s.host.kernel;
    let answer: unknown;
    const other = sched.thread("holder");
    sched.start(other, locked(dmabuf, paused()));
    sched.step(other);
    expect(dmabuf.resv.locked).toBe(true);
    const importer = sched.thread("importer");
    sched.start(
      importer,
      answering(dmabuf, (r) => (answer = r)),
    );
    sched.step(importer);
    expect([answer, importer.state]).toEqual([EPERM, "done"]);
    sched.step(other);
    expect(log).toEqual([]);
    put(dmabuf);
  });
});

function* paused(): Step<void> {
  yield { op: "wait", on: { name: "the test" } };
}

function* answering(dmabuf: DmaBuf, told: (r: unknown) => void): Step<void> {
  told(yield* dmaBufNegotiate(dmabuf, [SYNC_IOMMU], stubborn()));
}

describe("a revoke", () => {
  it("tells the reason, and the core makes nothing permanent by itself: 'notify never meant permanent loss'", () => {
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [ANY_IOMMU]);
    const reasons: RevokeReason[] = [];
    const att = ok(negotiate(dmabuf, [SYNC_IOMMU], stubborn(reasons)));
    for (const reason of ["temporary", "temporary", "permanent", "permanent"] as const) s.run(dmaBufRevoke(contract(dmabuf), reason));
    expect(reasons).toEqual(["temporary", "permanent"]);
    expect(s.run(dmaBufRestore(contract(dmabuf)))).toBeUndefined();
    expect(contract(dmabuf).state).toBe("dead");
    expect(acquire(att)).toBe(ENODEV);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  });

  it("waits for the mapping and not for the fence: 'fences retired is not addresses unused'", () => {
    const { dmabuf, fd } = s.export("vfio");
    dmabuf.file.get();
    const gpu = ok(s.run(GpuImport.import(s.pdev(ADAPTER), dmabuf)));
    const byte = new Uint8Array(1);
    const fence = ok(s.run(gpu.submit({ offset: 0n, bytes: byte, write: false, ns: 5_000_000 })));
    const { sched } = s.host.kernel;
    const before = sched.now;
    s.peer.setMemoryEnabled(false);
    expect(sched.now - before).toBeGreaterThanOrEqual(5_000_000);
    expect([fence.signalled, fence.error, gpu.handle, contract(dmabuf).epoch.number]).toEqual([true, undefined, undefined, 1]);
    s.run(gpu.close());
    fd.close();
  });

  it("takes the pages from an importer whose callback does nothing, and names it: 'it had advertised with a no-op callback'", () => {
    const dmabuf = exported([ram(0x20_0000n, 2n * PAGE)], [ANY_IOMMU]);
    const att = ok(negotiate(dmabuf, [SYNC_IOMMU], stubborn()));
    const handle = acquire(att) as IommuHandle;
    const domain = s.engineDomain();
    expect(handle.map(domain, 0x5000_0000n, 0n, 2n * PAGE, 3)).toBeUndefined();
    const { sched } = s.host.kernel;
    const before = sched.now;
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toEqual({ broken: ["stubborn"], severed: 1, fenced: 0 });
    // It promised to be done by the return of its callback.
    expect(sched.now).toBe(before);
    expect(domain.iovaToPhys(0x5000_0000n)).toBeUndefined();
    expect(handle.map(domain, 0x5000_0000n, 0n, PAGE, 3)).toBe(ENODEV);
    // What is severed does not keep the buffer from others.
    s.run(dmaBufRestore(contract(dmabuf)));
    expect(contract(dmabuf).state).toBe("live");
    release(handle);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  });

  it("keeps the IOVAs of a severed mapping taken, so that a late access faults and meets nobody", () => {
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [{ type: "dma", minLevel: RevokeLevel.none }]);
    const dev = s.pdev(ADAPTER);
    const offer: ImporterOffer = { type: "dma", dev, peer2peer: true, level: RevokeLevel.bounded, boundNs: 1000 };
    const late = ok(negotiate(dmabuf, [offer], stubborn()));
    const handle = acquire(late) as DmaHandle;
    const address = handle.segments[0]?.address as bigint;
    expect(dmaRead(dev.fn, address, new Uint8Array(1))).toBe(true);
    const { sched } = s.host.kernel;
    const before = sched.now;
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toEqual({ broken: ["stubborn"], severed: 1, fenced: 0 });
    expect(sched.now - before).toBe(1000);
    expect(dmaRead(dev.fn, address, new Uint8Array(1))).toBe(false);
    s.run(dmaBufRestore(contract(dmabuf)));
    const other = ok(negotiate(dmabuf, [offer], stubborn()));
    const second = acquire(other) as DmaHandle;
    expect(second.segments[0]?.address).not.toBe(address);
    for (const h of [second, handle]) release(h);
    for (const a of [late, other]) s.run(dmaBufLeave(a));
    put(dmabuf);
  });

  it("does not wait for an importer that answers 'I cannot'", () => {
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [{ type: "dma", minLevel: RevokeLevel.none }]);
    const dev = s.pdev(ADAPTER);
    const offer: ImporterOffer = { type: "dma", dev, peer2peer: true, level: RevokeLevel.bounded, boundNs: 1000 };
    const att = ok(negotiate(dmabuf, [offer], stubborn([], ENOMEM)));
    const handle = acquire(att) as DmaHandle;
    const { sched } = s.host.kernel;
    const before = sched.now;
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toMatchObject({ severed: 1 });
    expect(sched.now).toBe(before);
    release(handle);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  });

  it("gives an importer its time, although another of the same name has failed", () => {
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [{ type: "dma", minLevel: RevokeLevel.none }]);
    const offer: ImporterOffer = { type: "dma", dev: s.pdev(ADAPTER), peer2peer: true, level: RevokeLevel.bounded, boundNs: 1000 };
    const { sched } = s.host.kernel;
    let good: MappingHandle | undefined;
    const slow: NegotiatedImporter = {
      name: "stubborn",
      *invalidate() {
        sched.timer(500, () => sched.spawn("late", () => locked(dmabuf, releasing(good as MappingHandle))));
        return undefined;
      },
    };
    const first = ok(negotiate(dmabuf, [offer], stubborn([], ENOMEM)));
    const bad = acquire(first) as MappingHandle;
    const second = ok(negotiate(dmabuf, [offer], slow));
    good = acquire(second) as MappingHandle;
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toEqual({ broken: ["stubborn"], severed: 1, fenced: 0 });
    expect([bad.severed, good.severed]).toEqual([true, false]);
    release(bad);
    for (const a of [first, second]) s.run(dmaBufLeave(a));
    put(dmabuf);
  });

  it("is not undone while it waits", () => {
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [{ type: "dma", minLevel: RevokeLevel.none }]);
    const offer: ImporterOffer = { type: "dma", dev: s.pdev(ADAPTER), peer2peer: true, level: RevokeLevel.bounded, boundNs: 1000 };
    const { sched } = s.host.kernel;
    const att = ok(negotiate(dmabuf, [offer], stubborn()));
    const handle = acquire(att) as MappingHandle;
    const answers: unknown[] = [];
    sched.timer(500, () => {
      sched.spawn("restore", function* () {
        answers.push(yield* dmaBufRestore(contract(dmabuf)), contract(dmabuf).state);
      });
    });
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toMatchObject({ severed: 1 });
    expect(answers).toEqual([EBUSY, "revoked"]);
    release(handle);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  });

  it("finds every domain that a handle was mapped into", () => {
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [ANY_IOMMU]);
    const att = ok(negotiate(dmabuf, [SYNC_IOMMU], stubborn()));
    const handle = acquire(att) as IommuHandle;
    const domains = [s.engineDomain(), s.laterDomain()];
    for (const d of domains) expect(handle.map(d, 0x5000_0000n, 0n, PAGE, 3)).toBeUndefined();
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toMatchObject({ severed: 1 });
    expect(domains.map((d) => d.iovaToPhys(0x5000_0000n))).toEqual([undefined, undefined]);
    release(handle);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  });

  it("has the exporter fence what the core has not in its hands, and stays revoked until that is given back", () => {
    const log: string[] = [];
    const dmabuf = exported([ram(0x20_0000n, PAGE)], [{ type: "phys", minLevel: RevokeLevel.bounded }], log);
    const importer = { ...stubborn(), name: "kvm" };
    const att = ok(negotiate(dmabuf, [{ type: "phys", level: RevokeLevel.bounded, boundNs: 10 }], importer));
    const handle = acquire(att) as MappingHandle;
    expect(s.run(dmaBufRevoke(contract(dmabuf), "temporary"))).toEqual({ broken: ["kvm"], severed: 0, fenced: 1 });
    expect(s.run(dmaBufRestore(contract(dmabuf)))).toBe(EBUSY);
    expect(contract(dmabuf).state).toBe("revoked");
    release(handle);
    expect(s.run(dmaBufRestore(contract(dmabuf)))).toBeUndefined();
    expect(log).toEqual(["place", "fence", "unplace", "unfence"]);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  });
});

describe("the converter for page tables", () => {
  const BAR_RANGE = (): PhysRange => ({
    paddr: physAddr(s.host.barAddress("0000:02:00.0", 2) as bigint),
    len: PAGE,
    kind: "mmio",
    cache: "uncached",
    provider: undefined,
  });

  function opened(ranges: readonly PhysRange[]): { dmabuf: DmaBuf; att: NegotiatedAttachment; handle: IommuHandle } {
    const dmabuf = exported(ranges, [ANY_IOMMU]);
    const importer: NegotiatedImporter = {
      name: "table",
      *invalidate() {
        return undefined;
      },
    };
    const att = ok(negotiate(dmabuf, [SYNC_IOMMU], importer));
    return { dmabuf, att, handle: ok(acquire(att)) as IommuHandle };
  }

  function closed({ dmabuf, att, handle }: ReturnType<typeof opened>): void {
    release(handle);
    s.run(dmaBufLeave(att));
    put(dmabuf);
  }

  it("maps each range as it can be cached: 'cacheability bit missing'", () => {
    const o = opened([ram(0x20_0000n, PAGE), BAR_RANGE(), { ...ram(0x30_0000n, PAGE), cache: "write-combined" }]);
    const prots: number[] = [];
    const domain = {
      map: (_iova: bigint, _pa: bigint, _length: bigint, prot: number): undefined => void prots.push(prot),
      unmap: (_iova: bigint, length: bigint): bigint => length,
    };
    expect(o.handle.map(domain, 0x1000n, 0n, 3n * PAGE, 3)).toBeUndefined();
    // IOMMU_CACHE is 4, IOMMU_MMIO 16.
    expect(prots).toEqual([3 | 4, 3 | 16, 3]);
    o.handle.unmap(domain, 0x1000n, 3n * PAGE);
    closed(o);
  });

  it("serves several domains, slices, and domains that come after the attach", () => {
    const o = opened([ram(0x20_0000n, 2n * PAGE), ram(0x40_0000n, 2n * PAGE)]);
    const first = s.engineDomain();
    expect(o.handle.map(first, 0x5000_0000n, PAGE, 2n * PAGE, 3)).toBeUndefined();
    expect([first.iovaToPhys(0x5000_0000n), first.iovaToPhys(0x5000_1000n)]).toEqual([0x20_1000n, 0x40_0000n]);
    const later = s.laterDomain();
    expect(o.handle.map(later, 0x1000n, 0n, 4n * PAGE, 1)).toBeUndefined();
    expect(later.iovaToPhys(0x4000n)).toBe(0x40_1000n);
    expect(o.handle.mapped).toBe(2);
    o.handle.unmap(first, 0x5000_0000n, 2n * PAGE);
    o.handle.unmap(later, 0x1000n, 4n * PAGE);
    closed(o);
  });

  it("leaves nothing of a map that fails half way, nor of one past the end", () => {
    const o = opened([ram(0x20_0000n, PAGE), ram(0x40_0000n, PAGE)]);
    const domain = s.engineDomain();
    // The second page is taken.
    expect(domain.map(0x5000_1000n, 0x60_0000n, PAGE, 3)).toBeUndefined();
    expect(o.handle.map(domain, 0x5000_0000n, 0n, 2n * PAGE, 3)).toBeInstanceOf(Errno);
    expect(domain.iovaToPhys(0x5000_0000n)).toBeUndefined();
    expect(domain.unmap(0x5000_1000n, PAGE)).toBe(PAGE);
    expect(o.handle.map(domain, 0x5000_0000n, PAGE, 2n * PAGE, 3)).toBe(EINVAL);
    expect(domain.iovaToPhys(0x5000_0000n)).toBeUndefined();
    expect(o.handle.mapped).toBe(0);
    closed(o);
  });
});

it("an attachment has no device, and says so nowhere: the type that needs one has it", () => {
  const { fd, dmabuf } = s.export("vfio");
  s.ioas.mapFile(fd, { length: BYTES });
  const [att] = contract(dmabuf).attachments;
  expect(Object.keys(att ?? {})).not.toContain("dev");
  expect(att?.agreement.importer).not.toHaveProperty("dev");
});

it("an exporter is shown no domain: 'give the exporter the domain and let it map'", () => {
  const { fd, dmabuf } = s.export("vfio");
  s.ioas.mapFile(fd, { length: BYTES });
  const [att] = contract(dmabuf).attachments;
  // All that `place` and the exporter's veto are given of the importer.
  expect(Object.keys(att?.agreement.importer ?? {}).sort()).toEqual(["level", "requesters", "type"]);
});
