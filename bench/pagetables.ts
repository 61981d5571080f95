/**
 * What mapping and unmapping MMIO costs, per 4 KiB page, through the public
 * bigint API: 4 KiB, 1 MiB, 1 GiB and 1 TiB, aligned in both addresses (large
 * pages) and with the physical address 4 KiB off (small pages only).
 *
 * Held against two references of the same run: a plain loop that writes the same
 * number of 32-bit pairs into one 4 KiB table, and a `Map<bigint, bigint>` that
 * takes and gives up the pages one by one.
 *
 * 1 TiB of small pages is 268 million entries, 2 GiB of tables; unless asked for
 * with `--full` it stands in as 64 GiB (16.8 million entries, 128 MiB).
 */
import { do_not_optimize, measure } from "mitata";
import { amdv1, PageTable, type PtFormat, PtGather, type PtOptions, vtdss, x86_64 } from "../src/pt/index.ts";

const K = 1024n;
const M = K * K;
const G = K * M;
const T = K * G;

const domains: readonly [string, PtFormat, PtOptions][] = [
  ["VT-d second stage", vtdss, { vasz: 48, incoherent: true }],
  ["x86-64 (VT-d first stage)", x86_64, { vasz: 48, signExtend: true }],
  ["AMD v1", amdv1, { vasz: 48 }],
];

const now = (): number => performance.now() * 1e6;

interface Cost {
  readonly map: number;
  readonly unmap: number;
}

/** Medians over rounds of about `budget` ms, ns per round. */
function rounds(map: () => void, unmap: () => void, budget = 400): Cost {
  const a: number[] = [];
  const b: number[] = [];
  const start = now();
  while (a.length < 3 || (now() - start < budget * 1e6 && a.length < 20000)) {
    const t0 = now();
    map();
    const t1 = now();
    unmap();
    const t2 = now();
    a.push(t1 - t0);
    b.push(t2 - t1);
  }
  // The first fifth is spent compiling.
  const median = (l: number[]): number => {
    const s = l.slice(Math.floor(l.length / 5)).sort((x, y) => x - y);
    return s[s.length >> 1] ?? 0;
  };
  return { map: median(a), unmap: median(b) };
}

/** Same range mapped `calls` times side by side. */
function ranges(pt: PageTable, length: bigint, off: bigint, calls: number): Cost {
  const base = T;
  const gather = new PtGather();
  const map = (): void => {
    let at = base;
    for (let i = 0; i < calls; i++) {
      if (pt.map(at, at + off, length, 3) !== undefined) throw new Error("map failed");
      at += length;
    }
  };
  const unmap = (): void => {
    let at = base;
    for (let i = 0; i < calls; i++) {
      if (pt.unmap(at, length, gather) < length) throw new Error("unmap failed");
      at += length;
    }
    pt.releaseGather(gather);
  };
  return rounds(map, unmap, length > G && off !== 0n ? 1 : 400);
}

/** Single pages all over 1 GiB in a shuffled but fixed order: the last leaf table is seldom the right one. */
function scattered(pt: PageTable, pages: number): Cost {
  const at = Array.from({ length: pages }, (_, i) => T + BigInt((i * 2503) % pages) * (G / BigInt(pages)));
  return rounds(
    () => {
      for (const iova of at) pt.map(iova, iova, 4n * K, 3);
    },
    () => {
      for (const iova of at) pt.unmap(iova, 4n * K);
    },
  );
}

async function references(): Promise<{ loop: number; map: Cost }> {
  const words = new Uint32Array(1024);
  const loop = await measure(() => {
    for (let round = 0; round < 64; round++) {
      let low = round << 12;
      for (let i = 0; i < 1024; i += 2) {
        words[i] = low | 3;
        words[i + 1] = 0x1c;
        low = (low + 4096) | 0;
      }
    }
    do_not_optimize(words);
  }, {});
  const pages = 4096;
  const dict = new Map<bigint, bigint>();
  const map = rounds(
    () => {
      let at = T;
      for (let i = 0; i < pages; i++) {
        dict.set(at, at + 4096n);
        at += 4096n;
      }
    },
    () => {
      let at = T;
      for (let i = 0; i < pages; i++) {
        dict.delete(at);
        at += 4096n;
      }
    },
  );
  return { loop: loop.p50 / (64 * 512), map: { map: map.map / pages, unmap: map.unmap / pages } };
}

const ns = (v: number): string => (v >= 0.01 ? v.toFixed(2) : v.toExponential(1)).padStart(9);
const call = (v: number): string =>
  (v < 10_000 ? `${v.toFixed(0)} ns` : v < 1e7 ? `${(v / 1e3).toFixed(0)} µs` : `${(v / 1e6).toFixed(0)} ms`).padStart(9);

export async function run(args: string[]): Promise<void> {
  const full = args.includes("--full");
  const print = (s: string): void => void process.stdout.write(`${s}\n`);
  const { loop, map: dict } = await references();
  print(`reference: a loop writing u32 pairs            ${ns(loop)} ns a page`);
  print(`reference: Map<bigint, bigint> set, delete     ${ns(dict.map)} ${ns(dict.unmap)} ns a page`);
  print("");
  print(`${"".padEnd(30)} ns a page:  map     unmap    a call:  map     unmap   map is × loop, × Map`);
  for (const [name, format, options] of domains) {
    print(name);
    const line = (what: string, pages: number, calls: number, cost: Cost): void => {
      const map = cost.map / calls / pages;
      const unmap = cost.unmap / calls / pages;
      print(
        `  ${what.padEnd(32)}${ns(map)} ${ns(unmap)}   ${call(cost.map / calls)} ${call(cost.unmap / calls)}   ${ns(map / loop)} ${ns(map / dict.map)}`,
      );
    };
    const pt = new PageTable(format, options);
    line("4 KiB, page after page", 1, 4096, ranges(pt, 4n * K, 4n * K, 4096));
    line("4 KiB, scattered over 1 GiB", 1, 4096, scattered(pt, 4096));
    line("1 MiB aligned", 256, 128, ranges(pt, M, 0n, 128));
    line("1 MiB, 4 KiB off", 256, 128, ranges(pt, M, 4n * K, 128));
    line("1 GiB aligned", 262144, 16, ranges(pt, G, 0n, 16));
    line("1 GiB, 4 KiB off", 262144, 1, ranges(pt, G, 4n * K, 1));
    line("1 TiB aligned", 2 ** 28, 1, ranges(pt, T, 0n, 1));
    const long = full ? T : 64n * G;
    line(full ? "1 TiB, 4 KiB off" : "64 GiB, 4 KiB off (for 1 TiB)", Number(long / 4096n), 1, ranges(pt, long, 4n * K, 1));
    pt.destroy();
  }
}
