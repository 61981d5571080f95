/** Page requests, from the unit to a domain's handler and back: drivers/iommu/io-pgfault.c. */
import { beforeEach, describe, expect, test } from "vitest";
import { Device } from "../../../src/kernel/device.ts";
import type { IommuDomain } from "../../../src/kernel/iommu/domain.ts";
import type { AttachHandle } from "../../../src/kernel/iommu/group.ts";
import {
  type IopfGroup,
  IopfQueue,
  PAGE_REQUEST_LAST_PAGE,
  PAGE_REQUEST_PASID_VALID,
  type PageRequest,
  reportDeviceFault,
} from "../../../src/kernel/iommu/io_pagefault.ts";
import { type MockDevice, MockIommu } from "../../../src/kernel/iommu/mock.ts";
import { EBUSY, EINVAL, EIO, ENODEV, ENOMEM } from "../../../src/lib/errno.ts";
import type { TraceEvent } from "../../../src/trace/events.ts";
import { IOMMU_HWPT_ALLOC_PASID, MOCK_FLAGS_DEVICE_PASID } from "../../../src/uapi/index.ts";
import { boot, expectNothingLeaks, ok, run } from "../../harness.ts";

const LAST = PAGE_REQUEST_LAST_PAGE;

class Bench {
  readonly #booted = boot();
  readonly kernel = this.#booted.kernel;
  readonly unit = new MockIommu(this.kernel);
  readonly dev: MockDevice;
  readonly events: TraceEvent[] = [];
  /** What the handler of `domain()` was given. */
  readonly groups: IopfGroup[] = [];
  readonly #domains: IommuDomain[] = [];

  constructor(flags: number = MOCK_FLAGS_DEVICE_PASID) {
    this.dev = ok(this.unit.createDevice(flags));
    this.kernel.trace.listen((r) => this.events.push(r.event));
    run(this.#booted.p, this.group.claimDmaOwner(this));
  }

  get group(): NonNullable<MockDevice["iommuGroup"]> {
    const g = this.dev.iommuGroup;
    if (g === undefined) throw new Error("no group");
    return g;
  }

  /** A domain whose handler keeps what it is given. */
  domain(handles = true): IommuDomain {
    const d = run(this.#booted.p, this.unit.domainAllocPagingFlags(this.dev, IOMMU_HWPT_ALLOC_PASID));
    if (handles) {
      d.iopfHandler = (g) => {
        this.groups.push(g);
        return undefined;
      };
    }
    this.#domains.push(d);
    return d;
  }

  attach(domain: IommuDomain): AttachHandle {
    const handle = { domain };
    expect(this.#booted.p.run(this.group.replaceHandle(domain, handle))).toBeUndefined();
    return handle;
  }

  attachPasid(domain: IommuDomain, pasid: number): void {
    expect(this.#booted.p.run(this.group.attachPasid(domain, this.dev, pasid, { domain }))).toBeUndefined();
  }

  detach(domain: IommuDomain): void {
    this.#booted.p.run(this.group.detachHandle(domain));
  }

  detachPasid(pasid: number): void {
    this.#booted.p.run(this.group.detachPasid(pasid));
  }

  report(init: Partial<PageRequest> = {}): ReturnType<typeof reportDeviceFault> {
    return reportDeviceFault(this.dev, { flags: LAST, pasid: 0, grpid: 0, perm: 1, addr: 0x1000n, ...init });
  }

  get answers(): [pasid: number, grpid: number, code: string][] {
    return this.events.flatMap((e) => (e.type === "iommu.page_response" ? [[e.pasid, e.grpid, e.code]] : []));
  }

  end(): void {
    this.#booted.p.run(this.group.releaseDmaOwner());
    this.unit.destroyDevice(this.dev);
    for (const d of this.#domains) d.free();
    expectNothingLeaks(this.kernel);
  }
}

let b: Bench;
beforeEach(() => {
  b = new Bench();
});

describe("a device", () => {
  test("is in its unit's queue from the first domain that handles requests to the last", () => {
    const [one, two, plain] = [b.domain(), b.domain(), b.domain(false)];
    const queued = (): boolean => b.dev.faultParam !== undefined;
    b.attach(plain);
    expect(queued()).toBe(false);
    b.attach(one);
    expect(queued()).toBe(true);
    const param = b.dev.faultParam;
    b.attach(two);
    b.attachPasid(one, 3);
    b.attach(plain);
    // It never left.
    expect(b.dev.faultParam).toBe(param);
    b.detachPasid(3);
    expect(queued()).toBe(false);
    b.detach(plain);
    b.end();
  });

  test("is in one queue at a time, of a unit that can answer", () => {
    const q = new IopfQueue(b.kernel, "one");
    const other = new IopfQueue(b.kernel, "other");
    expect(q.addDevice(b.dev)).toBeUndefined();
    expect(other.addDevice(b.dev)).toBe(EBUSY);
    expect(() => other.removeDevice(b.dev)).toThrow("is not in the queue other");
    q.removeDevice(b.dev);
    expect(() => q.removeDevice(b.dev)).toThrow("is not in the queue one");
    expect(q.addDevice(new Device("0000:09:00.0", "pci", 0x900))).toBe(ENODEV);
    b.end();
  });

  test("that cannot be queued for want of memory keeps the domain it had", () => {
    const [plain, domain] = [b.domain(false), b.domain()];
    b.attach(plain);
    b.kernel.fault.decide((p) => p.what === "iommu_fault_param");
    const p = b.kernel.fs.createProcess();
    expect(p.run(b.group.replaceHandle(domain, { domain }))).toBe(ENOMEM);
    b.kernel.fault.decide(undefined);
    expect(b.group.domain).toBe(plain);
    b.detach(plain);
    b.end();
  });
});

describe("requests", () => {
  test("wait for the last of their group, in order, and groups do not mix", () => {
    const domain = b.domain();
    const handle = b.attach(domain);
    b.report({ flags: 0, grpid: 1, addr: 0x1000n });
    b.report({ flags: 0, grpid: 2, addr: 0xa000n });
    b.report({ flags: 0, grpid: 1, addr: 0x2000n });
    expect(b.groups).toEqual([]);
    b.report({ grpid: 1, addr: 0x3000n });
    b.report({ grpid: 2, addr: 0xb000n });
    expect(b.groups.map((g) => g.faults.map((f) => f.addr))).toEqual([
      [0x1000n, 0x2000n, 0x3000n],
      [0xa000n, 0xb000n],
    ]);
    expect(b.groups.every((g) => g.handle === handle)).toBe(true);
    for (const g of b.groups) {
      g.respond("success");
      g.free();
    }
    expect(b.answers).toEqual([
      [0, 1, "success"],
      [0, 2, "success"],
    ]);
    b.detach(domain);
    b.end();
  });

  test("of the same group and different PASIDs are one group, as they carry one index", () => {
    const domain = b.domain();
    b.attach(domain);
    b.attachPasid(domain, 4);
    b.report({ flags: 0, grpid: 1 });
    b.report({ flags: LAST | PAGE_REQUEST_PASID_VALID, pasid: 4, grpid: 1 });
    expect(b.groups.map((g) => g.faults.map((f) => f.pasid))).toEqual([[0, 4]]);
    b.groups[0]?.respond("success");
    b.groups[0]?.free();
    expect(b.answers).toEqual([[4, 1, "success"]]);
    b.detachPasid(4);
    b.detach(domain);
    b.end();
  });

  test("that nobody handles are answered at once, the last of a group or not", () => {
    expect(b.report({ flags: 0, grpid: 1 })).toBe(EINVAL);
    const plain = b.domain(false);
    b.attach(plain);
    expect(b.report({ grpid: 2 })).toBe(EINVAL);
    expect(b.report({ flags: LAST | PAGE_REQUEST_PASID_VALID, pasid: 8, grpid: 3 })).toBe(EINVAL);
    expect(b.answers).toEqual([
      [0, 1, "invalid"],
      [0, 2, "invalid"],
      [8, 3, "invalid"],
    ]);
    b.detach(plain);
    b.end();
  });

  test("of a PASID that is attached to a device without PASIDs are answered at once: no driver put it in a queue", () => {
    const bare = new Bench(0);
    // The selftest's devices have one PASID at least; a device whose bus or firmware tells of none has none.
    const requester = bare.dev.iommuUnit?.requesters.get(bare.dev.rid);
    if (requester === undefined) throw new Error("the device is behind no unit");
    requester.maxPasids = 0;
    const domain = bare.domain();
    bare.attachPasid(domain, 8);
    expect(bare.dev.faultParam).toBeUndefined();
    expect(bare.report({ flags: LAST | PAGE_REQUEST_PASID_VALID, pasid: 8, grpid: 3 })).toBe(EINVAL);
    expect(bare.answers).toEqual([[8, 3, "invalid"]]);
    bare.detachPasid(8);
    bare.end();
  });

  test("that a handler refuses are answered with a failure", () => {
    const domain = b.domain();
    domain.iopfHandler = () => EIO;
    b.attach(domain);
    b.report({ flags: 0, grpid: 5 });
    expect(b.report({ grpid: 5 })).toBeUndefined();
    expect(b.answers).toEqual([[0, 5, "failure"]]);
    expect(b.events.some((e) => e.type === "sched.printk" && e.text === "iommufd_mock0: iopf with pasid 0 aborted")).toBe(true);
    b.detach(domain);
    b.end();
  });

  test("that the unit may have lost are forgotten", () => {
    const q = new IopfQueue(b.kernel, "q");
    q.addDevice(b.dev);
    b.dev.faultParam?.partial.push({ flags: 0, pasid: 0, grpid: 1, perm: 0, addr: 0n });
    q.discardPartial();
    expect(b.dev.faultParam?.partial).toEqual([]);
    q.removeDevice(b.dev);
    b.end();
  });
});

describe("a group", () => {
  test("that no handler has dequeued is answered when its device leaves; one that has been stays", () => {
    const domain = b.domain();
    b.attach(domain);
    b.report({ grpid: 1 });
    b.report({ grpid: 2 });
    b.report({ flags: 0, grpid: 3 });
    const [, second] = b.groups;
    second?.dequeue();
    b.detach(domain);
    expect(b.answers).toEqual([[0, 1, "invalid"]]);
    second?.respond("success");
    second?.free();
    expect(b.answers).toHaveLength(2);
    b.end();
  });

  test("is answered once and freed once, in that order", () => {
    const domain = b.domain();
    b.attach(domain);
    b.report();
    const [g] = b.groups;
    if (g === undefined) throw new Error("no group");
    expect(() => g.free()).toThrow("freed unanswered");
    g.respond("success");
    expect(() => g.respond("success")).toThrow("answered twice");
    g.free();
    expect(() => g.free()).toThrow("freed twice");
    b.detach(domain);
    b.end();
  });
});
