/** Sections `revoke_*`: one exporter, eight ways to take its memory away, and the way back. */
import { Errno } from "../src/lib/index.ts";
import * as u from "../src/uapi/index.ts";
import { BARIOVA, Env, kick, must, type Recorder, RWF } from "./p2p_env.ts";
import { pollRecord } from "./p2p_export.ts";

export type Trigger = "cmd" | "cmd4" | "reset" | "close" | "d3" | "lowpower" | "hotreset" | "flr";

const PM_STATE_MASK = 3;
const D3HOT = 3;

/** The section's state after the revoke: what a later step needs of an earlier one. */
interface Revoked {
  readonly v: Env;
  readonly trigger: Trigger;
  readonly whole: number;
  readonly part: number;
  readonly command: number;
  readonly pm: number;
}

export function sectionRevoke(r: Recorder, trigger: Trigger): void {
  r.sec = `revoke_${trigger}`;
  const v = Env.open(r);
  const { ifd, ioas } = v;
  const x = v.x.fd;
  const pm = r.findCap(x, u.PCI_CAP_ID_PM);
  const exp = r.findCap(x, u.PCI_CAP_ID_EXP);
  if ((trigger === "d3" && pm === 0) || (trigger === "flr" && exp === 0)) {
    v.close();
    return;
  }
  const S = v.bsize;
  const whole = r.export1(x, r.region, 0n, S, "whole");
  const part = r.export1(x, r.region, 0x3000n, 0x4000n, "part, never mapped before the revoke");
  r.mapFile(ifd, ioas, whole, 0n, S, BARIOVA, RWF, "before revoke");
  r.copy(ifd, ioas, ioas, 0x8000000n, BARIOVA + 0x3000n, 0x4000n, RWF, "copy before revoke");
  v.dmaWriteCheck(BARIOVA, v.at(0), "before revoke");
  v.dmaWriteCheck(0x8000000n, v.at(0x3000), "copy before revoke");
  const command = r.cfg16(x, u.PCI_COMMAND);
  const s: Revoked = { v, trigger, whole, part, command, pm };
  pull(r, s, exp);
  const late = whileRevoked(r, s);
  bringBack(r, s);
  afterwards(r, s, late);
  v.close();
}

function pull(r: Recorder, s: Revoked, exp: number): void {
  const { v, trigger, command, pm } = s;
  const x = v.x.fd;
  const memoryOff = command & ~u.PCI_COMMAND_MEMORY;
  switch (trigger) {
    case "cmd":
      r.cfgw(x, u.PCI_COMMAND, 2, memoryOff, "COMMAND.MEMORY=0 (2-byte cfg write)");
      break;
    case "cmd4":
      r.cfgw(x, u.PCI_COMMAND, 4, memoryOff, "COMMAND.MEMORY=0 (4-byte cfg write of COMMAND|STATUS)");
      break;
    case "reset":
      r.rec("VFIO_DEVICE_RESET", {}, r.os.ioctl(x, u.VFIO_DEVICE_RESET, 0n));
      break;
    case "close":
      v.bar?.unmap();
      v.bar = undefined;
      r.rec("close(device fd), BAR munmapped", {}, v.closeExporter());
      break;
    case "d3":
      r.cfgw(x, pm + u.PCI_PM_CTRL, 2, (r.cfg16(x, pm + u.PCI_PM_CTRL) & ~PM_STATE_MASK) | D3HOT, "D3hot via PMCSR");
      break;
    case "lowpower":
      lowPower(r, x, "ENTRY", u.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY);
      break;
    case "hotreset":
      hotReset(r, x);
      break;
    case "flr":
      r.cfgw(x, exp + u.PCI_EXP_DEVCTL, 2, r.cfg16(x, exp + u.PCI_EXP_DEVCTL) | u.PCI_EXP_DEVCTL_BCR_FLR, "FLR via DEVCTL");
      break;
  }
  if (trigger === "reset" || trigger === "hotreset" || trigger === "flr") kick(r, x);
}

function lowPower(r: Recorder, fd: number, name: string, feature: number): void {
  const f = u.VfioDeviceFeature.alloc({ argsz: u.VfioDeviceFeature.size, flags: u.VFIO_DEVICE_FEATURE_SET | feature });
  r.rec(`VFIO_DEVICE_FEATURE_LOW_POWER_${name}`, {}, r.os.ioctlBytes(fd, u.VFIO_DEVICE_FEATURE, f.bytes));
}

function hotReset(r: Recorder, fd: number): void {
  const info = new Uint8Array(512);
  const h = u.VfioPciHotResetInfo.over(info);
  h.argsz = info.length;
  const got = r.os.ioctlBytes(fd, u.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, info);
  r.rec("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", {}, got, { count: h.count, flags: h.flags });
  if (got instanceof Errno) return;
  const hr = u.VfioPciHotReset.alloc({ argsz: u.VfioPciHotReset.size, count: 0 });
  r.rec("VFIO_DEVICE_PCI_HOT_RESET", { count: 0 }, r.os.ioctlBytes(fd, u.VFIO_DEVICE_PCI_HOT_RESET, hr.bytes));
}

/** What still answers, and how; returns an export made in this state (-1: none). */
function whileRevoked(r: Recorder, s: Revoked): number {
  const { v, trigger, whole, part } = s;
  const { ifd, ioas } = v;
  const gone = trigger === "close";
  const map = (fd: number, iova: bigint, what: string): bigint | undefined => r.mapFile(ifd, ioas, fd, 0n, 0x1000n, iova, RWF, what);
  v.dmaWriteCheck(BARIOVA, gone || trigger === "lowpower" || trigger === "d3" ? undefined : v.at(0), "revoked area");
  v.dmaWriteCheck(0x8000000n, undefined, "revoked copy");
  v.dmaReadCheck(BARIOVA, undefined, "revoked area");
  const at = map(whole, BARIOVA + 0x1800000n, "mapped-before dmabuf, while revoked") ?? BARIOVA + 0x1800000n;
  map(part, at, "never-mapped dmabuf, while revoked");
  r.unmap(ifd, ioas, 0x3800000n, 0x1000n, "what the above may have mapped");
  r.copy(ifd, ioas, ioas, 0x9000000n, BARIOVA, 0x1000n, RWF, "copy of the revoked area, same ioas");
  v.dmaWriteCheck(0x9000000n, undefined, "copy made from a revoked area");
  const io2 = r.ioasAlloc(ifd);
  r.copy(ifd, io2, ioas, 0x9000000n, BARIOVA, 0x1000n, RWF, "copy of the revoked area, domainless ioas");
  let late = -1;
  if (gone) {
    r.export1(v.x.fd, r.region, 0n, 0x1000n, "closed device fd");
  } else {
    late = r.export1(v.x.fd, r.region, 0n, 0x4000n, "new export while revoked");
    if (late >= 0 && map(late, 0x3900000n, "new export, while revoked") !== undefined) {
      v.dmaWriteCheck(0x3900000n, undefined, "new export, while revoked");
    }
    v.barTouch("while revoked");
    v.barPread("while revoked");
  }
  const args = { what: "while revoked" };
  const m = r.os.mmap(whole, 4096, u.PROT_READ | u.PROT_WRITE, u.MAP_SHARED, 0n);
  r.rec("mmap(dmabuf)", args, m instanceof Errno ? m : 0);
  pollRecord(r, whole, "poll(dmabuf,IN|OUT)", args);
  r.rec("lseek(dmabuf,SEEK_END)", args, r.os.lseek(whole, 0n, u.SEEK_END));
  const h = r.hwptAlloc(ifd, v.e.id, ioas, 0, "hwpt while an area is revoked");
  if (h !== 0) {
    r.attach(v.e, h, "replace onto it");
    r.attach(v.e, ioas, "back");
    r.destroy(ifd, h, "hwpt");
  }
  return late;
}

function bringBack(r: Recorder, s: Revoked): void {
  const { v, trigger, whole, command, pm } = s;
  const { ifd, ioas } = v;
  const x = v.x.fd;
  const memoryOn = command | u.PCI_COMMAND_MEMORY;
  const map = (iova: bigint, what: string): void => {
    r.mapFile(ifd, ioas, whole, 0n, 0x1000n, iova, RWF, what);
  };
  switch (trigger) {
    case "cmd":
    case "cmd4":
      r.cfgw(x, u.PCI_COMMAND, 2, memoryOn, "COMMAND.MEMORY=1");
      break;
    case "reset":
    case "hotreset":
    case "flr":
      r.cfgw(x, u.PCI_COMMAND, 2, memoryOn, "COMMAND.MEMORY=1 (may be on already)");
      break;
    case "d3":
      r.cfgw(x, u.PCI_COMMAND, 2, command, "COMMAND write while in D3");
      map(0x3b00000n, "dmabuf after COMMAND write in D3");
      r.cfgw(x, pm + u.PCI_PM_CTRL, 2, r.cfg16(x, pm + u.PCI_PM_CTRL) & ~PM_STATE_MASK, "PMCSR D0");
      map(0x3c00000n, "dmabuf after D0, before COMMAND write");
      r.cfgw(x, u.PCI_COMMAND, 2, memoryOn, "COMMAND.MEMORY=1");
      break;
    case "lowpower":
      lowPower(r, x, "EXIT", u.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT);
      break;
    case "close":
      reopen(r, v);
      break;
  }
  kick(r, v.x.fd);
  v.barTouch("after bring-back");
}

function reopen(r: Recorder, v: Env): void {
  v.x.fd = r.cdevOpen(r.exporter);
  r.rec("open(device) again", {}, v.x.fd);
  r.bind(v.x, v.ifd);
  r.attach(v.x, v.ioas, "ioas");
  const info = r.regionInfo(v.x.fd, r.region);
  v.bsize = info.size;
  v.bar = must(r.os.mmap(v.x.fd, Number(info.size), u.PROT_READ | u.PROT_WRITE, u.MAP_SHARED, info.offset));
  r.cfgw(v.x.fd, u.PCI_COMMAND, 2, r.cfg16(v.x.fd, u.PCI_COMMAND) | u.PCI_COMMAND_MEMORY, "COMMAND.MEMORY=1");
}

function afterwards(r: Recorder, s: Revoked, late: number): void {
  const { v, whole, part } = s;
  const { ifd, ioas } = v;
  const mapAndCheck = (fd: number, iova: bigint, offset: number, mapWhat: string, dmaWhat: string): void => {
    const at = r.mapFile(ifd, ioas, fd, 0n, 0x1000n, iova, RWF, mapWhat);
    if (at !== undefined) v.dmaWriteCheck(at, v.at(offset), dmaWhat);
  };
  v.dmaWriteCheck(BARIOVA, v.at(0), "old area after bring-back");
  mapAndCheck(whole, 0x3a00000n, 0, "mapped-before dmabuf after bring-back", "remapped old dmabuf");
  mapAndCheck(part, 0x3a10000n, 0x3000, "never-mapped dmabuf after bring-back", "never-mapped dmabuf");
  if (late >= 0) mapAndCheck(late, 0x3a20000n, 0, "exported-while-revoked dmabuf after bring-back", "exported-while-revoked dmabuf");
  const fresh = r.export1(v.x.fd, r.region, 0n, 0x4000n, "fresh export after bring-back");
  if (fresh >= 0) mapAndCheck(fresh, 0x3a30000n, 0, "fresh export", "fresh export");
  v.dmaWriteCheck(0x9000000n, v.at(0), "copy made while revoked, after bring-back");
  if (r.copy(ifd, ioas, ioas, 0x9100000n, BARIOVA, 0x1000n, RWF, "copy of the once-revoked area after bring-back")) {
    v.dmaWriteCheck(0x9100000n, v.at(0), "copy of the once-revoked area, after bring-back");
  }
  r.unmap(ifd, ioas, BARIOVA, v.bsize, "revoked area");
  r.unmap(ifd, ioas, 0x8000000n, 0x4000n, "revoked copy");
  mapAndCheck(fresh, BARIOVA, 0, "same iova again", "same iova again");
  for (const fd of [whole, part, late, fresh]) if (fd >= 0) r.os.close(fd);
}
