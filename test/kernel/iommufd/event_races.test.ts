/** Devices that fault, readers, detaches and closes against each other, in random orders: one answer for each group, lockdep throughout. */
import { expect, test } from "vitest";
import { Errno } from "../../../src/lib/errno.ts";
import { Rng } from "../../../src/lib/rng.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import * as u from "../../../src/uapi/index.ts";
import { EventRig, FAULT_SIZE } from "./event_support.ts";
import { ok } from "./support.ts";

/** What a call may say besides success, by thread; of those not named, nothing. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  // The answer comes too late: the device has left.
  answer: ["EINVAL", "EBADF"],
  read: ["EBADF"],
  trigger: ["ENOENT"],
  // A fault queue or an event queue that is still in use.
  close: ["EBUSY"],
  event: ["ENOENT", "EOPNOTSUPP"],
};

type Call = () => Step<number | Errno | undefined>;

function race(seed: number): void {
  const r = new EventRig();
  const { sys } = r.process;
  const { sched } = r.kernel;
  const rng = new Rng(seed);
  const a = r.faulting(u.MOCK_FLAGS_DEVICE_PASID);
  const { fault, ioas, hwpt } = a;
  const b = r.mock(hwpt);
  ok(r.attachPasid(a.stdev, 4, hwpt));
  const plain = ok(r.hwpt(a.idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_PASID }));
  const guest = r.guest(0x99n);
  const q = ok(r.veventq(guest.viommu));
  const failed: string[] = [];

  const thread = (name: string, ...calls: Call[]): Task =>
    sched.spawn(
      name,
      function* (): Step<void> {
        for (const call of calls) {
          const e = yield* call();
          if (e instanceof Errno && ALLOWED[name]?.includes(e.name) !== true) failed.push(`${name}: ${e.name}`);
        }
      },
      r.process,
    );
  const say = (op: number, id: number, fill: object): Call => {
    const at = r.put(u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size, op, id, ...fill }).bytes);
    return () => sys.ioctl(r.fd, u.IOMMU_TEST_CMD, at);
  };
  const trigger = (dev_id: number, grpid: number, pasid = 0): Call =>
    say(u.IOMMU_TEST_OP_TRIGGER_IOPF, 0, { trigger_iopf: { dev_id, grpid, pasid, perm: 1, addr: 0x1000n } });
  const moveTo = (stdev: number, pt: number): Call =>
    say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: pt } });
  const event = (): Call => say(u.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { trigger_vevent: { dev_id: guest.idev } });
  const destroy = (id: number): Call => {
    const at = r.put(u.IommuDestroy.alloc({ size: u.IommuDestroy.size, id }).bytes);
    return () => sys.ioctl(r.fd, u.IOMMU_DESTROY, at);
  };
  /** Reads what there is and answers all of it. */
  const readAndAnswer = (name: string): Task => {
    const buf = r.user(0x1000);
    const out = r.user(0x1000);
    return thread(name, function* () {
      const n = yield* sys.read(fault.fd, buf, 4 * FAULT_SIZE);
      if (n instanceof Errno) return ALLOWED.read?.includes(n.name) === true ? undefined : n;
      const faults = r.peek(buf, n);
      let bytes = 0;
      for (let at = 0; at < n; at += FAULT_SIZE) {
        const { cookie } = u.IommuHwptPgfault.over(faults, at);
        r.process.mm.memory.write(out + BigInt(bytes), u.IommuHwptPageResponse.alloc({ cookie, code: 0 }).bytes);
        bytes += u.IommuHwptPageResponse.size;
      }
      return yield* sys.write(fault.fd, out, bytes);
    });
  };

  const events = r.user(0x1000);
  const tasks = [
    thread("trigger", trigger(a.idev, 1), trigger(a.idev, 2), trigger(a.idev, 3, 4)),
    thread("trigger", trigger(b.idev, 4), trigger(b.idev, 5)),
    readAndAnswer("answer"),
    readAndAnswer("answer"),
    thread("move", moveTo(a.stdev, plain), moveTo(a.stdev, hwpt)),
    thread("pasid", say(u.IOMMU_TEST_OP_PASID_DETACH, a.stdev, { pasid_detach: { pasid: 4 } })),
    thread("device", destroy(b.stdev)),
    thread("event", event(), event(), event()),
    thread("move", moveTo(guest.stdev, guest.ioas), moveTo(guest.stdev, guest.nested)),
    thread("read", () => sys.read(q.fd, events, 0x100)),
    thread("close", () => sys.close(q.fd), destroy(q.id)),
  ];
  // In half of the runs the fault queue is closed under its readers.
  if (seed % 2 === 0) tasks.push(thread("close", () => sys.close(fault.fd), destroy(fault.id)));
  sched.interleave = true;
  for (;;) {
    const ready = sched.liveTasks().filter((t) => t.state === "runnable");
    if (ready.length === 0) break;
    sched.step(ready[rng.below(ready.length)] as Task);
  }
  sched.interleave = false;
  for (const t of tasks) expect(t.state, `${t.name}: ${String(t.error)}`).toBe("done");
  expect(failed).toEqual([]);
  r.finish();
  const asked = r.events.flatMap((e) => (e.type === "iommu.page_request" ? [e.grpid] : []));
  expect(r.responses.map((x) => x.grpid).sort()).toEqual(asked.sort());
  expect(new Set(asked).size).toBe(asked.length);
}

test("faults, answers, detaches and closes in 100 random orders: one answer each, and nothing is left", { timeout: 60_000 }, () => {
  for (let seed = 1; seed <= 100; seed++) {
    try {
      race(seed);
    } catch (e) {
      throw new Error(`seed ${seed}`, { cause: e });
    }
  }
});
