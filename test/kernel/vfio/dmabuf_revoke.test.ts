import fc from "fast-check";
import { beforeEach, describe, expect, it, vi } from "vitest";
import { dmaBufMapAttachment } from "../../../src/kernel/dma_buf/attachment.ts";
import { type DmaBuf, dmaBufPut } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { DmaFence } from "../../../src/kernel/dma_buf/fence.ts";
import { vfioPciDmaBufIommufdMap } from "../../../src/kernel/dma_buf/interconnect.ts";
import { Usage } from "../../../src/kernel/dma_buf/resv.ts";
import type { P2pdmaProvider } from "../../../src/kernel/pci/p2pdma.ts";
import { type VfioPciDmaBuf, vfioPciDmaBufCleanup, vfioPciDmaBufMove } from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { EINVAL, EMFILE, ENODEV, ENOENT, EOPNOTSUPP, EOVERFLOW, Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import { Importer, ok, plainDevice, Rig } from "../dma_buf/support.ts";
import { BAR_START, FakeDevice, type MapType } from "./dmabuf_support.ts";

vi.mock("../../../src/kernel/pci/p2pdma.ts", async (original) => ({
  ...(await original<object>()),
  p2pdmaMapType: (provider: P2pdmaProvider) => (provider as unknown as { fake: MapType }).fake,
}));

let rig: Rig;
let vdev: FakeDevice;
beforeEach(() => {
  rig = new Rig();
  rig.kernel.modules.load("vfio_pci_core");
  vdev = new FakeDevice(rig);
});

const privOf = (buf: DmaBuf): VfioPciDmaBuf => buf.priv as VfioPciDmaBuf;

/** Fresh export: the descriptor and its buffer, the reference for the test put at once (the descriptor keeps it). */
function exported(): { fd: number; buf: DmaBuf; priv: VfioPciDmaBuf } {
  const fd = vdev.export();
  const buf = vdev.buffer(fd);
  rig.call(() => dmaBufPut(buf));
  return { fd, buf, priv: privOf(buf) };
}

/** What an importer finds: attach, scatter-list map and private map. */
function look(buf: DmaBuf, attached: Importer): { attach: string; map: string; privateMap: string } {
  const name = (r: unknown): string => (r instanceof Errno ? r.name : "ok");
  const newcomer = new Importer(plainDevice("0000:00:0b.0"));
  const attach = name(rig.run(newcomer.attach(buf)));
  if (newcomer.att !== undefined) rig.run(newcomer.detach());
  const map = name(rig.run(attached.map()));
  if (attached.sgt !== undefined) rig.run(attached.unmap());
  const privately = function* (): Step<unknown> {
    yield* buf.resv.lock();
    const r = vfioPciDmaBufIommufdMap(attached.attached);
    buf.resv.unlock();
    return r;
  };
  return { attach, map, privateMap: name(rig.run(privately())) };
}

const close = (fd: number): void => {
  rig.run(rig.process.sys.close(fd));
};

describe("the states of a buffer (spec section 7.1)", () => {
  const all = (what: string) => ({ attach: what, map: what, privateMap: what });

  it("LIVE after an export with memory on, and then everything works", () => {
    const { buf, priv } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    expect(priv.revoked).toBe(false);
    expect(look(buf, i)).toEqual(all("ok"));
  });

  it("REVOKED after an export with memory off", () => {
    vdev.enabled = false;
    const { buf, priv } = exported();
    expect(priv.revoked).toBe(true);
    expect(rig.run(new Importer(plainDevice()).attach(buf))).toBe(ENODEV);
    rig.run(vdev.move(false));
    expect(priv.revoked).toBe(false);
  });

  it("LIVE → REVOKED → LIVE: attach, map and private map fail in between and work after", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    rig.run(vdev.move(true));
    expect(look(buf, i)).toEqual(all("ENODEV"));
    expect(i.log).toEqual(["invalidate"]);
    rig.run(vdev.move(false));
    expect(look(buf, i)).toEqual(all("ok"));
    // Told on the way back too: harmless, nothing was mapped.
    expect(i.log).toEqual(["invalidate", "invalidate"]);
  });

  it("§6 move 2: a request for the state it is in changes nothing and tells nobody", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    rig.run(vdev.move(false));
    rig.run(vdev.move(true));
    rig.run(vdev.move(true));
    expect(i.log).toEqual(["invalidate"]);
  });

  it("§6 cleanup: CLEANED-UP after the close of the device: revoked for ever, off the list, the registration dropped", () => {
    const { buf, priv } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    expect(vdev.registrations.count).toBe(2);
    rig.run(vfioPciDmaBufCleanup(vdev));
    expect([vdev.registrations.count, vdev.dmabufs.length, priv.vdev]).toEqual([1, 0, undefined]);
    expect(look(buf, i)).toEqual(all("ENODEV"));
    rig.run(vdev.move(false));
    expect(look(buf, i)).toEqual(all("ENODEV"));
  });

  it("§3 release, §9 row 2: RELEASED from LIVE or REVOKED: unlinked under ML, the registration put once", () => {
    for (const revoked of [false, true]) {
      const { fd } = exported();
      rig.run(vdev.move(revoked));
      close(fd);
      expect([vdev.registrations.count, vdev.dmabufs.length]).toEqual([1, 0]);
    }
    expect(rig.leaks()).toEqual({});
  });

  it("§3 release: RELEASED from CLEANED-UP: only freed, the registration is not put again", () => {
    const { fd } = exported();
    rig.run(vfioPciDmaBufCleanup(vdev));
    close(fd);
    expect(vdev.registrations.count).toBe(1);
    expect(rig.leaks()).toEqual({});
  });

  it("§9 row 4: an attachment keeps the file, hence the buffer, when the descriptor is closed", () => {
    const { fd, buf } = exported();
    buf.file.get();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    close(fd);
    expect(rig.leaks()).toMatchObject({ dma_buf: 1, "vfio dma-buf": 1 });
    rig.run(i.detach());
    rig.call(() => dmaBufPut(buf));
    expect(rig.leaks()).toEqual({});
    expect(vdev.registrations.count).toBe(1);
  });
});

describe("a revoke", () => {
  it("is called with ML held for writing", () => {
    exported();
    expect(() => rig.run(vfioPciDmaBufMove(vdev, true))).toThrow(KernelBug);
  });

  it("§6 move 3: sets the flag before it tells the importers, so one that maps again at once is refused", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    let seen: unknown;
    i.onInvalidate = function* (att) {
      seen = yield* dmaBufMapAttachment(att, "bidirectional");
    };
    ok(rig.run(i.attach(buf)));
    rig.run(vdev.move(true));
    expect(seen).toBe(ENODEV);
  });

  it("§6 move 4, §3 unmap_dma_buf: returns only when every scatter-list map is gone (I1)", () => {
    const { buf, priv } = exported();
    const [a, b] = [new Importer(plainDevice("a")), new Importer(plainDevice("b"))];
    for (const i of [a, b]) {
      ok(rig.run(i.attach(buf)));
      ok(rig.run(i.map()));
    }
    expect(priv.kref.count).toBe(3);
    const t = rig.start("revoke", () => vdev.move(true));
    expect([t.state, t.blockedOn?.name]).toEqual(["blocked", "vfio dma-buf unmapped"]);
    rig.run(a.unmap());
    rig.kernel.sched.settle();
    expect(t.state).toBe("blocked");
    rig.run(b.unmap());
    rig.kernel.sched.settle();
    expect([t.state, priv.kref.count, priv.comp.done]).toEqual(["done", 1, false]);
  });

  it("§8 waits: waits without the reservation, so that the importer can unmap, and with ML, so that nobody turns memory on", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    ok(rig.run(i.map()));
    rig.start("revoke", () => vdev.move(true));
    expect([buf.resv.locked, vdev.memoryLock.locked]).toEqual([false, true]);
    rig.run(i.unmap());
    rig.kernel.sched.settle();
    expect(vdev.memoryLock.locked).toBe(false);
  });

  it("§6 move 3: waits for every fence, bookkeeping ones too, with the reservation held (H3)", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    ok(rig.run(i.map()));
    const job = new DmaFence(rig.kernel.sched, { context: 7n, seqno: 1n, driver: "gpu", timeline: "ring" });
    const submit = function* (): Step<void> {
      yield* buf.resv.lock();
      buf.resv.reserveFences(1);
      buf.resv.addFence(job, Usage.bookkeep);
      buf.resv.unlock();
    };
    rig.run(submit());
    const t = rig.start("revoke", () => vdev.move(true));
    expect([t.blockedOn?.name, buf.resv.locked]).toEqual(["fence gpu-ring", true]);
    expect(rig.typesOf("dma_buf.wait_fences")).toHaveLength(1);
    job.signal();
    rig.kernel.sched.settle();
    // The job is over; the mapping is not.
    expect(t.blockedOn?.name).toBe("vfio dma-buf unmapped");
    rig.run(i.unmap());
    rig.kernel.sched.settle();
    expect(t.state).toBe("done");
  });

  it("§6 move 4: leaves the count and the completion as an export does, so that revokes and maps may follow in any order (H4)", () => {
    const { buf, priv } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    rig.run(vdev.move(true));
    rig.run(vdev.move(true));
    rig.run(vdev.move(false));
    ok(rig.run(i.map()));
    expect(priv.kref.count).toBe(2);
    const t = rig.start("revoke", () => vdev.move(true));
    expect(t.state).toBe("blocked");
    rig.run(i.unmap());
    rig.kernel.sched.settle();
    expect(t.state).toBe("done");
    rig.run(vfioPciDmaBufCleanup(vdev));
    expect(priv.kref.count).toBe(1);
  });

  it("by COMMAND.MEMORY and then by close neither underflows nor hangs (H4)", () => {
    exported();
    rig.run(vdev.move(true));
    const t = rig.start("close", () => vfioPciDmaBufCleanup(vdev));
    expect(t.state).toBe("done");
  });

  it("goes through the buffers one by one, and tells of each step", () => {
    exported();
    exported();
    rig.events.length = 0;
    rig.run(vdev.move(true));
    const steps = rig.events.filter((e) => e.type === "dma_buf.revoke").map((e) => `${e.ino} ${e.step}`);
    expect(steps).toEqual(["1 revoked", "1 drain", "1 drained", "2 revoked", "2 drain", "2 drained"]);
  });
});

describe("an un-revoke", () => {
  it("§6 move 5: tells the importers with the flag still set: one that maps in the callback is refused and no map is lost (H5)", () => {
    const { buf, priv } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    rig.run(vdev.move(true));
    const seen: unknown[] = [];
    i.onInvalidate = function* (att) {
      seen.push(yield* dmaBufMapAttachment(att, "bidirectional"));
    };
    rig.run(vdev.move(false));
    expect(seen).toEqual([ENODEV]);
    expect(priv.kref.count).toBe(1);
    ok(rig.run(i.map()));
    expect(priv.kref.count).toBe(2);
  });

  it("waits for fences like a revoke", () => {
    const { buf } = exported();
    rig.run(vdev.move(true));
    const job = new DmaFence(rig.kernel.sched, { context: 7n, seqno: 1n, driver: "gpu", timeline: "ring" });
    const submit = function* (): Step<void> {
      yield* buf.resv.lock();
      buf.resv.reserveFences(1);
      buf.resv.addFence(job, Usage.bookkeep);
      buf.resv.unlock();
    };
    rig.run(submit());
    const t = rig.start("unrevoke", () => vdev.move(false));
    expect(t.state).toBe("blocked");
    job.signal();
    rig.kernel.sched.settle();
    expect(t.state).toBe("done");
  });
});

describe("races, driven by hand", () => {
  const stepTo = (t: Task, lock: string): void => {
    for (let i = 0; i < 100; i++) {
      if (t.point?.on.name === lock && t.point.op === "lock") return;
      rig.kernel.sched.step(t);
    }
    throw new Error(`${t.name} never came to ${lock}`);
  };

  it("an attach that looked before the revoke is listed after it, and its map answers ENODEV (H6)", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    rig.kernel.sched.interleave = true;
    const a = rig.process.newThread("A");
    rig.kernel.sched.start(a, i.attach(buf));
    stepTo(a, "RESV");
    rig.run(vdev.move(true));
    expect(i.log).toEqual([]);
    ok(rig.kernel.sched.finish(a) as Errno | object);
    expect(buf.attachments).toHaveLength(1);
    expect(rig.run(i.map())).toBe(ENODEV);
    // Alive again, the same attachment maps: it was never in the way.
    rig.run(vdev.move(false));
    ok(rig.run(i.map()));
  });

  it("a map that waits for the reservation behind a revoke answers ENODEV (I2)", () => {
    const { buf } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    rig.kernel.sched.interleave = true;
    const a = rig.process.newThread("A");
    rig.kernel.sched.start(a, i.map());
    stepTo(a, "RESV");
    rig.run(vdev.move(true));
    expect(rig.kernel.sched.finish(a)).toBe(ENODEV);
  });

  it("§6 move 1, §6 cleanup: a buffer whose file is dying is skipped by revoke and cleanup, and puts its registration itself (N15)", () => {
    const { fd, buf } = exported();
    const t = rig.process.newThread("closer");
    rig.kernel.sched.interleave = true;
    rig.kernel.sched.start(t, rig.process.sys.close(fd));
    while (buf.file.count.count > 0) rig.kernel.sched.step(t);
    rig.events.length = 0;
    rig.run(vdev.move(true));
    rig.run(vfioPciDmaBufCleanup(vdev));
    expect(rig.events.filter((e) => e.type === "dma_buf.revoke").map((e) => e.step)).toEqual(["skipped", "skipped"]);
    expect([vdev.dmabufs.length, vdev.registrations.count]).toEqual([1, 2]);
    rig.kernel.sched.finish(t);
    expect([vdev.dmabufs.length, vdev.registrations.count]).toEqual([0, 1]);
  });

  it("in any order of revokes, un-revokes, maps and a close: no map while revoked, none left when a revoke returns", () => {
    const plan = fc.record({
      choices: fc.array(fc.nat(11), { minLength: 40, maxLength: 160 }),
      moves: fc.array(fc.boolean(), { minLength: 1, maxLength: 5 }),
      rounds: fc.integer({ min: 1, max: 3 }),
    });
    fc.assert(
      fc.property(plan, ({ choices, moves, rounds }) => {
        rig = new Rig();
        rig.kernel.modules.load("vfio_pci_core");
        vdev = new FakeDevice(rig);
        const { fd, buf, priv } = exported();
        const { sched } = rig.kernel;
        const importers = [new Importer(plainDevice("a")), new Importer(plainDevice("b"))];
        const live = (): number => importers.filter((i) => i.sgt !== undefined).length;
        sched.interleave = true;
        const work = (i: Importer) =>
          function* (): Step<void> {
            for (let n = 0; n < rounds; n++) {
              buf.file.get();
              if ((yield* i.attach(buf)) instanceof Errno) {
                dmaBufPut(buf);
                continue;
              }
              if (!((yield* i.map()) instanceof Errno)) yield* i.unmap();
              yield* i.detach();
              dmaBufPut(buf);
            }
          };
        const mover = function* (): Step<void> {
          for (const revoked of moves) {
            yield* vdev.memoryLock.downWrite();
            yield* vfioPciDmaBufMove(vdev, revoked);
            if (revoked) expect([priv.revoked, live(), priv.kref.count]).toEqual([true, 0, 1]);
            vdev.memoryLock.upWrite();
          }
        };
        const closer = function* (): Step<void> {
          yield* vfioPciDmaBufCleanup(vdev);
          expect(live()).toBe(0);
        };
        const bodies = [work(importers[0] as Importer), work(importers[1] as Importer), mover, closer];
        const tasks = bodies.map((body, n) => {
          const t = rig.process.newThread(`t${n}`);
          sched.start(t, body());
          return t;
        });
        for (let n = 0; ; n++) {
          const ready = tasks.filter((t) => t.state === "runnable");
          if (ready.length === 0) break;
          sched.step(ready[(choices[n % choices.length] as number) % ready.length] as Task);
        }
        for (const t of tasks) if (t.error !== undefined) throw t.error;
        expect(tasks.map((t) => t.state)).toEqual(tasks.map(() => "done"));
        sched.interleave = false;
        close(fd);
        expect(rig.leaks()).toEqual({});
        expect(vdev.registrations.count).toBe(1);
      }),
      { numRuns: 60 },
    );
  });
});

it("§2 row 18: a full descriptor table releases the buffer through the ordinary path, once (H1)", () => {
  rig.process.rlimits.nofile = rig.process.files.size;
  expect(vdev.feature([{ offset: 0n, length: 0x1000n }])).toBe(EMFILE);
  expect([vdev.registrations.count, vdev.dmabufs.length]).toEqual([1, 0]);
  expect(rig.leaks()).toEqual({});
  expect(rig.typesOf("dma_buf.release")).toHaveLength(1);
});

it("§2 row 15: a device that is being unregistered exports nothing: ENODEV, after the ranges were found good", () => {
  vdev.unregistering = true;
  expect(vdev.feature([{ offset: 0n, length: 0x1000n }])).toBe(ENODEV);
  expect(vdev.feature([{ offset: 0n, length: 0x100_0000n }])).toBe(EINVAL);
  rig.kernel.modules.unload("vfio_pci_core");
  expect(vdev.feature([{ offset: 0n, length: 0x1000n }])).toBe(ENODEV);
  vdev.unregistering = false;
  expect(vdev.feature([{ offset: 0n, length: 0x1000n }])).toBe(ENOENT);
  expect([vdev.registrations.count, rig.leaks()]).toEqual([1, {}]);
});

it("§2 row 13: an end that wraps the address space is EOVERFLOW where the BAR lies high enough", () => {
  vdev.start = 0xffff_ffff_ffff_0000n;
  vdev.length = 0x8000n;
  expect(vdev.feature([{ offset: 0xf000n, length: 0x1000n }])).toBe(EOVERFLOW);
  expect(vdev.feature([{ offset: 0x7000n, length: 0x2000n }])).toBe(EINVAL);
  expect(vdev.feature([{ offset: 0x1_0000n, length: 0x1000n }])).toBe(EOVERFLOW);
});

describe("what the exporter answers (spec section 3)", () => {
  it("§3 attach: no peer-to-peer EOPNOTSUPP, then revoked ENODEV, then not revocable EOPNOTSUPP", () => {
    const { buf } = exported();
    const attach = (o: { peer2peer?: boolean; revocable?: boolean }) => rig.run(new Importer(plainDevice(), o).attach(buf));
    expect(attach({ peer2peer: false })).toBe(EOPNOTSUPP);
    expect(attach({ revocable: false })).toBe(EOPNOTSUPP);
    rig.run(vdev.move(true));
    expect(attach({ peer2peer: false })).toBe(EOPNOTSUPP);
    expect(attach({ revocable: false })).toBe(ENODEV);
    expect(attach({})).toBe(ENODEV);
  });

  it("§3 map_dma_buf: the bus addresses of every range, below one switch", () => {
    const fd = vdev.export([
      { offset: 0x3000n, length: 0x2000n },
      { offset: 0n, length: 0x1000n },
    ]);
    const buf = vdev.buffer(fd);
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    expect(ok(rig.run(i.map())).entries).toEqual([
      { address: BAR_START + 0x3000n, length: 0x2000n },
      { address: BAR_START, length: 0x1000n },
    ]);
  });

  it("§3 map_dma_buf: EINVAL where the transactions would not arrive, and then no reference is taken", () => {
    vdev.mapType = "not_supported";
    const { buf, priv } = exported();
    const i = new Importer(plainDevice());
    ok(rig.run(i.attach(buf)));
    expect((rig.run(i.map()) as Errno).name).toBe("EINVAL");
    expect(priv.kref.count).toBe(1);
  });
});
