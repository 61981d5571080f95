/**
 * Interrupt vectors of a function, kernel side: allocation, handlers, delivery.
 *
 * A handler is plain: it runs in whatever context raised the interrupt and may
 * only wake tasks or signal eventfds. A vector is masked in hardware while it
 * has no handler, so an interrupt raised before is delivered when the handler
 * comes (MSI-X, maskable MSI) or lost (MSI without masks), as on hardware.
 *
 * Source: drivers/pci/msi/{api,msi}.c.
 */
import { EBUSY, EINVAL, ENOSPC, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import {
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_INTERRUPT_PIN,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_MASKBIT,
  PCI_MSI_FLAGS_QSIZE,
  PCI_MSIX_ENTRY_DATA,
  PCI_MSIX_ENTRY_LOWER_ADDR,
  PCI_MSIX_ENTRY_SIZE,
  PCI_MSIX_ENTRY_VECTOR_CTRL,
  PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_ENABLE,
} from "../../uapi/pci_regs.ts";
import type { PciDev } from "./pci_dev.ts";

export type IrqKind = "intx" | "msi" | "msix";
export type IrqHandler = (vector: number) => void;

/** Where message-signalled interrupts are written on x86. */
const MSI_ADDRESS = 0xfee0_0000;
/** Data of the first vector; the rest follow. */
const MSI_DATA = 0x40;

export class PciIrqs {
  readonly #dev: PciDev;
  kind: IrqKind | undefined = undefined;
  /** Vectors allocated. */
  count = 0;
  readonly #handlers: (IrqHandler | undefined)[] = [];
  /** disable_irq depth of the INTx line. */
  #lineDisabled = 0;

  constructor(dev: PciDev) {
    this.#dev = dev;
  }

  /** MSI or MSI-X is on. */
  get messageSignalled(): boolean {
    return this.kind === "msi" || this.kind === "msix";
  }

  /** Vectors the hardware has of a kind; 0: none. */
  available(kind: IrqKind): number {
    const d = this.#dev.fn.template.description;
    if (kind === "msix") return d.capabilities?.msix?.vectors ?? 0;
    if (kind === "msi") return d.capabilities?.msi?.vectors ?? 0;
    return this.#dev.configRead(PCI_INTERRUPT_PIN, 1) === 0 || this.#dev.isVirtfn ? 0 : 1;
  }

  /** EINVAL: MSI not available, already in use, or the device not in D0; ENOSPC: fewer than `min`. */
  alloc(kind: IrqKind, n: number, min: number): number | Errno {
    if (n < min || min < 1) throw new RangeError(`${min} to ${n} vectors`);
    const have = this.available(kind);
    if (kind === "intx") {
      if (have === 0 || min > 1) return ENOSPC;
      this.#dev.intx(true);
      this.kind = "intx";
      this.count = 1;
      return 1;
    }
    if (have === 0 || this.messageSignalled || this.#dev.currentState !== 0) return EINVAL;
    if (have < min) return ENOSPC;
    this.kind = kind;
    this.count = Math.min(n, have);
    this.#dev.intx(false);
    this.#program();
    return this.count;
  }

  /** Throws `KernelBug` while a vector has a handler. */
  free(): void {
    const busy = this.#handlers.findIndex((h) => h !== undefined);
    if (busy >= 0) throw new KernelBug(`${this.#dev.name}: vectors freed while ${busy} has a handler`);
    const dev = this.#dev;
    if (this.kind === "msix") this.#flags(dev.msixCap + PCI_MSIX_FLAGS, (f) => f & ~PCI_MSIX_FLAGS_ENABLE);
    else if (this.kind === "msi") this.#flags(dev.msiCap + PCI_MSI_FLAGS, (f) => f & ~(PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE));
    if (this.messageSignalled) dev.intx(true);
    this.kind = undefined;
    this.count = 0;
  }

  request(vector: number, handler: IrqHandler): Errno | undefined {
    if (vector < 0 || vector >= this.count) return EINVAL;
    if (this.#handlers[vector] !== undefined) return EBUSY;
    this.#handlers[vector] = handler;
    this.#mask(vector, false);
    if (this.kind === "intx") this.#dev.fn.port.interruptsChanged();
    return undefined;
  }

  release(vector: number): void {
    if (this.#handlers[vector] === undefined) throw new KernelBug(`${this.#dev.name}: vector ${vector} has no handler to free`);
    this.#mask(vector, true);
    this.#handlers[vector] = undefined;
  }

  hasHandler(vector: number): boolean {
    return this.#handlers[vector] !== undefined;
  }

  /** disable_irq of the INTx line; nests. */
  disableLine(): void {
    this.#lineDisabled++;
  }

  enableLine(): void {
    if (this.#lineDisabled === 0) throw new KernelBug(`${this.#dev.name}: unbalanced enable of INTx`);
    if (--this.#lineDisabled > 0) return;
    // The line is level triggered: still raised, it fires again.
    const masked = (this.#dev.configRead(PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE) !== 0;
    if (this.#dev.fn.port.intxAsserted && !masked) this.deliver("intx", 0);
  }

  /** From the hardware. */
  deliver(kind: IrqKind, vector: number): void {
    const trace = this.#dev.kernel.trace;
    if (kind === "intx" && this.#lineDisabled > 0) return;
    const handler = kind === this.kind ? this.#handlers[vector] : undefined;
    if (trace.on) trace.emit({ type: "pci.irq", device: this.#dev.name, kind, vector, handled: handler !== undefined });
    handler?.(vector);
  }

  /** After a reset: as pci_restore_msi_state. */
  restore(): void {
    if (!this.messageSignalled) return;
    this.#dev.intx(false);
    this.#program();
    for (let v = 0; v < this.count; v++) if (this.#handlers[v] !== undefined) this.#mask(v, false);
  }

  #program(): void {
    const dev = this.#dev;
    if (this.kind === "msix") {
      for (let v = 0; v < this.count; v++) {
        this.#entry(v, PCI_MSIX_ENTRY_LOWER_ADDR, MSI_ADDRESS);
        this.#entry(v, PCI_MSIX_ENTRY_LOWER_ADDR + 4, 0);
        this.#entry(v, PCI_MSIX_ENTRY_DATA, MSI_DATA + v);
      }
      this.#flags(dev.msixCap + PCI_MSIX_FLAGS, (f) => f | PCI_MSIX_FLAGS_ENABLE);
      return;
    }
    const cap = dev.msiCap;
    const flags = dev.configRead(cap + PCI_MSI_FLAGS, 2);
    const wide = (flags & PCI_MSI_FLAGS_64BIT) !== 0;
    dev.configWrite(cap + 4, 4, MSI_ADDRESS);
    if (wide) dev.configWrite(cap + 8, 4, 0);
    dev.configWrite(cap + (wide ? 12 : 8), 2, MSI_DATA);
    if ((flags & PCI_MSI_FLAGS_MASKBIT) !== 0) dev.configWrite(cap + (wide ? 16 : 12), 4, 0xffff_ffff);
    const log2 = Math.ceil(Math.log2(this.count));
    dev.configWrite(cap + PCI_MSI_FLAGS, 2, (flags & ~PCI_MSI_FLAGS_QSIZE) | (log2 << 4) | PCI_MSI_FLAGS_ENABLE);
  }

  #mask(vector: number, on: boolean): void {
    const dev = this.#dev;
    if (this.kind === "msix") {
      this.#entry(vector, PCI_MSIX_ENTRY_VECTOR_CTRL, on ? 1 : 0);
      return;
    }
    if (this.kind !== "msi") return;
    const flags = dev.configRead(dev.msiCap + PCI_MSI_FLAGS, 2);
    if ((flags & PCI_MSI_FLAGS_MASKBIT) === 0) return;
    this.#flags32(dev.msiCap + ((flags & PCI_MSI_FLAGS_64BIT) !== 0 ? 16 : 12), (m) => (on ? m | (1 << vector) : m & ~(1 << vector)));
  }

  #entry(vector: number, field: number, value: number): void {
    const cap = this.#dev.fn.template.description.capabilities?.msix;
    if (cap === undefined) return;
    const b = new Uint8Array(4);
    new DataView(b.buffer).setUint32(0, value, true);
    this.#dev.barWrite(cap.tableBar, cap.tableOffset + vector * PCI_MSIX_ENTRY_SIZE + field, b);
  }

  #flags(off: number, change: (f: number) => number): void {
    this.#dev.configWrite(off, 2, change(this.#dev.configRead(off, 2)));
  }

  #flags32(off: number, change: (f: number) => number): void {
    this.#dev.configWrite(off, 4, change(this.#dev.configRead(off, 4)) >>> 0);
  }
}
