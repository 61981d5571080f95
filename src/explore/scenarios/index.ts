/** The scenarios that come with barlink, by name. */
import type { Scenario } from "../tasks.ts";
import { mapVsRevoke } from "./map_vs_revoke.ts";

export const scenarios: ReadonlyMap<string, Scenario> = new Map([mapVsRevoke()].map((s) => [s.name, s]));
