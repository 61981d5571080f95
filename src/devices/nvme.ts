/**
 * An NVMe controller as a peer: config space, resets, and its two memories.
 *
 * It enables (CC.EN, CSTS.RDY) but executes no command. The controller memory
 * buffer (BAR 2) is plain RAM. The persistent memory region (BAR 4) answers
 * only while PMRCTL.EN is set: disabled it reads zeros and ignores writes, and
 * every reset of the function disables it, while its contents stay. A reset of
 * the bus leaves the controller unresponsive until the kernel has given up on
 * it, as the recorded one does behind its root port.
 *
 * Source: NVM Express Base Specification 1.4c, 3.1, 4.8, 7.3.
 */
import {
  type BarMemory,
  type PciFunctionDescription,
  PciModel,
  type RegisterMap,
  type ResetKind,
  SparseMemory,
} from "../kernel/pci/pci_model.ts";
import { QEMU_SUBSYSTEM_DEVICE, QEMU_SUBSYSTEM_VENDOR } from "./spec/edu.ts";
import {
  NVME_ACQ,
  NVME_AQA,
  NVME_ASQ,
  NVME_CAP,
  NVME_CAP_BASE,
  NVME_CAP_CMBS,
  NVME_CAP_PMRS,
  NVME_CC,
  NVME_CC_EN,
  NVME_CC_SHN,
  NVME_CLASS,
  NVME_CMB_BAR,
  NVME_CMBLOC,
  NVME_CMBLOC_VALUE,
  NVME_CMBMSC,
  NVME_CMBMSC_CRE,
  NVME_CMBSZ,
  NVME_CMBSZ_BASE,
  NVME_CSTS,
  NVME_CSTS_CFS,
  NVME_CSTS_RDY,
  NVME_CSTS_SHST_COMPLETE,
  NVME_DEFAULT_CMB_SIZE,
  NVME_DEFAULT_PMR_SIZE,
  NVME_DEVICE,
  NVME_INTMC,
  NVME_INTMS,
  NVME_MSIX_PBA,
  NVME_MSIX_TABLE,
  NVME_MSIX_VECTORS,
  NVME_PMR_BAR,
  NVME_PMRCAP,
  NVME_PMRCAP_VALUE,
  NVME_PMRCTL,
  NVME_PMRCTL_EN,
  NVME_PMRMSCL,
  NVME_PMRMSCU,
  NVME_REGISTERS_SIZE,
  NVME_REVISION,
  NVME_VENDOR,
  NVME_VERSION,
  NVME_VS,
} from "./spec/nvme.ts";

export interface NvmeOptions {
  /** Bytes of the controller memory buffer, a power of two of at least 1 MiB, or 0 for none; 2 MiB by default. */
  readonly cmbSize?: bigint;
  /** Bytes of the persistent memory region, a power of two of at least 4096, or 0 for none; 16 MiB by default. */
  readonly pmrSize?: bigint;
  /** A reset of the bus fails, as recorded; true by default. */
  readonly busResetFails?: boolean;
}

/** The controller's, and those of the persistent memory region; no doorbell does anything. */
const REGISTERS: RegisterMap = {
  ranges: [
    { offset: 0, length: NVME_CMBMSC + 8, width: 4 },
    { offset: NVME_PMRCAP, length: NVME_PMRMSCU + 4 - NVME_PMRCAP, width: 4 },
  ],
  elsewhere: 0,
};

const descriptions: Map<string, PciFunctionDescription> = new Map();

function describe(cmb: bigint, pmr: bigint, busResetFails: boolean): PciFunctionDescription {
  const key = `${cmb},${pmr},${busResetFails}`;
  let d = descriptions.get(key);
  if (d !== undefined) return d;
  const bad = (what: string, size: bigint, least: bigint): boolean => {
    if (size === 0n || (size >= least && (size & (size - 1n)) === 0n)) return size !== 0n;
    throw new RangeError(`nvme: ${what} of ${size} bytes: 0, or a power of two of at least ${least}`);
  };
  d = {
    name: "nvme",
    vendor: NVME_VENDOR,
    device: NVME_DEVICE,
    subsystemVendor: QEMU_SUBSYSTEM_VENDOR,
    subsystemDevice: QEMU_SUBSYSTEM_DEVICE,
    class: NVME_CLASS,
    revision: NVME_REVISION,
    bars: [
      { index: 0, size: NVME_REGISTERS_SIZE, kind: "mem64", registers: REGISTERS },
      ...(bad("controller memory buffer", cmb, 0x10_0000n)
        ? [{ index: NVME_CMB_BAR, size: cmb, kind: "mem64", prefetch: true } as const]
        : []),
      ...(bad("persistent memory region", pmr, 4096n) ? [{ index: NVME_PMR_BAR, size: pmr, kind: "mem64", prefetch: true } as const] : []),
    ],
    interruptPin: 1,
    // In the order in which the recorded controller chains them.
    capabilities: {
      msix: {
        vectors: NVME_MSIX_VECTORS,
        tableBar: 0,
        tableOffset: NVME_MSIX_TABLE,
        pbaBar: 0,
        pbaOffset: NVME_MSIX_PBA,
        at: 0x40,
      },
      pcie: { flr: true, at: 0x80 },
      pm: { version: 3, noSoftReset: true, at: 0x60 },
    },
    reset: busResetFails ? { bus: "fails" } : {},
  };
  descriptions.set(key, d);
  return d;
}

/** What a disabled persistent memory region shows. */
const DISABLED: BarMemory = {
  read: (_offset, dst) => {
    dst.fill(0);
  },
  write: () => {},
};

/** Registers that only hold what was written, 32 bits each. */
const STORED: ReadonlySet<number> = new Set([NVME_AQA, NVME_ASQ, NVME_ASQ + 4, NVME_ACQ, NVME_ACQ + 4, NVME_PMRMSCL, NVME_PMRMSCU]);

export class Nvme extends PciModel {
  override readonly description: PciFunctionDescription;
  /** What BAR 2 shows. */
  readonly cmb: SparseMemory = new SparseMemory();
  /** What BAR 4 shows while it is enabled. */
  readonly pmr: SparseMemory = new SparseMemory();
  readonly #cap: bigint;
  readonly #cmbSize: bigint;
  readonly #hasPmr: boolean;
  readonly #stored: Map<number, number> = new Map();
  #cc = 0;
  #csts = 0;
  #intMask = 0;
  #cmbmsc = 0;
  #pmrEnabled = false;

  constructor(options: NvmeOptions = {}) {
    super();
    const cmb = options.cmbSize ?? NVME_DEFAULT_CMB_SIZE;
    const pmr = options.pmrSize ?? NVME_DEFAULT_PMR_SIZE;
    this.description = describe(cmb, pmr, options.busResetFails ?? true);
    this.#cmbSize = cmb;
    this.#hasPmr = pmr !== 0n;
    this.#cap = NVME_CAP_BASE | (cmb === 0n ? 0n : NVME_CAP_CMBS) | (pmr === 0n ? 0n : NVME_CAP_PMRS);
  }

  override barMemory(bar: number): BarMemory | undefined {
    if (bar === NVME_CMB_BAR) return this.cmb;
    if (bar === NVME_PMR_BAR) return this.#pmrEnabled ? this.pmr : DISABLED;
    return undefined;
  }

  override barRead(_bar: number, offset: number, size: number): bigint {
    if (size === 8) return BigInt(this.#read(offset)) | (BigInt(this.#read(offset + 4)) << 32n);
    const word = BigInt(this.#read(offset & ~3));
    return (word >> BigInt(8 * (offset & 3))) & ((1n << BigInt(8 * size)) - 1n);
  }

  override barWrite(_bar: number, offset: number, size: number, value: bigint): void {
    // Registers are written as whole words; anything smaller is ignored.
    if (size < 4) return;
    this.#write(offset, Number(value & 0xffff_ffffn));
    if (size === 8) this.#write(offset + 4, Number(value >> 32n));
  }

  override reset(_kind: ResetKind): void {
    this.#resetController();
    this.#stored.clear();
    this.#cmbmsc = 0;
    this.#pmrEnabled = false;
  }

  #read(offset: number): number {
    switch (offset) {
      case NVME_CAP:
        return Number(this.#cap & 0xffff_ffffn);
      case NVME_CAP + 4:
        return Number(this.#cap >> 32n);
      case NVME_VS:
        return NVME_VERSION;
      case NVME_INTMS:
      case NVME_INTMC:
        return this.#intMask;
      case NVME_CC:
        return this.#cc;
      case NVME_CSTS:
        return this.#csts;
      case NVME_CMBMSC:
        return this.#cmbmsc;
      case NVME_CMBLOC:
        return this.#cmbRegisters ? NVME_CMBLOC_VALUE : 0;
      case NVME_CMBSZ:
        return this.#cmbRegisters ? (NVME_CMBSZ_BASE | (Number(this.#cmbSize >> 20n) << 12)) >>> 0 : 0;
      case NVME_PMRCAP:
        return this.#hasPmr ? NVME_PMRCAP_VALUE : 0;
      case NVME_PMRCTL:
        return this.#pmrEnabled ? NVME_PMRCTL_EN : 0;
      default:
        return this.#stored.get(offset) ?? 0;
    }
  }

  #write(offset: number, value: number): void {
    switch (offset) {
      case NVME_INTMS:
        this.#intMask = (this.#intMask | value) >>> 0;
        break;
      case NVME_INTMC:
        this.#intMask = (this.#intMask & ~value) >>> 0;
        break;
      case NVME_CC:
        this.#configure(value);
        break;
      case NVME_CMBMSC:
        if (this.#cmbSize !== 0n) this.#cmbmsc = value;
        break;
      case NVME_PMRCTL:
        if (this.#hasPmr) this.#pmrEnabled = (value & NVME_PMRCTL_EN) !== 0;
        break;
      default:
        if (STORED.has(offset)) this.#stored.set(offset, value);
    }
  }

  /** Starts and stops the controller; a start without admin queues is a fatal error. */
  #configure(value: number): void {
    const was = (this.#cc & NVME_CC_EN) !== 0;
    const on = (value & NVME_CC_EN) !== 0;
    if (was && !on) {
      this.#resetController();
      return;
    }
    this.#cc = value;
    if (on && !was) {
      const queues = (this.#stored.get(NVME_ASQ) ?? 0) !== 0 && (this.#stored.get(NVME_ACQ) ?? 0) !== 0;
      this.#csts = queues ? NVME_CSTS_RDY : NVME_CSTS_CFS;
    }
    if ((value & NVME_CC_SHN) !== 0) this.#csts |= NVME_CSTS_SHST_COMPLETE;
    else this.#csts &= ~NVME_CSTS_SHST_COMPLETE;
  }

  /** A controller reset spares the admin queue registers and the memory regions. */
  #resetController(): void {
    this.#cc = 0;
    this.#csts = 0;
    this.#intMask = 0;
  }

  get #cmbRegisters(): boolean {
    return (this.#cmbmsc & NVME_CMBMSC_CRE) !== 0;
  }
}
