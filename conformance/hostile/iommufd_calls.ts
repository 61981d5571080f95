/** Hostile calls of /dev/iommu. Each section has its own context; most have a device attached. */

import type { AnyStruct } from "../../src/uapi/index.ts";
import * as u from "../../src/uapi/index.ts";
import { type Members, type Options, type Program, u64s } from "./program.ts";

const U64 = 0xffff_ffff_ffff_ffffn;
const U32 = 0xffff_ffff;
const RWF = u.IOMMU_IOAS_MAP_FIXED_IOVA | u.IOMMU_IOAS_MAP_WRITEABLE | u.IOMMU_IOAS_MAP_READABLE;
const RW = u.IOMMU_IOAS_MAP_WRITEABLE | u.IOMMU_IOAS_MAP_READABLE;
/** In the arena, where pages for mapping and lists lie. */
const PAGE_AT = "arena+32768";
const LIST = 4096;
const LIST_AT = `arena+${LIST}`;
const GHOST = 0x7777;

/** One command with its structure. */
type Ask = (what: string, members?: Members, o?: Options) => void;

function asker(p: Program, cmd: string, struct: AnyStruct, defaults: Members): Ask {
  return (what, members = {}, o = {}) => p.ioctl("$ifd", cmd, struct, what, { size: struct.size, ...defaults, ...members }, o);
}

/** A context with an IOAS, and if asked for the edu device attached to it. */
function context(p: Program, name: string, attached: boolean): void {
  p.section(name);
  p.open("/dev/iommu", "$ifd");
  asker(p, "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, {})("an address space", {}, { save: "$ioas@8" });
  if (!attached) return;
  p.open("@edu", "$dev");
  const bind = { argsz: u.VfioDeviceBindIommufd.size, iommufd: "$ifd" };
  p.ioctl("$dev", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "bind", bind, { save: "$devid@12" });
  const attach = { argsz: u.VfioDeviceAttachIommufdPt.size, pt_id: "$ioas" };
  p.ioctl("$dev", "VFIO_DEVICE_ATTACH_IOMMUFD_PT", u.VfioDeviceAttachIommufdPt, "attach", attach, { save: "$hwpt@8" });
}

/** Ids that are none, by the member that takes one. */
function wrongIds(ask: Ask, member: string, types: readonly string[]): void {
  ask(`${member} 0`, { [member]: 0 });
  ask(`${member} unknown`, { [member]: GHOST });
  ask(`${member} ~0`, { [member]: U32 });
  ask(`${member} 2^31`, { [member]: 0x8000_0000 });
  for (const t of types) ask(`${member} of another type: ${t.slice(1)}`, { [member]: t });
}

function allocAndDestroy(p: Program): void {
  context(p, "alloc", false);
  const alloc = asker(p, "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, {});
  p.shapes("$ifd", "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, u.IommuIoasAlloc.size, {});
  alloc("8 more, zero", { size: 20 }, { tail: "0000000000000000" });
  alloc("flags 1", { flags: 1 });
  alloc("flags ~0", { flags: U32 });
  alloc("flags 1, short", { flags: 1, size: 11 });
  alloc("flags 1, long and not zero", { flags: 1, size: 20 }, { tail: "0100000000000000" });
  alloc("an answer that cannot be written", {}, { at: "ro" });
  alloc("the id that was not given away is given again", {}, { save: "$next@8" });

  context(p, "destroy", true);
  const destroy = asker(p, "IOMMU_DESTROY", u.IommuDestroy, {});
  p.shapes("$ifd", "IOMMU_DESTROY", u.IommuDestroy, u.IommuDestroy.size, { id: "$ioas" });
  wrongIds(destroy, "id", []);
  destroy("an address space in use", { id: "$ioas" });
  destroy("a page table in use", { id: "$hwpt" });
  destroy("a device", { id: "$devid" });
  asker(p, "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, {})("a second one", {}, { save: "$spare@8" });
  destroy("8 more, zero", { size: 16, id: "$spare" }, { tail: "0000000000000000" });
  destroy("again", { id: "$spare" });
}

function ranges(p: Program): void {
  context(p, "iova-ranges", true);
  const get = asker(p, "IOMMU_IOAS_IOVA_RANGES", u.IommuIoasIovaRanges, { ioas_id: "$ioas", num_iovas: 4, allowed_iovas: LIST_AT });
  const min = u.IommuIoasIovaRanges.size;
  p.shapes("$ifd", "IOMMU_IOAS_IOVA_RANGES", u.IommuIoasIovaRanges, min, { ioas_id: "$ioas", num_iovas: 4, allowed_iovas: LIST_AT });
  wrongIds(get, "ioas_id", ["$hwpt", "$devid"]);
  get("reserved not zero", { __reserved: 1 });
  get("reserved not zero, id unknown", { __reserved: 1, ioas_id: GHOST });
  get("room for 0", { num_iovas: 0 });
  get("room for 0, null list", { num_iovas: 0, allowed_iovas: 0n });
  get("room for 1 of 2", { num_iovas: 1 });
  get("room for 2", { num_iovas: 2 });
  get("room for 2^32 - 1", { num_iovas: U32 });
  get("null list", { allowed_iovas: 0n });
  get("list in an unreadable page", { allowed_iovas: "guard" });
  get("second range does not fit before an unreadable page", { allowed_iovas: "guard-16" });
  get("list in the kernel", { allowed_iovas: 0xffff_8880_0000_0000n });
  get("an answer that cannot be written", {}, { at: "ro" });
  get("8 more, zero", { size: min + 8 }, { tail: "0000000000000000" });

  context(p, "iova-ranges-empty", false);
  get("all of it", {});
  get("all of it, room for 0", { num_iovas: 0 });

  context(p, "allow-iovas", true);
  const list = (...r: bigint[]): Options => ({ memory: { [LIST]: u64s(...r) } });
  const allow = asker(p, "IOMMU_IOAS_ALLOW_IOVAS", u.IommuIoasAllowIovas, { ioas_id: "$ioas", num_iovas: 1, allowed_iovas: LIST_AT });
  p.shapes("$ifd", "IOMMU_IOAS_ALLOW_IOVAS", u.IommuIoasAllowIovas, u.IommuIoasAllowIovas.size, {
    ioas_id: "$ioas",
    num_iovas: 1,
    allowed_iovas: LIST_AT,
  });
  wrongIds(allow, "ioas_id", ["$hwpt", "$devid"]);
  allow("reserved not zero", { __reserved: 1 }, list(0n, 0xfffn));
  allow("start above last", {}, list(0x2000n, 0x1000n));
  allow("start above last by one", {}, list(0x2000n, 0x1fffn));
  allow("two that overlap", { num_iovas: 2 }, list(0n, 0x1fffn, 0x1000n, 0x2fffn));
  allow("two that overlap in one byte", { num_iovas: 2 }, list(0n, 0x1000n, 0x1000n, 0x2fffn));
  allow("the same twice", { num_iovas: 2 }, list(0n, 0xfffn, 0n, 0xfffn));
  allow("descending", { num_iovas: 2 }, list(0x4000n, 0x4fffn, 0n, 0xfffn));
  allow("over the interrupt window", {}, list(0xfee0_0000n, 0xfee0_0fffn));
  allow("all 64 bits", {}, list(0n, U64));
  allow("beyond what the table holds", {}, list(1n << 50n, (1n << 50n) + 0xfffn));
  allow("unaligned", {}, list(0x123n, 0x456n));
  allow("null list", { allowed_iovas: 0n });
  allow("unreadable list", { allowed_iovas: "guard" });
  allow("second range unreadable", { num_iovas: 2, allowed_iovas: "guard-16" }, { memory: { 65520: u64s(0n, 0xfffn) } });
  allow("first range bad, second unreadable", { num_iovas: 2, allowed_iovas: "guard-16" }, { memory: { 65520: u64s(0x2000n, 0x1000n) } });
  allow("2^32 - 1 of them", { num_iovas: U32, allowed_iovas: "guard" });
  allow("none", { num_iovas: 0 });
  allow("none, null list", { num_iovas: 0, allowed_iovas: 0n });
  allow("one page", {}, list(0n, 0xfffn));
  const map = mapper(p);
  map("outside of what is allowed, by the kernel's choice", { flags: RW });
  map("no more room, by the kernel's choice", { flags: RW });
  map("outside of what is allowed, given", { iova: 0x10_0000n });
}

const mapper = (p: Program): Ask =>
  asker(p, "IOMMU_IOAS_MAP", u.IommuIoasMap, { flags: RWF, ioas_id: "$ioas", user_va: PAGE_AT, length: 0x1000n, iova: 0x10_0000n });

function map(p: Program): void {
  context(p, "map", true);
  const ask = mapper(p);
  const good = { flags: RWF, ioas_id: "$ioas", user_va: PAGE_AT, length: 0x1000n, iova: 0x10_0000n };
  p.shapes("$ifd", "IOMMU_IOAS_MAP", u.IommuIoasMap, u.IommuIoasMap.size, good);
  wrongIds(ask, "ioas_id", ["$hwpt", "$devid"]);
  ask("8 more, zero", { size: 48 }, { tail: "0000000000000000" });
  ask("over the last one", {});
  ask("reserved not zero", { __reserved: 1 });
  ask("unknown flag", { flags: RWF | 8 });
  ask("no access", { flags: u.IOMMU_IOAS_MAP_FIXED_IOVA });
  ask("flags 0", { flags: 0 });
  ask("unknown flag and reserved", { flags: 0x8000_0000, __reserved: 1 });
  ask("no access, id unknown", { flags: 0, ioas_id: GHOST });
  ask("length 0", { length: 0n });
  ask("length 0, id unknown", { length: 0n, ioas_id: GHOST });
  ask("length ~0", { length: U64 });
  ask("length ~0 - 1", { length: U64 - 1n });
  ask("length 2^63", { length: 1n << 63n });
  ask("length 1", { length: 1n, iova: 0x20_0000n });
  ask("length 0x1001", { length: 0x1001n, iova: 0x20_0000n });
  ask("length 2^47", { length: 1n << 47n, iova: 0x20_0000n });
  ask("length 2^44", { length: 1n << 44n, iova: 0x20_0000n });
  ask("iova ~0", { iova: U64 });
  ask("iova ~0 and length ~0, no access", { iova: U64, length: U64, flags: u.IOMMU_IOAS_MAP_FIXED_IOVA });
  ask("iova ~0 - 1", { iova: U64 - 1n });
  ask("iova at the last page", { iova: U64 - 0xfffn });
  ask("iova and length pass 2^64", { iova: U64 - 0xfffn, length: 0x2000n });
  ask("iova unaligned", { iova: 0x20_0001n });
  ask("user_va unaligned", { user_va: "arena+32769", iova: 0x20_0000n });
  ask("iova and user_va unaligned alike", { user_va: "arena+32769", iova: 0x20_0001n });
  ask("in the interrupt window", { iova: 0xfee0_0000n });
  ask("across the interrupt window", { iova: 0xfed0_0000n, length: 0x40_0000n });
  ask("beyond what the table holds", { iova: 1n << 48n });
  ask("the last page the table holds", { iova: (1n << 48n) - 0x1000n });
  ask("across the end of what the table holds", { iova: (1n << 48n) - 0x1000n, length: 0x2000n });
  ask("user_va 0", { user_va: 0n, iova: 0x20_0000n });
  ask("user_va ~0", { user_va: U64, iova: 0x20_0000n });
  ask("user_va + length passes 2^64", { user_va: U64 - 0xfffn, iova: 0x20_0000n, length: 0x2000n });
  ask("user_va + length is 2^64", { user_va: U64 - 0xfffn, iova: 0x20_0000n });
  ask("user_va in the kernel", { user_va: 0xffff_8880_0000_0000n, iova: 0x20_0000n });
  ask("user_va in a page that cannot be touched", { user_va: "guard", iova: 0x20_0000n });
  ask("second page cannot be touched", { user_va: "arena+61440", length: 0x2000n, iova: 0x20_0000n });
  ask("user_va read-only, to be written", { user_va: "ro", iova: 0x20_0000n });
  ask("user_va read-only, to be read", { user_va: "ro", iova: 0x20_0000n, flags: u.IOMMU_IOAS_MAP_FIXED_IOVA | u.IOMMU_IOAS_MAP_READABLE });
  ask("user_va wraps, over an area that is there", { user_va: U64 - 0xfffn, length: 0x2000n });
  ask("wraps, in use and unaligned at once", { user_va: U64 - 0xfffn, length: 0x2001n });
  ask("unreadable user_va over an area that is there", { user_va: "guard" });
  ask("an answer that cannot be written", { iova: 0x30_0000n }, { at: "ro" });
  ask("that one is there all the same", { iova: 0x30_0000n });
  ask("by the kernel's choice, iova given ~0", { flags: RW, iova: U64 });
  ask("by the kernel's choice, 2^47 bytes", { flags: RW, length: 1n << 47n });
  ask("by the kernel's choice, 2^49 bytes", { flags: RW, length: 1n << 49n });
  ask("by the kernel's choice, unaligned user_va", { flags: RW, user_va: "arena+32769" });
  ask("by the kernel's choice, length 1", { flags: RW, length: 1n });
  ask("by the kernel's choice", { flags: RW });
  ask("write only, by the kernel's choice", { flags: u.IOMMU_IOAS_MAP_WRITEABLE });

  context(p, "map-no-domain", false);
  ask("unreadable user_va", { user_va: "guard" });
  ask("user_va in the kernel", { user_va: 0xffff_8880_0000_0000n, iova: 0x20_0000n });
  ask("length 1", { length: 1n, iova: 0x30_0000n });
  ask("iova unaligned", { iova: 0x40_0001n });
  ask("iova at the last page", { iova: U64 - 0xfffn });
  ask("iova ~0 - 1, length 1", { iova: U64 - 1n, length: 1n });
  ask("iova ~0 - 1, length 2", { iova: U64 - 1n, length: 2n });
  ask("2^62 bytes", { iova: 1n << 62n, length: 1n << 62n, user_va: 0n });
  ask("by the kernel's choice, 1 byte at an odd address", { flags: RW, length: 1n, user_va: "arena+32769" });
}

function mapFile(p: Program): void {
  context(p, "map-file", true);
  p.call("memfd", "a memfd of 4 pages", { flags: 0, size: 0x4000, save: "$mem" });
  p.call("memfd", "an empty memfd", { flags: 0, size: 0, save: "$empty" });
  p.call("eventfd", "an eventfd", { save: "$event" });
  p.call("open", "an O_PATH descriptor", { path: "/dev/null", flags: 0o10000000, save: "$path" });
  p.open("/dev/null", "$null");
  p.call("pipe", "a pipe");
  p.open("@ivshmem", "$other");
  const good = { flags: RWF, ioas_id: "$ioas", fd: "$mem", start: 0n, length: 0x1000n, iova: 0x10_0000n };
  const ask = asker(p, "IOMMU_IOAS_MAP_FILE", u.IommuIoasMapFile, good);
  p.shapes("$ifd", "IOMMU_IOAS_MAP_FILE", u.IommuIoasMapFile, u.IommuIoasMapFile.size, good);
  wrongIds(ask, "ioas_id", ["$hwpt", "$devid"]);
  ask("8 more, zero", { size: 48 }, { tail: "0000000000000000" });
  ask("unknown flag", { flags: RWF | 16 });
  ask("no access", { flags: u.IOMMU_IOAS_MAP_FIXED_IOVA });
  ask("fd -1", { fd: -1 });
  ask("fd closed", { fd: 200 });
  ask("fd INT_MIN", { fd: -2147483648 });
  ask("fd of a device node", { fd: "$null" });
  ask("fd of an eventfd", { fd: "$event" });
  ask("fd of a pipe", { fd: "$reader" });
  ask("fd by O_PATH", { fd: "$path" });
  ask("fd of the context itself", { fd: "$ifd" });
  ask("fd of a bound device", { fd: "$dev" });
  ask("fd of a device that is not bound", { fd: "$other" });
  ask("an empty file", { fd: "$empty", iova: 0x20_0000n });
  ask("last page", { start: 0x3000n, iova: 0x20_0000n });
  ask("past the end", { start: 0x4000n, iova: 0x30_0000n });
  ask("half past the end", { start: 0x3000n, length: 0x2000n, iova: 0x30_0000n });
  ask("start ~0", { start: U64 });
  ask("start + length passes 2^64", { start: U64 - 0xfffn, length: 0x2000n });
  ask("start + length is 2^64", { start: U64 - 0xfffn, iova: 0x30_0000n });
  ask("start 2^63", { start: 1n << 63n, iova: 0x30_0000n });
  ask("length 0", { length: 0n });
  ask("length 0, fd closed", { length: 0n, fd: 200 });
  ask("length ~0, fd closed", { length: U64, fd: 200 });
  ask("start + length passes 2^64, fd closed", { start: U64, length: 2n, fd: 200 });
  ask("length 1", { length: 1n, iova: 0x30_0000n });
  ask("length 2^44", { length: 1n << 44n, iova: 0x1000_0000n });
  ask("start unaligned", { start: 1n, iova: 0x30_0000n });
  ask("fd closed, iova in use and id unknown", { fd: 200, ioas_id: GHOST });
  ask("fd closed, iova in use", { fd: 200 });
  ask("file past its end, iova in use", { start: 0x4000n });
  ask("an answer that cannot be written", { iova: 0x40_0000n }, { at: "ro" });
  ask("that one is there all the same", { iova: 0x40_0000n });
}

function unmapAndCopy(p: Program): void {
  context(p, "unmap", true);
  const map = mapper(p);
  map("one page", {});
  map("three pages", { iova: 0x20_0000n, length: 0x3000n });
  const ask = asker(p, "IOMMU_IOAS_UNMAP", u.IommuIoasUnmap, { ioas_id: "$ioas", iova: 0x20_0000n, length: 0x3000n });
  p.shapes("$ifd", "IOMMU_IOAS_UNMAP", u.IommuIoasUnmap, u.IommuIoasUnmap.size, { ioas_id: "$ioas", iova: 0x20_0000n, length: 0x3000n });
  wrongIds(ask, "ioas_id", ["$hwpt", "$devid"]);
  ask("head", { length: 0x1000n });
  ask("tail", { iova: 0x20_2000n, length: 0x1000n });
  ask("middle", { iova: 0x20_1000n, length: 0x1000n });
  ask("one byte short", { length: 0x2fffn });
  ask("one byte later", { iova: 0x20_0001n, length: 0x2fffn });
  ask("length 0", { length: 0n });
  ask("iova 0 and length 0", { iova: 0n, length: 0n });
  ask("nothing there", { iova: 0x50_0000n });
  ask("iova ~0, length ~0", { iova: U64, length: U64 });
  ask("iova + length passes 2^64", { iova: U64 - 0xfffn, length: 0x2000n });
  ask("iova + length is 2^64", { iova: U64 - 0xfffn, length: 0x1000n });
  ask("iova 1, length ~0", { iova: 1n, length: U64 });
  ask("iova ~0, length 1", { iova: U64, length: 1n });
  ask("an answer that cannot be written", {}, { at: "ro" });
  ask("that one is gone all the same", {});
  ask("8 more, zero, with room around", { size: 32, iova: 0xf_0000n, length: 0x2_0000n }, { tail: "0000000000000000" });
  ask("all of nothing", { iova: 0n, length: U64 });
  map("one page again", {});
  ask("all", { iova: 0n, length: U64 });

  context(p, "copy", true);
  map("source", { length: 0x2000n });
  map("read-only source", { iova: 0x20_0000n, flags: u.IOMMU_IOAS_MAP_FIXED_IOVA | u.IOMMU_IOAS_MAP_READABLE });
  const good = { flags: RWF, dst_ioas_id: "$ioas", src_ioas_id: "$ioas", length: 0x1000n, dst_iova: 0x30_0000n, src_iova: 0x10_0000n };
  const copy = asker(p, "IOMMU_IOAS_COPY", u.IommuIoasCopy, good);
  p.shapes("$ifd", "IOMMU_IOAS_COPY", u.IommuIoasCopy, u.IommuIoasCopy.size, good);
  wrongIds(copy, "dst_ioas_id", ["$hwpt", "$devid"]);
  wrongIds(copy, "src_ioas_id", ["$hwpt", "$devid"]);
  copy("both ids unknown", { src_ioas_id: GHOST, dst_ioas_id: GHOST });
  copy("unknown flag", { flags: RWF | 8 });
  copy("no access", { flags: u.IOMMU_IOAS_MAP_FIXED_IOVA });
  copy("length 0", { length: 0n });
  copy("length 0, source unknown", { length: 0n, src_ioas_id: GHOST });
  copy("length ~0", { length: U64 });
  copy("length ~0 - 1", { length: U64 - 1n });
  copy("src_iova + length passes 2^64", { src_iova: U64 - 0xfffn, length: 0x2000n });
  copy("dst_iova + length passes 2^64", { dst_iova: U64 - 0xfffn, length: 0x2000n });
  copy("dst_iova ~0", { dst_iova: U64 });
  copy("src_iova ~0", { src_iova: U64 });
  copy("source not there", { src_iova: 0x70_0000n });
  copy("source ends early", { length: 0x3000n });
  copy("source unaligned", { src_iova: 0x10_0001n });
  copy("source and destination unaligned alike", { src_iova: 0x10_0001n, dst_iova: 0x30_0001n });
  copy("length 1", { length: 1n });
  copy("destination in use", { dst_iova: 0x20_0000n });
  copy("destination in use, source not there", { dst_iova: 0x20_0000n, src_iova: 0x70_0000n });
  copy("destination in the interrupt window", { dst_iova: 0xfee0_0000n });
  copy("writeable from read-only", { src_iova: 0x20_0000n });
  copy("writeable from read-only, destination in use", { src_iova: 0x20_0000n, dst_iova: 0x10_0000n });
  copy("writeable from read-only, unaligned", { src_iova: 0x20_0000n, dst_iova: 0x30_0001n });
  copy("an answer that cannot be written", {}, { at: "ro" });
  copy("that one is there all the same", {});
  copy("by the kernel's choice", { flags: RW, dst_iova: U64 });
}

function options(p: Program): void {
  context(p, "option", true);
  const ask = asker(p, "IOMMU_OPTION", u.IommuOption, {
    option_id: u.IOMMU_OPTION_HUGE_PAGES,
    op: u.IOMMU_OPTION_OP_GET,
    object_id: "$ioas",
  });
  p.shapes("$ifd", "IOMMU_OPTION", u.IommuOption, u.IommuOption.size, { option_id: 1, op: 1, object_id: "$ioas" });
  wrongIds(ask, "object_id", ["$hwpt", "$devid"]);
  ask("option 2", { option_id: 2 });
  ask("option ~0", { option_id: U32 });
  ask("op 2", { op: 2 });
  ask("op 0xffff, id unknown", { op: 0xffff, object_id: GHOST });
  ask("reserved not zero", { __reserved: 1 });
  ask("reserved not zero, option unknown", { __reserved: 1, option_id: 2 });
  ask("huge pages 2", { op: u.IOMMU_OPTION_OP_SET, val64: 2n });
  ask("huge pages ~0", { op: u.IOMMU_OPTION_OP_SET, val64: U64 });
  ask("huge pages 0 with a device attached", { op: u.IOMMU_OPTION_OP_SET, val64: 0n });
  ask("huge pages 0, read back", {});
  mapper(p)("an area");
  ask("huge pages 0 with an area", { op: u.IOMMU_OPTION_OP_SET, val64: 0n });
  ask("huge pages 1 with an area", { op: u.IOMMU_OPTION_OP_SET, val64: 1n });
  ask("huge pages 2 with an area", { op: u.IOMMU_OPTION_OP_SET, val64: 2n });
  ask("an answer that cannot be written", {}, { at: "ro" });
  const limit = { option_id: u.IOMMU_OPTION_RLIMIT_MODE, object_id: 0 };
  ask("limit mode of an object", { ...limit, object_id: "$ioas" });
  ask("limit mode of an unknown object", { ...limit, object_id: GHOST });
  ask("limit mode", limit);
  ask("limit mode 2", { ...limit, op: u.IOMMU_OPTION_OP_SET, val64: 2n });
  ask("limit mode 1 with objects", { ...limit, op: u.IOMMU_OPTION_OP_SET, val64: 1n });
  ask("limit mode, op 2", { ...limit, op: 2 });
  p.section("option-empty");
  p.open("/dev/iommu", "$ifd");
  ask("limit mode 2, nothing there", { ...limit, op: u.IOMMU_OPTION_OP_SET, val64: 2n });
  ask("limit mode 1, nothing there", { ...limit, op: u.IOMMU_OPTION_OP_SET, val64: 1n });
  ask("limit mode, read back", limit);
}

function hwpt(p: Program): void {
  context(p, "hwpt-alloc", true);
  const good = { dev_id: "$devid", pt_id: "$ioas" };
  const ask = asker(p, "IOMMU_HWPT_ALLOC", u.IommuHwptAlloc, good);
  p.shapes("$ifd", "IOMMU_HWPT_ALLOC", u.IommuHwptAlloc, u.IommuHwptAlloc.endOf("__reserved"), good);
  wrongIds(ask, "dev_id", ["$ioas", "$hwpt"]);
  wrongIds(ask, "pt_id", ["$devid"]);
  ask("both ids unknown", { dev_id: GHOST, pt_id: GHOST });
  ask("of a page table that cannot be nested in", { pt_id: "$hwpt" });
  ask("reserved not zero", { __reserved: 1 });
  ask("second reserved not zero", { __reserved2: 1 });
  for (const bit of [4, 5, 8, 31]) ask(`flag bit ${bit}`, { flags: 2 ** bit });
  ask("unknown flag, device unknown", { flags: 16, dev_id: GHOST });
  ask("fault id valid, none such", { flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: GHOST });
  ask("fault id not valid but given", { fault_id: GHOST });
  ask("fault id of an address space", { flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: "$ioas" });
  ask("nesting parent", { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT });
  ask("dirty tracking", { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING });
  ask("for PASIDs", { flags: u.IOMMU_HWPT_ALLOC_PASID });
  ask("nesting parent and for PASIDs", { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT | u.IOMMU_HWPT_ALLOC_PASID });
  ask("data length without a type", { data_len: 8, data_uptr: LIST_AT });
  ask("data pointer without a type", { data_uptr: LIST_AT });
  ask("type without data", { data_type: u.IOMMU_HWPT_DATA_VTD_S1 });
  ask("nested data on an address space", { data_type: u.IOMMU_HWPT_DATA_VTD_S1, data_len: 24, data_uptr: LIST_AT });
  ask("unknown type", { data_type: U32, data_len: 24, data_uptr: LIST_AT });
  ask("nested data on a page table", { pt_id: "$hwpt", data_type: u.IOMMU_HWPT_DATA_VTD_S1, data_len: 24, data_uptr: LIST_AT });
  ask("an answer that cannot be written", {}, { at: "ro" });
  ask("least size", { size: u.IommuHwptAlloc.endOf("__reserved") }, { cut: u.IommuHwptAlloc.endOf("__reserved"), save: "$more@16" });

  context(p, "hw-info", true);
  const info = asker(p, "IOMMU_GET_HW_INFO", u.IommuHwInfo, { dev_id: "$devid", data_len: 24, data_uptr: LIST_AT });
  p.shapes("$ifd", "IOMMU_GET_HW_INFO", u.IommuHwInfo, u.IommuHwInfo.endOf("__reserved"), {
    dev_id: "$devid",
    data_len: 24,
    data_uptr: LIST_AT,
  });
  wrongIds(info, "dev_id", ["$ioas", "$hwpt"]);
  info("unknown flag", { flags: 2 });
  info("unknown flag, device unknown", { flags: 2, dev_id: GHOST });
  info("type given without the flag", { in_data_type: 1 });
  info("type none asked for", { flags: u.IOMMU_HW_INFO_FLAG_INPUT_TYPE, in_data_type: 0 });
  info("type VT-d asked for", { flags: u.IOMMU_HW_INFO_FLAG_INPUT_TYPE, in_data_type: 1 });
  info("type SMMU asked for", { flags: u.IOMMU_HW_INFO_FLAG_INPUT_TYPE, in_data_type: 2 });
  info("type ~0 asked for", { flags: u.IOMMU_HW_INFO_FLAG_INPUT_TYPE, in_data_type: U32 });
  info("no room", { data_len: 0, data_uptr: 0n });
  info("room for 8", { data_len: 8 });
  info("room for 4096", { data_len: 4096 });
  info("length without a place", { data_uptr: 0n });
  info("place without a length", { data_len: 0 });
  info("place unreadable", { data_uptr: "guard" });
  info("place read-only", { data_uptr: "ro" });
  info("room runs into an unreadable page", { data_len: 64, data_uptr: "guard-24" });
  info("room of 4 GiB", { data_len: U32 });
  info("reserved bytes set", {}, { cut: 36, tail: "ffffffff0000000000000000" });
  info("an answer that cannot be written", {}, { at: "ro" });

  context(p, "dirty", true);
  const set = asker(p, "IOMMU_HWPT_SET_DIRTY_TRACKING", u.IommuHwptSetDirtyTracking, { hwpt_id: "$hwpt", flags: 1 });
  p.shapes("$ifd", "IOMMU_HWPT_SET_DIRTY_TRACKING", u.IommuHwptSetDirtyTracking, u.IommuHwptSetDirtyTracking.endOf("__reserved"), {
    hwpt_id: "$hwpt",
    flags: 1,
  });
  wrongIds(set, "hwpt_id", ["$ioas", "$devid"]);
  set("unknown flag", { flags: 2 });
  set("unknown flag, id unknown", { flags: 2, hwpt_id: GHOST });
  set("reserved not zero", { __reserved: 1 });
  set("reserved not zero, id unknown", { __reserved: 1, hwpt_id: GHOST });
  set("off", { flags: 0 });
  const bits = { hwpt_id: "$hwpt", iova: 0n, length: 0x1000n, page_size: 0x1000n, data: LIST_AT };
  const get = asker(p, "IOMMU_HWPT_GET_DIRTY_BITMAP", u.IommuHwptGetDirtyBitmap, bits);
  p.shapes("$ifd", "IOMMU_HWPT_GET_DIRTY_BITMAP", u.IommuHwptGetDirtyBitmap, u.IommuHwptGetDirtyBitmap.size, bits);
  wrongIds(get, "hwpt_id", ["$ioas", "$devid"]);
  get("unknown flag", { flags: 2 });
  get("reserved not zero", { __reserved: 1 });
  get("length 0", { length: 0n });
  get("length ~0", { length: U64 });
  get("iova ~0", { iova: U64 });
  get("iova + length passes 2^64", { iova: U64 - 0xfffn, length: 0x2000n });
  get("page size 0", { page_size: 0n });
  get("page size 3000", { page_size: 3000n });
  get("page size 1", { page_size: 1n });
  get("page size 2^63", { page_size: 1n << 63n });
  get("iova unaligned", { iova: 1n });
  get("length less than a page", { length: 8n });
  get("null bitmap", { data: 0n });
  get("bitmap unreadable", { data: "guard" });
  get("unknown flag, id unknown, length 0", { flags: 2, hwpt_id: GHOST, length: 0n });
}

function others(p: Program): void {
  context(p, "change-process", true);
  const change = asker(p, "IOMMU_IOAS_CHANGE_PROCESS", u.IommuIoasChangeProcess, {});
  p.shapes("$ifd", "IOMMU_IOAS_CHANGE_PROCESS", u.IommuIoasChangeProcess, u.IommuIoasChangeProcess.size, {});
  change("reserved not zero", { __reserved: 1 });
  change("nothing mapped");
  change("8 more, zero", { size: 16 }, { tail: "0000000000000000" });
  mapper(p)("an area of memory");
  change("with an area of memory");
  change("with an area of memory, reserved not zero", { __reserved: 1 });

  context(p, "noiommu-get-pa", true);
  const good = { ioas_id: "$ioas", iova: 0x10_0000n, length: 0x1000n };
  const get = asker(p, "IOMMU_IOAS_NOIOMMU_GET_PA", u.IommuIoasNoiommuGetPa, good);
  p.shapes("$ifd", "IOMMU_IOAS_NOIOMMU_GET_PA", u.IommuIoasNoiommuGetPa, u.IommuIoasNoiommuGetPa.size, good);
  wrongIds(get, "ioas_id", ["$hwpt", "$devid"]);
  get("nothing there");
  mapper(p)("an area");
  get("an area, not of a device without IOMMU");
  get("flags 1", { flags: 1 });
  get("reserved not zero", { __reserved: 1 });
  get("length 0", { length: 0n });
  get("length ~0", { length: U64 });
  get("iova ~0", { iova: U64 });
  get("flags 1, id unknown", { flags: 1, ioas_id: GHOST });

  context(p, "not-offered", true);
  const rest: readonly [string, AnyStruct, number][] = [
    ["IOMMU_FAULT_QUEUE_ALLOC", u.IommuFaultAlloc, u.IommuFaultAlloc.size],
    ["IOMMU_VIOMMU_ALLOC", u.IommuViommuAlloc, u.IommuViommuAlloc.endOf("out_viommu_id")],
    ["IOMMU_VDEVICE_ALLOC", u.IommuVdeviceAlloc, u.IommuVdeviceAlloc.size],
    ["IOMMU_VEVENTQ_ALLOC", u.IommuVeventqAlloc, u.IommuVeventqAlloc.endOf("out_veventq_fd")],
    ["IOMMU_HW_QUEUE_ALLOC", u.IommuHwQueueAlloc, u.IommuHwQueueAlloc.endOf("length")],
    ["IOMMU_HWPT_INVALIDATE", u.IommuHwptInvalidate, u.IommuHwptInvalidate.endOf("__reserved")],
    ["IOMMU_VFIO_IOAS", u.IommuVfioIoas, u.IommuVfioIoas.endOf("__reserved")],
  ];
  for (const [cmd, struct, min] of rest) {
    const ask = asker(p, cmd, struct, {});
    p.bare("$ifd", cmd, "0", "null pointer");
    ask("size 0", { size: 0 });
    ask("least size less 1", { size: min - 1 });
    ask("last byte unreadable", {}, { at: `guard-${min - 1}` });
    ask("8 more, not zero", { size: struct.size + 8 }, { tail: "0000000000000001" });
  }

  p.section("numbers");
  p.open("/dev/iommu", "$ifd");
  for (const nr of [0x00, 0x3b, 0x63, 0x7f, 0x96, 0x9f, 0xa1, 0xff]) {
    const cmd = `0x${(0x3b00 | nr).toString(16)}`;
    p.ioctl("$ifd", cmd, u.IommuIoasAlloc, `number ${nr.toString(16)} of no command`, { size: 12 });
  }
  p.bare("$ifd", "0x3b7f", "0", "number below the first, null pointer");
  p.ioctl("$ifd", "0x3a81", u.IommuIoasAlloc, "another type", { size: 12 });
  p.ioctl("$ifd", "0x3a81", u.IommuIoasAlloc, "another type, size 0", { size: 0 });
  p.bare("$ifd", "0x3a81", "0", "another type, null pointer");
  p.ioctl("$ifd", "0xc00c3b81", u.IommuIoasAlloc, "with direction and size bits", { size: 12 });
  p.ioctl("$ifd", "0x81", u.IommuIoasAlloc, "only the number", { size: 12 });
  p.ioctl("$ifd", "0xffffffff", u.IommuIoasAlloc, "all bits", { size: 12 });
  p.bare("$ifd", "0", "0", "request 0");
}

export function iommufdCalls(p: Program): void {
  allocAndDestroy(p);
  ranges(p);
  map(p);
  mapFile(p);
  unmapAndCopy(p);
  options(p);
  hwpt(p);
  others(p);
}
