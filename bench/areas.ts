/**
 * Cost of MAP_FILE + UNMAP against the number of areas, and bytes per area.
 *
 * Through the real ioctl handlers, on an address space without a domain, so that
 * what is measured is iommufd: the copy of the structures, the checks, the trees.
 * Every line is a ratio to something of the same run: of the time, the same pair
 * of calls with one area; of the memory, a JavaScript object of ten fields.
 * "Anywhere" lets the kernel choose the IOVA; "among them" goes to a place at
 * random, where the memory of a large tree is cold; "of one of them" exchanges
 * objects that have grown old besides, which the garbage collector pays for.
 *
 * Arguments: the most areas (default 1000000), calls per measurement (20000).
 */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { Calls } from "../src/explore/scenarios/calls.ts";
import { iommufdInit } from "../src/kernel/iommufd/main.ts";
import { Kernel } from "../src/kernel/kernel.ts";
import { Errno } from "../src/lib/errno.ts";
import {
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_UNMAP,
  IommuIoasMapFile,
  IommuIoasUnmap,
} from "../src/uapi/index.ts";

/** Every other page, so that no two areas touch. */
const STRIDE = 0x2000n;
const BASE = 0x1_0000_0000n;
const LENGTH = 0x1000n;

function ok<T>(v: T | Errno): T {
  if (v instanceof Errno) throw new Error(v.name);
  return v;
}

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

const heap = (): number => {
  collect();
  collect();
  return process.memoryUsage().heapUsed + process.memoryUsage().arrayBuffers;
};

class Bench {
  readonly #kernel = new Kernel();
  readonly #process = this.#kernel.fs.createProcess({ name: "bench" });
  readonly #fd: number;
  readonly #arg: bigint;
  readonly #map = IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, length: LENGTH });
  readonly #unmap = IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size });

  constructor() {
    iommufdInit(this.#kernel);
    const calls = new Calls(this.#process);
    const { sys } = this.#process;
    this.#fd = calls.openIommufd();
    this.#arg = calls.memory(4096n);
    const memfd = calls.must(sys.memfdCreate("bench", 0));
    calls.must(sys.ftruncate(memfd, LENGTH));
    this.#map.ioas_id = this.#unmap.ioas_id = calls.allocIoas(this.#fd);
    this.#map.fd = memfd;
  }

  #ioctl(cmd: number, bytes: Uint8Array): void {
    this.#process.mm.memory.write(this.#arg, bytes);
    ok(this.#process.run(this.#process.sys.ioctl(this.#fd, cmd, this.#arg)));
  }

  /** Maps one page; where there is room when `at` is left out. */
  map(at?: bigint): void {
    this.#map.flags = IOMMU_IOAS_MAP_READABLE | (at === undefined ? 0 : IOMMU_IOAS_MAP_FIXED_IOVA);
    this.#map.iova = at ?? 0n;
    this.#ioctl(IOMMU_IOAS_MAP_FILE, this.#map.bytes);
  }

  unmap(at: bigint): void {
    this.#unmap.iova = at;
    this.#unmap.length = LENGTH;
    this.#ioctl(IOMMU_IOAS_UNMAP, this.#unmap.bytes);
  }

  /** ns per pair of calls the best of seven rounds. */
  pairs(areas: number, calls: number, pair: (iova: bigint) => void): number {
    let best = Number.POSITIVE_INFINITY;
    let at = 1;
    for (let round = 0; round < 7; round++) {
      const from = process.hrtime.bigint();
      for (let i = 0; i < calls; i++) {
        // A multiplicative step visits the areas in no order.
        at = (at * 48271) % 2147483647;
        pair(BASE + BigInt(at % areas) * STRIDE);
      }
      best = Math.min(best, Number(process.hrtime.bigint() - from) / calls);
    }
    return best;
  }

  /** One more area where the kernel puts it, which is below the others, and away with it. */
  readonly automatic = (): void => {
    this.map();
    this.unmap(LENGTH);
  };

  /** One more area between two others, and away with it. */
  readonly between = (iova: bigint): void => {
    this.map(iova + LENGTH);
    this.unmap(iova + LENGTH);
  };

  /** One of the areas makes room for a new one. */
  readonly replace = (iova: bigint): void => {
    this.unmap(iova);
    this.map(iova);
  };
}

/** Bytes of a plain object of ten fields, as the measure to compare with. */
function plainObject(): number {
  const n = 200_000;
  const before = heap();
  const all: object[] = new Array(n);
  for (let i = 0; i < n; i++) all[i] = { a: i, b: i, c: i, d: i, e: i, f: i, g: i, h: i, i, j: i };
  const bytes = (heap() - before) / n;
  return all.length === n ? bytes : 0;
}

export function run(args: string[]): void {
  const [most = 1_000_000, calls = 20_000] = args.filter((a) => /^\d+$/.test(a)).map(Number);
  const bench = new Bench();
  let areas = 0;
  const grow = (to: number): void => {
    for (; areas < to; areas++) bench.map(BASE + BigInt(areas) * STRIDE);
  };
  grow(1);
  for (const pair of [bench.between, bench.replace]) bench.pairs(1, calls, pair);
  const one = bench.pairs(1, calls, bench.between);
  const empty = heap();
  process.stdout.write(`MAP_FILE + UNMAP with 1 area there: ${one.toFixed(0)} ns\n`);
  for (const n of [1_000, most]) {
    grow(n);
    for (const [what, pair] of [
      ["of one more, anywhere", bench.automatic],
      ["of one more, among them", bench.between],
      ["of one of them", bench.replace],
    ] as const) {
      const ns = bench.pairs(n, calls, pair);
      process.stdout.write(`MAP_FILE + UNMAP ${what} with ${n} areas there: ${ns.toFixed(0)} ns, ${(ns / one).toFixed(2)} of with one\n`);
    }
  }
  const bytes = (heap() - empty) / (areas - 1);
  const plain = plainObject();
  process.stdout.write(
    `bytes per area: ${bytes.toFixed(0)}, ${(bytes / plain).toFixed(2)} of an object of ten fields (${plain.toFixed(0)})\n`,
  );
}
