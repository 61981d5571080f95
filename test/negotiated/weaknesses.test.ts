/**
 * What docs/findings.md finds weak in Linux 7.3, each by one test that is run on
 * both paths: there on the exact one, gone on the negotiated one.
 */
import { afterEach, describe, expect, it, test } from "vitest";
import { BYTES, ENGINE, PAGE, PairScene } from "../../conformance/negotiate/scene.ts";
import { CallError, type EmbeddedHost, Host, readMachine } from "../../src/client/index.ts";
import {
  type DmaBufAttachment,
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufMapAttachmentUnlocked,
  dmaBufUnmapAttachmentUnlocked,
} from "../../src/kernel/dma_buf/attachment.ts";
import type { SgTable } from "../../src/kernel/dma_buf/mapping.ts";
import { DRAIN_LIMIT_NS } from "../../src/kernel/dma_buf/negotiated/revoke.ts";
import type { InterconnectKind } from "../../src/kernel/kernel.ts";
import { dmaRead } from "../../src/kernel/pci/dma.ts";
import { EACCES, EAGAIN, EEXIST, EIO, ENODEV, EOPNOTSUPP, Errno } from "../../src/lib/errno.ts";
import { WouldBlock } from "../../src/sched/sched.ts";
import type { Step } from "../../src/sched/task.ts";
import { IOMMU_OPTION, IOMMU_OPTION_OP_SET, IommuOption, MAP_SHARED, O_RDONLY, PROT_READ, PROT_WRITE } from "../../src/uapi/index.ts";
import * as R from "../../src/uapi/pci_regs.ts";
import { IOMMU_OPTION_DMABUF_REVALIDATE } from "../../src/uapi/proposed.ts";
import * as V from "../../src/uapi/vfio.ts";
import { ok } from "../harness.ts";
import { Bench, RAM_BYTES } from "../kernel/vfio/bench.ts";
import { TOKEN, VfBench } from "../kernel/vfio/vf_bench.ts";

const SET = V.VFIO_DEVICE_FEATURE_SET;
const ON = R.PCI_COMMAND_MEMORY | R.PCI_COMMAND_MASTER;

/** A function whose buffer is mapped for its own DMA. */
class Mapped extends Bench {
  readonly fd: number;
  readonly ioasId: number;
  readonly buf: number;
  readonly iova: bigint;

  constructor(interconnect: InterconnectKind, restores = false) {
    super({ interconnect });
    this.fd = this.device();
    this.ioasId = this.ioas();
    expect(this.attach(this.fd, this.ioasId)).toBe(0);
    this.command(ON);
    if (restores && interconnect === "negotiated") {
      const option = IommuOption.alloc({ size: IommuOption.size, option_id: IOMMU_OPTION_DMABUF_REVALIDATE, op: IOMMU_OPTION_OP_SET });
      option.object_id = this.ioasId;
      option.val64 = 1n;
      expect(this.ioctl(this.iommufd, IOMMU_OPTION, option)).toBe(0);
    }
    this.buf = ok(this.exportBar(this.fd));
    this.iova = ok(this.mapFile(this.ioasId, this.buf));
  }

  command(value: number): number | Errno {
    return this.configWrite(this.fd, R.PCI_COMMAND, 2, value);
  }

  get mapped(): boolean {
    return this.pdev().iommuGroup?.domain?.iovaToPhys(this.iova) !== undefined;
  }

  /** What a fresh map of `buf` answers: 0 or an errno's name. */
  maps(buf: number = this.buf): string {
    const r = this.mapFile(this.ioasId, buf);
    if (r instanceof Errno) return r.name;
    expect(this.unmap(this.ioasId, r, RAM_BYTES)).toBe(RAM_BYTES);
    return "0";
  }

  lowPower(): void {
    expect(this.feature(this.fd, SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)).toBe(0);
    this.settle();
    expect(this.pdev().pm.status).toBe("suspended");
  }
}

const both = ["linux-7.3", "negotiated"] as const;
/** What is expected of each path. */
const on = <T>(path: InterconnectKind, linux: T, negotiated: T): T => (path === "linux-7.3" ? linux : negotiated);

describe.each(both)("%s: N1, a buffer of a suspended device", (path) => {
  it("is live when it is exported in low power", () => {
    const s = new Mapped(path);
    s.lowPower();
    const born = ok(s.exportBar(s.fd));
    expect(s.maps(born)).toBe(on(path, "0", "ENODEV"));
    expect(s.feature(s.fd, SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)).toBe(0);
    expect(s.maps(born)).toBe("0");
  });

  it("is brought to life by a write of COMMAND.MEMORY in low power", () => {
    const s = new Mapped(path);
    s.lowPower();
    s.command(ON);
    expect(s.maps()).toBe(on(path, "0", "ENODEV"));
  });

  it("is brought to life by a reset in low power", () => {
    const s = new Mapped(path);
    s.lowPower();
    expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(0);
    expect(s.maps()).toBe(on(path, "0", "ENODEV"));
  });
});

test.each(both)("%s: N2, a wake-up gives the buffers back, without the user's EXIT", (path) => {
  const s = new Mapped(path);
  const payload = new Uint8Array(8);
  new DataView(payload.buffer).setInt32(0, s.eventfd(), true);
  expect(s.feature(s.fd, SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, payload)).toBe(0);
  s.settle();
  s.kernelRun(s.pdev().pmRuntimeResume());
  expect(s.maps()).toBe(on(path, "ENODEV", "0"));
});

test.each(both)("%s: N3, a reset that did not happen leaves the mappings", (path) => {
  const s = new Mapped(path, true);
  const { lock } = s.pdev();
  const held = s.hold(
    () => lock.lock(),
    () => lock.unlock(),
  );
  expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(EAGAIN);
  expect(s.mapped).toBe(on(path, false, true));
  held.release();
  s.settle();
});

test.each(both)("%s: N4, a VF whose user turns decode off has live buffers", (path) => {
  const b = new VfBench({ interconnect: path });
  const pf = b.device(b.pf);
  expect(b.feature(pf, SET | V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, Uint8Array.from(TOKEN))).toBe(0);
  const fd = b.openCdev(b.vf());
  expect(b.bindWithToken(fd, TOKEN)).toBe(0);
  const ioas = b.ioas();
  const buf = ok(b.exportBar(fd));
  b.configWrite(fd, R.PCI_COMMAND, 2, 0);
  expect(b.mapFile(ioas, buf)).toEqual(on<unknown>(path, expect.any(BigInt), ENODEV));
  b.configWrite(fd, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY);
  expect(b.mapFile(ioas, buf)).not.toBeInstanceOf(Errno);
});

test.each(both)("%s: N14, a write of COMMAND that fails leaves the buffers as the memory is", (path) => {
  const s = new Mapped(path);
  let reads = 0;
  s.core().configFault = (pos, isWrite) => (pos === R.PCI_COMMAND && (isWrite || ++reads > 1) ? EIO : undefined);
  expect(s.command(0)).toBe(EIO);
  s.core().configFault = undefined;
  expect(s.core().memoryEnabled()).toBe(true);
  expect(s.maps()).toBe(on(path, "ENODEV", "0"));
});

// ----- with importers and exporters beside iommufd and VFIO

const scenes: PairScene[] = [];
const hosts: EmbeddedHost[] = [];
afterEach(() => {
  for (const s of scenes.splice(0)) expect(s.end()).toEqual({});
  for (const h of hosts.splice(0)) expect(h.shutdown()).toEqual({});
});

function pairScene(path: InterconnectKind): PairScene {
  const s = new PairScene(path);
  scenes.push(s);
  return s;
}

const errnoOf = (call: () => unknown): string => {
  try {
    call();
  } catch (e) {
    if (e instanceof CallError) return e.errno.name;
    throw e;
  }
  return "0";
};

const ADAPTER = "0000:04:00.0";

test.each(both)("%s: N5, an importer that does not let go hangs the reset", (path) => {
  const s = new PairScene(path);
  const { dmabuf } = s.export("vfio");
  const adapter = s.pdev(ADAPTER);
  const ops = { allowPeer2peer: true, *invalidateMappings(): Step<void> {} };
  const att = s.run(dmaBufDynamicAttach(dmabuf, adapter, ops)) as DmaBufAttachment;
  const sgt = s.run(dmaBufMapAttachmentUnlocked(att, "bidirectional")) as SgTable;
  const address = sgt.entries[0]?.address as bigint;
  const byte = new Uint8Array(1);
  expect(dmaRead(adapter.fn, address, byte)).toBe(true);
  if (path === "linux-7.3") {
    // For ever: nothing of this kernel is looked at again.
    expect(() => s.peer.reset()).toThrow(WouldBlock);
    return;
  }
  const { sched } = s.host.kernel;
  const before = sched.now;
  s.peer.reset();
  // What the old callback is given, and the reset itself.
  expect(sched.now - before).toBeGreaterThanOrEqual(DRAIN_LIMIT_NS);
  expect(sched.now - before).toBeLessThan(2 * DRAIN_LIMIT_NS);
  expect(dmaRead(adapter.fn, address, byte)).toBe(false);
  // The buffer is of use to everybody else, and the importer's own unmap is still to come.
  expect(s.import("iommufd", { dmabuf, fd: s.handleOf(dmabuf) })).not.toBeInstanceOf(Errno);
  s.run(dmaBufUnmapAttachmentUnlocked(att, sgt, "bidirectional"));
  s.run(dmaBufDetach(dmabuf, att));
  expect(s.end()).toEqual({});
});

test.each(both)("%s: N6, copies and attaches of dead pages succeed", (path) => {
  const s = pairScene(path);
  const { fd } = s.export("vfio");
  const iova = s.ioas.mapFile(fd, { length: BYTES });
  s.peer.reset();
  const other = s.iommufd.allocIoas();
  expect(errnoOf(() => other.copyFrom(s.ioas, iova, PAGE))).toBe(on(path, "0", "ENODEV"));
  s.engine.detach();
  expect(errnoOf(() => s.engine.attach(s.ioas))).toBe(on(path, "0", "ENODEV"));
});

test.each(both)("%s: N11, a map that is refused has moved the buffer out of VRAM", (path) => {
  const s = pairScene(path);
  const { fd } = s.export("vram");
  const r = errnoOf(() => s.ioas.mapFile(fd, { length: BYTES }));
  expect([r, s.vram.moves]).toEqual(on(path, ["EOPNOTSUPP", 1], ["0", 0]));
});

test.each(both)("%s: N12, a descriptor opened for reading is mapped for writing", (path) => {
  const s = pairScene(path);
  const fd = s.peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: PAGE }], openFlags: O_RDONLY });
  expect(errnoOf(() => s.ioas.mapFile(fd, { length: PAGE }))).toBe(on(path, "0", EACCES.name));
});

test.each(both)("%s: N13, a BAR is mapped that the device behind the table cannot reach", (path) => {
  // The ports redirect, and nothing says that the host bridge routes.
  const host = Host.embedded({ ...readMachine("oracle"), interconnect: path });
  hosts.push(host);
  const iommufd = host.openIommufd();
  const engine = host.openDevice("0000:01:00.0").bind(iommufd);
  const peer = host.openDevice("0000:02:00.0").bind(iommufd);
  const ioas = iommufd.allocIoas();
  engine.attach(ioas);
  peer.setMemoryEnabled(true);
  const fd = peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: PAGE }] });
  expect(errnoOf(() => ioas.mapFile(fd, { length: PAGE }))).toBe(on(path, "0", EOPNOTSUPP.name));
  // Nor can a device join a table that shows what it does not reach.
  const second = iommufd.allocIoas();
  expect(errnoOf(() => second.mapFile(fd, { length: PAGE }))).toBe("0");
  engine.detach();
  expect(errnoOf(() => engine.attach(second))).toBe(on(path, "0", "EINVAL"));
});

test.each(both)("%s: N17, a fault waits for the reset, the reset for an importer, and that for the fault's mmap lock", (path) => {
  const s = new PairScene(path);
  const { kernel } = s.host;
  const { process } = s.host.os;
  const { dmabuf } = s.export("vfio");
  const adapter = s.pdev(ADAPTER);
  const bar = s.host.os.mmap(s.peer.fd, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, s.peer.regionInfo(2).offset);
  if (bar instanceof Errno) throw new Error(bar.name);
  let unmap: (() => Step<void>) | undefined;
  const ops = {
    allowPeer2peer: true,
    *invalidateMappings(): Step<void> {
      if (unmap !== undefined) kernel.sched.spawn("importer", unmap, process);
    },
  };
  const att = s.run(dmaBufDynamicAttach(dmabuf, adapter, ops)) as DmaBufAttachment;
  const sgt = s.run(dmaBufMapAttachmentUnlocked(att, "bidirectional")) as SgTable;
  const fault = process.newThread("fault");
  unmap = function* (): Step<void> {
    // The program touches the BAR just now.
    kernel.sched.start(fault, process.space.store(bar.address, Uint8Array.of(1)));
    while (fault.state === "runnable") kernel.sched.step(fault);
    unmap = undefined;
    yield* process.mm.mmapLock.downWrite();
    yield* dmaBufUnmapAttachmentUnlocked(att, sgt, "bidirectional");
    process.mm.mmapLock.upWrite();
  };
  if (path === "linux-7.3") {
    expect(() => s.peer.reset()).toThrow(WouldBlock);
    expect(fault.blockedOn?.name).toMatch(/memory_lock/);
    return;
  }
  s.peer.reset();
  expect([fault.state, fault.result]).toEqual(["done", "SIGBUS"]);
  s.run(dmaBufDetach(dmabuf, att));
  expect(s.end()).toEqual({});
});

test.each(both)("%s: N21, the IOVA of a dead mapping is taken until an unmap, and anybody may take it then", (path) => {
  const s = pairScene(path);
  const { fd } = s.export("vfio");
  const iova = s.ioas.mapFile(fd, { length: BYTES });
  s.peer.reset();
  expect(errnoOf(() => s.ioas.mapFile(fd, { length: BYTES, iova }))).toBe(on(path, EEXIST.name, "0"));
  expect(s.host.lookUp(ENGINE, iova) !== undefined).toBe(path === "negotiated");
});
