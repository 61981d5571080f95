/**
 * The suspected weaknesses N1 to N26 (docs/findings.md): those that the explorer
 * reproduces, each with a schedule, and those that it refutes within a bound.
 * Those that a program can see are compared with Linux in
 * `test/supervise/findings_run.test.ts`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  exploreOptimal,
  formatSchedule,
  InvariantBroken,
  parseSchedule,
  type Run,
  replay,
  type Scenario,
  taskProgram,
} from "../../src/explore/index.ts";
import { bufferLifetime } from "../../src/explore/scenarios/buffer_lifetime.ts";
import { ioPagetable } from "../../src/explore/scenarios/io_pagetable.ts";
import { memoryPredicate } from "../../src/explore/scenarios/memory_predicate.ts";
import { revokeRefcount } from "../../src/explore/scenarios/revoke_refcount.ts";
import { BAR, BYTES, FIRST, IOVA, type Stage, scenarioOf } from "../../src/explore/scenarios/stage.ts";
import { dmaBufExport, dmaBufFd } from "../../src/kernel/dma_buf/dma_buf.ts";
import type { SgTable } from "../../src/kernel/dma_buf/mapping.ts";
import { PrivateMapDmabuf } from "../../src/kernel/iommufd/pages_dmabuf.ts";
import { ENODEV, EOPNOTSUPP, Errno } from "../../src/lib/errno.ts";
import type { Step } from "../../src/sched/task.ts";
import { IOMMU_IOAS_MAP_FILE, O_RDWR } from "../../src/uapi/index.ts";
import { edited } from "./bugs/bug.ts";
import { reproduced } from "./bugs/findings.ts";
import type * as Lookup from "./bugs/scenes/lookup.ts";

const DOC = readFileSync(join(import.meta.dirname, "../../docs/findings.md"), "utf8");

/** The first run with a violation; undefined when there is none. */
function violated(scenario: Scenario): Run | undefined {
  let found: Run | undefined;
  exploreOptimal(taskProgram(scenario), (run) => {
    if (run.outcome.violation !== undefined) found = run;
    return found !== undefined;
  });
  return found;
}

/** Every final state; throws at a violation. */
function states(scenario: Scenario): string[] {
  const seen = new Set<string>();
  const counts = exploreOptimal(taskProgram(scenario), ({ schedule, outcome: { state, violation } }) => {
    expect(violation, formatSchedule(schedule)).toBeUndefined();
    seen.add(state);
    return undefined;
  });
  expect(counts.exhausted).toBe(true);
  return [...seen];
}

describe("reproduced", { timeout: 60_000 }, () => {
  test.each(reproduced.map((r) => [r.id, r.what, r] as const))("%s: %s", (id, _what, { make, schedule, kind, says }) => {
    const expected = { kind, message: expect.stringMatching(says) };
    expect(violated(make())?.outcome.violation).toMatchObject(expected);
    expect(replay(taskProgram(make()), parseSchedule(schedule)).outcome.violation).toMatchObject(expected);
    expect(DOC).toContain(`| ${id} | reproduced | \`${schedule === "" ? "any" : schedule}\``);
  });

  test("N4: a function without COMMAND.MEMORY revokes and restores within one write, and its mappings die", () => {
    const asVf = memoryPredicate({
      length: 1,
      menu: ["off"],
      alter: ({ vdev }) => void Object.defineProperty(vdev.pdev, "noCommandMemory", { value: true }),
    });
    for (const s of states(asVf)) expect(s).toMatch(/live$/);
    for (const s of states(memoryPredicate({ length: 1, menu: ["off"] }))) expect(s).toMatch(/revoked$/);
  });

  test("N6: a map that reached the pages before a revoke answers 0, and maps nothing", () => {
    expect(states(ioPagetable({ tasks: ["map", "revoke"] }))).toContain("map = 0, revoke = off; reached 0");
  });

  test("N11: a foreign exporter has pinned before its buffer is refused", () => {
    const pins: string[] = [];
    const foreign = scenarioOf({
      name: "foreign",
      summary: "MAP_FILE of a buffer that is not VFIO's",
      setUp({ calls, kernel }) {
        const iommufd = calls.openIommufd();
        kernel.modules.load("foreign");
        const ops = {
          pin: () => void pins.push("pin"),
          unpin: () => void pins.push("unpin"),
          *mapDmaBuf(): Step<SgTable | Errno> {
            return EOPNOTSUPP;
          },
          *unmapDmaBuf(): Step<void> {},
          *release(): Step<void> {},
        };
        const buffer = dmaBufExport(kernel, { expName: "foreign", owner: "foreign", ops, size: BYTES, flags: O_RDWR, priv: undefined });
        if (buffer instanceof Errno) throw new TypeError(buffer.name);
        const fd = dmaBufFd(calls.process, buffer, 0);
        if (fd instanceof Errno) throw new TypeError(fd.name);
        return { iommufd, map: calls.mapFileArgs(fd, { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES }) };
      },
      tasks: { map: (w, stage) => stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.map, ["EOPNOTSUPP"]) },
    });
    expect(states(foreign)).toEqual(["map = EOPNOTSUPP; reached 0"]);
    expect(pins).toEqual(["pin", "unpin"]);
  });

  test("N13: the private path maps a BAR that a scatter list would refuse, because no transaction arrives", () => {
    const refused: string[] = [];
    const unreachable = revokeRefcount((world, stage) => {
      Object.assign(stage.kernel.pci, { cpuSupportsP2pdma: false });
      const map = world.importer.map.bind(world.importer);
      world.importer.map = function* () {
        const error = yield* map();
        refused.push(error?.name ?? "0");
        return error?.name === "EINVAL" ? ENODEV : error;
      };
    });
    states(unreachable);
    expect(new Set(refused)).toEqual(new Set(["EINVAL", "ENODEV"]));
    const alter = (_: unknown, stage: Stage): void => void Object.assign(stage.kernel.pci, { cpuSupportsP2pdma: false });
    expect(states(ioPagetable({ tasks: ["map"], alter }))).toEqual(["map = 0; reached 3"]);
  });

  test("N18: between two buffers of a device one is revoked and the other lives", () => {
    const two = scenarioOf({
      name: "two-buffers",
      summary: "a revoke of two buffers, against MAP_FILE of both",
      setUp({ calls }) {
        const iommufd = calls.openIommufd();
        const { fd } = calls.openDevice(FIRST, iommufd);
        const range = { ioas: calls.allocIoas(iommufd), iova: IOVA, length: BYTES };
        calls.setMemory(fd, true);
        const [first, second] = [calls.exportBar(fd, BAR, BYTES), calls.exportBar(fd, BAR, BYTES)];
        return {
          iommufd,
          fd,
          first: calls.mapFileArgs(first, range),
          second: calls.mapFileArgs(second, { ...range, iova: IOVA * 2n }),
          off: calls.command(false),
        };
      },
      tasks: {
        *revoke(w, stage) {
          yield* stage.decodeOff(w.fd, w.off);
          return "off";
        },
        *look(w, stage) {
          const first = yield* stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.first, ["ENODEV"]);
          return `${first} ${yield* stage.ioctl(w.iommufd, IOMMU_IOAS_MAP_FILE, w.second, ["ENODEV"])}`;
        },
      },
    });
    expect(states(two).sort()).toEqual([
      "revoke = off, look = 0 0; reached 0",
      "revoke = off, look = 0 ENODEV; reached 0",
      "revoke = off, look = ENODEV 0; reached 0",
      "revoke = off, look = ENODEV ENODEV; reached 0",
    ]);
  });

  test("N20: a descriptor that becomes a buffer between the two lookups is mapped as an ordinary file", async () => {
    const { scenario, explore } = await edited<typeof Lookup>(
      "test/explore/bugs/scenes/lookup.ts",
      {
        "src/kernel/iommufd/pages_alloc.ts": [
          ["  const file = current.files.get(fd);\n", "  yield* ctx.kernel.sched.yield();\n  const file = current.files.get(fd);\n"],
        ],
      },
      (m) => m.lookup(),
    );
    const seen = new Set<string>();
    explore.exploreOptimal(explore.taskProgram(scenario), ({ outcome }) => void seen.add(outcome.state));
    expect([...seen].sort()).toEqual([
      "map = 0 dmabuf, dup = 0; reached 0",
      "map = 0 file of a buffer, dup = 0; reached 0",
      "map = 0 file, dup = 0; reached 0",
    ]);
  });

  test("N26: a write to the BAR of a function that the user has put to sleep depends on whether runtime PM was faster", () => {
    const seen = states(memoryPredicate({ mapper: false, script: ["d3hot", "entry", "on", "bar write"] })).filter((s) =>
      s.startsWith("user = d3hot 0, entry 0, on 0, bar write "),
    );
    expect(new Set(seen.map((s) => /bar write (\w+)/.exec(s)?.[1]))).toEqual(new Set(["0", "EIO"]));
  });
});

describe("refuted within a bound", { timeout: 60_000 }, () => {
  test("N15: a buffer that is attached has a reference, in every order of import, last put and close", () => {
    expect(states(bufferLifetime({ tasks: ["import", "put", "close"] })).length).toBeGreaterThan(1);
  });

  test("N16: whoever writes or reads where a buffer is, is ordered against the others", () => {
    const watched = ioPagetable({
      tasks: ["map", "revoke"],
      alter: ({ buffer }, { recorder }) => {
        const { attachments } = buffer.dmabuf;
        const unshift = attachments.unshift.bind(attachments);
        let seen = 0;
        attachments.unshift = (...added) => {
          for (const { importerPriv } of added) {
            const { dmabuf } = importerPriv as { readonly dmabuf: PrivateMapDmabuf };
            if (!(dmabuf instanceof PrivateMapDmabuf)) throw new InvariantBroken("not the pages of the private interconnect");
            recorder.watch(dmabuf, "phys", { races: true });
            seen++;
          }
          if (seen === 0) throw new InvariantBroken("nothing is watched");
          return unshift(...added);
        };
      },
    });
    expect(states(watched)).toContain("map = 0, revoke = off; reached 0");
  });
});
