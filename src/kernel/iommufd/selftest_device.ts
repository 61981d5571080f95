/**
 * Mock devices: a device behind the mock unit, bound and attached in one go,
 * and an object that stands for both. Destroying it undoes all of that.
 *
 * Ids come in the order object, device, hardware page table.
 * Source: iommufd_test_mock_domain and its kin in drivers/iommu/iommufd/selftest.c.
 */
import { EINVAL, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import { type IommuTestCmd, MOCK_DEV_CACHE_ID_MAX } from "../../uapi/iommufd_test.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { MockDevice, type MockIommu } from "../iommu/mock.ts";
import type { IommufdCtx } from "./ctx.ts";
import {
  IOMMU_NO_PASID,
  IommufdDevice,
  iommufdDeviceAttach,
  iommufdDeviceBind,
  iommufdDeviceDetach,
  iommufdDeviceReplace,
  iommufdDeviceUnbind,
} from "./device.ts";
import { IommufdHwpt } from "./hwpt.ts";
import { abortObject, allocObject, finalizeObject, getAnyObject, getObject, IommufdObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";

type TestCmd = ViewOf<typeof IommuTestCmd>;

class SelftestDevice extends IommufdObject {
  readonly type = "selftest";
  readonly #unit: MockIommu;
  #dev: MockDevice | undefined = undefined;
  #idev: IommufdDevice | undefined = undefined;

  constructor(unit: MockIommu) {
    super();
    this.#unit = unit;
  }

  /** The bound device. Throws `KernelBug` before it is. */
  get idev(): IommufdDevice {
    if (this.#idev === undefined) throw new KernelBug(`selftest object ${this.id} has no device`);
    return this.#idev;
  }

  /** Makes, binds and attaches the device; the id of its page table. On failure nothing is left. */
  *create(ctx: IommufdCtx, flags: number, ptId: number): Step<number | Errno> {
    const dev = this.#unit.createDevice(flags);
    if (dev instanceof Errno) return dev;
    this.#dev = dev;
    const bound = yield* iommufdDeviceBind(ctx, dev);
    if (!(bound instanceof Errno)) this.#idev = bound.idev;
    const pt = bound instanceof Errno ? bound : yield* this.changing((idev) => iommufdDeviceAttach(idev, IOMMU_NO_PASID, ptId));
    if (pt instanceof Errno) yield* this.#undo();
    return pt;
  }

  /** Changes what the device is attached to; meanwhile it makes no page requests. */
  *changing<R>(change: (idev: IommufdDevice) => Step<R>): Step<R> {
    const dev = this.#dev;
    if (dev === undefined) throw new KernelBug(`selftest object ${this.id} has no device`);
    yield* dev.iopfRwsem.downWrite();
    try {
      return yield* change(this.idev);
    } finally {
      dev.iopfRwsem.upWrite();
    }
  }

  override *destroy(): Step<void> {
    if (this.#idev !== undefined) yield* this.changing(detachAll);
    yield* this.#undo();
  }

  *#undo(): Step<void> {
    if (this.#idev !== undefined) yield* iommufdDeviceUnbind(this.#idev);
    this.#idev = undefined;
    if (this.#dev !== undefined) this.#unit.destroyDevice(this.#dev);
    this.#dev = undefined;
  }
}

/** Unlike Linux, which forgets the PASIDs and so frees a device that is attached. */
function* detachAll(idev: IommufdDevice): Step<void> {
  for (const [pasid, attach] of [...idev.group.attached]) {
    if (pasid !== IOMMU_NO_PASID && attach.devices.has(idev.id)) yield* iommufdDeviceDetach(idev, pasid);
  }
  yield* iommufdDeviceDetach(idev, IOMMU_NO_PASID);
}

/** IOMMU_TEST_OP_MOCK_DOMAIN and …_FLAGS: a device on the IOAS or hardware page table `cmd.id`. */
export function* mockDomain(unit: MockIommu, ucmd: Ucmd, cmd: TestCmd, flags: number): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const obj = allocObject(ctx, new SelftestDevice(unit));
  if (obj instanceof Errno) return obj;
  const pt = yield* obj.create(ctx, flags, cmd.id);
  let e = pt instanceof Errno ? pt : undefined;
  if (!(pt instanceof Errno)) {
    cmd.mock_domain.out_hwpt_id = pt;
    cmd.mock_domain.out_stdev_id = obj.id;
    cmd.mock_domain.out_idev_id = obj.idev.id;
    e = respond(ucmd, cmd);
  }
  if (e === undefined) finalizeObject(ctx, obj);
  else yield* abortObject(ctx, obj);
  return e;
}

/** The mock device of an id, with a reference. ENOENT. */
const getDevice = (ctx: IommufdCtx, id: number): SelftestDevice | Errno => getObject(ctx, id, SelftestDevice);

/** IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE. */
export function* mockDomainReplace(ucmd: Ucmd, cmd: TestCmd): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const obj = getDevice(ctx, cmd.id);
  if (obj instanceof Errno) return obj;
  try {
    const pt = yield* obj.changing((idev) => iommufdDeviceReplace(idev, IOMMU_NO_PASID, cmd.mock_domain_replace.pt_id));
    if (pt instanceof Errno) return pt;
    cmd.mock_domain_replace.pt_id = pt;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, obj);
  }
}

/** IOMMU_TEST_OP_PASID_ATTACH. */
export function* pasidAttach(ucmd: Ucmd, cmd: TestCmd): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const obj = getDevice(ctx, cmd.id);
  if (obj instanceof Errno) return obj;
  try {
    const { pasid, pt_id } = cmd.pasid_attach;
    const pt = yield* obj.changing((idev) => iommufdDeviceAttach(idev, pasid, pt_id));
    if (pt instanceof Errno) return pt;
    cmd.pasid_attach.pt_id = pt;
    const e = respond(ucmd, cmd);
    if (e !== undefined) yield* obj.changing((idev) => iommufdDeviceDetach(idev, pasid));
    return e;
  } finally {
    putObject(ctx, obj);
  }
}

/** IOMMU_TEST_OP_PASID_REPLACE. */
export function* pasidReplace(ucmd: Ucmd, cmd: TestCmd): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const obj = getDevice(ctx, cmd.id);
  if (obj instanceof Errno) return obj;
  try {
    const { pasid, pt_id } = cmd.pasid_replace;
    const pt = yield* obj.changing((idev) => iommufdDeviceReplace(idev, pasid, pt_id));
    if (pt instanceof Errno) return pt;
    cmd.pasid_replace.pt_id = pt;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, obj);
  }
}

/** IOMMU_TEST_OP_PASID_DETACH. */
export function* pasidDetach(ctx: IommufdCtx, id: number, pasid: number): Step<Errno | undefined> {
  const obj = getDevice(ctx, id);
  if (obj instanceof Errno) return obj;
  yield* obj.changing((idev) => iommufdDeviceDetach(idev, pasid));
  putObject(ctx, obj);
  return undefined;
}

/** IOMMU_TEST_OP_PASID_CHECK_HWPT: EINVAL unless the PASID is attached to that page table, or with id 0 to none. */
export function pasidCheckHwpt(ctx: IommufdCtx, id: number, { pasid, hwpt_id: hwptId }: TestCmd["pasid_check"]): Errno | undefined {
  const obj = getDevice(ctx, id);
  if (obj instanceof Errno) return obj;
  try {
    const attached = obj.idev.group.group.handleOf(pasid)?.domain;
    if (hwptId === 0) return attached === undefined ? undefined : EINVAL;
    const hwpt = getAnyObject(ctx, hwptId);
    if (hwpt instanceof Errno) return hwpt;
    try {
      return hwpt instanceof IommufdHwpt && hwpt.domain === attached ? undefined : EINVAL;
    } finally {
      putObject(ctx, hwpt);
    }
  } finally {
    putObject(ctx, obj);
  }
}

/** IOMMU_TEST_OP_DEV_CHECK_CACHE. `id` is the bound device's. */
export function checkDevCache(ctx: IommufdCtx, id: number, { id: entry, cache }: TestCmd["check_dev_cache"]): Errno | undefined {
  const idev = getObject(ctx, id, IommufdDevice);
  if (idev instanceof Errno) return idev;
  try {
    const { dev } = idev;
    return dev instanceof MockDevice && entry <= MOCK_DEV_CACHE_ID_MAX && dev.cache[entry] === cache ? undefined : EINVAL;
  } finally {
    putObject(ctx, idev);
  }
}
