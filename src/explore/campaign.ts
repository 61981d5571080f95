/**
 * A campaign: a search in parts (`parts.ts`), worked on by several who may die,
 * and what is known of it so far.
 *
 * The search is first cut, level by level, into a number of parts. Whoever takes
 * a part hands back an entry: what all its runs came to, or, where they are more
 * than the limit, into how many parts it falls; those runs count for nothing. So
 * the entries of a finished campaign follow from its header and the scenario
 * alone, whoever worked on it, in whatever order, and however often a part was
 * taken up again.
 *
 * A part is waiting, out, or settled. It is settled by the first entry, and
 * every later one is passed over: it says the same. A part whose search meets a
 * violation is left there, as the whole search would be.
 *
 * The journal of a campaign is its header and its entries, a line each, in the
 * order in which they came; what any number of its lines say is a state to go on
 * from.
 */
import * as z from "zod";
import { type Part, partsOf, WHOLE } from "./parts.ts";
import type { Program, Violation } from "./program.ts";

/** What the parts of a campaign follow from. */
export interface CampaignHeader {
  /** Name of the scenario. */
  readonly campaign: string;
  /** Version of barlink: another's parts may be others. */
  readonly barlink: string;
  /** Parts to begin with; at least 1. */
  readonly parts: number;
  /** Runs, complete or in vain, after which a part is divided; at least 1. */
  readonly limit: number;
}

/** What the runs of a part came to. */
export interface PartResult {
  readonly executions: number;
  readonly blocked: number;
  readonly steps: number;
  readonly violations: number;
  /** Steps of the longest run. */
  readonly depth: number;
  /** Complete runs by the state they ended in, sorted. */
  readonly states: readonly (readonly [state: string, executions: number])[];
  /** The first that was met: how to come to it, as `schedule.ts` writes it, and what it is. */
  readonly violation?: FoundViolation | undefined;
}

export interface FoundViolation extends Violation {
  readonly schedule: string;
}

/** What became of a part: it is explored, or it is too large and falls into so many. */
export type CampaignEntry = { readonly part: string } & ({ readonly result: PartResult } | { readonly split: number });

/** What is wrong with a journal, in words for the user. */
export class JournalError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "JournalError";
  }
}

const count = z.int().min(0);
const kinds = [
  "deadlock",
  "lost-wakeup",
  "livelock",
  "lockdep",
  "race",
  "use-after-free",
  "refcount",
  "results",
  "invariant",
  "bug",
] as const;
const headerSchema = z.strictObject({ campaign: z.string(), barlink: z.string(), parts: z.int().min(1), limit: z.int().min(1) });
const part = z.string().regex(/^(?:\d+(?:\.\d+)*)?$/);
const resultSchema = z.strictObject({
  executions: count,
  blocked: count,
  steps: count,
  violations: count,
  depth: count,
  states: z.array(z.tuple([z.string(), count])),
  violation: z.strictObject({ schedule: z.string(), kind: z.enum(kinds), message: z.string() }).optional(),
});
const entrySchema = z.union([z.strictObject({ part, result: resultSchema }), z.strictObject({ part, split: z.int().min(1) })]);

/** What somebody else handed back as an entry. Throws JournalError when it is none. */
export function parseEntry(value: unknown): CampaignEntry {
  const entry = entrySchema.safeParse(value);
  if (!entry.success) throw new JournalError("not what became of a part");
  return entry.data;
}

/** A line of a journal. */
export const formatLine = (line: CampaignHeader | CampaignEntry): string => `${JSON.stringify(line)}\n`;

/** The name of part `n` of a part. */
export const partName = (parent: string, n: number): string => (parent === "" ? String(n) : `${parent}.${n}`);

/** What a campaign has come to. */
export interface CampaignTotals {
  executions: number;
  blocked: number;
  steps: number;
  violations: number;
  depth: number;
  /** Parts that are explored; those that were divided are not counted. */
  parts: number;
  readonly states: Map<string, number>;
  /** The one with the shortest schedule. */
  violation: FoundViolation | undefined;
}

export class Campaign {
  readonly header: CampaignHeader;
  readonly totals: CampaignTotals = {
    executions: 0,
    blocked: 0,
    steps: 0,
    violations: 0,
    depth: 0,
    parts: 0,
    states: new Map(),
    violation: undefined,
  };
  /** Not settled, by name: each with its share of the whole. */
  readonly #waiting: Map<string, number> = new Map([["", 1]]);
  readonly #out: Map<string, number> = new Map();
  /** Into how many parts each fell; 0 where it is explored. */
  readonly #settled: Map<string, number> = new Map();
  #share = 0;

  constructor(header: CampaignHeader) {
    this.header = header;
  }

  /** Takes a part that is waiting: it is out. Undefined when none is. */
  take(): string | undefined {
    const first = this.#waiting.entries().next().value;
    if (first === undefined) return undefined;
    this.#waiting.delete(first[0]);
    this.#out.set(first[0], first[1]);
    return first[0];
  }

  /** Who took the part will not hand it back: it waits again. */
  giveBack(name: string): void {
    const share = this.#out.get(name);
    if (share === undefined) return;
    this.#out.delete(name);
    this.#waiting.set(name, share);
  }

  /** Settles a part. False when it is settled already. Throws JournalError when there is no such part, or it fell into other parts. */
  record(entry: CampaignEntry): boolean {
    const name = entry.part;
    const before = this.#settled.get(name);
    if (before !== undefined) {
      if (before !== ("split" in entry ? entry.split : 0))
        throw new JournalError(`part "${name}" is not what it was: the scenario has changed`);
      return false;
    }
    const share = this.#out.get(name) ?? this.#waiting.get(name);
    if (share === undefined) throw new JournalError(`the campaign has no part "${name}"`);
    this.#out.delete(name);
    this.#waiting.delete(name);
    this.#settled.set(name, "split" in entry ? entry.split : 0);
    if ("split" in entry) {
      for (let n = 0; n < entry.split; n++) this.#waiting.set(partName(name, n), share / entry.split);
    } else {
      this.#share += share;
      this.#add(entry.result);
    }
    return true;
  }

  #add(result: PartResult): void {
    const { totals } = this;
    totals.parts++;
    totals.executions += result.executions;
    totals.blocked += result.blocked;
    totals.steps += result.steps;
    totals.violations += result.violations;
    totals.depth = Math.max(totals.depth, result.depth);
    for (const [state, n] of result.states) totals.states.set(state, (totals.states.get(state) ?? 0) + n);
    const { violation } = result;
    if (violation !== undefined && (totals.violation === undefined || isShorter(violation.schedule, totals.violation.schedule)))
      totals.violation = violation;
  }

  /** Nothing is left to be explored. */
  get finished(): boolean {
    return this.#waiting.size === 0 && this.#out.size === 0;
  }

  /** Names of the parts that are out. */
  get out(): IterableIterator<string> {
    return this.#out.keys();
  }

  /** How many are out. */
  get outCount(): number {
    return this.#out.size;
  }

  /** Parts that wait or are out. */
  get open(): number {
    return this.#waiting.size + this.#out.size;
  }

  /** Names of the parts that are explored or divided. */
  get settled(): IterableIterator<string> {
    return this.#settled.keys();
  }

  /**
   * How much is done, from 0 to 1, as if the parts of a part were equally large.
   * They are not: it is an estimate.
   */
  get share(): number {
    return this.finished ? 1 : this.#share;
  }
}

const isShorter = (a: string, b: string): boolean => a.length < b.length || (a.length === b.length && a < b);

/**
 * Reads a journal. What follows the last end of a line was not written to its
 * end, and is passed over. Undefined when not even the header is whole; throws
 * JournalError for what is no journal.
 */
export function parseCampaign(journal: string): Campaign | undefined {
  const lines = journal.split("\n").slice(0, -1);
  let campaign: Campaign | undefined;
  for (const [i, line] of lines.entries()) {
    try {
      const value: unknown = JSON.parse(line);
      if (campaign === undefined) campaign = new Campaign(headerSchema.parse(value));
      else campaign.record(parseEntry(value));
    } catch (e) {
      if (e instanceof JournalError) throw new JournalError(`line ${i + 1}: ${e.message}`);
      throw new JournalError(`line ${i + 1} is none of a campaign`);
    }
  }
  return campaign;
}

/**
 * Cuts the search into the parts to begin with, level by level: `recorded`
 * hears of each cut that the campaign did not know. The same for a campaign that
 * has gone on since. Throws JournalError where the scenario falls into other
 * parts than the campaign says.
 */
export function cut(campaign: Campaign, program: Program, recorded: (entry: CampaignEntry) => void): void {
  const level: { readonly name: string; readonly part: Part }[] = [{ name: "", part: WHOLE }];
  for (let ends = 0; level.length > 0 && level.length + ends < campaign.header.parts; ) {
    const { name, part } = level.shift() as (typeof level)[number];
    const below = partsOf(program, part);
    if (below.length === 0) {
      ends++;
      continue;
    }
    const entry: CampaignEntry = { part: name, split: below.length };
    if (campaign.record(entry)) recorded(entry);
    for (const [n, p] of below.entries()) level.push({ name: partName(name, n), part: p });
  }
}
