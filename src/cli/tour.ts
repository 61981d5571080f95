/**
 * `barlink tour`: the whole path once, on the embedded kernel, with real
 * values, and every claim checked. It fails, with status 1, when one does not
 * hold.
 *
 * The machine must have an `edu` device and an `nvme` one with persistent
 * memory; which they are is looked up, not assumed.
 */
import {
  CallError,
  type DmaBufHandle,
  EmbeddedHost,
  type Ioas,
  type Iommufd,
  type Mapping,
  readMachine,
  type VfioDevice,
} from "../client/index.ts";
import { EDU_BUFFER, EDU_DMA_CMD, EDU_DMA_COUNT, EDU_DMA_DST, EDU_DMA_RUN, EDU_DMA_SRC, EDU_DMA_TO_PCI } from "../devices/spec/edu.ts";
import { hex } from "../lib/index.ts";
import { formatEvent, type TraceRecord } from "../trace/index.ts";
import { Narrator } from "./narrator.ts";
import { UsageError } from "./usage_error.ts";

const RAM_IOVA = 0x1000000n;
const BAR_IOVA = 0x2000000n;
const MAP_LENGTH = 0x200000n;
/** BAR of the NVMe controller that is its persistent memory region, and the register that enables it. */
const PMR_BAR = 4;
const PMRCTL = 0xe04;
const DMA_BYTES = 256;
const DMA_POLL_NS = 1_000_000;

class Tour {
  readonly n: Narrator;
  readonly host: EmbeddedHost;
  readonly engine: VfioDevice;
  readonly peer: VfioDevice;
  readonly #faults: string[] = [];
  failed = false;
  iommufd: Iommufd;

  constructor(host: EmbeddedHost, n: Narrator, engine: string, peer: string) {
    this.host = host;
    this.n = n;
    this.iommufd = host.openIommufd();
    this.engine = host.openDevice(engine);
    this.peer = host.openDevice(peer);
    host.onTrace(({ event }) => {
      if (event.type === "iommu.fault") this.#faults.push(event.text);
    });
  }

  check(holds: boolean, what: string): void {
    if (holds) this.n.good(what);
    else {
      this.n.bad(what);
      this.failed = true;
    }
  }

  /** A call that must fail: prints its errno and what it means. */
  expectErrno(text: string, errno: string, call: () => unknown): void {
    try {
      call();
      this.n.call(text, "0");
      this.check(false, `should have failed with ${errno}`);
    } catch (e) {
      if (!(e instanceof CallError)) throw e;
      this.n.call(text, `-1 ${e.errno.name}`);
      this.n.event(e.meaning);
      this.check(e.errno.name === errno, `refused with ${errno}`);
    }
  }

  showEntry(iova: bigint): void {
    const t = this.host.lookUp(this.engine.address, iova);
    if (t === undefined) {
      this.n.fact("page table", `no entry for ${hex(iova)}`);
      return;
    }
    const access = `${t.readable ? "r" : "-"}${t.writable ? "w" : "-"}`;
    this.n.fact("page table", `${hex(iova)} → ${hex(t.physical)}  level ${t.level}, ${Number(t.pageSize / 1024n)} KiB, ${access}`);
    this.n.fact("entry bytes", littleEndian(t.entry));
  }

  /** RAM → engine → `iova`; the faults it caused. */
  dma(registers: Mapping, iova: bigint): string[] {
    this.#faults.length = 0;
    this.#oneDma(registers, RAM_IOVA, BigInt(EDU_BUFFER), EDU_DMA_RUN);
    this.#oneDma(registers, BigInt(EDU_BUFFER), iova, EDU_DMA_RUN | EDU_DMA_TO_PCI);
    return [...this.#faults];
  }

  #oneDma(registers: Mapping, source: bigint, destination: bigint, command: number): void {
    registers.store(EDU_DMA_SRC, u64(source));
    registers.store(EDU_DMA_DST, u64(destination));
    registers.store(EDU_DMA_COUNT, u64(BigInt(DMA_BYTES)));
    registers.store(EDU_DMA_CMD, u64(BigInt(command)));
    for (let i = 0; i < 1000; i++) {
      this.host.advance(DMA_POLL_NS);
      const status = registers.load(EDU_DMA_CMD, 4);
      if (typeof status !== "string" && ((status[0] ?? 0) & 1) === 0) return;
    }
    throw new Error("the DMA engine never finished");
  }
}

const u64 = (v: bigint): Uint8Array => {
  const b = new Uint8Array(8);
  new DataView(b.buffer).setBigUint64(0, v, true);
  return b;
};

const littleEndian = (v: bigint): string => [...u64(v)].map((x) => x.toString(16).padStart(2, "0")).join(" ");
const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && a.every((x, i) => x === b[i]);
const dump = (b: Uint8Array): string => [...b.subarray(0, 16)].map((x) => x.toString(16).padStart(2, "0")).join(" ");

function findDevice(host: EmbeddedHost, model: string): string {
  for (const [address, dev] of host.kernel.pci.devices) if (dev.fn.model.description.name === model) return address;
  throw new UsageError(`the tour needs a device of model "${model}" on the machine "${host.machine.name}"`);
}

export function tour(options: { machine?: string; trace?: boolean }): number {
  const machine = readMachine(options.machine ?? "default");
  const host = EmbeddedHost.boot(machine);
  const n = new Narrator(process.stdout, process.env);
  const engine = findDevice(host, "edu");
  const peer = findDevice(host, "nvme");
  if (options.trace === true) host.onTrace((r: TraceRecord) => n.event(formatEvent(r)));
  n.title(`barlink tour: a device's memory, shared with a peer, and taken back (machine "${machine.name}")`);
  const t = new Tour(host, n, engine, peer);
  const ioas = bindBoth(t);
  const { memory, pattern, registers } = prepare(t, ioas);
  const buffer = exportBar(t);
  mapIt(t, ioas, buffer, "IOMMU_IOAS_MAP_FILE over the private interconnect");
  dmaLands(t, registers, pattern);
  resetRevokes(t);
  dmaFaults(t, registers, pattern);
  refusedWhileOff(t, ioas, buffer);
  mapAgain(t, ioas, buffer);
  dmaLands(t, registers, pattern);
  registers.unmap();
  memory.unmap();
  for (const h of [buffer, t.peer, t.engine, t.iommufd]) h.close();
  leaveNothing(t);
  n.line();
  n.title(t.failed ? "The tour found something that does not hold." : "Everything held.");
  return t.failed ? 1 : 0;
}

function bindBoth(t: Tour): Ioas {
  const { n, iommufd, engine, peer, host } = t;
  n.step("Two devices bind to one iommufd, and share an I/O address space");
  for (const [d, what] of [
    [engine, "DMA engine"],
    [peer, "NVMe controller"],
  ] as const) {
    d.bind(iommufd);
    const group = host.kernel.pci.devices.get(d.address)?.iommuGroup?.id;
    n.call(`VFIO_DEVICE_BIND_IOMMUFD(${d.address})`, `0, device id ${d.id}  (${what}, IOMMU group ${group ?? "none"})`);
  }
  const ioas = iommufd.allocIoas();
  n.call("IOMMU_IOAS_ALLOC", `0, IOAS id ${ioas.id}`);
  for (const d of [engine, peer]) n.call(`VFIO_DEVICE_ATTACH_IOMMUFD_PT(${d.address})`, `0, page table id ${d.attach(ioas)}`);
  const { ranges, alignment } = ioas.ranges();
  n.fact("usable IOVAs", ranges.map((r) => `${hex(r.start)}–${hex(r.last)}`).join(", "));
  n.fact("alignment", `${alignment} bytes`);
  return ioas;
}

function prepare(t: Tour, ioas: Ioas): { memory: Mapping; pattern: Uint8Array; registers: Mapping } {
  const { n, host, engine, peer } = t;
  n.step("A page of RAM to copy from");
  const memfd = host.createMemfd("ram", 0x100000n);
  const iova = ioas.mapFile(memfd, { length: 0x100000n, iova: RAM_IOVA });
  n.call(`IOMMU_IOAS_MAP_FILE(memfd, 1 MiB, iova ${hex(RAM_IOVA)})`, `0, iova ${hex(iova)}`);
  const memory = host.os.mmap(memfd.fd, 0x100000, 3, 1, 0n);
  if (!("store" in memory)) throw new Error(`mmap of a memfd failed: ${memory.name}`);
  memfd.close();
  const pattern = Uint8Array.from({ length: DMA_BYTES }, (_, i) => (i * 37 + 11) & 0xff);
  memory.store(0, pattern);
  n.fact("bytes", `${dump(pattern)} …`);
  engine.setMemoryEnabled(true);
  engine.setBusMaster(true);
  peer.setMemoryEnabled(true);
  enablePmr(t);
  return { memory, pattern, registers: engine.region(0).mmap() };
}

/** The controller's persistent memory answers only while enabled, and every reset turns it off. */
function enablePmr(t: Tour): void {
  t.peer.region(0).write32(PMRCTL, 1);
}

function exportBar(t: Tour): DmaBufHandle {
  const { n, peer, host } = t;
  n.step("The NVMe controller's persistent memory BAR becomes a dma-buf");
  const bar = peer.region(PMR_BAR);
  n.fact("BAR 4", `${Number(bar.size >> 20n)} MiB at physical ${hex(host.barAddress(peer.address, PMR_BAR) ?? 0n)}`);
  const buffer = peer.exportDmaBuf({ region: PMR_BAR, ranges: [{ offset: 0n, length: bar.size }] });
  n.call(`VFIO_DEVICE_FEATURE_DMA_BUF(BAR 4, 0 + ${hex(bar.size)})`, `fd ${buffer.fd}, ${hex(buffer.size)} bytes`);
  return buffer;
}

function mapIt(t: Tour, ioas: Ioas, buffer: DmaBufHandle, why: string): void {
  const { n } = t;
  n.step(why);
  const iova = ioas.mapFile(buffer, { length: MAP_LENGTH, iova: BAR_IOVA });
  const physical = t.host.barAddress(t.peer.address, PMR_BAR) ?? 0n;
  n.call(`IOMMU_IOAS_MAP_FILE(fd ${buffer.fd}, 2 MiB, iova ${hex(BAR_IOVA)})`, `0, iova ${hex(iova)}`);
  n.fact("physical range", `${hex(physical)}–${hex(physical + MAP_LENGTH - 1n)}, MMIO, never cacheable`);
  t.showEntry(BAR_IOVA);
  t.check(t.host.lookUp(t.engine.address, BAR_IOVA)?.physical === physical, "the engine's page table leads to the peer's BAR");
}

function dmaLands(t: Tour, registers: Mapping, pattern: Uint8Array): void {
  const { n } = t;
  n.step("The engine DMAs into its peer");
  t.peer.region(PMR_BAR).write(0, new Uint8Array(DMA_BYTES));
  const faults = t.dma(registers, BAR_IOVA);
  const landed = t.peer.region(PMR_BAR).read(0, DMA_BYTES);
  n.call(`edu: DMA ${DMA_BYTES} bytes ${hex(RAM_IOVA)} → ${hex(BAR_IOVA)}`, `${faults.length} faults`);
  n.fact("BAR 4 now", `${dump(landed)} …`);
  t.check(faults.length === 0 && sameBytes(landed, pattern), `all ${DMA_BYTES} bytes landed`);
}

function resetRevokes(t: Tour): void {
  const { n, host } = t;
  n.step("A function-level reset revokes the mapping before it happens");
  const seen: string[] = [];
  const stop = host.onTrace(({ event }) => {
    if (/revoke|invalidate|reset|unmap|flush/.test(event.type)) seen.push(formatEvent({ seq: 0, time: 0, task: "", event }));
  });
  t.peer.reset();
  stop();
  n.call(`VFIO_DEVICE_RESET(${t.peer.address})`, "0");
  for (const s of seen) n.event(s);
  enablePmr(t);
  t.showEntry(BAR_IOVA);
  t.check(host.lookUp(t.engine.address, BAR_IOVA) === undefined, "the page table no longer leads there");
}

function dmaFaults(t: Tour, registers: Mapping, pattern: Uint8Array): void {
  const { n } = t;
  n.step("The same DMA now faults");
  const faults = t.dma(registers, BAR_IOVA);
  n.call(`edu: DMA ${DMA_BYTES} bytes ${hex(RAM_IOVA)} → ${hex(BAR_IOVA)}`, `${faults.length} fault`);
  for (const f of faults) n.event(f);
  const bar = t.peer.region(PMR_BAR).read(0, DMA_BYTES);
  t.check(faults.length === 1, "one fault, decoded");
  t.check(sameBytes(bar, pattern), "the BAR keeps what it had");
}

function refusedWhileOff(t: Tour, ioas: Ioas, buffer: DmaBufHandle): void {
  const { n, peer } = t;
  n.step("While memory is off, the dma-buf cannot be mapped");
  peer.setMemoryEnabled(false);
  n.call("pwrite(config, COMMAND with MEMORY off)", "2");
  t.expectErrno(`IOMMU_IOAS_MAP_FILE(fd ${buffer.fd}, iova ${hex(BAR_IOVA + 0x1000000n)})`, "ENODEV", () =>
    ioas.mapFile(buffer, { length: MAP_LENGTH, iova: BAR_IOVA + 0x1000000n }),
  );
  peer.setMemoryEnabled(true);
  n.call("pwrite(config, COMMAND with MEMORY on)", "2");
  t.check(t.host.lookUp(t.engine.address, BAR_IOVA) === undefined, "the old mapping stays dead: a revoke is for good");
  if (t.host.kernel.interconnect === "negotiated") {
    n.event("here a new mapping could take its place without an unmap; Linux 7.3 answers EEXIST");
    return;
  }
  t.expectErrno(`IOMMU_IOAS_MAP_FILE(fd ${buffer.fd}, iova ${hex(BAR_IOVA)})`, "EEXIST", () =>
    ioas.mapFile(buffer, { length: MAP_LENGTH, iova: BAR_IOVA }),
  );
}

function mapAgain(t: Tour, ioas: Ioas, buffer: DmaBufHandle): void {
  const { n } = t;
  n.step("Unmap the dead area");
  const unmapped = ioas.unmap(BAR_IOVA, MAP_LENGTH);
  n.call(`IOMMU_IOAS_UNMAP(${hex(BAR_IOVA)}, ${hex(MAP_LENGTH)})`, `0, ${hex(unmapped)} bytes`);
  t.check(unmapped === MAP_LENGTH, "a dead area counts in full");
  mapIt(t, ioas, buffer, "Map the same descriptor again");
}

function leaveNothing(t: Tour): void {
  const { n, host } = t;
  n.step("Everything is closed");
  const left = Object.entries(host.shutdown());
  t.check(
    left.length === 0,
    left.length === 0 ? "no file, pin, attachment or registration is left" : `left: ${left.map(([k, v]) => `${v} ${k}`).join(", ")}`,
  );
}
