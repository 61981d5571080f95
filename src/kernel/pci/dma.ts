/**
 * The way of a DMA request from a function to whoever answers.
 *
 * 1. The function must be in D0, reachable and a bus master, and the bridges
 *    above must pass requests on; otherwise the request is dropped.
 * 2. On its way up, every switch sees the untranslated address. Where the
 *    downstream port it came in by does not redirect peer requests (ACS P2P
 *    Request Redirect), an address that a sibling port claims goes there
 *    directly: no IOMMU translates it, and the sibling's BAR answers or nobody
 *    does. A request never turns back into the port it came from.
 * 3. At the root the IOMMU translates, contiguous run by contiguous run, and
 *    the physical address space answers: RAM, or a BAR of any function.
 *
 * A read that the IOMMU refuses leaves zeros; one that nobody answers gives all
 * ones; a write that nobody takes vanishes.
 *
 * Source: PCIe 5.0 6.12 (ACS), the ports' windows 7.5.1.3.
 */
import { type PhysAddr, physAddr } from "../../lib/addr.ts";
import { PCI_ACS_CTRL, PCI_ACS_RR } from "../../uapi/pci_regs.ts";
import { IommuFault } from "../iommu/fault.ts";
import type { PciFunction } from "./function.ts";

/** False: dropped, faulted or unanswered; see above for what `dst` then holds. */
export function dmaRead(fn: PciFunction, addr: bigint, dst: Uint8Array): boolean {
  return dma(fn, addr, dst, false);
}

export function dmaWrite(fn: PciFunction, addr: bigint, src: Uint8Array): boolean {
  return dma(fn, addr, src, true);
}

function dma(fn: PciFunction, addr: bigint, buf: Uint8Array, write: boolean): boolean {
  if (!fn.mayMaster()) {
    if (!write) buf.fill(0);
    traceDma(fn, addr, buf.length, write, "dropped", undefined, false);
    return false;
  }
  if (buf.length === 0) return true;
  const peer = peerBelowSwitch(fn, addr);
  if (peer !== undefined) {
    const ok = toPeer(peer, addr, buf, write);
    traceDma(fn, addr, buf.length, write, "peer", peer === NOBODY ? undefined : peer.name, ok);
    return ok;
  }
  return toRoot(fn, addr, buf, write);
}

/** A sibling port's window in which no function answers. */
const NOBODY: unique symbol = Symbol("nobody");

/** The function that a switch on the way up hands the request to; undefined: none does. */
function peerBelowSwitch(fn: PciFunction, addr: bigint): PciFunction | typeof NOBODY | undefined {
  // A VF enters the fabric by its PF's port.
  for (let port = fn.parent; port !== undefined; port = port.parent) {
    const upstream = port.parent;
    if (port.template.port !== "downstream-port" || upstream === undefined || redirects(port)) continue;
    for (const sibling of upstream.children) {
      const bus = sibling === port ? undefined : sibling.owner?.subordinate;
      if (bus?.forwards(addr) !== true || !sibling.memoryEnabled) continue;
      return functionAt(sibling, addr) ?? NOBODY;
    }
  }
  return undefined;
}

/** The port sends peer requests up to the root instead of across. */
function redirects(port: PciFunction): boolean {
  const cap = port.template.acsCap;
  return cap !== 0 && (port.reg16(cap + PCI_ACS_CTRL) & PCI_ACS_RR) !== 0;
}

function functionAt(port: PciFunction, addr: bigint): PciFunction | undefined {
  for (const child of port.children) {
    if (child.barAt(addr) >= 0) return child;
    for (const vf of child.vfs) if (vf.barAt(addr) >= 0) return vf;
    const deeper = functionAt(child, addr);
    if (deeper !== undefined) return deeper;
  }
  return undefined;
}

function toPeer(peer: PciFunction | typeof NOBODY, addr: bigint, buf: Uint8Array, write: boolean): boolean {
  const bar = peer === NOBODY ? -1 : peer.barAt(addr);
  if (peer === NOBODY || bar < 0) {
    if (!write) buf.fill(0xff);
    return false;
  }
  const offset = Number(addr - peer.barAddress(bar));
  const size = peer.template.bars[bar]?.size ?? 0n;
  const room = size - BigInt(offset);
  const part = BigInt(buf.length) > room ? buf.subarray(0, Number(room)) : buf;
  if (!write && part !== buf) buf.fill(0xff, part.length);
  const ok = write ? peer.barWrite(bar, offset, part) : peer.barRead(bar, offset, part);
  return ok && part === buf;
}

function toRoot(fn: PciFunction, addr: bigint, buf: Uint8Array, write: boolean): boolean {
  const { iommu, phys } = fn.kernel;
  const rid = fn.owner?.rid ?? 0;
  let ok = true;
  let faulted = false;
  for (let done = 0; done < buf.length; ) {
    const at = addr + BigInt(done);
    const t = iommu.translate(rid, at, write);
    const run = t instanceof IommuFault ? 4096n - (at & 0xfffn) : t.last - at + 1n;
    const left = buf.length - done;
    const n = run >= BigInt(left) ? left : Number(run);
    const part = n === buf.length ? buf : buf.subarray(done, done + n);
    if (t instanceof IommuFault) {
      ok = false;
      faulted = true;
      if (!write) part.fill(0);
    } else if (!(write ? phys.write(t.pa as PhysAddr, part) : phys.read(physAddr(t.pa), part))) ok = false;
    done += n;
  }
  traceDma(fn, addr, buf.length, write, faulted ? "fault" : "root", undefined, ok);
  return ok;
}

function traceDma(
  fn: PciFunction,
  addr: bigint,
  length: number,
  write: boolean,
  route: "root" | "peer" | "fault" | "dropped",
  peer: string | undefined,
  ok: boolean,
): void {
  const trace = fn.kernel.trace;
  if (!trace.on) return;
  trace.emit(
    peer === undefined
      ? { type: "pci.dma", device: fn.name, write, addr, length, route, ok }
      : { type: "pci.dma", device: fn.name, write, addr, length, route, ok, peer },
  );
}
