/**
 * For tests under vitest: a machine for each test, and a check that the test
 * leaves nothing on it.
 *
 *     const test = machineTest("default");
 *     test("a reset revokes", ({ host }) => { … });
 */
import { expect, type TestAPI, test } from "vitest";
import type { MachineDescription } from "../machine/schema.ts";
import type { EmbeddedHost } from "./embedded_host.ts";
import { Host } from "./host.ts";

/** `test` with a fixture `host`: booted anew for each test that asks for it, shut down after, and found clean. */
export function machineTest(machine: MachineDescription | string = "default"): TestAPI<{ host: EmbeddedHost }> {
  return test.extend<{ host: EmbeddedHost }>({
    // biome-ignore lint/correctness/noEmptyPattern: vitest reads the names of the fixtures that this one needs
    host: async ({}, use) => {
      const host = Host.embedded(machine);
      await use(host);
      expect(host.shutdown(), "left on the machine after the test").toEqual({});
    },
  });
}
