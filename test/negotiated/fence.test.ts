/** VFIO's exporter against an importer that does not let go and that no IOMMU stands before. */
import { expect, it } from "vitest";
import { type DmaBufHandle, EmbeddedHost } from "../../src/client/index.ts";
import type { DmaBufAttachment } from "../../src/kernel/dma_buf/attachment.ts";
import {
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufMapAttachmentUnlocked,
  dmaBufUnmapAttachmentUnlocked,
} from "../../src/kernel/dma_buf/attachment.ts";
import { dmaBufGet, dmaBufPut } from "../../src/kernel/dma_buf/dma_buf.ts";
import type { SgTable } from "../../src/kernel/dma_buf/mapping.ts";
import { dmaRead, dmaWrite } from "../../src/kernel/pci/dma.ts";
import { Errno } from "../../src/lib/errno.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import type { Step } from "../../src/sched/task.ts";

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

  const ops = { allowPeer2peer: true, *invalidateMappings(): Step<void> {} };
  const att = process.run(dmaBufDynamicAttach(dmabuf, adapter, ops)) as DmaBufAttachment;
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
  return { host, iommufd, memory, peer, fd, reached, giveBack, end };
}

it("the function's decode is off until the last such mapping is given back, whatever its user writes, and the reset goes on", () => {
  const { peer, fd, reached, giveBack, end } = stubborn();
  peer.reset();
  expect([reached(), fd.state()]).toEqual([false, { state: "revoked", importers: 1, fenced: 1, epoch: 1n }]);
  peer.setMemoryEnabled(true);
  expect([reached(), fd.state().state]).toEqual([false, "revoked"]);
  expect(peer.exportDmaBuf({ region: 2, ranges: [{ offset: PAGE, length: PAGE }] }).state().state).toBe("revoked");
  giveBack();
  expect([reached(), fd.state()]).toMatchObject([true, { state: "live", fenced: 0 }]);
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

function* put(dmabuf: Parameters<typeof dmaBufPut>[0]): Step<void> {
  dmaBufPut(dmabuf);
}
