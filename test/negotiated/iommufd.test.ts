import { describe, expect, it } from "vitest";
import { CallError, DmaBufHandle, type EmbeddedHost, Host, type Ioas, readMachine, type VfioDevice } from "../../src/client/index.ts";
import { checkInvariants } from "../../src/kernel/iommufd/check.ts";
import { Errno } from "../../src/lib/errno.ts";
import { DMA_HEAP_IOCTL_ALLOC, DmaHeapAllocationData, O_CLOEXEC, O_RDONLY, O_RDWR, POLLPRI } from "../../src/uapi/index.ts";

const EDU = "0000:01:00.0";
const PEER = "0000:04:00.0";
const PAGE = 0x1000n;
const IOVA = 0x400_0000n;

interface Set {
  readonly host: EmbeddedHost;
  readonly engine: VfioDevice;
  readonly peer: VfioDevice;
  readonly ioas: Ioas;
}

/** An engine attached to an IOAS, and a peer with its memory on. */
function onMachine(body: (set: Set) => void): void {
  const host = Host.embedded(readMachine("negotiated"));
  const iommufd = host.openIommufd();
  const engine = host.openDevice(EDU).bind(iommufd);
  const peer = host.openDevice(PEER).bind(iommufd);
  const ioas = iommufd.allocIoas();
  engine.attach(ioas);
  peer.setMemoryEnabled(true);
  body({ host, engine, peer, ioas });
  checkInvariants(host.kernel);
  expect(host.shutdown()).toEqual({});
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

const whole = (peer: VfioDevice, length = 4n * PAGE): DmaBufHandle => peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length }] });

describe("MAP_FILE of a negotiated buffer", () => {
  it("maps several ranges of a BAR back to back, as device memory", () => {
    onMachine(({ host, peer, ioas }) => {
      const ranges = [
        { offset: 8n * PAGE, length: PAGE },
        { offset: 0n, length: 2n * PAGE },
      ];
      const buffer = peer.exportDmaBuf({ region: 2, ranges });
      ioas.mapFile(buffer, { length: 3n * PAGE, iova: IOVA });
      const bar = host.barAddress(PEER, 2) as bigint;
      expect([0n, 1n, 2n].map((i) => (host.lookUp(EDU, IOVA + i * PAGE)?.physical as bigint) - bar)).toEqual([8n * PAGE, 0n, PAGE]);
      checkInvariants(host.kernel);
    });
  });

  it("maps a slice that begins inside the second range", () => {
    onMachine(({ host, peer, ioas }) => {
      const buffer = peer.exportDmaBuf({
        region: 2,
        ranges: [
          { offset: 0n, length: 2n * PAGE },
          { offset: 8n * PAGE, length: 2n * PAGE },
        ],
      });
      ioas.mapFile(buffer, { start: 3n * PAGE, length: PAGE, iova: IOVA });
      expect(host.lookUp(EDU, IOVA)?.physical).toBe((host.barAddress(PEER, 2) as bigint) + 9n * PAGE);
    });
  });

  it("is refused for writing through a descriptor that was opened for reading", () => {
    onMachine(({ peer, ioas }) => {
      const buffer = peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: PAGE }], openFlags: O_RDONLY });
      expect(errnoOf(() => ioas.mapFile(buffer, { length: PAGE }))).toBe("EACCES");
      expect(errnoOf(() => ioas.mapFile(buffer, { length: PAGE, writeable: false }))).toBe("0");
    });
  });

  it("takes a system heap's buffer, as cacheable memory", () => {
    onMachine(({ host, ioas }) => {
      const heap = host.os.open("/dev/dma_heap/system", O_RDWR) as number;
      const a = DmaHeapAllocationData.alloc({ len: 4n * PAGE, fd_flags: O_RDWR | O_CLOEXEC });
      expect(host.os.ioctlBytes(heap, DMA_HEAP_IOCTL_ALLOC, a.bytes)).toBe(0);
      const buffer = new DmaBufHandle(host.os, a.fd);
      ioas.mapFile(buffer, { length: 4n * PAGE, iova: IOVA });
      expect(host.kernel.phys.at(host.lookUp(EDU, IOVA)?.physical as never)).toBe("ram");
    });
  });
});

describe("a revoke", () => {
  it("without the option leaves dead mappings, and maps, copies and attaches are told so", () => {
    onMachine(({ host, engine, peer, ioas }) => {
      const buffer = whole(peer);
      ioas.mapFile(buffer, { length: PAGE, iova: IOVA });
      peer.reset();
      expect(host.lookUp(EDU, IOVA)).toBeUndefined();
      expect(buffer.state()).toEqual({ state: "live", importers: 1, fenced: 0, epoch: 1n });
      const other = ioas.iommufd.allocIoas();
      expect(errnoOf(() => other.copyFrom(ioas, IOVA, PAGE))).toBe("ENODEV");
      engine.detach();
      expect(errnoOf(() => engine.attach(ioas))).toBe("ENODEV");
      expect(ioas.unmapAll()).toBe(PAGE);
    });
  });

  it("with the option gives the mappings back at the same IOVAs once memory is there again", () => {
    onMachine(({ host, peer, ioas }) => {
      ioas.restoreMappings();
      const buffer = whole(peer);
      ioas.mapFile(buffer, { length: 2n * PAGE, start: PAGE, iova: IOVA });
      const before = host.lookUp(EDU, IOVA);
      peer.reset();
      expect(host.lookUp(EDU, IOVA)).toEqual(before);
      peer.setMemoryEnabled(false);
      expect(host.lookUp(EDU, IOVA)).toBeUndefined();
      expect(buffer.state()).toMatchObject({ state: "revoked", epoch: 2n });
      checkInvariants(host.kernel);
      peer.setMemoryEnabled(true);
      expect(host.lookUp(EDU, IOVA)).toEqual(before);
    });
  });

  it("that is for ever is told to whoever polls, and is not undone by the option", () => {
    onMachine(({ host, peer, ioas }) => {
      ioas.restoreMappings();
      const buffer = whole(peer);
      ioas.mapFile(buffer, { length: PAGE, iova: IOVA });
      const changed = (): unknown => {
        const r = host.os.poll([{ fd: buffer.fd, events: POLLPRI }], 0);
        return r instanceof Errno ? r : r.revents[0];
      };
      expect(changed()).toBe(0);
      peer.close();
      expect(changed()).toBe(POLLPRI);
      expect(buffer.state().state).toBe("dead");
      expect(changed()).toBe(0);
      expect(errnoOf(() => ioas.mapFile(buffer, { length: PAGE }))).toBe("ENODEV");
    });
  });

  it("leaves a place that a new mapping can take without an unmap before", () => {
    onMachine(({ host, peer, ioas }) => {
      const buffer = whole(peer);
      ioas.mapFile(buffer, { length: PAGE, iova: IOVA });
      expect(errnoOf(() => ioas.mapFile(buffer, { length: PAGE, iova: IOVA }))).toBe("EEXIST");
      peer.reset();
      ioas.mapFile(buffer, { length: PAGE, start: PAGE, iova: IOVA });
      expect(host.lookUp(EDU, IOVA)?.physical).toBe((host.barAddress(PEER, 2) as bigint) + PAGE);
      checkInvariants(host.kernel);
    });
  });

  it("does not let a device join that could not reach what comes back", () => {
    // The ports redirect, and nothing says that the host bridge routes.
    const host = Host.embedded({ ...readMachine("oracle"), interconnect: "negotiated" });
    const iommufd = host.openIommufd();
    const engine = host.openDevice("0000:01:00.0").bind(iommufd);
    const peer = host.openDevice("0000:02:00.0").bind(iommufd);
    const ioas = iommufd.allocIoas();
    ioas.restoreMappings();
    peer.setMemoryEnabled(true);
    ioas.mapFile(peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: PAGE }] }), { length: PAGE });
    peer.setMemoryEnabled(false);
    expect(errnoOf(() => engine.attach(ioas))).toBe("EINVAL");
    expect(host.shutdown()).toEqual({});
  });
});
