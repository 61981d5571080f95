import { expect, test } from "vitest";
import { execute, invent } from "../../conformance/fuzz/execute.ts";
import { recorded } from "../../conformance/fuzz/linux.ts";
import { type Call, parseProgram, programText, type Sequence } from "../../conformance/fuzz/program.ts";
import { shrink } from "../../conformance/fuzz/shrink.ts";
import { readMachine } from "../../src/client/index.ts";

const machine = readMachine("oracle");
const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

test("made-up calls break nothing, leave nothing, and are answered alike when they are made again from their text", () => {
  for (const seed of SEEDS) {
    const { sequence, answers, broken } = invent(seed, 150, machine);
    expect(broken, sequence.name).toBeUndefined();
    expect(answers.length).toBeGreaterThanOrEqual(150);
    const [again] = parseProgram(programText([sequence]));
    expect(again).toEqual(sequence);
    expect(execute(sequence, machine).answers).toEqual(answers);
  }
});

test("one sequence of each kind is answered as Linux answered it", () => {
  const { sequences, answers } = recorded();
  for (const kind of ["mock", "real", "mixed"]) {
    const s = sequences.find((x) => x.name.endsWith(kind));
    if (s === undefined) throw new Error(`no ${kind} sequence is recorded`);
    expect(execute(s, machine).answers).toEqual(answers.get(s.name));
  }
});

test("a sequence is made as small as it can be, and what must be undone stays", async () => {
  const call = (n: number): Call => ({ op: "sleep", n: [BigInt(n)], ...(n === 30 ? { needed: true } : {}) });
  const whole: Sequence = { name: "all", calls: Array.from({ length: 101 }, (_, i) => call(i)) };
  const has = (s: Sequence, n: number): boolean => s.calls.some((c) => c.n[0] === BigInt(n));
  let asked = 0;
  const least = await shrink(whole, whole.calls[100], (candidates) => {
    asked++;
    return candidates.map((s) => has(s, 17) && has(s, 64));
  });
  expect(least.calls.map((c) => Number(c.n[0]))).toEqual([17, 30, 64, 100]);
  // A judge that is slow to start is asked seldom.
  expect(asked).toBeLessThan(30);
});
