/** The scenarios that come with barlink, by name. */
import type { Scenario } from "../tasks.ts";
import { bufferLifetime } from "./buffer_lifetime.ts";
import { hotReset } from "./hot_reset.ts";
import { ioPagetable } from "./io_pagetable.ts";
import { lockGraph } from "./lock_graph.ts";
import { mapVsRevoke } from "./map_vs_revoke.ts";
import { memoryPredicate } from "./memory_predicate.ts";
import { replaceDead, restore } from "./negotiated_pagetable.ts";
import { revokeRefcount } from "./revoke_refcount.ts";
import { negotiated } from "./stage.ts";

const all: readonly Scenario[] = [
  mapVsRevoke(),
  revokeRefcount(),
  ioPagetable(),
  memoryPredicate({ length: 1 }),
  bufferLifetime(),
  lockGraph(),
  hotReset(),
];

/** What only the negotiated interconnect does. */
const negotiatedAlone: readonly Scenario[] = [restore(), replaceDead()];

export const scenarios: ReadonlyMap<string, Scenario> = new Map(
  [...all, ...[...all, ...negotiatedAlone].map(negotiated)].map((s) => [s.name, s]),
);
