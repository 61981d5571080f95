/** The example in C, unmodified, on a machine of each kind of interconnect. */
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { barlink, compile, NOTHING_LEFT, privateTmp } from "./support.ts";

const SOURCE = fileURLToPath(new URL("../../examples/tour.c", import.meta.url));

let dir = "";
let tour = "";
beforeAll(() => {
  dir = privateTmp();
  tour = compile(SOURCE, dir);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

it.each(["default", "negotiated"])(
  "examples/tour.c finds on the machine %s that DMA to a peer works, ends with a reset, and works again",
  (machine) => {
    const r = barlink(["--machine", machine, "--", tour, "0000:01:00.0", "0000:05:00.0"]);
    expect(r).toMatchObject({ status: 0, err: NOTHING_LEFT });
    expect(
      r.out
        .trim()
        .split("\n")
        .filter((l) => !l.startsWith("ok   ")),
    ).toEqual([]);
    expect(r.out).toContain("ok   DMA works again");
  },
);
