/** VFIO's exporter against an importer that does not let go and that no IOMMU stands before. */
import { expect, it } from "vitest";
import { type DmaBufHandle, EmbeddedHost } from "../../src/client/index.ts";
import { Device } from "../../src/kernel/device.ts";
import type { DmaBufAttachment } from "../../src/kernel/dma_buf/attachment.ts";
import {
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufMapAttachmentUnlocked,
  dmaBufUnmapAttachmentUnlocked,
} from "../../src/kernel/dma_buf/attachment.ts";
import { dmaBufGet, dmaBufPut } from "../../src/kernel/dma_buf/dma_buf.ts";
import { MemoryRegion } from "../../src/kernel/dma_buf/importers/rdma.ts";
import type { SgTable } from "../../src/kernel/dma_buf/mapping.ts";
import { DRAIN_LIMIT_NS } from "../../src/kernel/dma_buf/negotiated/revoke.ts";
import { dmaRead, dmaWrite } from "../../src/kernel/pci/dma.ts";
import { physAddr } from "../../src/lib/addr.ts";
import { EIO, EOPNOTSUPP, Errno } from "../../src/lib/errno.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import type { Step } from "../../src/sched/task.ts";
import * as V from "../../src/uapi/vfio.ts";
import { ok } from "../harness.ts";
import { TOKEN, VfBench } from "../kernel/vfio/vf_bench.ts";

const PAGE = 0x1000n;

/** Two functions below one switch whose ports do not redirect: they reach each other at bus addresses. */
const MACHINE: MachineDescription = {
  name: "one switch",
  memory: "64 MiB",
  interconnect: "negotiated",
  iommu: { kind: "intel-legacy" },
  pci: {
    children: [
      {
        type: "root-port",
        children: [
          {
            type: "switch",
            ports: [
              { acs: [], children: [{ type: "device", model: "ivshmem", options: { size: "1 MiB" } }] },
              { acs: [], children: [{ type: "device", model: "edu", driver: "vfio-pci" }] },
            ],
          },
        ],
      },
    ],
  },
};

/** Says that it lets go, and does not. */
const STUBBORN = { allowPeer2peer: true, *invalidateMappings(): Step<void> {} };

/** An adapter that has the peer's page mapped at its bus address, and will not give it back. */
function stubborn() {
  const host = EmbeddedHost.boot(MACHINE);
  const byModel = (id: number): string => [...host.kernel.pci.devices.values()].find((d) => d.device === id)?.name as string;
  const memory = byModel(0x1110);
  const adapter = host.kernel.pci.devices.get(byModel(0x11e8));
  if (adapter === undefined) throw new Error("no adapter");
  adapter.enable();
  adapter.setMaster(true);
  const iommufd = host.openIommufd();
  const peer = host.openDevice(memory).bind(iommufd);
  peer.setMemoryEnabled(true);
  const fd: DmaBufHandle = peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: PAGE }] });
  const { process } = host.os;
  const dmabuf = dmaBufGet(process, fd.fd);
  if (dmabuf instanceof Errno) throw new Error(dmabuf.name);

  const att = process.run(dmaBufDynamicAttach(dmabuf, adapter, STUBBORN)) as DmaBufAttachment;
  const sgt = process.run(dmaBufMapAttachmentUnlocked(att, "bidirectional")) as SgTable;
  const address = sgt.entries[0]?.address as bigint;
  expect(address).toBe(host.barAddress(memory, 2));
  expect(dmaWrite(adapter.fn, address, Uint8Array.of(7))).toBe(true);

  const reached = (): boolean => dmaRead(adapter.fn, address, new Uint8Array(1));
  const giveBack = (): void => {
    process.run(dmaBufUnmapAttachmentUnlocked(att, sgt, "bidirectional"));
    host.kernel.sched.settle();
  };
  const end = (): void => {
    process.run(dmaBufDetach(dmabuf, att));
    process.run(put(dmabuf));
    adapter.disable();
    expect(host.shutdown()).toEqual({});
  };
  return { host, iommufd, memory, peer, fd, adapter, reached, giveBack, end };
}

it("the function's decode is off until the last such mapping is given back, whatever its user writes, and the reset goes on", () => {
  const { host, peer, fd, reached, giveBack, end } = stubborn();
  peer.reset();
  expect([reached(), fd.state()]).toEqual([false, { state: "revoked", importers: 1, fenced: 1, epoch: 1n }]);
  peer.setMemoryEnabled(true);
  expect([reached(), fd.state().state]).toEqual([false, "revoked"]);
  // Nor does the user reach it, and is told.
  const bar = (): unknown => host.os.pread(peer.fd, 4, peer.regionInfo(2).offset);
  expect(bar()).toBe(EIO);
  expect(peer.exportDmaBuf({ region: 2, ranges: [{ offset: PAGE, length: PAGE }] }).state().state).toBe("revoked");
  giveBack();
  expect([reached(), fd.state()]).toMatchObject([true, { state: "live", fenced: 0 }]);
  expect(bar()).toBeInstanceOf(Uint8Array);
  end();
});

it("that outlives the close of the device, and the next open does not let it in", () => {
  const { host, iommufd, memory, peer, fd, reached, giveBack, end } = stubborn();
  peer.close();
  expect([reached(), fd.state().state]).toEqual([false, "dead"]);
  const again = host.openDevice(memory).bind(iommufd);
  again.setMemoryEnabled(true);
  expect(reached()).toBe(false);
  const second = again.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: PAGE }] });
  expect(second.state().state).toBe("revoked");
  giveBack();
  expect([reached(), second.state().state, fd.state().state]).toEqual([true, "live", "dead"]);
  end();
});

it("neither the function's next driver nor a state that is restored lets it in", () => {
  const { host, memory, peer, reached, giveBack, end } = stubborn();
  const pdev = host.kernel.pci.devices.get(memory);
  if (pdev === undefined) throw new Error("no function");
  peer.close();
  expect(host.os.process.run(host.kernel.pci.unbind(memory))).toBeUndefined();
  expect(pdev.enable()).toBeUndefined();
  pdev.setMaster(true);
  // A driver finds what it wrote; the hardware does not do it.
  expect(pdev.configRead(4, 2) & 2).toBe(2);
  expect([pdev.fn.configRead(4, 2) & 2, reached()]).toEqual([0, false]);
  pdev.saveState();
  pdev.configWrite(4, 2, 0);
  pdev.restoreState();
  expect(reached()).toBe(false);
  giveBack();
  expect([pdev.fn.configRead(4, 2) & 2, reached()]).toEqual([2, true]);
  pdev.disable();
  end();
});

it("a function that is pulled out meanwhile takes the fence with it", () => {
  const { host, memory, peer, fd, reached, giveBack, end } = stubborn();
  peer.reset();
  host.kernel.pci.surpriseRemove(memory);
  expect(reached()).toBe(false);
  peer.close();
  host.os.process.run(host.kernel.pci.removeDevice(memory));
  expect(fd.state()).toMatchObject({ state: "dead", fenced: 1 });
  giveBack();
  expect(fd.state()).toMatchObject({ state: "dead", fenced: 0 });
  end();
});

it("several buffers whose importers do not let go cost the reset one bound, not one each", () => {
  const { host, peer, fd, adapter, giveBack, end } = stubborn();
  const { process } = host.os;
  const second = peer.exportDmaBuf({ region: 2, ranges: [{ offset: PAGE, length: PAGE }] });
  const dmabuf = dmaBufGet(process, second.fd);
  if (dmabuf instanceof Errno) throw new Error(dmabuf.name);
  const att = process.run(dmaBufDynamicAttach(dmabuf, adapter, STUBBORN)) as DmaBufAttachment;
  const sgt = process.run(dmaBufMapAttachmentUnlocked(att, "bidirectional")) as SgTable;
  const { sched } = host.kernel;
  const before = sched.now;
  peer.setMemoryEnabled(false);
  expect(sched.now - before).toBe(DRAIN_LIMIT_NS);
  expect([fd.state().fenced, second.state().fenced]).toEqual([1, 1]);
  // Decode stays off for the second when the first is given back.
  peer.setMemoryEnabled(true);
  giveBack();
  const byte = new Uint8Array(1);
  expect(dmaRead(adapter.fn, sgt.entries[0]?.address as bigint, byte)).toBe(false);
  expect(second.state().state).toBe("revoked");
  process.run(dmaBufUnmapAttachmentUnlocked(att, sgt, "bidirectional"));
  host.kernel.sched.settle();
  expect([fd.state().state, second.state().state]).toEqual(["live", "live"]);
  process.run(dmaBufDetach(dmabuf, att));
  process.run(put(dmabuf));
  end();
});

it("a hot reset with such an importer ends too, and the buffers come back when it has let go", () => {
  const { host, peer, fd, reached, giveBack, end } = stubborn();
  const { sched } = host.kernel;
  const before = sched.now;
  const arg = V.VfioPciHotReset.alloc({ argsz: V.VfioPciHotReset.size });
  expect(host.os.ioctlBytes(peer.fd, V.VFIO_DEVICE_PCI_HOT_RESET, arg.bytes)).toBe(0);
  expect(sched.now - before).toBeGreaterThanOrEqual(DRAIN_LIMIT_NS);
  expect([reached(), fd.state().state]).toEqual([false, "revoked"]);
  giveBack();
  expect([reached(), fd.state().state]).toEqual([true, "live"]);
  end();
});

it("a VF, which has no decode to be turned off, gives addresses to nobody whom the core cannot cut off", () => {
  const b = new VfBench({ interconnect: "negotiated" });
  const pf = b.device(b.pf);
  expect(b.feature(pf, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, Uint8Array.from(TOKEN))).toBe(0);
  const fd = b.openCdev(b.vf());
  expect(b.bindWithToken(fd, TOKEN)).toBe(0);
  const dmabuf = dmaBufGet(b.process, ok(b.exportBar(fd)));
  if (dmabuf instanceof Errno) throw new Error(dmabuf.name);
  const untranslated = new Device("adapter", "misc", 0);
  expect(b.process.run(dmaBufDynamicAttach(dmabuf, untranslated, STUBBORN))).toBe(EOPNOTSUPP);
  b.process.run(put(dmabuf));
});

it("an access over the end of a range goes on in the next, and touches nothing between", () => {
  const { host, memory, peer, adapter, giveBack, end } = stubborn();
  const { process } = host.os;
  const ranges = [
    { offset: PAGE, length: PAGE },
    { offset: 5n * PAGE, length: PAGE },
  ];
  const fd = peer.exportDmaBuf({ region: 2, ranges });
  const dmabuf = dmaBufGet(process, fd.fd);
  if (dmabuf instanceof Errno) throw new Error(dmabuf.name);
  const region = ok(process.run(MemoryRegion.register(adapter, dmabuf, "on-demand")));
  expect(process.run(region.access(PAGE - 2n, Uint8Array.of(1, 2, 3, 4), true))).toBeUndefined();
  const bar = host.barAddress(memory, 2) as bigint;
  const at = (offset: bigint): number[] => {
    const bytes = new Uint8Array(2);
    host.kernel.phys.read(physAddr(bar + offset), bytes);
    return [...bytes];
  };
  expect([at(2n * PAGE - 2n), at(2n * PAGE), at(5n * PAGE)]).toEqual([
    [1, 2],
    [0, 0],
    [3, 4],
  ]);
  process.run(region.deregister());
  giveBack();
  end();
});

function* put(dmabuf: Parameters<typeof dmaBufPut>[0]): Step<void> {
  dmaBufPut(dmabuf);
}
