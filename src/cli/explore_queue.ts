/**
 * A campaign whose parts are explored by `barlink worker`s, by way of a queue at
 * a Redis or Valkey server (BullMQ).
 *
 * A part's job has an id that follows from the campaign and the part, so that it
 * is there once, however often it is put there: nothing else of the campaign is
 * at the server, and a coordinator that comes back finds what was done meanwhile
 * by asking for the same jobs again. What the server has lost is put there anew.
 * When the campaign is finished its jobs are removed.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type Job, Queue } from "bullmq";
import { type Campaign, type CampaignEntry, parseEntry } from "../explore/index.ts";
import { connect, type PartJob, PREFIX, QUEUE, ready } from "./explore_connection.ts";
import { UsageError } from "./usage_error.ts";

/** Parts that are at the server at once. */
const WINDOW = 256;
const POLL_MS = 100;
/** What a campaign that nobody comes back to leaves at the server is dropped after a week. */
const KEEP_S = 7 * 24 * 3600;

/** Explores what is left of a campaign. `recorded` hears of each entry. Ends early at a violation, and when `signal` says so. */
export async function exploreOnQueue(
  campaign: Campaign,
  url: string,
  signal: AbortSignal,
  recorded: (entry: CampaignEntry) => void,
): Promise<void> {
  const connection = await connect(url);
  // What is asked while the server is away is not answered before it is back.
  signal.addEventListener("abort", () => connection.disconnect(), { once: true });
  const queue = new Queue<PartJob, unknown>(QUEUE, { connection, prefix: PREFIX });
  queue.on("error", () => {}); // Of the connection, which has been told of.
  const coordinator = new Coordinator(campaign, queue, recorded);
  try {
    await ready(queue);
    while (!signal.aborted && !coordinator.over) {
      await coordinator.handOut();
      if (!(await coordinator.collect())) await sleep(POLL_MS, undefined, { signal });
    }
    if (!signal.aborted) await coordinator.clear();
  } catch (e) {
    if (!signal.aborted) throw e;
  } finally {
    connection.disconnect();
    await queue.close().catch(() => {});
  }
}

class Coordinator {
  readonly #campaign: Campaign;
  readonly #queue: Queue<PartJob, unknown>;
  readonly #recorded: (entry: CampaignEntry) => void;

  constructor(campaign: Campaign, queue: Queue<PartJob, unknown>, recorded: (entry: CampaignEntry) => void) {
    this.#campaign = campaign;
    this.#queue = queue;
    this.#recorded = recorded;
  }

  get over(): boolean {
    return this.#campaign.finished || this.#campaign.totals.violation !== undefined;
  }

  #idOf(part: string): string {
    const { campaign, barlink, parts, limit } = this.#campaign.header;
    return `${campaign}/${barlink}/${parts}/${limit}/${part}`;
  }

  /** Puts parts that wait into the queue. */
  async handOut(): Promise<void> {
    const campaign = this.#campaign;
    const names: string[] = [];
    while (campaign.outCount < WINDOW) {
      const name = campaign.take();
      if (name === undefined) break;
      names.push(name);
    }
    if (names.length === 0) return;
    const { campaign: scenario, barlink, limit } = this.#campaign.header;
    await this.#queue.addBulk(
      names.map((part) => ({
        name: scenario,
        data: { barlink, scenario, part, limit },
        opts: { jobId: this.#idOf(part), removeOnComplete: { age: KEEP_S }, removeOnFail: { age: KEEP_S } },
      })),
    );
  }

  /** Records what has been explored; false when that is nothing. */
  async collect(): Promise<boolean> {
    const names = [...this.#campaign.out];
    const jobs: (Job<PartJob, unknown> | undefined)[] = await Promise.all(names.map((part) => this.#queue.getJob(this.#idOf(part))));
    let some = false;
    for (const [i, part] of names.entries()) {
      const job = jobs[i];
      if (job === undefined) {
        // The server has lost it.
        this.#campaign.giveBack(part);
      } else if (job.finishedOn !== undefined) {
        if (job.returnvalue === null || job.returnvalue === undefined) await this.#failed(job);
        const entry = parseEntry(job.returnvalue);
        if (this.#campaign.record(entry)) this.#recorded(entry);
        some = true;
      }
    }
    return some;
  }

  /** No worker could explore it: it is removed, so that it can be tried again. */
  async #failed(job: Job<PartJob, unknown>): Promise<never> {
    await job.remove();
    const part = job.data.part === "" ? "the whole search" : `part ${job.data.part}`;
    throw new UsageError(`${part} of ${job.data.scenario} could not be explored: ${job.failedReason}`);
  }

  /** Removes the campaign's jobs, but for those that are being worked on. */
  async clear(): Promise<void> {
    const names = [...this.#campaign.settled, ...this.#campaign.out];
    for (let i = 0; i < names.length; i += WINDOW)
      await Promise.all(names.slice(i, i + WINDOW).map((part) => this.#queue.remove(this.#idOf(part))));
  }
}
