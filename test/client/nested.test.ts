/** A guest's own I/O page table, through the typed client: a real device model does DMA through two tables. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { CallError, Host, type Mapping } from "../../src/client/index.ts";
import { Errno } from "../../src/lib/errno.ts";
import type { MachineDescription } from "../../src/machine/schema.ts";
import * as u from "../../src/uapi/index.ts";

const EDU = "0000:01:00.0";
/** The guest's memory: where it is for the guest, and how much. */
const GUEST = 0x4000_0000n;
const LENGTH = 0x10000;
/** An address that only the guest's own table knows. */
const VIRTUAL = 0x123_4000n;
const BUFFER = 0x40000n;

const ORACLE = JSON.parse(readFileSync(new URL("../../machines/oracle.json", import.meta.url), "utf8")) as MachineDescription;
const MACHINE: MachineDescription = { ...ORACLE, iommu: { kind: "intel-scalable", coherentWalk: true, nesting: true } };

const u64 = (value: bigint): Uint8Array => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
};

/** Four tables at the start of the guest's memory lead from `iova` to page `page` of it. */
function mapForGuest(memory: Mapping, iova: bigint, page: number): void {
  for (let i = 0; i < 4; i++) {
    const index = Number((iova >> BigInt(39 - 9 * i)) & 0x1ffn);
    const next = GUEST + BigInt(i < 3 ? i + 1 : page) * 0x1000n;
    memory.store(i * 0x1000 + index * 8, u64(next | 7n));
  }
}

test("a device reaches the guest's memory by the guest's addresses, and a change shows when the guest says so", () => {
  const host = Host.embedded(MACHINE);
  const iommufd = host.openIommufd();
  const edu = host.openDevice(EDU).bind(iommufd);
  const ioas = iommufd.allocIoas();
  const memfd = host.createMemfd("guest", BigInt(LENGTH));
  const memory = memfd.os.mmap(memfd.fd, LENGTH, u.PROT_READ | u.PROT_WRITE, u.MAP_SHARED, 0n);
  if (memory instanceof Errno) throw new Error(memory.name);
  ioas.mapFile(memfd, { length: BigInt(LENGTH), iova: GUEST });
  const parent = iommufd.allocHwpt({ device: edu.id, parent: ioas.id, flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT });
  mapForGuest(memory, VIRTUAL, 8);
  const bytes = u.IommuHwptVtdS1.alloc({ pgtbl_addr: GUEST, addr_width: 48 }).bytes;
  const table = iommufd.allocHwpt({ device: edu.id, parent: parent.id, data: { type: u.IOMMU_HWPT_DATA_VTD_S1, bytes } });
  edu.attach(table);
  edu.setMemoryEnabled(true);
  edu.setBusMaster(true);
  const registers = edu.region(0);
  /** `toBuffer`: from the guest's memory to the device's; otherwise back. */
  const transfer = (iova: bigint, toBuffer: boolean): void => {
    registers.write64(0x80, toBuffer ? iova : BUFFER);
    registers.write64(0x88, toBuffer ? BUFFER : iova);
    registers.write64(0x90, 16n);
    registers.write64(0x98, toBuffer ? 1n : 3n);
    host.advance(1_000_000_000);
  };
  const text = new TextEncoder().encode("through 2 tables");
  memory.store(8 * 0x1000, text);
  transfer(VIRTUAL, true);
  // A write, so that what is cached holds for writes.
  transfer(VIRTUAL, false);
  // The guest moves the page. Until it says so the device goes on using the old one.
  mapForGuest(memory, VIRTUAL, 9);
  transfer(VIRTUAL, false);
  expect(memory.load(9 * 0x1000, 16)).toEqual(new Uint8Array(16));
  const changed = u.IommuHwptVtdS1Invalidate.alloc({ addr: VIRTUAL, npages: 1n }).bytes;
  table.invalidate(u.IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, [changed]);
  transfer(VIRTUAL, false);
  expect(memory.load(9 * 0x1000, 16)).toEqual(text);
  // The first write through the new page marked it, and its table.
  expect((memory.load(3 * 0x1000 + 0x34 * 8, 1) as Uint8Array)[0]).toBe(0x67);

  const faults: string[] = [];
  host.onTrace(({ event }) => {
    if (event.type === "iommu.fault") faults.push(event.text);
  });
  transfer(VIRTUAL + 0x1000n, true);
  expect(faults).toEqual([
    "DMAR: [DMA Read NO_PASID] Request device [0000:01:00.0] fault addr 0x1235000 [fault reason 0x71] SM: The first-stage entry is not present",
  ]);
  const wrong = u.IommuHwptVtdS1Invalidate.alloc({ addr: 1n, npages: 1n }).bytes;
  try {
    table.invalidate(u.IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, [changed, wrong]);
    expect.unreachable();
  } catch (e) {
    if (!(e instanceof CallError)) throw e;
    expect([e.errno.name, e.args.entry_num]).toEqual(["EINVAL", 1]);
  }
  memory.unmap();
  expect(host.shutdown()).toEqual({});
});
