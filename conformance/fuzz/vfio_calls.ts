/** VFIO devices by their own nodes: binding, attaching, what they tell, what revokes, and buffers of their BARs. */
import * as u from "../../src/uapi/index.ts";
import { ioctl, LIST, type Members, OUT, u32Bytes, u64Bytes } from "./draft.ts";
import { DATA } from "./program.ts";
import { P } from "./values.ts";
import type { Context, Device, Ref, World } from "./world.ts";

const GET = u.VFIO_DEVICE_FEATURE_GET;
const SET = u.VFIO_DEVICE_FEATURE_SET;
const PROBE = u.VFIO_DEVICE_FEATURE_PROBE;

/** The region that is memory, and its bytes; the config space's places that revoke. */
interface Shape {
  readonly memory: number;
  readonly bytes: bigint;
  /** Power management's control register; none when 0. */
  readonly pmcsr: number;
  /** PCI Express device control; none when 0. */
  readonly devctl: number;
}

const SHAPES: Readonly<Record<string, Shape>> = {
  "@edu": { memory: 0, bytes: 0x10_0000n, pmcsr: 0, devctl: 0 },
  "@ivshmem": { memory: 2, bytes: 0x100_0000n, pmcsr: 0, devctl: 0 },
  "@nvme": { memory: 4, bytes: 0x100_0000n, pmcsr: 0x64, devctl: 0x88 },
};

const NO_DATA = { bytes: new Uint8Array(0), patches: [], keeps: [], more: [] };

export function deviceOpen(w: World, c: Context): boolean {
  const free = Object.keys(SHAPES).filter((n) => !w.opened.has(n));
  const name = w.some(free);
  if (name === undefined) return false;
  const d: Device = { fd: w.slot(), name, devid: w.slot(), attached: false };
  if (!w.push({ op: "open", n: [2n], path: name, save: d.fd.slot })) return false;
  w.opened.add(name);
  if (w.chance(0.1)) describe(w, c, d);
  // What is bound must be known to be bound to this context, and no other.
  const m = { iommufd: c.fd };
  const o = { min: u.VfioDeviceBindIommufd.endOf("out_devid"), keeps: { out_devid: d.devid }, good: true };
  ioctl(w, c, d.fd, u.VFIO_DEVICE_BIND_IOMMUFD, u.VfioDeviceBindIommufd, m, o);
  c.devices.push(d);
  if (w.chance(0.9)) attachTo(w, c, d);
  return true;
}

function attachTo(w: World, c: Context, d: Device): boolean {
  if (c.kind === "mixed" && d.attached) return false;
  const pt = w.some<Ref>([...c.ioases.map((s) => s.ref), ...c.hwpts.map((h) => h.ref)]);
  if (pt === undefined) return false;
  d.attached = true;
  // The flag of a PASID would attach in a way that only the same flag undoes.
  const o = { min: 12, fixed: ["flags"], good: c.kind === "mixed" };
  if (!ioctl(w, c, d.fd, u.VFIO_DEVICE_ATTACH_IOMMUFD_PT, u.VfioDeviceAttachIommufdPt, { pt_id: pt }, o)) return false;
  const s = c.ioases.find((x) => x.ref === pt);
  if (s !== undefined) s.attached = true;
  return true;
}

export function attach(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return deviceOpen(w, c);
  return attachTo(w, c, d);
}

export function detach(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return false;
  return ioctl(w, c, d.fd, u.VFIO_DEVICE_DETACH_IOMMUFD_PT, u.VfioDeviceDetachIommufdPt, {}, { min: 8, fixed: ["flags"] });
}

export function bindAgain(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return false;
  const m = { iommufd: w.chance(0.5) ? c.fd : -1, flags: w.pick([0, 0, 2, 4]) };
  return ioctl(w, c, d.fd, u.VFIO_DEVICE_BIND_IOMMUFD, u.VfioDeviceBindIommufd, m, { good: true });
}

export function deviceClose(w: World, c: Context): boolean {
  const d = w.take(c.devices);
  if (d === undefined) return false;
  w.opened.delete(d.name);
  return w.push({ op: "close", fd: d.fd, n: [] });
}

function describe(w: World, c: Context, d: Device): boolean {
  const tail = new Uint8Array(w.pick([0, 0, 64, 256]));
  switch (w.rng.below(3)) {
    case 0:
      return ioctl(w, c, d.fd, u.VFIO_DEVICE_GET_INFO, u.VfioDeviceInfo, {}, { min: 16, tail });
    case 1:
      return ioctl(w, c, d.fd, u.VFIO_DEVICE_GET_REGION_INFO, u.VfioRegionInfo, { index: w.rng.below(11) }, { tail });
    default:
      return ioctl(w, c, d.fd, u.VFIO_DEVICE_GET_IRQ_INFO, u.VfioIrqInfo, { index: w.rng.below(6) });
  }
}

export function info(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d !== undefined) describe(w, c, d);
  return true;
}

export function reset(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return false;
  if (w.chance(0.5)) {
    w.push({ op: "ioctl", fd: d.fd, n: [BigInt(u.VFIO_DEVICE_RESET)], data: { ...NO_DATA, at: 0n } });
  } else if (w.pick([true, false])) {
    const tail = new Uint8Array(w.pick([0, 12, 12, 64]));
    ioctl(w, c, d.fd, u.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, u.VfioPciHotResetInfo, {}, { tail });
  } else {
    ioctl(w, c, d.fd, u.VFIO_DEVICE_PCI_HOT_RESET, u.VfioPciHotReset, { count: 0 }, { fixed: ["count"] });
  }
  return true;
}

/** Interrupts, with descriptors of events where some are. */
export function irqs(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return false;
  const event = w.some(w.files.filter((f) => f.kind === "event"));
  const has = { "@edu": [0, 1], "@ivshmem": [2], "@nvme": [0, 2] }[d.name] ?? [];
  const index = w.pick(w.chance(0.8) ? [...has, 4] : [0, 1, 2, 3, 5]);
  const eventful = w.chance(0.7);
  const trigger = u.VFIO_IRQ_SET_ACTION_TRIGGER;
  const action = eventful
    ? w.pick([trigger, trigger, trigger, trigger, trigger, trigger, u.VFIO_IRQ_SET_ACTION_MASK, u.VFIO_IRQ_SET_ACTION_UNMASK])
    : w.pick([8, 16, 32, 0, 24]);
  const count = w.pick([1, 1, 1, 2, 0]);
  const m = {
    flags: action | (eventful ? u.VFIO_IRQ_SET_DATA_EVENTFD : w.pick([1, 1, 2, 0])),
    index,
    start: w.pick([0, 0, 0, 0, 0, 0, 1, 5]),
    count,
  };
  const tail = eventful ? u32Bytes(...Array.from({ length: count }, () => -1)) : new Uint8Array(count).fill(1);
  const tailRefs = eventful && count > 0 && event !== undefined && w.chance(0.8) ? { 0: event.fd } : {};
  return ioctl(w, c, d.fd, u.VFIO_DEVICE_SET_IRQS, u.VfioIrqSet, m, { tail, tailRefs, min: 20, fixed: ["flags", "count"] });
}

/** A buffer of ranges of a BAR. */
export function bufferExport(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return deviceOpen(w, c);
  if (w.files.length >= 8) return closeFile(w);
  const { memory, bytes } = SHAPES[d.name] as Shape;
  const pages = Number(bytes / P);
  const count = w.chance(0.9) ? 1 : w.pick([0, 2, 3]);
  const ranges: bigint[] = [];
  let size = 0n;
  for (let i = 0; i < count; i++) {
    const length = w.chance(0.06) ? w.pick([0n, 1n, 0x800n, bytes, bytes + P, 1n << 63n]) : BigInt(1 + w.rng.below(8)) * P;
    ranges.push(w.chance(0.06) ? w.pick([bytes, bytes - P, 1n, 1n << 63n]) : BigInt(w.rng.below(pages - 16)) * P, length);
    size += length;
  }
  const fd = w.slot();
  const what = w.chance(0.95) ? GET : w.pick([SET, PROBE, GET | PROBE, GET | SET]);
  const m: Members = { flags: what | u.VFIO_DEVICE_FEATURE_DMA_BUF };
  const tail = new Uint8Array(16 + ranges.length * 8);
  const region = w.chance(0.95) ? memory : w.rng.below(10);
  tail.set(u32Bytes(region, w.pick([2, 2, 0, 0o2000002, 4]), w.chance(0.97) ? 0 : 1, w.chance(0.97) ? count : count + 1));
  tail.set(u64Bytes(...ranges), 16);
  // Only a plain GET returns a descriptor: the 0 of a probe would name another file one day.
  const gives = what === GET;
  const o = { min: 8, tail, fixed: ["flags"], ...(gives ? { save: fd } : {}) };
  const done = ioctl(w, c, d.fd, u.VFIO_DEVICE_FEATURE, u.VfioDeviceFeature, m, o);
  if (done && gives) w.files.push({ fd, kind: "dmabuf", size });
  return done;
}

/** Power, probes of features, and the others, that this driver lacks. */
export function feature(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return false;
  const low = w.chance(0.5);
  const index = low
    ? w.pick([u.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, u.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, u.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT])
    : w.rng.below(15);
  // Only a probe of what is not power or a buffer: the others are rarely there.
  const what = low ? w.pick([SET, SET, SET, PROBE | SET, GET]) : w.pick([PROBE | GET, PROBE | SET, PROBE, PROBE | GET | SET, 0]);
  ioctl(
    w,
    c,
    d.fd,
    u.VFIO_DEVICE_FEATURE,
    u.VfioDeviceFeature,
    { flags: what | index },
    { min: 8, fixed: ["flags"], tail: new Uint8Array(w.pick([0, 0, 0, 8])) },
  );
  // The kernel lets the device sleep when it comes to it.
  if (low) w.push({ op: "sleep", n: [20n] });
  return true;
}

const write = (w: World, d: Device, region: number, at: number, bytes: Uint8Array): boolean =>
  w.push({ op: "pwrite", fd: d.fd, n: [BigInt(region), BigInt(at)], data: { ...NO_DATA, at: LIST, bytes } });

/** Config space: what turns memory on and off, power states, resets, and plain reads. */
export function config(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined) return false;
  const { pmcsr, devctl } = SHAPES[d.name] as Shape;
  const u16 = (v: number): Uint8Array => u32Bytes(v).subarray(0, 2);
  switch (w.rng.below(6)) {
    case 0:
    case 1:
      return write(w, d, u.VFIO_PCI_CONFIG_REGION_INDEX, u.PCI_COMMAND, u16(w.pick([0, 2, 4, 6, 6, 7, 0x406])));
    case 2:
      if (pmcsr !== 0 && w.chance(0.6)) {
        write(w, d, u.VFIO_PCI_CONFIG_REGION_INDEX, pmcsr, u16(w.pick([0, 0, 3, 1, 2])));
        // A function takes 10 ms from D3 to D0.
        return w.push({ op: "sleep", n: [20n] });
      }
      if (devctl !== 0) return write(w, d, u.VFIO_PCI_CONFIG_REGION_INDEX, devctl, u16(w.pick([0x8000, 0x2810])));
      return write(w, d, u.VFIO_PCI_CONFIG_REGION_INDEX, 0x3c, Uint8Array.of(w.rng.below(256)));
    case 3: {
      const bar = 0x10 + 4 * w.rng.below(6);
      return write(w, d, u.VFIO_PCI_CONFIG_REGION_INDEX, bar, u32Bytes(w.pick([0xffff_ffff, 0, 0x1000_0000, 0xfe00_0000])));
    }
    default: {
      // What BARs and the interrupt line hold before they are written is for the machine's firmware to say.
      const [at, n] = [w.pick([w.rng.below(0x10), 0x3d + w.rng.below(0xd3)]), w.pick([1, 2, 4, 4, 8, 12, 3, 0])];
      if (at < 0x10 && at + n > 0x10) return false;
      return w.push({
        op: "pread",
        fd: d.fd,
        n: [BigInt(u.VFIO_PCI_CONFIG_REGION_INDEX), BigInt(at), BigInt(n)],
        data: { ...NO_DATA, at: OUT },
      });
    }
  }
}

/** Memory of a BAR: zeros are written, for what is written stays there. */
export function bar(w: World, c: Context): boolean {
  const d = w.some(c.devices);
  if (d === undefined || d.name === "@edu") return false;
  const { memory, bytes } = SHAPES[d.name] as Shape;
  const at = w.chance(0.9) ? w.rng.below(0x1000) : w.pick([Number(bytes), Number(bytes) - 2, Number(bytes) + 0x1000]);
  if (w.chance(0.5)) return write(w, d, memory, at, new Uint8Array(w.pick([1, 2, 4, 8, 12, 100])));
  return w.push({
    op: "pread",
    fd: d.fd,
    n: [BigInt(memory), BigInt(at), BigInt(w.pick([1, 2, 4, 8, 13, 64]))],
    data: { ...NO_DATA, at: OUT },
  });
}

/** The type1 way to hand a BAR to a device: iommufd refuses such memory. */
export function mapBar(w: World, c: Context): boolean {
  const [d, s] = [w.some(c.devices), w.some(c.ioases)];
  if (d === undefined || s === undefined || d.name === "@edu") return false;
  const { memory } = SHAPES[d.name] as Shape;
  const at = DATA + 0x80_0000n;
  w.push({ op: "mmap", fd: d.fd, n: [at, P, 3n, 0x11n, BigInt(memory) << 40n] });
  const m = { flags: 7, ioas_id: s.ref, user_va: at, length: P, iova: 0x300_0000n };
  ioctl(w, c, c.fd, u.IOMMU_IOAS_MAP, u.IommuIoasMap, m);
  return w.push({ op: "munmap", n: [at, P] });
}

export function closeFile(w: World): boolean {
  const f = w.take(w.files);
  if (f !== undefined) w.push({ op: "close", fd: f.fd, n: [] });
  return true;
}
