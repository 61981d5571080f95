/**
 * A device that is mostly memory: QEMU's ivshmem-plain.
 *
 * BAR 2 is RAM of any power of two from 4 KiB on, 64-bit and prefetchable;
 * BAR 0 holds four registers that do nothing. It has neither a power
 * management nor a PCI Express capability, so that it cannot go to D3 and only
 * a bus reset reaches it, which its memory survives.
 */
import { type BarMemory, type PciFunctionDescription, PciModel, SparseMemory } from "../kernel/pci/pci_model.ts";
import { QEMU_SUBSYSTEM_DEVICE, QEMU_SUBSYSTEM_VENDOR } from "./spec/edu.ts";
import {
  IVSHMEM_CLASS,
  IVSHMEM_DEFAULT_SIZE,
  IVSHMEM_DEVICE,
  IVSHMEM_INTR_MASK,
  IVSHMEM_INTR_STATUS,
  IVSHMEM_MEMORY_BAR,
  IVSHMEM_REGISTERS_SIZE,
  IVSHMEM_REVISION,
  IVSHMEM_VENDOR,
} from "./spec/ivshmem.ts";

export interface IvshmemOptions {
  /** Bytes of memory, a power of two of at least 4096; 16 MiB by default. */
  readonly size?: bigint;
}

const descriptions: Map<bigint, PciFunctionDescription> = new Map();

/** One object per size: the PCI layer derives config space from it once. */
function describe(size: bigint): PciFunctionDescription {
  if (size < 4096n || (size & (size - 1n)) !== 0n)
    throw new RangeError(`ivshmem: ${size} bytes of memory: a power of two of at least 4096`);
  let d = descriptions.get(size);
  if (d === undefined) {
    d = {
      name: "ivshmem",
      vendor: IVSHMEM_VENDOR,
      device: IVSHMEM_DEVICE,
      subsystemVendor: QEMU_SUBSYSTEM_VENDOR,
      subsystemDevice: QEMU_SUBSYSTEM_DEVICE,
      class: IVSHMEM_CLASS,
      revision: IVSHMEM_REVISION,
      bars: [
        { index: 0, size: IVSHMEM_REGISTERS_SIZE, kind: "mem32", accessSize: 4 },
        { index: IVSHMEM_MEMORY_BAR, size, kind: "mem64", prefetch: true },
      ],
    };
    descriptions.set(size, d);
  }
  return d;
}

export class Ivshmem extends PciModel {
  override readonly description: PciFunctionDescription;
  /** What BAR 2 shows. */
  readonly memory: SparseMemory = new SparseMemory();
  #mask = 0n;
  #status = 0n;

  constructor(options: IvshmemOptions = {}) {
    super();
    this.description = describe(options.size ?? IVSHMEM_DEFAULT_SIZE);
  }

  override barMemory(bar: number): BarMemory | undefined {
    return bar === IVSHMEM_MEMORY_BAR ? this.memory : undefined;
  }

  override barRead(_bar: number, offset: number, _size: number): bigint {
    if (offset === IVSHMEM_INTR_MASK) return this.#mask;
    if (offset !== IVSHMEM_INTR_STATUS) return 0n;
    const status = this.#status;
    this.#status = 0n;
    return status;
  }

  override barPeek(_bar: number, offset: number, _size: number): bigint {
    return offset === IVSHMEM_INTR_MASK ? this.#mask : offset === IVSHMEM_INTR_STATUS ? this.#status : 0n;
  }

  override barWrite(_bar: number, offset: number, _size: number, value: bigint): void {
    if (offset === IVSHMEM_INTR_MASK) this.#mask = value;
    else if (offset === IVSHMEM_INTR_STATUS) this.#status = value;
  }

  override reset(): void {
    this.#mask = 0n;
    this.#status = 0n;
  }
}
