/** The exporter whose memory moves: importers of the old kind, and one that does not let go; and importers at the edge of what they promised. */
import { afterEach, beforeEach, expect, it } from "vitest";
import { BYTES, PAGE, PairScene } from "../../conformance/negotiate/scene.ts";
import {
  type DmaBufAttachment,
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufMapAttachmentUnlocked,
  dmaBufUnmapAttachmentUnlocked,
} from "../../src/kernel/dma_buf/attachment.ts";
import { GpuImport, JOB_LIMIT_NS } from "../../src/kernel/dma_buf/importers/gpu.ts";
import type { SgTable } from "../../src/kernel/dma_buf/mapping.ts";
import { dmaBufAcquire, dmaBufLeave, dmaBufNegotiate, dmaBufRelease } from "../../src/kernel/dma_buf/negotiated/attachment.ts";
import { RevokeLevel } from "../../src/kernel/dma_buf/negotiated/contract.ts";
import type { MappingHandle } from "../../src/kernel/dma_buf/negotiated/handle.ts";
import { dmaBufRevoke } from "../../src/kernel/dma_buf/negotiated/revoke.ts";
import { vramMove } from "../../src/kernel/dma_buf/vram.ts";
import { EBUSY } from "../../src/lib/errno.ts";
import type { Step } from "../../src/sched/task.ts";
import { O_RDWR } from "../../src/uapi/index.ts";
import { ok } from "../harness.ts";

const ADAPTER = "0000:04:00.0";

let s: PairScene;
beforeEach(() => {
  s = new PairScene();
});
afterEach(() => {
  s.host.kernel.sched.settle();
  expect(s.end()).toEqual({});
});

it("an importer that knows only the old calls is told of a move, and the move waits for its unmap", () => {
  const { dmabuf, fd } = s.export("vram");
  const { sched } = s.host.kernel;
  let unmapAt = 0;
  const ops = {
    allowPeer2peer: true,
    *invalidateMappings(att: DmaBufAttachment): Step<void> {
      sched.timer(5000, () => {
        sched.spawn("late", function* () {
          unmapAt = sched.now;
          yield* dmaBufUnmapAttachmentUnlocked(att, sgt, "bidirectional");
        });
      });
    },
  };
  const att = s.run(dmaBufDynamicAttach(dmabuf, s.pdev(ADAPTER), ops)) as DmaBufAttachment;
  const sgt = s.run(dmaBufMapAttachmentUnlocked(att, "bidirectional")) as SgTable;
  expect(s.run(vramMove(dmabuf, "system"))).toBeUndefined();
  expect(unmapAt).toBeGreaterThan(0);
  expect(sched.now).toBeGreaterThanOrEqual(unmapAt);
  expect(s.vram.moves).toBe(1);
  s.run(dmaBufDetach(dmabuf, att));
  fd.close();
});

it("an importer that must be fenced takes all VRAM out of reach, nothing is copied from there meanwhile, and all comes back", () => {
  const held = s.export("vram");
  const other = s.export("vram");
  const seen = s.import("kvm", other);
  if (!("read" in seen)) throw new Error("no import");
  expect(seen.write(BYTES - 1n, 0x5a)).toBeUndefined();

  const importer = {
    name: "kvm",
    *invalidate(): Step<undefined> {
      return undefined;
    },
  };
  const att = ok(s.run(dmaBufNegotiate(held.dmabuf, [{ type: "phys", level: RevokeLevel.sync }], importer)));
  const { resv } = held.dmabuf;
  function* withResv<T>(body: () => Step<T>): Step<T> {
    yield* resv.lock();
    const r = yield* body();
    resv.unlock();
    return r;
  }
  const handle = ok(s.run(withResv(() => dmaBufAcquire(att, true)))) as MappingHandle;

  expect(s.run(vramMove(held.dmabuf, "system"))).toBe(EBUSY);
  s.host.kernel.sched.settle();
  expect([held.fd.state().state, other.fd.state().state]).toEqual(["revoked", "revoked"]);
  expect(s.run(vramMove(other.dmabuf, "system"))).toBe(EBUSY);
  expect(s.vram.allocate(PAGE, O_RDWR)).toBe(EBUSY);

  s.run(
    withResv(function* (): Step<void> {
      dmaBufRelease(handle);
    }),
  );
  s.host.kernel.sched.settle();
  expect([held.fd.state().state, other.fd.state().state]).toEqual(["live", "live"]);
  expect(seen.read(BYTES - 1n)).toBe(0x5a);
  expect(s.run(vramMove(other.dmabuf, "system"))).toBeUndefined();
  expect(seen.read(BYTES - 1n)).toBe(0x5a);
  s.run(dmaBufLeave(att));
  seen.leave();
});

it("a graphics driver whose job takes as long as it may keeps its promise", () => {
  const { dmabuf, fd } = s.export("vfio");
  dmabuf.file.get();
  const gpu = ok(s.run(GpuImport.import(s.pdev(ADAPTER), dmabuf)));
  ok(s.run(gpu.submit({ offset: 0n, bytes: new Uint8Array(1), write: false, ns: JOB_LIMIT_NS })));
  const { negotiated } = dmabuf;
  if (negotiated === undefined) throw new Error("no contract");
  expect(s.run(dmaBufRevoke(negotiated, "temporary"))).toEqual({ broken: [], severed: 0, fenced: 0 });
  s.run(gpu.close());
  fd.close();
});
