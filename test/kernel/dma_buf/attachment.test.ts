import { describe, expect, it } from "vitest";
import {
  dmaBufAttachRevocable,
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufInvalidateMappings,
  dmaBufMapAttachment,
  dmaBufMapAttachmentUnlocked,
  dmaBufPin,
  dmaBufUnmapAttachment,
  dmaBufUnmapAttachmentUnlocked,
  dmaBufUnpin,
} from "../../../src/kernel/dma_buf/attachment.ts";
import { dmaBufPut } from "../../../src/kernel/dma_buf/dma_buf.ts";
import { DmaFence } from "../../../src/kernel/dma_buf/fence.ts";
import { Usage } from "../../../src/kernel/dma_buf/resv.ts";
import { EBUSY, EINTR, ENOMEM, EOPNOTSUPP } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { Exporter, Importer, ok, plainDevice, Rig } from "./support.ts";

function setUp(options: { pins?: boolean } = {}) {
  const rig = new Rig();
  const exporter = new Exporter(options);
  const buf = exporter.export(rig);
  const importer = new Importer(plainDevice());
  return { rig, exporter, buf, importer };
}

describe("an attachment", () => {
  it("goes through attach, map, unmap and detach, and leaves nothing behind", () => {
    const { rig, exporter, buf, importer } = setUp();
    ok(rig.run(importer.attach(buf)));
    expect(buf.attachments).toEqual([importer.att]);
    ok(rig.run(importer.map()));
    expect(importer.sgt?.entries).toEqual([{ address: 0x1000n, length: 0x1000n }]);
    rig.run(importer.unmap());
    rig.run(importer.detach());
    rig.call(() => dmaBufPut(buf));
    expect(exporter.log).toEqual(["attach", "map", "unmap", "detach", "release"]);
    expect(rig.leaks()).toEqual({});
    expect(rig.typesOf("dma_buf.")).toEqual([
      "dma_buf.export",
      "dma_buf.attach",
      "dma_buf.map",
      "dma_buf.unmap",
      "dma_buf.detach",
      "dma_buf.put",
      "dma_buf.release",
    ]);
  });

  it("that the exporter refuses never was: its errno comes back and detach is not called", () => {
    const { rig, exporter, buf, importer } = setUp();
    exporter.attachAnswer = EOPNOTSUPP;
    expect(rig.run(importer.attach(buf))).toBe(EOPNOTSUPP);
    expect(buf.attachments).toEqual([]);
    expect(exporter.log).toEqual(["attach"]);
    expect(rig.events.at(-1)).toMatchObject({ type: "dma_buf.attach_refused", errno: "EOPNOTSUPP" });
  });

  it("is detached once", () => {
    const { rig, buf, importer } = setUp();
    const att = ok(rig.run(importer.attach(buf)));
    rig.run(dmaBufDetach(buf, att));
    expect(() => rig.run(dmaBufDetach(buf, att))).toThrow(/detached twice/);
  });

  it("belongs to its own buffer", () => {
    const { rig, buf, importer } = setUp();
    const att = ok(rig.run(importer.attach(buf)));
    const other = new Exporter().export(rig);
    expect(() => rig.run(dmaBufDetach(other, att))).toThrow(KernelBug);
  });

  it("cannot leave with something mapped or pinned", () => {
    const { rig, buf, importer } = setUp({ pins: true });
    ok(rig.run(importer.attach(buf)));
    ok(rig.run(importer.map()));
    expect(() => rig.run(importer.detach())).toThrow(/1 maps and 0 pins/);
  });

  it("needs a device", () => {
    const { rig, buf } = setUp();
    expect(() => rig.run(dmaBufDynamicAttach(buf, undefined))).toThrow(KernelBug);
  });

  it("is revocable if the importer has the callback, whatever the callback does", () => {
    const { rig, buf, importer } = setUp();
    const stubborn = new Importer(plainDevice(), { revocable: false });
    expect(dmaBufAttachRevocable(ok(rig.run(importer.attach(buf))))).toBe(true);
    expect(dmaBufAttachRevocable(ok(rig.run(stubborn.attach(buf))))).toBe(false);
    expect(dmaBufAttachRevocable(ok(rig.run(dmaBufDynamicAttach(buf, plainDevice()))))).toBe(false);
  });
});

describe("the reservation", () => {
  it("must be held for pin, unpin, map, unmap and invalidate", () => {
    const { rig, buf, importer } = setUp();
    const att = ok(rig.run(importer.attach(buf)));
    const sgt = ok(rig.run(importer.map()));
    expect(() => rig.call(() => dmaBufPin(att))).toThrow(KernelBug);
    expect(() => rig.call(() => dmaBufUnpin(att))).toThrow(KernelBug);
    expect(() => rig.run(dmaBufMapAttachment(att, "to_device"))).toThrow(KernelBug);
    expect(() => rig.run(dmaBufUnmapAttachment(att, sgt, "to_device"))).toThrow(KernelBug);
    expect(() => rig.run(dmaBufInvalidateMappings(buf))).toThrow(KernelBug);
  });

  it("must not be held for attach and detach", () => {
    const { rig, buf, importer } = setUp();
    const held = function* () {
      yield* buf.resv.lock();
      yield* importer.attach(buf);
    };
    expect(() => rig.run(held())).toThrow(/twice/);
  });
});

describe("pinning", () => {
  it("asks the exporter, and its refusal is the answer", () => {
    const { rig, exporter, buf, importer } = setUp({ pins: true });
    const att = ok(rig.run(importer.attach(buf)));
    const body = function* () {
      yield* buf.resv.lock();
      exporter.pinAnswer = ENOMEM;
      const refused = dmaBufPin(att);
      exporter.pinAnswer = undefined;
      const pinned = dmaBufPin(att);
      dmaBufUnpin(att);
      buf.resv.unlock();
      return [refused, pinned];
    };
    expect(rig.run(body())).toEqual([ENOMEM, undefined]);
    expect(exporter.log).toEqual(["attach", "pin", "pin", "unpin"]);
  });

  it("§3 pin: of a buffer whose exporter has no pin succeeds and does nothing", () => {
    const { rig, exporter, buf, importer } = setUp();
    const att = ok(rig.run(importer.attach(buf)));
    const body = function* () {
      yield* buf.resv.lock();
      const r = dmaBufPin(att);
      dmaBufUnpin(att);
      buf.resv.unlock();
      return r;
    };
    expect(rig.run(body())).toBeUndefined();
    expect(exporter.log).toEqual(["attach"]);
  });

  it("is undone no more often than it was done", () => {
    const { rig, buf, importer } = setUp();
    const att = ok(rig.run(importer.attach(buf)));
    const body = function* () {
      yield* buf.resv.lock();
      dmaBufUnpin(att);
    };
    expect(() => rig.run(body())).toThrow(/has not pinned/);
  });
});

describe("a static importer", () => {
  it("pins when it maps and unpins when it unmaps", () => {
    const { rig, exporter, buf } = setUp({ pins: true });
    const att = ok(rig.run(dmaBufDynamicAttach(buf, plainDevice())));
    const sgt = ok(rig.run(dmaBufMapAttachmentUnlocked(att, "to_device")));
    rig.run(dmaBufUnmapAttachmentUnlocked(att, sgt, "to_device"));
    expect(exporter.log).toEqual(["attach", "pin", "map", "unmap", "unpin"]);
  });

  it("gets the exporter's refusal to pin, and a failed map undoes the pin", () => {
    const { rig, exporter, buf } = setUp({ pins: true });
    const att = ok(rig.run(dmaBufDynamicAttach(buf, plainDevice())));
    exporter.pinAnswer = EOPNOTSUPP;
    expect(rig.run(dmaBufMapAttachmentUnlocked(att, "to_device"))).toBe(EOPNOTSUPP);
    exporter.pinAnswer = undefined;
    exporter.mapAnswer = ENOMEM;
    expect(rig.run(dmaBufMapAttachmentUnlocked(att, "to_device"))).toBe(ENOMEM);
    expect(exporter.log).toEqual(["attach", "pin", "pin", "map", "unpin"]);
    expect(att.maps).toBe(0);
  });

  it("may not be kept out of a buffer that it is attached to", () => {
    const { rig, exporter, buf } = setUp({ pins: true });
    const att = ok(rig.run(dmaBufDynamicAttach(buf, plainDevice())));
    exporter.pinAnswer = EBUSY;
    expect(() => rig.run(dmaBufMapAttachmentUnlocked(att, "to_device"))).toThrow(KernelBug);
  });

  it("waits for the kernel's fences, a dynamic one does not", () => {
    const { rig, buf, importer } = setUp();
    const fence = new DmaFence(rig.kernel.sched, { context: 1n, seqno: 1n, driver: "mover", timeline: "copy" });
    const add = function* () {
      yield* buf.resv.lock();
      buf.resv.reserveFences(1);
      buf.resv.addFence(fence, Usage.kernel);
      buf.resv.unlock();
    };
    rig.run(add());
    ok(rig.run(importer.attach(buf)));
    ok(rig.run(importer.map()));
    const att = ok(rig.run(dmaBufDynamicAttach(buf, plainDevice())));
    const t = rig.start("static", () => dmaBufMapAttachmentUnlocked(att, "to_device"));
    expect([t.state, t.blockedOn?.name]).toEqual(["blocked", "fence mover-copy"]);
    fence.signal();
    rig.kernel.sched.settle();
    expect(t.state).toBe("done");
  });

  it("whose wait is interrupted has nothing mapped", () => {
    const { rig, exporter, buf } = setUp({ pins: true });
    const fence = new DmaFence(rig.kernel.sched, { context: 1n, seqno: 1n, driver: "mover", timeline: "copy" });
    const att = ok(rig.run(dmaBufDynamicAttach(buf, plainDevice())));
    const body = function* () {
      yield* buf.resv.lock();
      buf.resv.reserveFences(1);
      buf.resv.addFence(fence, Usage.kernel);
      rig.kernel.sched.current.signalled = true;
      const r = yield* dmaBufMapAttachment(att, "to_device");
      buf.resv.unlock();
      return r;
    };
    expect(rig.run(body())).toBe(EINTR);
    expect(exporter.log).toEqual(["attach", "pin", "map", "unmap", "unpin"]);
    expect([att.maps, rig.leaks()["dma_buf sg_table"]]).toEqual([0, undefined]);
  });

  it("can neither pin nor unpin by itself", () => {
    const { rig, buf } = setUp();
    const att = ok(rig.run(dmaBufDynamicAttach(buf, plainDevice())));
    expect(() => rig.call(() => dmaBufPin(att))).toThrow(/static/);
    expect(() => rig.call(() => dmaBufUnpin(att))).toThrow(/static/);
  });
});

it("invalidate tells the dynamic importers that listen, the one that attached last first", () => {
  const { rig, buf } = setUp();
  const order: string[] = [];
  const listener = (name: string) => {
    const i = new Importer(plainDevice(name));
    i.onInvalidate = function* () {
      order.push(name);
    };
    return i;
  };
  for (const i of [listener("a"), new Importer(plainDevice(), { revocable: false }), listener("b")]) ok(rig.run(i.attach(buf)));
  ok(rig.run(dmaBufDynamicAttach(buf, plainDevice("static"))));
  const body = function* () {
    yield* buf.resv.lock();
    yield* dmaBufInvalidateMappings(buf);
    buf.resv.unlock();
  };
  rig.run(body());
  expect(order).toEqual(["b", "a"]);
});
