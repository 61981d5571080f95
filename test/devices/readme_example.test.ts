import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Checksum } from "../../src/devices/examples/checksum.ts";
import { IOMMU_READ } from "../../src/kernel/iommu/domain.ts";
import { Kernel } from "../../src/kernel/kernel.ts";
import { Errno, physAddr, physOfPfn } from "../../src/lib/index.ts";
import type { Step } from "../../src/sched/index.ts";

const text = (path: string): string => readFileSync(new URL(`../../src/devices/${path}`, import.meta.url), "utf8");

it("stands in the README word for word", () => {
  const inReadme = /```ts\n([\s\S]*?)\n```/.exec(text("README.md"))?.[1];
  expect(inReadme).toBe(text("examples/checksum.ts").replace('"../index.ts"', '"barlink/devices"').trim());
});

describe("the checksum device of the README", () => {
  const boot = () => {
    const kernel = new Kernel();
    kernel.phys.addRam(physAddr(0n), 0x100_0000n);
    kernel.iommu.addUnit({ kind: "intel-legacy" });
    kernel.pci.build({ root: [{ kind: "root-port", children: [{ kind: "function", model: () => new Checksum() }] }] });
    const dev = kernel.pci.devices.get("0000:01:00.0");
    const unit = dev?.iommuUnit;
    const group = dev?.iommuGroup;
    if (dev === undefined || unit === undefined || group === undefined) throw new Error("no device");
    dev.enable();
    dev.setMaster(true);
    const task = kernel.sched.thread("test");
    const run = <T>(body: Step<T>): T => kernel.sched.execute(task, body);
    const domain = run(unit.domainAllocPagingFlags(dev, 0));
    if (domain instanceof Errno) throw new Error(domain.name);
    run(group.claimDmaOwner(kernel));
    run(group.attachHandle(domain, { domain }));
    const put = (offset: number, value: number): void => {
      dev.barWrite(0, offset, new Uint8Array([value, value >> 8, value >> 16, value >> 24]));
    };
    const get = (offset: number): number => {
      const b = new Uint8Array(4);
      dev.barRead(0, offset, b);
      return new DataView(b.buffer).getUint32(0, true);
    };
    return { kernel, dev, domain, put, get, run };
  };

  it("sums a page of RAM and interrupts", () => {
    const m = boot();
    const page = physOfPfn(m.kernel.frames.alloc());
    m.kernel.phys.write(physAddr(page), new Uint8Array(4096).fill(3));
    m.domain.map(0x1_0000_0000n, page, 0x1000n, IOMMU_READ);
    let interrupts = 0;
    m.dev.allocIrqVectors("msi", 1);
    m.dev.requestIrq(0, () => {
      interrupts++;
    });
    m.put(0x04, 1);
    m.put(0x08, 4096);
    expect(m.get(0x10)).toBe(1);
    m.kernel.sched.settle();
    expect([m.get(0x10), m.get(0x0c), interrupts]).toEqual([2, 3 * 4096, 1]);
  });

  it("says so when the address is not mapped", () => {
    const m = boot();
    m.put(0x08, 16);
    m.kernel.sched.settle();
    expect([m.get(0x10), m.get(0x0c), m.kernel.iommu.faults]).toEqual([3, 0, 1]);
  });

  it("forgets what it was doing when it is reset", () => {
    const m = boot();
    m.put(0x08, 16);
    expect(m.run(m.dev.tryResetFunction())).toBeUndefined();
    m.kernel.sched.settle();
    expect([m.get(0x10), m.kernel.iommu.faults]).toEqual([0, 0]);
  });
});
