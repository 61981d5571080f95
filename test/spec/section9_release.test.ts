/**
 * Section 9 of the interconnect's specification: how a mapped buffer is let
 * go, path by path. Order is read from the trace; `[` and `]` are the
 * reservation's lock and unlock.
 */
import { describe, expect, test } from "vitest";
import type { DmaBufHandle } from "../../src/client/index.ts";
import { Errno } from "../../src/lib/errno.ts";
import { WouldBlock } from "../../src/sched/index.ts";
import { AT, bookkeeping, ENGINE, errnoOf, PAGE, PEER, Scene, SIZE } from "./p2p_scene.ts";

const REGISTRATIONS = "vfio registrations beyond the driver's own";
/** Unpin under the reservation, then off the list under it, then the buffer. */
const RELEASE = "[ unpin ] [ ] detach put";

describe("§9 row 1: a MAP_FILE that fails after the attach", () => {
  const failures: readonly {
    what: string;
    errno: string;
    steps: string;
    buffer: (s: Scene) => DmaBufHandle;
    before?: (s: Scene) => void;
  }[] = [
    {
      what: "because the buffer has two ranges",
      errno: "EOPNOTSUPP",
      buffer: (s) => s.export(2),
      steps: "[ ] attach [ pin private_map_refused unpin ] [ ] detach put",
    },
    {
      what: "because the IOVA is taken",
      errno: "EEXIST",
      buffer: (s) => s.export(),
      before: (s) => void s.ioas.map(s.host.os.mmapAnonymous(0x4000).address, SIZE, { iova: AT }),
      steps: "[ ] attach [ pin private_map ] [ unpin ] [ ] detach put",
    },
  ];
  for (const f of failures) {
    test(`${f.what} unpins, detaches and puts the buffer, in this order`, () => {
      const s = new Scene();
      const buf = f.buffer(s);
      f.before?.(s);
      s.events.length = 0;
      expect(errnoOf(() => s.ioas.mapFile(buf, { length: SIZE, iova: AT }))).toBe(f.errno);
      expect(normal(s.since(bookkeeping))).toBe(f.steps);
      expect([s.held("dma_buf attachment"), s.held("dma_buf")]).toEqual([0, 1]);
      buf.close();
      expect(s.held("dma_buf")).toBe(0);
    });
  }

  test("a buffer that refuses the attach was not pinned, and is only put", () => {
    const s = new Scene();
    const buf = s.export();
    s.peer.setMemoryEnabled(false);
    s.events.length = 0;
    expect(errnoOf(() => s.ioas.mapFile(buf, { length: SIZE }))).toBe("ENODEV");
    expect(normal(s.since(bookkeeping))).toBe("attach_refused put");
  });
});

/** The list of attachments is changed under the reservation; the event of it comes inside or right after. */
function normal(steps: readonly string[]): string {
  return steps.join(" ").replaceAll("[ attach ]", "[ ] attach").replaceAll("[ detach ]", "[ ] detach");
}

describe("§9 row 2: the last area or copy is unmapped", () => {
  for (const revoked of [false, true]) {
    test(`the pages of a ${revoked ? "revoked" : "live"} buffer go with the last of three areas, and not before`, () => {
      const s = new Scene();
      const other = s.iommufd.allocIoas();
      const buf = s.export();
      const first = s.ioas.mapFile(buf, { length: SIZE });
      const copy = s.ioas.copyFrom(s.ioas, first, SIZE);
      const far = other.copyFrom(s.ioas, first, SIZE);
      buf.close();
      if (revoked) s.peer.setMemoryEnabled(false);
      s.events.length = 0;
      expect(s.ioas.unmap(first, SIZE)).toBe(SIZE);
      expect(other.unmap(far, SIZE)).toBe(SIZE);
      expect(s.since(bookkeeping)).toEqual([]);
      expect(s.held("iommufd pages")).toBe(1);
      expect(s.reaches(copy)).toBe(revoked ? undefined : s.bar);
      expect(s.ioas.unmap(copy, SIZE)).toBe(SIZE);
      expect(normal(s.since(bookkeeping))).toBe(`${RELEASE} release`);
      expect([s.held("iommufd pages"), s.held("dma_buf"), s.held("vfio dma-buf")]).toEqual([0, 0, 0]);
    });
  }

  test("the domain loses the mapping before the buffer is unpinned; a revoked one is not unmapped again", () => {
    const s = new Scene();
    const pick = (e: (typeof s.events)[number]): string | undefined => (e.type === "iommu.unmap" ? "unmap" : bookkeeping(e));
    const live = s.ioas.mapFile(s.export(), { length: SIZE });
    s.events.length = 0;
    s.ioas.unmap(live, SIZE);
    expect(normal(s.since(pick))).toBe(`unmap ${RELEASE}`);
    const dead = s.ioas.mapFile(s.export(), { length: SIZE });
    s.peer.reset();
    s.events.length = 0;
    s.ioas.unmap(dead, SIZE);
    expect(normal(s.since(pick))).toBe(RELEASE);
  });

  test("an IOAS that is destroyed lets go of all it has", () => {
    const s = new Scene();
    const other = s.iommufd.allocIoas();
    const buf = s.export();
    for (const iova of [AT, 2n * AT]) other.mapFile(buf, { length: SIZE, iova });
    s.events.length = 0;
    other.destroy();
    expect(normal(s.since(bookkeeping))).toBe(`${RELEASE} ${RELEASE}`);
  });
});

describe("§9 row 3: the iommufd's descriptor is closed", () => {
  test("nothing goes while a device is bound to it; with the last device all does, the devices' buffers after their revoke", () => {
    const s = new Scene();
    const buf = s.export();
    const iova = s.ioas.mapFile(buf, { length: SIZE });
    s.iommufd.close();
    expect(s.reaches(iova)).toBe(s.bar);
    s.peer.close();
    expect(s.held("iommufd pages")).toBe(1);
    expect(s.reaches(iova)).toBeUndefined();
    s.events.length = 0;
    s.engine.close();
    expect(normal(s.since(bookkeeping))).toBe(RELEASE);
    expect([s.held("iommufd context"), s.held("iommufd pages"), s.held("dma_buf attachment")]).toEqual([0, 0, 0]);
    expect(s.held("dma_buf")).toBe(1);
  });

  test("with no device bound to it, all goes at once", () => {
    const s = new Scene();
    const lone = s.host.openIommufd();
    lone.allocIoas().mapFile(s.export(), { length: SIZE });
    s.events.length = 0;
    lone.close();
    expect(normal(s.since(bookkeeping))).toBe(RELEASE);
  });
});

describe("§9 row 4: the buffer's descriptor is closed while it is mapped", () => {
  test("the attachment keeps the buffer, and the device's registration, until it is unmapped", () => {
    const s = new Scene();
    const before = s.held(REGISTRATIONS);
    const buf = s.export();
    expect(s.held(REGISTRATIONS)).toBe(before + 1);
    const iova = s.ioas.mapFile(buf, { length: SIZE });
    buf.close();
    expect(s.held("vfio dma-buf")).toBe(1);
    expect(s.reaches(iova + PAGE)).toBe(s.bar + PAGE);
    expect(s.held(REGISTRATIONS)).toBe(before + 1);
    s.ioas.unmap(iova, SIZE);
    expect(s.held(REGISTRATIONS)).toBe(before);
  });

  test("the close of the device puts the registration, once: the later release of the buffer puts no second", () => {
    const s = new Scene();
    const buf = s.export();
    const iova = s.ioas.mapFile(buf, { length: SIZE });
    buf.close();
    const before = s.held(REGISTRATIONS);
    s.peer.close();
    // The open file's own, and the buffer's.
    expect(s.held(REGISTRATIONS)).toBe(before - 2);
    expect(s.held("vfio dma-buf")).toBe(1);
    s.ioas.unmap(iova, SIZE);
    expect(s.held("vfio dma-buf")).toBe(0);
    expect(s.held(REGISTRATIONS)).toBe(before - 2);
  });
});

describe("§9 row 5: the device's descriptor is closed while its buffer is mapped", () => {
  test("the buffer is revoked and cleaned up before the function is disabled; the dead area keeps its IOVAs", () => {
    const s = new Scene();
    const buf = s.export();
    const iova = s.ioas.mapFile(buf, { length: SIZE });
    s.events.length = 0;
    s.peer.close();
    const order = s.since((e) => {
      if (e.type === "dma_buf.revoke") return e.step;
      if (e.type === "dma_buf.invalidate") return "invalidate";
      if (e.type === "iommu.unmap") return "unmap";
      if (e.type === "iommu.flush") return "flush";
      if (e.type === "pci.command" && !e.memory) return "memory off";
      if (e.type === "pci.hw_reset") return "reset";
      return e.type === "vfio.close" ? "closed" : undefined;
    });
    expect(order).toEqual(["revoked", "invalidate", "unmap", "flush", "drain", "drained", "cleaned_up", "memory off", "reset", "closed"]);
    expect(s.reaches(iova)).toBeUndefined();
    expect(errnoOf(() => s.ioas.mapFile(buf, { length: SIZE, iova }))).toBe("ENODEV");
    const memory = s.host.os.mmapAnonymous(0x4000).address;
    expect(errnoOf(() => s.ioas.map(memory, SIZE, { iova }))).toBe("EEXIST");
    expect(s.ioas.unmap(iova, SIZE)).toBe(SIZE);
    expect(errnoOf(() => s.ioas.map(memory, SIZE, { iova }))).toBe("0");
  });

  test("no later open of the device brings the buffer back", () => {
    const s = new Scene();
    const buf = s.export();
    s.peer.close();
    const again = s.host.openDevice(PEER).bind(s.iommufd);
    again.setMemoryEnabled(true);
    again.reset();
    expect(errnoOf(() => s.ioas.mapFile(buf, { length: SIZE }))).toBe("ENODEV");
    const fresh = again.exportDmaBuf({ region: 2, ranges: [{ offset: 0n, length: SIZE }] });
    expect(s.reaches(s.ioas.mapFile(fresh, { length: SIZE }))).toBe(s.bar);
  });
});

describe("§9 row 6: the driver is unbound", () => {
  test("it waits while a program has the device open, and ends with the close", () => {
    const s = new Scene();
    const iova = s.ioas.mapFile(s.export(), { length: SIZE });
    expect(() => s.host.unbindDriver(PEER)).toThrow(WouldBlock);
    expect(s.reaches(iova)).toBe(s.bar);
    s.events.length = 0;
    s.peer.close();
    s.host.kernel.sched.settle();
    const done = s.since((e) => (e.type === "vfio.close" || e.type === "vfio.unregistered" ? e.type : undefined));
    expect(done).toEqual(["vfio.close", "vfio.unregistered"]);
    expect(s.host.os.vfioDevicePath(PEER)).toBeUndefined();
  });

  test("it does not wait for a buffer that is open and mapped, once the device is closed", () => {
    const s = new Scene();
    const buf = s.export();
    const iova = s.ioas.mapFile(buf, { length: SIZE });
    s.peer.close();
    expect(s.host.unbindDriver(PEER)).toBeUndefined();
    expect(errnoOf(() => s.ioas.mapFile(buf, { length: SIZE }))).toBe("ENODEV");
    expect(s.ioas.unmap(iova, SIZE)).toBe(SIZE);
    buf.close();
    expect(s.host.bindDriver("vfio-pci", PEER)).toBeUndefined();
  });

  test("it waits for a buffer whose last reference is already gone but whose release has not run", () => {
    const s = new Scene();
    const { sched } = s.host.kernel;
    const buf = s.export();
    const child = s.host.os.fork();
    for (const h of [s.iommufd, s.engine, s.peer]) expect(child.close(h.fd)).toBeUndefined();
    const file = child.process.files.get(buf.fd);
    if (file instanceof Errno) throw new Error(`the child has no buffer: ${file.name}`);
    const fd = buf.fd;
    buf.close();
    // The child drops the last reference, and is stopped before it can take the device's lock.
    const { thread, sys } = child.process;
    sched.interleave = true;
    sched.start(thread, sys.close(fd));
    while (file.count.count > 0) sched.step(thread);
    sched.interleave = false;
    s.events.length = 0;
    s.peer.close();
    expect(s.since((e) => (e.type === "dma_buf.revoke" ? e.step : undefined))).not.toContain("cleaned_up");
    expect(() => s.host.unbindDriver(PEER)).toThrow(WouldBlock);
    expect(s.held("vfio dma-buf")).toBe(1);
    sched.finish(thread);
    sched.settle();
    expect(s.held("vfio dma-buf")).toBe(0);
    expect(s.events.filter((e) => e.type === "vfio.unregistered")).toHaveLength(1);
    child.exit();
  });

  test("of the engine, it does not touch the peer's buffers", () => {
    const s = new Scene();
    const iova = s.ioas.mapFile(s.export(), { length: SIZE });
    s.engine.close();
    expect(s.host.unbindDriver(ENGINE)).toBeUndefined();
    expect(s.held("iommufd pages")).toBe(1);
    expect(s.ioas.unmap(iova, SIZE)).toBe(SIZE);
  });
});
