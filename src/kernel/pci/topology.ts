/**
 * The machine's PCI tree: its description, and the plan made from it.
 *
 * The plan is what firmware and the kernel's scan would settle at boot: bus
 * numbers (depth first), order of discovery (bus by bus), names, BAR addresses and bridge windows, ACS controls.
 * It is made once per description object and never changes, so that booting the
 * same machine again only makes objects.
 *
 * Source: drivers/pci/probe.c, setup-bus.c (their results, not their method).
 */
import {
  PCI_ACS_CTRL,
  PCI_BASE_ADDRESS_0,
  PCI_COMMAND,
  PCI_COMMAND_IO,
  PCI_COMMAND_MEMORY,
  PCI_COMMAND_SERR,
} from "../../uapi/pci_regs.ts";
import { defaultAcsControl } from "./acs.ts";
import { acsBits } from "./acs_flags.ts";
import { bdfName, ridOf } from "./bdf.ts";
import type { BridgeWindow } from "./bus.ts";
import { type ConfigTemplate, configTemplate, type PortKind, portTemplate } from "./config_template.ts";
import { type AcsFlag, type PciFunctionDescription, PciModel } from "./pci_model.ts";
import { NO_RESOURCE, NUM_BARS, type PciResource, ROM_RESOURCE } from "./resource.ts";
import { assignAddresses, type Claim, type Windows } from "./windows.ts";

/** An endpoint. `model` makes a new one at every boot, always with the same description object. */
export interface PciFunctionNode {
  readonly kind: "function";
  /** 0 … 31, and 0 below a port; the next free one when absent. */
  readonly device?: number;
  /** 0 … 7. */
  readonly function?: number;
  readonly model: () => PciModel;
}

/** A root port (on the root bus), a switch's upstream port (below a port) or a downstream port (below an upstream port). */
export interface PciPortNode {
  readonly kind: PortKind;
  readonly device?: number;
  readonly function?: number;
  /** ACS controls it has; absent: SV TB RR CR UF DT for a root or downstream port; empty: no ACS at all. */
  readonly acs?: readonly AcsFlag[];
  /** A slot that can reset what is below by itself. */
  readonly hotplug?: boolean;
  readonly vendor?: number;
  /** Device id. */
  readonly id?: number;
  readonly children: readonly PciNode[];
}

export type PciNode = PciFunctionNode | PciPortNode;

export interface PciTopology {
  /** What is on bus 0. */
  readonly root: readonly PciNode[];
  /** Where 32-bit and non-prefetchable BARs go; 0xc0000000 … 0xfdffffff when absent. */
  readonly mmio32?: { readonly base: bigint; readonly length: bigint };
  /** Where 64-bit prefetchable BARs go; 0x380000000000, 8 TiB, when absent. */
  readonly mmio64?: { readonly base: bigint; readonly length: bigint };
  readonly cpuSupportsP2pdma?: boolean;
  /** The kernel enables ACS where ports have it (it does when there is an IOMMU); true when absent. */
  readonly enableAcs?: boolean;
  /** Functions, by bdf, whose ACS redirection stays off (`pci=disable_acs_redir=`). */
  readonly disableAcsRedirect?: readonly string[];
}

/** What every boot of a machine makes of one function. */
export interface PlannedFunction {
  readonly name: string;
  readonly rid: number;
  /** Index of the port above in `Plan.functions`; -1 on the root bus. */
  readonly parent: number;
  readonly template: ConfigTemplate;
  /** Config space as boot leaves it. */
  readonly boot: Uint8Array;
  readonly resources: readonly PciResource[];
  readonly vfResources: readonly PciResource[] | undefined;
  readonly multifunction: boolean;
  readonly hasResetSlot: boolean;
  /** Bus number below; -1 for an endpoint. */
  readonly secondary: number;
  readonly windows: readonly BridgeWindow[];
  /** Undefined for a port. */
  readonly makeModel: (() => PciModel) | undefined;
}

export interface Plan {
  /** Parents before children, in order of discovery. */
  readonly functions: readonly PlannedFunction[];
  readonly lastBus: number;
}

/** The model of a port: no BARs, nothing to do. */
export class PciPortModel extends PciModel {
  readonly description: PciFunctionDescription;
  constructor(description: PciFunctionDescription) {
    super();
    this.description = description;
  }
}

const plans: WeakMap<PciTopology, Plan> = new WeakMap();

/** RangeError, naming the node, when the topology cannot be. */
export function planTopology(topology: PciTopology): Plan {
  let plan = plans.get(topology);
  if (plan === undefined) {
    plan = new Planner(topology).plan();
    plans.set(topology, plan);
  }
  return plan;
}

const DEFAULT_ACS: readonly AcsFlag[] = ["SV", "TB", "RR", "CR", "UF", "DT"];
const DEFAULT_MMIO32: Windows[number] = { base: 0xc000_0000n, length: 0x3e00_0000n };
const DEFAULT_MMIO64: Windows[number] = { base: 0x3800_0000_0000n, length: 0x800_0000_0000n };
/** PC firmware leaves every function decoding, with SERR# on, as SeaBIOS does. */
const FIRMWARE_COMMAND = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_SERR;
const IO_WINDOW: Windows[number] = { base: 0x1000n, length: 0xf000n };

/** QEMU's ids, which people know from lspci. */
const PORT_IDS: Readonly<Record<PortKind, { readonly vendor: number; readonly device: number; readonly name: string }>> = {
  "root-port": { vendor: 0x1b36, device: 0x000c, name: "root port" },
  "upstream-port": { vendor: 0x104c, device: 0x8232, name: "switch upstream port" },
  "downstream-port": { vendor: 0x104c, device: 0x8233, name: "switch downstream port" },
};

/** A function whose addresses are not assigned yet. */
interface Draft {
  readonly node: PciNode;
  readonly name: string;
  readonly rid: number;
  readonly parent: number;
  readonly template: ConfigTemplate;
  readonly multifunction: boolean;
  readonly hasResetSlot: boolean;
  secondary: number;
  /** Highest bus number below. */
  lastBus: number;
}

class Planner {
  readonly #t: PciTopology;
  readonly #drafts: Draft[] = [];
  #nextBus = 1;

  constructor(t: PciTopology) {
    this.#t = t;
  }

  plan(): Plan {
    this.#scan(this.#t.root, 0, -1, undefined);
    const assigned = assignAddresses(
      this.#drafts.map((d): Claim => ({ parent: d.parent, bars: claimed(d.template), bridge: d.secondary >= 0, name: d.name })),
      [this.#t.mmio32 ?? DEFAULT_MMIO32, this.#t.mmio64 ?? DEFAULT_MMIO64, IO_WINDOW],
    );
    const functions = this.#drafts.map((d, i): PlannedFunction => {
      const { starts, windows } = assigned[i] ?? { starts: [], windows: [] };
      const resources = resourcesOf(d.template, starts);
      return {
        name: d.name,
        rid: d.rid,
        parent: d.parent,
        template: d.template,
        boot: this.#bootBytes(d, resources, windows),
        resources,
        vfResources: vfResourcesOf(d.template, starts),
        multifunction: d.multifunction,
        hasResetSlot: d.hasResetSlot,
        secondary: d.secondary,
        windows,
        makeModel: d.node.kind === "function" ? d.node.model : undefined,
      };
    });
    return { functions, lastBus: this.#nextBus - 1 };
  }

  #scan(nodes: readonly PciNode[], bus: number, parent: number, above: PciPortNode | undefined): void {
    // Below a port with a link there is only device 0; a root bus and a switch's inside have up to 32.
    const onlyDevice0 = above !== undefined && above.kind !== "upstream-port";
    const placed = place(nodes, onlyDevice0, above === undefined ? "root bus" : bdfName(bus << 8));
    const ports: { readonly node: PciPortNode; readonly draft: Draft; readonly index: number }[] = [];
    for (const { node, device, fn, multifunction } of placed) {
      const rid = ridOf(bus, device, fn);
      const name = bdfName(rid);
      const index = this.#drafts.length;
      const template = node.kind === "function" ? endpointTemplate(node, name) : this.#port(node, above, name, multifunction);
      const draft: Draft = {
        node,
        name,
        rid,
        parent,
        template,
        multifunction,
        hasResetSlot: above?.hotplug === true,
        secondary: -1,
        lastBus: -1,
      };
      this.#drafts.push(draft);
      if (node.kind !== "function") ports.push({ node, draft, index });
    }
    // As the kernel does: all of a bus first, then what is behind its bridges, one after the other.
    for (const { node, draft, index } of ports) {
      draft.secondary = this.#nextBus++;
      if (draft.secondary > 255) throw new RangeError(`${draft.name}: more than 256 buses`);
      this.#scan(node.children, draft.secondary, index, node);
      draft.lastBus = this.#nextBus - 1;
    }
  }

  #port(node: PciPortNode, above: PciPortNode | undefined, name: string, multifunction: boolean): ConfigTemplate {
    const wanted = { "root-port": undefined, "upstream-port": "root-port or downstream-port", "downstream-port": "upstream-port" }[
      node.kind
    ];
    const fits = wanted === undefined ? above === undefined : above !== undefined && wanted.includes(above.kind);
    if (!fits) throw new RangeError(`${name}: a ${node.kind} belongs ${wanted === undefined ? "on the root bus" : `below a ${wanted}`}`);
    const ids = PORT_IDS[node.kind];
    const acs = node.acs ?? (node.kind === "upstream-port" ? [] : DEFAULT_ACS);
    return portTemplate(
      {
        name: ids.name,
        vendor: node.vendor ?? ids.vendor,
        device: node.id ?? ids.device,
        class: 0x060400,
        bars: [],
        interruptPin: 1,
        capabilities: { pm: { noSoftReset: true } },
        extended: { acs },
      },
      node.kind,
      multifunction,
    );
  }

  #bootBytes(d: Draft, resources: readonly PciResource[], windows: readonly BridgeWindow[]): Uint8Array {
    const t = d.template;
    const bytes = t.bytes.slice();
    const view = new DataView(bytes.buffer);
    if (d.multifunction) bytes[0x0e] = (bytes[0x0e] as number) | 0x80;
    view.setUint16(PCI_COMMAND, FIRMWARE_COMMAND, true);
    for (let i = 0; i < NUM_BARS; i++) {
      const r = resources[i];
      if (r === undefined || r.length === 0n) continue;
      const off = PCI_BASE_ADDRESS_0 + 4 * i;
      view.setUint32(off, (view.getUint32(off, true) | Number(r.start & 0xffff_ffffn)) >>> 0, true);
      if (r.flags.mem64) view.setUint32(off + 4, Number(r.start >> 32n), true);
    }
    if (d.secondary >= 0) {
      bytes[0x18] = d.rid >> 8;
      bytes[0x19] = d.secondary;
      bytes[0x1a] = d.lastBus;
      const [mem, pref] = windows;
      view.setUint32(0x20, windowRegister(mem), true);
      view.setUint32(0x24, (windowRegister(pref) | 0x0001_0001) >>> 0, true);
      if (pref !== undefined && pref.last >= pref.start) {
        view.setUint32(0x28, Number(pref.start >> 32n), true);
        view.setUint32(0x2c, Number(pref.last >> 32n), true);
      }
    }
    if (t.acsCap !== 0 && this.#t.enableAcs !== false) {
      const acs = acsBits(t.description.extended?.acs ?? []);
      view.setUint16(t.acsCap + PCI_ACS_CTRL, defaultAcsControl(acs, this.#t.disableAcsRedirect?.includes(d.name) === true), true);
    }
    return bytes;
  }
}

/** Base and limit of a window, bits 31 … 20, as the bridge's registers hold them; base above limit when it is empty. */
function windowRegister(w: BridgeWindow | undefined): number {
  if (w === undefined || w.last < w.start) return 0x0000_fff0;
  const base = Number((w.start >> 16n) & 0xfff0n);
  const limit = Number((w.last >> 16n) & 0xfff0n);
  return ((limit << 16) | base) >>> 0;
}

interface Placed {
  readonly node: PciNode;
  readonly device: number;
  readonly fn: number;
  readonly multifunction: boolean;
}

/** Gives every node of a bus its device and function number. */
function place(nodes: readonly PciNode[], onlyDevice0: boolean, where: string): Placed[] {
  const taken = new Set<number>();
  const fixed = nodes.map((n) => (n.device === undefined ? undefined : (n.device << 3) | (n.function ?? 0)));
  for (const f of fixed) {
    if (f === undefined) continue;
    if (f >> 3 > (onlyDevice0 ? 0 : 31) || taken.has(f))
      throw new RangeError(`${where}: device ${f >> 3} function ${f & 7} is taken or cannot be`);
    taken.add(f);
  }
  const devfns = nodes.map((n, i) => {
    const given = fixed[i];
    if (given !== undefined) return given;
    let f = n.function ?? 0;
    if (!onlyDevice0) while (taken.has(f) || (n.function === undefined && [...taken].some((t) => t >> 3 === f >> 3))) f += 8;
    if (f > (onlyDevice0 ? 7 : 255) || taken.has(f)) throw new RangeError(`${where}: no free place for another function`);
    taken.add(f);
    return f;
  });
  return nodes
    .map((node, i): Placed => {
      const devfn = devfns[i] as number;
      const multifunction = devfns.some((o) => o !== devfn && o >> 3 === devfn >> 3);
      return { node, device: devfn >> 3, fn: devfn & 7, multifunction };
    })
    .sort((a, b) => (a.device << 3) + a.fn - (b.device << 3) - b.fn);
}

function endpointTemplate(node: PciFunctionNode, name: string): ConfigTemplate {
  try {
    return configTemplate(node.model().description);
  } catch (e) {
    throw e instanceof RangeError ? new RangeError(`${name}: ${e.message}`) : e;
  }
}

/** Index of VF BAR `i` among a function's claims. */
const vfClaim = (i: number): number => ROM_RESOURCE + 1 + i;

function claimed(t: ConfigTemplate): Claim["bars"] {
  const out: Claim["bars"][number][] = [];
  for (const b of t.bars)
    if (b !== undefined) out.push({ index: b.index, size: b.size, align: b.size, pool: poolOf(b.kind, b.prefetch === true) });
  const rom = t.description.rom;
  if (rom !== undefined) out.push({ index: ROM_RESOURCE, size: rom.size, align: rom.size, pool: 0 });
  const sriov = t.description.extended?.sriov;
  for (const b of sriov?.vf.bars ?? []) {
    out.push({
      index: vfClaim(b.index),
      size: b.size * BigInt(sriov?.totalVfs ?? 0),
      align: b.size,
      pool: poolOf(b.kind, b.prefetch === true),
    });
  }
  return out;
}

/** 0: 32-bit memory, 1: 64-bit prefetchable memory, 2: I/O. */
const poolOf = (kind: string, prefetch: boolean): 0 | 1 | 2 => (kind === "io" ? 2 : kind === "mem64" && prefetch ? 1 : 0);

function resourcesOf(t: ConfigTemplate, starts: readonly (bigint | undefined)[]): readonly PciResource[] {
  const out: PciResource[] = [];
  for (let i = 0; i <= ROM_RESOURCE; i++) {
    const b = t.bars[i];
    const start = starts[i];
    if (i === ROM_RESOURCE && t.description.rom !== undefined && start !== undefined) {
      out.push({
        start,
        length: t.description.rom.size,
        flags: { io: false, mem: true, prefetch: false, mem64: false, rom: true, enabled: false },
      });
    } else if (b === undefined) out.push(NO_RESOURCE);
    else out.push({ start: start ?? 0n, length: b.size, flags: flagsOf(b) });
  }
  return out;
}

const flagsOf = (b: { readonly kind: string; readonly prefetch?: boolean }): PciResource["flags"] => ({
  io: b.kind === "io",
  mem: b.kind !== "io",
  prefetch: b.prefetch === true,
  mem64: b.kind === "mem64",
  rom: false,
  enabled: true,
});

function vfResourcesOf(t: ConfigTemplate, starts: readonly (bigint | undefined)[]): readonly PciResource[] | undefined {
  const sriov = t.description.extended?.sriov;
  if (sriov === undefined) return undefined;
  const out: PciResource[] = Array.from({ length: NUM_BARS }, () => NO_RESOURCE);
  for (const b of sriov.vf.bars) {
    out[b.index] = { start: starts[vfClaim(b.index)] ?? 0n, length: b.size * BigInt(sriov.totalVfs), flags: flagsOf(b) };
  }
  return out;
}
