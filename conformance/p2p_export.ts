/** Section `export`: VFIO_DEVICE_FEATURE_DMA_BUF and the descriptor it makes. */
import { Errno } from "../src/lib/index.ts";
import * as u from "../src/uapi/index.ts";
import { Env, GETF, hex, type Range, type Recorder } from "./p2p_env.ts";

const PAGE = 0x1000n;
const NOT_FFF = 0xffff_ffff_ffff_f000n;

export function sectionExport(r: Recorder): void {
  r.sec = "export";
  const { os } = r;
  const first = r.cdevOpen(r.exporter);
  r.export1(first, r.region, 0n, PAGE, "device opened, not bound");
  os.close(first);
  const v = Env.open(r);
  const x = v.x.fd;
  const S = v.bsize;
  probe(r, x);
  theDescriptor(r, x, S);

  const one = (off: bigint, len: bigint, what: string): void => {
    const d = r.export1(x, r.region, off, len, what);
    if (d >= 0) os.close(d);
  };
  one(0n, PAGE, "first page");
  one(PAGE, 0x2000n, "part");
  one(S - PAGE, PAGE, "last page");
  one(S, PAGE, "offset==size");
  one(S - PAGE, 0x2000n, "runs past end by a page");
  one(0x800n, PAGE, "unaligned offset");
  one(0n, 0x800n, "unaligned length");
  one(0n, 0x1800n, "unaligned length 0x1800");
  one(0n, 0n, "zero length");
  one(0n, S + PAGE, "size+page");
  one(0n, 2n * S, "2*size");
  one(NOT_FFF, PAGE, "offset ~0xfff len 0x1000");
  one(PAGE, NOT_FFF, "off 0x1000 len ~0xfff (sum wraps)");
  one(0n, NOT_FFF, "len ~0xfff");
  one(0n, 1n << 63n, "len 1<<63");
  one(0n, 1n << 62n, "len 1<<62");
  one(1n << 63n, PAGE, "off 1<<63");
  one(NOT_FFF, 0x2000n, "off -4096 len 0x2000");

  type Extra = { openFlags?: number; flags?: number; featureFlags?: number; argsz?: number; region?: number; nr?: number };
  /** Exports `ranges`; where the open flags are out of the ordinary, the descriptor's are recorded too. */
  const many = (ranges: Range[], what: string, extra: Extra = {}): void => {
    const openFlags = extra.openFlags ?? u.O_RDWR;
    const d = r.exportx(x, { region: r.region, nr: ranges.length, ranges, what, ...extra, openFlags });
    if (d < 0) return;
    if (openFlags !== u.O_RDWR) {
      const g = os.fcntl(d, u.F_GETFL);
      r.rec("fcntl(F_GETFL)", { what }, g, { oct: `0${Number(g).toString(8)}`, fd_flags: os.fcntl(d, u.F_GETFD) });
    }
    os.close(d);
  };
  const a: Range = { off: 0n, len: PAGE };
  many([a, { off: 0x4000n, len: 0x2000n }], "2 disjoint ranges", { openFlags: u.O_RDWR | u.O_CLOEXEC });
  many([a, { off: PAGE, len: 0x2000n }], "2 adjacent ranges");
  many([a, { off: 0n, len: 0x2000n }], "2 overlapping ranges");
  many([a, a], "same range twice");
  many([{ off: 0x4000n, len: PAGE }, a], "2 ranges descending");
  many([a, { off: PAGE, len: 0n }], "2nd range zero length");
  many([a, { off: S, len: PAGE }], "2nd range beyond end");
  many([a, { off: 0n, len: NOT_FFF }], "sum of lengths wraps");
  many(
    Array.from({ length: 64 }, (_, i) => ({ off: BigInt(i) * PAGE, len: PAGE })),
    "64 ranges",
  );
  many(
    Array.from({ length: 64 }, () => ({ off: 0n, len: S })),
    "64 x whole BAR (dmabuf larger than BAR)",
  );
  const bare = (ranges: Range[], nr: number, what: string): void => {
    const d = r.exportx(x, { region: r.region, openFlags: u.O_RDWR, nr, ranges, what });
    if (d >= 0) os.close(d);
  };
  bare([], 0, "nr_ranges 0");
  bare([a], 0xffffffff, "nr_ranges 0xffffffff");
  bare([a], 0x10000000, "nr_ranges 0x10000000");
  many([a], "flags=1", { flags: 1 });
  many([a], "unknown feature flag bit 19", { featureFlags: GETF | (1 << 19) });
  many([a], "FEATURE_SET", { featureFlags: u.VFIO_DEVICE_FEATURE_SET | u.VFIO_DEVICE_FEATURE_DMA_BUF });
  many([a], "GET|SET", { featureFlags: GETF | u.VFIO_DEVICE_FEATURE_SET });
  many([a], "neither GET nor SET", { featureFlags: u.VFIO_DEVICE_FEATURE_DMA_BUF });
  const header = u.VfioDeviceFeature.size;
  const fixed = header + u.VfioDeviceFeatureDmaBuf.size;
  many([a], "argsz header only", { argsz: header });
  many([a], "argsz one short of the fixed part", { argsz: fixed - 1 });
  many([a], "argsz = fixed part, no room for ranges", { argsz: fixed });
  many([a], "argsz larger than needed", { argsz: 4000 });
  many([a], "argsz 4", { argsz: 4 });
  const O_PATH = 0o10000000;
  const openFlags: [number, string][] = [
    [0, "O_RDONLY"],
    [u.O_WRONLY, "O_WRONLY"],
    [u.O_ACCMODE, "3"],
    [u.O_CLOEXEC, "O_CLOEXEC"],
    [u.O_RDWR | u.O_NONBLOCK, "O_RDWR|O_NONBLOCK"],
    [u.O_RDWR | u.O_APPEND, "O_APPEND"],
    [u.O_RDWR | O_PATH, "O_PATH"],
    [u.O_RDWR | u.O_CREAT, "O_CREAT"],
    [u.O_RDWR | u.O_DIRECT, "O_DIRECT"],
    [0xffffffff, "~0"],
  ];
  for (const [flags, name] of openFlags) many([a], `open_flags ${name}`, { openFlags: flags });
  for (let i = 0; i <= 10; i++) {
    const info = r.regionInfo(x, i);
    const d = r.exportx(x, {
      region: i,
      openFlags: u.O_RDWR,
      nr: 1,
      ranges: [a],
      what: `region ${i} (size ${hex(info.size)} flags ${hex(info.flags)})`,
    });
    if (d >= 0) os.close(d);
  }
  r.exportx(x, { region: 0xffffffff, openFlags: u.O_RDWR, nr: 1, ranges: [a], what: "region ~0" });
  r.rec("VFIO_DEVICE_FEATURE(bad pointer)", {}, os.ioctl(x, u.VFIO_DEVICE_FEATURE, 0x10n));
  unreadableRanges(r, x);
  one(0n, PAGE, "again");
  const own = r.export1(v.e.fd, 0, 0n, PAGE, "edu BAR0");
  if (own >= 0) os.close(own);
  const limit = os.process.rlimits.nofile;
  os.process.rlimits.nofile = 5;
  one(0n, PAGE, "RLIMIT_NOFILE exhausted");
  os.process.rlimits.nofile = limit;
  v.close();
}

function probe(r: Recorder, x: number): void {
  for (const [flag, name] of [
    [u.VFIO_DEVICE_FEATURE_GET, "GET"],
    [u.VFIO_DEVICE_FEATURE_SET, "SET"],
  ] as const) {
    const f = u.VfioDeviceFeature.alloc({
      argsz: u.VfioDeviceFeature.size,
      flags: (u.VFIO_DEVICE_FEATURE_PROBE | flag | u.VFIO_DEVICE_FEATURE_DMA_BUF) >>> 0,
    });
    r.rec(`VFIO_DEVICE_FEATURE_PROBE(DMA_BUF ${name})`, {}, r.os.ioctlBytes(x, u.VFIO_DEVICE_FEATURE, f.bytes));
  }
}

/** What every file operation on a dma-buf answers. */
function theDescriptor(r: Recorder, x: number, size: bigint): void {
  const { os } = r;
  const d = r.export1(x, r.region, 0n, size, "whole");
  if (d < 0) return;
  r.rec("lseek(dmabuf,0,SEEK_END)", {}, os.lseek(d, 0n, u.SEEK_END));
  r.rec("lseek(dmabuf,0,SEEK_SET)", {}, os.lseek(d, 0n, u.SEEK_SET));
  r.rec("lseek(dmabuf,4096,SEEK_SET)", {}, os.lseek(d, 4096n, u.SEEK_SET));
  r.rec("lseek(dmabuf,0,SEEK_CUR)", {}, os.lseek(d, 0n, u.SEEK_CUR));
  const st = os.fstat(d);
  if (st instanceof Errno) r.rec("fstat(dmabuf)", {}, st);
  else r.rec("fstat(dmabuf)", {}, 0, { mode: `0${st.mode.toString(8)}`, size: Number(st.size), blocks: Number(st.blocks) });
  const map = (prot: number, flags: number, what: string): void => {
    const m = os.mmap(d, 4096, prot, flags, 0n);
    r.rec(what, {}, m instanceof Errno ? m : 0);
  };
  map(u.PROT_READ | u.PROT_WRITE, u.MAP_SHARED, "mmap(dmabuf,RW,SHARED)");
  map(u.PROT_READ, u.MAP_PRIVATE, "mmap(dmabuf,R,PRIVATE)");
  const got = os.read(d, 8);
  r.rec("read(dmabuf)", {}, got instanceof Errno ? got : got.length);
  r.rec("write(dmabuf)", {}, os.write(d, new Uint8Array(8)));
  const fl = os.fcntl(d, u.F_GETFL);
  r.rec("fcntl(F_GETFL)", {}, fl, { oct: `0${Number(fl).toString(8)}` });
  r.rec("fcntl(F_GETFD)", {}, os.fcntl(d, u.F_GETFD));
  for (const [edge, name] of [
    [u.DMA_BUF_SYNC_START, "START"],
    [u.DMA_BUF_SYNC_END, "END"],
  ] as const) {
    const s = u.DmaBufSync.alloc({ flags: edge | u.DMA_BUF_SYNC_RW });
    r.rec(`DMA_BUF_IOCTL_SYNC(${name}|RW)`, {}, os.ioctlBytes(d, u.DMA_BUF_IOCTL_SYNC, s.bytes));
  }
  os.withMemory((alloc) => {
    const name = new TextEncoder().encode("oracle\0");
    const m = alloc(name.length);
    m.set(name);
    r.rec("DMA_BUF_SET_NAME_B", {}, os.ioctl(d, u.DMA_BUF_SET_NAME_B, m.address));
  });
  const sync = u.DmaBufExportSyncFile.alloc({ flags: Number(u.DMA_BUF_SYNC_RW), fd: -1 });
  r.rec("DMA_BUF_IOCTL_EXPORT_SYNC_FILE", {}, os.ioctlBytes(d, u.DMA_BUF_IOCTL_EXPORT_SYNC_FILE, sync.bytes));
  pollRecord(r, d, "poll(dmabuf,IN|OUT,0)", {});
  os.close(d);
}

export function pollRecord(r: Recorder, fd: number, call: string, args: Record<string, unknown>): void {
  const p = r.os.poll([{ fd, events: u.POLLIN | u.POLLOUT }], 0);
  if (p instanceof Errno) r.rec(call, args, p);
  else r.rec(call, args, p.ready, { revents: hex(p.revents[0] ?? 0) });
}

/** The fixed part ends exactly at a page the program cannot read. */
function unreadableRanges(r: Recorder, x: number): void {
  const { os } = r;
  const pages = os.mmapAnonymous(2 * 4096);
  os.mprotect(pages.address + 4096n, 4096, 0);
  const head = u.VfioDeviceFeature.size;
  const fixed = u.VfioDeviceFeatureDmaBuf.size;
  const bytes = new Uint8Array(head + fixed);
  const f = u.VfioDeviceFeature.over(bytes);
  f.argsz = 40;
  f.flags = GETF;
  const b = u.VfioDeviceFeatureDmaBuf.over(bytes, head);
  b.region_index = r.region;
  b.nr_ranges = 1;
  const at = 4096 - bytes.length;
  pages.store(at, bytes);
  r.rec(
    "VFIO_DEVICE_FEATURE_DMA_BUF",
    { what: "ranges on an unreadable page" },
    os.ioctl(x, u.VFIO_DEVICE_FEATURE, pages.address + BigInt(at)),
  );
}
