/**
 * QEMU's educational device: an identification register, an inverter, a
 * factorial, an interrupt controller, and a DMA engine of 4 KiB.
 *
 * It answers as QEMU's does, down to what it makes of a wrong access size: one
 * that is too small reads 0, a wrong one within the permitted sizes reads all
 * ones, and either way a write is ignored. A reset of the bus does not touch
 * its registers, nor a transfer under way: with bus mastering off, that goes
 * nowhere. A DMA address that has more bits than the mask loses them.
 *
 * Differences: a transfer that leaves the device's buffer is refused (QEMU
 * exits); a factorial takes 1 µs of virtual time.
 */
import { type PciFunctionDescription, PciModel, type PciPort } from "../kernel/pci/pci_model.ts";
import {
  EDU_BAR_SIZE,
  EDU_BUFFER,
  EDU_BUFFER_SIZE,
  EDU_CLASS,
  EDU_DEVICE,
  EDU_DMA_CMD,
  EDU_DMA_COUNT,
  EDU_DMA_DELAY_NS,
  EDU_DMA_DST,
  EDU_DMA_IRQ,
  EDU_DMA_MASK,
  EDU_DMA_RUN,
  EDU_DMA_SRC,
  EDU_DMA_TO_PCI,
  EDU_FACTORIAL,
  EDU_ID,
  EDU_ID_VALUE,
  EDU_IRQ_ACK,
  EDU_IRQ_DMA,
  EDU_IRQ_FACTORIAL,
  EDU_IRQ_RAISE,
  EDU_IRQ_STATUS,
  EDU_LIVENESS,
  EDU_REVISION,
  EDU_STATUS,
  EDU_STATUS_COMPUTING,
  EDU_STATUS_IRQFACT,
  EDU_VENDOR,
  QEMU_SUBSYSTEM_DEVICE,
  QEMU_SUBSYSTEM_VENDOR,
} from "./spec/edu.ts";

export interface EduOptions {
  /** Bits it can put on the bus; 28 bits by default. */
  readonly dmaMask?: bigint;
}

const DESCRIPTION: PciFunctionDescription = {
  name: "edu",
  vendor: EDU_VENDOR,
  device: EDU_DEVICE,
  subsystemVendor: QEMU_SUBSYSTEM_VENDOR,
  subsystemDevice: QEMU_SUBSYSTEM_DEVICE,
  class: EDU_CLASS,
  revision: EDU_REVISION,
  bars: [
    {
      index: 0,
      size: EDU_BAR_SIZE,
      kind: "mem32",
      registers: {
        ranges: [
          { offset: 0, length: EDU_DMA_SRC, width: 4 },
          { offset: EDU_DMA_SRC, length: EDU_DMA_CMD + 8 - EDU_DMA_SRC, width: 8 },
        ],
        elsewhere: 0xff,
      },
    },
  ],
  interruptPin: 1,
  capabilities: { msi: { vectors: 1, address64: true, at: 0x40 } },
};

const U32 = 0xffff_ffffn;
const ALL_ONES = 0xffff_ffff_ffff_ffffn;
const FACTORIAL_NS = 1000;

export class Edu extends PciModel {
  override readonly description: PciFunctionDescription = DESCRIPTION;
  /** The device's memory: what DMA fills and empties. */
  readonly buffer: Uint8Array = new Uint8Array(EDU_BUFFER_SIZE);
  readonly #dmaMask: bigint;
  #port: PciPort | undefined = undefined;
  #liveness = 0;
  #factorial = 0;
  #status = 0;
  #irqStatus = 0;
  #src = 0n;
  #dst = 0n;
  #count = 0n;
  #cmd = 0n;

  constructor(options: EduOptions = {}) {
    super();
    this.#dmaMask = options.dmaMask ?? EDU_DMA_MASK;
  }

  override attach(port: PciPort): void {
    this.#port = port;
  }

  override barRead(_bar: number, offset: number, size: number): bigint {
    if (size < 4) return 0n;
    if (size === 8 && offset < 0x80) return ALL_ONES;
    switch (offset) {
      case EDU_ID:
        return BigInt(EDU_ID_VALUE);
      case EDU_LIVENESS:
        return BigInt(this.#liveness);
      case EDU_FACTORIAL:
        return BigInt(this.#factorial);
      case EDU_STATUS:
        return BigInt(this.#status);
      case EDU_IRQ_STATUS:
        return BigInt(this.#irqStatus);
      case EDU_DMA_SRC:
        return this.#src;
      case EDU_DMA_DST:
        return this.#dst;
      case EDU_DMA_COUNT:
        return this.#count;
      case EDU_DMA_CMD:
        return this.#cmd;
      default:
        return ALL_ONES;
    }
  }

  override barWrite(_bar: number, offset: number, size: number, value: bigint): void {
    if (size < 4 || (size === 8 && offset < 0x80)) return;
    const low = Number(value & U32);
    const dmaIdle = (Number(this.#cmd) & EDU_DMA_RUN) === 0;
    switch (offset) {
      case EDU_LIVENESS:
        this.#liveness = ~low >>> 0;
        break;
      case EDU_FACTORIAL:
        this.#startFactorial(low);
        break;
      case EDU_STATUS:
        this.#status = (this.#status & ~EDU_STATUS_IRQFACT) | (low & EDU_STATUS_IRQFACT);
        break;
      case EDU_IRQ_RAISE:
        this.#raise(low);
        break;
      case EDU_IRQ_ACK:
        this.#irqStatus = (this.#irqStatus & ~low) >>> 0;
        if (this.#irqStatus === 0) this.#port?.lowerIntx();
        break;
      case EDU_DMA_SRC:
        if (dmaIdle) this.#src = value;
        break;
      case EDU_DMA_DST:
        if (dmaIdle) this.#dst = value;
        break;
      case EDU_DMA_COUNT:
        if (dmaIdle) this.#count = value;
        break;
      case EDU_DMA_CMD:
        if (!dmaIdle || (low & EDU_DMA_RUN) === 0) break;
        this.#cmd = value;
        this.#port?.delay(EDU_DMA_DELAY_NS, () => this.#transfer());
        break;
    }
  }

  #startFactorial(n: number): void {
    if ((this.#status & EDU_STATUS_COMPUTING) !== 0) return;
    this.#status |= EDU_STATUS_COMPUTING;
    this.#factorial = n;
    this.#port?.delay(FACTORIAL_NS, () => {
      this.#factorial = factorial(n);
      this.#status &= ~EDU_STATUS_COMPUTING;
      if ((this.#status & EDU_STATUS_IRQFACT) !== 0) this.#raise(EDU_IRQ_FACTORIAL);
    });
  }

  #transfer(): void {
    const cmd = Number(this.#cmd);
    const out = (cmd & EDU_DMA_TO_PCI) !== 0;
    const inside = (out ? this.#src : this.#dst) - EDU_BUFFER;
    if (inside >= 0n && inside + this.#count <= BigInt(EDU_BUFFER_SIZE)) {
      const part = this.buffer.subarray(Number(inside), Number(inside + this.#count));
      if (out) this.#port?.dmaWrite(this.#dst & this.#dmaMask, part);
      else this.#port?.dmaRead(this.#src & this.#dmaMask, part);
    }
    this.#cmd &= ~BigInt(EDU_DMA_RUN);
    if ((cmd & EDU_DMA_IRQ) !== 0) this.#raise(EDU_IRQ_DMA);
  }

  /** MSI when it is enabled, else INTx until all is acknowledged: the port lets through the one that may go. */
  #raise(bits: number): void {
    this.#irqStatus = (this.#irqStatus | bits) >>> 0;
    if (this.#irqStatus === 0) return;
    this.#port?.raiseIntx();
    this.#port?.msi(0);
  }
}

/** n! modulo 2^32. */
function factorial(n: number): number {
  // 34! is a multiple of 2^32, and so is every larger one.
  if (n >= 34) return 0;
  let f = 1;
  for (let i = 2; i <= n; i++) f = Math.imul(f, i);
  return f >>> 0;
}
