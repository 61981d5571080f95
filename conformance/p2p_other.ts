/** Sections `process`, `domains`, `order` … `unbind`, `misc`, `group`, `self`. */
import { Errno } from "../src/lib/index.ts";
import * as u from "../src/uapi/index.ts";
import { BARIOVA, type Device, Env, hex, MEMIOVA, must, type Recorder, RWF, U64 } from "./p2p_env.ts";

export function sectionProcess(r: Recorder): void {
  r.sec = "process";
  const v = Env.open(r);
  const { ifd, ioas } = v;
  const x = v.x.fd;
  const d = r.export1(x, r.region, 0x3000n, 0x4000n, "part");
  r.changeProcess(ifd, "only memfd areas (all MAP_FILE)");
  r.mapFile(ifd, ioas, d, 0n, 0x4000n, BARIOVA, RWF, "dmabuf area");
  r.changeProcess(ifd, "with a dmabuf area");
  const child = r.os.fork();
  r.changeProcess(ifd, "from a forked child, with a dmabuf area", child);
  r.mapFile(ifd, ioas, d, 0n, 0x4000n, BARIOVA + 0x100000n, RWF, "dmabuf from the child", child);
  child.exit();
  const c = r.cfg16(x, u.PCI_COMMAND);
  r.cfgw(x, u.PCI_COMMAND, 2, c & ~u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=0");
  r.changeProcess(ifd, "with a revoked dmabuf area");
  r.cfgw(x, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1");
  r.unmap(ifd, ioas, BARIOVA, 0x4000n, "revoked");
  r.unmap(ifd, ioas, BARIOVA + 0x100000n, 0x4000n, "child's map");
  r.changeProcess(ifd, "dmabuf areas gone");
  r.mapVa(ifd, ioas, v.mem.address, 0x1000n, BARIOVA, "VA map");
  r.changeProcess(ifd, "with a user-VA area");
  v.close();
}

export function sectionDomains(r: Recorder): void {
  r.sec = "domains";
  const v = Env.open(r);
  const { ifd, ioas } = v;
  const x = v.x.fd;
  const d = r.export1(x, r.region, 0x3000n, 0x4000n, "part");
  r.mapFile(ifd, ioas, d, 0n, 0x4000n, BARIOVA, RWF, "dmabuf area");
  const hwpt = (what: string, flags = 0): number => r.hwptAlloc(ifd, v.e.id, ioas, flags, what);
  const h = hwpt("2nd paging hwpt over an ioas with a dmabuf area");
  if (h !== 0) {
    r.attach(v.e, h, "replace edu onto 2nd hwpt");
    v.dmaWriteCheck(BARIOVA, v.at(0x3000), "via 2nd hwpt");
  }
  const c = r.cfg16(x, u.PCI_COMMAND);
  r.cfgw(x, u.PCI_COMMAND, 2, c & ~u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=0");
  v.dmaWriteCheck(BARIOVA, undefined, "2nd hwpt after revoke");
  const h2 = hwpt("hwpt over an ioas with a revoked area");
  if (h2 !== 0) {
    r.attach(v.e, h2, "replace edu onto a hwpt made after the revoke");
    v.dmaWriteCheck(BARIOVA, undefined, "hwpt made after revoke");
  }
  r.cfgw(x, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1");
  v.dmaWriteCheck(BARIOVA, v.at(0x3000), "after re-enable (old area)");
  const h3 = hwpt("hwpt after re-enable, area was revoked");
  if (h3 !== 0) {
    r.attach(v.e, h3, "replace");
    v.dmaWriteCheck(BARIOVA, v.at(0x3000), "hwpt made after re-enable");
  }
  r.detach(v.e, "edu");
  r.attach(v.e, ioas, "re-attach ioas");
  v.dmaWriteCheck(BARIOVA, v.at(0x3000), "old area after re-attach");
  r.mapFile(ifd, ioas, d, 0n, 0x4000n, BARIOVA + 0x100000n, RWF, "same dmabuf fd after re-enable");
  v.dmaWriteCheck(BARIOVA + 0x100000n, v.at(0x3000), "new area");
  r.unmap(ifd, ioas, BARIOVA, 0x4000n, "revoked area with 3 domains");
  hwpt("dirty tracking hwpt over dmabuf area", u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  hwpt("nest parent hwpt over dmabuf area", u.IOMMU_HWPT_ALLOC_NEST_PARENT);
  if (r.third !== undefined) {
    const t: Device = { bdf: r.third, fd: r.cdevOpen(r.third), id: 0 };
    if (t.fd >= 0 && r.bind(t, ifd)) {
      r.attach(t, ioas, "3rd device onto ioas with a dmabuf area");
      r.detach(t, "3rd");
    }
    if (t.fd >= 0) r.os.close(t.fd);
  }
  const o = u.IommuOption.alloc({
    size: u.IommuOption.size,
    option_id: u.IOMMU_OPTION_HUGE_PAGES,
    op: u.IOMMU_OPTION_OP_SET,
    object_id: ioas,
    val64: 0n,
  });
  r.rec("IOMMU_OPTION_HUGE_PAGES=0", { what: "with areas" }, r.os.ioctlBytes(ifd, u.IOMMU_OPTION, o.bytes));
  v.close();
}

export function sectionOrder(r: Recorder): void {
  const { os } = r;
  r.sec = "order";
  let v = Env.open(r);
  let d = r.export1(v.x.fd, r.region, 0n, 0x4000n, "x");
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x4000n, BARIOVA, RWF, "x");
  r.rec("close(iommufd) before the devices", {}, os.close(v.ifd));
  v.ifd = -1;
  r.rec("close(dmabuf)", {}, os.close(d));
  const read = os.pread(v.x.fd, 2, r.regionInfo(v.x.fd, u.VFIO_PCI_CONFIG_REGION_INDEX).offset);
  r.rec("config read after close(iommufd)", {}, read instanceof Errno ? read : read.length);
  v.close();

  r.sec = "order2";
  v = Env.open(r);
  d = r.export1(v.x.fd, r.region, 0n, 0x4000n, "x");
  v.close();
  v = Env.open(r);
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA, RWF, "dmabuf of a previous open of the device");
  os.close(d);
  v.close();

  r.sec = "order3";
  v = Env.open(r);
  const x = v.x.fd;
  d = r.export1(x, r.region, 0n, 0x4000n, "x");
  const other = must(os.open("/dev/iommu", u.O_RDWR));
  const io = r.ioasAlloc(other);
  r.mapFile(other, io, d, 0n, 0x1000n, BARIOVA, RWF, "another iommufd, exporter bound elsewhere");
  const c = r.cfg16(x, u.PCI_COMMAND);
  const off = c & ~u.PCI_COMMAND_MEMORY;
  r.cfgw(x, u.PCI_COMMAND, 2, off, "COMMAND.MEMORY=0");
  r.unmap(other, io, BARIOVA, 0x1000n, "revoked in the other iommufd");
  r.cfgw(x, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1");
  os.close(other);

  r.sec = "cycles";
  for (let k = 0; k < 3; k++) {
    const iova = BARIOVA + BigInt(k) * 0x100000n;
    r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, iova, RWF, "cycle map");
    v.dmaWriteCheck(iova, v.at(0), "cycle");
    r.cfgw(x, u.PCI_COMMAND, 2, off, "COMMAND.MEMORY=0");
    r.cfgw(x, u.PCI_COMMAND, 2, off, "COMMAND.MEMORY=0 twice");
    r.cfgw(x, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1");
    r.cfgw(x, u.PCI_COMMAND, 2, c, "COMMAND.MEMORY=1 twice");
  }
  r.unmap(v.ifd, v.ioas, 0n, U64, "all");

  r.sec = "norevoke";
  r.mapFile(v.ifd, v.ioas, v.memfd, 0n, 1n << 20n, MEMIOVA, RWF, "scratch");
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA, RWF, "x");
  r.cfgw(x, u.PCI_COMMAND, 2, c & ~u.PCI_COMMAND_MASTER, "bus master off, memory on");
  r.cfgw(x, u.PCI_COMMAND + 1, 1, 4, "COMMAND high byte (INTX_DISABLE)");
  v.dmaWriteCheck(BARIOVA, v.at(0), "still live");
  r.cfgw(x, u.PCI_COMMAND, 1, c & 0xff & ~u.PCI_COMMAND_MEMORY, "1-byte write, MEMORY=0");
  v.dmaWriteCheck(BARIOVA, undefined, "after the 1-byte write");
  r.cfgw(x, u.PCI_COMMAND, 2, c, "restore");
  r.unmap(v.ifd, v.ioas, BARIOVA, 0x1000n, "x");

  r.sec = "barwrite";
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA, RWF, "x");
  r.cfgw(x, u.PCI_BASE_ADDRESS_0 + 4 * r.region, 4, 0xdead0000, "virtual BAR low");
  v.dmaWriteCheck(BARIOVA, v.at(0), "after virtual BAR write");

  r.sec = "importer";
  const e = v.e.fd;
  r.cfgw(e, u.PCI_COMMAND, 2, r.cfg16(e, u.PCI_COMMAND) & ~u.PCI_COMMAND_MASTER, "edu bus master off");
  v.dmaWriteCheck(BARIOVA, v.at(0), "edu without bus master");
  r.rec("VFIO_DEVICE_RESET", { dev: "edu" }, os.ioctl(e, u.VFIO_DEVICE_RESET, 0n));
  r.cfgw(e, u.PCI_COMMAND, 2, u.PCI_COMMAND_MEMORY | u.PCI_COMMAND_MASTER, "edu on");
  v.dmaWriteCheck(BARIOVA, v.at(0), "edu after its own reset");
  os.close(d);
  v.close();
  unbind(r);
}

function unbind(r: Recorder): void {
  r.sec = "unbind";
  const v = Env.open(r);
  const d = r.export1(v.x.fd, r.region, 0n, 0x4000n, "x");
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA, RWF, "x");
  v.bar?.unmap();
  v.bar = undefined;
  v.closeExporter();
  // write(2) to the sysfs file returns the length of the address it was given.
  const written = (e: Errno | undefined): number | Errno => e ?? r.exporter.length;
  r.rec("sysfs unbind exporter (dmabuf fd + area alive, device fd closed)", {}, written(r.host.unbindDriver(r.exporter)));
  r.rec("sysfs bind exporter", {}, written(r.host.bindDriver("vfio-pci", r.exporter)));
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA + 0x100000n, RWF, "old dmabuf after re-bind");
  r.unmap(v.ifd, v.ioas, BARIOVA, 0x1000n, "x");
  r.os.close(d);
  v.close();
}

export function sectionMisc(r: Recorder): void {
  const { os } = r;
  r.sec = "misc";
  let v = Env.open(r);
  iovaRanges(r, v);
  const h = u.IommuHwInfo.alloc({ size: u.IommuHwInfo.size, dev_id: v.e.id });
  const hr = os.ioctlBytes(v.ifd, u.IOMMU_GET_HW_INFO, h.bytes);
  r.rec("IOMMU_GET_HW_INFO", {}, hr, { out_data_type: h.out_data_type, data_len: h.data_len, out_capabilities: hex(h.out_capabilities) });
  let d = r.export1(v.x.fd, r.region, 0n, v.bsize, "whole");
  for (let j = 0; j < 3; j++) {
    for (const [length, what] of [
      [v.bsize, "whole BAR (timing)"],
      [0x1000n, "one page (timing)"],
    ] as const) {
      r.mapFile(v.ifd, v.ioas, d, 0n, length, BARIOVA, RWF, what);
      r.unmap(v.ifd, v.ioas, BARIOVA, length, what);
    }
  }
  const odd = r.mapFile(v.ifd, v.ioas, d, 0n, v.bsize, BARIOVA + 0x1000n, RWF, "whole BAR at an iova not 2M aligned");
  if (odd !== undefined) {
    v.dmaWriteCheck(odd + v.bsize - 256n, v.at(v.bsize - 256n), "tail");
    r.unmap(v.ifd, v.ioas, odd, v.bsize, "x");
  }
  os.close(d);
  v.close();
  group(r);

  r.sec = "self";
  v = Env.open(r);
  d = r.export1(v.e.fd, 0, 0n, 0x1000n, "edu BAR0");
  r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA, RWF, "edu's own BAR into its ioas");
  v.dmaReadCheck(BARIOVA, undefined, "edu reads its own BAR0 (id reg 0x010000ed)");
  os.close(d);
  d = r.export1(v.x.fd, 0, 0n, 0x1000n, "exporter BAR0");
  if (d >= 0) {
    r.mapFile(v.ifd, v.ioas, d, 0n, 0x1000n, BARIOVA + 0x10000n, RWF, "exporter BAR0");
    os.close(d);
  }
  v.close();
}

/** An exporter opened through its group and a type1 container, an importer through its node. */
function group(r: Recorder): void {
  const { os } = r;
  r.sec = "group";
  const c = must(os.open("/dev/vfio/vfio", u.O_RDWR));
  const g = must(os.open(`/dev/vfio/${r.host.kernel.pci.devices.get(r.exporter)?.iommuGroup?.id}`, u.O_RDWR));
  const int = new Uint8Array(4);
  new DataView(int.buffer).setInt32(0, c, true);
  r.rec("VFIO_GROUP_SET_CONTAINER", {}, os.ioctlBytes(g, u.VFIO_GROUP_SET_CONTAINER, int));
  r.rec("VFIO_SET_IOMMU(TYPE1v2)", {}, os.ioctl(c, u.VFIO_SET_IOMMU, BigInt(u.VFIO_TYPE1v2_IOMMU)));
  const name = new TextEncoder().encode(`${r.exporter}\0`);
  const x = r.rec("VFIO_GROUP_GET_DEVICE_FD", {}, os.ioctlBytes(g, u.VFIO_GROUP_GET_DEVICE_FD, name));
  if (x < 0) return;
  const ifd = must(os.open("/dev/iommu", u.O_RDWR));
  const e: Device = { bdf: r.edu, fd: r.cdevOpen(r.edu), id: 0 };
  r.bind(e, ifd);
  const io = r.ioasAlloc(ifd);
  r.attach(e, io, "ioas");
  const d = r.export1(x, r.region, 0n, 0x4000n, "exporter opened through a legacy group");
  const map = (iova: bigint, what: string): unknown => r.mapFile(ifd, io, d, 0n, 0x4000n, iova, RWF, what);
  map(BARIOVA, "dmabuf of a group-opened device");
  r.cfgw(x, u.PCI_COMMAND, 2, r.cfg16(x, u.PCI_COMMAND) & ~u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=0");
  map(BARIOVA + 0x10000n, "while revoked");
  r.cfgw(x, u.PCI_COMMAND, 2, r.cfg16(x, u.PCI_COMMAND) | u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=1");
  map(BARIOVA + 0x10000n, "after re-enable");
  for (const fd of [x, g, c]) os.close(fd);
  map(BARIOVA + 0x20000n, "after closing the group device");
  for (const fd of [d, e.fd, ifd]) os.close(fd);
}

function iovaRanges(r: Recorder, v: Env): void {
  r.os.withMemory((alloc) => {
    const list = alloc(16 * u.IommuIovaRange.size);
    const q = u.IommuIoasIovaRanges.alloc({
      size: u.IommuIoasIovaRanges.size,
      ioas_id: v.ioas,
      num_iovas: 16,
      allowed_iovas: list.address,
    });
    const result = r.os.ioctlBytes(v.ifd, u.IOMMU_IOAS_IOVA_RANGES, q.bytes);
    const bytes = list.get();
    const ranges = Array.from({ length: Math.min(q.num_iovas, 16) }, (_, i) => {
      const e = u.IommuIovaRange.over(bytes, i * u.IommuIovaRange.size);
      return [hex(e.start), hex(e.last)];
    });
    r.rec("IOMMU_IOAS_IOVA_RANGES", {}, result, { num: q.num_iovas, alignment: Number(q.out_iova_alignment), ranges });
  });
}
