/** Hostile calls of a VFIO device's node. Each section opens it anew. */

import type { AnyStruct } from "../../src/uapi/index.ts";
import * as u from "../../src/uapi/index.ts";
import { type Members, type Options, type Program, u32s, u64s } from "./program.ts";

const U64 = 0xffff_ffff_ffff_ffffn;
const U32 = 0xffff_ffff;
const GHOST = 0x7777;
/** As many ranges as one allocation holds, 4 MiB. */
const MOST_RANGES = 262_144;
const GET = u.VFIO_DEVICE_FEATURE_GET;
const SET = u.VFIO_DEVICE_FEATURE_SET;
const PROBE = u.VFIO_DEVICE_FEATURE_PROBE;

type Ask = (what: string, members?: Members, o?: Options) => void;

function asker(p: Program, cmd: string, struct: AnyStruct, defaults: Members): Ask {
  return (what, members = {}, o = {}) => p.ioctl("$dev", cmd, struct, what, { argsz: struct.size, ...defaults, ...members }, o);
}

const binder = (p: Program): Ask => asker(p, "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, { iommufd: "$ifd" });
const attacher = (p: Program): Ask => asker(p, "VFIO_DEVICE_ATTACH_IOMMUFD_PT", u.VfioDeviceAttachIommufdPt, { pt_id: "$ioas" });
const detacher = (p: Program): Ask => asker(p, "VFIO_DEVICE_DETACH_IOMMUFD_PT", u.VfioDeviceDetachIommufdPt, {});

function opened(p: Program, name: string, device: string): void {
  p.section(name);
  p.open("/dev/iommu", "$ifd");
  p.ioctl("$ifd", "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, "an address space", { size: 12 }, { save: "$ioas@8" });
  p.open(`@${device}`, "$dev");
}

function bound(p: Program, name: string, device: string): void {
  opened(p, name, device);
  binder(p)("bind", {}, { save: "$devid@12" });
}

const COMMANDS: readonly [string, AnyStruct][] = [
  ["VFIO_DEVICE_ATTACH_IOMMUFD_PT", u.VfioDeviceAttachIommufdPt],
  ["VFIO_DEVICE_DETACH_IOMMUFD_PT", u.VfioDeviceDetachIommufdPt],
  ["VFIO_DEVICE_GET_INFO", u.VfioDeviceInfo],
  ["VFIO_DEVICE_GET_REGION_INFO", u.VfioRegionInfo],
  ["VFIO_DEVICE_GET_IRQ_INFO", u.VfioIrqInfo],
  ["VFIO_DEVICE_SET_IRQS", u.VfioIrqSet],
  ["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", u.VfioPciHotResetInfo],
  ["VFIO_DEVICE_PCI_HOT_RESET", u.VfioPciHotReset],
  ["VFIO_DEVICE_FEATURE", u.VfioDeviceFeature],
  ["VFIO_DEVICE_IOEVENTFD", u.VfioDeviceIoeventfd],
];

function binding(p: Program): void {
  opened(p, "unbound", "edu");
  for (const [cmd, struct] of COMMANDS) p.ioctl("$dev", cmd, struct, "not bound", { argsz: struct.size });
  for (const [cmd] of COMMANDS) p.bare("$dev", cmd, "0", "not bound, null pointer");
  p.bare("$dev", "VFIO_DEVICE_RESET", "0", "not bound");
  p.bare("$dev", "0x3b63", "0", "not bound, unknown number");
  p.bare("$dev", "0x1234", "0", "not bound, another type");

  opened(p, "bind", "edu");
  const bind = binder(p);
  p.open("/dev/null", "$null");
  p.call("open", "an O_PATH descriptor", { path: "/dev/iommu", flags: 0o10000000, save: "$path" });
  const min = u.VfioDeviceBindIommufd.endOf("out_devid");
  p.shapes("$dev", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, min, { iommufd: "$ifd" });
  bind("iommufd -1", { iommufd: -1 });
  bind("iommufd INT_MIN", { iommufd: -2147483648 });
  bind("iommufd closed", { iommufd: 200 });
  bind("iommufd of another kind", { iommufd: "$null" });
  bind("iommufd by O_PATH", { iommufd: "$path" });
  bind("iommufd is the device", { iommufd: "$dev" });
  bind("unknown flag", { flags: 2 });
  bind("unknown flag and iommufd -1", { flags: 2, iommufd: -1 });
  bind("a token, null", { flags: u.VFIO_DEVICE_BIND_FLAG_TOKEN });
  bind("a token, unreadable", { flags: u.VFIO_DEVICE_BIND_FLAG_TOKEN, token_uuid_ptr: "guard-15" });
  bind("a token of a device that has none", { flags: u.VFIO_DEVICE_BIND_FLAG_TOKEN, token_uuid_ptr: "arena+4096" });
  bind("a token of a device that has none, iommufd closed", {
    flags: u.VFIO_DEVICE_BIND_FLAG_TOKEN,
    token_uuid_ptr: "arena+4096",
    iommufd: 200,
  });
  bind("an answer that cannot be written", {}, { at: "ro" });
  bind("8 more, zero, without the token's flag", { argsz: 32, token_uuid_ptr: U64 }, { tail: "0000000000000000", save: "$devid@12" });
  bind("again");
  bind("again, iommufd closed", { iommufd: 200 });
  bind("again, size 0", { argsz: 0 });
  p.open("@edu", "$second");
  p.ioctl("$second", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "a second open", { argsz: 24, iommufd: "$ifd" });
  p.ioctl("$second", "VFIO_DEVICE_GET_INFO", u.VfioDeviceInfo, "by the second open", { argsz: 24 });
  p.open("/dev/iommu", "$another");
  p.ioctl("$second", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "a second open, another context", {
    argsz: 24,
    iommufd: "$another",
  });
  p.close("$dev", "the first");
  p.ioctl("$second", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "a second open after the first is closed", {
    argsz: 24,
    iommufd: "$ifd",
  });
}

function attaching(p: Program): void {
  bound(p, "attach", "edu");
  const attach = attacher(p);
  const detach = detacher(p);
  detach("nothing attached");
  p.shapes("$dev", "VFIO_DEVICE_ATTACH_IOMMUFD_PT", u.VfioDeviceAttachIommufdPt, 12, { pt_id: "$ioas" });
  detach("after those");
  attach("pt_id 0", { pt_id: 0 });
  attach("pt_id unknown", { pt_id: GHOST });
  attach("pt_id ~0", { pt_id: U32 });
  attach("pt_id of the device", { pt_id: "$devid" });
  attach("unknown flag", { flags: 2 });
  attach("unknown flag, id unknown", { flags: 2, pt_id: GHOST });
  attach("a PASID, none supported", { flags: u.VFIO_DEVICE_ATTACH_PASID, pasid: 1 });
  attach("a PASID, short", { flags: u.VFIO_DEVICE_ATTACH_PASID, argsz: 12 });
  attach("a PASID, unreadable", { flags: u.VFIO_DEVICE_ATTACH_PASID }, { at: "guard-12" });
  attach("an answer that cannot be written", {}, { at: "ro" });
  detach("after that");
  attach("least size", { argsz: 12 }, { cut: 12, save: "$hwpt@8" });
  attach("the page table it has", { pt_id: "$hwpt" });
  attach("again");
  attach("an answer of a replace that cannot be written", {}, { at: "ro" });
  p.ioctl("$ifd", "IOMMU_DESTROY", u.IommuDestroy, "the address space after that", { size: 8, id: "$ioas" });
  p.shapes("$dev", "VFIO_DEVICE_DETACH_IOMMUFD_PT", u.VfioDeviceDetachIommufdPt, 8, {});
  detach("unknown flag", { flags: 2 });
  detach("a PASID", { flags: u.VFIO_DEVICE_DETACH_PASID, pasid: 1 });
  detach("a PASID, short", { flags: u.VFIO_DEVICE_DETACH_PASID, argsz: 8 });
  detach("once more");
  p.close("$ifd", "the context, with the device bound");
  attach("the context is closed, device still bound");
}

function information(p: Program): void {
  for (const device of ["edu", "ivshmem", "nvme"]) {
    bound(p, `info-${device}`, device);
    const info = asker(p, "VFIO_DEVICE_GET_INFO", u.VfioDeviceInfo, {});
    const region = asker(p, "VFIO_DEVICE_GET_REGION_INFO", u.VfioRegionInfo, {});
    const irq = asker(p, "VFIO_DEVICE_GET_IRQ_INFO", u.VfioIrqInfo, {});
    info("good");
    for (let index = 0; index <= 10; index++) region(`region ${index}`, { index });
    region("region 0 with room for capabilities", { argsz: 64 }, { tail: "00".repeat(32) });
    region("region ~0", { index: U32 });
    for (let index = 0; index <= 5; index++) irq(`irq ${index}`, { index });
    irq("irq ~0", { index: U32 });
    const reset = asker(p, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", u.VfioPciHotResetInfo, {});
    reset("no room");
    reset("room for 1", { argsz: 20 });
    reset("room for 64", { argsz: 12 + 64 * 8 });
    reset("room for 1 less a byte", { argsz: 19 });
    if (device !== "edu") continue;
    p.shapes("$dev", "VFIO_DEVICE_GET_INFO", u.VfioDeviceInfo, 16, {});
    info("argsz 16", { argsz: 16 }, { cut: 16 });
    info("argsz 18", { argsz: 18 });
    info("an answer that cannot be written", {}, { at: "ro" });
    info("answer crosses into an unreadable page", { argsz: 24 }, { at: "guard-16" });
    info("flags and all set", { flags: U32, num_regions: U32, num_irqs: U32 });
    p.shapes("$dev", "VFIO_DEVICE_GET_REGION_INFO", u.VfioRegionInfo, 32, {});
    region("an answer that cannot be written", {}, { at: "ro" });
    region("region ~0, size 0", { index: U32, argsz: 0 });
    p.shapes("$dev", "VFIO_DEVICE_GET_IRQ_INFO", u.VfioIrqInfo, 16, {});
    irq("an answer that cannot be written", {}, { at: "ro" });
    irq("irq ~0, size 0", { index: U32, argsz: 0 });
    p.shapes("$dev", "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", u.VfioPciHotResetInfo, 12, {});
    reset("an answer that cannot be written", {}, { at: "ro" });
    reset("list crosses into an unreadable page", { argsz: 20 }, { at: "guard-12" });
    reset("flags ~0, count ~0", { argsz: 20, flags: U32, count: U32 });
    reset("argsz ~0", { argsz: U32 });
  }
}

function interrupts(p: Program): void {
  bound(p, "set-irqs", "edu");
  p.call("eventfd", "an eventfd", { save: "$event" });
  p.open("/dev/null", "$null");
  const { VFIO_IRQ_SET_DATA_NONE: NONE, VFIO_IRQ_SET_DATA_BOOL: BOOL, VFIO_IRQ_SET_DATA_EVENTFD: EVENTFD } = u;
  const { VFIO_IRQ_SET_ACTION_MASK: MASK, VFIO_IRQ_SET_ACTION_UNMASK: UNMASK, VFIO_IRQ_SET_ACTION_TRIGGER: TRIGGER } = u;
  const set = asker(p, "VFIO_DEVICE_SET_IRQS", u.VfioIrqSet, { flags: EVENTFD | TRIGGER, index: u.VFIO_PCI_MSI_IRQ_INDEX, count: 1 });
  const one = { argsz: 24 };
  p.shapes("$dev", "VFIO_DEVICE_SET_IRQS", u.VfioIrqSet, 20, { flags: NONE | TRIGGER, index: 1, count: 0 });
  set("no data", {});
  set("one byte short of its data", { argsz: 23 }, { tail: u32s(0) });
  set("data unreadable", one, { at: "guard-20" });
  set("eventfd closed", one, { tail: u32s(200) });
  set("eventfd of another kind", one, { tail: u32s(0), tailNumbers: { 0: "$null" } });
  set("eventfd -2", one, { tail: u32s(-2) });
  set("eventfd -1", one, { tail: u32s(-1) });
  set("flags 0", { flags: 0 });
  set("no action", { ...one, flags: EVENTFD }, { tail: u32s(-1) });
  set("no data type", { ...one, flags: TRIGGER }, { tail: u32s(-1) });
  set("two data types", { ...one, flags: NONE | BOOL | TRIGGER }, { tail: u32s(-1) });
  set("two actions", { ...one, flags: EVENTFD | TRIGGER | MASK }, { tail: u32s(-1) });
  set("unknown flag", { ...one, flags: EVENTFD | TRIGGER | 64 }, { tail: u32s(-1) });
  set("unknown index", { ...one, index: 5 }, { tail: u32s(-1) });
  set("index ~0", { ...one, index: U32 }, { tail: u32s(-1) });
  set("index not there: MSI-X", { ...one, index: 2 }, { tail: u32s(-1) });
  set("start 1 of 1", { ...one, start: 1 }, { tail: u32s(-1) });
  set("count 2 of 1", { ...one, argsz: 28, count: 2 }, { tail: u32s(-1, -1) });
  set("start + count passes 2^32", { ...one, start: 1, count: U32 }, { tail: u32s(-1) });
  set("count ~0", { ...one, count: U32 }, { tail: u32s(-1) });
  set("start ~0", { ...one, start: U32 }, { tail: u32s(-1) });
  set("count 0 with eventfds", { count: 0 });
  set("count 0 with none, start 1", { flags: NONE | TRIGGER, count: 0, start: 1 });
  set("none, count 0, not set up", { flags: NONE | TRIGGER, count: 0 });
  set("trigger that is not set up", { flags: NONE | TRIGGER });
  set("mask MSI", { flags: NONE | MASK });
  set("mask INTx that is not set up", { flags: NONE | MASK, index: 0 });
  set("unmask INTx by eventfd, not set up", { ...one, flags: EVENTFD | UNMASK, index: 0 }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("INTx, count 2", { ...one, index: 0, count: 2, argsz: 28 }, { tail: u32s(-1, -1) });
  set("INTx", { ...one, index: 0 }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("MSI while INTx is set up", one, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("mask INTx by eventfd", { ...one, index: 0, flags: EVENTFD | MASK }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("mask INTx, bool 1", { argsz: 21, index: 0, flags: BOOL | MASK }, { tail: "01" });
  set("unmask INTx, bool 0", { argsz: 21, index: 0, flags: BOOL | UNMASK }, { tail: "00" });
  set("INTx off", { index: 0, flags: NONE | TRIGGER, count: 0 });
  set("MSI", one, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("MSI with an eventfd that is bad, while it is set up", one, { tail: u32s(200) });
  set("INTx while MSI is set up", { ...one, index: 0 }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("MSI off", { flags: NONE | TRIGGER, count: 0 });
  set("ERR", { ...one, index: 3 }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("REQ", { ...one, index: 4 }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("REQ, closed", { ...one, index: 4 }, { tail: u32s(200) });
  set("REQ, mask", { index: 4, flags: NONE | MASK });
  set("REQ, start 1", { ...one, index: 4, start: 1 }, { tail: u32s(-1) });
  set("REQ off", { ...one, index: 4 }, { tail: u32s(-1) });

  bound(p, "set-irqs-msix", "nvme");
  p.call("eventfd", "an eventfd", { save: "$event" });
  const msix = { index: u.VFIO_PCI_MSIX_IRQ_INDEX };
  set("start at the last and two", { ...msix, start: 63, count: 2, argsz: 28 }, { tail: u32s(-1, -1) });
  set("vector 5 alone", { ...msix, ...one, start: 5 }, { tail: u32s(0), tailNumbers: { 0: "$event" } });
  set("second of two bad", { ...msix, argsz: 28, count: 2 }, { tail: u32s(0, 200), tailNumbers: { 0: "$event" } });
  set("off at start 1", { ...msix, flags: NONE | TRIGGER, start: 1, count: 0 });
  set("off", { ...msix, flags: NONE | TRIGGER, count: 0 });

  bound(p, "ioeventfd", "ivshmem");
  p.call("eventfd", "an eventfd", { save: "$event" });
  const io = asker(p, "VFIO_DEVICE_IOEVENTFD", u.VfioDeviceIoeventfd, { flags: u.VFIO_DEVICE_IOEVENTFD_32, fd: "$event" });
  p.shapes("$dev", "VFIO_DEVICE_IOEVENTFD", u.VfioDeviceIoeventfd, u.VfioDeviceIoeventfd.endOf("fd"), {
    flags: 4,
    fd: "$event",
    offset: 4096n,
  });
  io("fd -2", { fd: -2 });
  io("fd closed", { fd: 200 });
  io("no width", { flags: 0 });
  io("two widths", { flags: 3 });
  io("unknown flag", { flags: 0x14 });
  io("nothing to end", { fd: -1, offset: 64n });
  io("unaligned", { offset: 2n });
  io("past the BAR", { offset: 256n });
  io("across the end of the BAR", { offset: 254n });
  io("config region", { offset: 7n << 40n });
  io("no such region", { offset: 9n << 40n });
  io("offset ~0", { offset: U64 });
  io("good", { offset: 8n });
  io("good, twice", { offset: 8n });
  io("ended", { offset: 8n, fd: -1 });
  io("ended twice", { offset: 8n, fd: -1 });
}

function resets(p: Program): void {
  bound(p, "hot-reset", "edu");
  const reset = asker(p, "VFIO_DEVICE_PCI_HOT_RESET", u.VfioPciHotReset, {});
  p.open("/dev/null", "$null");
  p.shapes("$dev", "VFIO_DEVICE_PCI_HOT_RESET", u.VfioPciHotReset, 12, { flags: 1 });
  reset("flags 1", { flags: 1 });
  reset("flags ~0", { flags: U32 });
  reset("a group", { count: 1, argsz: 16 }, { tail: u32s(0), tailNumbers: { 0: "$null" } });
  reset("a group, closed", { count: 1, argsz: 16 }, { tail: u32s(200) });
  reset("the device as a group", { count: 1, argsz: 16 }, { tail: u32s(0), tailNumbers: { 0: "$dev" } });
  reset("the context as a group", { count: 1, argsz: 16 }, { tail: u32s(0), tailNumbers: { 0: "$ifd" } });
  reset("more groups than devices", { count: 2, argsz: 20 }, { tail: u32s(200, 200) });
  reset("count ~0", { count: U32 });
  reset("groups unreadable", { count: 1 }, { at: "guard-12" });
  reset("size 0", { argsz: 0 });
  p.bare("$dev", "VFIO_DEVICE_RESET", "0", "edu");
  p.bare("$dev", "VFIO_DEVICE_RESET", "0xffffffffffffffff", "edu, argument ~0");
  p.bare("$dev", "0x3b00", "0", "unknown number");
  p.bare("$dev", "0x3bff", "0", "unknown number ff");
  p.bare("$dev", "0x3b80", "0", "IOMMU_DESTROY");
  p.bare("$dev", "0x4b6f", "0", "another type with FEATURE's number");
  p.bare("$dev", "VFIO_DEVICE_QUERY_GFX_PLANE", "0", "no graphics");
  bound(p, "reset-ivshmem", "ivshmem");
  p.bare("$dev", "VFIO_DEVICE_RESET", "0", "ivshmem");
  reset("count 0");
}

function features(p: Program): void {
  bound(p, "feature", "ivshmem");
  const feature = asker(p, "VFIO_DEVICE_FEATURE", u.VfioDeviceFeature, {});
  p.shapes("$dev", "VFIO_DEVICE_FEATURE", u.VfioDeviceFeature, 8, { flags: 99 });
  for (const n of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xffff]) {
    feature(`${n}: probe`, { flags: PROBE | n });
    feature(`${n}: probe get`, { flags: PROBE | GET | n });
    feature(`${n}: probe set`, { flags: PROBE | SET | n });
    feature(`${n}: probe both`, { flags: PROBE | SET | GET | n });
    feature(`${n}: neither`, { flags: n });
    feature(`${n}: both`, { flags: SET | GET | n });
    feature(`${n}: unknown flag`, { flags: (1 << 19) | n });
    feature(`${n}: get without payload`, { flags: GET | n });
    if (n < 3 || n > 5) feature(`${n}: set without payload`, { flags: SET | n });
  }
  feature("token: payload null", { flags: SET, argsz: 24 }, { at: "guard-8" });
  feature("token: set on a function that is no PF", { flags: SET, argsz: 24 }, { tail: "00".repeat(16) });
  feature("token: get", { flags: GET, argsz: 24 }, { tail: "00".repeat(16) });
  p.call("eventfd", "an eventfd", { save: "$event" });
  feature("exit without entry", { flags: SET | 5 });
  feature("entry, size 12", { flags: SET | 3, argsz: 12 }, { tail: "00000000" });
  feature("entry", { flags: SET | 3 });
  feature("entry, twice", { flags: SET | 3 });
  feature("entry, get", { flags: GET | 3 });
  feature("exit, get", { flags: GET | 5 });
  feature("exit", { flags: SET | 5 });
  feature("exit, twice", { flags: SET | 5 });
  feature("entry with wakeup: no payload", { flags: SET | 4 });
  feature("entry with wakeup: payload short", { flags: SET | 4, argsz: 15 }, { tail: "00".repeat(8) });
  feature("entry with wakeup: payload unreadable", { flags: SET | 4, argsz: 16 }, { at: "guard-8" });
  feature("entry with wakeup: reserved not zero", { flags: SET | 4, argsz: 16 }, { tail: u32s(0, 1), tailNumbers: { 0: "$event" } });
  feature("entry with wakeup: eventfd -1", { flags: SET | 4, argsz: 16 }, { tail: u32s(-1, 0) });
  feature("entry with wakeup: closed", { flags: SET | 4, argsz: 16 }, { tail: u32s(200, 0) });
  feature("entry with wakeup: another kind", { flags: SET | 4, argsz: 16 }, { tail: u32s(0, 0), tailNumbers: { 0: "$ifd" } });
  feature("entry with wakeup", { flags: SET | 4, argsz: 16 }, { tail: u32s(0, 0), tailNumbers: { 0: "$event" } });
  feature("exit after wakeup", { flags: SET | 5 });
  feature("bus master: 2", { flags: SET | 10, argsz: 12 }, { tail: u32s(2) });
  feature("bus master: on", { flags: SET | 10, argsz: 12 }, { tail: u32s(1) });
  feature("bus master: get", { flags: GET | 10, argsz: 12 }, { tail: u32s(0) });
}

function exports(p: Program): void {
  bound(p, "export", "ivshmem");
  const head = u.VfioDeviceFeature.size;
  const fixed = u.VfioDeviceFeatureDmaBuf.size;
  const least = head + fixed;
  const range = u64s(0n, 0x1000n);
  /** region, open_flags, flags, nr_ranges and the ranges. */
  const ask = (
    what: string,
    m: { region?: number; open?: number; flags?: number; nr?: number; argsz?: number; feature?: number },
    ranges = range,
    o: Options = {},
  ): void => {
    const tail = u32s(m.region ?? 2, m.open ?? u.O_CLOEXEC, m.flags ?? 0, m.nr ?? 1) + ranges;
    const argsz = m.argsz ?? head + tail.length / 2;
    p.ioctl("$dev", "VFIO_DEVICE_FEATURE", u.VfioDeviceFeature, what, { argsz, flags: m.feature ?? GET | 11 }, { tail, ...o });
  };
  ask("no payload", { argsz: head });
  ask("payload one byte short", { argsz: least - 1 });
  ask("payload without ranges", { argsz: least });
  ask("payload unreadable", {}, range, { at: `guard-${head}` });
  ask("payload half unreadable", {}, range, { at: `guard-${head + 8}` });
  ask("ranges unreadable", {}, range, { at: `guard-${least}` });
  ask("last byte of the ranges unreadable", {}, range, { at: `guard-${least + 15}` });
  ask("no ranges", { nr: 0 });
  ask("no ranges, unreadable", { nr: 0 }, "", { at: `guard-${least}` });
  ask("no ranges and region unknown", { nr: 0, region: 9 });
  ask("flags 1", { flags: 1 });
  ask("flags ~0 and region unknown", { flags: U32, region: 9 });
  for (const region of [1, 3, 4, 5, 6, 7, 8, 9, 0x7fff_ffff, U32]) ask(`region ${region}`, { region });
  ask("region 0, smaller than a page", { region: 0 });
  ask("region unknown, ranges unreadable", { region: 9 }, range, { at: `guard-${least}` });
  ask("range of length 0", {}, u64s(0n, 0n));
  ask("offset 1", {}, u64s(1n, 0x1000n));
  ask("length 1", {}, u64s(0n, 1n));
  ask("length 0xfff", {}, u64s(0n, 0xfffn));
  ask("at the end", {}, u64s(0x100_0000n, 0x1000n));
  ask("across the end", {}, u64s(0xff_f000n, 0x2000n));
  ask("offset that wraps with the BAR's address", {}, u64s(U64 - 0xfffn, 0x1000n));
  ask("length of 2^63", {}, u64s(0n, 1n << 63n));
  ask("length of 2^64 - 4096", {}, u64s(0n, U64 - 0xfffn));
  ask("sum passes 2^64", { nr: 2 }, u64s(0n, U64 - 0xfffn, 0n, 0x1000n));
  ask("sum reaches 2^63", { nr: 2 }, u64s(0n, 1n << 62n, 0n, 1n << 62n));
  ask("second range of length 0", { nr: 2 }, u64s(0n, 0x1000n, 0n, 0n));
  ask("first past the end, second of length 0", { nr: 2 }, u64s(0x200_0000n, 0x1000n, 0n, 0n));
  ask("first wraps, second past the end", { nr: 2 }, u64s(U64 - 0xfffn, 0x1000n, 0x200_0000n, 0x1000n));
  ask("first past the end, second wraps", { nr: 2 }, u64s(0x200_0000n, 0x1000n, U64 - 0xfffn, 0x1000n));
  ask("second range unreadable", { nr: 2 }, u64s(0n, 0x1000n), { at: `guard-${least + 16}` });
  ask("2^28 ranges", { nr: 0x1000_0000 });
  ask("2^32 - 1 ranges", { nr: U32 });
  ask("2^32 - 1 ranges of an unknown region", { nr: U32, region: 9 });
  ask("set", { feature: SET | 11 });
  ask("neither", { feature: 11 });
  ask("probe, unreadable", { feature: PROBE | GET | 11 }, "", { at: `guard-${least}` });
  ask("the most ranges", { nr: MOST_RANGES, argsz: least }, "", { at: "big", repeat: `${MOST_RANGES}:${range}` });
  ask("one more", { nr: MOST_RANGES + 1, argsz: least }, "", { at: "big", repeat: `${MOST_RANGES + 1}:${range}` });
  ask("one more, past the end", { nr: MOST_RANGES + 1, argsz: least }, "", {
    at: "big",
    repeat: `${MOST_RANGES + 1}:${u64s(0x200_0000n, 0x1000n)}`,
  });
  ask("two ranges", { nr: 2 }, u64s(0n, 0x1000n, 0x2000n, 0x1000n), { save: "$two" });
  ask("open_flags ~0", { open: U32 }, range, { save: "$odd" });
  ask("one range", {}, range, { save: "$buf" });

  const good = { size: 40, flags: 7, ioas_id: "$ioas", fd: "$buf", start: 0n, length: 0x1000n, iova: 0x10_0000n };
  const map = (what: string, m: Members = {}): void => p.ioctl("$ifd", "IOMMU_IOAS_MAP_FILE", u.IommuIoasMapFile, what, { ...good, ...m });
  map("a dma-buf, past its end", { start: 0x1000n });
  map("a dma-buf, half past its end", { length: 0x2000n });
  map("a dma-buf of two ranges", { fd: "$two" });
  map("a dma-buf of two ranges, past its end", { fd: "$two", start: 0x8000n });
  map("a dma-buf, 2^44 - 4096 pages", { length: (1n << 44n) - 0x1000n });
  map("a dma-buf, length 2^45", { length: 1n << 45n });
  map("a dma-buf, id of the device", { ioas_id: "$devid" });
  map("a dma-buf");
  map("a dma-buf of two ranges, iova in use", { fd: "$two" });
  map("a dma-buf, past its end, iova in use", { start: 0x1000n });
  p.close("$dev", "the exporter");
  map("a dma-buf whose device is closed", { iova: 0x20_0000n });
  map("a dma-buf of two ranges whose device is closed", { fd: "$two", iova: 0x20_0000n });
  map("a dma-buf whose device is closed, past its end", { iova: 0x20_0000n, start: 0x1000n });
  map("a dma-buf whose device is closed, iova in use");
  map("a dma-buf whose device is closed, iova unaligned", { iova: 1n });
}

export function vfioCalls(p: Program): void {
  binding(p);
  attaching(p);
  information(p);
  interrupts(p);
  resets(p);
  features(p);
  exports(p);
}
