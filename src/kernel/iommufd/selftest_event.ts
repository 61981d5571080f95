/**
 * Selftest operations by which a mock device makes an event for user space: a
 * page request, or an event of the virtual IOMMU it belongs to.
 *
 * Source: iommufd_test_trigger_iopf, iommufd_test_trigger_vevent in
 * drivers/iommu/iommufd/selftest.c.
 */
import { EINVAL, ENOENT, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_VEVENTQ_TYPE_SELFTEST, type IommuTestCmd, IommuViommuEventSelftest } from "../../uapi/iommufd_test.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { PAGE_REQUEST_LAST_PAGE, PAGE_REQUEST_PASID_VALID, reportDeviceFault } from "../iommu/io_pagefault.ts";
import { MockDevice } from "../iommu/mock.ts";
import type { IommufdCtx } from "./ctx.ts";
import { IOMMU_NO_PASID, IommufdDevice } from "./device.ts";
import { getObject, putObject } from "./object.ts";

type TestCmd = ViewOf<typeof IommuTestCmd>;

/** IOMMU_TEST_OP_TRIGGER_IOPF: a group of one request. Success too when nobody handles it. ENOENT: no such device; EINVAL: not a mock device. */
export function* triggerIopf(ctx: IommufdCtx, cmd: TestCmd["trigger_iopf"]): Step<Errno | undefined> {
  const { dev_id: devId, pasid, grpid, perm, addr } = cmd;
  const idev = getObject(ctx, devId, IommufdDevice);
  if (idev instanceof Errno) return idev;
  try {
    const { dev } = idev;
    if (!(dev instanceof MockDevice)) return EINVAL;
    const flags = PAGE_REQUEST_LAST_PAGE | (pasid === IOMMU_NO_PASID ? 0 : PAGE_REQUEST_PASID_VALID);
    yield* dev.iopfRwsem.downRead();
    try {
      reportDeviceFault(dev, { flags, pasid, grpid, perm, addr });
    } finally {
      dev.iopfRwsem.upRead();
    }
    return undefined;
  } finally {
    putObject(ctx, idev);
  }
}

/**
 * IOMMU_TEST_OP_TRIGGER_VEVENT: the event carries what the guest calls the device. ENOENT: no such device, it is on no virtual
 * IOMMU's table, or the guest calls it 0. EOPNOTSUPP: the virtual IOMMU has no queue for it. EINVAL: not a mock device, which
 * Linux takes on trust.
 */
export function* triggerVevent(ctx: IommufdCtx, devId: number): Step<Errno | undefined> {
  const idev = getObject(ctx, devId, IommufdDevice);
  if (idev instanceof Errno) return idev;
  try {
    const { dev } = idev;
    if (!(dev instanceof MockDevice)) return EINVAL;
    if (dev.viommu === undefined || dev.viommu.virtId === 0n) return ENOENT;
    const { core, virtId } = dev.viommu;
    const event = IommuViommuEventSelftest.alloc({ virt_id: Number(BigInt.asUintN(32, virtId)) });
    return yield* core.reportEvent(IOMMU_VEVENTQ_TYPE_SELFTEST, event.bytes);
  } finally {
    putObject(ctx, idev);
  }
}
