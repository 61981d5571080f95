/** The life of objects that somebody outside owns: the wait for whoever is using them, and its end. */
import { expect, test } from "vitest";
import { iommufdDeviceUnbind } from "../../../src/kernel/iommufd/device.ts";
import { IommufdIoas } from "../../../src/kernel/iommufd/ioas.ts";
import { getObject, putObject } from "../../../src/kernel/iommufd/object.ts";
import { ENOENT } from "../../../src/lib/errno.ts";
import type { Step } from "../../../src/sched/task.ts";
import { WaitQueue } from "../../../src/sched/wait.ts";
import * as u from "../../../src/uapi/index.ts";
import { ok } from "./support.ts";
import { ViommuRig } from "./viommu_support.ts";

const MINUTE = 60_000_000_000;

/** A device whose HWPT_ALLOC hangs, since somebody keeps the IOAS's lock until `release` is called. */
function hanging(r: ViommuRig): { idev: ReturnType<ViommuRig["bind"]>; release: () => void; result: () => unknown } {
  const idev = r.bind();
  const ioas = ok(getObject(r.ctx, r.ioas, IommufdIoas));
  putObject(r.ctx, ioas);
  const released = new WaitQueue(r.kernel.sched, "test");
  let free = false;
  r.start("holder", function* (): Step<void> {
    yield* ioas.mutex.lock();
    yield* released.waitEvent(() => free);
    ioas.mutex.unlock();
  });
  let result: unknown = "hangs";
  const at = r.put(u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, dev_id: idev.id, pt_id: r.ioas }).bytes);
  r.start("user", function* (): Step<void> {
    result = yield* r.process.sys.ioctl(r.fd, u.IOMMU_HWPT_ALLOC, at);
  });
  const release = (): void => {
    free = true;
    released.wakeUp();
  };
  return { idev, release, result: () => result };
}

test("an unbind waits for a call that uses the device, which takes no virtual device meanwhile", () => {
  const r = new ViommuRig();
  const { idev, release, result } = hanging(r);
  const { id } = idev;
  const order: string[] = [];
  r.forget(idev);
  r.kernel.sched.spawn("unbind", function* (): Step<void> {
    yield* iommufdDeviceUnbind(idev);
    order.push("unbound");
  });
  // Settling would let the minute pass: whatever is to happen meanwhile is queued behind the unbind.
  r.kernel.sched.spawn("meanwhile", function* (): Step<void> {
    order.push(`destroying ${idev.destroying}`);
    release();
  });
  r.kernel.sched.settle();
  expect(order).toEqual(["destroying true", "unbound"]);
  expect(result()).toBe(0);
  expect(r.kernel.sched.now).toBeLessThan(MINUTE);
  expect(r.hwpt(id, r.ioas)).toBe(ENOENT);
});

test("after a minute an unbind gives up, says so, and leaves the device where it is", () => {
  const r = new ViommuRig();
  const { idev, release, result } = hanging(r);
  const log: string[] = [];
  r.kernel.trace.listen(({ event }) => {
    if (event.type === "sched.printk") log.push(event.text);
  });
  const begun = r.kernel.sched.now;
  let unbound: number | undefined;
  r.start("unbind", function* (): Step<void> {
    yield* iommufdDeviceUnbind(idev);
    unbound = r.kernel.sched.now;
  });
  expect(unbound).toBe(begun + MINUTE);
  expect(log.join("\n")).toMatch(/Time out waiting for iommufd object to become free/);
  expect(r.ctx.objects.load(idev.id)).toBe(idev);
  expect(result()).toBe("hangs");
  release();
  r.kernel.sched.settle();
  expect(result()).toBe(0);
  // What Linux leaves to the close of the descriptor the driver does again here, so that there is one.
  idev.users++;
});
