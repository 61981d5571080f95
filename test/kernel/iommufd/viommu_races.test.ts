/** Threads of one process against each other over a virtual IOMMU, in random orders: nothing is left at the end, lockdep throughout. */
import { expect, test } from "vitest";
import { Errno } from "../../../src/lib/errno.ts";
import { Rng } from "../../../src/lib/rng.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import * as u from "../../../src/uapi/index.ts";
import { START } from "./selftest_support.ts";
import { ok } from "./support.ts";
import { ViommuRig } from "./viommu_support.ts";

/** What each call may say, whatever came before it. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  vdevice: ["EEXIST", "ENOENT"],
  nest: ["ENOENT", "EINVAL"],
  move: ["ENOENT"],
  invalidate: ["ENOENT", "EINVAL"],
  queue: ["ENOENT", "EEXIST"],
  "destroy vdevice": ["ENOENT"],
  "destroy viommu": ["EBUSY"],
  "destroy device": ["EBUSY"],
  map: ["ENXIO"],
};

function race(seed: number): void {
  const r = new ViommuRig();
  const rng = new Rng(seed);
  const { sched } = r.kernel;
  const { sys } = r.process;
  const { id: viommu, data } = r.viommuWithPages(seed);
  const m = r.mock(r.ioas);
  const vdev = ok(r.vdevice(viommu, m.idev, 1n));
  const nested = ok(r.nested(viommu, { dev_id: m.idev }));
  r.memoryAt(START, 0x1000);
  const failed: string[] = [];

  const spawn = (name: string, body: () => Step<unknown>): Task =>
    sched.spawn(
      name,
      function* (): Step<void> {
        const e = yield* body();
        if (e instanceof Errno && ALLOWED[name]?.includes(e.name) !== true) failed.push(`${name}: ${e.name}`);
      },
      r.process,
    );
  const call = (name: string, cmd: number, view: u.StructView): Task => {
    const at = r.put(view.bytes);
    return spawn(name, () => sys.ioctl(r.fd, cmd, at));
  };
  const destroy = (name: string, id: number): Task =>
    call(`destroy ${name}`, u.IOMMU_DESTROY, u.IommuDestroy.alloc({ size: u.IommuDestroy.size, id }));
  const vdevice = (virt_id: bigint): Task =>
    call(
      "vdevice",
      u.IOMMU_VDEVICE_ALLOC,
      u.IommuVdeviceAlloc.alloc({ size: u.IommuVdeviceAlloc.size, viommu_id: viommu, dev_id: m.idev, virt_id }),
    );
  const entry = r.put(u.IommuViommuInvalidateSelftest.alloc({ vdev_id: 1 }).bytes);
  const tasks = [
    vdevice(1n),
    vdevice(2n),
    destroy("vdevice", vdev),
    destroy("device", m.stdev),
    destroy("viommu", viommu),
    call(
      "nest",
      u.IOMMU_HWPT_ALLOC,
      u.IommuHwptAlloc.alloc({
        size: u.IommuHwptAlloc.size,
        dev_id: m.idev,
        pt_id: viommu,
        data_type: u.IOMMU_HWPT_DATA_SELFTEST,
        data_len: 8,
        data_uptr: r.hwptData,
      }),
    ),
    call(
      "move",
      u.IOMMU_TEST_CMD,
      u.IommuTestCmd.alloc({
        size: u.IommuTestCmd.size,
        op: u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE,
        id: m.stdev,
        mock_domain_replace: { pt_id: nested },
      }),
    ),
    call(
      "invalidate",
      u.IOMMU_HWPT_INVALIDATE,
      u.IommuHwptInvalidate.alloc({
        size: u.IommuHwptInvalidate.size,
        hwpt_id: viommu,
        data_type: u.IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
        entry_len: 12,
        entry_num: 1,
        data_uptr: entry,
      }),
    ),
    call(
      "queue",
      u.IOMMU_HW_QUEUE_ALLOC,
      u.IommuHwQueueAlloc.alloc({
        size: u.IommuHwQueueAlloc.size,
        viommu_id: viommu,
        type: u.IOMMU_HW_QUEUE_TYPE_SELFTEST,
        nesting_parent_iova: START,
        length: 4096n,
      }),
    ),
    spawn("map", function* (): Step<unknown> {
      const at = yield* sys.mmap(0n, data.out_mmap_length, u.PROT_READ, u.MAP_SHARED, r.fd, data.out_mmap_offset);
      return at instanceof Errno ? at : yield* sys.munmap(at, data.out_mmap_length);
    }),
  ];
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
}

test("calls on a virtual IOMMU and the end of its device in 200 random orders leave nothing", { timeout: 60_000 }, () => {
  for (let seed = 1; seed <= 200; seed++) {
    try {
      race(seed);
    } catch (e) {
      throw new Error(`seed ${seed}`, { cause: e });
    }
  }
});
