/**
 * The tables that each unit's driver sets up, against the recorded bytes: a domain is made and attached as a machine does it, takes
 * the recorded mappings, and must hold the recorded entries.
 */
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { attachNew, miniKernel, unitOf } from "./mini_kernel.ts";

interface Entry {
  readonly level: number;
  readonly iova: string;
  readonly value_hex: string;
  readonly count?: number;
  readonly step?: string;
}
interface Step {
  readonly op?: string;
  readonly kind?: "mmio" | "ram";
  readonly iova?: string;
  readonly length?: string;
  readonly prot?: string;
  readonly errno?: string;
  readonly runs?: readonly (readonly [string, string, string])[];
  readonly top_level?: number;
  readonly table_count?: number;
  readonly tables?: readonly { readonly level: number; readonly iova: string; readonly value_hex?: string }[];
  readonly entries?: readonly Entry[];
}
interface Recording {
  readonly parts: readonly { readonly part: string; readonly steps: readonly Step[] }[];
}

const PROT: Record<string, number> = { rw: 3, r: 1, w: 2 };
const ADDRESS = 0x000f_ffff_ffff_f000n;

const units: [string, IommuDescription][] = [
  ["amdv1", { kind: "amd" }],
  ["vtdss-legacy-48", { kind: "intel-legacy" }],
  ["vtdss-legacy-48-coherent", { kind: "intel-legacy", coherentWalk: true }],
  ["vtdss-legacy-48-snoop", { kind: "intel-legacy", snoopControl: true }],
  ["vtdss-scalable-48", { kind: "intel-scalable" }],
  ["vtdss-scalable-48-snoop", { kind: "intel-scalable", snoopControl: true }],
  ["vtdss-scalable-48-coherent-nest-dirty", { kind: "intel-scalable", coherentWalk: true, nesting: true, dirtyTracking: true }],
  ["x86_64-vtd-first-stage", { kind: "intel-first-stage" }],
  ["x86_64-vtd-first-stage-coherent", { kind: "intel-first-stage", coherentWalk: true }],
  ["x86_64-vtd-first-stage-snoop", { kind: "intel-first-stage", snoopControl: true }],
];

it.each(units)("%s: a domain of the described unit holds the recorded entries", (name, description) => {
  const file = new URL(`../../../conformance/data/pagetables/pagetables-${name}.json`, import.meta.url);
  const recording: Recording = JSON.parse(readFileSync(file, "utf8"));
  const m = miniKernel(description);
  const dev = m.device(1);
  const domain = attachNew(m, dev);
  // As iommufd does for a device whose unit can.
  if (unitOf(dev).capable("enforce-cache-coherency", dev)) expect(domain.enforceCacheCoherency()).toBe(true);
  let compared = 0;
  for (const s of recording.parts[0]?.steps ?? []) {
    // The first part of each recording maps first; what follows the first unmap is the page table's own matter.
    if (s.op === "unmap") break;
    if (s.op === "map" && s.errno === "") {
      const prot = PROT[s.prot ?? ""];
      if (prot === undefined) throw new Error(`prot ${s.prot}`);
      for (const [iova, pa, length] of s.runs ?? []) {
        expect(domain.map(BigInt(iova), BigInt(pa), BigInt(length), prot | (s.kind === "mmio" ? 16 : 4))).toBeUndefined();
      }
    }
    if (s.top_level === undefined) continue;
    const table = domain.pageTable;
    expect([table.topLevel, table.tableCount]).toEqual([s.top_level, s.table_count]);
    for (const e of s.entries ?? []) {
      const first = BigInt(e.iova);
      const found = [...table.walk(first, first + (1n << BigInt(12 + 9 * e.level)) - 1n)].find(
        (x) => x.kind === "leaf" && x.iova === first,
      );
      expect(found).toMatchObject({ level: e.level, value: BigInt(e.value_hex) });
      compared++;
    }
    for (const t of s.tables ?? []) {
      if (t.value_hex === undefined) continue;
      const parent = [...table.walk(BigInt(t.iova), BigInt(t.iova))].find((x) => x.kind === "table" && x.level === t.level + 1);
      expect((parent?.value ?? 0n) & ~ADDRESS).toBe(BigInt(t.value_hex));
    }
  }
  expect(compared).toBeGreaterThan(20);
});
