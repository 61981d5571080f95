import { describe, expect, it } from "vitest";
import { CallError, type EmbeddedHost, Host, type VfioDevice } from "../../src/client/index.ts";
import { IOMMU_HWPT_ALLOC_DIRTY_TRACKING, O_RDWR } from "../../src/uapi/index.ts";

const EDU = "0000:01:00.0";
const IVSHMEM = "0000:02:00.0";

/** Runs `body` on a fresh recorded machine, and checks that nothing is left of it. */
function onMachine(body: (host: EmbeddedHost) => void): void {
  const host = Host.embedded("oracle");
  body(host);
  expect(host.shutdown()).toEqual({});
}

const errorOf = (call: () => unknown): CallError => {
  try {
    call();
  } catch (e) {
    if (e instanceof CallError) return e;
    throw e;
  }
  throw new Error("the call did not fail");
};

describe("a failed call", () => {
  it("throws an error that names the call, its arguments and the errno, and says what it means here", () => {
    onMachine((host) => {
      const iommufd = host.openIommufd();
      const ioas = iommufd.allocIoas();
      const e = errorOf(() => ioas.unmap(0x1000n, 0x2000n));
      expect(e.call).toBe("IOMMU_IOAS_UNMAP");
      expect(e.errno.name).toBe("ENOENT");
      expect(e.args).toEqual({ ioas_id: ioas.id, iova: 0x1000n, length: 0x2000n });
      expect(e.message).toBe(
        `IOMMU_IOAS_UNMAP(ioas_id: ${ioas.id}, iova: 0x1000, length: 0x2000) failed with ENOENT: nothing is mapped there, or the range would cut an area in two`,
      );
    });
  });

  it("that the kernel refuses for a reason of its own falls back to the errno's meaning", () => {
    onMachine((host) => {
      const iommufd = host.openIommufd();
      const device = host.openDevice(EDU).bind(iommufd);
      const ioas = iommufd.allocIoas();
      const e = errorOf(() => iommufd.allocHwpt({ device: device.id, parent: ioas.id, flags: IOMMU_HWPT_ALLOC_DIRTY_TRACKING }));
      expect(e.errno.name).toBe("EOPNOTSUPP");
      expect(e.message).toMatch(/this IOMMU has no such feature/);
    });
  });

  it("on a device that the machine does not have says so", () => {
    onMachine((host) => {
      expect(errorOf(() => host.openDevice("0000:99:00.0")).errno.name).toBe("ENODEV");
    });
  });

  it("on a device before bind is a RangeError where only the id is missing, and EINVAL from the kernel otherwise", () => {
    onMachine((host) => {
      const device = host.openDevice(EDU);
      expect(() => device.id).toThrow(RangeError);
      expect(errorOf(() => device.info()).errno.name).toBe("EINVAL");
    });
  });
});

describe("the typed calls", () => {
  const bound = (host: EmbeddedHost): { engine: VfioDevice; peer: VfioDevice } => {
    const iommufd = host.openIommufd();
    return { engine: host.openDevice(EDU).bind(iommufd), peer: host.openDevice(IVSHMEM).bind(iommufd) };
  };

  it("map a peer's BAR where asked, look it up, and lose it to a reset", () => {
    onMachine((host) => {
      const iommufd = host.openIommufd();
      const engine = host.openDevice(EDU).bind(iommufd);
      const peer = host.openDevice(IVSHMEM).bind(iommufd);
      const ioas = iommufd.allocIoas();
      engine.attach(ioas);
      peer.setMemoryEnabled(true);
      const buffer = peer.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: 0x100000n }] });
      expect(buffer.size).toBe(0x100000n);
      expect(ioas.mapFile(buffer, { length: 0x100000n, iova: 0x4000000n })).toBe(0x4000000n);
      expect(host.lookUp(EDU, 0x4000000n)?.physical).toBe(host.barAddress(IVSHMEM, 2));
      peer.reset();
      expect(host.lookUp(EDU, 0x4000000n)).toBeUndefined();
      expect(ioas.unmapAll()).toBe(0x100000n);
    });
  });

  it("read and write configuration space and BARs at each width", () => {
    onMachine((host) => {
      const { engine, peer } = bound(host);
      expect(engine.config.read16(0)).toBe(0x1234);
      expect(engine.config.read8(2)).toBe(0xe8);
      engine.setMemoryEnabled(true);
      peer.setMemoryEnabled(true);
      expect(engine.region(0).read32(0)).toBe(0x010000ed);
      const bar = peer.region(2);
      bar.write64(0x10, 0x1122334455667788n);
      expect(bar.read32(0x10)).toBe(0x55667788);
      bar.write8(0x10, 0xff);
      expect(bar.read64(0x10)).toBe(0x11223344556677ffn);
    });
  });

  it("see in a mapping of the BAR what a write through the device file put there", () => {
    onMachine((host) => {
      const { peer } = bound(host);
      peer.setMemoryEnabled(true);
      const bar = peer.region(2);
      const mapped = bar.mmap(0x1000, 0x1000);
      bar.write32(0x1004, 0xcafe);
      expect(mapped.load(4, 2)).toEqual(Uint8Array.of(0xfe, 0xca));
      peer.setMemoryEnabled(false);
      expect(mapped.load(4, 2)).toBe("SIGBUS");
      expect(mapped.store(4, Uint8Array.of(1))).toBe("SIGBUS");
      mapped.unmap();
    });
  });

  it("closed twice does no harm", () => {
    onMachine((host) => {
      const iommufd = host.openIommufd();
      iommufd.close();
      iommufd.close();
      expect(iommufd.closed).toBe(true);
    });
  });

  it("of two programs see each other's devices only through what the kernel allows", () => {
    onMachine((host) => {
      const mine = host.openDevice(EDU).bind(host.openIommufd());
      const other = host.newProgram("other");
      const theirs = other.openDevice(EDU);
      expect(errorOf(() => theirs.bind(other.openIommufd())).errno.name).toBe("EINVAL");
      expect(mine.config.read16(0)).toBe(0x1234);
      other.os.exit();
    });
  });
});

describe("the bare system calls", () => {
  it("return the errno and throw nothing", () => {
    onMachine((host) => {
      const r = host.os.open("/dev/nothing", O_RDWR);
      expect(String(r)).toBe("ENOENT");
      expect(String(host.os.ioctl(55, 0, 0n))).toBe("EBADF");
    });
  });

  it("take more memory than their arena holds", () => {
    onMachine((host) => {
      const memfd = host.createMemfd("big", 0x100000n);
      const bytes = Uint8Array.from({ length: 600_000 }, (_, i) => i & 0xff);
      expect(host.os.pwrite(memfd.fd, bytes, 0n)).toBe(bytes.length);
      expect(host.os.pread(memfd.fd, bytes.length, 0n)).toEqual(bytes);
    });
  });
});
