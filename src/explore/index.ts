export { type AbstractThread, abstractProgram, choose, lock, type Op, read, unlock, update, write } from "./abstract.ts";
export {
  Campaign,
  type CampaignEntry,
  type CampaignHeader,
  type CampaignTotals,
  cut,
  type FoundViolation,
  formatLine,
  JournalError,
  type PartResult,
  parseCampaign,
  parseEntry,
  partName,
} from "./campaign.ts";
export { exploreOptimal, explorePart } from "./dpor.ts";
export { formatInterleaving, type Told, type ToldStep, tell } from "./interleaving.ts";
export { type KernelScenario, kernelScenario } from "./kernel_scenario.ts";
export { PartExplorer } from "./part_explorer.ts";
export { type Part, partAt, partsOf, WHOLE } from "./parts.ts";
export {
  type Counts,
  type Decide,
  dependent,
  type Execution,
  type Footprint,
  type OnRun,
  type Outcome,
  type Pending,
  type Program,
  type Run,
  type Violation,
} from "./program.ts";
export { type Choice, Recorder } from "./recorder.ts";
export { replay, type Shrunk, shrink } from "./replay.ts";
export { scenarios } from "./scenarios/index.ts";
export { type MapVsRevokeOptions, mapVsRevoke } from "./scenarios/map_vs_revoke.ts";
export { childOf, formatSchedule, NAMED, type Planned, parseSchedule, scheduleOf, stepsOf, TIME, threadName } from "./schedule.ts";
export { type Choose, type DrivenRun, drive, exploreAll, explorePct, exploreRandom } from "./search.ts";
export { InvariantBroken, type Scenario, type Scene, taskProgram } from "./tasks.ts";
export { traceOf } from "./trace_key.ts";
export { type WaitFor, waitCycle } from "./wait_for.ts";
