/**
 * Random calls on fault queues, good and bad, against a naive model of who owes
 * whom an answer: every group of page requests is answered exactly once, by
 * whom and when the model says, and nothing is left at the end. A second
 * property lets allocations and copies fail at random, and asks only for that:
 * once, and nothing left. BARLINK_FAULT_RUNS sets the number of runs of each.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { EFAULT, EINVAL, Errno, ESPIPE } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { EventRig, FAULT_SIZE, LAST, PASID } from "./event_support.ts";

const RUNS = Number(process.env.BARLINK_FAULT_RUNS ?? 60);
const RESPONSE = u.IommuHwptPageResponse.size;
const PASIDS = [0, 1, 2, u.IOMMU_TEST_PASID_RESERVED] as const;
/** Never an object. */
const GHOST = 0x7fff_fff0;

interface Attachment {
  readonly hwpt: number;
  readonly queue: Queue | undefined;
}

interface Group {
  readonly device: Device;
  readonly pasid: number;
  readonly grpid: number;
  readonly faults: number;
  readonly through: Attachment;
}

interface Queue {
  readonly id: number;
  fd: number | undefined;
  deliver: Group[];
  readonly response: Map<number, Group>;
  /** The cookie 0 may be given: somebody has tried to answer with it. */
  zero: boolean;
}

interface Device {
  readonly stdev: number;
  readonly idev: number;
  readonly name: string;
  readonly attached: Map<number, Attachment>;
  /** Group indices of requests that were no group's last. */
  partial: number[];
  /** The index that the next of those bears. */
  open: number;
}

type Answer = readonly [device: string, pasid: number, grpid: number, code: string];

/** What the calls of a run have made so far. Ids that are picked may be gone, or of something else. */
class Run {
  readonly r: EventRig = new EventRig();
  readonly ioas: number = this.r.allocIoas();
  readonly devices: Device[] = [];
  readonly queues: Queue[] = [];
  /** By id; undefined: a table without a queue. */
  readonly hwpts: Map<number, Queue | undefined> = new Map();
  /** Answers that the model owes and those given. */
  owed: Answer[] = [];
  #nextGroup = 1;
  #seen = 0;
  /** The model no longer follows: only what is answered counts. */
  readonly blind: boolean;
  readonly made: string[] = [];

  constructor(blind: boolean) {
    this.blind = blind;
  }

  group(): number {
    return this.#nextGroup++;
  }

  pick<T>(from: readonly T[], n: number): T | undefined {
    return from.length === 0 ? undefined : from[n % from.length];
  }

  /** Answers since the last call are those owed, in order. */
  settle(): void {
    const got = this.r.responses.slice(this.#seen).map(({ device, pasid, grpid, code }): Answer => [device, pasid, grpid, code]);
    this.#seen += got.length;
    if (!this.blind) expect(got).toEqual(this.owed);
    this.owed = [];
  }

  answer(g: Group, code: string): void {
    this.owed.push([g.device.name, g.pasid, g.grpid, code]);
  }

  /** What came through an attachment that is no more. */
  discard(through: Attachment): void {
    const q = through.queue;
    if (q === undefined) return;
    for (const g of q.deliver) if (g.through === through) this.answer(g, "invalid");
    q.deliver = q.deliver.filter((g) => g.through !== through);
    for (const [cookie, g] of [...q.response].sort(([a], [b]) => a - b)) {
      if (g.through !== through) continue;
      this.answer(g, "invalid");
      q.response.delete(cookie);
    }
  }

  /** Its unit takes page requests of the device. */
  queued(d: Device): boolean {
    return [...d.attached.values()].some((a) => a.queue !== undefined);
  }

  attach(d: Device, pasid: number, hwpt: number | undefined): void {
    const old = d.attached.get(pasid);
    if (hwpt === old?.hwpt) return;
    if (hwpt === undefined) d.attached.delete(pasid);
    else d.attached.set(pasid, { hwpt, queue: this.hwpts.get(hwpt) });
    // The device has left its unit's queue: what was half a group is forgotten.
    if (!this.queued(d)) d.partial = [];
    if (old !== undefined) this.discard(old);
  }

  /** What a request that is the last of its group, or not, leads to. */
  request(d: Device, pasid: number, grpid: number, last: boolean): void {
    const through = d.attached.get(pasid);
    if (through?.queue === undefined) {
      this.owed.push([d.name, pasid, grpid, "invalid"]);
      return;
    }
    if (!last) {
      d.partial.push(grpid);
      return;
    }
    const faults = 1 + d.partial.filter((g) => g === grpid).length;
    d.partial = d.partial.filter((g) => g !== grpid);
    through.queue.deliver.push({ device: d, pasid, grpid, faults, through });
  }

  /** Bytes that a read gives, or why none. `room`: bytes that can be written at the buffer. */
  read(q: Queue, count: number, room: number): number | Errno {
    if (count % FAULT_SIZE !== 0) return ESPIPE;
    let done = 0;
    for (let g = q.deliver[0]; g !== undefined; g = q.deliver[0]) {
      const need = g.faults * FAULT_SIZE;
      if (need > count - done) return done === 0 ? EINVAL : done;
      if (done + need > room) return done === 0 ? EFAULT : done;
      let cookie = q.zero ? 0 : 1;
      while (q.response.has(cookie)) cookie++;
      q.response.set(cookie, g);
      q.deliver.shift();
      done += need;
    }
    return done;
  }

  write(q: Queue, answers: readonly (readonly [number, number])[], count: number): number | Errno {
    if (count % RESPONSE !== 0) return ESPIPE;
    let done = 0;
    for (const [cookie, code] of answers) {
      const g = q.response.get(cookie);
      if (code <= 1 && g === undefined && cookie === 0 && q.response.size > 0) q.zero = true;
      if (code > 1 || g === undefined) return done === 0 ? EINVAL : done;
      q.response.delete(cookie);
      this.answer(g, code === 0 ? "success" : "invalid");
      done += RESPONSE;
    }
    return done;
  }

  /** A result of the kernel against the model's, unless failures are made. */
  same(got: unknown, want: unknown): void {
    if (!this.blind) expect(got).toBe(want);
  }
}

/** One call; numbers choose among what there is. */
type Op = (run: Run, a: number, b: number, c: number) => void;

const outId = (
  e: { cmd: ReturnType<typeof u.IommuTestCmd.alloc> } | Errno,
  of: "mock_domain_replace" | "pasid_attach" | "pasid_replace",
) => (e instanceof Errno ? undefined : e.cmd[of].pt_id);

/** What user space reads of a group. */
function faultsOf(cookie: number, g: Group): number[][] {
  return Array.from({ length: g.faults }, (_, i) => {
    const flags = (i === g.faults - 1 ? LAST : 0) | (g.pasid === 0 ? 0 : PASID);
    return [cookie, g.device.idev, g.pasid, g.grpid, flags];
  });
}

/** Any id that a call may be given: tables, the address space, queues, devices, nothing. */
function anyPt(run: Run, n: number): number {
  if (n % 8 === 0) return run.pick([...run.hwpts.keys(), run.ioas, GHOST, ...run.queues.map((q) => q.id)], n >> 3) ?? GHOST;
  const queued = [...run.hwpts].filter(([, q]) => q?.fd !== undefined).map(([id]) => id);
  return run.pick(queued, n >> 3) ?? GHOST;
}

const OPS: Record<string, { weight: number; op: Op }> = {
  device: {
    weight: 2,
    op({ r, devices, ioas, hwpts }, a) {
      if (devices.length >= 3) return;
      const flags = a % 2 === 0 ? u.MOCK_FLAGS_DEVICE_PASID : 0;
      const m = r.test(u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, ioas, { mock_domain_flags: { dev_flags: flags } });
      if (m instanceof Errno) return;
      const { out_stdev_id: stdev, out_idev_id: idev, out_hwpt_id: hwpt } = m.cmd.mock_domain_flags;
      let n = 0;
      while (devices.some((d) => d.name === `iommufd_mock${n}`)) n++;
      hwpts.delete(hwpt);
      const attached = new Map([[0, { hwpt, queue: undefined }]]);
      devices.push({ stdev, idev, name: `iommufd_mock${n}`, attached, partial: [], open: 0 });
    },
  },
  queue: {
    weight: 3,
    op({ r, queues }, a) {
      if (queues.length >= 4) return;
      const cmd = u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size - (a % 7 === 0 ? 1 : 0), flags: a % 5 === 0 ? 1 : 0 });
      if (r.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, cmd) !== 0) return;
      queues.push({ id: cmd.out_fault_id, fd: cmd.out_fault_fd, deliver: [], response: new Map(), zero: false });
    },
  },
  table: {
    weight: 5,
    op(run, a, b, c) {
      const { r, devices, queues, hwpts, ioas } = run;
      const d = run.pick(devices, a);
      if (d === undefined || hwpts.size >= 8) return;
      const q = run.pick(queues, b);
      const faultId = c % 16 === 0 ? GHOST : c % 16 === 1 ? ioas : q?.id;
      const queue = c % 16 === 2 || faultId === undefined ? {} : { fault_id: faultId };
      const flags = ("fault_id" in queue ? u.IOMMU_HWPT_FAULT_ID_VALID : 0) | (c % 11 === 3 ? 0 : u.IOMMU_HWPT_ALLOC_PASID);
      const id = r.hwpt(d.idev, ioas, { flags, ...queue });
      if (c % 16 < 2) run.same(id instanceof Errno, true);
      if (!(id instanceof Errno)) hwpts.set(id, "fault_id" in queue ? q : undefined);
    },
  },
  move: {
    weight: 3,
    op(run, a, b) {
      const d = run.pick(run.devices, a);
      if (d === undefined) return;
      const e = run.r.test(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, d.stdev, { mock_domain_replace: { pt_id: anyPt(run, b) } });
      const hwpt = outId(e, "mock_domain_replace");
      if (hwpt !== undefined) run.attach(d, 0, hwpt);
    },
  },
  attachPasid: {
    weight: 4,
    op(run, a, b, c) {
      const d = run.pick(run.devices, a);
      if (d === undefined) return;
      const pasid = PASIDS[c % PASIDS.length] ?? 0;
      const e = run.r.test(u.IOMMU_TEST_OP_PASID_ATTACH, d.stdev, { pasid_attach: { pasid, pt_id: anyPt(run, b) } });
      const hwpt = outId(e, "pasid_attach");
      if (hwpt !== undefined) run.attach(d, pasid, hwpt);
    },
  },
  replacePasid: {
    weight: 3,
    op(run, a, b, c) {
      const d = run.pick(run.devices, a);
      if (d === undefined) return;
      const pasid = PASIDS[c % PASIDS.length] ?? 0;
      const e = run.r.test(u.IOMMU_TEST_OP_PASID_REPLACE, d.stdev, { pasid_replace: { pasid, pt_id: anyPt(run, b) } });
      const hwpt = outId(e, "pasid_replace");
      if (hwpt !== undefined) run.attach(d, pasid, hwpt);
    },
  },
  detachPasid: {
    weight: 2,
    op(run, a, _b, c) {
      const d = run.pick(run.devices, a);
      // Not PASID 0: a mock device that is nowhere can only be destroyed.
      const pasid = PASIDS[1 + (c % (PASIDS.length - 1))] ?? 1;
      if (d === undefined || run.r.detachPasid(d.stdev, pasid) !== 0) return;
      run.attach(d, pasid, undefined);
    },
  },
  trigger: {
    weight: 24,
    op(run, a, b, c) {
      const d = run.pick(run.devices, a);
      if (d === undefined || c % 19 === 0) {
        run.r.trigger(c % 2 === 0 ? GHOST : run.ioas);
        return;
      }
      const pasid = b % 4 === 0 ? (PASIDS[(b >> 2) % PASIDS.length] ?? 0) : (run.pick([...d.attached.keys()], b >> 2) ?? 0);
      const grpid = run.group();
      if (run.r.trigger(d.idev, { pasid, grpid }) === 0) run.request(d, pasid, grpid, true);
    },
  },
  partial: {
    weight: 6,
    op(run, a, _b, c) {
      const d = run.pick(run.devices, a);
      if (d === undefined) return;
      if (d.open === 0) d.open = run.group();
      // One PASID per group, as a group has one answer.
      const pasid = PASIDS[d.open % PASIDS.length] ?? 0;
      const last = c % 3 === 0;
      run.r.report(d.idev, { flags: (last ? LAST : 0) | (pasid === 0 ? 0 : PASID), pasid, grpid: d.open });
      run.request(d, pasid, d.open, last);
      if (last) d.open = 0;
    },
  },
  read: {
    weight: 12,
    op(run, a, b, c) {
      const { r } = run;
      const q = run.pick(
        run.queues.filter((x) => a % 4 === 0 || x.deliver.length > 0),
        a >> 2,
      );
      if (q?.fd === undefined) return;
      const count = (b % 5) * FAULT_SIZE + (c % 11 === 0 ? 1 : 0);
      // Now and then the buffer ends after so many bytes.
      const room = c % 4 === 0 ? (c % 3) * FAULT_SIZE + (c % 5) : 0x1000;
      const at = c % 4 === 0 ? r.hole - BigInt(room) : r.buf;
      const before = new Set(q.response.keys());
      const got = r.read(q.fd, count, at);
      run.same(got, run.read(q, count, room));
      if (got instanceof Errno || run.blind) return;
      const bytes = r.peek(at, got);
      const seen = Array.from({ length: got / FAULT_SIZE }, (_, i) => u.IommuHwptPgfault.over(bytes, i * FAULT_SIZE));
      const want = [...q.response].filter(([cookie]) => !before.has(cookie)).flatMap(([cookie, g]) => faultsOf(cookie, g));
      expect(seen.map((f) => [f.cookie, f.dev_id, f.pasid, f.grpid, f.flags])).toEqual(want);
    },
  },
  write: {
    weight: 12,
    op(run, a, b, c) {
      const { r } = run;
      const q = run.pick(
        run.queues.filter((x) => a % 4 === 0 || x.response.size > 1),
        a >> 2,
      );
      if (q?.fd === undefined) return;
      // Mostly cookies that are out; now and then one that is not, or a code that is none.
      const cookies = [...q.response.keys()];
      const answers = Array.from({ length: b % 4 }, (_, i) => {
        const cookie = (c >> i) % 5 === 0 ? (c >> i) % 9 : (run.pick(cookies, (c >> i) + i) ?? 1);
        return [cookie, (c >> (2 * i)) % 16 === 15 ? 2 : (b + i) % 2] as const;
      });
      const bytes = answers.flatMap(([cookie, code]) => [...u.IommuHwptPageResponse.alloc({ cookie, code }).bytes]);
      r.process.mm.memory.write(r.buf, Uint8Array.from(bytes));
      const count = bytes.length + (c % 17 === 0 ? 3 : 0);
      run.same(r.run(r.process.sys.write(q.fd, r.buf, count)), run.write(q, answers, count));
    },
  },
  poll: {
    weight: 3,
    op(run, a) {
      const q = run.pick(run.queues, a);
      if (q?.fd !== undefined) run.same(run.r.ready(q.fd), u.POLLOUT | (q.deliver.length > 0 ? u.POLLIN | u.POLLRDNORM : 0));
    },
  },
  close: {
    weight: 1,
    op(run, a, b) {
      const q = run.pick(run.queues, a);
      if (q?.fd === undefined || b % 3 !== 0) return;
      run.r.close(q.fd);
      q.fd = undefined;
    },
  },
  destroy: {
    weight: 2,
    op(run, a, b) {
      const { r, devices, queues, hwpts } = run;
      if (b % 3 === 0) {
        const d = run.pick(devices, a);
        if (d === undefined || r.destroy(d.stdev) !== 0) return;
        for (const pasid of [...d.attached.keys()].filter((p) => p !== 0)) run.attach(d, pasid, undefined);
        run.attach(d, 0, undefined);
        devices.splice(devices.indexOf(d), 1);
      } else if (b % 3 === 1) {
        const id = run.pick([...hwpts.keys()], a);
        if (id === undefined) return;
        const used = devices.some((d) => [...d.attached.values()].some((x) => x.hwpt === id));
        run.same(r.destroy(id) === 0, !used);
        if (r.ctx.objects.load(id) === undefined) hwpts.delete(id);
      } else {
        const q = run.pick(queues, a);
        if (q === undefined) return;
        const used = q.fd !== undefined || [...hwpts.values()].includes(q);
        run.same(r.destroy(q.id) === 0, !used);
        if (r.ctx.objects.load(q.id) === undefined) queues.splice(queues.indexOf(q), 1);
      }
    },
  },
};

const arbOp = fc.tuple(
  fc.oneof(...Object.entries(OPS).map(([name, { weight }]) => ({ weight, arbitrary: fc.constant(name) }))),
  fc.nat({ max: 1000 }),
  fc.nat({ max: 1000 }),
  fc.nat({ max: 1000 }),
);

/** Begins with something to work on, so that short runs do something too. */
const PROLOGUE = [
  ["device", 0, 0, 0],
  ["queue", 1, 0, 0],
  ["queue", 1, 0, 0],
  ["table", 0, 0, 4],
  ["table", 0, 1, 20],
  ["move", 0, 1, 0],
  ["device", 1, 0, 0],
  ["move", 1, 1, 0],
] as const;

/** Ends with the process, and looks at what every group was answered. */
function end(run: Run): void {
  const { r } = run;
  const unanswered = new Set<string>();
  r.kernel.fault.decide(undefined);
  r.finish();
  const asked = new Map<string, number>();
  for (const e of r.events) {
    if (e.type === "iommu.page_request" && e.last) asked.set(`${e.device} ${e.pasid} ${e.grpid}`, 0);
  }
  for (const { device, pasid, grpid } of r.responses) {
    const key = `${device} ${pasid} ${grpid}`;
    const n = asked.get(key);
    // A request that is no group's last is answered when nobody handles it.
    if (n !== undefined) asked.set(key, n + 1);
  }
  for (const [key, n] of asked) if (n === 0) unanswered.add(key);
  expect([...unanswered]).toEqual([]);
}

/** All there is to do with a fault queue and an event queue; whatever fails, it goes on. */
function everything(r: EventRig): void {
  const ioas = r.ctx.objects.load(1) === undefined ? 0 : 1;
  const queue = u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size });
  r.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, queue);
  const dev = r.test(u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, ioas, { mock_domain_flags: { dev_flags: u.MOCK_FLAGS_DEVICE_PASID } });
  const { out_stdev_id: stdev, out_idev_id: idev } = dev instanceof Errno ? { out_stdev_id: 0, out_idev_id: 0 } : dev.cmd.mock_domain_flags;
  const flags = u.IOMMU_HWPT_FAULT_ID_VALID | u.IOMMU_HWPT_ALLOC_PASID;
  const made = [1, 2].map(() => r.hwpt(idev, ioas, { flags, fault_id: queue.out_fault_id }));
  const [one, two] = made.map((id) => (id instanceof Errno ? 0 : id)) as [number, number];
  r.moveTo(stdev, one);
  r.attachPasid(stdev, 1, one);
  for (const pasid of [0, 1, 0, 1, 0]) r.trigger(idev, { pasid, grpid: r.events.length });
  const faults = r.readFaults(queue.out_fault_fd, 2);
  if (!(faults instanceof Errno)) r.answer(queue.out_fault_fd, ...faults.map((f) => [f.cookie, 0] as const));
  r.readFaults(queue.out_fault_fd, 2);
  r.replacePasid(stdev, 1, two);
  r.moveTo(stdev, two);
  r.trigger(idev, { grpid: r.events.length });
  r.detachPasid(stdev, 1);
  r.destroy(one);
  const parent = r.hwpt(idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT });
  const viommu = u.IommuViommuAlloc.alloc({
    size: u.IommuViommuAlloc.size,
    type: u.IOMMU_VIOMMU_TYPE_SELFTEST,
    dev_id: idev,
    hwpt_id: parent instanceof Errno ? 0 : parent,
  });
  r.ioctl(u.IOMMU_VIOMMU_ALLOC, viommu);
  const id = viommu.out_viommu_id;
  r.ioctl(u.IOMMU_VDEVICE_ALLOC, u.IommuVdeviceAlloc.alloc({ size: u.IommuVdeviceAlloc.size, viommu_id: id, dev_id: idev, virt_id: 9n }));
  const data = r.put(u.IommuHwptSelftest.alloc({ iotlb: 1 }).bytes);
  const common = { data_type: u.IOMMU_HWPT_DATA_SELFTEST, data_len: u.IommuHwptSelftest.size, data_uptr: data };
  const nested = r.hwpt(idev, id, { ...common, flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: queue.out_fault_id });
  r.moveTo(stdev, nested instanceof Errno ? 0 : nested);
  r.trigger(idev, { pasid: 5, grpid: r.events.length });
  const q = r.veventq(id);
  for (let i = 0; i < 3; i++) r.vevent(idev);
  if (!(q instanceof Errno)) r.readEvents(q.fd);
}

test("nothing is left, and each group is answered once, whichever allocation or copy fails", () => {
  let last = 0;
  for (let nth = 1; last === nth - 1; nth++) {
    const run = new Run(true);
    let left = nth;
    run.r.kernel.fault.decide(() => {
      if (--left !== 0) return false;
      last = nth;
      return true;
    });
    everything(run.r);
    end(run);
  }
  // As many points there are on the way, at the least.
  expect(last).toBeGreaterThan(100);
});

test("every group is answered exactly once, as the model says, and nothing is left", () => {
  fc.assert(
    fc.property(fc.array(arbOp, { minLength: 60, maxLength: 240, size: "max" }), (ops) => {
      const run = new Run(false);
      for (const [name, a, b, c] of [...PROLOGUE, ...ops]) {
        OPS[name]?.op(run, a, b, c);
        run.settle();
      }
      end(run);
    }),
    { numRuns: RUNS },
  );
});

test("the same when memory runs out and copies fail at random", () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(arbOp, fc.nat({ max: 12 })), { minLength: 60, maxLength: 200, size: "max" }), (ops) => {
      const run = new Run(true);
      const { r } = run;
      for (const [name, a, b, c] of PROLOGUE) OPS[name]?.op(run, a, b, c);
      for (const [[name, a, b, c], nth] of ops) {
        let left = nth;
        r.kernel.fault.decide(nth === 0 ? undefined : () => --left === 0);
        OPS[name]?.op(run, a, b, c);
      }
      end(run);
    }),
    { numRuns: RUNS },
  );
});
