/** Suspected weaknesses that the explorer reproduces on the code as it is, by asking for what Linux does not keep. */
import type { Scenario, Violation } from "../../../src/explore/index.ts";
import { bufferLifetime } from "../../../src/explore/scenarios/buffer_lifetime.ts";
import { hotReset } from "../../../src/explore/scenarios/hot_reset.ts";
import { lockGraph } from "../../../src/explore/scenarios/lock_graph.ts";
import { memoryPredicate } from "../../../src/explore/scenarios/memory_predicate.ts";
import { CountedImporter, revokeRefcount } from "../../../src/explore/scenarios/revoke_refcount.ts";
import { FIRST, type Stage } from "../../../src/explore/scenarios/stage.ts";
import type { DmaBufAttachment, DmaBufAttachOps } from "../../../src/kernel/dma_buf/attachment.ts";
import type { VfioPciDmaBuf } from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { ENODEV, type Errno } from "../../../src/lib/errno.ts";
import type { Step } from "../../../src/sched/task.ts";
import { Completion } from "../../../src/sched/wait.ts";
import { replaceOps } from "./bug.ts";

/** A driver whose callback returns, logs, and has not unmapped; nor will it. */
class NeverUnmaps extends CountedImporter {
  readonly #never: Completion;

  constructor(stage: Stage) {
    super(stage);
    this.#never = new Completion(stage.kernel.sched, "the importer's own trouble");
  }

  override *unmap(): Step<void> {
    yield* this.#never.wait();
  }
}

/** The same, and without the callback. */
class CannotBeTold extends NeverUnmaps {
  protected override makeOps(): DmaBufAttachOps {
    return { allowPeer2peer: true };
  }
}

/** An exporter that looks at nothing but its own flag. */
const attachesAnybody = function* (_: unknown, att: DmaBufAttachment): Step<Errno | undefined> {
  return (att.dmabuf.priv as VfioPciDmaBuf).revoked ? ENODEV : undefined;
};

/** Needs the mmap lock of the process to let go, as drivers that follow its page tables do. */
class FollowsPageTables extends CountedImporter {
  readonly #stage: Stage;

  constructor(stage: Stage) {
    super(stage, FIRST);
    this.#stage = stage;
  }

  override *invalidate(): Step<void> {
    const { mmapLock } = this.#stage.calls.process.mm;
    yield* mmapLock.downWrite();
    mmapLock.upWrite();
  }
}

export interface Reproduced {
  readonly id: string;
  readonly what: string;
  readonly make: () => Scenario;
  /** As the document prints it. */
  readonly schedule: string;
  readonly kind: Violation["kind"];
  readonly says: RegExp;
}

export const reproduced: readonly Reproduced[] = [
  {
    id: "N1",
    what: "a buffer lives in low power, after a write that turns decode on",
    make: () => memoryPredicate({ length: 2, mapper: false, menu: ["entry", "on"], demand: "low power counts" }),
    schedule: "a4.1",
    kind: "invariant",
    says: /lives in low power/,
  },
  {
    id: "N2",
    what: "a wake-up ends low power and restores nothing",
    make: () => memoryPredicate({ length: 2, mapper: false, menu: ["entry with wakeup", "wake"], demand: "restored when reachable" }),
    schedule: "a3aA",
    kind: "invariant",
    says: /stays revoked/,
  },
  {
    id: "N3",
    what: "a hot reset that answers EBUSY has killed the first function's mapping",
    make: () => hotReset({ tasks: ["reset", "write"], demand: "mappings survive" }),
    schedule: "b2a",
    kind: "invariant",
    says: /did not happen/,
  },
  {
    id: "N5",
    what: "an importer that fails to let go hangs the revoke, and who wants the memory lock",
    make: () =>
      revokeRefcount((world, stage) => {
        world.importer = new NeverUnmaps(stage);
      }),
    schedule: "",
    kind: "deadlock",
    says: /waits for vfio dma-buf unmapped, which nobody will bring/,
  },
  {
    id: "N8",
    what: "an exporter that takes anybody waits for ever for an importer that has no callback",
    make: () =>
      revokeRefcount((world, stage) => {
        world.importer = new CannotBeTold(stage);
        replaceOps(world.buffer.dmabuf, "ops", { attach: attachesAnybody });
      }),
    schedule: "",
    kind: "deadlock",
    says: /waits for vfio dma-buf unmapped, which nobody will bring/,
  },
  {
    id: "N9",
    what: "a reset through sysfs happens while a peer reaches the BAR",
    make: () =>
      bufferLifetime({
        tasks: ["import"],
        more: { sysfs: (_, stage) => stage.answered(stage.pdev().resetFunction()) },
      }),
    schedule: "a6b",
    kind: "invariant",
    says: /I6: .* is reset while a peer reaches its BAR/,
  },
  {
    id: "N14",
    what: "a refused write of COMMAND leaves the buffers revoked, with memory enabled",
    make: () => memoryPredicate({ length: 1, mapper: false, menu: ["off, refused"], demand: "restored when reachable" }),
    schedule: "",
    kind: "invariant",
    says: /stays revoked/,
  },
  {
    id: "N17",
    what: "an importer that needs the mmap lock to let go closes a circle of locks",
    make: () =>
      lockGraph({
        tasks: ["fault", "revoke"],
        alter: ({ buffer }, stage) => {
          const importer = new FollowsPageTables(stage);
          stage.calls.must(importer.attach(buffer.dmabuf));
        },
      }),
    schedule: "",
    kind: "lockdep",
    says: /mm.mmap_lock/,
  },
  {
    id: "N19",
    what: "attach reads the flag without a lock",
    make: () =>
      revokeRefcount(({ buffer }, stage) => {
        const watch = stage.watch.bind(stage);
        stage.watch = () => {
          watch();
          stage.recorder.watch(buffer, "revoked", { races: true });
        };
      }),
    schedule: "",
    kind: "race",
    says: /VfioPciDmaBuf.revoked/,
  },
];
