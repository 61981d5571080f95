/**
 * A search by workers at a server, which needs redis-server or valkey-server:
 * a short one, disturbed once by each kind of death. `npm run conformance --
 * campaign` disturbs more.
 */
import { expect, test } from "vitest";
import { disturb, wrongWith } from "../../conformance/campaign.ts";
import { isInstalled, SERVERS } from "../../conformance/campaign_server.ts";
import { Rng } from "../../src/lib/rng.ts";

test("kill -9 of a worker, of the server and of the coordinator: the results are those of a search that nobody disturbs", {
  timeout: 180_000,
}, async () => {
  const server = SERVERS.find(isInstalled);
  if (server === undefined) throw new Error("no server is installed");
  const division = { scenario: "revoke-refcount-negotiated", parts: 8, limit: 20 };
  const victims = ["worker", "server", "coordinator"] as const;
  expect(wrongWith(division, victims, await disturb(server, division, victims, new Rng(2)))).toEqual([]);
});
