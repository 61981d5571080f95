/**
 * The PCI subsystem of one machine: its buses, functions and drivers.
 *
 * `build` makes the machine's functions from a topology, as boot firmware and
 * the kernel's scan together would leave them: numbered, with addresses in
 * their BARs, decoding, ACS enabled where ports have it, no bus mastering. Drivers are
 * registered later and bound by name, by id, or all at once.
 *
 * Source: drivers/pci/{probe,remove,search}.c; the work is in topology.ts,
 * driver.ts and iov.ts.
 */
import { EBUSY, EEXIST, ENODEV, ENOENT, ERANGE, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { Kernel } from "../kernel.ts";
import { PciBus } from "./bus.ts";
import { bindDriver, driverMatches, dropDynamicId, dynamicIds, type PciDeviceId, type PciDriver, takesId, unbindDriver } from "./driver.ts";
import { PciFunction } from "./function.ts";
import { joinIommuGroup } from "./groups.ts";
import { disableSriov, PciIov } from "./iov.ts";
import { PciDev } from "./pci_dev.ts";
import { PciPortModel, type PciTopology, type PlannedFunction, planTopology } from "./topology.ts";

export interface AcsPolicy {
  readonly enable: boolean;
  readonly disableRedirect: ReadonlySet<string>;
}

export class PciSubsystem {
  readonly kernel: Kernel;
  /** By bdf, in order of discovery. */
  readonly devices: Map<string, PciDev> = new Map();
  /** Undefined before `build`. */
  rootBus: PciBus | undefined = undefined;
  /** The processor routes peer traffic between root ports (AMD Zen and later). */
  cpuSupportsP2pdma = false;
  /** What the kernel does with ACS; see `PciTopology`. */
  acsPolicy: AcsPolicy = { enable: true, disableRedirect: new Set() };
  /** Grows with everything that changes what there is and what drives it: whoever shows that looks here for news. */
  generation = 0;
  readonly #drivers: Map<string, PciDriver> = new Map();
  readonly #byRid: Map<number, PciDev> = new Map();

  constructor(kernel: Kernel) {
    this.kernel = kernel;
  }

  /** Makes the functions of the machine. Once, at boot. RangeError, naming the node, when the topology cannot be. */
  build(topology: PciTopology): void {
    if (this.rootBus !== undefined) throw new TypeError("this machine's PCI topology is already built");
    const plan = planTopology(topology);
    this.cpuSupportsP2pdma = topology.cpuSupportsP2pdma === true;
    this.acsPolicy = { enable: topology.enableAcs !== false, disableRedirect: new Set(topology.disableAcsRedirect ?? []) };
    const root = new PciBus(0, undefined, []);
    this.rootBus = root;
    const made: PciDev[] = [];
    for (const p of plan.functions) made.push(this.#make(p, root, made));
  }

  #make(p: PlannedFunction, root: PciBus, made: readonly PciDev[]): PciDev {
    const parent = p.parent < 0 ? undefined : made[p.parent];
    const bus = parent?.subordinate ?? root;
    const model = p.makeModel === undefined ? new PciPortModel(p.template.description) : p.makeModel();
    if (model.description !== p.template.description) {
      throw new TypeError(`${p.name}: every model of one topology node must have the same description object`);
    }
    const fn = new PciFunction(this.kernel, model, p.template, p.boot, parent?.fn, p.name);
    const dev = new PciDev({
      kernel: this.kernel,
      name: p.name,
      rid: p.rid,
      bus,
      fn,
      multifunction: p.multifunction,
      resources: p.resources,
      hasResetSlot: p.hasResetSlot,
    });
    if (p.secondary >= 0) dev.subordinate = new PciBus(p.secondary, dev, p.windows);
    const sriov = p.template.description.extended?.sriov;
    if (sriov !== undefined && p.vfResources !== undefined) dev.iov = new PciIov(dev, sriov, p.vfResources);
    this.add(dev);
    return dev;
  }

  /** Puts a function on its bus and into its IOMMU group. */
  add(dev: PciDev): void {
    this.generation++;
    dev.fn.owner = dev;
    dev.pciBus.devices.push(dev);
    this.devices.set(dev.name, dev);
    this.#byRid.set(dev.rid, dev);
    joinIommuGroup(dev);
    dev.fn.attachModel();
    dev.fn.updateDecode();
  }

  /** Takes a function off its bus; its driver is gone already. */
  drop(dev: PciDev): void {
    this.generation++;
    dev.removed = true;
    dev.fn.unplug();
    const list = dev.pciBus.devices;
    list.splice(list.indexOf(dev), 1);
    this.devices.delete(dev.name);
    this.#byRid.delete(dev.rid);
    this.kernel.iommu.removeDevice(dev);
  }

  byRid(rid: number): PciDev | undefined {
    return this.#byRid.get(rid);
  }

  // ---- drivers ----------------------------------------------------------------

  /** Makes the driver known; devices that match and have none are bound by `probeAll`. */
  registerDriver(driver: PciDriver): void {
    if (this.#drivers.has(driver.name)) throw new TypeError(`a driver named ${driver.name} is already registered`);
    this.generation++;
    this.#drivers.set(driver.name, driver);
  }

  /** In order of registration. */
  get drivers(): Iterable<PciDriver> {
    return this.#drivers.values();
  }

  driver(name: string): PciDriver | undefined {
    return this.#drivers.get(name);
  }

  /** Tries every registered driver on every device without one, in order; a failing probe leaves the device alone. */
  *probeAll(): Step<void> {
    for (const dev of [...this.devices.values()]) yield* this.probe(dev);
  }

  /** The same for one device (device_attach). */
  *probe(dev: PciDev): Step<void> {
    for (const driver of [...this.#drivers.values()]) {
      if (dev.driver !== undefined) break;
      if (driverMatches(driver, dev)) yield* bindDriver(dev, driver);
    }
  }

  /**
   * A write to new_id: the driver takes `id` too from now on, and all that matches it and has no driver. EEXIST: it takes such a device already.
   * Its devices stay bound when the id is removed.
   */
  *addDynamicId(driver: PciDriver, id: PciDeviceId & { readonly vendor: number; readonly device: number }): Step<Errno | undefined> {
    if (takesId(driver, id)) return EEXIST;
    dynamicIds(driver).push(id);
    for (const dev of [...this.devices.values()]) {
      if (dev.driver === undefined && driverMatches(driver, dev)) yield* bindDriver(dev, driver);
    }
    return undefined;
  }

  /** A write to remove_id. ENODEV: no such id was added. */
  removeDynamicId(driver: PciDriver, id: PciDeviceId): Errno | undefined {
    return dropDynamicId(driver, id) ? undefined : ENODEV;
  }

  /** Binds the named driver (or the object) to the device at `bdf`, as a write to the driver's `bind` does. */
  *bind(driver: PciDriver | string, bdf: string): Step<Errno | undefined> {
    const dev = this.devices.get(bdf);
    const d = typeof driver === "string" ? this.#drivers.get(driver) : driver;
    if (dev === undefined || d === undefined) return ENODEV;
    return yield* bindDriver(dev, d);
  }

  /** ENODEV: no such device, or no driver has it. */
  *unbind(bdf: string): Step<Errno | undefined> {
    const dev = this.devices.get(bdf);
    return dev === undefined ? ENODEV : yield* unbindDriver(dev);
  }

  /** Hot-unplug: the driver is unbound (its `remove` may wait), then the function is gone, and all below it first. */
  *removeDevice(bdf: string): Step<void> {
    const dev = this.devices.get(bdf);
    if (dev === undefined) return;
    const below = dev.subordinate;
    if (below !== undefined) for (const child of [...below.devices].reverse()) yield* this.removeDevice(child.name);
    yield* unbindDriver(dev);
    if (dev.numVf > 0) yield* disableSriov(dev);
    if (dev.removed) return;
    this.drop(dev);
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "pci.remove", device: dev.name });
  }

  /** The card is pulled out: nothing answers from now on, and the kernel knows. The driver is still bound. */
  surpriseRemove(bdf: string): void {
    const dev = this.devices.get(bdf);
    if (dev === undefined) return;
    const gone = dev.subordinate === undefined ? [dev] : [dev, ...dev.subordinate.subtree()];
    for (const d of gone) {
      d.disconnected = true;
      d.fn.unplug();
    }
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "pci.surprise_remove", device: bdf });
  }

  // ---- SR-IOV -----------------------------------------------------------------------

  /**
   * A write to sriov_numvfs: the driver makes `n` VFs, or takes all away. ENODEV: no such PF; ERANGE: more than it has;
   * ENOENT: no driver that can; EBUSY: some are enabled already; or what the driver answered.
   */
  *setNumVfs(bdf: string, n: number): Step<Errno | undefined> {
    const dev = this.devices.get(bdf);
    if (dev?.iov === undefined) return ENODEV;
    if (n > dev.iov.capability.totalVfs) return ERANGE;
    yield* dev.lock.lock(true);
    try {
      if (n === dev.numVf) return undefined;
      const configure = dev.driver?.sriovConfigure;
      if (dev.driver === undefined || configure === undefined) return ENOENT;
      if (n > 0 && dev.numVf > 0) return EBUSY;
      const done = yield* configure.call(dev.driver, dev, n);
      return done instanceof Errno ? done : undefined;
    } finally {
      dev.lock.unlock();
    }
  }
}
