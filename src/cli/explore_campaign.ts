/**
 * `barlink explore` with a search in parts: on threads of this process, or by
 * workers at a server; written down in a file, or not.
 */
import {
  Campaign,
  type CampaignEntry,
  type CampaignHeader,
  type CampaignTotals,
  cut,
  JournalError,
  parseSchedule,
  type Run,
  type Scenario,
  taskProgram,
} from "../explore/index.ts";
import { EXHAUSTED, type ExploreCommand, natural, ProgressLine, report, scenarioOf } from "./explore.ts";
import { Journal } from "./journal.ts";
import { untilEnded } from "./until_ended.ts";
import { UsageError } from "./usage_error.ts";

/** What was known when this process took the campaign up. */
type Before = Pick<CampaignTotals, "executions" | "blocked">;

/** 1 when something that must not happen did; 128 and the signal's number when a signal ended it. */
export async function exploreCampaign(name: string, options: ExploreCommand, version: string): Promise<number> {
  const scenario = scenarioOf(name);
  const header = headerOf(scenario, options, version);
  if (options.jobs !== undefined && options.queue !== undefined)
    throw new UsageError("with --queue the workers explore: say --jobs to `barlink worker`");
  const journal = options.campaign === undefined ? undefined : new Journal(options.campaign, header);
  const campaign = journal?.campaign ?? new Campaign(header);
  const before: Before = { ...campaign.totals };
  const progress = new ProgressLine();
  const recorded = (entry: CampaignEntry): void => {
    journal?.append(entry);
    progress.show(() => progressOf(campaign, progress, before));
  };
  const ended = untilEnded();
  try {
    cut(campaign, taskProgram(scenario), recorded);
    if (options.queue !== undefined && !campaign.finished) {
      const { exploreOnQueue } = await import("./explore_queue.ts");
      await exploreOnQueue(campaign, options.queue, ended.signal, recorded);
    } else if (!campaign.finished) {
      const { exploreOnThreads, jobsOf } = await import("./explore_threads.ts");
      await exploreOnThreads(campaign, jobsOf(options.jobs), ended.signal, recorded);
    }
  } catch (e) {
    if (e instanceof JournalError) throw new UsageError(`the campaign does not fit: ${e.message}`);
    throw e;
  } finally {
    progress.end();
    ended.forget();
  }
  if (ended.status !== undefined && !campaign.finished && campaign.totals.violation === undefined) {
    process.stderr.write(
      `barlink: ended after ${campaign.totals.executions} complete runs, with ${campaign.open} parts open; ${howToGoOn(options)}\n`,
    );
    return ended.status;
  }
  const { totals } = campaign;
  const how = `strategy optimal, ${totals.parts} parts: ${progress.summary(totals, before)}`;
  return report(scenario, { how, states: totals.states, found: foundIn(campaign), said: EXHAUSTED }, options.trace);
}

function headerOf(scenario: Scenario, options: ExploreCommand, version: string): CampaignHeader {
  if (options.strategy !== "optimal") throw new UsageError("--jobs, --campaign and --queue divide the strategy optimal, and no other");
  if (options.preemptions !== undefined) throw new UsageError("--preemptions bounds the strategy all, and no other");
  const atLeastOne = (option: string, text: string): number => {
    const n = natural(option, text);
    if (n === 0) throw new UsageError(`--${option} takes at least 1`);
    return n;
  };
  return {
    campaign: scenario.name,
    barlink: version,
    parts: atLeastOne("parts", options.parts),
    limit: atLeastOne("part-runs", options.partRuns),
  };
}

function progressOf(campaign: Campaign, progress: ProgressLine, before: Before): string {
  const { totals, share, open } = campaign;
  const { seconds } = progress;
  const rate = Math.round((totals.executions - before.executions) / seconds);
  const rest = share > 0 ? `, perhaps ${duration((seconds * (1 - share)) / share)} more` : "";
  return `${totals.executions} schedules, ${rate}/s, ${totals.depth} deep, ${open} parts open, ${(share * 100).toFixed(1)} %${rest}`;
}

function duration(seconds: number): string {
  if (seconds < 100) return `${Math.ceil(seconds)} s`;
  return seconds < 6000 ? `${Math.ceil(seconds / 60)} min` : `${Math.ceil(seconds / 3600)} h`;
}

function howToGoOn({ campaign, queue }: ExploreCommand): string {
  if (campaign === undefined && queue === undefined) return "nothing was written down: with --campaign FILE it could go on from here";
  return "the same command goes on from here";
}

function foundIn({ totals: { violation } }: Campaign): Run | undefined {
  if (violation === undefined) return undefined;
  const { schedule, kind, message } = violation;
  return { schedule: parseSchedule(schedule), outcome: { state: `${kind}: ${message}`, violation: { kind, message } } };
}
