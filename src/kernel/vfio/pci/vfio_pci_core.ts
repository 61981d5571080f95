/**
 * A PCI function in a user's hands: the state that the parts of vfio-pci share.
 *
 * `memoryLock` (ML) guards "may memory be reached": held for writing by
 * everything that turns decode or power off or on, which then also revokes or
 * restores the dma-bufs; for reading by BAR accesses and faults. `igate`
 * guards interrupt setup.
 *
 * Lock order: dev_set->lock → igate → ML → reservation; ioeventfdsLock → ML.
 * The rest stands in modules named after what they do; `low_power.ts`,
 * `hot_reset.ts` and `enable.ts` hold what vfio_pci_core.c holds too.
 * Source: drivers/vfio/pci/vfio_pci_core.c.
 */

import type { PhysAddr } from "../../../lib/addr.ts";
import { EBUSY, EINVAL, ENODEV, type Errno } from "../../../lib/errno.ts";
import { LockClass } from "../../../sched/lockdep.ts";
import { Mutex, RwSem } from "../../../sched/locks.ts";
import type { Step } from "../../../sched/task.ts";
import { PCI_COMMAND, PCI_COMMAND_MEMORY } from "../../../uapi/pci_regs.ts";
import type { EventfdCtx } from "../../fs/eventfd.ts";
import type { Kernel } from "../../kernel.ts";
import { zapVmaRange } from "../../mm/vma.ts";
import type { P2pdmaProvider } from "../../pci/p2pdma.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import type { PciSavedState } from "../../pci/save_state.ts";
import { VfioDevice, type VfioDeviceOps } from "../vfio_main.ts";
import type { PermBits } from "./config_perms.ts";
import type { IoEventfd } from "./ioeventfd.ts";
import type { VfToken } from "./vf_token.ts";
import type { VfioPciDmaBuf } from "./vfio_pci_dmabuf.ts";
import type { IrqCtx } from "./vfio_pci_intrs.ts";

const MEMORY_LOCK: LockClass = new LockClass("vfio vdev->memory_lock");
const IGATE: LockClass = new LockClass("vfio vdev->igate");
const IOEVENTFDS_LOCK: LockClass = new LockClass("vfio vdev->ioeventfds_lock");

export const PCI_D0 = 0;
export const PCI_D3HOT = 3;
export const PCI_STD_NUM_BARS = 6;
export const PCI_ROM_RESOURCE = 6;
/** A file offset is (region + base) << 40 | offset in the region. */
const REGION_SHIFT = 40n;
export const REGION_MASK: bigint = (1n << REGION_SHIFT) - 1n;
/** `msixBar` of a function without MSI-X. */
export const NO_MSIX_BAR = 0xff;
/** `irqType` while no interrupt is set up. */
export const IRQ_TYPE_NONE = -1;

/** One range of a BAR, as an export names it. */
export interface DmaBufRange {
  /** From the start of the region, bytes. */
  readonly offset: bigint;
  readonly length: bigint;
}

/** A run of physical addresses. */
export interface DmaBufPhys {
  readonly provider: P2pdmaProvider;
  readonly phys: { paddr: PhysAddr; len: bigint }[];
}

/** Where variant drivers differ from plain vfio-pci. */
export interface VfioPciOps {
  /** Absent: the driver exports nothing (EOPNOTSUPP). */
  getDmabufPhys?(vdev: VfioPciCoreDevice, region: number, ranges: readonly DmaBufRange[]): DmaBufPhys | Errno;
}

/** ML: tells `released` each time a writer has let go, when what it guards may have changed. */
class MemoryLock extends RwSem {
  released: (() => void) | undefined = undefined;

  override upWrite(): void {
    super.upWrite();
    this.released?.();
  }
}

export class VfioPciCoreDevice {
  readonly kernel: Kernel;
  readonly pdev: PciDev;
  readonly vdev: VfioDevice;
  readonly pciOps: VfioPciOps;
  readonly memoryLock: MemoryLock;
  /** The number that stands for region 0 in file offsets. */
  readonly #regionBase: bigint;
  readonly igate: Mutex;
  readonly ioeventfdsLock: Mutex;
  /** Live exports; ML(W) to change. */
  readonly dmabufs: VfioPciDmaBuf[] = [];
  /** Per BAR, while open: undefined once reserved and mapped, else why not. */
  readonly barmap: (Errno | undefined)[] = new Array(PCI_STD_NUM_BARS).fill(ENODEV);
  readonly barMmapSupported: boolean[] = new Array(PCI_STD_NUM_BARS).fill(false);

  /** Virtual config space and, per byte, the capability that owns it; empty while closed. */
  vconfig: Uint8Array = new Uint8Array(0);
  configMap: Uint8Array = new Uint8Array(0);
  extendedCaps = false;
  bardirty = false;
  /** BARs 0–5 and ROM as they were at open, to put back after a reset behind our back. */
  readonly rbar: Uint32Array = new Uint32Array(7);
  msiPerm: PermBits | undefined = undefined;
  msiQmax = 0;
  /** BAR of the MSI-X table, and the table's bytes in that BAR. */
  msixBar: number = NO_MSIX_BAR;
  msixOffset = 0;
  msixSize = 0;

  /** VFIO_PCI_*_IRQ_INDEX, or `IRQ_TYPE_NONE`; igate. */
  irqType: number = IRQ_TYPE_NONE;
  /** Per vector; igate. */
  readonly irqCtx: Map<number, IrqCtx> = new Map();
  /** DisINTx as the user sees it. */
  virqDisabled = false;
  /** Fault injection: what a user's config access fails with, before it reaches the function. */
  configFault: ((pos: number, isWrite: boolean) => Errno | undefined) | undefined = undefined;
  /** INTx can be masked in COMMAND (PCI 2.3). */
  pci23 = true;
  errTrigger: EventfdCtx | undefined = undefined;
  reqTrigger: EventfdCtx | undefined = undefined;
  readonly ioeventfds: IoEventfd[] = [];

  /** A function reset answered 0 at open. */
  resetWorks = false;
  /** Closed without a reset; dev_set->lock. */
  needsReset = false;
  savedState: PciSavedState | undefined = undefined;
  /** D3hot loses the config space (No_Soft_Reset clear). */
  needsPmRestore = false;
  pmSave: PciSavedState | undefined = undefined;
  /** The user asked for low power; ML. */
  pmRuntimeEngaged = false;
  /** Told when the device wakes by itself; ML. */
  pmWakeEventfd: EventfdCtx | undefined = undefined;
  pmIntxMasked = false;
  /** Revokes under way that have let go of ML to wait; ML(W) to change. */
  revoking = 0;
  /** Buffers with a mapping in the hands of an importer that did not let go and that only this device can keep out; RESV. */
  readonly fenced: Set<VfioPciDmaBuf> = new Set();
  /** Module parameters, as they were when it was bound. */
  disableIdleD3 = false;
  nointxmask = false;
  mapRegisters = true;
  /** Enabling VFs goes through this driver. */
  sriovConfigured = false;
  /** VFs are enabled: the function must stay in D0; ML(W) to set. */
  sriovActive = false;
  /** A physical function's token, and the physical function of a virtual one. */
  vfToken: VfToken | undefined = undefined;
  sriovPf: VfioPciCoreDevice | undefined = undefined;

  constructor(kernel: Kernel, pdev: PciDev, makeOps: (vdev: VfioPciCoreDevice) => VfioDeviceOps, pciOps: VfioPciOps, regionOffsetBase = 0) {
    this.kernel = kernel;
    this.pdev = pdev;
    this.pciOps = pciOps;
    this.#regionBase = BigInt(regionOffsetBase);
    this.memoryLock = new MemoryLock(kernel.sched, MEMORY_LOCK);
    this.igate = new Mutex(kernel.sched, IGATE);
    this.ioeventfdsLock = new Mutex(kernel.sched, IOEVENTFDS_LOCK);
    this.vdev = new VfioDevice(kernel, pdev, makeOps(this));
  }

  /**
   * May memory be reached? Power above D3hot and the virtual COMMAND.MEMORY
   * set; functions without that bit (VFs) count as set. It says nothing of
   * `pmRuntimeEngaged`, as in Linux. ML held.
   */
  memoryEnabled(): boolean {
    if (this.pdev.currentState >= PCI_D3HOT) return false;
    return this.pdev.noCommandMemory || ((this.vconfig[PCI_COMMAND] ?? 0) & PCI_COMMAND_MEMORY) !== 0;
  }

  /** Undefined when the BAR was reserved and mapped at open, else the reason it was not. */
  iomapBar(bar: number): Errno | undefined {
    if (bar < 0 || bar >= PCI_STD_NUM_BARS) return EINVAL;
    return this.barmap[bar];
  }

  /** Where a region begins in the device file. */
  regionOffset(index: number): bigint {
    return (BigInt(index) + this.#regionBase) << REGION_SHIFT;
  }

  /** The region that a file offset lies in; may be one that does not exist, or negative. */
  regionAt(offset: bigint): number {
    return Number((offset >> REGION_SHIFT) - this.#regionBase);
  }

  /** A touch of a BAR's page is served; otherwise it is a SIGBUS. ML held. */
  barsReachable(): boolean {
    if (this.pmRuntimeEngaged || this.revoking > 0 || !this.memoryEnabled()) return false;
    return this.kernel.interconnect === "linux-7.3" || (this.fenced.size === 0 && this.#decodes());
  }

  /** The user's own COMMAND.MEMORY, which a VF has only here. */
  #decodes(): boolean {
    return ((this.vconfig[PCI_COMMAND] ?? 0) & PCI_COMMAND_MEMORY) !== 0;
  }

  /** Takes every BAR page out of every mapping: the next touch faults. */
  zapBars(): void {
    zapVmaRange(this.vdev.mapping, this.regionOffset(0), BigInt(PCI_STD_NUM_BARS) << REGION_SHIFT);
  }

  *zapAndDownWriteMemoryLock(): Step<void> {
    yield* this.memoryLock.downWrite();
    this.zapBars();
  }

  /** Turns decode on for the kernel's own access; returns what `memoryUnlockAndRestore` puts back. */
  *memoryLockAndEnable(): Step<number> {
    yield* this.memoryLock.downWrite();
    const cmd = this.pdev.configRead(PCI_COMMAND, 2);
    if ((cmd & PCI_COMMAND_MEMORY) === 0) this.pdev.configWrite(PCI_COMMAND, 2, cmd | PCI_COMMAND_MEMORY);
    return cmd;
  }

  memoryUnlockAndRestore(cmd: number): void {
    this.pdev.configWrite(PCI_COMMAND, 2, cmd);
    this.memoryLock.upWrite();
  }

  /**
   * Changes the power state, keeping the config space of a function that loses
   * it in D3hot. ML(W) held to leave D0. EBUSY: its VFs are enabled.
   */
  *setPowerState(state: number): Step<Errno | undefined> {
    const pdev = this.pdev;
    if (state > PCI_D0) {
      this.memoryLock.assertHeldWrite();
      if (this.sriovActive) return EBUSY;
    }
    const from = pdev.currentState;
    const save = this.needsPmRestore && from < PCI_D3HOT && state >= PCI_D3HOT;
    const restore = this.needsPmRestore && from >= PCI_D3HOT && state <= PCI_D0;
    if (save) pdev.saveState();
    const error = yield* pdev.setPowerState(state);
    if (error !== undefined) return error;
    if (save && pdev.currentState >= PCI_D3HOT) this.pmSave = pdev.storeSavedState();
    else if (restore) {
      pdev.loadSavedState(this.pmSave);
      this.pmSave = undefined;
      pdev.restoreState();
    }
    if (this.kernel.trace.on && from !== pdev.currentState) {
      this.kernel.trace.emit({ type: "vfio.power_state", device: pdev.name, from, to: pdev.currentState });
    }
    return undefined;
  }
}
