/**
 * What a function sends: DMA and interrupts. The model's `PciPort`.
 *
 * Every request needs bus mastering, also a message-signalled interrupt. INTx
 * is a level: it is delivered when it rises, and again whenever something that
 * held it back goes away while it is up.
 *
 * Source: PCI 3.0 6.8, PCIe 5.0 6.1.
 */
import type { Timer } from "../../sched/sched.ts";
import {
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_QSIZE,
  PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
} from "../../uapi/pci_regs.ts";
import { dmaRead, dmaWrite } from "./dma.ts";
import type { PciFunction } from "./function.ts";
import type { PciPort } from "./pci_model.ts";

export class FunctionPort implements PciPort {
  readonly #fn: PciFunction;
  /** The level of INTx, masked or not. */
  intxAsserted = false;
  /** Delivered since it rose or was unmasked. */
  #intxDelivered = false;
  /** MSI vectors that wait for their mask bit to clear. */
  #msiPending = 0;

  constructor(fn: PciFunction) {
    this.#fn = fn;
  }

  get now(): number {
    return this.#fn.kernel.sched.now;
  }

  dmaRead(addr: bigint, dst: Uint8Array): boolean {
    return dmaRead(this.#fn, addr, dst);
  }

  dmaWrite(addr: bigint, src: Uint8Array): boolean {
    return dmaWrite(this.#fn, addr, src);
  }

  delay(ns: number, fn: () => void): Timer {
    return this.#fn.kernel.sched.timer(ns, () => {
      fn();
      this.#fn.activity();
    });
  }

  raiseIntx(): void {
    this.intxAsserted = true;
    this.#deliverIntx();
  }

  lowerIntx(): void {
    this.intxAsserted = false;
    this.#intxDelivered = false;
  }

  #deliverIntx(): void {
    const fn = this.#fn;
    if (!this.intxAsserted || (fn.reg16(PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE) !== 0 || this.#msiFlags !== 0 || this.#msixEnabled) {
      this.#intxDelivered = false;
      return;
    }
    if (this.#intxDelivered || (fn.template.description.interruptPin ?? 0) === 0) return;
    this.#intxDelivered = true;
    fn.owner?.irqs.deliver("intx", 0);
  }

  get #msixEnabled(): boolean {
    const cap = this.#fn.template.msixCap;
    return cap !== 0 && (this.#fn.reg16(cap + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_ENABLE) !== 0;
  }

  /** MSI flags while MSI is enabled, else 0. */
  get #msiFlags(): number {
    const cap = this.#fn.template.msiCap;
    const flags = cap === 0 ? 0 : this.#fn.reg16(cap + PCI_MSI_FLAGS);
    return (flags & PCI_MSI_FLAGS_ENABLE) !== 0 ? flags : 0;
  }

  msi(vector: number): void {
    const fn = this.#fn;
    if (!fn.mayMaster()) return;
    if (this.#msixEnabled) {
      const table = fn.msix;
      if (table === undefined || vector >= table.vectors) return;
      const maskAll = (fn.reg16(fn.template.msixCap + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_MASKALL) !== 0;
      if (maskAll || table.masked(vector)) table.pend(vector);
      else fn.owner?.irqs.deliver("msix", vector);
      return;
    }
    const flags = this.#msiFlags;
    if (flags === 0) return;
    // With fewer vectors enabled than the model has, the surplus folds onto them.
    const v = vector & ((1 << ((flags & PCI_MSI_FLAGS_QSIZE) >> 4)) - 1);
    if ((this.#msiMask & (1 << v)) !== 0) this.#msiPending |= 1 << v;
    else fn.owner?.irqs.deliver("msi", v);
  }

  get #msiMask(): number {
    const t = this.#fn.template;
    if (t.description.capabilities?.msi?.maskable !== true) return 0;
    return this.#fn.reg32(t.msiCap + ((this.#fn.reg16(t.msiCap + PCI_MSI_FLAGS) & PCI_MSI_FLAGS_64BIT) !== 0 ? 16 : 12));
  }

  /** A register that holds interrupts back was written: what may go now goes. */
  interruptsChanged(): void {
    if (this.intxAsserted) this.#deliverIntx();
    const fn = this.#fn;
    if (this.#msiPending !== 0 && this.#msiFlags !== 0) {
      const due = this.#msiPending & ~this.#msiMask;
      this.#msiPending &= ~due;
      for (let v = 0; v < 32; v++) if ((due & (1 << v)) !== 0) fn.owner?.irqs.deliver("msi", v);
    }
    const table = fn.msix;
    if (table === undefined || !table.anyPending || !this.#msixEnabled) return;
    if ((fn.reg16(fn.template.msixCap + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_MASKALL) !== 0) return;
    for (const v of table.takeUnmasked()) fn.owner?.irqs.deliver("msix", v);
  }

  resetPending(): void {
    this.#msiPending = 0;
  }
}
