/** Hostile calls of dma-bufs and of the nodes that make them: udmabuf and the system heap. */

import type { AnyStruct } from "../../src/uapi/index.ts";
import * as u from "../../src/uapi/index.ts";
import { hexOf, type Members, type Options, type Program, u32s, u64s } from "./program.ts";

const U64 = 0xffff_ffff_ffff_ffffn;
const U32 = 0xffff_ffff;
const TEXT_AT = "arena+4096";

type Ask = (what: string, members?: Members, o?: Options) => void;
const asker =
  (p: Program, fd: string, cmd: string, struct: AnyStruct, defaults: Members): Ask =>
  (what, members = {}, o = {}) =>
    p.ioctl(fd, cmd, struct, what, { ...defaults, ...members }, o);

const text = (s: string): string => hexOf(new TextEncoder().encode(s));

/** Bad pointers of a structure without a size of its own. */
function pointers(p: Program, fd: string, cmd: string, size: number): void {
  p.bare(fd, cmd, "0", "null pointer");
  p.bare(fd, cmd, "0xffff888000000000", "kernel address");
  p.bare(fd, cmd, "guard", "unreadable page");
  p.bare(fd, cmd, `guard-${size - 1}`, "last byte unreadable");
}

function anExport(p: Program): void {
  p.open("/dev/iommu", "$ifd");
  p.open("@ivshmem", "$dev");
  p.ioctl("$dev", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "bind", { argsz: 24, iommufd: "$ifd" });
  const tail = u32s(2, u.O_CLOEXEC, 0, 1) + u64s(0n, 0x4000n);
  const flags = u.VFIO_DEVICE_FEATURE_GET | u.VFIO_DEVICE_FEATURE_DMA_BUF;
  p.ioctl("$dev", "VFIO_DEVICE_FEATURE", u.VfioDeviceFeature, "an export", { argsz: 40, flags }, { tail, save: "$buf" });
}

function buffers(p: Program): void {
  p.section("dma-buf");
  anExport(p);
  const sync = asker(p, "$buf", "DMA_BUF_IOCTL_SYNC", u.DmaBufSync, { flags: u.DMA_BUF_SYNC_RW });
  pointers(p, "$buf", "DMA_BUF_IOCTL_SYNC", 8);
  for (const flags of [0n, 1n, 2n, 3n, 4n, 5n, 7n, 8n, 1n << 32n, U64]) sync(`flags ${flags}`, { flags });
  const name = (what: string, at: string, bytes: string): void =>
    p.call("ioctl", what, { fd: "$buf", cmd: "DMA_BUF_SET_NAME_B", at, hex: bytes });
  pointers(p, "$buf", "DMA_BUF_SET_NAME_B", 1);
  name("a name", "arena", text("name\0"));
  name("an empty name", "arena", "00");
  name("a name of 31", "arena", text(`${"n".repeat(31)}\0`));
  name("a name of 32", "arena", text(`${"n".repeat(32)}\0`));
  name("a name that ends at an unreadable page", "guard-5", text("name\0"));
  name("a name that runs into an unreadable page", "guard-4", text("name"));
  name("a name of 32 before an unreadable page", "guard-32", text("n".repeat(32)));
  p.call("ioctl", "a name, by the 32-bit number", { fd: "$buf", cmd: "DMA_BUF_SET_NAME_A", at: TEXT_AT, hex: text("name\0") });
  pointers(p, "$buf", "DMA_BUF_IOCTL_EXPORT_SYNC_FILE", 8);
  const out = asker(p, "$buf", "DMA_BUF_IOCTL_EXPORT_SYNC_FILE", u.DmaBufExportSyncFile, { flags: 3 });
  for (const flags of [0, 4, U32]) out(`flags ${flags}`, { flags });
  out("an answer that cannot be written", {}, { at: "ro" });
  out("fences of a reader", { flags: 1 }, { save: "$fence@4" });
  out("fences of a writer", { flags: 2 }, { save: "$fence2@4" });
  pointers(p, "$buf", "DMA_BUF_IOCTL_IMPORT_SYNC_FILE", 8);
  const put = asker(p, "$buf", "DMA_BUF_IOCTL_IMPORT_SYNC_FILE", u.DmaBufImportSyncFile, { flags: 1, fd: "$fence" });
  for (const flags of [0, 4, U32]) put(`flags ${flags}`, { flags });
  put("fd closed", { fd: 200 });
  put("fd -1", { fd: -1 });
  put("fd of a dma-buf", { fd: "$buf" });
  put("fd of the iommufd", { fd: "$ifd" });
  put("good");
  p.bare("$buf", "0x6204", "0", "number of no command");
  p.bare("$buf", "IOMMU_DESTROY", "0", "a command of the iommufd");
  p.call("poll", "the fence", { fd: "$fence", events: u.POLLIN | u.POLLOUT });
  p.call("lseek", "the fence", { fd: "$fence", offset: 0, whence: 0 });
  p.bare("$fence", "0x3e00", "0", "number of no command of a sync file");
  p.close("$dev", "the exporter");
  sync("after the exporter is closed");
  out("after the exporter is closed");
}

function makers(p: Program): void {
  p.section("udmabuf");
  p.open("/dev/udmabuf", "$node");
  p.call("memfd", "without seals", { flags: u.MFD_ALLOW_SEALING, size: 0x4000, save: "$mem" });
  p.open("/dev/null", "$null");
  pointers(p, "$node", "UDMABUF_CREATE", 24);
  const make = asker(p, "$node", "UDMABUF_CREATE", u.UdmabufCreate, { memfd: "$mem", size: 0x4000n });
  make("a memfd that may shrink");
  p.call("fcntl", "F_SEAL_SHRINK", { fd: "$mem", cmd: u.F_ADD_SEALS, arg: u.F_SEAL_SHRINK });
  make("unknown flag", { flags: 2 });
  make("memfd closed", { memfd: 200 });
  make("memfd -1", { memfd: -1 });
  make("a device node", { memfd: "$null" });
  make("size 0", { size: 0n });
  make("size unaligned", { size: 1n });
  make("offset unaligned", { offset: 1n });
  make("past the end", { size: 0x5000n });
  make("offset past the end", { offset: 0x4000n, size: 0x1000n });
  make("offset + size wraps", { offset: U64 - 0xfffn, size: 0x2000n });
  make("size ~0 - 4095", { size: U64 - 0xfffn });
  make("size 2^40", { size: 1n << 40n });
  make("unaligned and no memfd", { size: 1n, memfd: "$null" });
  make("good", {}, { save: "$ub" });
  p.call("lseek", "its size", { fd: "$ub", offset: 0, whence: 2 });
  p.call("fcntl", "F_SEAL_WRITE while it lives", { fd: "$mem", cmd: u.F_ADD_SEALS, arg: u.F_SEAL_WRITE });
  const list = asker(p, "$node", "UDMABUF_CREATE_LIST", u.UdmabufCreateList, { count: 1 });
  const item = u32s(0, 0) + u64s(0n, 0x1000n);
  pointers(p, "$node", "UDMABUF_CREATE_LIST", 8);
  list("no items", { count: 0 });
  list("one item unreadable", {}, { at: "guard-8" });
  list("more than the limit", { count: 1025 }, { tail: item });
  list("~0 items", { count: U32 });
  list("unknown flag", { flags: 2 }, { tail: item, tailNumbers: { 0: "$mem" } });
  list("one good", {}, { tail: item, tailNumbers: { 0: "$mem" } });
  list("second bad", { count: 2 }, { tail: item + item, tailNumbers: { 0: "$mem", 24: "$null" } });

  p.section("dma-heap");
  p.open("/dev/dma_heap/system", "$node");
  pointers(p, "$node", "DMA_HEAP_IOCTL_ALLOC", 24);
  const alloc = asker(p, "$node", "DMA_HEAP_IOCTL_ALLOC", u.DmaHeapAllocationData, { len: 0x4000n, fd_flags: u.O_RDWR | u.O_CLOEXEC });
  alloc("fd not zero", { fd: 1 });
  alloc("unknown descriptor flag", { fd_flags: 0x800 });
  alloc("descriptor flags ~0", { fd_flags: U32 });
  alloc("access mode 3", { fd_flags: 3 });
  alloc("heap flag", { heap_flags: 1n });
  alloc("length 0", { len: 0n });
  alloc("length ~0", { len: U64 });
  alloc("one byte", { len: 1n }, { save: "$small@8" });
  p.call("lseek", "its size", { fd: "$small", offset: 0, whence: 2 });
  alloc("an answer that cannot be written", {}, { at: "ro" });
  alloc("by another number", {}, { cut: 24 });
  p.bare("$node", "0x4801", "0", "number of no command");
  p.bare("$node", "0x4802", "arena", "number of no command, readable");
}

/** Two contexts, and the order in which things are closed. */
function orders(p: Program): void {
  p.section("orders");
  p.open("/dev/iommu", "$ifd");
  p.open("/dev/iommu", "$other");
  p.open("@edu", "$dev");
  const ioas = (fd: string, save: string): void =>
    p.ioctl(fd, "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, "an address space", { size: 12 }, { save: `${save}@8` });
  const attach = (what: string, pt: string): void =>
    p.ioctl("$dev", "VFIO_DEVICE_ATTACH_IOMMUFD_PT", u.VfioDeviceAttachIommufdPt, what, { argsz: 16, pt_id: pt });
  const bind = (what: string, dev: string, ifd: string): void =>
    p.ioctl(dev, "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, what, { argsz: 24, iommufd: ifd });
  const destroy = (what: string, fd: string, id: string | number): void =>
    p.ioctl(fd, "IOMMU_DESTROY", u.IommuDestroy, what, { size: 8, id });
  for (const [fd, save] of [
    ["$other", "$a"],
    ["$other", "$b"],
    ["$other", "$far"],
    ["$ifd", "$ioas"],
  ] as const)
    ioas(fd, save);
  bind("the first context", "$dev", "$ifd");
  attach("an id of the other context", "$far");
  attach("its own", "$ioas");
  destroy("by the other context", "$other", "$far");
  p.open("@edu", "$second");
  bind("a second open, the other context", "$second", "$other");
  p.call("dup", "the device", { fd: "$dev", save: "$twin" });
  p.close("$dev", "the first of two");
  p.ioctl("$twin", "VFIO_DEVICE_GET_INFO", u.VfioDeviceInfo, "by the second of two", { argsz: 24 });
  bind("a second open while the device lives on", "$second", "$other");
  p.close("$ifd", "the context");
  p.bare("$twin", "VFIO_DEVICE_RESET", "0", "the context is closed");
  p.close("$twin", "the device");
  bind("a second open after that", "$second", "$other");
  p.ioctl("$second", "VFIO_DEVICE_DETACH_IOMMUFD_PT", u.VfioDeviceDetachIommufdPt, "nothing attached", { argsz: 12 });
  p.close("$other", "the other context");
  p.close("$second", "the device");
  p.open("@edu", "$dev");
  bind("a context that is closed", "$dev", "$other");
}

export function dmaBufCalls(p: Program): void {
  buffers(p);
  makers(p);
  orders(p);
}
