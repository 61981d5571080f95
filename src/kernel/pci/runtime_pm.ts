/**
 * Runtime power management of one function.
 *
 * A usage count keeps it awake. When the count falls to zero the device is
 * idle and suspends, in a worker task (`put`) or at once (`putSync`): the
 * driver's `runtimeSuspend`, then the config space is saved and the function
 * put into D3hot. `resume` brings it back: D0, config space, `runtimeResume`.
 *
 * As at boot, runtime PM is forbidden until somebody allows it (a driver, as
 * vfio-pci does, or user space): that holds one reference. A device without a
 * driver stays in D0 whatever its status says. Ports never suspend.
 *
 * Transitions do not overlap: while one runs, others wait for it.
 * Source: drivers/base/power/runtime.c, drivers/pci/pci-driver.c.
 */
import { EACCES, EAGAIN, EBUSY, EINVAL, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";
import type { PciDev } from "./pci_dev.ts";
import { D0, D3HOT, powerUpAndWait, setPowerState, updateCurrentState } from "./power.ts";

type RuntimeStatus = "active" | "suspending" | "suspended" | "resuming";

export class RuntimePm {
  readonly #dev: PciDev;
  status: RuntimeStatus = "active";
  /** usage_count: one is the ban that holds from boot until `allow`. */
  usageCount = 1;
  /** pm_runtime_disable depth; while above zero resuming answers EACCES. */
  disableDepth = 0;
  /** A callback failed: nothing works until the status is set anew. */
  runtimeError: Errno | undefined = undefined;
  /** Fault injection: the next resume fails with it. */
  failNextResume: Errno | undefined = undefined;
  #forbidden = true;
  #idlePending = false;
  #waiters: WaitQueue | undefined = undefined;

  constructor(dev: PciDev) {
    this.#dev = dev;
  }

  /** pm_runtime_allow: drops the ban's reference. */
  allow(): void {
    if (!this.#forbidden) return;
    this.#forbidden = false;
    this.put();
  }

  /** pm_runtime_forbid: wakes the device for good. */
  *forbid(): Step<void> {
    if (this.#forbidden) return;
    this.#forbidden = true;
    this.usageCount++;
    yield* this.resume();
  }

  /** The ban that holds from boot, or from user space's "on", until `allow`. */
  get forbidden(): boolean {
    return this.#forbidden;
  }

  getNoresume(): void {
    this.usageCount++;
  }

  /** pm_runtime_put_noidle: never below zero, and nothing follows. */
  putNoidle(): void {
    if (this.usageCount > 0) this.usageCount--;
  }

  /** pm_runtime_put: the last one queues the suspend. */
  put(): void {
    if (!this.#drop() || this.#idlePending || this.#mayNotSuspend() !== undefined) return;
    this.#idlePending = true;
    const dev = this.#dev;
    dev.kernel.sched.spawn(`pm:${dev.name}`, () => this.#idleWork());
  }

  /** pm_runtime_put_sync. */
  *putSync(): Step<void> {
    if (this.#drop()) yield* this.suspend();
  }

  /** pm_runtime_get_sync: the reference is taken even when waking fails. */
  *getSync(): Step<Errno | undefined> {
    this.usageCount++;
    return yield* this.resume();
  }

  /** pm_runtime_resume_and_get: 0 with a reference, or an errno and none. */
  *resumeAndGet(): Step<number | Errno> {
    this.usageCount++;
    const failed = yield* this.resume();
    if (failed === undefined) return 0;
    this.putNoidle();
    return failed;
  }

  get suspended(): boolean {
    return this.status === "suspended";
  }

  /** pm_runtime_barrier: returns when no transition and no queued one is left. */
  *barrier(): Step<void> {
    if (this.#busy || this.#idlePending) yield* this.#queue.waitEvent(() => !this.#busy && !this.#idlePending);
  }

  *#idleWork(): Step<void> {
    this.#idlePending = false;
    yield* this.suspend();
    this.#waiters?.wakeUp();
  }

  #drop(): boolean {
    if (this.usageCount <= 0) throw new KernelBug(`${this.#dev.name}: runtime PM usage count underflow`);
    return --this.usageCount === 0;
  }

  #mayNotSuspend(): Errno | undefined {
    if (this.runtimeError !== undefined) return EINVAL;
    if (this.disableDepth > 0) return EACCES;
    if (this.usageCount > 0) return EAGAIN;
    return this.#dev.isBridge ? EBUSY : undefined;
  }

  /** rpm_suspend. EAGAIN, EBUSY: in use; EINVAL: an earlier failure; or what the driver answered. */
  *suspend(): Step<Errno | undefined> {
    if (this.#busy) yield* this.#queue.waitEvent(() => !this.#busy);
    if (this.status === "suspended") return undefined;
    const no = this.#mayNotSuspend();
    if (no !== undefined) return no;
    this.status = "suspending";
    const failed = yield* this.#suspendDevice();
    this.#settle(failed === undefined ? "suspended" : "active");
    // EBUSY and EAGAIN ask for a later try; anything else stops runtime PM.
    if (failed !== undefined && failed !== EBUSY && failed !== EAGAIN) this.runtimeError = failed;
    return failed;
  }

  /** rpm_resume. EACCES: disabled; EINVAL: an earlier failure; or what the driver answered. */
  *resume(): Step<Errno | undefined> {
    if (this.#busy) yield* this.#queue.waitEvent(() => !this.#busy);
    if (this.runtimeError !== undefined) return EINVAL;
    if (this.disableDepth > 0) return this.status === "active" ? undefined : EACCES;
    if (this.status === "active") return undefined;
    this.status = "resuming";
    const failed = yield* this.#resumeDevice();
    this.#settle(failed === undefined ? "active" : "suspended");
    if (failed !== undefined) this.runtimeError = failed;
    return failed;
  }

  /** pm_runtime_set_active, -_set_suspended: also forgets an error. */
  setStatus(status: "active" | "suspended"): void {
    this.runtimeError = undefined;
    this.status = status;
  }

  get #busy(): boolean {
    return this.status === "suspending" || this.status === "resuming";
  }

  get #queue(): WaitQueue {
    this.#waiters ??= new WaitQueue(this.#dev.kernel.sched, "rpm_wait");
    return this.#waiters;
  }

  #settle(status: RuntimeStatus): void {
    this.status = status;
    this.#waiters?.wakeUp();
    const trace = this.#dev.kernel.trace;
    if (trace.on) trace.emit({ type: "pci.runtime_pm", device: this.#dev.name, status, usage: this.usageCount });
  }

  /** pci_pm_runtime_suspend. */
  *#suspendDevice(): Step<Errno | undefined> {
    const dev = this.#dev;
    if (dev.driver === undefined) {
      dev.saveState();
      return undefined;
    }
    dev.saved.valid = false;
    const driver = dev.driver;
    if (driver.runtimeSuspend !== undefined) {
      const no = yield* driver.runtimeSuspend(dev);
      if (no !== undefined) return no;
      // A driver that put the device to sleep itself has done it all.
      if (!dev.saved.valid && dev.currentState !== D0) return undefined;
    }
    if (dev.saved.valid) return undefined;
    dev.saveState();
    // Its result is not looked at: without PM the device simply stays awake.
    yield* setPowerState(dev, dev.pmCap === 0 ? D0 : D3HOT);
    return undefined;
  }

  /** pci_pm_runtime_resume. */
  *#resumeDevice(): Step<Errno | undefined> {
    const dev = this.#dev;
    const injected = this.failNextResume;
    if (injected !== undefined) {
      this.failNextResume = undefined;
      return injected;
    }
    yield* powerUpAndWait(dev);
    updateCurrentState(dev, D0);
    dev.restoreState();
    if (dev.driver?.runtimeResume === undefined) return undefined;
    return yield* dev.driver.runtimeResume(dev);
  }
}
