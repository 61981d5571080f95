import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { PciDriver } from "../../../src/kernel/pci/driver.ts";
import { pcimP2pdmaInit } from "../../../src/kernel/pci/p2pdma.ts";
import { EAGAIN, EBUSY, ENODEV, type Errno } from "../../../src/lib/errno.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import { PCI_COMMAND, PCI_VENDOR_ID } from "../../../src/uapi/pci_regs.ts";
import { endpoint, FULL, machine, rootPort, switchOf, type TestMachine } from "./machine.ts";

const A = "0000:03:00.0";
const UP = "0000:01:00.0";

function driver(m: TestMachine): PciDriver {
  return {
    name: "test",
    ids: [{}],
    *probe(dev) {
      yield* m.kernel.sched.yield();
      dev.pm.allow();
      return pcimP2pdmaInit(dev);
    },
    *remove(dev) {
      yield* m.kernel.sched.yield();
      yield* dev.pm.forbid();
    },
  };
}

/** Steps the tasks in the order that `choices` picks, moving time on only when none can run. */
function interleave(m: TestMachine, tasks: readonly Task[], choices: readonly number[]): void {
  const { sched } = m.kernel;
  for (let i = 0; tasks.some((t) => !t.finished); i++) {
    const can = tasks.filter((t) => t.state === "runnable");
    const next = can[(choices[i % choices.length] ?? 0) % Math.max(1, can.length)];
    if (next === undefined) sched.advance(1_000_000);
    else sched.step(next);
    if (i > 100_000) throw new Error("no end in sight");
  }
  sched.settle();
  for (const t of tasks) if (t.state === "failed") throw t.error;
}

describe("resets, bus resets, binding and runtime PM in any order", () => {
  it("leave nothing locked, nothing referenced, and a function that answers as configured", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(7), { minLength: 1, maxLength: 80 }), (choices) => {
        const m = machine({ root: [rootPort([switchOf([endpoint(FULL), endpoint(FULL)])])] });
        const { pci, sched } = m.kernel;
        const d = m.dev(A);
        const usage = d.pm.usageCount;
        d.enable();
        d.setMaster(true);
        const command = d.configRead(PCI_COMMAND, 2);
        const answers: (readonly [string, Errno | undefined])[] = [];
        const call = (name: string, body: () => Step<Errno | undefined>): Task =>
          sched.spawn(name, function* () {
            answers.push([name, yield* body()]);
          });
        const drv = driver(m);
        sched.interleave = true;
        interleave(
          m,
          [
            call("try", () => d.tryResetFunction()),
            call("reset", () => d.resetFunction()),
            call("bus", () => m.dev(UP).resetBus()),
            call("bind", () => pci.bind(drv, A)),
            call("bind again", () => pci.bind(drv, A)),
            call("unbind", () => pci.unbind(A)),
            call("read", function* () {
              expect(yield* d.userConfigRead(PCI_VENDOR_ID, 2)).toBe(0x1234);
              return undefined;
            }),
          ],
          choices,
        );
        const of = (name: string): Errno | undefined => answers.find((a) => a[0] === name)?.[1];
        expect([undefined, EAGAIN]).toContain(of("try"));
        expect(of("reset")).toBeUndefined();
        expect([undefined, EAGAIN]).toContain(of("bus"));
        expect([undefined, EBUSY]).toContain(of("bind"));
        expect([undefined, ENODEV]).toContain(of("unbind"));
        for (const x of pci.devices.values()) expect([x.name, x.lock.locked, x.blockCfgAccess]).toEqual([x.name, false, false]);
        if (d.driver !== undefined) m.run(pci.unbind(A));
        expect([d.pm.usageCount, d.p2pdma]).toEqual([usage, undefined]);
        m.run(d.pmRuntimeResume());
        expect(d.configRead(PCI_COMMAND, 2)).toBe(command);
        expect(m.kernel.phys.at(d.resources[2]?.start ?? 0n)).toBe("mmio");
      }),
      { numRuns: 150 },
    );
  });
});
