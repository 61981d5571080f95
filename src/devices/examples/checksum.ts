// A device that sums memory: give it an address and a length, it reads them by
// DMA and interrupts when the sum is there. BAR 2 is memory that peers can use.
import { type BarMemory, type PciFunctionDescription, PciModel, type PciPort, SparseMemory } from "../index.ts";

const ADDRESS = 0x00; // 64 bits
const LENGTH = 0x08; // 32 bits; writing it starts
const SUM = 0x0c; // 32 bits
const STATUS = 0x10; // 0 idle, 1 busy, 2 done, 3 the address did not answer

const description: PciFunctionDescription = {
  name: "checksum",
  vendor: 0x1234,
  device: 0x5678,
  class: 0x120000, // processing accelerator
  bars: [
    { index: 0, size: 4096n, kind: "mem32", accessSize: 4 },
    { index: 2, size: 0x10_0000n, kind: "mem64", prefetch: true },
  ],
  capabilities: { pm: {}, msi: { vectors: 1 }, pcie: { flr: true } },
};

export class Checksum extends PciModel {
  override readonly description: PciFunctionDescription = description;
  readonly memory: SparseMemory = new SparseMemory();
  #port: PciPort | undefined = undefined;
  #regs: Uint32Array = new Uint32Array(5);

  override attach(port: PciPort): void {
    this.#port = port;
  }

  override barMemory(bar: number): BarMemory | undefined {
    return bar === 2 ? this.memory : undefined;
  }

  override barRead(_bar: number, offset: number, _size: number): bigint {
    return BigInt(this.#regs[offset / 4] ?? 0);
  }

  override barWrite(_bar: number, offset: number, _size: number, value: bigint): void {
    if (offset > LENGTH || this.#regs[STATUS / 4] === 1) return;
    this.#regs[offset / 4] = Number(value);
    if (offset !== LENGTH) return;
    this.#regs[STATUS / 4] = 1;
    this.#port?.delay(10_000, () => this.#run());
  }

  override reset(): void {
    this.#regs.fill(0);
    this.memory.clear();
  }

  #run(): void {
    if (this.#regs[STATUS / 4] !== 1) return; // a reset came first
    const address = BigInt(this.#regs[ADDRESS / 4] ?? 0) | (BigInt(this.#regs[ADDRESS / 4 + 1] ?? 0) << 32n);
    const data = new Uint8Array(this.#regs[LENGTH / 4] ?? 0);
    const answered = this.#port?.dmaRead(address, data) ?? false;
    this.#regs[SUM / 4] = data.reduce((sum, byte) => sum + byte, 0);
    this.#regs[STATUS / 4] = answered ? 2 : 3;
    this.#port?.msi(0);
  }
}
