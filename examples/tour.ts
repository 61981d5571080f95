/**
 * The tour's work through barlink's client, as a test a project could keep.
 *
 *     npx tsx examples/tour.ts
 */
import assert from "node:assert/strict";
import { CallError, Host, type Mapping } from "barlink";

const RAM_IOVA = 0x1000000n;
const BAR_IOVA = 0x2000000n;
const LENGTH = 0x200000n;
const PMR = 4;
const PMRCTL = 0xe04;
const EDU_BUFFER = 0x40000n;

const host = Host.embedded("default");
const iommufd = host.openIommufd();
const edu = host.openDevice("0000:01:00.0").bind(iommufd);
const nvme = host.openDevice("0000:05:00.0").bind(iommufd);
const ioas = iommufd.allocIoas();
edu.attach(ioas);
nvme.attach(ioas);
edu.setMemoryEnabled(true);
edu.setBusMaster(true);
nvme.setMemoryEnabled(true);
nvme.region(0).write32(PMRCTL, 1);

const memfd = host.createMemfd("ram", 0x100000n);
const pattern = Uint8Array.from({ length: 256 }, (_, i) => (i * 37 + 11) & 0xff);
host.os.pwrite(memfd.fd, pattern, 0n);
ioas.mapFile(memfd, { length: 0x100000n, iova: RAM_IOVA });

const buffer = nvme.exportDmaBuf({ region: PMR, ranges: [{ offset: 0n, length: nvme.region(PMR).size }] });
ioas.mapFile(buffer, { length: LENGTH, iova: BAR_IOVA });

const registers = edu.region(0).mmap();
dma(registers, BAR_IOVA);
assert.deepEqual(nvme.region(PMR).read(0, 256), pattern, "every byte landed in the peer's BAR");

nvme.reset();
nvme.region(0).write32(PMRCTL, 1);
nvme.region(PMR).write(0, new Uint8Array(256));
dma(registers, BAR_IOVA);
assert.deepEqual(nvme.region(PMR).read(0, 256), new Uint8Array(256), "after a reset the same DMA goes nowhere");
assert.equal(host.dmaFaults, 1);

nvme.setMemoryEnabled(false);
assert.throws(
  () => ioas.mapFile(buffer, { length: LENGTH, iova: BAR_IOVA + LENGTH }),
  (e) => e instanceof CallError && e.errno.name === "ENODEV",
);
nvme.setMemoryEnabled(true);
assert.equal(ioas.unmap(BAR_IOVA, LENGTH), LENGTH, "a dead area counts in full");
ioas.mapFile(buffer, { length: LENGTH, iova: BAR_IOVA });
dma(registers, BAR_IOVA);
assert.deepEqual(nvme.region(PMR).read(0, 256), pattern, "and mapped again, DMA works");

registers.unmap();
assert.deepEqual(host.shutdown(), {}, "nothing is left");
console.log("ok");

/** RAM to the engine's buffer, then from there to `iova`. */
function dma(registers: Mapping, iova: bigint): void {
  for (const [source, destination, command] of [
    [RAM_IOVA, EDU_BUFFER, 1n],
    [EDU_BUFFER, iova, 3n],
  ] as const) {
    [source, destination, 256n, command].forEach((value, i) => {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, value, true);
      registers.store(0x80 + 8 * i, bytes);
    });
    host.advance(1_000_000_000);
  }
}
