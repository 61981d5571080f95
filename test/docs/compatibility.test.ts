import { expect, it } from "vitest";
import { render, stale } from "../../conformance/compatibility.ts";
import { commandsOf, DESCRIPTOR_KINDS } from "../../src/uapi/index.ts";

it("docs/compatibility.md is what the code says", () => {
  expect(stale()).toBeUndefined();
});

it("it has a row for each call, and each of iommufd is served", () => {
  const rows = new Map(
    render()
      .split("\n")
      .filter((l) => l.startsWith("| `"))
      .map((l) => [/`([^`]+)`/.exec(l)?.[1], l.split(" | ")]),
  );
  for (const kind of DESCRIPTOR_KINDS) for (const { name } of commandsOf(kind).values()) expect(rows.has(name), name).toBe(true);
  for (const { name } of commandsOf("iommufd").values()) expect(rows.get(name)?.[3], name).toBe("yes");
});
