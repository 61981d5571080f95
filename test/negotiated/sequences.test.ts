/** The random sequences of `npm run conformance -- negotiate`: they pass, and they fail over what does not keep the contract. */
import { afterEach, describe, expect, it, vi } from "vitest";
import { randomSequences, SequenceFailed } from "../../conformance/negotiate/random.ts";
import { GuestMemory } from "../../src/kernel/dma_buf/importers/kvm.ts";
import { MemoryRegion } from "../../src/kernel/dma_buf/importers/rdma.ts";
import { DmaHandle } from "../../src/kernel/dma_buf/negotiated/dma_converter.ts";
import { PhysHandle } from "../../src/kernel/dma_buf/negotiated/handle.ts";
import { IommuHandle } from "../../src/kernel/dma_buf/negotiated/iommu_converter.ts";
import { VramBuffer } from "../../src/kernel/dma_buf/vram.ts";
import { NegotiatedDmabuf } from "../../src/kernel/iommufd/pages_negotiated.ts";
import { VfioPciCoreDevice } from "../../src/kernel/vfio/pci/vfio_pci_core.ts";
import type { Step } from "../../src/sched/task.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

function failure(): string {
  try {
    randomSequences(1, 2000);
  } catch (e) {
    if (e instanceof SequenceFailed) return e.message;
    throw e;
  }
  return "none";
}

function* nothing(): Step<undefined> {
  return undefined;
}

it("500 sequences over all pairs hold", { timeout: 30_000 }, () => {
  randomSequences(4711, 500);
});

describe("fail when", { timeout: 30_000 }, () => {
  it("an adapter keeps its mapping over a revoke, and the core does not take it away", () => {
    const { letGo } = MemoryRegion.prototype;
    // Not for good: a revoke asks, of a region that goes on.
    vi.spyOn(MemoryRegion.prototype, "letGo").mockImplementation(function (this: MemoryRegion, forGood) {
      return forGood ? letGo.call(this, true) : nothing();
    });
    vi.spyOn(DmaHandle.prototype, "sever").mockReturnValue(true);
    expect(failure()).toMatch(/maps the memory that was taken \(I1\)/);
  });

  it("a guest's slot is not emptied", () => {
    vi.spyOn(PhysHandle.prototype, "sever").mockReturnValue(true);
    const { zap } = GuestMemory.prototype;
    vi.spyOn(GuestMemory.prototype, "zap").mockImplementation(function (this: GuestMemory, slot) {
      return slot.att?.buffer.state === "live" ? zap.call(this, slot) : nothing();
    });
    expect(failure()).toMatch(/kvm looks at the memory that was taken \(I1\)/);
  });

  it("an exporter restores at once what it has revoked", () => {
    vi.spyOn(VfioPciCoreDevice.prototype, "barsReachable").mockReturnValue(true);
    expect(failure()).toMatch(/the buffer is live/);
  });

  it("a page table is emptied by nobody", () => {
    vi.spyOn(NegotiatedDmabuf.prototype, "invalidate").mockImplementation(nothing);
    vi.spyOn(IommuHandle.prototype, "sever").mockReturnValue(true);
    expect(failure()).toMatch(/I1|I3|the memory was reached while nobody may|released while domains hold it/);
  });

  it("a page table is not filled again by an address space that asked for it", () => {
    vi.spyOn(NegotiatedDmabuf.prototype, "revalidate").mockImplementation(nothing);
    expect(failure()).toMatch(/iommufd .*: EFAULT\n?|was to be expected|was to arrive/);
  });

  it("a move loses the bytes", () => {
    const { relocate } = VramBuffer.prototype;
    vi.spyOn(VramBuffer.prototype, "relocate").mockImplementation(function (this: VramBuffer, to) {
      const e = relocate.call(this, to);
      if (e === undefined) for (const r of this.runs()) this.device.kernel.phys.write(r.paddr, new Uint8Array(Number(r.len)).fill(0xee));
      return e;
    });
    expect(failure()).toMatch(/was to be expected/);
  });
});
