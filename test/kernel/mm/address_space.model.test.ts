/** The address space against a naive model: an array of pages, each with its protection and its bytes. */
import fc from "fast-check";
import { expect, it } from "vitest";
import type { Pfn } from "../../../src/lib/addr.ts";
import { Errno } from "../../../src/lib/errno.ts";
import { MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import { boot, expectNothingLeaks } from "../../harness.ts";

const BASE = 0x4000_0000n;
const PAGES = 12;
const RW = PROT_READ | PROT_WRITE;

interface Page {
  prot: number;
  bytes: Uint8Array;
}

const pages = fc.tuple(fc.nat(PAGES - 1), fc.integer({ min: 1, max: 5 })).map(([first, n]) => ({ first, n: Math.min(n, PAGES - first) }));
const prot = fc.constantFrom(PROT_NONE, PROT_READ, RW);
const bytes = fc.tuple(fc.nat(PAGES * 4096 - 1), fc.integer({ min: 1, max: 9000 }), fc.integer({ min: 1, max: 255 }));
const step = fc.oneof(
  fc.record({ op: fc.constant("map" as const), at: pages, prot }),
  fc.record({ op: fc.constant("unmap" as const), at: pages }),
  fc.record({ op: fc.constant("protect" as const), at: pages, prot }),
  fc.record({ op: fc.constant("write" as const), at: bytes }),
  fc.record({ op: fc.constant("read" as const), at: bytes }),
  fc.record({ op: fc.constant("pin" as const), at: pages, write: fc.boolean() }),
  fc.record({ op: fc.constant("discard" as const), at: pages }),
);

it("answers as an array of pages does, byte for byte, and leaks nothing", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60, size: "max" }), fc.boolean(), (steps, forked) => {
      const { kernel, p: parent } = boot();
      const p = forked ? parent.fork() : parent;
      const { space } = p;
      const model: (Page | undefined)[] = new Array(PAGES).fill(undefined);
      const pinned: Pfn[] = [];
      const addr = (n: number): bigint => BASE + BigInt(n) * 4096n;
      /** Bytes that can be reached from `offset` on, at most `length`. */
      const reach = (offset: number, length: number, ok: (q: Page) => boolean): number => {
        let n = 0;
        while (n < length) {
          const q = model[Math.floor((offset + n) / 4096)];
          if (q === undefined || !ok(q)) break;
          n += Math.min(length - n, 4096 - ((offset + n) % 4096));
        }
        return n;
      };
      for (const s of steps) {
        switch (s.op) {
          case "map": {
            const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
            expect(space.mmap({ addr: addr(s.at.first), length: BigInt(s.at.n) * 4096n, prot: s.prot, flags })).toBe(addr(s.at.first));
            for (let i = 0; i < s.at.n; i++) model[s.at.first + i] = { prot: s.prot, bytes: new Uint8Array(4096) };
            break;
          }
          case "unmap":
            space.munmap(addr(s.at.first), BigInt(s.at.n) * 4096n);
            model.fill(undefined, s.at.first, s.at.first + s.at.n);
            break;
          case "protect": {
            const r = space.mprotect(addr(s.at.first), BigInt(s.at.n) * 4096n, s.prot);
            let hole = false;
            for (let i = 0; i < s.at.n && !hole; i++) {
              const q = model[s.at.first + i];
              if (q === undefined) hole = true;
              else q.prot = s.prot;
            }
            expect(r instanceof Errno).toBe(hole);
            break;
          }
          case "write": {
            const [offset, length, value] = s.at;
            const n = reach(offset, length, (q) => (q.prot & PROT_WRITE) !== 0);
            expect(space.write(BASE + BigInt(offset), new Uint8Array(length).fill(value))).toBe(length - n);
            for (let i = 0; i < n; i++) (model[Math.floor((offset + i) / 4096)] as Page).bytes[(offset + i) % 4096] = value;
            break;
          }
          case "read": {
            const [offset, length] = s.at;
            const n = reach(offset, length, (q) => q.prot !== PROT_NONE);
            const got = new Uint8Array(length);
            expect(space.read(BASE + BigInt(offset), got)).toBe(length - n);
            const want = new Uint8Array(length);
            for (let i = 0; i < n; i++) want[i] = (model[Math.floor((offset + i) / 4096)] as Page).bytes[(offset + i) % 4096] as number;
            expect(Buffer.compare(got, want)).toBe(0);
            break;
          }
          case "pin": {
            const need = s.write ? PROT_WRITE : PROT_READ;
            const all = model.slice(s.at.first, s.at.first + s.at.n);
            const fine = all.every((q) => q !== undefined && (q.prot & need) !== 0);
            const r = space.pin(addr(s.at.first), s.at.n, s.write);
            expect(r instanceof Errno).toBe(!fine);
            if (r instanceof Errno) break;
            r.forEach((pfn, i) => {
              expect(Buffer.compare(kernel.frames.bytes(pfn), (all[i] as Page).bytes)).toBe(0);
              pinned.push(pfn);
            });
            break;
          }
          case "discard":
            space.discard(addr(s.at.first), BigInt(s.at.n) * 4096n);
            for (const q of model.slice(s.at.first, s.at.first + s.at.n)) q?.bytes.fill(0);
        }
      }
      space.unpin(pinned, true);
      expectNothingLeaks(kernel);
    }),
    { numRuns: 300 },
  );
});
