/**
 * The config space of a kind of function: power-on bytes, which bits can be
 * written, which are cleared by writing 1, and where each capability is.
 *
 * Built once per description and shared by every function made from it, in
 * every machine; nothing in here changes afterwards.
 *
 * Masks are byte for byte: a write leaves `(old & ~rw) | (new & rw)`, then
 * clears the bits of `w1c` that were written as 1. `effect` says, byte by
 * byte, what the hardware must look at after a write there (`Effect`).
 *
 * Source: PCI 3.0 chapter 6, PCI PM 1.2, PCIe 5.0 chapters 7 and 9, the AF ECN;
 * names from uapi/linux/pci_regs.h.
 */
import {
  PCI_ACS_CAP,
  PCI_ACS_CTRL,
  PCI_AF_CAP,
  PCI_AF_CAP_FLR,
  PCI_AF_CAP_TP,
  PCI_AF_CTRL,
  PCI_BASE_ADDRESS_0,
  PCI_BRIDGE_CONTROL,
  PCI_CACHE_LINE_SIZE,
  PCI_CAP_ID_AF,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSI,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_PM,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_COMMAND,
  PCI_DEVICE_ID,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCAP_FLR,
  PCI_EXP_DEVCAP_RBER,
  PCI_EXP_DEVCAP2,
  PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL2,
  PCI_EXP_DEVSTA,
  PCI_EXP_FLAGS,
  PCI_EXP_LNKCAP,
  PCI_EXP_LNKCAP_DLLLARC,
  PCI_EXP_LNKCTL,
  PCI_EXP_LNKCTL2,
  PCI_EXP_LNKSTA,
  PCI_EXP_LNKSTA_DLLLA,
  PCI_EXP_TYPE_DOWNSTREAM,
  PCI_EXP_TYPE_ENDPOINT,
  PCI_EXP_TYPE_LEG_END,
  PCI_EXP_TYPE_RC_END,
  PCI_EXP_TYPE_ROOT_PORT,
  PCI_EXP_TYPE_UPSTREAM,
  PCI_EXT_CAP_ID_ACS,
  PCI_EXT_CAP_ID_DSN,
  PCI_EXT_CAP_ID_SRIOV,
  PCI_HEADER_TYPE,
  PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_MASKBIT,
  PCI_MSI_FLAGS_QSIZE,
  PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_MSIX_PBA,
  PCI_MSIX_TABLE,
  PCI_PM_CTRL,
  PCI_PM_CTRL_NO_SOFT_RESET,
  PCI_PM_PMC,
  PCI_ROM_ADDRESS,
  PCI_SRIOV_BAR,
  PCI_SRIOV_CTRL,
  PCI_SRIOV_INITIAL_VF,
  PCI_SRIOV_NUM_VF,
  PCI_SRIOV_SUP_PGSIZE,
  PCI_SRIOV_SYS_PGSIZE,
  PCI_SRIOV_TOTAL_VF,
  PCI_SRIOV_VF_DID,
  PCI_SRIOV_VF_OFFSET,
  PCI_SRIOV_VF_STRIDE,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
} from "../../uapi/pci_regs.ts";
import { acsBits } from "./acs_flags.ts";
import type { PciBarDescription, PciFunctionDescription } from "./pci_model.ts";
import { NUM_BARS } from "./resource.ts";

/** What a write must make the hardware look at. */
export const Effect = {
  command: 1,
  bar: 2,
  pm: 4,
  msi: 8,
  flr: 16,
  afFlr: 32,
  bridgeControl: 64,
  sriov: 128,
} as const;

export type PortKind = "root-port" | "upstream-port" | "downstream-port";

export interface ConfigTemplate {
  readonly description: PciFunctionDescription;
  /** Undefined: an endpoint. */
  readonly port: PortKind | undefined;
  readonly isVf: boolean;
  readonly headerType: 0 | 1;
  readonly bytes: Uint8Array;
  readonly rw: Uint8Array;
  readonly w1c: Uint8Array;
  readonly effect: Uint8Array;
  /** Capability id → offset. */
  readonly caps: ReadonlyMap<number, number>;
  readonly extCaps: ReadonlyMap<number, number>;
  readonly pmCap: number;
  readonly msiCap: number;
  readonly msixCap: number;
  readonly pcieCap: number;
  readonly afCap: number;
  readonly acsCap: number;
  readonly sriovCap: number;
  /** By BAR index. */
  readonly bars: readonly (PciBarDescription | undefined)[];
}

const endpoints: WeakMap<PciFunctionDescription, ConfigTemplate> = new WeakMap();
const vfs: WeakMap<PciFunctionDescription, ConfigTemplate> = new WeakMap();

/** The template of an endpoint, or (`isVf`) of a virtual function. */
export function configTemplate(description: PciFunctionDescription, isVf = false): ConfigTemplate {
  const cache = isVf ? vfs : endpoints;
  let t = cache.get(description);
  if (t === undefined) {
    t = new TemplateBuilder(description, undefined, isVf, undefined).build();
    cache.set(description, t);
  }
  return t;
}

/** A template of a port; `speed` is the link speed code of LNKCAP (3 = 8 GT/s). */
export function portTemplate(description: PciFunctionDescription, port: PortKind, multifunction: boolean): ConfigTemplate {
  return new TemplateBuilder(description, port, false, multifunction).build();
}

const EXPRESS_TYPE = { endpoint: PCI_EXP_TYPE_ENDPOINT, "legacy-endpoint": PCI_EXP_TYPE_LEG_END, "rc-endpoint": PCI_EXP_TYPE_RC_END };
const PORT_TYPE = {
  "root-port": PCI_EXP_TYPE_ROOT_PORT,
  "upstream-port": PCI_EXP_TYPE_UPSTREAM,
  "downstream-port": PCI_EXP_TYPE_DOWNSTREAM,
};
/** LNKCAP and LNKSTA of a port: 16 GT/s, x1. */
const LINK_SPEED_16GT_X1 = 0x14;
/** Of a function: 2.5 GT/s, x1, with ASPM L0s. */
const LINK_SPEED_2_5GT_X1 = 0x11;
const LNKCAP_ASPM_L0S = 0x400;
/** DEVCAP2 of a function: extended format field, end-to-end TLP prefixes. */
const DEVCAP2_TLP_PREFIX = 0x0030_0000;

class TemplateBuilder {
  readonly d: PciFunctionDescription;
  readonly port: PortKind | undefined;
  readonly isVf: boolean;
  readonly bytes: Uint8Array;
  readonly rw: Uint8Array;
  readonly w1c: Uint8Array;
  readonly effect: Uint8Array;
  readonly caps: Map<number, number> = new Map();
  readonly extCaps: Map<number, number> = new Map();
  readonly bars: (PciBarDescription | undefined)[] = [];
  readonly #view: DataView;
  readonly #rwView: DataView;
  readonly #multifunction: boolean;
  /** Where the next capability goes unless it says so itself. */
  #next = 0x40;
  /** The link to patch with the next capability's offset. */
  #link = PCI_CAPABILITY_LIST;
  #nextExt = 0x100;
  #lastExt = 0;

  constructor(d: PciFunctionDescription, port: PortKind | undefined, isVf: boolean, multifunction: boolean | undefined) {
    this.d = d;
    this.port = port;
    this.isVf = isVf;
    const size = d.capabilities?.pcie !== undefined || port !== undefined ? 4096 : 256;
    this.bytes = new Uint8Array(size);
    this.rw = new Uint8Array(size);
    this.w1c = new Uint8Array(size);
    this.effect = new Uint8Array(size);
    this.#view = new DataView(this.bytes.buffer);
    this.#rwView = new DataView(this.rw.buffer);
    this.#multifunction = multifunction === true;
  }

  build(): ConfigTemplate {
    this.#header();
    if (this.port === undefined) this.#bars();
    else this.#bridgeHeader();
    const c = this.d.capabilities ?? {};
    // Capabilities are chained in the order in which the description has them.
    for (const kind of Object.keys(c)) {
      if (kind === "pm" && c.pm !== undefined) this.#pm(c.pm);
      else if (kind === "msi" && c.msi !== undefined) this.#msi(c.msi);
      else if (kind === "msix" && c.msix !== undefined) this.#msix(c.msix);
      else if (kind === "pcie" && c.pcie !== undefined) this.#pcie(c.pcie);
      else if (kind === "af" && c.af !== undefined) this.#af(c.af);
    }
    if (c.pcie === undefined && this.port !== undefined) this.#pcie({});
    const e = this.d.extended ?? {};
    if (this.bytes.length < 4096 && (e.acs ?? e.sriov ?? e.dsn) !== undefined) {
      throw new RangeError(`${this.d.name}: extended capabilities need a PCIe capability`);
    }
    if (e.acs !== undefined && e.acs.length > 0) this.#acs(acsBits(e.acs));
    if (e.dsn !== undefined) this.#dsn(e.dsn);
    if (e.sriov !== undefined) this.#sriov(e.sriov);
    if (this.caps.size > 0) this.#u16(PCI_STATUS, this.#view.getUint16(PCI_STATUS, true) | PCI_STATUS_CAP_LIST);
    return {
      description: this.d,
      port: this.port,
      isVf: this.isVf,
      headerType: this.port === undefined ? 0 : 1,
      bytes: this.bytes,
      rw: this.rw,
      w1c: this.w1c,
      effect: this.effect,
      caps: this.caps,
      extCaps: this.extCaps,
      pmCap: this.caps.get(PCI_CAP_ID_PM) ?? 0,
      msiCap: this.caps.get(PCI_CAP_ID_MSI) ?? 0,
      msixCap: this.caps.get(PCI_CAP_ID_MSIX) ?? 0,
      pcieCap: this.caps.get(PCI_CAP_ID_EXP) ?? 0,
      afCap: this.caps.get(PCI_CAP_ID_AF) ?? 0,
      acsCap: this.extCaps.get(PCI_EXT_CAP_ID_ACS) ?? 0,
      sriovCap: this.extCaps.get(PCI_EXT_CAP_ID_SRIOV) ?? 0,
      bars: this.bars,
    };
  }

  #u8(off: number, v: number): void {
    this.#view.setUint8(off, v);
  }
  #u16(off: number, v: number): void {
    this.#view.setUint16(off, v, true);
  }
  #u32(off: number, v: number): void {
    this.#view.setUint32(off, v >>> 0, true);
  }
  #writable(off: number, size: number, mask: number, effect = 0): void {
    if (size === 1) this.#rwView.setUint8(off, mask);
    else if (size === 2) this.#rwView.setUint16(off, mask, true);
    else this.#rwView.setUint32(off, mask >>> 0, true);
    if (effect !== 0) this.effect.fill(effect, off, off + size);
  }

  #header(): void {
    const d = this.d;
    this.#u16(PCI_VENDOR_ID, this.isVf ? 0xffff : d.vendor);
    this.#u16(PCI_DEVICE_ID, this.isVf ? 0xffff : d.device);
    this.#u32(PCI_CLASS_REVISION, (d.class << 8) | (d.revision ?? 0));
    this.#u8(PCI_HEADER_TYPE, (this.port === undefined ? 0 : 1) | (this.#multifunction ? 0x80 : 0));
    if (this.port === undefined) {
      this.#u16(PCI_SUBSYSTEM_VENDOR_ID, d.subsystemVendor ?? 0);
      this.#u16(PCI_SUBSYSTEM_ID, d.subsystemDevice ?? 0);
    }
    // A VF has bus mastering only: its memory enable is the PF's VF MSE, and it has no INTx.
    this.#writable(PCI_COMMAND, 2, this.isVf ? 0x0004 : 0x0547, Effect.command);
    this.w1c[PCI_STATUS + 1] = 0xf9;
    if (!this.isVf) {
      this.#writable(PCI_CACHE_LINE_SIZE, 1, 0xff);
      this.#writable(PCI_INTERRUPT_LINE, 1, 0xff);
      this.#u8(PCI_INTERRUPT_PIN, d.interruptPin ?? 0);
    }
  }

  #bars(): void {
    for (const bar of this.d.bars) {
      checkBar(this.d, bar);
      this.bars[bar.index] = bar;
      if (!this.isVf) this.#bar(PCI_BASE_ADDRESS_0 + 4 * bar.index, bar);
    }
    const rom = this.d.rom;
    if (rom !== undefined && !this.isVf) {
      this.#writable(PCI_ROM_ADDRESS, 4, Number((~(rom.size - 1n) & 0xffff_f800n) | 1n), Effect.bar);
    }
  }

  #bar(off: number, bar: PciBarDescription): void {
    const mask = ~(bar.size - 1n);
    if (bar.kind === "io") {
      this.#u32(off, 1);
      this.#writable(off, 4, Number(mask & 0xffff_fffcn), Effect.bar);
      return;
    }
    this.#u32(off, (bar.kind === "mem64" ? 4 : 0) | (bar.prefetch === true ? 8 : 0));
    this.#writable(off, 4, Number(mask & 0xffff_fff0n), Effect.bar);
    if (bar.kind === "mem64") this.#writable(off + 4, 4, Number((mask >> 32n) & 0xffff_ffffn), Effect.bar);
  }

  #bridgeHeader(): void {
    // Bus numbers, I/O base and limit, secondary status, memory and prefetchable windows.
    this.#writable(0x18, 4, 0xffff_ffff);
    this.#writable(0x1c, 2, 0xf0f0);
    this.#u16(0x1c, 0x0101);
    this.w1c[0x1f] = 0xf9;
    this.#writable(0x20, 4, 0xfff0_fff0);
    this.#writable(0x24, 4, 0xfff0_fff0);
    this.#u32(0x24, 0x0001_0001);
    this.#writable(0x28, 4, 0xffff_ffff);
    this.#writable(0x2c, 4, 0xffff_ffff);
    this.#writable(0x30, 4, 0xffff_ffff);
    this.#writable(PCI_BRIDGE_CONTROL, 2, 0x005f, Effect.bridgeControl);
  }

  /** Links a capability of `size` bytes; its offset. */
  #cap(id: number, size: number, at: number | undefined): number {
    const off = at ?? this.#next;
    if (off < 0x40 || off + size > 0x100 || off % 4 !== 0) throw new RangeError(`${this.d.name}: no room for capability ${id} at ${off}`);
    this.#next = Math.max(this.#next, (off + size + 3) & ~3);
    this.#u8(this.#link, off);
    this.#u8(off, id);
    this.#link = off + 1;
    this.caps.set(id, off);
    return off;
  }

  #extCap(id: number, version: number, size: number): number {
    const off = this.#nextExt;
    this.#nextExt += (size + 3) & ~3;
    this.#u32(off, id | (version << 16));
    if (this.#lastExt !== 0) this.#u32(this.#lastExt, this.#view.getUint32(this.#lastExt, true) | (off << 20));
    this.#lastExt = off;
    this.extCaps.set(id, off);
    return off;
  }

  #pm(pm: NonNullable<NonNullable<PciFunctionDescription["capabilities"]>["pm"]>): void {
    const off = this.#cap(PCI_CAP_ID_PM, 8, pm.at);
    this.#u16(off + PCI_PM_PMC, pm.version ?? 3);
    this.#u16(off + PCI_PM_CTRL, pm.noSoftReset === true ? PCI_PM_CTRL_NO_SOFT_RESET : 0);
    this.#writable(off + PCI_PM_CTRL, 2, 0x0103, Effect.pm);
    this.w1c[off + PCI_PM_CTRL + 1] = 0x80;
  }

  #msi(msi: NonNullable<NonNullable<PciFunctionDescription["capabilities"]>["msi"]>): void {
    const log2 = Math.log2(msi.vectors);
    if (!Number.isInteger(log2) || log2 > 5) throw new RangeError(`${this.d.name}: ${msi.vectors} MSI vectors`);
    const wide = msi.address64 !== false;
    const off = this.#cap(PCI_CAP_ID_MSI, 10 + (wide ? 4 : 0) + (msi.maskable === true ? 10 : 0), msi.at);
    const flags = (log2 << 1) | (wide ? PCI_MSI_FLAGS_64BIT : 0) | (msi.maskable === true ? PCI_MSI_FLAGS_MASKBIT : 0);
    this.#u16(off + PCI_MSI_FLAGS, flags);
    this.#writable(off + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE, Effect.msi);
    this.#writable(off + 4, 4, 0xffff_fffc);
    const data = off + (wide ? 12 : 8);
    if (wide) this.#writable(off + 8, 4, 0xffff_ffff);
    this.#writable(data, 2, 0xffff);
    if (msi.maskable === true) this.#writable(data + 4, 4, msi.vectors === 32 ? 0xffff_ffff : (1 << msi.vectors) - 1, Effect.msi);
  }

  #msix(x: NonNullable<NonNullable<PciFunctionDescription["capabilities"]>["msix"]>): void {
    const off = this.#cap(PCI_CAP_ID_MSIX, 12, x.at);
    this.#u16(off + PCI_MSIX_FLAGS, x.vectors - 1);
    this.#writable(off + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, Effect.msi);
    this.#u32(off + PCI_MSIX_TABLE, x.tableOffset | x.tableBar);
    this.#u32(off + PCI_MSIX_PBA, x.pbaOffset | x.pbaBar);
  }

  #pcie(e: { readonly type?: keyof typeof EXPRESS_TYPE; readonly flr?: boolean; readonly at?: number }): void {
    const off = this.#cap(PCI_CAP_ID_EXP, 60, e.at);
    const type = this.port === undefined ? EXPRESS_TYPE[e.type ?? "endpoint"] : PORT_TYPE[this.port];
    this.#u16(off + PCI_EXP_FLAGS, 2 | (type << 4));
    this.#u32(off + PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_RBER | (e.flr === true ? PCI_EXP_DEVCAP_FLR : 0));
    this.#writable(off + PCI_EXP_DEVCTL, 2, 0x7fff, Effect.flr);
    this.w1c[off + PCI_EXP_DEVSTA] = 0x0f;
    const speed = this.port === undefined ? LINK_SPEED_2_5GT_X1 : LINK_SPEED_16GT_X1;
    const downstream = this.port !== undefined && this.port !== "upstream-port";
    this.#u32(off + PCI_EXP_LNKCAP, speed | (downstream ? PCI_EXP_LNKCAP_DLLLARC : 0) | (this.port === undefined ? LNKCAP_ASPM_L0S : 0));
    this.#writable(off + PCI_EXP_LNKCTL, 2, 0x0fff);
    this.#u16(off + PCI_EXP_LNKSTA, speed | (downstream ? PCI_EXP_LNKSTA_DLLLA : 0));
    if (this.port === undefined) this.#u32(off + PCI_EXP_DEVCAP2, DEVCAP2_TLP_PREFIX);
    this.#writable(off + PCI_EXP_DEVCTL2, 2, 0xffff);
    this.#writable(off + PCI_EXP_LNKCTL2, 2, 0xffff);
  }

  #af(af: { readonly flr?: boolean; readonly at?: number }): void {
    const off = this.#cap(PCI_CAP_ID_AF, 6, af.at);
    this.#u8(off + 2, 6);
    this.#u8(off + PCI_AF_CAP, af.flr === false ? 0 : PCI_AF_CAP_TP | PCI_AF_CAP_FLR);
    // AF_CTRL always reads 0: the write itself starts the reset.
    this.effect[off + PCI_AF_CTRL] = Effect.afFlr;
  }

  #acs(bits: number): void {
    const off = this.#extCap(PCI_EXT_CAP_ID_ACS, 1, 8);
    this.#u16(off + PCI_ACS_CAP, bits);
    this.#writable(off + PCI_ACS_CTRL, 2, bits);
  }

  #dsn(dsn: bigint): void {
    const off = this.#extCap(PCI_EXT_CAP_ID_DSN, 1, 12);
    this.#u32(off + 4, Number(dsn & 0xffff_ffffn));
    this.#u32(off + 8, Number((dsn >> 32n) & 0xffff_ffffn));
  }

  #sriov(s: NonNullable<NonNullable<PciFunctionDescription["extended"]>["sriov"]>): void {
    const off = this.#extCap(PCI_EXT_CAP_ID_SRIOV, 1, 0x40);
    this.#u16(off + PCI_SRIOV_INITIAL_VF, s.totalVfs);
    this.#u16(off + PCI_SRIOV_TOTAL_VF, s.totalVfs);
    this.#writable(off + PCI_SRIOV_NUM_VF, 2, 0xffff);
    this.#u16(off + PCI_SRIOV_VF_OFFSET, s.vfOffset);
    this.#u16(off + PCI_SRIOV_VF_STRIDE, s.vfStride);
    this.#u16(off + PCI_SRIOV_VF_DID, s.vf.device);
    this.#u32(off + PCI_SRIOV_SUP_PGSIZE, 0x553);
    this.#u32(off + PCI_SRIOV_SYS_PGSIZE, 1);
    this.#writable(off + PCI_SRIOV_SYS_PGSIZE, 4, 0x553);
    this.#writable(off + PCI_SRIOV_CTRL, 2, 0x0019, Effect.sriov);
    for (const bar of s.vf.bars) {
      checkBar(s.vf, bar);
      if (bar.kind === "io") throw new RangeError(`${s.vf.name}: a VF has no I/O BARs`);
      this.#bar(off + PCI_SRIOV_BAR + 4 * bar.index, bar);
      this.effect.fill(Effect.sriov, off + PCI_SRIOV_BAR + 4 * bar.index, off + PCI_SRIOV_BAR + 4 * bar.index + 4);
    }
  }
}

function checkBar(d: PciFunctionDescription, bar: PciBarDescription): void {
  const span = bar.kind === "mem64" ? 2 : 1;
  if (bar.index < 0 || bar.index + span > NUM_BARS) throw new RangeError(`${d.name}: BAR ${bar.index} does not exist`);
  if (bar.size < (bar.kind === "io" ? 4n : 16n) || (bar.size & (bar.size - 1n)) !== 0n) {
    throw new RangeError(`${d.name}: BAR ${bar.index} of ${bar.size} bytes: the size is a power of two, at least 16 (I/O: 4)`);
  }
}
