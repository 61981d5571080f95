/** Scenarios over kernel code of another make: the same scenario, one step of the kernel replaced. */
import { describe, expect, test } from "vitest";
import { loadVariant, type Variant } from "../../conformance/variant.ts";
import type * as Explore from "../../src/explore/index.ts";
import type { Violation } from "../../src/explore/index.ts";

const ENTRY = "src/explore/index.ts";
const MODULE = "src/kernel/dma_buf/interconnect.ts";
const RECHECK = "if (priv.revoked) return ENODEV;";

async function violationWith(variant: Variant): Promise<Violation | undefined> {
  const { entry, explore } = await loadVariant<typeof Explore>(ENTRY, variant);
  let found: Violation | undefined;
  explore.exploreOptimal(explore.taskProgram(entry.mapVsRevoke({ unmapper: false })), ({ outcome }) => {
    found = outcome.violation;
    return found !== undefined;
  });
  return found;
}

describe("map against revoke, where the exporter does not look again under the reservation (H6)", { timeout: 60_000 }, () => {
  const broken = { kind: "invariant", message: expect.stringContaining("I1") };

  test("breaks I1 with a module that stands in for the kernel's", async () => {
    expect(await violationWith({ replace: { [MODULE]: "test/explore/variant/interconnect_without_recheck.ts" } })).toMatchObject(broken);
  });

  test("breaks I1 with the line taken out of the kernel's source", async () => {
    expect(await violationWith({ edit: { [MODULE]: [[RECHECK, ""]] } })).toMatchObject(broken);
  });

  test("breaks nothing as the kernel is", async () => {
    expect(await violationWith({})).toBeUndefined();
  });
});

test("an attachment that is traced after it was freed is a use after free", { timeout: 60_000 }, async () => {
  const trace = 'if (trace.on) trace.emit({ type: "dma_buf.detach", ino: dmabuf.ino, importer: att.dev.name });';
  const free = "dmabuf.kernel.sched.freed(att);";
  const variant = { edit: { "src/kernel/dma_buf/attachment.ts": [[`${trace}\n  ${free}`, `${free}\n  ${trace}`]] } } as const;
  expect(await violationWith(variant)).toEqual({
    kind: "use-after-free",
    message: "map reads DmaBufAttachment.dev, which map has freed",
  });
});

test("a variant that changes nothing is refused", async () => {
  await expect(loadVariant(ENTRY, { edit: { [MODULE]: [["no such line", ""]] } })).rejects.toThrow("matches 0 times");
  await expect(loadVariant("src/lib/index.ts", { replace: { [`${MODULE}x`]: "x.ts" } })).rejects.toThrow("not a module of this scenario");
});
