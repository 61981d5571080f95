/**
 * The count of scatter-list maps, and the completion that a revoke waits for:
 * decode goes off and on while an importer maps, works and unmaps, and while
 * the device is closed.
 *
 * Beside what every scenario checks: from the return of a revoke on, nothing is
 * mapped and no job of the importer runs; after the close never again. At the
 * end the count is what it is after an export, so that the next revoke waits
 * for as many maps as there are.
 *
 * Finds: a revoke that does not wait for jobs or for unmaps (H3), one that
 * leaves a count of nought behind (H4), a flag that is cleared before the
 * importers are told (H5).
 */

import type { VfioPciDmaBuf } from "../../kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { vfioPciDmaBufCleanup } from "../../kernel/vfio/pci/vfio_pci_dmabuf.ts";
import type { Step } from "../../sched/task.ts";
import { InvariantBroken, type Scenario } from "../tasks.ts";
import { Importer } from "./importer.ts";
import { type Alter, BAR, BYTES, FIRST, type Play, SECOND, type Stage, scenarioOf } from "./stage.ts";

export interface RevokeRefcountWorld {
  readonly device: number;
  readonly off: bigint;
  readonly on: bigint;
  readonly buffer: VfioPciDmaBuf;
  importer: Importer;
  /** What the last close does with the buffers. */
  cleanup: typeof vfioPciDmaBufCleanup;
  /** What the third task does: the last close. */
  close: (world: RevokeRefcountWorld, stage: Stage) => Step<void>;
}

/** An importer whose way to the BAR is counted. */
export class CountedImporter extends Importer {
  readonly #stage: Stage;

  constructor(stage: Stage, bdf: string = SECOND) {
    super(stage.pdev(bdf));
    this.#stage = stage;
  }

  protected override mapped(): void {
    this.#stage.reach(1);
  }

  protected override unmapped(): void {
    this.#stage.reach(-1);
  }
}

function* importerTask({ importer, buffer }: RevokeRefcountWorld, stage: Stage): Step<string> {
  const refused = yield* importer.attach(buffer.dmabuf);
  if (refused !== undefined) return yield* stage.answered(of(refused), ["ENODEV", "EOPNOTSUPP"]);
  const error = yield* importer.map();
  if (error === undefined) {
    yield* stage.kernel.sched.yield();
    importer.finish();
    yield* importer.unmap();
  }
  yield* importer.detach();
  return yield* stage.answered(of(error), ["ENODEV"]);
}

function* of<T>(value: T): Step<T> {
  return value;
}

function* closeDevice(w: RevokeRefcountWorld, stage: Stage): Step<void> {
  yield* w.cleanup(stage.vdev());
  if (!w.buffer.revoked || w.buffer.vdev !== undefined) throw new InvariantBroken("a closed device's buffer lives");
}

const play: Play<RevokeRefcountWorld> = {
  name: "revoke-refcount",
  summary: "decode off and on against an importer that maps, works and unmaps, and against the close",
  functions: 2,
  setUp(stage) {
    const { calls } = stage;
    const { fd: device } = calls.openDevice(FIRST, calls.openIommufd());
    calls.setMemory(device, true);
    calls.exportBar(device, BAR, BYTES);
    return {
      device,
      off: calls.command(false),
      on: calls.command(true),
      buffer: stage.buffer(),
      importer: new CountedImporter(stage),
      cleanup: vfioPciDmaBufCleanup,
      close: closeDevice,
    };
  },
  tasks: {
    *toggle(w, stage) {
      yield* stage.decodeOff(w.device, w.off);
      yield* stage.decodeOn(w.device, w.on);
      return "off on";
    },
    importer: importerTask,
    *close(w, stage) {
      yield* w.close(w, stage);
      stage.forbid("close");
      return "closed";
    },
  },
  end({ buffer }) {
    if (buffer.kref.count !== 1 || buffer.comp.done) throw new InvariantBroken(`${buffer.kref.count} maps are counted, and none is there`);
    return "";
  },
};

export function revokeRefcount(alter?: Alter<RevokeRefcountWorld>): Scenario {
  return scenarioOf(play, alter);
}
