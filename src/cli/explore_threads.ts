/** The threads of this process that explore parts. */
import { availableParallelism } from "node:os";
import { Piscina } from "piscina";
import type { Campaign, CampaignEntry } from "../explore/index.ts";
import { natural } from "./explore.ts";
import type { PartOrder } from "./explore_worker.ts";
import { UsageError } from "./usage_error.ts";

/** Times that the thread of one part may die, before it is that part's fault. */
const DEATHS = 3;
const MOST_JOBS = 1024;

/** What `--jobs` asks for; by default a thread for each processor. */
export function jobsOf(text: string | undefined): number {
  if (text === undefined) return availableParallelism();
  const jobs = natural("jobs", text);
  if (jobs < 1 || jobs > MOST_JOBS) throw new UsageError(`--jobs takes a number from 1 to ${MOST_JOBS}, not ${text}`);
  return jobs;
}

export class ExploreThreads {
  readonly #pool: Piscina<PartOrder, CampaignEntry>;

  constructor(jobs: number) {
    const filename = new URL("./explore_worker.js", import.meta.url).href;
    this.#pool = new Piscina({ filename, minThreads: jobs, maxThreads: jobs });
  }

  /** Explores a part, on another thread again where one dies of it. */
  async explore(order: PartOrder): Promise<CampaignEntry> {
    for (let deaths = 1; ; deaths++) {
      try {
        return await this.#pool.run(order);
      } catch (e) {
        const died = typeof (e as { code?: unknown }).code === "string" && (e as { code: string }).code.startsWith("ERR_WORKER");
        if (!died || deaths === DEATHS) throw e;
      }
    }
  }

  /** Ends them, whatever they are at. */
  async end(): Promise<void> {
    await this.#pool.destroy();
  }
}

/** Explores what is left of a campaign on so many threads; `recorded` hears of each entry. Ends early at a violation, and when `signal` says so. */
export async function exploreOnThreads(
  campaign: Campaign,
  jobs: number,
  signal: AbortSignal,
  recorded: (entry: CampaignEntry) => void,
): Promise<void> {
  const threads = new ExploreThreads(jobs);
  const { campaign: scenario, limit } = campaign.header;
  const over = (): boolean => signal.aborted || campaign.totals.violation !== undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      signal.addEventListener("abort", () => resolve(), { once: true });
      const handOut = (): void => {
        if (over() || campaign.finished) resolve();
        while (!over() && campaign.outCount < jobs) {
          const part = campaign.take();
          if (part === undefined) return;
          threads
            .explore({ scenario, part, limit })
            .then((entry) => {
              if (over()) return;
              if (campaign.record(entry)) recorded(entry);
              handOut();
            })
            .catch(reject);
        }
      };
      handOut();
    });
  } finally {
    await threads.end();
  }
}
