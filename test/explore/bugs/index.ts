/** The bug library, in the order of the history. */
import type { Bug } from "./bug.ts";
import { lifetimeBugs } from "./lifetime.ts";
import { pagetableBugs } from "./pagetable.ts";
import { revokeBugs } from "./revoke.ts";

export type { Bug, Explorable } from "./bug.ts";

const number = (b: Bug): number => Number.parseInt(b.id.slice(1), 10);

export const bugs: readonly Bug[] = [...revokeBugs, ...pagetableBugs, ...lifetimeBugs].sort((a, b) => number(a) - number(b));

/** What of the history is not in the library, and why. */
export const leftOut: Readonly<Record<string, string>> = {
  H22: "a disagreement, not a bug: whether live mappings should keep a device awake or be revoked; what is wrong as it is are N1 and N2",
  H23: "the discussion ended with no bug: a device outside of D0 has no mappings, so zapping before or after D0 differ in nothing",
};
