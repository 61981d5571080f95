/** A thread that explores parts of campaigns, of whatever scenario; piscina calls it. */
import { type CampaignEntry, PartExplorer, scenarios, taskProgram } from "../explore/index.ts";

/** A part to be explored. */
export interface PartOrder {
  readonly scenario: string;
  readonly part: string;
  /** Runs after which it is divided. */
  readonly limit: number;
}

const explorers = new Map<string, PartExplorer>();

export default function explorePartOf({ scenario: name, part, limit }: PartOrder): CampaignEntry {
  let explorer = explorers.get(name);
  if (explorer === undefined) {
    const scenario = scenarios.get(name);
    if (scenario === undefined) throw new RangeError(`no scenario "${name}"`);
    explorer = new PartExplorer(taskProgram(scenario));
    explorers.set(name, explorer);
  }
  return explorer.explore(part, limit);
}
