/**
 * /dev/iommu: opening, closing, and the table of commands.
 *
 * A command's structure begins with its size as the caller knows it: less than
 * the least this kernel needs is EINVAL, more is E2BIG unless zero, and a number
 * of the table with other ioctl bits is ENOTTY.
 *
 * A command outside of the table is for the type1 compatibility
 * (`vfio_compat.ts`). IOMMU_TEST_CMD is there only when the machine was booted
 * with the selftest (`selftest.ts`).
 *
 * Source: drivers/iommu/iommufd/main.c.
 */
import { E2BIG, EFAULT, EINVAL, ENOMEM, ENOTTY, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_DESTROY,
  IOMMU_FAULT_QUEUE_ALLOC,
  IOMMU_GET_HW_INFO,
  IOMMU_HW_QUEUE_ALLOC,
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_INVALIDATE,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS,
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_NOIOMMU_GET_PA,
  IOMMU_IOAS_UNMAP,
  IOMMU_OPTION,
  IOMMU_VDEVICE_ALLOC,
  IOMMU_VEVENTQ_ALLOC,
  IOMMU_VFIO_IOAS,
  IOMMU_VIOMMU_ALLOC,
  IOMMUFD_CMD_BASE,
  IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA,
  IommuDestroy,
  IommuFaultAlloc,
  IommuHwInfo,
  IommuHwptAlloc,
  IommuHwptGetDirtyBitmap,
  IommuHwptInvalidate,
  IommuHwptSetDirtyTracking,
  IommuHwQueueAlloc,
  IommuIoasAlloc,
  IommuIoasAllowIovas,
  IommuIoasChangeProcess,
  IommuIoasCopy,
  IommuIoasIovaRanges,
  IommuIoasMap,
  IommuIoasMapFile,
  IommuIoasNoiommuGetPa,
  IommuIoasUnmap,
  IommuOption,
  IommuVdeviceAlloc,
  IommuVeventqAlloc,
  IommuVfioIoas,
  IommuViommuAlloc,
} from "../../uapi/iommufd.ts";
import { IOMMU_TEST_CMD, IommuTestCmd } from "../../uapi/iommufd_test.ts";
import type { AnyStruct, StructView, ViewOf } from "../../uapi/struct.ts";
import type { File, FileOps } from "../fs/file.ts";
import type { Kernel } from "../kernel.ts";
import { checkZeroedUser, copyFromUser, getUserU32 } from "../mm/user_memory.ts";
import type { Vma } from "../mm/vma.ts";
import { changeProcess } from "./change_process.ts";
import { IommufdCtx } from "./ctx.ts";
import { getHwInfo } from "./device.ts";
import { faultAlloc } from "./fault.ts";
import { hwptGetDirtyBitmap, hwptSetDirtyTracking } from "./hw_pagetable.ts";
import { hwQueueAlloc } from "./hw_queue.ts";
import { hwptAlloc } from "./hwpt_alloc.ts";
import { hwptInvalidate } from "./hwpt_nested.ts";
import { ioasAlloc, ioasAllowIovas, ioasCopy, ioasIovaRanges, ioasMap, ioasMapFile, ioasNoiommuGetPa, ioasUnmap } from "./ioas.ts";
import { iommufdModule, makeIommufdModule } from "./module.ts";
import { destroyAllObjects, removeObjectById } from "./object.ts";
import { option } from "./option.ts";
import type { Ucmd, UcmdHandler } from "./ucmd.ts";
import { vdeviceAlloc } from "./vdevice.ts";
import { veventqAlloc } from "./veventq.ts";
import { iommufdVfioIoctl, vfioIoas } from "./vfio_compat.ts";
import { viommuAlloc } from "./viommu.ts";

/** A row of the table. */
interface Op {
  readonly cmd: number;
  readonly struct: AnyStruct;
  /** Bytes a caller must give at least: up to the end of this member. */
  readonly minSize: number;
  execute(ucmd: Ucmd, cmd: StructView): Step<Errno | number | undefined>;
  /**
   * Structures not in use: a call takes one, or makes one, and gives it back. A
   * fresh buffer per call would make the garbage collector walk a large heap often.
   */
  readonly spare: StructView[];
}

const COMMANDS = IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA - IOMMUFD_CMD_BASE + 1;
/** With the selftest, which leaves a gap before its own. */
const TEST_COMMANDS = (IOMMU_TEST_CMD & 0xff) - IOMMUFD_CMD_BASE + 1;
const table: (Op | undefined)[] = new Array<Op | undefined>(TEST_COMMANDS).fill(undefined);

/** Every command: its number, its structure, and how many bytes of that a caller must give at least. */
export const iommufdCommands = (): { readonly cmd: number; readonly struct: AnyStruct; readonly minSize: number }[] =>
  table.filter((op) => op !== undefined);

function add<S extends AnyStruct>(cmd: number, struct: S, lastMember: string, execute: UcmdHandler<ReturnType<S["over"]>>): void {
  const minSize = (struct.offsets[lastMember] ?? Number.NaN) + (struct.widths[lastMember] ?? Number.NaN);
  if (Number.isNaN(minSize)) throw new RangeError(`${struct.name} has no member ${lastMember}`);
  table[(cmd & 0xff) - IOMMUFD_CMD_BASE] = { cmd, struct, minSize, execute: execute as Op["execute"], spare: [] };
}

add(IOMMU_DESTROY, IommuDestroy, "id", (ucmd, cmd) => removeObjectById(ucmd.ctx, cmd.id));
add(IOMMU_FAULT_QUEUE_ALLOC, IommuFaultAlloc, "out_fault_fd", faultAlloc);
add(IOMMU_GET_HW_INFO, IommuHwInfo, "__reserved", getHwInfo);
add(IOMMU_HW_QUEUE_ALLOC, IommuHwQueueAlloc, "length", hwQueueAlloc);
add(IOMMU_HWPT_ALLOC, IommuHwptAlloc, "__reserved", hwptAlloc);
add(IOMMU_HWPT_GET_DIRTY_BITMAP, IommuHwptGetDirtyBitmap, "data", hwptGetDirtyBitmap);
add(IOMMU_HWPT_INVALIDATE, IommuHwptInvalidate, "__reserved", hwptInvalidate);
add(IOMMU_HWPT_SET_DIRTY_TRACKING, IommuHwptSetDirtyTracking, "__reserved", hwptSetDirtyTracking);
add(IOMMU_IOAS_ALLOC, IommuIoasAlloc, "out_ioas_id", ioasAlloc);
add(IOMMU_IOAS_ALLOW_IOVAS, IommuIoasAllowIovas, "allowed_iovas", ioasAllowIovas);
add(IOMMU_IOAS_CHANGE_PROCESS, IommuIoasChangeProcess, "__reserved", changeProcess);
add(IOMMU_IOAS_COPY, IommuIoasCopy, "src_iova", ioasCopy);
add(IOMMU_IOAS_IOVA_RANGES, IommuIoasIovaRanges, "out_iova_alignment", ioasIovaRanges);
add(IOMMU_IOAS_MAP, IommuIoasMap, "iova", ioasMap);
add(IOMMU_IOAS_MAP_FILE, IommuIoasMapFile, "iova", ioasMapFile);
add(IOMMU_IOAS_NOIOMMU_GET_PA, IommuIoasNoiommuGetPa, "out_phys", ioasNoiommuGetPa);
add(IOMMU_IOAS_UNMAP, IommuIoasUnmap, "length", ioasUnmap);
add(IOMMU_OPTION, IommuOption, "val64", option);
add(IOMMU_VDEVICE_ALLOC, IommuVdeviceAlloc, "virt_id", vdeviceAlloc);
add(IOMMU_VEVENTQ_ALLOC, IommuVeventqAlloc, "out_veventq_fd", veventqAlloc);
add(IOMMU_VFIO_IOAS, IommuVfioIoas, "__reserved", vfioIoas);
add(IOMMU_VIOMMU_ALLOC, IommuViommuAlloc, "out_viommu_id", viommuAlloc);
add(IOMMU_TEST_CMD, IommuTestCmd, "last", selftest);

/** Reached only where there is one. */
function* selftest(ucmd: Ucmd, cmd: ViewOf<typeof IommuTestCmd>): Step<Errno | number | undefined> {
  const test = iommufdModule(ucmd.ctx.kernel).selftest;
  return test === undefined ? ENOTTY : yield* test.execute(ucmd, cmd);
}

function* ioctl(f: File, cmd: number, arg: bigint): Step<number | Errno> {
  const ctx = f.privateData as IommufdCtx;
  const { kernel } = ctx;
  const nr = (cmd & 0xff) - IOMMUFD_CMD_BASE;
  if (nr < 0 || nr >= (iommufdModule(kernel).selftest === undefined ? COMMANDS : TEST_COMMANDS)) {
    return yield* iommufdVfioIoctl(ctx, cmd, arg);
  }
  const userSize = getUserU32(kernel, arg);
  if (userSize instanceof Errno) return userSize;
  const op = table[nr];
  if (op === undefined || op.cmd !== cmd) return ENOTTY;
  if (userSize < op.minSize) return EINVAL;
  const view = op.spare.pop() ?? op.struct.over(new Uint8Array(op.struct.size));
  const bad = copyIn(kernel, view.bytes, arg, userSize);
  const e = bad ?? (yield* op.execute({ ctx, ubuffer: arg, userSize }, view));
  op.spare.push(view);
  if (kernel.trace.on)
    kernel.trace.emit({ type: "iommufd.ioctl", ctx: ctx.serial, command: op.struct.name, errno: e instanceof Errno ? e.name : undefined });
  return e ?? 0;
}

/** Fills a command's structure; E2BIG for a caller's that is longer and not zero there, EFAULT. */
function copyIn(kernel: Kernel, bytes: Uint8Array, arg: bigint, userSize: number): Errno | undefined {
  const size = bytes.length;
  if (userSize > size) {
    const zero = checkZeroedUser(kernel, arg + BigInt(size), userSize - size);
    if (zero instanceof Errno) return zero;
    if (!zero) return E2BIG;
  }
  if (userSize < size) bytes.fill(0, userSize);
  return copyFromUser(kernel, userSize < size ? bytes.subarray(0, userSize) : bytes, arg) > 0 ? EFAULT : undefined;
}

function* release(f: File): Step<void> {
  const ctx = f.privateData as IommufdCtx;
  yield* destroyAllObjects(ctx);
  iommufdModule(ctx.kernel).contexts.delete(ctx);
}

function mmap(f: File, vma: Vma): Errno | undefined {
  return (f.privateData as IommufdCtx).mmaps.mmap(vma);
}

const fileOps: FileOps = { name: "iommufd", ioctl, mmap, release };

/** Loads the module: `/dev/iommu` appears. */
export function iommufdInit(kernel: Kernel): void {
  const m = makeIommufdModule(kernel);
  kernel.modules.load("iommufd");
  kernel.fs.registerDevice("/dev/iommu", {
    major: 10,
    minor: 127,
    mode: 0o660,
    ops: fileOps,
    *open(file: File): Step<Errno | undefined> {
      if (kernel.fault.slab("iommufd_ctx")) return ENOMEM;
      const ctx = new IommufdCtx(kernel, file, m.nextSerial++);
      m.contexts.add(ctx);
      file.privateData = ctx;
      return undefined;
    },
  });
  kernel.leakChecks.set("iommufd context", () => m.contexts.size);
  kernel.leakChecks.set("iommufd area", () => m.liveAreas);
  kernel.leakChecks.set("iommufd pages", () => m.livePages);
}
