/** Calls on the wrong kind of descriptor, and the calls other than ioctl that each kind answers or refuses. */
import * as u from "../../src/uapi/index.ts";
import { type Program, u64s } from "./program.ts";

const U64 = 0xffff_ffff_ffff_ffffn;
const HUGE = "0x7fffffffffffffff";

function wrongDescriptors(p: Program): void {
  p.section("descriptors");
  p.open("/dev/iommu", "$ifd");
  p.open("/dev/iommu", "$readonly", u.O_RDONLY);
  p.open("/dev/iommu", "$writeonly", u.O_WRONLY);
  p.call("open", "an O_PATH descriptor", { path: "/dev/iommu", flags: 0o10000000, save: "$path" });
  p.open("/dev/null", "$null");
  p.open("@edu", "$dev");
  p.call("eventfd", "an eventfd", { save: "$event" });
  p.call("memfd", "a memfd", { flags: 0, size: 0x1000, save: "$mem" });
  p.call("pipe", "a pipe");
  const ioas = (what: string, fd: string | number): void => p.ioctl(fd, "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, what, { size: 12 });
  ioas("closed", 200);
  ioas("-1", -1);
  ioas("INT_MIN", -2147483648);
  for (const kind of ["readonly", "writeonly", "path", "null", "dev", "event", "mem", "reader"]) ioas(`on ${kind}`, `$${kind}`);
  const info = (what: string, fd: string | number): void => p.ioctl(fd, "VFIO_DEVICE_GET_INFO", u.VfioDeviceInfo, what, { argsz: 24 });
  info("closed", 200);
  for (const kind of ["ifd", "null", "event", "mem", "reader"]) info(`on ${kind}`, `$${kind}`);
  for (const kind of ["ifd", "null", "event", "mem"]) p.bare(`$${kind}`, "DMA_BUF_IOCTL_SYNC", "0", `on ${kind}`);
  p.bare(200, "IOMMU_IOAS_ALLOC", "0", "closed, null pointer");
  p.close("$ifd", "the context");
  ioas("after its close", "$ifd");
  p.call("close", "again", { fd: "$ifd" });
  p.call("close", "-1", { fd: -1 });
  p.open("/dev/iommu", "$ifd");
  p.call("dup", "the context", { fd: "$ifd", save: "$twin" });
  p.close("$ifd", "the first of two");
  p.ioctl("$twin", "IOMMU_IOAS_ALLOC", u.IommuIoasAlloc, "by the second of two", { size: 12 });
}

/** read, write, lseek, mmap, poll, fstat, fcntl on one descriptor. */
function plainCalls(p: Program, fd: string): void {
  const name = fd.slice(1);
  p.call("read", `${name}: 8 bytes`, { fd, at: "arena", length: 8 });
  p.call("read", `${name}: nothing`, { fd, at: "arena", length: 0 });
  p.call("read", `${name}: null pointer`, { fd, at: "0", length: 8 });
  p.call("read", `${name}: kernel address`, { fd, at: "0xffff888000000000", length: 8 });
  p.call("write", `${name}: 8 bytes`, { fd, at: "arena", hex: u64s(0n), length: 8 });
  p.call("write", `${name}: nothing`, { fd, at: "arena", length: 0 });
  p.call("write", `${name}: null pointer`, { fd, at: "0", length: 8 });
  p.call("pread", `${name}: at 0`, { fd, at: "arena", length: 8, position: 0 });
  p.call("pread", `${name}: at -1`, { fd, at: "arena", length: 8, position: "0xffffffffffffffff" });
  p.call("pread", `${name}: at 2^63 - 1`, { fd, at: "arena", length: 8, position: HUGE });
  p.call("pwrite", `${name}: at -1`, { fd, at: "arena", hex: u64s(0n), length: 8, position: "0xffffffffffffffff" });
  p.call("pwrite", `${name}: at 2^63 - 1`, { fd, at: "arena", hex: u64s(0n), length: 8, position: HUGE });
  for (const whence of [0, 1, 2, 3, 4, 5, 99]) p.call("lseek", `${name}: 0 from ${whence}`, { fd, offset: 0, whence });
  p.call("lseek", `${name}: to 4096`, { fd, offset: 4096, whence: 0 });
  p.call("lseek", `${name}: to -1`, { fd, offset: -1, whence: 0 });
  p.call("mmap", `${name}: a page, shared`, { fd, length: 4096, prot: 3, flags: 1, offset: 0 });
  p.call("mmap", `${name}: a page, private`, { fd, length: 4096, prot: 1, flags: 2, offset: 0 });
  p.call("mmap", `${name}: nothing`, { fd, length: 0, prot: 3, flags: 1, offset: 0 });
  p.call("mmap", `${name}: unaligned offset`, { fd, length: 4096, prot: 3, flags: 1, offset: 1 });
  p.call("mmap", `${name}: offset that wraps`, { fd, length: 8192, prot: 3, flags: 1, offset: "0xfffffffffffff000" });
  p.call("mmap", `${name}: neither shared nor private`, { fd, length: 4096, prot: 3, flags: 0, offset: 0 });
  p.call("poll", `${name}: in and out`, { fd, events: u.POLLIN | u.POLLOUT });
  p.call("poll", `${name}: nothing`, { fd, events: 0 });
  p.call("fstat", name, { fd });
  p.call("ftruncate", `${name}: to 0`, { fd, length: 0 });
  p.call("ftruncate", `${name}: to -1`, { fd, length: -1 });
  p.call("fcntl", `${name}: F_GETFL`, { fd, cmd: u.F_GETFL, arg: 0 });
  p.call("fcntl", `${name}: F_SETFL all`, { fd, cmd: u.F_SETFL, arg: u.O_NONBLOCK | u.O_APPEND });
  p.call("fcntl", `${name}: F_GETFL after that`, { fd, cmd: u.F_GETFL, arg: 0 });
  p.call("fcntl", `${name}: F_GETFD`, { fd, cmd: u.F_GETFD, arg: 0 });
  p.call("fcntl", `${name}: F_GET_SEALS`, { fd, cmd: u.F_GET_SEALS, arg: 0 });
  p.call("fcntl", `${name}: F_ADD_SEALS`, { fd, cmd: u.F_ADD_SEALS, arg: 1 });
  p.call("fcntl", `${name}: F_DUPFD far`, { fd, cmd: u.F_DUPFD, arg: 0x7fff_ffff });
  p.call("fcntl", `${name}: command 9999`, { fd, cmd: 9999, arg: 0 });
}

function otherCalls(p: Program): void {
  p.section("plain-iommufd");
  p.open("/dev/iommu", "$ifd");
  plainCalls(p, "$ifd");
  p.section("plain-device");
  p.open("/dev/iommu", "$ifd");
  p.open("@ivshmem", "$dev");
  plainCalls(p, "$dev");
  p.ioctl("$dev", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "bind", { argsz: 24, iommufd: "$ifd" });
  p.section("plain-device-bound");
  p.open("/dev/iommu", "$ifd");
  p.open("@ivshmem", "$dev");
  p.ioctl("$dev", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "bind", { argsz: 24, iommufd: "$ifd" });
  plainCalls(p, "$dev");
  regions(p);
  p.section("plain-dma-buf");
  p.open("/dev/iommu", "$ifd");
  p.open("@ivshmem", "$dev");
  p.ioctl("$dev", "VFIO_DEVICE_BIND_IOMMUFD", u.VfioDeviceBindIommufd, "bind", { argsz: 24, iommufd: "$ifd" });
  const tail = `02000000020008000000000001000000${u64s(0n, 0x4000n)}`;
  const flags = u.VFIO_DEVICE_FEATURE_GET | u.VFIO_DEVICE_FEATURE_DMA_BUF;
  p.ioctl("$dev", "VFIO_DEVICE_FEATURE", u.VfioDeviceFeature, "an export", { argsz: 40, flags }, { tail, save: "$buf" });
  plainCalls(p, "$buf");
}

/** Reads, writes and maps at the places of a bound device that are none. */
function regions(p: Program): void {
  const at = (region: number, offset: bigint): string => ((BigInt(region) << 40n) + offset).toString();
  const read = (what: string, position: string, length = 4, where = "arena"): void =>
    p.call("pread", `${what}`, { fd: "$dev", at: where, length, position });
  for (const region of [0, 1, 2, 3, 6, 7, 8, 9, 100]) read(`region ${region}, its start`, at(region, 0n));
  read("config, its last byte", at(7, 255n), 1);
  read("config, across its end", at(7, 254n), 8);
  read("config, past its end", at(7, 4096n));
  read("config, nothing", at(7, 0n), 0);
  read("config, into an unreadable page", at(7, 0n), 4, "guard");
  read("config, half into an unreadable page", at(7, 0n), 8, "guard-4");
  read("BAR, into an unreadable page", at(2, 0n), 8, "guard");
  read("BAR, half into an unreadable page", at(2, 0n), 8, "guard-4");
  read("BAR, at its end", at(2, 0x100_0000n));
  read("BAR, across its end", at(2, 0xff_fffcn), 8);
  read("BAR, nothing at its end", at(2, 0x100_0000n), 0);
  read("no such region, nothing", at(100, 0n), 0);
  read("no such region, null pointer", at(100, 0n), 4, "0");
  const write = (what: string, position: string, length = 4, where = "arena"): void =>
    p.call("pwrite", what, { fd: "$dev", at: where, length, position, ...(where === "arena" ? { hex: "00".repeat(length) } : {}) });
  for (const region of [3, 6, 8, 9]) write(`region ${region}, its start`, at(region, 0n));
  write("BAR, at its end", at(2, 0x100_0000n));
  write("BAR, from an unreadable page", at(2, 0n), 4, "guard");
  write("config, past its end", at(7, 4096n));
  write("config, read-only bytes", at(7, 0n));
  write("config, from an unreadable page", at(7, 4n), 2, "guard");
  const map = (what: string, position: string, length: number | string, flags = u.MAP_SHARED, prot = 3): void =>
    p.call("mmap", what, { fd: "$dev", length, prot, flags, offset: position });
  map("BAR, whole", at(2, 0n), 0x100_0000);
  map("BAR, a page past its end", at(2, 0n), 0x100_1000);
  map("BAR, past its end", at(2, 0x100_0000n), 0x1000);
  map("BAR, private", at(2, 0n), 0x1000, u.MAP_PRIVATE);
  map("BAR, to execute", at(2, 0n), 0x1000, u.MAP_SHARED, 5);
  map("BAR smaller than a page", at(0, 0n), 0x1000);
  map("BAR that is not there", at(3, 0n), 0x1000);
  map("ROM", at(6, 0n), 0x1000);
  map("config", at(7, 0n), 0x1000);
  map("no such region", at(9, 0n), 0x1000);
  map("into the next region", at(2, (1n << 40n) - 0x1000n), 0x2000);
  p.call("pread", "position ~0", { fd: "$dev", at: "arena", length: 4, position: `0x${U64.toString(16)}` });
}

export function fileCalls(p: Program): void {
  wrongDescriptors(p);
  otherCalls(p);
}
