/**
 * Random calls on an event queue against a naive model: no event is given
 * twice or out of order, none is lost without a word, a queue never holds more
 * than its depth, and nothing is left at the end. BARLINK_VEVENTQ_RUNS sets the
 * number of runs.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { EventRig, parseEvents } from "./event_support.ts";

const RUNS = Number(process.env.BARLINK_VEVENTQ_RUNS ?? 60);
const HEADER = u.IommufdVeventHeader.size;
const EVENT = HEADER + u.IommuViommuEventSelftest.size;

interface Queue {
  readonly id: number;
  readonly fd: number;
  readonly depth: number;
  open: boolean;
  /** Numbers of all events so far, lost ones too. */
  numbered: number;
  /** Numbers of those that wait. */
  waiting: number[];
  /** The last one lost, when none has been queued since. */
  lost: number | undefined;
}

type Given = readonly [sequence: number, virtId: number | "lost"];

/** What a read takes from the model, and answers. `room`: bytes that can be written. */
function read(q: Queue, count: number, room: number, noMemory: boolean, virtId: number): { r: number | Errno; given: Given[] } {
  if (count < HEADER) return { r: EINVAL, given: [] };
  const given: Given[] = [];
  let done = 0;
  const stop = (e: Errno): { r: number | Errno; given: Given[] } => ({ r: done === 0 ? e : done, given });
  for (let n = q.waiting[0]; n !== undefined; n = q.waiting[0]) {
    if (EVENT > count - done) return stop(EINVAL);
    if (done + EVENT > room) return stop(EFAULT);
    given.push([n, virtId]);
    q.waiting.shift();
    done += EVENT;
  }
  if (q.lost === undefined) return { r: done, given };
  if (noMemory) return stop(ENOMEM);
  if (HEADER > count - done) return { r: done, given };
  if (done + HEADER > room) return stop(EFAULT);
  given.push([q.lost, "lost"]);
  q.lost = undefined;
  return { r: done + HEADER, given };
}

const arbOp = fc.oneof(
  { weight: 2, arbitrary: fc.record({ op: fc.constant("alloc" as const), depth: fc.nat({ max: 4 }), type: fc.nat({ max: 8 }) }) },
  { weight: 12, arbitrary: fc.record({ op: fc.constant("trigger" as const), noMemory: fc.nat({ max: 9 }).map((n) => n === 0) }) },
  {
    weight: 8,
    arbitrary: fc.record({
      op: fc.constant("read" as const),
      count: fc.oneof(fc.nat({ max: 5 * EVENT }), fc.constant(0x100)),
      room: fc.oneof(fc.nat({ max: 3 * EVENT }), fc.constant(0x1000), fc.constant(0x1000)),
      noMemory: fc.nat({ max: 9 }).map((n) => n === 0),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("poll" as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("close" as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("destroy" as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("leave" as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("enter" as const) }) },
);

test("every event is given once, in order, or its loss is told", () => {
  fc.assert(
    fc.property(
      fc.array(arbOp, { minLength: 30, maxLength: 150, size: "max" }),
      fc.integer({ min: 1, max: 0x7fff_ffff }),
      (ops, virtId) => {
        const r = new EventRig();
        const { viommu, idev, stdev, ioas, nested } = r.guest(BigInt(virtId));
        let q: Queue | undefined;
        let inside = true;
        const failing = <T>(noMemory: boolean, f: () => T): T => {
          if (noMemory) r.kernel.fault.decide((p) => p.what === "iommufd_vevent");
          const v = f();
          r.kernel.fault.decide(undefined);
          return v;
        };
        for (const o of ops) {
          switch (o.op) {
            case "alloc": {
              const type = o.type === 0 ? u.IOMMU_VEVENTQ_TYPE_DEFAULT : u.IOMMU_VEVENTQ_TYPE_SELFTEST;
              const got = r.veventq(o.type === 1 ? 0x7fff_0000 : viommu, { type, veventq_depth: o.depth });
              const want =
                o.type === 0 ? EOPNOTSUPP : o.depth === 0 ? EINVAL : o.type === 1 ? ENOENT : q === undefined ? undefined : EEXIST;
              expect(got instanceof Errno ? got : undefined).toBe(want);
              if (!(got instanceof Errno)) q = { ...got, depth: o.depth, open: true, numbered: 0, waiting: [], lost: undefined };
              break;
            }
            case "trigger": {
              const got = failing(o.noMemory, () => r.vevent(idev));
              if (!inside || q === undefined) {
                expect(got).toBe(inside ? EOPNOTSUPP : ENOENT);
                break;
              }
              expect(got).toBe(o.noMemory ? ENOMEM : 0);
              const n = q.numbered++;
              const fits = !o.noMemory && q.waiting.length < q.depth;
              if (fits) q.waiting.push(n);
              q.lost = fits ? undefined : n;
              break;
            }
            case "read": {
              if (q === undefined || !q.open) break;
              const { fd } = q;
              const at = r.hole - BigInt(o.room);
              const got = failing(o.noMemory, () => r.read(fd, o.count, at));
              const { r: want, given } = read(q, o.count, o.room, o.noMemory, virtId);
              expect(got).toBe(want);
              expect(got instanceof Errno ? [] : parseEvents(r.peek(at, got))).toEqual(given);
              break;
            }
            case "poll":
              if (q?.open === true) expect(r.ready(q.fd)).toBe(q.waiting.length > 0 || q.lost !== undefined ? u.POLLIN | u.POLLRDNORM : 0);
              break;
            case "close":
              if (q?.open !== true) break;
              r.close(q.fd);
              q.open = false;
              break;
            case "destroy":
              // Always tried; with what waits in it when nobody will read it.
              if (q === undefined) break;
              expect(r.destroy(q.id) === 0).toBe(!q.open);
              if (!q.open) q = undefined;
              break;
            case "leave":
            case "enter":
              expect(r.moveTo(stdev, o.op === "leave" ? ioas : nested)).toBe(0);
              inside = o.op === "enter";
              break;
          }
        }
        r.finish();
      },
    ),
    { numRuns: RUNS },
  );
});
