/**
 * Explores the parts of a campaign, one after another, in one process.
 *
 * The program, its machines and the numbers of its objects serve for all parts.
 * What a part comes to does not depend on which were explored before it.
 */
import type { CampaignEntry, FoundViolation } from "./campaign.ts";
import { explorePart } from "./dpor.ts";
import { type Part, partsOf, WHOLE } from "./parts.ts";
import type { Program } from "./program.ts";
import { formatSchedule } from "./schedule.ts";

/** Parts of which the parts are remembered: siblings are often explored by one. */
const REMEMBERED = 1000;

export class PartExplorer {
  readonly #program: Program;
  /** The parts of parts, by the name of the latter. */
  readonly #below: Map<string, readonly Part[]> = new Map();

  constructor(program: Program) {
    this.#program = program;
  }

  /**
   * Explores a part, up to its first violation. Where its runs, complete or in
   * vain, are more than `limit`, says instead into how many parts it falls; one
   * that cannot be divided is explored however large. Throws RangeError when
   * there is no part of that name.
   */
  explore(name: string, limit: number): CampaignEntry {
    const part = this.#partAt(name);
    const entry = this.#explore(name, part, limit);
    if (entry !== undefined) return entry;
    const split = this.#partsOf(name, part).length;
    return split > 0 ? { part: name, split } : (this.#explore(name, part, Number.POSITIVE_INFINITY) as CampaignEntry);
  }

  /** Undefined when its runs are more than `limit`. */
  #explore(name: string, part: Part, limit: number): CampaignEntry | undefined {
    const states = new Map<string, number>();
    let depth = 0;
    let before = 0;
    let violation: FoundViolation | undefined;
    const counts = explorePart(this.#program, part, ({ schedule, outcome }, { executions, blocked, steps }) => {
      states.set(outcome.state, (states.get(outcome.state) ?? 0) + 1);
      depth = Math.max(depth, steps - before);
      before = steps;
      if (outcome.violation !== undefined) violation = { schedule: formatSchedule(schedule), ...outcome.violation };
      return violation !== undefined || executions + blocked > limit;
    });
    if (violation === undefined && counts.executions + counts.blocked > limit) return undefined;
    const { executions, blocked, steps, violations } = counts;
    const sorted = [...states].sort(([a], [b]) => (a < b ? -1 : 1));
    return { part: name, result: { executions, blocked, steps, violations, depth, states: sorted, violation } };
  }

  #partAt(name: string): Part {
    if (name === "") return WHOLE;
    const dot = name.lastIndexOf(".");
    const parent = dot < 0 ? "" : name.slice(0, dot);
    const part = this.#partsOf(parent, this.#partAt(parent))[Number(name.slice(dot + 1))];
    if (part === undefined) throw new RangeError(`${this.#program.name} has no part ${name}`);
    return part;
  }

  #partsOf(name: string, part: Part): readonly Part[] {
    let parts = this.#below.get(name);
    if (parts === undefined) {
      if (this.#below.size >= REMEMBERED) this.#below.clear();
      parts = partsOf(this.#program, part);
      this.#below.set(name, parts);
    }
    return parts;
  }
}
