/**
 * Pins against what Linux does with pages: a model in which a page is an object,
 * an address shows one or none, and a pin holds one whatever happens to the
 * address.
 */
import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { Kernel } from "../../src/kernel/kernel.ts";
import type { Pfn } from "../../src/lib/addr.ts";
import { EFAULT, Errno } from "../../src/lib/errno.ts";
import { ProcessMemory } from "../../src/supervise/process_memory.ts";
import { RealMemory } from "../../src/supervise/real_file.ts";
import { leaks } from "../harness.ts";
import { ownDescriptors, Peer } from "./peer.ts";

const PAGES = 12;
const PAGE = 4096n;
let peer: Peer;
let before: string[];

beforeAll(async () => {
  before = ownDescriptors();
  peer = await Peer.start();
});
afterAll(async () => {
  await peer.end();
  expect(ownDescriptors()).toEqual(before);
});

interface Page {
  byte: number;
  pins: number;
  pfn: Pfn | undefined;
}

const fresh = (): Page => ({ byte: 0, pins: 0, pfn: undefined });
const at = fc.nat(PAGES - 1);
const span = fc.record({ first: at, n: fc.integer({ min: 1, max: 4 }) });
const op = fc.oneof(
  fc.record({ op: fc.constant("map" as const), span, shared: fc.boolean() }),
  fc.record({ op: fc.constant("mapFile" as const), span, page: fc.nat(5) }),
  fc.record({ op: fc.constant("unmap" as const), span }),
  fc.record({ op: fc.constant("dontneed" as const), span }),
  fc.record({ op: fc.constant("pin" as const), span }),
  fc.record({ op: fc.constant("pin" as const), span: fc.record({ first: at, n: fc.constant(1) }) }),
  fc.record({ op: fc.constant("unpin" as const), which: fc.nat() }),
  fc.record({ op: fc.constant("cpu" as const), page: at, byte: fc.integer({ min: 1, max: 255 }) }),
  fc.record({ op: fc.constant("dma" as const), which: fc.nat(), byte: fc.integer({ min: 1, max: 255 }) }),
);

it.each([true, false])(
  "a pin holds its page whatever becomes of the address (descriptors of mappings: %s)",
  async (mapFiles) => {
    const base = BigInt(await peer.ask(`mmap(${PAGES} * PAGE, NONE)`));
    await fc.assert(
      fc.asyncProperty(fc.array(op, { minLength: 4, maxLength: 40, size: "max" }), async (ops) => {
        const kernel = new Kernel();
        const shared = new RealMemory(kernel);
        shared.mapFiles = mapFiles;
        const memory = new ProcessMemory(shared, peer.target);
        const fd = await peer.ask("memfd(8 * PAGE)");
        const file = Array.from({ length: 8 }, fresh);
        const shows: (Page | undefined)[] = new Array(PAGES).fill(undefined);
        const kind: ("private" | "shared" | "none")[] = new Array(PAGES).fill("none");
        const pins: { page: Page; pfn: Pfn }[] = [];
        const addr = (page: number): bigint => base + BigInt(page) * PAGE;
        const clip = ({ first, n }: { first: number; n: number }): number => Math.min(n, PAGES - first);
        await peer.ask(`mmap(${PAGES} * PAGE, NONE, PRIVATE | ANON | FIXED, -1, 0, ${base})`);
        // From everything mapped: holes come soon enough.
        const start: typeof ops = [
          { op: "map", span: { first: 0, n: PAGES }, shared: false },
          { op: "map", span: { first: 4, n: 4 }, shared: true },
          { op: "mapFile", span: { first: 8, n: 4 }, page: 1 },
        ];
        for (const o of [...start, ...ops]) {
          if (o.op === "map" || o.op === "mapFile") {
            const n = o.op === "map" ? clip(o.span) : Math.min(clip(o.span), 8 - o.page);
            const { first } = o.span;
            memory.leaving(addr(first), BigInt(n) * PAGE, "mmap");
            const how =
              o.op === "mapFile" ? `SHARED | FIXED, ${fd}, ${o.page} * PAGE` : `${o.shared ? "SHARED" : "PRIVATE"} | ANON | FIXED, -1, 0`;
            await peer.ask(`mmap(${n} * PAGE, RW, ${how}, ${addr(first)})`);
            for (let i = 0; i < n; i++) {
              shows[first + i] = o.op === "mapFile" ? file[o.page + i] : fresh();
              kind[first + i] = o.op === "mapFile" || o.shared ? "shared" : "private";
            }
          } else if (o.op === "unmap") {
            const n = clip(o.span);
            memory.leaving(addr(o.span.first), BigInt(n) * PAGE, "munmap");
            await peer.ask(`munmap(${addr(o.span.first)}, ${n} * PAGE)`);
            shows.fill(undefined, o.span.first, o.span.first + n);
            kind.fill("none", o.span.first, o.span.first + n);
          } else if (o.op === "dontneed") {
            const n = clip(o.span);
            memory.leaving(addr(o.span.first), BigInt(n) * PAGE, "madvise", { privateOnly: true });
            await peer.ask(`madvise(${addr(o.span.first)}, ${n} * PAGE, 4)`);
            for (let i = o.span.first; i < o.span.first + n; i++) if (kind[i] === "private") shows[i] = fresh();
          } else if (o.op === "pin") {
            const n = clip(o.span);
            const want = shows.slice(o.span.first, o.span.first + n);
            const r = memory.pin(addr(o.span.first), n, true);
            if (want.includes(undefined)) {
              expect(r).toBe(EFAULT);
              continue;
            }
            if (r instanceof Errno) throw new Error(r.name);
            for (const [i, pfn] of r.entries()) {
              const page = want[i] as Page;
              if (page.pins > 0) expect(pfn).toBe(page.pfn);
              page.pfn = pfn;
              page.pins++;
              pins.push({ page, pfn });
            }
          } else if (o.op === "unpin") {
            const [p] = pins.splice(o.which % Math.max(1, pins.length), 1);
            if (p === undefined) continue;
            memory.unpin([p.pfn], true);
            p.page.pins--;
          } else if (o.op === "cpu") {
            const page = shows[o.page];
            if (page === undefined) continue;
            page.byte = o.byte;
            await peer.ask(`poke(${addr(o.page)}, "${o.byte.toString(16).padStart(2, "0")}")`);
          } else {
            const p = pins[o.which % Math.max(1, pins.length)];
            if (p === undefined) continue;
            p.page.byte = o.byte;
            expect(kernel.frames.writeFrame(p.pfn, 0, Uint8Array.of(o.byte))).toBe(true);
          }
          for (const { page, pfn } of pins) {
            const dst = new Uint8Array(1);
            expect([kernel.frames.readFrame(pfn, 0, dst), dst[0]]).toEqual([true, page.byte]);
          }
          for (const [i, page] of shows.entries()) {
            const dst = new Uint8Array(1);
            const left = memory.read(addr(i), dst);
            if (page === undefined) expect(left).toBe(1);
            else expect([left, dst[0]]).toEqual([0, page.byte]);
          }
          // Different pages that are pinned have different frames.
          const frames = new Map(pins.map((p) => [p.page, p.pfn]));
          expect(new Set(frames.values()).size).toBe(frames.size);
        }
        memory.unpin(
          pins.map((p) => p.pfn),
          true,
        );
        memory.destroy();
        await peer.ask(`os.close(${fd})`);
        expect(leaks(kernel)).toEqual({});
        expect(shared.files.size).toBe(0);
        expect(shared.budget).toMatchObject({ apart: 0, lost: 0 });
      }),
      { numRuns: 200 },
    );
  },
  120_000,
);
