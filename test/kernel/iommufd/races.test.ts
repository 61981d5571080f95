/** Threads of one process against each other and against a revoke, in random orders: invariants at the end, lockdep throughout. */
import { expect, test } from "vitest";
import { iommufdDeviceAttach, iommufdDeviceDetach } from "../../../src/kernel/iommufd/device.ts";
import { Errno } from "../../../src/lib/errno.ts";
import { Rng } from "../../../src/lib/rng.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import {
  IOMMU_GET_HW_INFO,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_UNMAP,
  IommuHwInfo,
  IommuHwInfoVtd,
  IommuIoasCopy,
  IommuIoasMap,
  IommuIoasMapFile,
  IommuIoasUnmap,
  type StructView,
} from "../../../src/uapi/index.ts";
import { FIXED, IommufdRig, ok, RW } from "./support.ts";

const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  map: ["ENODEV", "EEXIST"],
  user: ["EEXIST"],
  unmap: ["ENOENT", "EBUSY"],
  copy: ["ENOENT", "EEXIST"],
};

function race(seed: number): void {
  const r = new IommufdRig();
  const rng = new Rng(seed);
  const { sched } = r.kernel;
  const [a, b] = [r.allocIoas(), r.allocIoas()];
  r.attached(a);
  const idev = r.bind();
  const fd = r.dmabuf();
  const user = r.user(0x4000);
  const failed: string[] = [];

  const call = (name: string, cmd: number, view: StructView): Task => {
    const at = r.put(view.bytes);
    return sched.spawn(
      name,
      function* (): Step<void> {
        const e = yield* r.process.sys.ioctl(r.fd, cmd, at);
        if (e instanceof Errno && ALLOWED[name]?.includes(e.name) !== true) failed.push(`${name}: ${e.name}`);
      },
      r.process,
    );
  };
  const iova = 0x10000n;
  const common = { flags: RW | FIXED, length: 0x4000n };
  const map = (ioas_id: number): Task =>
    call("map", IOMMU_IOAS_MAP_FILE, IommuIoasMapFile.alloc({ size: IommuIoasMapFile.size, ...common, ioas_id, fd, iova }));
  const makers: (() => Task)[] = [
    () => map(a),
    () => map(b),
    () =>
      call("user", IOMMU_IOAS_MAP, IommuIoasMap.alloc({ size: IommuIoasMap.size, ...common, ioas_id: a, user_va: user, iova: 0x20000n })),
    () =>
      call(
        "copy",
        IOMMU_IOAS_COPY,
        IommuIoasCopy.alloc({ size: IommuIoasCopy.size, ...common, src_ioas_id: a, dst_ioas_id: b, src_iova: iova, dst_iova: 0x30000n }),
      ),
    () => call("unmap", IOMMU_IOAS_UNMAP, IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: a, iova, length: 0x4000n })),
    () => call("unmap", IOMMU_IOAS_UNMAP, IommuIoasUnmap.alloc({ size: IommuIoasUnmap.size, ioas_id: b, iova: 0n, length: 0x100000n })),
    () =>
      sched.spawn(
        "revoke",
        function* (): Step<void> {
          yield* r.vfio.move(true);
          yield* r.vfio.move(false);
        },
        r.process,
      ),
    () =>
      sched.spawn(
        "device",
        function* (): Step<void> {
          const id = yield* iommufdDeviceAttach(idev, 0, b);
          if (id instanceof Errno) failed.push(`attach: ${id.name}`);
          else yield* iommufdDeviceDetach(idev, 0);
        },
        r.process,
      ),
  ];
  sched.interleave = true;
  const tasks = makers.map((m) => m());
  for (;;) {
    const ready = sched.liveTasks().filter((t) => t.state === "runnable");
    if (ready.length === 0) break;
    sched.step(ready[rng.below(ready.length)] as Task);
  }
  sched.interleave = false;
  for (const t of tasks) expect(t.state, `${t.name}: ${String(t.error)}`).toBe("done");
  expect(failed).toEqual([]);
  r.check();
  expect(r.unmap(a, 0n, 0xffff_ffff_ffff_ffffn)).toBeTypeOf("bigint");
  expect(r.unmap(b, 0n, 0xffff_ffff_ffff_ffffn)).toBeTypeOf("bigint");
  expect(r.leaks()["iommufd pages"]).toBeUndefined();
  expect(r.kernel.frames.pinned).toBe(0);
}

test("map, copy, unmap, attach and revoke in 500 random orders end in a sound state", { timeout: 60_000 }, () => {
  for (let seed = 1; seed <= 500; seed++) {
    try {
      race(seed);
    } catch (e) {
      throw new Error(`seed ${seed}`, { cause: e });
    }
  }
});

test("GET_HW_INFO fills what there is room for, zeroes the rest and tells the whole length", () => {
  const r = new IommufdRig();
  const idev = r.bind();
  const data = r.put(new Uint8Array(64).fill(0xff));
  const cmd = IommuHwInfo.alloc({ size: IommuHwInfo.size, dev_id: idev.id, data_len: 40, data_uptr: data });
  expect(r.ioctl(IOMMU_GET_HW_INFO, cmd)).toBe(0);
  expect([cmd.data_len, cmd.out_data_type]).toEqual([IommuHwInfoVtd.size, 1]);
  const bytes = r.peek(data, 64);
  expect(IommuHwInfoVtd.over(bytes).cap_reg).not.toBe(0xffff_ffff_ffff_ffffn);
  expect([...bytes.subarray(IommuHwInfoVtd.size, 40)]).toEqual(new Array(40 - IommuHwInfoVtd.size).fill(0));
  expect(bytes[40]).toBe(0xff);
  expect(ok(r.ioctl(IOMMU_GET_HW_INFO, IommuHwInfo.alloc({ size: IommuHwInfo.size, dev_id: idev.id })))).toBe(0);
});
