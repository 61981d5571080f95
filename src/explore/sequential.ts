/**
 * What calls may answer: the answers of every run in which no call is disturbed.
 *
 * Another thread goes on only where the one that ran has ended, waits, or is
 * between two calls (at a `yield`, or not yet started). Every choice is tried.
 */
import { exploreAllowing } from "./search.ts";
import type { TaskExecution } from "./tasks.ts";

/** The results of those runs that end well. */
export function sequentialResults(start: () => TaskExecution): Set<string> {
  const results = new Set<string>();
  let run: TaskExecution;
  const undisturbed = (enabled: readonly number[], last: number | undefined): readonly number[] => {
    if (last === undefined || !enabled.includes(last)) return enabled;
    const op = run.taskOf(last)?.point?.op;
    return op === "yield" || op === "start" ? enabled : [last];
  };
  const program = {
    name: "sequential",
    exact: false,
    start: () => {
      run = start();
      return run;
    },
  };
  exploreAllowing(
    program,
    ({ outcome }) => {
      const r = outcome.violation === undefined ? run.results() : undefined;
      if (r !== undefined) results.add(r);
      return false;
    },
    undisturbed,
  );
  return results;
}
