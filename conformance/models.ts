/** The models M1 to M6, and how many runs exhaust each. */
import type { Scenario } from "../src/explore/index.ts";
import { bufferLifetime } from "../src/explore/scenarios/buffer_lifetime.ts";
import { hotReset } from "../src/explore/scenarios/hot_reset.ts";
import { ioPagetable } from "../src/explore/scenarios/io_pagetable.ts";
import { lockGraph } from "../src/explore/scenarios/lock_graph.ts";
import { memoryPredicate } from "../src/explore/scenarios/memory_predicate.ts";
import { revokeRefcount } from "../src/explore/scenarios/revoke_refcount.ts";

export interface Model {
  readonly id: string;
  /** What of the scenario. */
  readonly what: string;
  readonly make: () => Scenario;
  /** Complete runs of optimal DPOR. */
  readonly executions: number;
}

/** Of a few seconds: part of the tests. */
export const SMALL: readonly Model[] = [
  { id: "M1", what: "toggle, importer, close", make: () => revokeRefcount(), executions: 149 },
  {
    id: "M2",
    what: "unmap, domain, revoke",
    make: () => ioPagetable({ tasks: ["unmap", "domain", "revoke"] }),
    executions: 20,
  },
  { id: "M3", what: "two calls of ten", make: () => memoryPredicate({ length: 2, mapper: false }), executions: 138 },
  { id: "M4", what: "import, put, close", make: () => bufferLifetime({ tasks: ["import", "put", "close"] }), executions: 84 },
  { id: "M5", what: "revoke, release, pin", make: () => lockGraph({ tasks: ["revoke", "release", "pin"] }), executions: 88 },
  { id: "M6", what: "reset, write", make: () => hotReset({ tasks: ["reset", "write"] }), executions: 25 },
];

/** Everything at once. */
export const LARGE: readonly Model[] = [
  { id: "M2", what: "map, unmap, domain, revoke", make: () => ioPagetable(), executions: 4365 },
  { id: "M3", what: "one call of ten, map", make: () => memoryPredicate({ length: 1 }), executions: 86 },
  { id: "M3", what: "three calls of ten", make: () => memoryPredicate({ length: 3, mapper: false }), executions: 2505 },
  { id: "M4", what: "export, import, put, close", make: () => bufferLifetime(), executions: 994 },
  {
    id: "M4",
    what: "close, unbind, import",
    make: () => bufferLifetime({ tasks: ["close", "unbind", "import"] }),
    executions: 105,
  },
  { id: "M5", what: "fault, revoke, release, pin", make: () => lockGraph(), executions: 2382 },
  { id: "M6", what: "reset, write, fault, map", make: () => hotReset(), executions: 4045 },
];
