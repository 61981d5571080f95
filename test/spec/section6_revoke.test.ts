/**
 * Every event that revokes an exported BAR, by system calls alone: one block
 * per row of the specification's table of triggers.
 *
 * What is looked at: does MAP_FILE of the same descriptor work (the buffer is
 * live), does the translation of the earlier mapping still exist, is UNMAP of
 * it still 0 with its whole length.
 */
import { afterEach, describe, expect, test } from "vitest";
import { IommuFault } from "../../src/kernel/iommu/iommu.ts";
import { vfioPciDmaBufMove } from "../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { EAGAIN, EBUSY, EINVAL, EIO, ENODEV, ENOSPC, ENOTTY, Errno } from "../../src/lib/errno.ts";
import * as R from "../../src/uapi/pci_regs.ts";
import * as V from "../../src/uapi/vfio.ts";
import { Bench, type BenchOptions, RAM_BYTES, TINY } from "../kernel/vfio/bench.ts";

const SET = V.VFIO_DEVICE_FEATURE_SET;

/** An exporter, opened, with its BAR 0 exported and mapped into an IOAS it is itself attached to. */
class Scene extends Bench {
  readonly fd: number;
  readonly ioasId: number;
  readonly buf: number;
  readonly iova: bigint;

  constructor(options: BenchOptions = {}) {
    super(options);
    this.fd = this.device();
    this.ioasId = this.ioas();
    expect(this.attach(this.fd, this.ioasId)).toBe(0);
    this.configWrite(this.fd, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY | R.PCI_COMMAND_MASTER);
    const buf = this.exportBar(this.fd);
    if (buf instanceof Errno) throw new Error(`export: ${buf.name}`);
    this.buf = buf;
    const iova = this.mapFile(this.ioasId, buf);
    if (iova instanceof Errno) throw new Error(`map: ${iova.name}`);
    this.iova = iova;
    expect(this.old).toBe("mapped");
  }

  /** The mapping made first. */
  get old(): "mapped" | "dead" {
    return this.kernel.iommu.translate(this.pdev().rid, this.iova, true) instanceof IommuFault ? "dead" : "mapped";
  }

  /** What a fresh MAP_FILE of the descriptor answers; undone at once. */
  again(): 0 | Errno {
    const r = this.mapFile(this.ioasId, this.buf);
    if (r instanceof Errno) return r;
    expect(this.unmap(this.ioasId, r, RAM_BYTES)).toBe(RAM_BYTES);
    return 0;
  }

  /** The dead area is still there, and goes with its whole length. */
  expectDeadButThere(): void {
    expect(this.old).toBe("dead");
    expect(this.unmap(this.ioasId, this.iova, RAM_BYTES)).toBe(RAM_BYTES);
  }

  command(value: number): number | Errno {
    return this.configWrite(this.fd, R.PCI_COMMAND, 2, value);
  }

  pmcsr(state: number): number | Errno {
    return this.configWrite(this.fd, this.pdev().pmCap + R.PCI_PM_CTRL, 2, state);
  }

  moves(): string[] {
    return this.events.flatMap((e) => (e.type === "dma_buf.revoke" && (e.step === "revoked" || e.step === "live") ? [e.step] : []));
  }

  clear(): void {
    this.events.length = 0;
  }
}

let s: Scene;
const scene = (options?: BenchOptions): Scene => {
  s = new Scene(options);
  return s;
};
afterEach(() => {
  s = undefined as unknown as Scene;
});

describe("COMMAND.MEMORY", () => {
  test.each([1, 2, 4] as const)(
    "§6 rows 1 and 2: cleared by a write of %i bytes revokes; set, it restores the buffer but not the mapping",
    (n) => {
      scene();
      expect(s.configWrite(s.fd, R.PCI_COMMAND, n, 0)).toBe(n);
      expect(s.old).toBe("dead");
      expect(s.again()).toBe(ENODEV);
      expect(s.command(R.PCI_COMMAND_MEMORY)).toBe(2);
      expect(s.again()).toBe(0);
      s.expectDeadButThere();
    },
  );

  test("§6 row 2: an export while it is clear is born revoked, and lives when it is set", () => {
    scene();
    s.command(0);
    const born = s.exportBar(s.fd) as number;
    expect(s.mapFile(s.ioasId, born)).toBe(ENODEV);
    s.command(R.PCI_COMMAND_MEMORY);
    expect(s.mapFile(s.ioasId, born)).not.toBeInstanceOf(Errno);
  });

  test("§6 row 1: a write of the upper byte, of bus mastering alone, or of a virtual BAR revokes nothing", () => {
    scene();
    s.clear();
    s.configWrite(s.fd, R.PCI_COMMAND + 1, 1, 4);
    s.command(R.PCI_COMMAND_MEMORY);
    s.configWrite(s.fd, R.PCI_BASE_ADDRESS_0, 4, 0xffff_ffff);
    expect(s.moves()).toEqual([]);
    expect(s.old).toBe("mapped");
  });

  test("§6 row 3: a clearing write that fails leaves the buffer revoked, though memory is on", () => {
    scene();
    let reads = 0;
    s.core().configFault = (pos, isWrite) => (pos === R.PCI_COMMAND && (isWrite || ++reads > 1) ? EIO : undefined);
    expect(s.command(0)).toBe(EIO);
    s.core().configFault = undefined;
    expect(s.core().memoryEnabled()).toBe(true);
    expect(s.again()).toBe(ENODEV);
    expect(s.command(R.PCI_COMMAND_MEMORY)).toBe(2);
    expect(s.again()).toBe(0);
  });
});

describe("PM_CTRL", () => {
  test("§6 rows 4 and 5: to D3hot revokes; back in D0 the buffer lives", () => {
    scene();
    s.pmcsr(3);
    expect(s.old).toBe("dead");
    expect(s.again()).toBe(ENODEV);
    expect(s.command(R.PCI_COMMAND_MEMORY)).toBe(2);
    expect(s.again()).toBe(ENODEV);
    s.pmcsr(0);
    expect(s.again()).toBe(0);
    s.expectDeadButThere();
  });

  test("§6 row 4: a refused D3hot kills the mapping all the same, and the buffer lives on", () => {
    scene();
    s.core().sriovActive = true;
    s.clear();
    s.pmcsr(3);
    expect(s.pdev().currentState).toBe(0);
    expect(s.moves()).toEqual(["revoked", "live"]);
    expect(s.old).toBe("dead");
    expect(s.again()).toBe(0);
    s.core().sriovActive = false;
  });
});

describe("VFIO_DEVICE_RESET", () => {
  test("§6 row 6: revokes, resets, and the buffer lives again", () => {
    scene();
    s.clear();
    expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(0);
    expect(s.moves()).toEqual(["revoked", "live"]);
    expect(s.again()).toBe(0);
    s.expectDeadButThere();
  });

  test("§6 row 6: from D3hot it wakes the function first", () => {
    scene();
    s.pmcsr(3);
    expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(0);
    expect(s.again()).toBe(0);
  });

  test("§6 row 6: of a function without a reset answers EINVAL and revokes nothing", () => {
    scene({ functions: [{ ...TINY, capabilities: { pcie: {} }, noBusReset: true }] });
    expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(EINVAL);
    expect(s.old).toBe("mapped");
  });

  test("§6 row 6: that finds the function locked answers EAGAIN: the mapping is dead, the buffer lives", () => {
    scene();
    const { lock } = s.pdev();
    const held = s.hold(
      () => lock.lock(),
      () => lock.unlock(),
    );
    expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(EAGAIN);
    expect(s.old).toBe("dead");
    expect(s.again()).toBe(0);
    held.release();
    s.settle();
  });
});

describe("FLR bits", () => {
  test("§6 row 7: of the express capability revoke and restore", () => {
    scene();
    s.clear();
    s.configWrite(s.fd, s.pdev().pcieCap + R.PCI_EXP_DEVCTL, 2, R.PCI_EXP_DEVCTL_BCR_FLR);
    expect(s.moves()).toEqual(["revoked", "live"]);
    expect(s.again()).toBe(0);
    s.expectDeadButThere();
  });

  test("§6 row 7: of the advanced features capability do too", () => {
    scene({ functions: [{ ...TINY, capabilities: { af: { flr: true } }, extended: {} }] });
    s.clear();
    s.configWrite(s.fd, s.pdev().findCap(R.PCI_CAP_ID_AF) + R.PCI_AF_CTRL, 1, R.PCI_AF_CTRL_FLR);
    expect(s.moves()).toEqual(["revoked", "live"]);
    s.expectDeadButThere();
  });
});

describe("PCI_HOT_RESET", () => {
  const hotReset = (fd: number, init: object = {}): number | Errno =>
    s.ioctl(fd, V.VFIO_DEVICE_PCI_HOT_RESET, V.VfioPciHotReset.alloc({ argsz: V.VfioPciHotReset.size, ...init }));
  const info = (fd: number, room: number) => {
    const bytes = new Uint8Array(12 + 8 * room);
    const v = V.VfioPciHotResetInfo.over(bytes);
    v.argsz = bytes.length;
    const result = s.ioctl(fd, V.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, { bytes });
    return {
      result,
      flags: v.flags,
      count: v.count,
      devids: Array.from({ length: room }, (_, i) => V.VfioPciDependentDevice.over(bytes, 12 + 8 * i).devid),
    };
  };

  test("§6 row 8: revokes, resets the bus, and the buffer lives again", () => {
    scene();
    s.clear();
    s.model().resets.length = 0;
    expect(hotReset(s.fd)).toBe(0);
    expect(s.model().resets).toContain("bus");
    expect(s.moves()).toEqual(["revoked", "live"]);
    expect(s.again()).toBe(0);
    s.expectDeadButThere();
  });

  test("flags, a short argsz and group descriptors are refused before anything is revoked", () => {
    scene();
    expect(hotReset(s.fd, { argsz: 11 })).toBe(EINVAL);
    expect(hotReset(s.fd, { flags: 1 })).toBe(EINVAL);
    expect(hotReset(s.fd, { count: 1 })).toBe(EINVAL);
    expect(s.old).toBe("mapped");
  });

  test("the devices it reaches are listed, with whose they are", () => {
    scene({ functions: [TINY, TINY], sharedBus: true });
    expect(info(s.fd, 1)).toMatchObject({ result: ENOSPC, count: 2, flags: 0 });
    // Functions of one device share a group: the second is owned through the first.
    expect(info(s.fd, 2)).toMatchObject({ result: 0, count: 2, flags: 3 });
    expect(info(s.fd, 2).devids[1]).toBe(V.VFIO_PCI_DEVID_OWNED);
  });

  test("a function of another driver on the bus stands in the way", () => {
    scene({ functions: [TINY, TINY], sharedBus: true });
    expect(s.kernelRun(s.kernel.pci.unbind(s.bdfs[1] as string))).toBeUndefined();
    expect(hotReset(s.fd)).toBe(EINVAL);
    expect(info(s.fd, 2).flags).toBe(V.VFIO_PCI_HOT_RESET_FLAG_DEV_ID);
    expect(info(s.fd, 2).devids[1]).toBe(V.VFIO_PCI_DEVID_NOT_OWNED);
    expect(s.old).toBe("mapped");
  });

  test("§6 row 8: a busy device ends it with EBUSY: those before it are restored, their mappings are dead", () => {
    scene({ functions: [TINY, TINY], sharedBus: true });
    const other = s.core(s.bdfs[1]);
    // Open, so awake: waking one takes ML before any of it is tried.
    s.device(s.bdfs[1]);
    const held = s.hold(
      () => other.memoryLock.downRead(),
      () => other.memoryLock.upRead(),
    );
    s.model().resets.length = 0;
    expect(hotReset(s.fd)).toBe(EBUSY);
    expect(s.model().resets).toEqual([]);
    expect(s.old).toBe("dead");
    expect(s.again()).toBe(0);
    held.release();
    s.settle();
  });

  test("§6 row 8: one that fails kills the mappings all the same", () => {
    scene({ functions: [{ ...TINY, reset: { bus: "dead" } }] });
    expect(hotReset(s.fd)).toBe(ENOTTY);
    expect(s.old).toBe("dead");
  });

  test("of a bus that cannot be reset answers ENODEV", () => {
    scene({ functions: [{ ...TINY, noBusReset: true }] });
    expect(hotReset(s.fd)).toBe(ENODEV);
    expect(info(s.fd, 4).result).toBe(ENODEV);
    expect(s.old).toBe("mapped");
  });
});

describe("low power", () => {
  const entry = SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY;
  const exit = SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT;

  test("§6 row 9: ENTRY revokes, the device sleeps, EXIT restores", () => {
    scene();
    expect(s.feature(s.fd, entry)).toBe(0);
    expect(s.old).toBe("dead");
    expect(s.again()).toBe(ENODEV);
    s.settle();
    expect(s.pdev().pm.suspended).toBe(true);
    expect(s.pdev().currentState).toBe(3);
    expect(s.feature(s.fd, exit)).toBe(0);
    expect(s.pdev().pm.suspended).toBe(false);
    expect(s.again()).toBe(0);
    s.expectDeadButThere();
  });

  test("§6 row 9: a second ENTRY answers EINVAL and leaves the buffers revoked", () => {
    scene();
    expect(s.feature(s.fd, entry)).toBe(0);
    expect(s.command(R.PCI_COMMAND_MEMORY)).toBe(2);
    expect(s.again()).toBe(0);
    expect(s.feature(s.fd, entry)).toBe(EINVAL);
    expect(s.again()).toBe(ENODEV);
  });

  test("an export in low power is born live, as measured", () => {
    scene();
    expect(s.feature(s.fd, entry)).toBe(0);
    const born = s.exportBar(s.fd) as number;
    expect(s.mapFile(s.ioasId, born)).not.toBeInstanceOf(Errno);
  });

  test("§6 row 10: a wake with a wakeup eventfd signals it and ends low power, but restores nothing", () => {
    scene();
    const e = s.eventfd();
    const payload = new Uint8Array(8);
    new DataView(payload.buffer).setInt32(0, e, true);
    expect(s.feature(s.fd, SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, payload)).toBe(0);
    s.settle();
    expect(s.takeEvents(e)).toBe(0n);
    s.kernelRun(s.pdev().pmRuntimeResume());
    expect(s.takeEvents(e)).toBe(1n);
    expect(s.core().pmRuntimeEngaged).toBe(false);
    expect(s.again()).toBe(ENODEV);
    expect(s.feature(s.fd, exit)).toBe(0);
    expect(s.again()).toBe(0);
  });

  test("a wakeup descriptor that is no eventfd is refused before anything is revoked", () => {
    scene();
    const payload = (fd: number): Uint8Array => {
      const p = new Uint8Array(8);
      new DataView(p.buffer).setInt32(0, fd, true);
      return p;
    };
    const flags = SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP;
    expect(s.feature(s.fd, flags, payload(-1))).toBe(EINVAL);
    expect(s.feature(s.fd, flags, payload(s.iommufd))).toBe(EINVAL);
    expect(s.feature(s.fd, flags, new Uint8Array(4))).toBe(EINVAL);
    expect(s.old).toBe("mapped");
  });

  test("§2 pre 2: a device that cannot be woken answers EIO to everything", () => {
    scene();
    expect(s.feature(s.fd, entry)).toBe(0);
    s.settle();
    s.pdev().pm.failNextResume = EIO;
    expect(s.ioctl(s.fd, V.VFIO_DEVICE_RESET)).toBe(EIO);
    s.pdev().pm.setStatus("suspended");
    s.pdev().pm.failNextResume = EIO;
    expect(s.pread(s.fd, 7, 0, 4)).toBe(EIO);
    s.pdev().pm.setStatus("suspended");
  });
});

describe("the end of the device", () => {
  test("§6 row 11, §6 cleanup, §9 row 5: the last close revokes for ever, also after the device is opened again", () => {
    scene();
    const { fd } = s;
    s.close(fd);
    // The area outlives the device; its IOVA stays taken.
    expect(s.mapFile(s.ioasId, s.buf)).toBe(ENODEV);
    const reopened = s.device();
    s.configWrite(reopened, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY);
    expect(s.mapFile(s.ioasId, s.buf)).toBe(ENODEV);
    expect(s.attach(reopened, s.ioasId)).toBe(0);
    s.expectDeadButThere();
  });

  test("§6 row 11: at close the buffers die before the function loses its interrupts, BARs and state", () => {
    scene();
    s.clear();
    s.close(s.fd);
    const order = s.events.map((e) => (e.type === "dma_buf.revoke" ? e.step : e.type));
    expect(order.indexOf("cleaned_up")).toBeGreaterThanOrEqual(0);
    expect(order.indexOf("cleaned_up")).toBeLessThan(order.findIndex((t) => t === "pci.reset" || t === "pci.decode"));
  });

  test("§6 row 12, §9 row 6: an unbind with the buffer mapped waits for the device's close, not for the buffer's", () => {
    scene();
    const bdf = s.bdfs[0] as string;
    const thread = s.kernel.sched.thread("sysfs");
    expect(() => s.kernel.sched.execute(thread, s.kernel.pci.unbind(bdf))).toThrow();
    expect(s.old).toBe("mapped");
    expect(s.again()).toBe(0);
    s.close(s.fd);
    s.settle();
    expect(thread.finished).toBe(true);
    expect(s.mapFile(s.ioasId, s.buf)).toBe(ENODEV);
  });

  test("the buffer may be closed first", () => {
    scene();
    s.unmap(s.ioasId, s.iova, RAM_BYTES);
    s.close(s.buf);
    expect(s.core().dmabufs).toEqual([]);
    expect(s.core().vdev.registrations).toBe(2);
  });
});

describe("what has no hook", () => {
  test("§6 row 13: a reset through sysfs leaves buffer and mapping as they are", () => {
    scene();
    s.clear();
    expect(s.kernelRun(s.pdev().resetFunction())).toBeUndefined();
    expect(s.moves()).toEqual([]);
    expect(s.old).toBe("mapped");
  });
});

test("§6 move 2: a move to the state the buffers are in already tells nobody", () => {
  scene();
  s.clear();
  s.kernelRun(
    (function* () {
      const v = s.core();
      yield* v.memoryLock.downWrite();
      yield* vfioPciDmaBufMove(v, false);
      v.memoryLock.upWrite();
    })(),
  );
  expect(s.moves()).toEqual([]);
});
