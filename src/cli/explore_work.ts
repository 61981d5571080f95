/**
 * `barlink worker`: explores parts that `barlink explore --queue` has put at a
 * server.
 *
 * While a part is explored its lock at the server is renewed. A worker that dies
 * renews it no more: the others see that, and one of them takes the part up
 * again. A worker that was only held up finds its lock gone at the end, and what
 * it brings is not taken.
 */
import { UnrecoverableError, Worker } from "bullmq";
import type { CampaignEntry } from "../explore/index.ts";
import { connect, named, type PartJob, PREFIX, QUEUE, ready } from "./explore_connection.ts";
import { ExploreThreads, jobsOf } from "./explore_threads.ts";
import { untilEnded } from "./until_ended.ts";

const LOCK_MS = 5000;
const STALLED_CHECK_MS = 2000;
/** Workers that may die of one part before it is that part's fault. */
const DEATHS = 20;

/** Works until a signal ends it: after the parts in hand, or at once if it comes twice. */
export async function work({ queue: url, jobs: wanted }: { queue: string; jobs?: string }, version: string): Promise<number> {
  const jobs = jobsOf(wanted);
  const connection = await connect(url);
  const threads = new ExploreThreads(jobs);
  const ended = untilEnded();
  const worker = new Worker<PartJob, CampaignEntry>(
    QUEUE,
    async ({ data: { barlink, scenario, part, limit } }) => {
      if (barlink !== version) throw new UnrecoverableError(`the worker is barlink ${version}, and the search one of ${barlink}`);
      return await threads.explore({ scenario, part, limit });
    },
    {
      connection,
      prefix: PREFIX,
      concurrency: jobs,
      lockDuration: LOCK_MS,
      stalledInterval: STALLED_CHECK_MS,
      maxStalledCount: DEATHS,
      drainDelay: 1,
    },
  );
  const say = (what: string): void => void process.stderr.write(`barlink: ${what}\n`);
  worker.on("error", (e) => {
    // The connection's own troubles have been told of.
    if (!/ECONN|EPIPE|ETIMEDOUT|closed/.test(`${(e as NodeJS.ErrnoException).code} ${e.message}`)) say(e.message);
  });
  try {
    await ready(worker);
  } catch (e) {
    ended.forget();
    connection.disconnect();
    void worker.close(true).catch(() => {});
    await threads.end();
    throw e;
  }
  say(`${jobs} ${jobs === 1 ? "thread waits" : "threads wait"} for parts at ${named(url)}`);
  await new Promise<void>((resolve) => ended.signal.addEventListener("abort", () => resolve(), { once: true }));
  say("ends after the parts in hand; once more, and it ends at once");
  // Without the server nobody takes what is in hand.
  if (connection.status === "ready") await worker.close();
  else void worker.close(true).catch(() => {});
  await threads.end();
  connection.disconnect();
  return 0;
}
