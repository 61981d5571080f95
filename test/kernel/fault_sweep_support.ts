/**
 * Sweeping the points at which memory can run out.
 *
 * `sweep` runs one scenario again and again: the first time its first point
 * fails, then its second, until it runs to the end with nothing left to fail.
 * After each run everything that was set up is sound, the errno is one that a
 * failure may have, and the same scenario then succeeds. It is done twice: with
 * one failure, and with every point failing from the n-th on.
 *
 * What a scenario leaves behind, whoever made the stage tells in its own checks
 * at the end.
 */
import { expect } from "vitest";
import type { FaultPoint } from "../../src/kernel/fault_inject.ts";
import { checkInvariants } from "../../src/kernel/iommufd/check.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { VfioSubsystem } from "../../src/kernel/vfio/vfio_main.ts";
import { EFAULT, EINVAL, ENFILE, ENOENT, ENOMEM, Errno } from "../../src/lib/errno.ts";

/** Something that is run on a stage: the errno of the call that failed, anything else for success. */
export interface Scenario<S> {
  /** Prepares, with nothing failing. */
  readonly before?: (stage: S) => void;
  /** Must leave, when it fails, what `before` left; when it succeeds, something that `undo` takes back. */
  readonly act: (stage: S) => unknown;
  readonly undo?: (stage: S) => void;
}

export interface Stage {
  readonly kernel: Kernel;
  /** Its last checks: nothing is left. */
  finish(): void;
}

/** What a copy or an allocation that fails may come to; ENFILE: a pipe; EINVAL and ENOENT: where iommufd's own tests have it fail. */
const ERRNOS: ReadonlySet<Errno> = new Set([ENOMEM, EFAULT, EINVAL, ENOENT, ENFILE]);
/** No scenario has as many points. */
const ENDLESS = 2000;

/** What a kernel holds when everything is closed: whatever is set up once, and nothing of what failed. */
function residue({ frames, fs, iommu, modules, moduleState, sched }: Kernel): Record<string, number> {
  const groups = [...iommu.groups.values()];
  const vfio = [...moduleState.values()].find((s) => s instanceof VfioSubsystem);
  return {
    domains: iommu.liveDomains,
    groups: groups.length,
    "claims of groups": groups.reduce((n, g) => n + g.ownerCount, 0),
    "devices behind units": groups.reduce((n, g) => n + g.devices.length, 0),
    frames: frames.live,
    "page caches": fs.pageCaches,
    "open files": fs.openFiles,
    mms: fs.liveMms,
    "eventfd contexts": fs.eventfds,
    "charged pages": fs.lockedVm,
    "references on modules": ["iommufd", "vfio_pci_core", "system_heap", "udmabuf"].reduce((n, m) => n + modules.refcount(m), 0),
    "registrations of devices": [...(vfio?.devices ?? [])].reduce((n, d) => n + d.registrations, 0),
    "opens of devices": [...(vfio?.devices ?? [])].reduce((n, d) => n + d.openCount, 0),
    tasks: sched.liveTasks().length,
  };
}

export interface Swept {
  /** Points of a run in which nothing fails, in order. */
  readonly points: readonly FaultPoint[];
  /** What `act` answered when point n (from 0) failed; undefined: it went well all the same. */
  readonly errnos: readonly (Errno | undefined)[];
}

/** A test that fills memory by hand is no call. */
const inCall = (kernel: Kernel): boolean => kernel.sched.currentOrNone !== undefined;

/** Points of one run that goes well. */
function pointsOf<S extends Stage>(makeStage: () => S, scenario: Scenario<S>): { points: FaultPoint[]; left: Record<string, number> } {
  const points: FaultPoint[] = [];
  const stage = makeStage();
  scenario.before?.(stage);
  stage.kernel.fault.decide((p) => {
    if (inCall(stage.kernel)) points.push(p);
    return false;
  });
  const r = scenario.act(stage);
  stage.kernel.fault.decide(undefined);
  expect(r instanceof Errno ? r.name : "ok").toBe("ok");
  scenario.undo?.(stage);
  checkInvariants(stage.kernel);
  stage.finish();
  return { points, left: residue(stage.kernel) };
}

function runOnce<S extends Stage>(
  makeStage: () => S,
  scenario: Scenario<S>,
  left: Record<string, number>,
  fails: (n: number) => boolean,
): { errno: Errno | undefined; failed: FaultPoint[] } {
  const stage = makeStage();
  const { kernel } = stage;
  scenario.before?.(stage);
  let n = 0;
  const failed: FaultPoint[] = [];
  kernel.fault.decide((p) => {
    if (!inCall(kernel) || !fails(n++)) return false;
    failed.push(p);
    return true;
  });
  const r = scenario.act(stage);
  kernel.fault.decide(undefined);
  checkInvariants(kernel);
  const errno = r instanceof Errno ? r : undefined;
  const where = failed[0] === undefined ? "nothing" : `${failed[0].name} ${failed[0].what}`;
  if (errno !== undefined) {
    expect(failed, `${errno.name}, though nothing failed`).not.toEqual([]);
    expect(ERRNOS.has(errno), `${errno.name} where ${where} failed`).toBe(true);
    const again = scenario.act(stage);
    expect(again instanceof Errno ? `${again.name} after ${where} had failed` : "ok").toBe("ok");
  }
  scenario.undo?.(stage);
  checkInvariants(kernel);
  stage.finish();
  expect(residue(kernel), `left where ${where} failed`).toEqual(left);
  return { errno, failed };
}

export function sweep<S extends Stage>(makeStage: () => S, scenario: Scenario<S>): Swept {
  const { points, left } = pointsOf(makeStage, scenario);
  const errnos: (Errno | undefined)[] = [];
  for (let n = 0; ; n++) {
    expect(n).toBeLessThan(ENDLESS);
    const one = runOnce(makeStage, scenario, left, (i) => i === n);
    if (one.failed.length === 0) {
      expect(one.errno).toBeUndefined();
      break;
    }
    errnos.push(one.errno);
    runOnce(makeStage, scenario, left, (i) => i >= n);
  }
  return { points, errnos };
}
