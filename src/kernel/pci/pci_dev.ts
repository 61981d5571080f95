/**
 * A function as the kernel knows it: struct pci_dev.
 *
 * It joins the hardware (`fn`, its config space and BARs) with what the kernel
 * keeps about it: assigned resources, the cached power state, the saved
 * config space, the driver, interrupts, reset methods. The methods here are
 * the kernel's calls by their names; what is longer than a register access
 * lives in a module of its own (power, reset, save_state, irq, iov …).
 *
 * Locks: `lock` is the device lock (bind, unbind, reset); outermost of all
 * that this layer takes. `blockCfgAccess` keeps user space out of config space
 * during a reset, as pci_cfg_access_lock does.
 *
 * Source: include/linux/pci.h, drivers/pci/pci.c.
 */
import { EBUSY, EINVAL, EIO, type Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";
import {
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_INTERRUPT_PIN,
  PCI_STATUS_INTERRUPT,
} from "../../uapi/pci_regs.ts";
import { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import type { PciBus } from "./bus.ts";
import type { PciDriver } from "./driver.ts";
import type { PciFunction } from "./function.ts";
import type { PciIov } from "./iov.ts";
import { type IrqHandler, type IrqKind, PciIrqs } from "./irq.ts";
import type { P2pdma } from "./p2pdma.ts";
import type { PciModel } from "./pci_model.ts";
import { D0, powerUpNow, setPowerState, updateCurrentState } from "./power.ts";
import {
  initialResetMethods,
  probeResetBus,
  probeResetSlot,
  type ResetMethod,
  rawResetFunctionLocked,
  resetBus,
  resetFunction,
  resetFunctionLocked,
  tryResetFunction,
} from "./reset.ts";
import type { PciResource } from "./resource.ts";
import { RuntimePm } from "./runtime_pm.ts";
import { loadSavedState, type PciSavedState, restoreState, SavedConfig, saveState, storeSavedState } from "./save_state.ts";

export type { PciSavedState } from "./save_state.ts";

const DEVICE_LOCK = new LockClass("device_lock");

export class PciDev extends Device {
  readonly kernel: Kernel;
  readonly model: PciModel;
  /** The hardware. */
  readonly fn: PciFunction;
  readonly pciBus: PciBus;
  /** device << 3 | function. */
  readonly devfn: number;
  readonly multifunction: boolean;
  /** The bus below, of a bridge. */
  subordinate: PciBus | undefined = undefined;
  /** BARs 0 … 5 and the ROM as 6; `length` 0 where there is none. */
  readonly resources: readonly PciResource[];
  /** Cached PM state: 0 … 3, 4 is D3cold. */
  currentState: number = D0;
  /** Surprise removal was noticed: config space is not touched any more. */
  disconnected = false;
  /** No longer on its bus. */
  removed = false;
  driver: PciDriver | undefined = undefined;
  /** The driver's own. */
  driverData: unknown = undefined;
  /** Name of the only driver that may take it. */
  driverOverride: string | undefined = undefined;
  readonly isVirtfn: boolean;
  /** The PF of a VF. */
  readonly physfn: PciDev | undefined;
  /** COMMAND.MEMORY does not exist: memory decodes whenever the PF lets it (VFs). */
  readonly noCommandMemory: boolean;
  /** SR-IOV of a PF. */
  iov: PciIov | undefined = undefined;
  p2pdma: P2pdma | undefined = undefined;
  nonMappableBars: boolean;
  /** Discovered when its bus was still empty. */
  readonly firstOnBus: boolean;
  /** The slot can reset by itself (a hotplug port above). */
  readonly hasResetSlot: boolean;
  readonly pm: RuntimePm;
  readonly irqs: PciIrqs;
  readonly lock: Mutex;
  /** User space's config accesses wait; see `userConfigRead`. */
  blockCfgAccess = false;
  readonly saved: SavedConfig = new SavedConfig();
  isBusmaster = false;
  /** Reasons to keep memory decode off in the hardware. */
  #decodeFences = 0;
  /** What software wants of COMMAND.MEMORY meanwhile. */
  #decodeWish = 0;
  #enableCount = 0;
  #resetMethods: readonly ResetMethod[] | undefined = undefined;
  /** Who reserved each BAR. */
  readonly #regionOwners: (string | undefined)[] = [];
  #cfgWait: WaitQueue | undefined = undefined;

  constructor(init: {
    kernel: Kernel;
    name: string;
    rid: number;
    bus: PciBus;
    fn: PciFunction;
    multifunction: boolean;
    resources: readonly PciResource[];
    hasResetSlot: boolean;
    physfn?: PciDev | undefined;
  }) {
    super(init.name, "pci", init.rid);
    this.kernel = init.kernel;
    this.fn = init.fn;
    this.model = init.fn.model;
    this.pciBus = init.bus;
    this.devfn = init.rid & 0xff;
    this.multifunction = init.multifunction;
    this.resources = init.resources;
    this.firstOnBus = init.bus.devices.length === 0;
    this.hasResetSlot = init.hasResetSlot;
    this.physfn = init.physfn;
    this.isVirtfn = init.physfn !== undefined;
    this.noCommandMemory = this.isVirtfn;
    this.nonMappableBars = init.fn.template.description.nonMappableBars === true;
    this.lock = new Mutex(init.kernel.sched, DEVICE_LOCK);
    this.pm = new RuntimePm(this);
    this.irqs = new PciIrqs(this);
  }

  // ---- identity -------------------------------------------------------------

  get bdf(): string {
    return this.name;
  }
  get vendor(): number {
    return this.physfn?.vendor ?? this.fn.template.description.vendor;
  }
  get device(): number {
    return this.fn.template.description.device;
  }
  get subsystemVendor(): number {
    return this.fn.template.description.subsystemVendor ?? 0;
  }
  get subsystemDevice(): number {
    return this.fn.template.description.subsystemDevice ?? 0;
  }
  /** 24 bits. */
  get class(): number {
    return this.fn.template.description.class;
  }
  get revision(): number {
    return this.fn.template.description.revision ?? 0;
  }
  /** Bytes of config space: 256, or 4096 with a PCIe capability. */
  get cfgSize(): number {
    return this.fn.template.bytes.length;
  }
  get isPcie(): boolean {
    return this.fn.template.pcieCap !== 0;
  }
  get isBridge(): boolean {
    return this.fn.template.headerType === 1;
  }
  /** Offset of the PM capability, 0 for none; likewise the others. */
  get pmCap(): number {
    return this.fn.template.pmCap;
  }
  get msiCap(): number {
    return this.fn.template.msiCap;
  }
  get msixCap(): number {
    return this.fn.template.msixCap;
  }
  get pcieCap(): number {
    return this.fn.template.pcieCap;
  }
  get acsCap(): number {
    return this.fn.template.acsCap;
  }
  /** The bridge above; undefined on a root bus. For a VF its PF's. */
  get upstreamBridge(): PciDev | undefined {
    return this.pciBus.self;
  }

  // ---- config space ---------------------------------------------------------

  /** Little endian, unsigned. All ones when nothing answers. */
  configRead(off: number, size: 1 | 2 | 4): number {
    if (this.disconnected) return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
    const v = this.fn.configRead(off, size);
    return this.#decodeFences > 0 && off === PCI_COMMAND ? (v | this.#decodeWish) >>> 0 : v;
  }

  configWrite(off: number, size: 1 | 2 | 4, value: number): void {
    if (this.disconnected) return;
    let v = value;
    if (this.#decodeFences > 0 && off === PCI_COMMAND) {
      this.#decodeWish = v & PCI_COMMAND_MEMORY;
      v &= ~PCI_COMMAND_MEMORY;
    }
    this.fn.configWrite(off, size, v);
  }

  /**
   * Turns memory decode off and keeps it off until `unfenceDecode`, whoever writes
   * COMMAND: a driver, its user, a state that is restored, the driver after it.
   * All of them read back what they wrote. Counted. Not for a VF, which has no
   * decode of its own.
   */
  fenceDecode(): void {
    bugOn(this.noCommandMemory, `${this.name} has no memory decode to be turned off`);
    if (this.#decodeFences === 0) {
      const command = this.configRead(PCI_COMMAND, 2);
      this.#decodeWish = command & PCI_COMMAND_MEMORY;
      this.configWrite(PCI_COMMAND, 2, command & ~PCI_COMMAND_MEMORY);
    }
    this.#decodeFences++;
  }

  /** Undoes one `fenceDecode`; with the last, what software has written holds. */
  unfenceDecode(): void {
    bugOn(this.#decodeFences === 0, `${this.name}: memory decode is let go of that nobody keeps off`);
    const command = this.configRead(PCI_COMMAND, 2);
    if (--this.#decodeFences === 0) this.configWrite(PCI_COMMAND, 2, command);
  }

  /** Memory decode is kept off. */
  get decodeFenced(): boolean {
    return this.#decodeFences > 0;
  }

  /** pci_user_read_config_*: waits while a reset keeps config space closed. */
  *userConfigRead(off: number, size: 1 | 2 | 4): Step<number> {
    if (this.blockCfgAccess) yield* this.#waitCfg();
    return this.configRead(off, size);
  }

  *userConfigWrite(off: number, size: 1 | 2 | 4, value: number): Step<void> {
    if (this.blockCfgAccess) yield* this.#waitCfg();
    this.configWrite(off, size, value);
  }

  /** Offset of a capability; 0 when absent. */
  findCap(id: number): number {
    return this.fn.template.caps.get(id) ?? 0;
  }

  findExtCap(id: number): number {
    return this.fn.template.extCaps.get(id) ?? 0;
  }

  // ---- device and config access lock ------------------------------------------

  /** pci_dev_lock: device lock and config access. */
  *devLock(): Step<void> {
    yield* this.lock.lock(true);
    if (this.blockCfgAccess) yield* this.#waitCfg();
    this.blockCfgAccess = true;
  }

  /** pci_dev_trylock. */
  *devTryLock(): Step<boolean> {
    if (!(yield* this.lock.tryLock())) return false;
    if (!this.blockCfgAccess) {
      this.blockCfgAccess = true;
      return true;
    }
    this.lock.unlock();
    return false;
  }

  devUnlock(): void {
    if (!this.blockCfgAccess) throw new KernelBug(`${this.name}: config access unlocked twice`);
    this.cfgAccessUnlock();
    this.lock.unlock();
  }

  /** pci_cfg_access_lock alone. */
  *cfgAccessLock(): Step<void> {
    if (this.blockCfgAccess) yield* this.#waitCfg();
    this.blockCfgAccess = true;
  }

  cfgAccessUnlock(): void {
    this.blockCfgAccess = false;
    this.#cfgWait?.wakeUp();
  }

  *#waitCfg(): Step<void> {
    this.#cfgWait ??= new WaitQueue(this.kernel.sched, "pci_cfg_wait");
    yield* this.#cfgWait.waitEvent(() => !this.blockCfgAccess);
  }

  // ---- power --------------------------------------------------------------------

  /** D0 … D3hot, 4 = D3cold. EIO: no PM capability or no answer; EINVAL: from deep to less deep but D0. */
  setPowerState(state: number): Step<Errno | undefined> {
    return setPowerState(this, state);
  }

  /** pm_runtime_resume_and_get: 0, or the errno, and then without a reference. */
  pmRuntimeResumeAndGet(): Step<number | Errno> {
    return this.pm.resumeAndGet();
  }

  /** pm_runtime_put: the last reference lets the device suspend, in a worker. */
  pmRuntimePut(): void {
    this.pm.put();
  }

  pmRuntimeGetNoresume(): void {
    this.pm.getNoresume();
  }

  /** pm_runtime_resume: wakes it if it sleeps, without a reference. */
  pmRuntimeResume(): Step<Errno | undefined> {
    return this.pm.resume();
  }

  // ---- enabling -------------------------------------------------------------------

  /**
   * pci_enable_device: D0, COMMAND decode bits for the resources it has, the
   * bridges above likewise and as bus masters. Counted. Never sleeps: a device
   * found in D3hot is woken without the settling time.
   */
  enable(): Errno | undefined {
    updateCurrentState(this, this.currentState);
    if (++this.#enableCount > 1) return undefined;
    this.upstreamBridge?.enableAsBridge();
    const failed = this.#doEnable();
    if (failed !== undefined) this.#enableCount--;
    return failed;
  }

  /** pci_disable_device: the last one ends bus mastering; decoding stays on. */
  disable(): void {
    if (this.#enableCount <= 0) throw new KernelBug(`${this.name}: disabling an already disabled device`);
    if (--this.#enableCount !== 0) return;
    this.setMaster(false);
  }

  get enabled(): boolean {
    return this.#enableCount > 0;
  }

  /** pci_enable_bridge. */
  enableAsBridge(): void {
    if (!this.enabled) {
      this.enable();
    } else this.upstreamBridge?.enableAsBridge();
    if (!this.isBusmaster) this.setMaster(true);
  }

  #doEnable(): Errno | undefined {
    const woken = powerUpNow(this);
    if (woken !== undefined && woken !== EIO) return woken;
    let want = 0;
    for (const r of this.resources) {
      if (r.length === 0n || (r.flags.rom && !r.flags.enabled)) continue;
      if (r.start === 0n) return EINVAL;
      if (r.flags.io) want |= PCI_COMMAND_IO;
      if (r.flags.mem) want |= PCI_COMMAND_MEMORY;
    }
    if (this.isBridge) want |= PCI_COMMAND_MEMORY | PCI_COMMAND_IO;
    const old = this.configRead(PCI_COMMAND, 2);
    let cmd = old | want;
    if (!this.irqs.messageSignalled && this.configRead(PCI_INTERRUPT_PIN, 1) !== 0) cmd &= ~PCI_COMMAND_INTX_DISABLE;
    if (cmd !== old) this.configWrite(PCI_COMMAND, 2, cmd);
    return undefined;
  }

  /** pci_set_master, pci_clear_master. */
  setMaster(on: boolean): void {
    const old = this.configRead(PCI_COMMAND, 2);
    const cmd = on ? old | PCI_COMMAND_MASTER : old & ~PCI_COMMAND_MASTER;
    if (cmd !== old) this.configWrite(PCI_COMMAND, 2, cmd);
    this.isBusmaster = on;
  }

  /** pci_intx: INTx messages on or off at the function. */
  intx(on: boolean): void {
    const old = this.configRead(PCI_COMMAND, 2);
    const cmd = on ? old & ~PCI_COMMAND_INTX_DISABLE : old | PCI_COMMAND_INTX_DISABLE;
    if (cmd !== old) this.configWrite(PCI_COMMAND, 2, cmd);
  }

  /** pci_intx_mask_supported: whether COMMAND.INTX_DISABLE can be toggled. */
  get intxMaskSupported(): boolean {
    const old = this.configRead(PCI_COMMAND, 2);
    this.configWrite(PCI_COMMAND, 2, old ^ PCI_COMMAND_INTX_DISABLE);
    const now = this.configRead(PCI_COMMAND, 2);
    if (((old ^ now) & PCI_COMMAND_INTX_DISABLE) === 0) return false;
    this.configWrite(PCI_COMMAND, 2, old);
    return true;
  }

  /** pci_check_and_mask_intx: masks when the device does interrupt; whether it did. */
  checkAndMaskIntx(): boolean {
    return this.#checkAndSetIntxMask(true);
  }

  /** pci_check_and_unmask_intx: unmasks unless an interrupt is pending; whether it did. */
  checkAndUnmaskIntx(): boolean {
    return this.#checkAndSetIntxMask(false);
  }

  #checkAndSetIntxMask(mask: boolean): boolean {
    const both = this.configRead(PCI_COMMAND, 4);
    const pending = ((both >>> 16) & PCI_STATUS_INTERRUPT) !== 0;
    if (mask !== pending) return false;
    const old = both & 0xffff;
    const cmd = mask ? old | PCI_COMMAND_INTX_DISABLE : old & ~PCI_COMMAND_INTX_DISABLE;
    if (cmd !== old) this.configWrite(PCI_COMMAND, 2, cmd);
    return true;
  }

  // ---- BARs -------------------------------------------------------------------------

  /** pci_request_region: EBUSY when somebody has it, EINVAL past the ROM; an absent BAR is granted. */
  requestRegion(bar: number, who: string): Errno | undefined {
    const r = this.resources[bar];
    if (r === undefined) return EINVAL;
    if (r.length === 0n) return undefined;
    if (this.#regionOwners[bar] !== undefined) return EBUSY;
    this.#regionOwners[bar] = who;
    return undefined;
  }

  releaseRegion(bar: number): void {
    const r = this.resources[bar];
    if (r === undefined || r.length === 0n) return;
    if (this.#regionOwners[bar] === undefined) throw new KernelBug(`${this.name}: BAR ${bar} released but not reserved`);
    this.#regionOwners[bar] = undefined;
  }

  /** Who reserved it. */
  regionOwner(bar: number): string | undefined {
    return this.#regionOwners[bar];
  }

  /** A CPU access to the BAR; false, with all ones in `dst`, when the function does not decode it. */
  barRead(bar: number, offset: number, dst: Uint8Array): boolean {
    return this.fn.barRead(bar, offset, dst);
  }

  /** False: nobody took it. */
  barWrite(bar: number, offset: number, src: Uint8Array): boolean {
    return this.fn.barWrite(bar, offset, src);
  }

  // ---- saved state --------------------------------------------------------------------

  saveState(): void {
    saveState(this);
  }
  restoreState(): void {
    restoreState(this);
  }
  /** A copy of the saved state; undefined when none is saved. */
  storeSavedState(): PciSavedState | undefined {
    return storeSavedState(this);
  }
  loadSavedState(state: PciSavedState | undefined): void {
    loadSavedState(this, state);
  }

  // ---- reset ----------------------------------------------------------------------------

  /** pci_reset_supported. */
  get resetFunctionSupported(): boolean {
    return this.resetMethods.length > 0;
  }
  /** Reset methods in the order they are tried: those found when it was discovered, or what was set (empty: it cannot be reset). */
  get resetMethods(): readonly ResetMethod[] {
    this.#resetMethods ??= initialResetMethods(this);
    return this.#resetMethods;
  }
  set resetMethods(names: readonly ResetMethod[]) {
    this.#resetMethods = names;
  }
  /** pci_try_reset_function: ENOTTY: no method, EAGAIN: locked, or what the method answered. */
  tryResetFunction(): Step<Errno | undefined> {
    return tryResetFunction(this);
  }
  /** pci_reset_function: waits for the locks of the bridge and of the device. */
  resetFunction(): Step<Errno | undefined> {
    return resetFunction(this);
  }
  /** pci_reset_function_locked: device lock held; saves and restores. */
  resetFunctionLocked(): Step<Errno | undefined> {
    return resetFunctionLocked(this);
  }
  /** __pci_reset_function_locked: device lock held; neither saves nor restores. */
  rawResetFunctionLocked(): Step<Errno | undefined> {
    return rawResetFunctionLocked(this);
  }
  /** pci_probe_reset_slot of its slot: undefined, or ENOTTY. */
  *probeResetSlot(): Step<Errno | undefined> {
    return probeResetSlot(this);
  }
  /** pci_probe_reset_bus of its bus: undefined, or ENOTTY. */
  *probeResetBus(): Step<Errno | undefined> {
    return probeResetBus(this.pciBus);
  }
  /** pci_reset_bus: its slot or bus with all that is on it; EAGAIN when a device is locked, ENOTTY when it does not come back. */
  resetBus(): Step<Errno | undefined> {
    return resetBus(this);
  }

  // ---- interrupts -------------------------------------------------------------------------

  /** Vectors granted, at most `n`; ENOSPC when fewer than `min`. */
  allocIrqVectors(kind: IrqKind, n: number, min = 1): number | Errno {
    return this.irqs.alloc(kind, n, min);
  }
  freeIrqVectors(): void {
    this.irqs.free();
  }
  /** EINVAL: no such vector; EBUSY: it has a handler. */
  requestIrq(vector: number, handler: IrqHandler): Errno | undefined {
    return this.irqs.request(vector, handler);
  }
  freeIrq(vector: number): void {
    this.irqs.release(vector);
  }

  // ---- SR-IOV -----------------------------------------------------------------------------

  /** VFs enabled now. */
  get numVf(): number {
    return this.iov?.numVfs ?? 0;
  }
  get isPhysfn(): boolean {
    return this.iov !== undefined;
  }
}
