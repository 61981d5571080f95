/** A queue that takes back what was taken from it, against an array. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { Fifo } from "../../src/lib/fifo.ts";

test("it does what an array does", () => {
  const op = fc.oneof(
    { weight: 4, arbitrary: fc.nat().map((n) => ["push", n] as const) },
    { weight: 4, arbitrary: fc.constant(["shift"] as const) },
    { weight: 2, arbitrary: fc.nat().map((n) => ["unshift", n] as const) },
    fc.constant(["pop"] as const),
    fc.nat({ max: 4 }).map((n) => ["extract", n] as const),
  );
  fc.assert(
    fc.property(fc.array(fc.nat(), { maxLength: 100 }), fc.array(op, { maxLength: 400 }), (start, ops) => {
      const fifo = new Fifo<number>();
      let model: number[] = [...start];
      for (const n of start) fifo.push(n);
      for (const o of ops) {
        if (o[0] === "push") {
          model.push(o[1]);
          fifo.push(o[1]);
        } else if (o[0] === "unshift") {
          model.unshift(o[1]);
          fifo.unshift(o[1]);
        } else if (o[0] === "shift") expect(fifo.shift()).toBe(model.shift());
        else if (o[0] === "pop") expect(fifo.pop()).toBe(model.pop());
        else {
          const which = (n: number): boolean => n % 5 === o[1];
          expect(fifo.extract(which)).toEqual(model.filter(which));
          model = model.filter((n) => !which(n));
        }
        expect([fifo.length, fifo.first, fifo.last]).toEqual([model.length, model[0], model.at(-1)]);
      }
      expect([...fifo]).toEqual(model);
    }),
    { numRuns: 200 },
  );
});
