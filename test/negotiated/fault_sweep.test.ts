/** Every point at which memory can run out, or a copy fail, when a buffer is negotiated, mapped and touched. */
import { describe, expect, test } from "vitest";
import { BYTES, type ExporterName, IMPORTERS, type Imported, type ImporterName, PairScene } from "../../conformance/negotiate/scene.ts";
import { CallError } from "../../src/client/index.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { EFAULT, ENOMEM, Errno } from "../../src/lib/errno.ts";
import { type Scenario, sweep } from "../kernel/fault_sweep_support.ts";

/** A buffer of one exporter's, and what one importer does with it. */
class Pair {
  readonly scene: PairScene = new PairScene();
  readonly #exported: ReturnType<PairScene["export"]>;
  readonly #importer: ImporterName;
  #imported: Imported | undefined = undefined;

  constructor(exporter: ExporterName, importer: ImporterName) {
    this.#exported = this.scene.export(exporter);
    this.#importer = importer;
  }

  get kernel(): Kernel {
    return this.scene.host.kernel;
  }

  /** Imported by an address space that has opted in, and taken away by the exporter. */
  takenAway(): void {
    this.scene.ioas.restoreMappings();
    expect(this.use()).toBeUndefined();
    this.#exported.take?.();
  }

  /** Its owner brings the memory back: is told what failed of its own calls, and nothing of a mapping that does not come back. */
  bringBack(): Errno | undefined {
    try {
      this.#exported.give?.();
    } catch (e) {
      if (e instanceof CallError) return e.errno;
      throw e;
    }
    return undefined;
  }

  /** Imports, writes and reads back. */
  use(): Errno | undefined {
    const made = this.scene.import(this.#importer, this.#exported);
    if (made instanceof Errno) return made;
    const offset = BYTES - 0x800n;
    const wrote = made.write(offset, 0x5a);
    const read = wrote ?? made.read(offset);
    if (!(read instanceof Errno)) {
      expect(read).toBe(0x5a);
      this.#imported = made;
      return undefined;
    }
    made.leave();
    this.kernel.sched.settle();
    return read;
  }

  leave(): void {
    this.#imported?.leave();
    this.kernel.sched.settle();
  }

  finish(): void {
    expect(this.scene.end()).toEqual({});
  }
}

/** The importer with page tables against what lies here, there and in pieces; every importer against the exporter that moves. */
const pairs: readonly (readonly [ExporterName, ImporterName])[] = [
  ["vfio, 2 ranges", "iommufd"],
  ["udmabuf", "iommufd"],
  ["vfio, 2 ranges", "gpu"],
  ...IMPORTERS.map((i) => ["vram", i] as const),
];

describe("with every allocation and every copy failing, one after the other", () => {
  test.each(pairs)("a buffer of %s imported by %s leaves nothing behind, and works the next time", (exporter, importer) => {
    const act = (p: Pair): Errno | undefined => p.use();
    const undo = (p: Pair): void => p.leave();
    const { points, errnos } = sweep(() => new Pair(exporter, importer), { act, undo });
    const names = points.map((p) => p.what);
    expect(names).toContain("dma_buf_attachment");
    expect(names).toContain("dma_buf_mapping");
    expect(errnos).toContain(ENOMEM);
  });

  test("a mapping that cannot be restored is lost, and leaves nothing behind", () => {
    const scenario: Scenario<Pair> = { before: (p) => p.takenAway(), act: (p) => p.bringBack(), undo: (p) => p.leave() };
    const { points, errnos } = sweep(() => new Pair("vfio, 2 ranges", "iommufd"), scenario);
    const names = points.map((p) => p.what);
    for (const what of ["dma_buf_mapping", "dma_buf_piece"]) expect(names).toContain(what);
    expect(errnos.filter((e) => e !== undefined && e !== EFAULT)).toEqual([]);
  });
});
