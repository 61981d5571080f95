/** One thread's share of a long run: sequences made up and carried out, and what broke. */
import { readMachine } from "../../src/client/index.ts";
import { invent } from "./execute.ts";

export interface Share {
  readonly seeds: readonly number[];
  /** Calls in a sequence, about. */
  readonly length: number;
}

export interface Report {
  readonly calls: number;
  /** Calls that did not fail. */
  readonly succeeded: number;
  readonly broken: readonly { readonly seed: number; readonly what: string; readonly after: number }[];
}

export default function run({ seeds, length }: Share): Report {
  const machine = readMachine("oracle");
  const broken: { seed: number; what: string; after: number }[] = [];
  let [calls, succeeded] = [0, 0];
  for (const seed of seeds) {
    const outcome = invent(seed, length, machine);
    calls += outcome.answers.length;
    for (const a of outcome.answers) if (!a.startsWith("E")) succeeded++;
    if (outcome.broken !== undefined) broken.push({ seed, ...outcome.broken });
  }
  return { calls, succeeded, broken };
}
