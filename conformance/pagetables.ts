/**
 * Page-table bytes recorded on Linux 7.3.4, step by step, held against `src/pt`.
 *
 * Each file is one IOMMU; each part of it one IOAS with its domain. A step maps
 * or unmaps a range through iommufd, and the recording holds what that did to
 * the tables as read from guest memory. Here the steps drive a `PageTable`, with
 * the recorded physical addresses, and its memory is read by a second reader
 * that knows the entry formats but not the engine (`pagetables_walk.ts`).
 *
 * Of iommufd only what decides which calls reach the table is needed: areas in
 * address order, their overlap, and large pages off meaning 4 KiB maps (`Ioas`).
 * The parameters of a table come from the recorded registers, as the IOMMU
 * drivers derive them. What a recording holds that is not about tables is
 * counted by name as not compared here.
 */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { EEXIST, EINVAL, ENOENT, Errno } from "../src/lib/errno.ts";
import { amdv1, PageTable, PROT_CACHE, PROT_MMIO, type PtFormat, type PtOptions, TableArena, vtdss, x86_64 } from "../src/pt/index.ts";
import { Reader, type Snapshot } from "./pagetables_walk.ts";

interface Step {
  event?: string;
  what?: string;
  op?: string;
  name?: string;
  kind?: "mmio" | "ram";
  iova?: string;
  length?: string;
  prot?: string;
  ret?: number;
  errno?: string;
  runs?: [string, string, string][];
  unmapped?: string;
  attached?: boolean;
  context?: unknown;
}
type RecordedStep = Step & Partial<Snapshot>;
interface Part {
  part: string;
  format: string | null;
  iova_ranges?: [string, string][];
  steps: RecordedStep[];
}
export interface Recording {
  name: string;
  kernel_parameters: string;
  machine: { vendor: "intel" | "amd"; cap: string; ecap: string };
  parts: Part[];
}

const data = new URL("data/pagetables/", import.meta.url);
const COMPARED = ["top_level", "tables", "freed_tables", "entries", "cleared", "changed_entries", "table_count", "leaf_count"] as const;
const LISTS = new Set<string>(["tables", "freed_tables", "entries", "cleared"]);
/** Keys that are the step's own arguments, not its outcome. */
const ARGUMENTS = new Set(["op", "name", "kind", "source", "iova", "length", "prot", "runs", "paddr"]);

interface HwptFlags {
  nestParent: boolean;
  dirty: boolean;
}

/** Format and parameters of a domain, from the registers, as the IOMMU drivers choose them. */
export function domainOf(doc: Recording, flags: HwptFlags, widest: bigint): { format: PtFormat; options: PtOptions } {
  if (doc.machine.vendor === "amd") {
    // Six levels (EFR.HATS); the width comes from the ACPI table, which is not recorded but bounds the recorded ranges.
    return { format: amdv1, options: { vasz: widest.toString(2).length } };
  }
  const cap = BigInt(doc.machine.cap);
  const ecap = BigInt(doc.machine.ecap);
  const field = (r: bigint, shift: number, bits = 1): number => Number(BigInt.asUintN(bits, r >> BigInt(shift)));
  const scalable = doc.kernel_parameters.includes("sm_on") && field(ecap, 43) === 1;
  const incoherent = field(ecap, scalable ? 48 : 0) === 0;
  const mgaw = field(cap, 16, 6) + 1;
  const sizes = (two: boolean, one: boolean): bigint => 0x1000n | (two ? 1n << 21n : 0n) | (one ? 1n << 30n : 0n);
  if (scalable && field(ecap, 47) === 1 && !flags.nestParent && !flags.dirty) {
    const five = mgaw > 48 && field(cap, 60) === 1;
    const pgsizes = sizes(true, field(cap, 56) === 1);
    return {
      format: x86_64,
      options: { vasz: Math.min(five ? 57 : 48, mgaw), topLevel: five ? 4 : 3, signExtend: true, incoherent, pgsizes },
    };
  }
  const sagaw = field(cap, 8, 5);
  const vasz = mgaw > 48 && sagaw >= 8 ? 57 : mgaw > 39 && sagaw >= 4 ? 48 : 39;
  const slps = field(cap, 34, 4);
  const pgsizes = sizes((slps & 1) !== 0, (slps & 2) !== 0);
  const snoop = field(ecap, 7) === 1;
  return { format: vtdss, options: { vasz: Math.min(vasz, mgaw), incoherent, snoop, forceWriteable: flags.nestParent, pgsizes } };
}

interface Area {
  iova: bigint;
  length: bigint;
  prot: number;
  runs: [bigint, bigint, bigint][];
}

/** As much of an IOAS as decides what the page table is asked to do. */
class Ioas {
  areas: Area[] = [];
  table: PageTable | undefined;
  arena = new TableArena();
  memory = new Map<bigint, Uint32Array>();
  reader = new Reader();
  largePages = true;

  attach(format: PtFormat, options: PtOptions): void {
    this.table = new PageTable(format, {
      ...options,
      allocTable: (level) => {
        const m = this.arena.allocTable(level);
        this.memory.set(m.base, m.words);
        return m;
      },
      freeTable: (m) => {
        this.memory.delete(m.base);
        this.arena.freeTable(m);
      },
    });
    for (const a of this.areas) {
      const e = this.fill(this.table, a);
      if (e !== undefined) throw new Error(`attach: ${e.name}`);
    }
  }

  private fill(table: PageTable, a: Area): Errno | undefined {
    for (const [iova, pa, length] of a.runs) {
      const by = this.largePages ? length : 4096n;
      for (let at = 0n; at < length; at += by) {
        const e = table.map(iova + at, pa + at, by, a.prot);
        if (e === undefined) continue;
        if (iova + at > a.iova) table.unmap(a.iova, iova + at - a.iova);
        return e;
      }
    }
    return undefined;
  }

  map(a: Area): Errno | undefined {
    const last = a.iova + a.length - 1n;
    if ((a.prot & 3) === 0) return EINVAL;
    if (this.table !== undefined && last > this.table.apertureLast) return EINVAL;
    if (this.areas.some((b) => b.iova <= last && b.iova + b.length > a.iova)) return EEXIST;
    const e = this.table && this.fill(this.table, a);
    if (e !== undefined) return e;
    this.areas.push(a);
    this.areas.sort((x, y) => (x.iova < y.iova ? -1 : 1));
    return undefined;
  }

  unmap(iova: bigint, length: bigint): bigint | Errno {
    const last = iova + length - 1n;
    const hit = this.areas.filter((b) => b.iova <= last && b.iova + b.length > iova);
    if (hit.length === 0 || hit.some((b) => b.iova < iova || b.iova + b.length - 1n > last)) return ENOENT;
    let bytes = 0n;
    for (const a of hit) {
      const gone = this.table?.unmap(a.iova, a.length) ?? a.length;
      if (gone !== a.length) throw new Error(`unmap of an area of ${a.length} bytes took ${gone}`);
      bytes += gone;
    }
    this.areas = this.areas.filter((a) => !hit.includes(a));
    return bytes;
  }
}

/** Every run of a mapped step translates to its recorded address, at both ends. */
function translates(table: PageTable, runs: readonly [bigint, bigint, bigint][]): string[] {
  const bad: string[] = [];
  for (const [iova, pa, length] of runs) {
    for (const at of [0n, length - 1n]) {
      const got = table.iovaToPhys(iova + at);
      if (got !== pa + at)
        bad.push(`iova 0x${(iova + at).toString(16)} translates to ${got === undefined ? "nothing" : `0x${got.toString(16)}`}`);
    }
  }
  return bad;
}

interface Tally {
  agree: number;
  differ: string[];
  leaves: number;
  notCompared: Map<string, number>;
}

export function replay(doc: Recording): Tally {
  const tally: Tally = { agree: 0, differ: [], leaves: 0, notCompared: new Map() };
  const skip = (what: string): void => void tally.notCompared.set(what, (tally.notCompared.get(what) ?? 0) + 1);
  const ranges = doc.parts.flatMap((p) => p.iova_ranges ?? []);
  const widest = ranges.reduce((m, [, last]) => (BigInt(last) > m ? BigInt(last) : m), 0n);
  for (const part of doc.parts) {
    const ioas = new Ioas();
    const flags: HwptFlags = { nestParent: false, dirty: false };
    part.steps.forEach((step, at) => {
      const bad: string[] = [];
      const expect = (what: string, recorded: unknown, got: unknown): void => {
        const r = JSON.stringify(recorded);
        const g = JSON.stringify(got);
        if (r !== g) bad.push(`${what}: recorded ${r}, here ${g}`);
      };
      if (step.event !== undefined) {
        const what = step.what ?? step.event;
        if (what === "attach" && step.ret === 0) {
          const { format, options } = domainOf(doc, flags, widest);
          expect("format", part.format, format.name);
          ioas.attach(format, options);
          if (part.iova_ranges) expect("end of the aperture", `0x${ioas.table?.apertureLast.toString(16)}`, part.iova_ranges.at(-1)?.[1]);
        } else if (what === "detach" && ioas.table) {
          ioas.table.destroy();
          expect("tables live after the domain is gone", 0, ioas.arena.live);
          ioas.table = undefined;
        } else if (what === "IOMMU_OPTION_HUGE_PAGES=0") ioas.largePages = false;
        else if (what === "hwpt alloc NEST_PARENT") flags.nestParent = true;
        else if (what === "hwpt alloc DIRTY_TRACKING") flags.dirty = true;
        skip(`result of "${what}"`);
        if (bad.length === 0) return;
      } else {
        drive(step, ioas, bad, expect);
        for (const key of Object.keys(step)) {
          if (ARGUMENTS.has(key) || (COMPARED as readonly string[]).includes(key)) continue;
          if (key !== "ret" && key !== "errno" && key !== "unmapped" && key !== "attached") skip(key);
        }
        tally.leaves += step.changed_entries ?? 0;
      }
      if (bad.length === 0) tally.agree++;
      else tally.differ.push(...bad.map((b) => `${part.part}, step ${at} (${step.name ?? step.what}): ${b}`));
    });
  }
  return tally;
}

function drive(step: RecordedStep, ioas: Ioas, bad: string[], expect: (what: string, recorded: unknown, got: unknown) => void): void {
  const iova = BigInt(step.iova ?? 0);
  const length = BigInt(step.length ?? 0);
  let outcome: bigint | Errno | undefined;
  if (step.op === "map") {
    const runs = (step.runs ?? []).map(([i, p, l]): [bigint, bigint, bigint] => [BigInt(i), BigInt(p), BigInt(l)]);
    const prot = (step.prot?.includes("r") ? 1 : 0) | (step.prot?.includes("w") ? 2 : 0);
    outcome = ioas.map({ iova, length, prot: prot === 0 ? 0 : prot | (step.kind === "mmio" ? PROT_MMIO : PROT_CACHE), runs });
    if (outcome === undefined && ioas.table) bad.push(...translates(ioas.table, runs));
  } else if (step.op === "unmap") {
    outcome = ioas.unmap(iova, length);
    expect("unmapped", step.unmapped, `0x${(outcome instanceof Errno ? 0n : outcome).toString(16)}`);
  }
  if (step.ret !== undefined) {
    expect("ret", step.ret, outcome instanceof Errno ? -1 : 0);
    expect("errno", step.errno, outcome instanceof Errno ? outcome.name : "");
  }
  expect("attached", step.attached ?? true, ioas.table !== undefined);
  if (ioas.table === undefined || step.attached === false) return;
  const t = ioas.table;
  const got = ioas.reader.look(ioas.memory, t.format.name, t.topBase, t.topLevel);
  expect("tables by the engine's count", got.table_count, t.tableCount);
  for (const key of COMPARED) {
    const recorded = step[key] ?? (LISTS.has(key) ? [] : undefined);
    expect(key, recorded, got[key]);
  }
}

export function load(name: string): Recording {
  return JSON.parse(readFileSync(new URL(name, data), "utf8")) as Recording;
}
export const recordings = (): string[] =>
  readdirSync(fileURLToPath(data))
    .filter((f) => f.endsWith(".json"))
    .sort();

/** `--verbose` prints every difference; otherwise the first five of a file. */
export function run(args: string[]): number {
  const verbose = args.includes("--verbose");
  const print = (s: string): void => void process.stdout.write(`${s}\n`);
  const skipped = new Map<string, number>();
  let agree = 0;
  let differ = 0;
  let leaves = 0;
  for (const file of recordings()) {
    const doc = load(file);
    const t = replay(doc);
    print(`${doc.name.padEnd(46)} ${String(t.agree).padStart(4)} steps agree, ${t.differ.length} differences, ${t.leaves} leaf entries`);
    for (const d of verbose ? t.differ : t.differ.slice(0, 5)) print(`    ${d.length > 600 ? `${d.slice(0, 600)} …` : d}`);
    agree += t.agree;
    differ += t.differ.length;
    leaves += t.leaves;
    for (const [k, n] of t.notCompared) skipped.set(k, (skipped.get(k) ?? 0) + n);
  }
  print(`total: ${agree} steps agree, ${differ} differences, ${leaves} leaf entries in new or changed state`);
  print(`compared per step: ret, errno, unmapped, attached, ${COMPARED.join(", ")}; also both ends of every mapped run by iovaToPhys`);
  print("not compared here (the IOMMU's and the IOAS's, not the tables'):");
  for (const [k, n] of skipped) print(`    ${k}: ${n}`);
  return differ === 0 ? 0 : 1;
}
