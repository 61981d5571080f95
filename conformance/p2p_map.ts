/** Sections `map`, `copy`: IOMMU_IOAS_MAP_FILE, MAP, UNMAP, COPY with a domain attached. */
import { Errno } from "../src/lib/index.ts";
import * as u from "../src/uapi/index.ts";
import { BARIOVA, Env, MEMIOVA, must, type Range, type Recorder, RW, RWF, U64 } from "./p2p_env.ts";

const RO = u.IOMMU_IOAS_MAP_READABLE | u.IOMMU_IOAS_MAP_FIXED_IOVA;
const WO = u.IOMMU_IOAS_MAP_WRITEABLE | u.IOMMU_IOAS_MAP_FIXED_IOVA;
const NOT_FFF = 0xffff_ffff_ffff_f000n;
const O_PATH = 0o10000000;

export function sectionMap(r: Recorder): void {
  r.sec = "map";
  const v = Env.open(r);
  const { os } = r;
  const S = v.bsize;
  const { ifd, ioas } = v;
  const x = v.x.fd;
  const map = (fd: number, start: bigint, length: bigint, iova: bigint, flags: number, what: string, into = ioas): bigint | undefined =>
    r.mapFile(ifd, into, fd, start, length, iova, flags, what);
  const unmap = (iova: bigint, length: bigint, what: string, from = ioas): void => r.unmap(ifd, from, iova, length, what);

  const d = r.export1(x, r.region, 0n, S, "whole");
  const p = r.export1(x, r.region, 0x3000n, 0x4000n, "part 0x3000+0x4000");
  const two = (ranges: Range[], what: string): number => r.exportx(x, { region: r.region, openFlags: u.O_RDWR, nr: 2, ranges, what });
  const m2 = two(
    [
      { off: 0n, len: 0x1000n },
      { off: 0x4000n, len: 0x1000n },
    ],
    "2 ranges",
  );
  const ma = two(
    [
      { off: 0n, len: 0x1000n },
      { off: 0x1000n, len: 0x1000n },
    ],
    "2 adjacent ranges",
  );
  const ro = r.exportx(x, { region: r.region, openFlags: u.O_RDONLY, nr: 1, ranges: [{ off: 0n, len: 0x1000n }], what: "O_RDONLY" });

  map(d, 0n, S, BARIOVA, RWF, "whole BAR fixed iova");
  v.dmaWriteCheck(BARIOVA, v.at(0), "offset 0");
  v.dmaWriteCheck(BARIOVA + 0x5000n, v.at(0x5000), "offset 0x5000");
  v.dmaWriteCheck(BARIOVA + S - 0x100n, v.at(S - 0x100n), "last 256 bytes");
  v.dmaWriteCheck(BARIOVA + S, undefined, "just past the end");
  v.dmaReadCheck(BARIOVA + 0x2000n, v.at(0x2000), "BAR -> edu -> RAM");
  map(d, 0n, 0x1000n, BARIOVA, RWF, "overlaps an existing area");
  map(d, 0n, 0x2000n, BARIOVA + S - 0x1000n, RWF, "partly overlaps");
  unmap(BARIOVA, 0x1000n, "head of a dmabuf area");
  unmap(BARIOVA + 0x1000n, 0x1000n, "middle of a dmabuf area");
  unmap(BARIOVA - 0x1000n, S + 0x2000n, "range larger than the area");
  v.dmaWriteCheck(BARIOVA, v.at(0), "after unmap");
  unmap(BARIOVA, S, "again: nothing there");
  map(d, 0x4000n, 0x2000n, BARIOVA, RWF, "start 0x4000 len 0x2000");
  v.dmaWriteCheck(BARIOVA, v.at(0x4000), "lands at BAR 0x4000");
  v.dmaWriteCheck(BARIOVA + 0x1800n, v.at(0x5800), "lands at BAR 0x5800");
  v.dmaWriteCheck(BARIOVA + 0x2000n, undefined, "past end of partial");
  unmap(BARIOVA, 0x2000n, "exact");
  map(p, 0x1000n, 0x2000n, BARIOVA, RWF, "sub-export (BAR+0x3000): start 0x1000");
  v.dmaWriteCheck(BARIOVA, v.at(0x4000), "lands at BAR 0x4000");
  unmap(BARIOVA, 0x2000n, "exact");
  refusals(r, v, p);
  accessModes(r, v, p, ro);

  const whole = map(d, 0n, S, 0n, RW, "no fixed iova (kernel picks)");
  if (whole !== undefined) unmap(whole, S, "picked");
  const page = map(p, 0x1000n, 0x1000n, 0n, RW, "kernel picks, one page");
  if (page !== undefined) unmap(page, 0x1000n, "picked");
  map(m2, 0n, 0x2000n, BARIOVA, RWF, "2-range dmabuf whole");
  map(m2, 0n, 0x1000n, BARIOVA, RWF, "2-range dmabuf, only range 0");
  map(ma, 0n, 0x2000n, BARIOVA, RWF, "2 adjacent ranges");
  otherFiles(r, v);

  r.mapVa(ifd, ioas, v.at(0).map.address, 0x1000n, BARIOVA, "user VA of the BAR mmap");
  r.mapVa(ifd, ioas, v.mem.address, 0x1000n, BARIOVA, "user VA of memfd");
  unmap(BARIOVA, 0x1000n, "va");
  map(p, 0n, 0x4000n, BARIOVA, RWF, "map 1");
  map(p, 0n, 0x4000n, BARIOVA + 0x100000n, RWF, "map 2 of the same dmabuf");
  os.close(p);
  map(p, 0n, 0x4000n, BARIOVA + 0x200000n, RWF, "closed dmabuf fd");
  v.dmaWriteCheck(BARIOVA, v.at(0x3000), "map 1 after close(dmabuf)");
  v.dmaWriteCheck(BARIOVA + 0x100000n, v.at(0x3000), "map 2 after close(dmabuf)");
  unmap(0n, U64, "unmap all");
  const part = withoutDomain(r, v);
  unprivileged(r, v, part);
  v.close();
}

function refusals(r: Recorder, v: Env, p: number): void {
  const map = (start: bigint, length: bigint, iova: bigint, flags: number, what: string, ioas = v.ioas): void => {
    r.mapFile(v.ifd, ioas, p, start, length, iova, flags, what);
  };
  map(0n, 0x5000n, BARIOVA, RWF, "sub-export: length beyond");
  map(0x4000n, 0x1000n, BARIOVA, RWF, "sub-export: start==size");
  map(0x3000n, 0x1001n, BARIOVA, RWF, "sub-export: 1 byte beyond");
  map(0x800n, 0x1000n, BARIOVA, RWF, "start 0x800, iova page aligned (hw domain attached)");
  map(0x800n, 0x1000n, BARIOVA + 0x800n, RWF, "start 0x800, iova +0x800");
  map(0n, 0x800n, BARIOVA, RWF, "length 0x800");
  map(0n, 0n, BARIOVA, RWF, "length 0");
  map(NOT_FFF, 0x2000n, BARIOVA, RWF, "start+length wraps");
  map(0n, U64, BARIOVA, RWF, "length ~0");
  map(0n, U64 - 1n, BARIOVA, RWF, "length ~0-1");
  map(0n, 0x1000n, U64, RWF, "iova ~0");
  map(0n, 0x1000n, NOT_FFF, RWF, "iova -4096 (outside aperture)");
  map(0n, 0x1000n, 0xfee00000n, RWF, "iova in MSI window");
  map(0n, 0x1000n, BARIOVA, u.IOMMU_IOAS_MAP_FIXED_IOVA, "no R/W flags");
  map(0n, 0x1000n, BARIOVA, RWF | 8, "unknown flag 8");
  map(0n, 0x1000n, BARIOVA, RWF, "bad ioas id", 9999);
  map(0n, 0x1000n, BARIOVA, RWF, "ioas id is a device id", v.e.id);
}

function accessModes(r: Recorder, v: Env, p: number, ro: number): void {
  const { ifd, ioas } = v;
  if (r.mapFile(ifd, ioas, p, 0n, 0x1000n, BARIOVA, RO, "read-only map") !== undefined) {
    v.dmaWriteCheck(BARIOVA, v.at(0x3000), "write into a read-only map");
    v.dmaReadCheck(BARIOVA, v.at(0x3000), "read of a read-only map");
    r.unmap(ifd, ioas, BARIOVA, 0x1000n, "ro");
  }
  if (r.mapFile(ifd, ioas, p, 0n, 0x1000n, BARIOVA, WO, "write-only map") !== undefined) {
    v.dmaWriteCheck(BARIOVA, v.at(0x3000), "write into a write-only map");
    v.dmaReadCheck(BARIOVA, v.at(0x3000), "read of a write-only map");
    r.unmap(ifd, ioas, BARIOVA, 0x1000n, "wo");
  }
  if (r.mapFile(ifd, ioas, ro, 0n, 0x1000n, BARIOVA, RWF, "O_RDONLY dmabuf mapped writeable") !== undefined) {
    v.dmaWriteCheck(BARIOVA, v.at(0), "through O_RDONLY dmabuf");
    r.unmap(ifd, ioas, BARIOVA, 0x1000n, "ro fd");
  }
}

function udmabuf(r: Recorder, memfd: number, size: bigint): number {
  const dev = must(r.os.open("/dev/udmabuf", u.O_RDWR));
  const c = u.UdmabufCreate.alloc({ memfd, size });
  const fd = r.rec("UDMABUF_CREATE", {}, r.os.ioctlBytes(dev, u.UDMABUF_CREATE, c.bytes));
  r.os.close(dev);
  return fd;
}

/** Every kind of file that is not a VFIO dma-buf. */
function otherFiles(r: Recorder, v: Env): void {
  const { os } = r;
  const { ifd, ioas } = v;
  const map = (fd: number, start: bigint, length: bigint, iova: bigint, what: string): boolean =>
    r.mapFile(ifd, ioas, fd, start, length, iova, RWF, what) !== undefined;
  let ud = udmabuf(r, v.memfd, 0x10000n);
  if (ud < 0) {
    os.fcntl(v.memfd, u.F_ADD_SEALS, 0);
    const sealed = must(os.memfdCreate("u", u.MFD_ALLOW_SEALING));
    os.ftruncate(sealed, 1n << 20n);
    os.fcntl(sealed, u.F_ADD_SEALS, u.F_SEAL_SHRINK);
    ud = udmabuf(r, sealed, 0x10000n);
  }
  if (ud >= 0) map(ud, 0n, 0x1000n, BARIOVA, "udmabuf dmabuf");
  const heap = os.open("/dev/dma_heap/system", u.O_RDWR | u.O_CLOEXEC);
  if (!(heap instanceof Errno)) {
    const a = u.DmaHeapAllocationData.alloc({ len: 0x10000n, fd_flags: u.O_RDWR | u.O_CLOEXEC });
    if (!(os.ioctlBytes(heap, u.DMA_HEAP_IOCTL_ALLOC, a.bytes) instanceof Errno)) map(a.fd, 0n, 0x1000n, BARIOVA, "system dma-heap dmabuf");
    os.close(heap);
  }
  const mf = must(os.memfdCreate("x", 0));
  os.ftruncate(mf, 0x4000n);
  if (map(mf, 0x1000n, 0x2000n, BARIOVA, "memfd, start 0x1000")) {
    const q = must(os.mmap(mf, 0x4000, u.PROT_READ | u.PROT_WRITE, u.MAP_SHARED, 0n));
    v.dmaWriteCheck(BARIOVA, { map: q, offset: 0x1000 }, "memfd via edu");
    q.unmap();
    r.unmap(ifd, ioas, BARIOVA, 0x2000n, "memfd");
  }
  map(mf, 0x3000n, 0x2000n, BARIOVA, "memfd past EOF");
  map(mf, 0x800n, 0x1000n, BARIOVA, "memfd start 0x800");
  const mr = os.open(`/proc/self/fd/${mf}`, u.O_RDONLY);
  if (map(mr instanceof Errno ? -1 : mr, 0n, 0x1000n, BARIOVA, "memfd O_RDONLY mapped writeable")) {
    r.unmap(ifd, ioas, BARIOVA, 0x1000n, "memfd ro");
  }
  const huge = os.memfdCreate("h", u.MFD_HUGETLB);
  if (!(huge instanceof Errno) && os.ftruncate(huge, 2n << 20n) === undefined) {
    if (map(huge, 0n, 2n << 20n, 0x4000000n, "hugetlb memfd")) r.unmap(ifd, ioas, 0x4000000n, 2n << 20n, "hugetlb memfd");
  }
  const [reader] = must(os.pipe());
  map(reader, 0n, 0x1000n, BARIOVA, "pipe");
  const nul = must(os.open("/dev/null", u.O_RDWR));
  const tf = must(os.open("/tmp/f", u.O_RDWR | u.O_CREAT));
  os.ftruncate(tf, 0x2000n);
  map(nul, 0n, 0x1000n, BARIOVA, "/dev/null");
  if (map(tf, 0n, 0x1000n, BARIOVA, "regular tmpfs/rootfs file")) r.unmap(ifd, ioas, BARIOVA, 0x1000n, "tmpfs");
  map(v.x.fd, 0n, 0x1000n, BARIOVA, "vfio cdev fd itself");
  map(ifd, 0n, 0x1000n, BARIOVA, "the iommufd itself");
  map(555, 0n, 0x1000n, BARIOVA, "fd never opened");
  map(-1, 0n, 0x1000n, BARIOVA, "fd -1");
  const path = must(os.open("/tmp/f", O_PATH));
  map(path, 0n, 0x1000n, BARIOVA, "O_PATH fd");
}

/** An IOAS without a domain takes sub-page and reserved ranges, and no domain afterwards. */
function withoutDomain(r: Recorder, v: Env): number {
  const { ifd } = v;
  const io2 = r.ioasAlloc(ifd);
  const p = r.export1(v.x.fd, r.region, 0x3000n, 0x4000n, "part");
  const map = (start: bigint, length: bigint, iova: bigint, what: string): void => {
    r.mapFile(ifd, io2, p, start, length, iova, RWF, what);
  };
  map(0x800n, 0x1000n, BARIOVA + 0x800n, "no domain: start 0x800 iova +0x800");
  map(0x800n, 0x1000n, BARIOVA + 0x10000n, "no domain: start 0x800 iova aligned");
  map(0x1n, 0x7n, BARIOVA + 0x20001n, "no domain: start 1 len 7");
  r.attach(v.e, io2, "replace onto an ioas with sub-page areas");
  r.unmap(ifd, io2, 0n, U64, "all");
  map(0n, 0x1000n, NOT_FFF, "no domain: iova -4096");
  map(0n, 0x1000n, 0xfee00000n, "no domain: MSI window");
  r.attach(v.e, io2, "replace onto ioas with reserved-iova areas");
  r.unmap(ifd, io2, 0n, U64, "all");
  map(0n, 0x4000n, BARIOVA, "no domain, normal");
  r.mapFile(ifd, io2, v.memfd, 0n, 1n << 20n, MEMIOVA, RWF, "scratch");
  r.attach(v.e, io2, "replace onto ioas with a dmabuf area");
  v.dmaWriteCheck(BARIOVA, v.at(0x3000), "area filled into domain on attach");
  r.destroy(ifd, io2, "ioas in use");
  r.detach(v.e, "edu");
  r.unmap(ifd, io2, 0n, U64, "all (no domain)");
  return p;
}

/** Pinned-memory accounting: a child without capabilities and with no MEMLOCK. */
function unprivileged(r: Recorder, v: Env, p: number): void {
  const child = r.os.fork();
  child.process.rlimits.memlock = 0n;
  child.dropPrivileges(1234);
  r.mapFile(v.ifd, v.ioas, p, 0n, 0x4000n, BARIOVA, RWF, "unprivileged child, RLIMIT_MEMLOCK 0: dmabuf", child);
  const m = must(child.memfdCreate("z", 0));
  child.ftruncate(m, 0x4000n);
  r.mapFile(v.ifd, v.ioas, m, 0n, 0x4000n, BARIOVA + 0x100000n, RWF, "unprivileged child, RLIMIT_MEMLOCK 0: memfd", child);
  child.exit();
}

export function sectionCopy(r: Recorder): void {
  r.sec = "copy";
  const v = Env.open(r);
  const { ifd, ioas } = v;
  const x = v.x.fd;
  const copy = (dst: number, d: bigint, s: bigint, len: bigint, what: string): boolean => r.copy(ifd, dst, ioas, d, s, len, RWF, what);
  let d = r.export1(x, r.region, 0x3000n, 0x4000n, "part");
  const io2 = r.ioasAlloc(ifd);
  r.mapFile(ifd, ioas, d, 0n, 0x4000n, BARIOVA, RWF, "src");
  copy(ioas, BARIOVA + 0x100000n, BARIOVA, 0x4000n, "same ioas, whole area");
  v.dmaWriteCheck(BARIOVA + 0x100000n, v.at(0x3000), "via the copy");
  copy(ioas, BARIOVA + 0x200000n, BARIOVA + 0x1000n, 0x2000n, "same ioas, middle of area");
  v.dmaWriteCheck(BARIOVA + 0x200000n, v.at(0x4000), "via partial copy");
  copy(io2, BARIOVA, BARIOVA, 0x4000n, "into a domainless ioas");
  copy(io2, BARIOVA + 0x100000n, BARIOVA, 0x5000n, "longer than the area");
  copy(ioas, BARIOVA + 0x300000n, MEMIOVA + 0xff000n, 0x1000n, "ordinary memfd area");
  copy(ioas, BARIOVA + 0x100000n, BARIOVA, 0x1000n, "dst overlaps");
  copy(ioas, BARIOVA + 0x400000n, BARIOVA + 0x800n, 0x1000n, "src at sub-page offset, aligned dst");
  r.mapFile(ifd, ioas, d, 0n, 0x1000n, BARIOVA + 0x500000n, RO, "ro src");
  copy(ioas, BARIOVA + 0x600000n, BARIOVA + 0x500000n, 0x1000n, "writeable copy of a read-only area");
  r.os.close(d);
  r.unmap(ifd, ioas, BARIOVA, 0x4000n, "original");
  v.dmaWriteCheck(BARIOVA + 0x100000n, v.at(0x3000), "copy lives on after original unmapped + fd closed");
  d = r.export1(x, r.region, 0n, 0x4000n, "x");
  r.mapFile(ifd, ioas, d, 0n, 0x1000n, 0x3000000n, RWF, "A");
  r.mapFile(ifd, ioas, d, 0x2000n, 0x1000n, 0x3001000n, RWF, "B");
  copy(ioas, 0x3100000n, 0x3000000n, 0x2000n, "span of two dmabuf areas");
  v.dmaWriteCheck(0x3101000n, v.at(0x2000), "second half of span copy");
  r.unmap(ifd, ioas, 0x3100000n, 0x2000n, "span copy");
  const c = r.cfg16(x, u.PCI_COMMAND);
  r.cfgw(x, u.PCI_COMMAND, 2, c & ~u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=0");
  r.cfgw(x, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1");
  v.dmaWriteCheck(BARIOVA + 0x100000n, v.at(0x3000), "copy after revoke+re-enable");
  r.attach(v.e, io2, "replace onto the ioas holding a revoked copy");
  r.unmap(ifd, io2, BARIOVA, 0x4000n, "revoked copy in 2nd ioas");
  r.unmap(ifd, ioas, 0n, U64, "all");
  v.close();
}
