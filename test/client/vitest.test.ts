import { describe, expect } from "vitest";
import { machineTest } from "../../src/client/vitest.ts";

const test = machineTest("oracle");

describe("machineTest", () => {
  test("gives each test a machine of its own", ({ host }) => {
    expect(host.machine.name).toBe("oracle");
    host.openIommufd().allocIoas();
  });

  test.fails("fails a test that leaves something on it", ({ host }) => {
    // A file that no descriptor holds any more, and nobody puts.
    const fd = host.openIommufd().fd;
    const file = host.os.process.files.get(fd);
    if ("get" in file) file.get();
  });
});
