/**
 * The hardware of one function: config registers, BAR decode, power, resets.
 *
 * What answers and when:
 * - config space answers in D0 … D3hot once the function is ready after a
 *   reset, and when every bridge above is in D0, not resetting its secondary
 *   bus and itself answers; otherwise reads give all ones and writes vanish;
 * - a memory BAR answers when COMMAND.MEMORY is set (for a VF: the PF's VF
 *   enable and VF MSE), the function is in D0, and the bridges above forward
 *   memory. Its range is entered into the machine's physical address space
 *   while its own conditions hold; those of the path are tested per access;
 * - a reset puts the registers back to their power-on bytes (BARs and COMMAND
 *   are zero: whoever resets restores them) and tells the model.
 *
 * A BAR programmed over RAM is not decoded: the processor and the root complex
 * route those addresses to memory first.
 *
 * Config bytes are shared with the plan of the machine until the first write.
 * Source: PCI 3.0 6.2, PCI PM 1.2 5.4, PCIe 5.0 6.6.
 */
import {
  PCI_AF_CTRL,
  PCI_AF_CTRL_FLR,
  PCI_BASE_ADDRESS_0,
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_COMMAND,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_EXP_LNKSTA,
  PCI_EXP_LNKSTA_DLLLA,
  PCI_PM_CTRL,
  PCI_PM_CTRL_NO_SOFT_RESET,
  PCI_PM_CTRL_STATE_MASK,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_CTRL_MSE,
  PCI_SRIOV_CTRL_VFE,
} from "../../uapi/pci_regs.ts";
import type { Kernel } from "../kernel.ts";
import { type ConfigTemplate, Effect } from "./config_template.ts";
import { FunctionBars } from "./function_bars.ts";
import { FunctionPort } from "./function_port.ts";
import { MsixTable } from "./msix_table.ts";
import type { PciDev } from "./pci_dev.ts";
import type { PciModel, ResetKind, ResetOutcome } from "./pci_model.ts";

const MS = 1_000_000;
/** Longer than the kernel waits after any reset. */
const BEYOND_PATIENCE = 100_000 * MS;

const D3HOT = 3;
const D3COLD = 4;

const allOnes = (size: 1 | 2 | 4): number => (size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff);

export class PciFunction {
  readonly kernel: Kernel;
  readonly model: PciModel;
  readonly template: ConfigTemplate;
  /** The port above; undefined on a root bus. */
  readonly parent: PciFunction | undefined;
  readonly name: string;
  /** The PF of a VF. */
  readonly pf: PciFunction | undefined;
  /** Functions that a reset of the secondary bus reaches; of a bridge. */
  readonly children: PciFunction[] = [];
  /** VFs that exist now, of a PF. */
  readonly vfs: PciFunction[] = [];
  /** What the kernel knows about it; set when it is put on its bus. */
  owner: PciDev | undefined = undefined;
  readonly port: FunctionPort;
  /** MSI-X table and pending bits, when it has them. */
  readonly msix: MsixTable | undefined;
  /** 0 … 3, or 4: no power. */
  power = 0;
  /** Pulled out. */
  gone = false;
  /** Config space answers from this time on, ns. */
  #readyAt = 0;
  /** Of a port: the link below is up from this time on, ns. */
  linkUpAt = 0;
  #bytes: Uint8Array;
  /** `#bytes` is the plan's and must be copied before a write. */
  #shared = true;
  readonly #bars: FunctionBars;
  /** Told after anything that may have changed what the BARs show, other than writes to plain memory. */
  onActivity: (() => void) | undefined = undefined;
  /** VF: where its BARs are, from the PF's SR-IOV capability. */
  readonly #vfBars: readonly bigint[] | undefined;

  constructor(
    kernel: Kernel,
    model: PciModel,
    template: ConfigTemplate,
    boot: Uint8Array,
    parent: PciFunction | undefined,
    name: string,
    vf?: { readonly pf: PciFunction; readonly bars: readonly bigint[] },
  ) {
    this.kernel = kernel;
    this.model = model;
    this.template = template;
    this.parent = parent;
    this.name = name;
    this.pf = vf?.pf;
    this.#vfBars = vf?.bars;
    this.#bytes = boot;
    this.port = new FunctionPort(this);
    this.#bars = new FunctionBars(this);
    const msix = template.description.capabilities?.msix;
    this.msix = msix === undefined ? undefined : new MsixTable(msix, this.port);
    if (vf === undefined) parent?.children.push(this);
    else vf.pf.vfs.push(this);
  }

  attachModel(): void {
    this.model.attach(this.port);
  }

  // ---- config space -------------------------------------------------------------

  /** Little endian, unsigned; all ones when the function does not answer. `off` is aligned to `size`. */
  configRead(off: number, size: 1 | 2 | 4): number {
    if (off < 0 || off % size !== 0) throw new RangeError(`config read of ${size} bytes at ${off}`);
    if (!this.answersConfig() || off + size > 4096) return allOnes(size);
    // A function with 256 bytes has nothing above.
    if (off >= this.#bytes.length) return 0;
    const b = this.#bytes;
    let v = b[off] as number;
    if (size > 1) v |= (b[off + 1] as number) << 8;
    if (size === 4) v |= ((b[off + 2] as number) << 16) | ((b[off + 3] as number) << 24);
    return this.#live(off, size, v >>> 0);
  }

  configWrite(off: number, size: 1 | 2 | 4, value: number): void {
    if (off < 0 || off % size !== 0) throw new RangeError(`config write of ${size} bytes at ${off}`);
    if (!this.answersConfig() || off >= this.#bytes.length) return;
    this.#own();
    const { rw, w1c, effect } = this.template;
    let effects = 0;
    for (let i = 0; i < size; i++) {
      const at = off + i;
      const v = (value >>> (8 * i)) & 0xff;
      const m = rw[at] as number;
      const old = this.#bytes[at] as number;
      this.#bytes[at] = ((old & ~m) | (v & m)) & ~((w1c[at] as number) & v);
      effects |= effect[at] as number;
    }
    if (effects !== 0) this.#effects(effects, off, size, value);
  }

  /** Status bits that are not stored. */
  #live(off: number, size: number, v: number): number {
    if (off <= PCI_COMMAND + 2 && off + size > PCI_COMMAND + 2 && this.port.intxAsserted)
      return (v | (8 << (8 * (PCI_COMMAND + 2 - off)))) >>> 0;
    const lnksta = this.template.pcieCap + PCI_EXP_LNKSTA;
    if (this.template.port !== undefined && off <= lnksta + 1 && off + size > lnksta + 1 && this.linkUpAt > this.kernel.sched.now) {
      return (v & ~(PCI_EXP_LNKSTA_DLLLA << (8 * (lnksta - off)))) >>> 0;
    }
    return v;
  }

  #own(): void {
    if (!this.#shared) return;
    this.#bytes = this.#bytes.slice();
    this.#shared = false;
  }

  /** A 16-bit register as it is stored, whether or not anybody could read it. */
  reg16(off: number): number {
    return (this.#bytes[off] as number) | ((this.#bytes[off + 1] as number) << 8);
  }

  reg32(off: number): number {
    return (this.reg16(off) | (this.reg16(off + 2) << 16)) >>> 0;
  }

  #effects(effects: number, off: number, size: number, value: number): void {
    const t = this.template;
    if ((effects & Effect.pm) !== 0) this.#powerWritten();
    if ((effects & Effect.flr) !== 0) {
      // BCR_FLR is the top bit, never stored: it always reads 0.
      const high = t.pcieCap + PCI_EXP_DEVCTL + 1;
      const written = off <= high && off + size > high && ((value >>> (8 * (high - off))) & (PCI_EXP_DEVCTL_BCR_FLR >> 8)) !== 0;
      if (written && t.description.capabilities?.pcie?.flr === true) this.reset("flr");
    }
    if ((effects & Effect.afFlr) !== 0) {
      const at = t.afCap + PCI_AF_CTRL;
      if (((value >>> (8 * (at - off))) & PCI_AF_CTRL_FLR) !== 0 && t.description.capabilities?.af?.flr !== false) this.reset("af");
    }
    if ((effects & Effect.bridgeControl) !== 0) this.#bridgeControlWritten();
    if ((effects & (Effect.command | Effect.bar)) !== 0) {
      this.updateDecode();
      this.#traceCommand(effects);
    }
    if ((effects & Effect.sriov) !== 0) for (const vf of this.vfs) vf.updateDecode();
    if ((effects & (Effect.msi | Effect.command)) !== 0) this.port.interruptsChanged();
  }

  #traceCommand(effects: number): void {
    const trace = this.kernel.trace;
    if (!trace.on || (effects & Effect.command) === 0) return;
    const c = this.reg16(PCI_COMMAND);
    trace.emit({
      type: "pci.command",
      device: this.name,
      value: c,
      memory: (c & PCI_COMMAND_MEMORY) !== 0,
      master: (c & PCI_COMMAND_MASTER) !== 0,
    });
  }

  // ---- who answers -----------------------------------------------------------------

  /** Config cycles reach it and it completes them. */
  answersConfig(): boolean {
    if (this.gone || this.power === D3COLD || this.#readyAt > this.kernel.sched.now) return false;
    if (this.pf !== undefined && !this.pf.vfEnabled) return false;
    const up = this.parent;
    return up === undefined || (!up.inSecondaryReset && up.power === 0 && up.answersConfig());
  }

  /** COMMAND.MEMORY, or what stands for it. */
  get memoryEnabled(): boolean {
    const pf = this.pf;
    if (pf === undefined) return (this.reg16(PCI_COMMAND) & PCI_COMMAND_MEMORY) !== 0;
    return pf.power === 0 && (pf.reg16(pf.template.sriovCap + PCI_SRIOV_CTRL) & PCI_SRIOV_CTRL_MSE) !== 0 && pf.vfEnabled;
  }

  get vfEnabled(): boolean {
    const cap = this.template.sriovCap;
    return cap !== 0 && (this.reg16(cap + PCI_SRIOV_CTRL) & PCI_SRIOV_CTRL_VFE) !== 0;
  }

  get busMaster(): boolean {
    return (this.reg16(PCI_COMMAND) & PCI_COMMAND_MASTER) !== 0;
  }

  /** Memory cycles reach it and it completes them. */
  answersMemory(): boolean {
    if (this.power !== 0 || !this.memoryEnabled || !this.answersConfig()) return false;
    for (let up = this.parent; up !== undefined; up = up.parent) if (!up.memoryEnabled) return false;
    return true;
  }

  /** It may send requests upstream, and they get to the root. */
  mayMaster(): boolean {
    if (this.power !== 0 || !this.busMaster || !this.answersConfig()) return false;
    for (let up = this.parent; up !== undefined; up = up.parent) if (!up.busMaster) return false;
    return true;
  }

  get inSecondaryReset(): boolean {
    return this.template.headerType === 1 && (this.reg16(PCI_BRIDGE_CONTROL) & PCI_BRIDGE_CTL_BUS_RESET) !== 0;
  }

  // ---- BARs --------------------------------------------------------------------------

  /** Address programmed into a memory BAR; 0: none. */
  barAddress(bar: number): bigint {
    const d = this.template.bars[bar];
    if (d === undefined) return 0n;
    if (this.#vfBars !== undefined) return this.#vfBars[bar] ?? 0n;
    const low = this.reg32(PCI_BASE_ADDRESS_0 + 4 * bar);
    if (d.kind === "io") return BigInt(low & ~3);
    const high = d.kind === "mem64" ? this.reg32(PCI_BASE_ADDRESS_0 + 4 * bar + 4) : 0;
    return (BigInt(high) << 32n) | BigInt((low & ~0xf) >>> 0);
  }

  /** Enters its BARs into the physical address space, or takes them out, as its registers now say. */
  updateDecode(): void {
    this.#bars.update(!this.gone && this.power === 0 && this.memoryEnabled);
    this.activity();
  }

  /** Its model did something, or what answers of it changed. */
  activity(): void {
    this.onActivity?.();
  }

  /** The memory BAR that decodes `addr`, or -1. */
  barAt(addr: bigint): number {
    return this.#bars.at(addr);
  }

  /** False, and all ones, when the BAR is not decoded. Throws RangeError outside of it. */
  barRead(bar: number, offset: number, dst: Uint8Array): boolean {
    return this.#bars.read(bar, offset, dst);
  }

  /** What reads of `width` bytes would give, with none of their effects. Throws RangeError outside of the BAR. */
  barPeek(bar: number, offset: number, dst: Uint8Array, width: number): void {
    this.#bars.peek(bar, offset, dst, width);
  }

  /** False: nobody took it. Throws RangeError outside of the BAR. */
  barWrite(bar: number, offset: number, src: Uint8Array): boolean {
    return this.#bars.write(bar, offset, src);
  }

  /** Accesses to the BAR are completed. */
  barAnswers(bar: number): boolean {
    if (this.template.bars[bar]?.kind !== "io") return this.answersMemory();
    return this.power === 0 && (this.reg16(PCI_COMMAND) & PCI_COMMAND_IO) !== 0 && this.answersConfig();
  }

  // ---- power ---------------------------------------------------------------------------

  #powerWritten(): void {
    const at = this.template.pmCap + PCI_PM_CTRL;
    const want = this.reg16(at) & PCI_PM_CTRL_STATE_MASK;
    const old = this.power;
    // D1 and D2 are not implemented: such a write is discarded.
    if (want === old || (want !== 0 && want !== D3HOT)) {
      this.#bytes[at] = ((this.#bytes[at] as number) & ~PCI_PM_CTRL_STATE_MASK) | old;
      return;
    }
    this.#setPower(want);
    if (want === 0 && (this.reg16(at) & PCI_PM_CTRL_NO_SOFT_RESET) === 0) this.reset("pm");
    else this.updateDecode();
  }

  #setPower(state: number): void {
    const from = this.power;
    if (from === state) return;
    this.power = state;
    this.model.setPower(state);
    const trace = this.kernel.trace;
    if (trace.on) trace.emit({ type: "pci.power", device: this.name, from, to: state });
    for (const vf of this.vfs) vf.updateDecode();
  }

  /** The platform takes main power away, or gives it back (a reset of everything, no state kept). */
  setMainPower(on: boolean): void {
    if (on === (this.power !== D3COLD)) return;
    if (on) {
      this.#setPower(0);
      this.reset("power");
    } else {
      this.#setPower(D3COLD);
      this.updateDecode();
    }
  }

  // ---- reset -----------------------------------------------------------------------------

  /** The function resets now; when it answers again is the description's say. */
  reset(kind: ResetKind): void {
    const outcome = this.template.description.reset?.[kind] ?? "works";
    this.#powerOnState(kind);
    // A bus reset that "fails" is a link that does not come back in time: the function itself answers.
    this.#readyAt = this.#readyTime(kind === "bus" && outcome === "fails" ? "works" : outcome);
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "pci.hw_reset", device: this.name, kind });
  }

  #readyTime(outcome: ResetOutcome): number {
    const now = this.kernel.sched.now;
    if (outcome === "works") return now;
    if (outcome === "fails") return now + BEYOND_PATIENCE;
    return outcome === "dead" ? Number.POSITIVE_INFINITY : now + outcome.readyAfter;
  }

  #powerOnState(kind: ResetKind): void {
    const had = this.vfs.length > 0 && this.vfEnabled;
    this.#bytes = this.template.bytes;
    this.#shared = true;
    this.#setPower(0);
    this.port.lowerIntx();
    this.msix?.reset();
    this.updateDecode();
    this.port.resetPending();
    this.model.reset(kind);
    this.activity();
    if (had) for (const vf of this.vfs) vf.reset(kind === "bus" ? "bus" : "flr");
  }

  #bridgeControlWritten(): void {
    if (!this.inSecondaryReset) return;
    this.resetSecondary();
  }

  /** Hot reset: all that is below, bridges included, whatever their own bridges do. */
  resetSecondary(): void {
    this.linkUpAt = 0;
    for (const child of this.children) {
      child.reset("bus");
      if (child.template.headerType === 1) child.resetSecondary();
      if (child.template.description.reset?.bus === "fails") this.linkUpAt = this.kernel.sched.now + BEYOND_LINK_TRAINING;
      if (child.template.description.reset?.bus === "dead") this.linkUpAt = Number.POSITIVE_INFINITY;
    }
  }

  /** Out of the machine: nothing answers any more. */
  unplug(): void {
    this.gone = true;
    this.updateDecode();
    const siblings = this.pf?.vfs ?? this.parent?.children;
    const i = siblings?.indexOf(this) ?? -1;
    if (i >= 0) siblings?.splice(i, 1);
  }
}

/** Longer than the kernel waits for a link to train. */
const BEYOND_LINK_TRAINING = 2_000 * MS;
