/** Importers and exporters of the negotiated interconnect against each other, in every schedule of their steps. */
import { describe, expect, it, vi } from "vitest";
import { BYTES, PairScene } from "../../conformance/negotiate/scene.ts";
import {
  exploreOptimal,
  formatSchedule,
  InvariantBroken,
  type Recorder,
  type Scenario,
  scenarios,
  taskProgram,
} from "../../src/explore/index.ts";
import type { DmaBuf } from "../../src/kernel/dma_buf/buffer.ts";
import { dmaBufPut } from "../../src/kernel/dma_buf/dma_buf.ts";
import { GpuImport } from "../../src/kernel/dma_buf/importers/gpu.ts";
import { MemoryRegion } from "../../src/kernel/dma_buf/importers/rdma.ts";
import { IommuHandle } from "../../src/kernel/dma_buf/negotiated/iommu_converter.ts";
import { dmaBufRestore, dmaBufRevoke } from "../../src/kernel/dma_buf/negotiated/revoke.ts";
import { type VramBuffer, vramMove } from "../../src/kernel/dma_buf/vram.ts";
import { NegotiatedDmabuf } from "../../src/kernel/iommufd/pages_negotiated.ts";
import { Errno } from "../../src/lib/errno.ts";
import type { Sched } from "../../src/sched/sched.ts";
import type { Step } from "../../src/sched/task.ts";
import { ok } from "../harness.ts";

const ADAPTER = "0000:04:00.0";

/** What a play is made of. */
interface Play {
  /** The tasks, by name: what each ends with is a word. */
  readonly tasks: Readonly<Record<string, Step<string>>>;
  /** Checks, and lets go of everything. */
  end(results: ReadonlyMap<string, string>): void;
}

/** Explores every schedule; the number of runs. */
function everySchedule(names: readonly string[], setUp: (s: PairScene, recorder: Recorder) => Play): number {
  const scenario: Scenario = {
    name: "race",
    summary: "",
    threads: names,
    setUp(record: (sched: Sched) => Recorder) {
      let recorder: Recorder | undefined;
      const s = new PairScene("negotiated", (k) => {
        recorder = record(k.sched);
      });
      const play = setUp(s, recorder as unknown as Recorder);
      const { sched } = s.host.kernel;
      sched.settle();
      const results = new Map<string, string>();
      const tasks = names.map((name) => {
        const task = s.host.os.process.newThread(name);
        sched.start(task, noted(results, name, play.tasks[name] as Step<string>));
        return task;
      });
      return {
        tasks,
        end() {
          sched.settle();
          play.end(results);
          sched.settle();
          const left = s.end();
          if (Object.keys(left).length > 0) throw new InvariantBroken(`left: ${JSON.stringify(left)}`);
          if (s.host.kernel.frames.strayAccesses > 0) throw new InvariantBroken("freed memory was accessed");
          return [...results].map(([n, r]) => `${n} = ${r}`).join(", ");
        },
      };
    },
  };
  const counts = exploreOptimal(taskProgram(scenario), ({ schedule, outcome: { violation } }) => {
    expect(violation, formatSchedule(schedule)).toBeUndefined();
    return undefined;
  });
  expect(counts).toMatchObject({ violations: 0, exhausted: true });
  return counts.executions;
}

function* noted(results: Map<string, string>, name: string, body: Step<string>): Step<void> {
  results.set(name, yield* body);
}

function* named(body: Step<unknown>): Step<string> {
  const r = yield* body;
  return r instanceof Errno ? r.name : "0";
}

const must = (holds: boolean, what: string): void => {
  if (!holds) throw new InvariantBroken(what);
};

function* put(dmabuf: DmaBuf): Step<void> {
  dmaBufPut(dmabuf);
}

const place = (dmabuf: DmaBuf): VramBuffer["place"] => (dmabuf.priv as VramBuffer).place;

describe("in every schedule", { timeout: 60_000 }, () => {
  it("two moves of one buffer of VRAM, there and back, leave the guest with the bytes and the place that are", () => {
    const GPA = 0x1_0000_0000n;
    everySchedule(["out", "back", "guest"], (s) => {
      const { dmabuf, fd } = s.export("vram");
      dmabuf.file.get();
      const slot = ok(s.run(s.guest.addSlot(dmabuf, GPA, BYTES)));
      ok(s.run(s.guest.write(GPA, Uint8Array.of(0x5a))));
      const byte = new Uint8Array(1);
      return {
        tasks: {
          out: named(vramMove(dmabuf, "system")),
          back: named(vramMove(dmabuf, "vram")),
          guest: named(s.guest.read(GPA, byte)),
        },
        end(results) {
          must(results.get("guest") !== "0" || byte[0] === 0x5a, `the guest has read ${byte[0]}`);
          const seen = s.guest.lookUp(GPA);
          must(seen === undefined || seen === (dmabuf.priv as VramBuffer).runs()[0]?.paddr, "the guest looks at a place that was given up");
          must(s.run(s.guest.read(GPA, byte)) === undefined && byte[0] === 0x5a, "the bytes are lost");
          s.run(s.guest.removeSlot(slot));
          fd.close();
        },
      };
    });
  });

  it("a registration that pins wins or loses against a move, and is never cut off", () => {
    everySchedule(["register", "out", "back"], (s, recorder) => {
      const { dmabuf, fd } = s.export("vram");
      dmabuf.file.get();
      recorder.watch(dmabuf.priv as VramBuffer, "pins");
      let region: MemoryRegion | undefined;
      function* register(): Step<string> {
        const r = yield* MemoryRegion.register(s.pdev(ADAPTER), dmabuf, "pinned");
        if (r instanceof Errno) return r.name;
        region = r;
        return "0";
      }
      return {
        tasks: { register: register(), out: named(vramMove(dmabuf, "system")), back: named(vramMove(dmabuf, "vram")) },
        end() {
          if (region === undefined) {
            s.run(put(dmabuf));
          } else {
            must(place(dmabuf).in === "system", "a pinned buffer has left RAM");
            must(s.run(region.access(0n, Uint8Array.of(1), true)) === undefined, "a pinned region does not reach its memory");
            s.run(region.deregister());
          }
          fd.close();
        },
      };
    });
  });

  it("a job, a close and a revoke: the mapping outlives the job, and the buffer the worker", () => {
    everySchedule(["submit", "close", "revoke"], (s) => {
      const { dmabuf, fd } = s.export("vfio");
      dmabuf.file.get();
      const gpu = ok(s.run(GpuImport.import(s.pdev(ADAPTER), dmabuf)));
      const job = { offset: 0n, bytes: new Uint8Array(1), write: false, ns: 1000 };
      const first = ok(s.run(gpu.submit(job)));
      const fences = [first];
      const contract = dmabuf.negotiated;
      if (contract === undefined) throw new Error("no contract");
      function* submit(): Step<string> {
        const r = yield* gpu.submit(job);
        if (r instanceof Errno) return r.name;
        fences.push(r);
        return "0";
      }
      // The exporter's hold, so that only what the importer does itself can let the buffer go too early.
      dmabuf.file.get();
      function* revoke(): Step<string> {
        const { broken } = yield* dmaBufRevoke(contract as NonNullable<typeof contract>, "temporary");
        must(broken.length === 0, `${broken.join()} is blamed`);
        yield* dmaBufRestore(contract as NonNullable<typeof contract>);
        return "0";
      }
      fd.close();
      return {
        tasks: { submit: submit(), close: named(gpu.close()), revoke: revoke() },
        end() {
          s.run(put(dmabuf));
          for (const f of fences) must(f.signalled && f.error === undefined, "a job's DMA did not arrive");
        },
      };
    });
  });

  it("a guest's fault against the removal of its slot and a revoke leaves no mapping", () => {
    const GPA = 0x1_0000_0000n;
    everySchedule(["fault", "remove", "revoke"], (s) => {
      const { dmabuf, fd } = s.export("udmabuf");
      dmabuf.file.get();
      const slot = ok(s.run(s.guest.addSlot(dmabuf, GPA, BYTES)));
      const contract = dmabuf.negotiated;
      if (contract === undefined) throw new Error("no contract");
      function* toggle(): Step<string> {
        yield* dmaBufRevoke(contract as NonNullable<typeof contract>, "temporary");
        yield* dmaBufRestore(contract as NonNullable<typeof contract>);
        return "0";
      }
      return {
        tasks: { fault: named(s.guest.read(GPA, new Uint8Array(1))), remove: named(s.guest.removeSlot(slot)), revoke: toggle() },
        end(results) {
          must(["0", "EFAULT", "ENODEV"].includes(results.get("fault") ?? ""), `the guest is told ${results.get("fault")}`);
          must(s.guest.lookUp(GPA) === undefined, "a slot that was removed is mapped");
          fd.close();
        },
      };
    });
  });

  it("of two slots at one address, one is added", () => {
    const GPA = 0x1_0000_0000n;
    everySchedule(["first", "second"], (s) => {
      const { dmabuf, fd } = s.export("udmabuf");
      function* add(): Step<string> {
        dmabuf.file.get();
        const r = yield* s.guest.addSlot(dmabuf, GPA, BYTES);
        if (!(r instanceof Errno)) {
          yield* s.guest.kernel.sched.yield();
          made.push(r);
          return "0";
        }
        dmaBufPut(dmabuf);
        return r.name;
      }
      const made: Parameters<typeof s.guest.removeSlot>[0][] = [];
      return {
        tasks: { first: add(), second: add() },
        end(results) {
          must([...results.values()].sort().join() === "0,EEXIST", `${[...results.values()].join()} were answered`);
          for (const slot of made) s.run(s.guest.removeSlot(slot));
          fd.close();
        },
      };
    });
  });

  it("an adapter's fault against its region's end and a revoke leaves no mapping", () => {
    everySchedule(["access", "deregister", "revoke"], (s) => {
      const { dmabuf, fd } = s.export("vfio");
      dmabuf.file.get();
      const region = ok(s.run(MemoryRegion.register(s.pdev(ADAPTER), dmabuf, "on-demand")));
      const contract = dmabuf.negotiated;
      if (contract === undefined) throw new Error("no contract");
      function* toggle(): Step<string> {
        yield* dmaBufRevoke(contract as NonNullable<typeof contract>, "temporary");
        yield* dmaBufRestore(contract as NonNullable<typeof contract>);
        return "0";
      }
      return {
        tasks: { access: named(region.access(0n, new Uint8Array(1), false)), deregister: named(region.deregister()), revoke: toggle() },
        end(results) {
          must(["0", "ENODEV"].includes(results.get("access") ?? ""), `the adapter is told ${results.get("access")}`);
          fd.close();
        },
      };
    });
  });
});

describe("the scenarios of the negotiated page table", { timeout: 60_000 }, () => {
  const violations = (name: string): string[] => {
    const scenario = scenarios.get(name);
    if (scenario === undefined) throw new Error(`no scenario ${name}`);
    const found = new Set<string>();
    const counts = exploreOptimal(taskProgram(scenario), ({ outcome: { violation } }) => {
      if (violation !== undefined) found.add(violation.message);
      return violation !== undefined;
    });
    expect(counts.exhausted || found.size > 0).toBe(true);
    return [...found];
  };

  it.each(["restore-negotiated", "replace-dead-negotiated"])("%s holds in every schedule", (name) => {
    expect(violations(name)).toEqual([]);
  });

  it("restore-negotiated finds an address space that does not map again", () => {
    vi.spyOn(NegotiatedDmabuf.prototype, "revalidate").mockImplementation(function* (): Step<void> {});
    expect(violations("restore-negotiated").join()).toMatch(/to be mapped again/);
    vi.restoreAllMocks();
  });

  it("restore-negotiated finds one that forgets to empty its domains", () => {
    vi.spyOn(NegotiatedDmabuf.prototype, "invalidate").mockImplementation(function* (): Step<undefined> {
      return undefined;
    });
    vi.spyOn(IommuHandle.prototype, "sever").mockReturnValue(true);
    expect(violations("restore-negotiated").join()).toMatch(/I1/);
    vi.restoreAllMocks();
  });
});
