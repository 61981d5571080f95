import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { BYTES, EXPORTERS, IMPORTERS, type Imported, PairScene } from "../../conformance/negotiate/scene.ts";
import { checkInvariants } from "../../src/kernel/iommufd/check.ts";
import { Errno } from "../../src/lib/errno.ts";

let scene: PairScene;
beforeEach(() => {
  scene = new PairScene();
});
afterEach(() => {
  checkInvariants(scene.host.kernel);
  expect(scene.end()).toEqual({});
});

const imported = (r: Imported | Errno): Imported => {
  if (r instanceof Errno) throw new Error(r.name);
  return r;
};

/** Pairs that must not agree: their exporter takes its memory back, and their importer never lets go. */
const refused = (exporter: string, importer: string): boolean => exporter.startsWith("vfio") && importer === "rdma pinned";

describe.each(EXPORTERS)("a buffer of %s", (exporter) => {
  describe.each(IMPORTERS)("in the hands of %s", (importer) => {
    it(refused(exporter, importer) ? "is refused" : "is one memory for all who see it, byte for byte", () => {
      const exported = scene.export(exporter);
      const made = scene.import(importer, exported);
      if (refused(exporter, importer)) {
        expect(made).toMatchObject({ name: "EOPNOTSUPP" });
        return;
      }
      const a = imported(made);
      const second = importer === "iommufd" ? "gpu" : "iommufd";
      const offset = BYTES - 0x800n;
      expect(a.write(offset, 0x5a)).toBeUndefined();
      expect(a.read(offset)).toBe(0x5a);
      const b = scene.import(second, exported);
      // VRAM that is pinned in RAM for one stays where it is for all.
      const other = imported(b);
      expect(other.read(offset)).toBe(0x5a);
      other.leave();
      a.leave();
    });
  });
});
