/**
 * An exporter with memory of its own: buffers live in a device's memory BAR,
 * and move to RAM and back, as those of a graphics driver do.
 *
 * A buffer has a place: `vram` (one run of the BAR) or `system` (pages of RAM).
 * Moving it copies the bytes, and takes the old place from everybody first.
 * Whoever needs it to stay pins it; a pinned buffer does not move.
 *
 * Negotiated, it offers, best first: to its own kind the buffer itself; a page
 * table or addresses of VRAM to importers that let go; and RAM to importers that
 * do not, or that do not reach the BAR: for those the buffer moves to RAM and is
 * pinned there, at map and never before. When somebody else has it mapped in
 * VRAM just then, that is EBUSY.
 *
 * The calls of Linux 7.3 do it their way: an attach by a device that cannot
 * reach VRAM silently gives up on it, and a pin by such an importer moves the
 * buffer to RAM, also when the importer then wants nothing of it.
 *
 * What RESV guards: the place, the pins. Lock order: a buffer's `moving` → RESV.
 * `moving` is held from a revoke to its restore: two moves of one buffer must not
 * take each other's memory for their own.
 *
 * An importer of any buffer that must be fenced has the device's decode turned
 * off, and so all buffers in VRAM are revoked, and nothing is copied to or from
 * there, until it has given back what it holds.
 *
 * Invariant: VRAM is disjointly allocated; a buffer has exactly one place.
 *
 * Source: this design (docs/negotiation.md); drivers/gpu/drm/xe/xe_dma_buf.c
 * for what the old calls do.
 */
import { alignUp, PAGE_SIZE_N, type Pfn, physAddr } from "../../lib/addr.ts";
import { EBUSY, EINVAL, ENOMEM, Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { Kernel } from "../kernel.ts";
import { type P2pdmaProvider, p2pdmaDistance, pcimP2pdmaInit, pcimP2pdmaProvider } from "../pci/p2pdma.ts";
import type { PciDev } from "../pci/pci_dev.ts";
import { dmaBufInvalidateMappings } from "./attachment.ts";
import type { DmaBuf, DmaBufOps } from "./buffer.ts";
import { dmaBufExport, dmaBufPut } from "./dma_buf.ts";
import { freeRamSgt, type PhysVec, pageRuns, physVecToSgt, ramToSgt, type SgTable } from "./mapping.ts";
import type { NegotiatedAttachment } from "./negotiated/attachment.ts";
import type { NegotiatedBuffer, NegotiatedExporter } from "./negotiated/buffer.ts";
import { type ExporterOffer, type PhysRange, RevokeLevel } from "./negotiated/contract.ts";
import { legacyDmaBufOps } from "./negotiated/legacy.ts";
import { type Drain, dmaBufRestore, dmaBufRevoke, dmaBufRevokeBeginLocked, dmaBufRevokeFinish } from "./negotiated/revoke.ts";

const MODULE = "vram";
const MOVING: LockClass = new LockClass("vram moving");
/** The family that shares buffers as they are. */
export const VRAM_UUID = "barlink-vram";

type Place = { readonly in: "vram"; readonly offset: bigint } | { readonly in: "system"; readonly pages: readonly Pfn[] };

/** A device whose memory is given out in buffers. */
export class VramDevice {
  readonly kernel: Kernel;
  readonly pdev: PciDev;
  readonly bar: number;
  readonly provider: P2pdmaProvider;
  readonly #size: bigint;
  /** Runs in use, by offset; sorted, disjoint. */
  readonly #runs: { readonly offset: bigint; readonly end: bigint }[] = [];
  /** Those that negotiate, from allocation to release. */
  readonly buffers: Set<DmaBuf> = new Set();
  /** Buffers with an importer that did not let go and that the device keeps out; under their RESV. */
  readonly fenced: Set<DmaBuf> = new Set();
  /** Times a buffer changed its place. */
  moves = 0;

  /** Takes the BAR. Throws `RangeError` when the device has no such memory BAR; the device's decode must be on to use it. */
  constructor(pdev: PciDev, bar: number) {
    const resource = pdev.resources[bar];
    if (resource === undefined || !resource.flags.mem || resource.length < PAGE_SIZE_N) {
      throw new RangeError(`${pdev.name} has no memory BAR ${bar}`);
    }
    this.kernel = pdev.kernel;
    this.pdev = pdev;
    this.bar = bar;
    this.#size = resource.length;
    if (pcimP2pdmaInit(pdev) !== undefined) throw new RangeError(`the BARs of ${pdev.name} cannot be shared`);
    const provider = pcimP2pdmaProvider(pdev, bar);
    if (provider === undefined) throw new KernelBug(`${pdev.name} has no peer-to-peer provider for BAR ${bar}`);
    this.provider = provider;
    this.kernel.modules.load(MODULE);
  }

  /** A buffer of zeros in VRAM, with one reference. EINVAL: no bytes; ENOMEM: no room, or no memory. EBUSY: an importer is fenced. */
  allocate(length: bigint, flags: number): DmaBuf | Errno {
    const size = alignUp(length, PAGE_SIZE_N);
    if (size === 0n) return EINVAL;
    if (this.fenced.size > 0) return EBUSY;
    if (this.kernel.fault.slab("vram buffer")) return ENOMEM;
    const offset = this.take(size);
    if (offset === undefined) return ENOMEM;
    const priv = new VramBuffer(this, size, { in: "vram", offset });
    const dmabuf = dmaBufExport(this.kernel, { expName: MODULE, owner: MODULE, ops: this.#ops(), size, flags, priv });
    if (dmabuf instanceof Errno) {
      this.give(offset);
      return dmabuf;
    }
    this.kernel.phys.write(this.address(offset), new Uint8Array(Number(size)));
    if (dmabuf.negotiated !== undefined) this.buffers.add(dmabuf);
    return dmabuf;
  }

  #ops(): DmaBufOps {
    return this.kernel.interconnect === "negotiated" ? negotiatedVramOps : vramOps;
  }

  /** The lowest room for `size` bytes; undefined: none. */
  take(size: bigint): bigint | undefined {
    let offset = 0n;
    let i = 0;
    for (; i < this.#runs.length; i++) {
      const r = this.#runs[i] as { offset: bigint; end: bigint };
      if (r.offset - offset >= size) break;
      offset = r.end;
    }
    if (offset + size > this.#size) return undefined;
    this.#runs.splice(i, 0, { offset, end: offset + size });
    return offset;
  }

  give(offset: bigint): void {
    const i = this.#runs.findIndex((r) => r.offset === offset);
    bugOn(i < 0, "VRAM is freed that was not allocated");
    this.#runs.splice(i, 1);
  }

  address(offset: bigint): PhysVec["paddr"] {
    return physAddr((this.pdev.resources[this.bar]?.start ?? 0n) + offset);
  }
}

/** The exporter's side of one buffer. */
export class VramBuffer {
  readonly device: VramDevice;
  readonly size: bigint;
  /** RESV. */
  place: Place;
  /** Reasons not to move it; RESV. */
  pins = 0;
  /** From a revoke to the restore that undoes it. */
  readonly moving: Mutex;

  constructor(device: VramDevice, size: bigint, place: Place) {
    this.moving = new Mutex(device.kernel.sched, MOVING);
    this.device = device;
    this.size = size;
    this.place = place;
  }

  runs(): PhysVec[] {
    return this.place.in === "vram" ? [{ paddr: this.device.address(this.place.offset), len: this.size }] : pageRuns(this.place.pages);
  }

  ranges(): PhysRange[] {
    const { provider } = this.device;
    return this.runs().map(({ paddr, len }) =>
      this.place.in === "vram"
        ? { paddr, len, kind: "mmio", cache: "write-combined", provider }
        : { paddr, len, kind: "ram", cache: "cached", provider: undefined },
    );
  }

  /** Copies the bytes to the other kind of place, which nobody uses any more. ENOMEM: no room there; EBUSY: VRAM does not answer. */
  relocate(to: Place["in"]): Errno | undefined {
    if (this.place.in === to) return undefined;
    if (this.device.fenced.size > 0) return EBUSY;
    const bytes = this.#copyOut();
    const old = this.place;
    const place = to === "vram" ? this.#takeVram() : this.#takePages();
    if (place instanceof Errno) return place;
    this.place = place;
    this.#copyIn(bytes);
    this.free(old);
    this.device.moves++;
    return undefined;
  }

  #takeVram(): Place | Errno {
    const offset = this.device.take(this.size);
    return offset === undefined ? ENOMEM : { in: "vram", offset };
  }

  #takePages(): Place | Errno {
    const { frames } = this.device.kernel;
    const pages: Pfn[] = [];
    for (let i = 0n; i < this.size; i += PAGE_SIZE_N) {
      const pfn = frames.tryAlloc();
      if (pfn instanceof Errno) {
        for (const p of pages) frames.put(p);
        return pfn;
      }
      pages.push(pfn);
    }
    return { in: "system", pages };
  }

  #copyOut(): Uint8Array {
    const out = new Uint8Array(Number(this.size));
    let at = 0;
    for (const r of this.runs()) {
      this.device.kernel.phys.read(r.paddr, out.subarray(at, at + Number(r.len)));
      at += Number(r.len);
    }
    return out;
  }

  #copyIn(bytes: Uint8Array): void {
    let at = 0;
    for (const r of this.runs()) {
      this.device.kernel.phys.write(r.paddr, bytes.subarray(at, at + Number(r.len)));
      at += Number(r.len);
    }
  }

  free(place: Place): void {
    if (place.in === "vram") this.device.give(place.offset);
    else for (const pfn of place.pages) this.device.kernel.frames.put(pfn);
  }
}

const bufferOf = (dmabuf: DmaBuf): VramBuffer => dmabuf.priv as VramBuffer;

/**
 * Moves a buffer, as memory pressure or a job of the device's would: everybody
 * lets go, the bytes are copied, everybody may come back. No lock held. EBUSY:
 * it is pinned, or somebody who was fenced still holds it; ENOMEM: no room.
 */
export function* vramMove(dmabuf: DmaBuf, to: Place["in"]): Step<Errno | undefined> {
  const { negotiated, resv } = dmabuf;
  if (negotiated !== undefined) {
    const { moving } = bufferOf(dmabuf);
    yield* moving.lock();
    try {
      const e = yield* moveAway(dmabuf, negotiated, to);
      yield* settle(dmabuf, negotiated);
      return e;
    } finally {
      moving.unlock();
    }
  }
  yield* resv.lock();
  try {
    return yield* moveLocked(dmabuf, to);
  } finally {
    resv.unlock();
  }
}

/** Revokes and copies; the buffer is left revoked. `moving` held. */
function* moveAway(dmabuf: DmaBuf, negotiated: NegotiatedBuffer, to: Place["in"]): Step<Errno | undefined> {
  const buffer = bufferOf(dmabuf);
  const { resv } = dmabuf;
  let drain: Drain | undefined;
  yield* resv.lock();
  try {
    if (buffer.place.in === to) return undefined;
    // Under the lock under which pins are made: an importer that never lets go is never asked to.
    if (buffer.pins > 0 || negotiated.fenced > 0) return EBUSY;
    drain = yield* dmaBufRevokeBeginLocked(negotiated, "temporary");
  } finally {
    resv.unlock();
  }
  if (drain !== undefined) yield* dmaBufRevokeFinish(drain);
  yield* resv.lock();
  const e = negotiated.fenced > 0 ? EBUSY : buffer.relocate(to);
  resv.unlock();
  return e;
}

/** The buffer can be mapped exactly while its place answers. `moving` held. */
function* settle(dmabuf: DmaBuf, negotiated: NegotiatedBuffer): Step<void> {
  const { device, place } = bufferOf(dmabuf);
  if (device.fenced.size > 0 && place.in === "vram") yield* dmaBufRevoke(negotiated, "temporary");
  else yield* dmaBufRestore(negotiated);
}

/** The device's decode went off or on: its buffers follow. */
function* settleAll(device: VramDevice): Step<void> {
  for (const dmabuf of [...device.buffers]) {
    const { file, negotiated } = dmabuf;
    if (negotiated === undefined || !file.getActive()) continue;
    const { moving } = bufferOf(dmabuf);
    yield* moving.lock();
    yield* settle(dmabuf, negotiated);
    moving.unlock();
    dmaBufPut(dmabuf);
  }
}

/** The same by Linux 7.3's calls: told, and not waited for; RESV held. EBUSY while pinned. */
function* moveLocked(dmabuf: DmaBuf, to: Place["in"]): Step<Errno | undefined> {
  const buffer = bufferOf(dmabuf);
  if (buffer.place.in === to) return undefined;
  if (buffer.pins > 0) return EBUSY;
  yield* dmaBufInvalidateMappings(dmabuf);
  return buffer.relocate(to);
}

// ----- negotiated

/** Under this offer the buffer lies in RAM and stays there. */
const pinsInSystem = (att: NegotiatedAttachment): boolean => (att.agreement.exporter.providers ?? []).length === 0;

const exporter: NegotiatedExporter = {
  offers(dmabuf): readonly ExporterOffer[] {
    const providers = [bufferOf(dmabuf).device.provider];
    return [
      { type: "private", minLevel: RevokeLevel.sync, uuid: VRAM_UUID, providers },
      { type: "iommu", minLevel: RevokeLevel.sync, providers },
      { type: "phys", minLevel: RevokeLevel.sync, providers },
      { type: "dma", minLevel: RevokeLevel.bounded, providers },
      { type: "iommu", minLevel: RevokeLevel.none },
      { type: "dma", minLevel: RevokeLevel.none },
    ];
  },

  *place(dmabuf, att): Step<readonly PhysRange[] | Errno> {
    const buffer = bufferOf(dmabuf);
    if (!pinsInSystem(att)) return buffer.ranges();
    const mappedInVram = att.buffer.epoch.users > 0 && buffer.place.in === "vram";
    if (mappedInVram) return EBUSY;
    const e = buffer.relocate("system");
    if (e !== undefined) return e;
    buffer.pins++;
    return buffer.ranges();
  },

  unplace(dmabuf, att) {
    if (pinsInSystem(att)) bufferOf(dmabuf).pins--;
  },

  *open(dmabuf): Step<object> {
    return bufferOf(dmabuf);
  },

  fence(dmabuf) {
    const { device } = bufferOf(dmabuf);
    if (device.fenced.has(dmabuf)) return;
    device.fenced.add(dmabuf);
    device.pdev.fenceDecode();
    device.kernel.sched.spawn("vram settle", () => settleAll(device));
  },

  unfence(dmabuf) {
    const { device } = bufferOf(dmabuf);
    if (!device.fenced.delete(dmabuf)) return;
    device.pdev.unfenceDecode();
    device.kernel.sched.spawn("vram settle", () => settleAll(device));
  },
};

// ----- as Linux 7.3 calls it

const legacyOps: Omit<DmaBufOps, "release"> = {
  *attach(dmabuf, att): Step<undefined> {
    if (p2pdmaDistance(bufferOf(dmabuf).device.pdev, [att.dev]) < 0) att.peer2peer = false;
  },

  pin(att) {
    const buffer = bufferOf(att.dmabuf);
    if (!att.peer2peer) {
      const others = att.dmabuf.attachments.some((a) => a.maps > 0);
      const e = others && buffer.place.in === "vram" ? EBUSY : buffer.relocate("system");
      if (e !== undefined) return e;
    }
    buffer.pins++;
    return undefined;
  },

  unpin(att) {
    bufferOf(att.dmabuf).pins--;
  },

  *mapDmaBuf(att, dir): Step<SgTable | Errno> {
    const buffer = bufferOf(att.dmabuf);
    if (!att.peer2peer && buffer.pins === 0) {
      const e = yield* moveLocked(att.dmabuf, "system");
      if (e !== undefined) return e;
    }
    return buffer.place.in === "vram"
      ? physVecToSgt(att, buffer.device.provider, buffer.runs(), buffer.size, dir)
      : ramToSgt(att.dev, buffer.runs(), dir);
  },

  *unmapDmaBuf(att, sgt): Step<void> {
    freeRamSgt(att.dev, sgt);
  },
};

function* release(dmabuf: DmaBuf): Step<void> {
  const buffer = bufferOf(dmabuf);
  bugOn(buffer.pins > 0, "a VRAM buffer is released while pinned");
  buffer.device.buffers.delete(dmabuf);
  buffer.free(buffer.place);
}

const vramOps: DmaBufOps = { ...legacyOps, release };

/** Importers that know only the old calls come under the contract too: else nobody would tell them of a move. */
const negotiatedVramOps: DmaBufOps = { ...legacyDmaBufOps, negotiated: exporter, release };
