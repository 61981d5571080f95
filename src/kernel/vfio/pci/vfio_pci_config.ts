/**
 * Config space as the user sees it.
 *
 * An access is cut into aligned pieces of 4, 2 or 1 bytes that stay inside one
 * capability; each goes to the behaviour of that capability. Three registers
 * do more than store: COMMAND (decode on and off), PM control (power), and the
 * FLR bits of the express and advanced-features capabilities. Those revoke the
 * exported buffers before they act and restore them after, if memory can then
 * be reached; all of it under ML(W).
 *
 * A COMMAND write that fails in the function itself returns with the buffers
 * still revoked, as Linux does.
 *
 * Lock order: ML → reservation; igate is taken after ML is released.
 * Source: vfio_pci_config.c; spec §6, the rows of config space.
 */
import { EFAULT, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import * as R from "../../../uapi/pci_regs.ts";
import { VFIO_PCI_MSI_IRQ_INDEX } from "../../../uapi/vfio.ts";
import { copyFromUser, copyToUser } from "../../mm/user_memory.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import { CAP_BASIC, CAP_INVALID, capPerm, extCapPerm, type PermBits, UNASSIGNED } from "./config_perms.ts";
import { PCI_D3HOT, PCI_ROM_RESOURCE, PCI_STD_NUM_BARS, type VfioPciCoreDevice } from "./vfio_pci_core.ts";
import { vfioPciDmaBufMove, vfioPciDmaBufSettle } from "./vfio_pci_dmabuf.ts";
import { vfioPciIntxMask, vfioPciIntxUnmask } from "./vfio_pci_intrs.ts";

const CFG_SPACE_SIZE = 256;

/** One piece of an access. */
interface Access {
  readonly vdev: VfioPciCoreDevice;
  readonly pos: number;
  readonly count: 1 | 2 | 4;
  readonly perm: PermBits;
  /** From the start of the capability. */
  readonly offset: number;
}

/**
 * Reads or writes `count` bytes at `pos` of the config region. Bytes moved;
 * EFAULT past the end of config space, or when the user's buffer cannot be
 * reached (pieces before it were carried out).
 */
export function* vfioPciConfigRw(vdev: VfioPciCoreDevice, buf: bigint, count: number, pos: number, isWrite: boolean): Step<number | Errno> {
  for (let done = 0; done < count; ) {
    const r = yield* rwSingle(vdev, buf + BigInt(done), count - done, pos + done, isWrite);
    if (r instanceof Errno) return r;
    done += r;
  }
  return count;
}

function* rwSingle(vdev: VfioPciCoreDevice, buf: bigint, wanted: number, pos: number, isWrite: boolean): Step<number | Errno> {
  if (pos < 0 || pos >= vdev.pdev.cfgSize || pos + wanted > vdev.pdev.cfgSize) return EFAULT;
  const most = Math.min(wanted, remainingInDword(vdev, pos));
  const count = most >= 4 && pos % 4 === 0 ? 4 : most >= 2 && pos % 2 === 0 ? 2 : 1;
  const a = accessAt(vdev, pos, count);
  const bytes = new Uint8Array(count);
  if (isWrite) {
    if (a.perm.kind === "direct") return count;
    if (copyFromUser(vdev.kernel, bytes, buf) !== 0) return EFAULT;
    const error = yield* write(a, le(bytes, 0, count));
    if (error !== undefined) return error;
    if (vdev.kernel.trace.on) {
      vdev.kernel.trace.emit({ type: "vfio.config_write", device: vdev.pdev.name, pos, count, value: le(bytes, 0, count) });
    }
    return count;
  }
  const value = yield* read(a);
  if (value instanceof Errno) return value;
  setLe(bytes, 0, count, value);
  return copyToUser(vdev.kernel, buf, bytes) !== 0 ? EFAULT : count;
}

/** Bytes of the dword of `pos`, from it on, that belong to the same capability. */
function remainingInDword(vdev: VfioPciCoreDevice, pos: number): number {
  let n = 1;
  while ((pos + n) % 4 !== 0 && vdev.configMap[pos + n] === vdev.configMap[pos]) n++;
  return n;
}

function accessAt(vdev: VfioPciCoreDevice, pos: number, count: 1 | 2 | 4): Access {
  const id = vdev.configMap[pos] as number;
  if (id === CAP_INVALID) return { vdev, pos, count, perm: UNASSIGNED, offset: 0 };
  if (pos >= CFG_SPACE_SIZE) return { vdev, pos, count, perm: extCapPerm(id), offset: pos - capStart(vdev, pos) };
  if (id === CAP_BASIC) return { vdev, pos, count, perm: capPerm(CAP_BASIC), offset: pos };
  const perm = id === R.PCI_CAP_ID_MSI ? vdev.msiPerm : capPerm(id);
  if (perm === undefined) throw new KernelBug("an MSI capability without its permissions");
  return { vdev, pos, count, perm, offset: pos - capStart(vdev, pos) };
}

function capStart(vdev: VfioPciCoreDevice, pos: number): number {
  const base = pos >= CFG_SPACE_SIZE ? CFG_SPACE_SIZE : R.PCI_STD_HEADER_SIZEOF;
  const id = vdev.configMap[pos];
  let at = pos;
  while (at - 1 >= base && vdev.configMap[at - 1] === id) at--;
  return at;
}

function* read(a: Access): Step<number | Errno> {
  const { vdev } = a;
  switch (a.perm.kind) {
    case "raw":
      return yield* userConfigRead(vdev, a.pos, a.count);
    case "direct":
    case "vendor":
      return yield* directRead(a);
    case "basic":
      return yield* basicRead(a);
    default:
      return yield* defaultRead(a);
  }
}

function* write(a: Access, value: number): Step<Errno | undefined> {
  switch (a.perm.kind) {
    case "raw":
    case "vendor":
      return yield* userConfigWrite(a.vdev, a.pos, a.count, value);
    case "basic":
      return yield* basicWrite(a, value);
    case "pm":
      return yield* pmWrite(a, value);
    case "exp":
      return yield* expWrite(a, value);
    case "af":
      return yield* afWrite(a, value);
    case "msi":
      return yield* msiWrite(a, value);
    default:
      // Vital product data is stored only: no function here keeps any, so the completion flag never turns.
      return yield* defaultWrite(a, value);
  }
}

function* defaultRead(a: Access): Step<number | Errno> {
  const virt = le(a.perm.virt, a.offset, a.count);
  const mine = le(a.vdev.vconfig, a.pos, a.count);
  if (virt === allOnes(a.count)) return mine;
  const phys = yield* userConfigRead(a.vdev, a.pos, a.count);
  return phys instanceof Errno ? phys : ((phys & ~virt) | (mine & virt)) >>> 0;
}

function* defaultWrite(a: Access, value: number): Step<Errno | undefined> {
  const write = le(a.perm.write, a.offset, a.count);
  if (write === 0) return undefined;
  const virt = le(a.perm.virt, a.offset, a.count);
  const toVirt = write & virt;
  if (toVirt !== 0) {
    const old = le(a.vdev.vconfig, a.pos, a.count);
    setLe(a.vdev.vconfig, a.pos, a.count, (old & ~toVirt) | (value & toVirt));
  }
  const toPhys = write & ~virt;
  if (toPhys === 0) return undefined;
  const phys = yield* userConfigRead(a.vdev, a.pos, a.count);
  if (phys instanceof Errno) return phys;
  return yield* userConfigWrite(a.vdev, a.pos, a.count, ((phys & ~toPhys) | (value & toPhys)) >>> 0);
}

/** From the function, but id and next pointer as we show them. */
function* directRead(a: Access): Step<number | Errno> {
  const phys = yield* userConfigRead(a.vdev, a.pos, a.count);
  if (phys instanceof Errno) return phys;
  const shown = a.pos >= CFG_SPACE_SIZE ? 4 : 2;
  if (a.offset >= shown) return phys;
  const bytes = new Uint8Array(4);
  setLe(bytes, 0, 4, phys);
  for (let i = 0; i < a.count && a.offset + i < shown; i++) {
    // A lone read of the id byte is the function's own: only the pointer moves.
    if (shown === 2 && a.offset === 0 && a.count === 1) break;
    bytes[i] = a.vdev.vconfig[a.pos + i] as number;
  }
  return le(bytes, 0, a.count);
}

const isBar = (offset: number): boolean =>
  (offset >= R.PCI_BASE_ADDRESS_0 && offset < R.PCI_BASE_ADDRESS_5 + 4) || (offset >= R.PCI_ROM_ADDRESS && offset < R.PCI_ROM_ADDRESS + 4);

function* basicRead(a: Access): Step<number | Errno> {
  if (isBar(a.offset)) fixupBars(a.vdev);
  const value = yield* defaultRead(a);
  if (value instanceof Errno || a.offset !== R.PCI_COMMAND || !a.vdev.pdev.noCommandMemory) return value;
  return value | ((a.vdev.vconfig[R.PCI_COMMAND] ?? 0) & R.PCI_COMMAND_MEMORY);
}

function* basicWrite(a: Access, value: number): Step<Errno | undefined> {
  const { vdev } = a;
  if (a.offset === R.PCI_COMMAND) {
    const error = yield* commandWrite(a, value);
    if (error !== undefined) return error;
  } else {
    const error = yield* defaultWrite(a, value);
    if (error !== undefined) return error;
  }
  if (a.offset >= R.PCI_COMMAND && a.offset <= R.PCI_COMMAND + 1) {
    const disabled = (le(vdev.vconfig, R.PCI_COMMAND, 2) & R.PCI_COMMAND_INTX_DISABLE) !== 0;
    if (disabled && !vdev.virqDisabled) {
      vdev.virqDisabled = true;
      yield* vfioPciIntxMask(vdev);
    } else if (!disabled && vdev.virqDisabled) {
      vdev.virqDisabled = false;
      yield* vfioPciIntxUnmask(vdev);
    }
  }
  if (isBar(a.offset)) vdev.bardirty = true;
  return undefined;
}

function* commandWrite(a: Access, value: number): Step<Errno | undefined> {
  const { vdev } = a;
  const phys = yield* userConfigRead(vdev, R.PCI_COMMAND, 2);
  if (phys instanceof Errno) return phys;
  const decode = R.PCI_COMMAND_MEMORY | R.PCI_COMMAND_IO;
  const enable = (value & R.PCI_COMMAND_MEMORY) !== 0;
  if (enable) {
    yield* vdev.memoryLock.downWrite();
  } else {
    yield* vdev.zapAndDownWriteMemoryLock();
  }
  try {
    if (!enable) yield* vfioPciDmaBufMove(vdev, true);
    if (yield* wasResetBehindUs(vdev, value, phys)) yield* restoreBars(vdev);
    const error = yield* defaultWrite(a, value);
    if (error !== undefined) {
      // Linux 7.3 leaves the buffers revoked, although nothing changed.
      if (vdev.kernel.interconnect === "negotiated") yield* vfioPciDmaBufSettle(vdev);
      return error;
    }
    const virt = le(vdev.vconfig, R.PCI_COMMAND, 2);
    setLe(vdev.vconfig, R.PCI_COMMAND, 2, (virt & ~decode) | (value & decode));
    if (vdev.kernel.trace.on && ((virt ^ value) & R.PCI_COMMAND_MEMORY) !== 0) {
      vdev.kernel.trace.emit({ type: "vfio.memory_decode", device: vdev.pdev.name, enabled: enable });
    }
    yield* vfioPciDmaBufSettle(vdev);
  } finally {
    vdev.memoryLock.upWrite();
  }
  return undefined;
}

/** The user believes a decode is on that the hardware shows off, or a BAR has lost its address. */
function* wasResetBehindUs(vdev: VfioPciCoreDevice, value: number, phys: number): Step<boolean> {
  const virt = le(vdev.vconfig, R.PCI_COMMAND, 2);
  const lost = value & virt & ~phys;
  if ((lost & R.PCI_COMMAND_MEMORY) !== 0 && !vdev.pdev.noCommandMemory) return true;
  if ((lost & R.PCI_COMMAND_IO) !== 0) return true;
  for (let i = 0; i < PCI_STD_NUM_BARS; i++) {
    if (vdev.rbar[i] === 0) continue;
    const now = yield* userConfigRead(vdev, R.PCI_BASE_ADDRESS_0 + 4 * i, 4);
    if (now instanceof Errno || now !== vdev.rbar[i]) return true;
  }
  return false;
}

function* restoreBars(vdev: VfioPciCoreDevice): Step<void> {
  if (vdev.pdev.isVirtfn) return;
  vdev.kernel.printk(`vfio-pci ${vdev.pdev.name}: reset recovery - restoring BARs`);
  for (let i = 0; i < PCI_STD_NUM_BARS; i++) {
    yield* userConfigWrite(vdev, R.PCI_BASE_ADDRESS_0 + 4 * i, 4, vdev.rbar[i] as number);
  }
  yield* userConfigWrite(vdev, R.PCI_ROM_ADDRESS, 4, vdev.rbar[6] as number);
}

/** Makes the virtual BARs what hardware would show: size bits read as zero, type bits fixed. */
function fixupBars(vdev: VfioPciCoreDevice): void {
  if (!vdev.bardirty) return;
  const { pdev, vconfig } = vdev;
  for (let i = 0; i < PCI_STD_NUM_BARS; i++) {
    const at = R.PCI_BASE_ADDRESS_0 + 4 * i;
    const r = pdev.resources[i];
    if (r === undefined || r.start === 0n) {
      setLe(vconfig, at, 4, 0);
      continue;
    }
    const mask = BigInt.asUintN(64, ~(r.length - 1n));
    const type = r.flags.io
      ? R.PCI_BASE_ADDRESS_SPACE_IO
      : (r.flags.prefetch ? R.PCI_BASE_ADDRESS_MEM_PREFETCH : 0) | (r.flags.mem64 ? R.PCI_BASE_ADDRESS_MEM_TYPE_64 : 0);
    setLe(vconfig, at, 4, (le(vconfig, at, 4) & Number(mask & 0xffff_ffffn)) | type);
    if (!r.flags.io && r.flags.mem64) {
      setLe(vconfig, at + 4, 4, le(vconfig, at + 4, 4) & Number(mask >> 32n));
      i++;
    }
  }
  const rom = pdev.resources[PCI_ROM_RESOURCE];
  const mask = rom !== undefined && rom.start !== 0n ? Number(BigInt.asUintN(32, ~(rom.length - 1n))) | R.PCI_ROM_ADDRESS_ENABLE : 0;
  setLe(vconfig, R.PCI_ROM_ADDRESS, 4, le(vconfig, R.PCI_ROM_ADDRESS, 4) & mask);
  vdev.bardirty = false;
}

function* pmWrite(a: Access, value: number): Step<Errno | undefined> {
  const error = yield* defaultWrite(a, value);
  if (error !== undefined) return error;
  if (a.offset === R.PCI_PM_CTRL) yield* lockAndSetPowerState(a.vdev, value & R.PCI_PM_CTRL_STATE_MASK);
  return undefined;
}

function* lockAndSetPowerState(vdev: VfioPciCoreDevice, state: number): Step<void> {
  if (state >= PCI_D3HOT) yield* vdev.zapAndDownWriteMemoryLock();
  else yield* vdev.memoryLock.downWrite();
  try {
    if (state >= PCI_D3HOT) yield* vfioPciDmaBufMove(vdev, true);
    yield* vdev.setPowerState(state);
    yield* vfioPciDmaBufSettle(vdev);
  } finally {
    vdev.memoryLock.upWrite();
  }
}

function* expWrite(a: Access, value: number): Step<Errno | undefined> {
  const { vdev } = a;
  const start = a.pos - a.offset;
  const ctrl = start + R.PCI_EXP_DEVCTL;
  const readrq = le(vdev.vconfig, ctrl, 2) & R.PCI_EXP_DEVCTL_READRQ;
  const error = yield* defaultWrite(a, value);
  if (error !== undefined) return error;
  let now = le(vdev.vconfig, ctrl, 2);
  if ((now & R.PCI_EXP_DEVCTL_BCR_FLR) !== 0) {
    now &= ~R.PCI_EXP_DEVCTL_BCR_FLR;
    setLe(vdev.vconfig, ctrl, 2, now);
    const cap = yield* userConfigRead(vdev, start + R.PCI_EXP_DEVCAP, 4);
    if (!(cap instanceof Errno) && (cap & R.PCI_EXP_DEVCAP_FLR) !== 0) yield* functionReset(vdev, "exp-flr");
  }
  if (readrq !== (now & R.PCI_EXP_DEVCTL_READRQ)) setReadRequest(vdev.pdev, start, now);
  return undefined;
}

/** The user's read request size, but at least the payload size, so that full packets can be read. */
function setReadRequest(pdev: PciDev, start: number, wanted: number): void {
  const phys = pdev.configRead(start + R.PCI_EXP_DEVCTL, 2);
  const size = Math.max((wanted & R.PCI_EXP_DEVCTL_READRQ) >> 12, (phys & R.PCI_EXP_DEVCTL_PAYLOAD) >> 5);
  // Sizes 6 and 7 are reserved: 4096 bytes (5) is the most.
  if (size > 5) return;
  pdev.configWrite(start + R.PCI_EXP_DEVCTL, 2, (phys & ~R.PCI_EXP_DEVCTL_READRQ) | (size << 12));
}

function* afWrite(a: Access, value: number): Step<Errno | undefined> {
  const { vdev } = a;
  const error = yield* defaultWrite(a, value);
  if (error !== undefined) return error;
  const start = a.pos - a.offset;
  const ctrl = vdev.vconfig[start + R.PCI_AF_CTRL] as number;
  if ((ctrl & R.PCI_AF_CTRL_FLR) === 0) return undefined;
  vdev.vconfig[start + R.PCI_AF_CTRL] = ctrl & ~R.PCI_AF_CTRL_FLR;
  const cap = yield* userConfigRead(vdev, start + R.PCI_AF_CAP, 1);
  if (cap instanceof Errno || (cap & R.PCI_AF_CAP_FLR) === 0 || (cap & R.PCI_AF_CAP_TP) === 0) return undefined;
  yield* functionReset(vdev, "af-flr");
  return undefined;
}

/** What the FLR bits stand for; whether it worked is not reported. */
function* functionReset(vdev: VfioPciCoreDevice, how: "exp-flr" | "af-flr"): Step<void> {
  yield* vdev.zapAndDownWriteMemoryLock();
  try {
    yield* vfioPciDmaBufMove(vdev, true);
    const error = yield* vdev.pdev.tryResetFunction();
    if (vdev.kernel.trace.on) vdev.kernel.trace.emit({ type: "vfio.reset", device: vdev.pdev.name, how, error: error?.name });
    yield* vfioPciDmaBufSettle(vdev);
  } finally {
    vdev.memoryLock.upWrite();
  }
}

const coversMsiFlags = (a: Access): boolean => a.offset <= R.PCI_MSI_FLAGS && a.offset + a.count >= R.PCI_MSI_FLAGS;

function* msiWrite(a: Access, value: number): Step<Errno | undefined> {
  const error = yield* defaultWrite(a, value);
  if (error !== undefined || !coversMsiFlags(a)) return error;
  const { vdev } = a;
  const at = capStart(vdev, a.pos) + R.PCI_MSI_FLAGS;
  let flags = le(vdev.vconfig, at, 2);
  if (vdev.irqType !== VFIO_PCI_MSI_IRQ_INDEX) flags &= ~R.PCI_MSI_FLAGS_ENABLE;
  if ((flags & R.PCI_MSI_FLAGS_QSIZE) >> 4 > vdev.msiQmax) flags = (flags & ~R.PCI_MSI_FLAGS_QSIZE) | (vdev.msiQmax << 4);
  setLe(vdev.vconfig, at, 2, flags);
  return yield* userConfigWrite(vdev, at, 2, flags);
}
/** A user's access to the function; waits while a reset keeps config space closed. */
function* userConfigRead(vdev: VfioPciCoreDevice, pos: number, count: 1 | 2 | 4): Step<number | Errno> {
  return vdev.configFault?.(pos, false) ?? (yield* vdev.pdev.userConfigRead(pos, count));
}

function* userConfigWrite(vdev: VfioPciCoreDevice, pos: number, count: 1 | 2 | 4, value: number): Step<Errno | undefined> {
  const fault = vdev.configFault?.(pos, true);
  if (fault !== undefined) return fault;
  yield* vdev.pdev.userConfigWrite(pos, count, value);
  return undefined;
}

const allOnes = (count: number): number => 0xffff_ffff >>> (32 - 8 * count);

function le(bytes: Uint8Array, at: number, count: number): number {
  let v = 0;
  for (let i = 0; i < count; i++) v |= (bytes[at + i] ?? 0) << (8 * i);
  return v >>> 0;
}

function setLe(bytes: Uint8Array, at: number, count: number, value: number): void {
  for (let i = 0; i < count; i++) bytes[at + i] = value >>> (8 * i);
}
