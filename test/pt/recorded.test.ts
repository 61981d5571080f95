import { describe, expect, it } from "vitest";
import { domainOf, load, recordings, replay } from "../../conformance/pagetables.ts";

describe("a recording of Linux's page tables", () => {
  it.each(recordings())("%s is reproduced entry by entry", (file) => {
    const t = replay(load(file));
    expect(t.differ).toEqual([]);
    expect(t.agree).toBeGreaterThan(200);
    expect(t.leaves).toBeGreaterThan(300_000);
  });

  it("that was altered in one bit, one table or one outcome is told apart", () => {
    const altered = (change: (doc: ReturnType<typeof load>) => void): string[] => {
      const doc = load("pagetables-vtdss-legacy-48-snoop.json");
      change(doc);
      return replay(doc).differ;
    };
    const step = (doc: ReturnType<typeof load>, name: string): ReturnType<typeof load>["parts"][number]["steps"][number] => {
      const s = doc.parts[0]?.steps.find((x) => x.name === name);
      if (s === undefined) throw new Error(`no step ${name}`);
      return s;
    };
    const entry = altered((doc) => {
      const e = step(doc, "mmio 2M aligned in both").entries?.[0];
      if (e) e.value_hex = `${e.value_hex.slice(0, -1)}1`;
    });
    expect(entry).toHaveLength(1);
    expect(entry[0]).toContain("entries: recorded");
    const table = altered((doc) => {
      const t = step(doc, "mmio 4K at iova 0").tables?.[1];
      if (t) t.index = 1;
    });
    expect(table).toHaveLength(1);
    const outcome = altered((doc) => {
      step(doc, "unmap part of an area").errno = "EINVAL";
    });
    expect(outcome).toEqual([expect.stringContaining('errno: recorded "EINVAL", here "ENOENT"')]);
    const snoop = altered((doc) => {
      doc.machine.ecap = "0xf00f4a";
    });
    expect(snoop.length).toBeGreaterThan(100);
  });

  it("gives the parameters of its tables by the registers", () => {
    const doc = load("pagetables-x86_64-vtd-first-stage.json");
    const none = { nestParent: false, dirty: false };
    expect(domainOf(doc, none, 0n)).toMatchObject({
      format: { name: "x86_64" },
      options: { vasz: 48, topLevel: 3, signExtend: true, incoherent: true },
    });
    expect(domainOf(load("pagetables-vtdss-scalable-48-coherent-nest-dirty.json"), { nestParent: true, dirty: false }, 0n)).toMatchObject({
      format: { name: "vtdss" },
      options: { vasz: 48, incoherent: false, snoop: false, forceWriteable: true },
    });
  });
});
