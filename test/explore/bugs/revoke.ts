/** Revokes that end too early, too late, or leave the count of maps wrong. */
import type { Scenario } from "../../../src/explore/index.ts";
import { CountedImporter, type RevokeRefcountWorld, revokeRefcount } from "../../../src/explore/scenarios/revoke_refcount.ts";
import type { Stage } from "../../../src/explore/scenarios/stage.ts";
import {
  type DmaBufAttachment,
  type DmaBufAttachOps,
  dmaBufInvalidateMappings,
  dmaBufUnmapAttachment,
} from "../../../src/kernel/dma_buf/attachment.ts";
import { Usage } from "../../../src/kernel/dma_buf/resv.ts";
import { type DmaBufDevice, VfioPciDmaBuf, vfioPciDmaBufMove } from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { ENODEV, EOPNOTSUPP, type Errno } from "../../../src/lib/errno.ts";
import type { Step } from "../../../src/sched/task.ts";
import { type Bug, become, here, replaceOps } from "./bug.ts";

/** To 7.0: tells the importers, and that is all. */
class TellsOnly extends VfioPciDmaBuf {
  override *revoke(): Step<void> {
    const { resv } = this.dmabuf;
    yield* resv.lock();
    this.revoked = true;
    yield* dmaBufInvalidateMappings(this.dmabuf);
    resv.unlock();
  }
}

/** An early form of the wait: for fences of the kernel's own memory management. */
class WaitsForKernelFences extends VfioPciDmaBuf {
  override *letGo(): Step<void> {
    yield* dmaBufInvalidateMappings(this.dmabuf);
    yield* this.dmabuf.resv.waitTimeout(Usage.kernel, false, Number.POSITIVE_INFINITY);
  }
}

/** Unmaps when it is told to, while its job goes on until the fence. */
class UnmapsAtOnce extends CountedImporter {
  constructor(stage: Stage) {
    super(stage);
    // Whoever revokes looks at it too.
    stage.recorder.watch(this, "sgt");
  }

  override *invalidate(): Step<void> {
    const { att, sgt } = this;
    if (att === undefined || sgt === undefined) return;
    this.sgt = undefined;
    yield* dmaBufUnmapAttachment(att, sgt, "bidirectional");
  }

  override finish(): void {
    // The job's accesses end here, mapped or not.
    if (this.sgt === undefined && this.fence !== undefined) this.unmapped();
    super.finish();
  }
}

/** As early drivers of network adapters: programs its hardware once, and has no way to take that back. */
class CannotLetGo extends CountedImporter {
  protected override makeOps(): DmaBufAttachOps {
    return { allowPeer2peer: true };
  }
}

/** 7.1-rc: the share that a revoke has dropped comes back with the un-revoke. */
class RearmsOnUnrevoke extends VfioPciDmaBuf {
  override *revoke(): Step<void> {
    const { resv } = this.dmabuf;
    yield* resv.lock();
    this.revoked = true;
    yield* this.letGo();
    resv.unlock();
    this.putMap();
    yield* this.comp.wait();
  }

  override *unrevoke(vdev: DmaBufDevice): Step<void> {
    this.kref.reinit();
    this.comp.reinit();
    yield* super.unrevoke(vdev);
  }
}

/** And the close drops its own share whether or not a revoke has. */
function* putsOnceMore(vdev: DmaBufDevice): Step<void> {
  yield* vdev.memoryLock.downWrite();
  try {
    yield* vfioPciDmaBufMove(vdev, true);
    for (const priv of [...vdev.dmabufs]) {
      priv.putMap();
      yield* priv.comp.wait();
      vdev.dmabufs.splice(vdev.dmabufs.indexOf(priv), 1);
      priv.vdev = undefined;
      vdev.vdev.putRegistration();
    }
  } finally {
    vdev.memoryLock.upWrite();
  }
}

/** While 7.1 was made: the flag is cleared and importers are told, and then, with nothing held, the count begins anew. */
class ClearsFlagFirst extends VfioPciDmaBuf {
  override *unrevoke(): Step<void> {
    const { resv, kernel } = this.dmabuf;
    yield* resv.lock();
    this.revoked = false;
    yield* this.letGo();
    resv.unlock();
    yield* kernel.sched.yield();
    this.kref.reinit();
    this.comp.reinit();
  }
}

/** The proposal of January 2026: a second's wait, a warning, and on. */
class WaitsForASecond extends VfioPciDmaBuf {
  override *revoke(): Step<void> {
    const { resv } = this.dmabuf;
    yield* resv.lock();
    this.revoked = true;
    yield* this.letGo();
    resv.unlock();
    this.putMap();
    yield* this.comp.waitTimeout(1_000_000_000);
    this.kref.reinit();
    this.comp.reinit();
  }
}

/** Takes longer than that to unmap. */
class TakesTwoSeconds extends CountedImporter {
  readonly #stage: Stage;

  constructor(stage: Stage) {
    super(stage);
    this.#stage = stage;
  }

  override *unmap(): Step<void> {
    yield* this.#stage.kernel.sched.sleep(2_000_000_000);
    yield* super.unmap();
  }
}

/** A second state from which there is no way back was proposed in 2026; at first any un-revoke ended it. */
class PermanentlyRevocable extends VfioPciDmaBuf {
  permanent = false;

  *revokeForEver(vdev: DmaBufDevice): Step<void> {
    yield* vdev.memoryLock.downWrite();
    this.permanent = true;
    if (!this.revoked) yield* this.revoke(vdev);
    vdev.memoryLock.upWrite();
  }
}

/** With the states in their order, live, revoked, revoked for ever, none goes back from the last. */
class RevokedForEver extends PermanentlyRevocable {
  override *unrevoke(vdev: DmaBufDevice): Step<void> {
    if (!this.permanent) yield* super.unrevoke(vdev);
  }
}

/** The third task revokes for ever, where the others close. */
const withPermanent = (variant: { readonly prototype: PermanentlyRevocable }): Scenario =>
  revokeRefcount((world, stage) => {
    const { buffer } = world;
    become(buffer, variant as unknown as { readonly prototype: VfioPciDmaBuf });
    world.close = function* (): Step<void> {
      yield* (buffer as PermanentlyRevocable).revokeForEver(stage.vdev());
    };
  });

const withBuffer = (variant: { readonly prototype: VfioPciDmaBuf }): Scenario => revokeRefcount(({ buffer }) => become(buffer, variant));

/** An importer of another make; `alter` changes the exporter. */
const withImporter = (make: (stage: Stage) => CountedImporter, alter?: (world: RevokeRefcountWorld) => void): Scenario =>
  revokeRefcount((world, stage) => {
    world.importer = make(stage);
    alter?.(world);
  });

const attachesAnybody = function* (_: unknown, att: DmaBufAttachment): Step<Errno | undefined> {
  if (!att.peer2peer) return EOPNOTSUPP;
  return (att.dmabuf.priv as VfioPciDmaBuf).revoked ? ENODEV : undefined;
};

export const revokeBugs: readonly Bug[] = [
  {
    id: "H2",
    what: "a pinned importer that cannot be revoked is attached, and goes on with its DMA",
    broken: () =>
      here(
        withImporter(
          (stage) => new CannotLetGo(stage),
          ({ buffer }) => {
            replaceOps(buffer.dmabuf, "ops", { attach: attachesAnybody });
            become(buffer, TellsOnly);
          },
        ),
      ),
    fixed: () => here(withImporter((stage) => new CannotLetGo(stage))),
    kind: "invariant",
    says: /I1/,
  },
  {
    id: "H3",
    what: "a revoke returns before an asynchronous importer has unmapped",
    broken: () => here(withBuffer(TellsOnly)),
    fixed: () => here(revokeRefcount()),
    kind: "invariant",
    says: /I1/,
  },
  {
    id: "H3b",
    what: "a revoke waits for the kernel's fences and misses those of an importer's jobs",
    broken: () =>
      here(
        withImporter(
          (stage) => new UnmapsAtOnce(stage),
          ({ buffer }) => become(buffer, WaitsForKernelFences),
        ),
      ),
    fixed: () => here(withImporter((stage) => new UnmapsAtOnce(stage))),
    kind: "invariant",
    says: /I1/,
  },
  {
    id: "H4",
    what: "a close after a revoke drops the exporter's share a second time",
    broken: () =>
      here(
        revokeRefcount((world) => {
          become(world.buffer, RearmsOnUnrevoke);
          world.cleanup = putsOnceMore;
        }),
      ),
    fixed: () => here(revokeRefcount()),
    kind: "refcount",
    says: /underflow/,
  },
  {
    id: "H5",
    what: "an un-revoke clears the flag before the count begins anew, and the map that gets in between is lost",
    broken: () => here(withBuffer(ClearsFlagFirst)),
    fixed: () => here(revokeRefcount()),
    kind: "refcount",
    says: /underflow/,
  },
  {
    id: "H21",
    what: "an un-revoke brings back a buffer that was revoked for ever",
    broken: () => here(withPermanent(PermanentlyRevocable)),
    fixed: () => here(withPermanent(RevokedForEver)),
    kind: "invariant",
    says: /I1/,
  },
  {
    id: "H24",
    what: "a revoke that waits for a second, warns and goes on leaves a slow importer its mapping",
    broken: () =>
      here(
        withImporter(
          (stage) => new TakesTwoSeconds(stage),
          ({ buffer }) => become(buffer, WaitsForASecond),
        ),
      ),
    fixed: () => here(withImporter((stage) => new TakesTwoSeconds(stage))),
    kind: "invariant",
    says: /I1/,
  },
];
