/**
 * Peer-to-peer DMA: providers, how a peer is reached, and how far it is.
 *
 * A provider stands for one memory BAR of a device whose driver called
 * `pcimP2pdmaInit`. Whether and how another device reaches it depends on the
 * ports between them: across a switch at bus addresses, through the host bridge
 * where ports redirect (ACS) and the host bridge or processor is known to route
 * it, or not at all. The answer is kept per client, as in Linux: later changes
 * of ACS are not noticed.
 *
 * Source: drivers/pci/p2pdma.c.
 */
import { EOPNOTSUPP, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Device } from "../device.ts";
import { redirectsPeers } from "./acs.ts";
import { PciDev } from "./pci_dev.ts";
import { NUM_BARS } from "./resource.ts";

export type P2pdmaMapType = "bus_addr" | "thru_host_bridge" | "not_supported";

/** struct p2pdma_provider. */
export interface P2pdmaProvider {
  readonly owner: PciDev;
  readonly bar: number;
  /** Bus address less CPU address; 0 on this machine. */
  readonly busOffset: bigint;
}

/** What a device has once initialised. */
export interface P2pdma {
  /** By BAR; undefined where there is no memory BAR. */
  readonly providers: readonly (P2pdmaProvider | undefined)[];
  /** Client's requester id → answer. */
  readonly mapTypes: Map<number, P2pdmaMapType>;
}

/** pcim_p2pdma_init. EOPNOTSUPP for a device whose BARs cannot be mapped; harmless when done twice. */
export function pcimP2pdmaInit(dev: PciDev): Errno | undefined {
  if (dev.nonMappableBars) return EOPNOTSUPP;
  if (dev.p2pdma !== undefined) return undefined;
  const providers: (P2pdmaProvider | undefined)[] = [];
  for (let bar = 0; bar < NUM_BARS; bar++) {
    providers.push(dev.resources[bar]?.flags.mem === true ? { owner: dev, bar, busOffset: 0n } : undefined);
  }
  dev.p2pdma = { providers, mapTypes: new Map() };
  return undefined;
}

/** The driver that initialised it is gone. */
export function p2pdmaRelease(dev: PciDev): void {
  dev.p2pdma = undefined;
}

/** pcim_p2pdma_provider; undefined: no memory BAR, or not mappable. Throws `KernelBug` before `pcimP2pdmaInit`. */
export function pcimP2pdmaProvider(dev: PciDev, bar: number): P2pdmaProvider | undefined {
  if (bar >= NUM_BARS || dev.resources[bar]?.flags.mem !== true || dev.nonMappableBars) return undefined;
  if (dev.p2pdma === undefined) throw new KernelBug(`${dev.name}: p2pdma provider asked for before pcim_p2pdma_init`);
  return dev.p2pdma.providers[bar];
}

/** pci_p2pdma_map_type: how `importer` reaches the provider's BAR. */
export function p2pdmaMapType(provider: P2pdmaProvider, importer: Device | undefined): P2pdmaMapType {
  const p2p = provider.owner.p2pdma;
  if (p2p === undefined || !(importer instanceof PciDev)) return "not_supported";
  return p2p.mapTypes.get(importer.rid) ?? mapTypeAndDistance(provider.owner, importer).type;
}

/** pci_p2pdma_distance_many: hops to all clients together; -1 when one cannot reach it, or there are none. */
export function p2pdmaDistance(provider: PciDev, clients: readonly Device[]): number {
  if (clients.length === 0) return -1;
  let total = 0;
  for (const c of clients) {
    if (!(c instanceof PciDev)) return -1;
    const { type, distance } = mapTypeAndDistance(provider, c);
    if (type === "not_supported") return -1;
    total += distance;
  }
  return total;
}

/** calc_map_type_and_dist; remembers the type when the provider is initialised. */
export function mapTypeAndDistance(provider: PciDev, client: PciDev): { type: P2pdmaMapType; distance: number } {
  const toRoot = (dev: PciDev): PciDev[] => {
    const path = [];
    for (let d: PciDev | undefined = dev; d !== undefined; d = d.upstreamBridge) path.push(d);
    return path;
  };
  const a = toRoot(provider);
  const b = toRoot(client);
  // Index on each side of the first common port, or past the end.
  let up = a.findIndex((d) => b.includes(d));
  const common = up < 0 ? undefined : (a[up] as PciDev);
  if (up < 0) up = a.length;
  const down = common === undefined ? b.length : b.indexOf(common);
  // The port both are below counts on the provider's side, as in Linux; one that is a root port turns everything round itself.
  const redirecting = common === undefined ? [] : [...a.slice(0, up + 1), ...b.slice(0, down)].filter(redirectsPeers);
  let type: P2pdmaMapType = "bus_addr";
  if (common === undefined || redirecting.length > 0) {
    const routed = provider.kernel.pci.cpuSupportsP2pdma || hostBridgeWhitelisted(provider);
    type = routed ? "thru_host_bridge" : "not_supported";
  }
  provider.p2pdma?.mapTypes.set(client.rid, type);
  const trace = provider.kernel.trace;
  if (trace.on) {
    trace.emit({
      type: "pci.p2pdma",
      provider: provider.name,
      client: client.name,
      mapType: type,
      distance: up + down,
      acs: redirecting.map((d) => d.name),
    });
  }
  return { type, distance: up + down };
}

const INTEL = 0x8086;
const GOOGLE = 0x1ae0;
const NVIDIA = 0x10de;

/** Host bridges known to route between root ports: their devices (empty: all), by vendor. There is only one here, so entries that hold within one host bridge always do. */
const WHITELIST: readonly { readonly vendor: number; readonly devices: readonly number[] }[] = [
  // Xeon E5 and Core i7, Xeon E7 v3, Skylake-E, Ice Lake and later with their accelerators.
  {
    vendor: INTEL,
    devices: [
      0x3c00, 0x3c01, 0x2f00, 0x2f01, 0x2030, 0x2031, 0x2032, 0x2033, 0x2020, 0x09a2, 0x0b25, 0x0cfe, 0x11fb, 0x1212, 0x1216, 0x4940,
      0x4942, 0x4944, 0x4946, 0x4948,
    ],
  },
  { vendor: GOOGLE, devices: [] },
  { vendor: NVIDIA, devices: [0x2f95, 0x2f96, 0x2f97, 0x2f98] },
];

/** The first device of the root bus speaks for the host bridge: function 00.0, or a root port. There is one host bridge. */
function hostBridgeWhitelisted(dev: PciDev): boolean {
  const root = dev.kernel.pci.rootBus?.devices[0];
  if (root === undefined || (root.devfn !== 0 && root.fn.template.port !== "root-port")) return false;
  return WHITELIST.some((w) => w.vendor === root.vendor && (w.devices.length === 0 || w.devices.includes(root.device)));
}
