/**
 * Virtual IOMMUs: a guest's slice of a unit, on a hardware page table that can
 * be nested in.
 *
 * It keeps that table, its driver's half (`ops`), the devices it was told of by
 * the ids the guest gives them, and the queues its events go to. Nested tables,
 * devices, hardware queues and event queues made on it each hold a user of it,
 * so it goes last.
 *
 * Source: drivers/iommu/iommufd/viommu.c, driver.c; struct iommufd_viommu.
 */
import type { PhysAddr } from "../../lib/addr.ts";
import { EINVAL, ENOENT, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { RwSem } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_VIOMMU_TYPE_DEFAULT, type IommuViommuAlloc } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { Device } from "../device.ts";
import type { IommuUnit } from "../iommu/unit.ts";
import type { ViommuCore, ViommuOps } from "../iommu/viommu.ts";
import type { IommufdCtx } from "./ctx.ts";
import { IommufdDevice } from "./group.ts";
import { HwptPaging } from "./hw_pagetable.ts";
import { abortObject, allocObject, decUsers, finalizeObject, getObject, IommufdObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";
import type { IommufdVdevice } from "./vdevice.ts";
import type { IommufdVeventq } from "./veventq.ts";

const VEVENTQS_LOCK: LockClass = new LockClass("iommufd_viommu.veventqs_rwsem");

export class IommufdViommu extends IommufdObject implements ViommuCore {
  readonly type = "viommu";
  readonly ctx: IommufdCtx;
  readonly unit: IommuUnit;
  /** The nesting parent. */
  readonly hwpt: HwptPaging;
  readonly viommuType: number;
  /** The driver's half. Undefined until it is complete. */
  ops: ViommuOps | undefined = undefined;
  /** By the guest's id; a slot without a device is reserved for one whose driver has not taken it yet. */
  readonly vdevs: Map<bigint, IommufdVdevice | undefined> = new Map();
  /** Read: an event is being reported. Write: a queue comes or goes. */
  readonly veventqsRwsem: RwSem;
  /** One of a type at most. Under `veventqsRwsem`. */
  readonly veventqs: IommufdVeventq[] = [];

  constructor(ctx: IommufdCtx, unit: IommuUnit, hwpt: HwptPaging, viommuType: number) {
    super();
    this.ctx = ctx;
    this.unit = unit;
    this.hwpt = hwpt;
    this.viommuType = viommuType;
    this.veventqsRwsem = new RwSem(ctx.kernel.sched, VEVENTQS_LOCK);
  }

  override *destroy(): Step<void> {
    if (this.ops?.destroy !== undefined) yield* this.ops.destroy();
    decUsers(this.hwpt);
  }

  /** The queue of a type (IOMMU_VEVENTQ_TYPE_*). `veventqsRwsem` held. */
  findVeventq(eventType: number): IommufdVeventq | undefined {
    return this.veventqs.find((q) => q.eventType === eventType);
  }

  *reportEvent(eventType: number, data: Uint8Array): Step<Errno | undefined> {
    yield* this.veventqsRwsem.downRead();
    try {
      const q = this.findVeventq(eventType);
      return q === undefined ? EOPNOTSUPP : q.report(data);
    } finally {
      this.veventqsRwsem.upRead();
    }
  }

  findDev(virtId: bigint): Device | undefined {
    return this.vdevs.get(virtId)?.dev;
  }

  vdevIdOf(dev: Device): bigint | Errno {
    for (const vdev of this.vdevs.values()) if (vdev?.dev === dev) return vdev.virtId;
    return ENOENT;
  }

  allocMmap(pa: PhysAddr, length: number): bigint | Errno {
    return this.ctx.mmaps.alloc(this.ctx.kernel, this, pa, length);
  }

  destroyMmap(offset: bigint): void {
    this.ctx.mmaps.destroy(this, offset);
  }
}

/** IOMMU_VIOMMU_ALLOC. EOPNOTSUPP: the unit knows no such type. ENOENT: no such device or table. EINVAL: nothing can nest in the table. */
export function* viommuAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuViommuAlloc>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if (cmd.flags !== 0 || cmd.type === IOMMU_VIOMMU_TYPE_DEFAULT) return EOPNOTSUPP;
  const idev = getObject(ctx, cmd.dev_id, IommufdDevice);
  if (idev instanceof Errno) return idev;
  try {
    const { unit } = idev.group.group;
    if (!unit.supportsViommu(idev.dev, cmd.type)) return EOPNOTSUPP;
    const hwpt = getObject(ctx, cmd.hwpt_id, HwptPaging);
    if (hwpt instanceof Errno) return hwpt;
    try {
      return hwpt.nestParent ? yield* create(ucmd, cmd, unit, hwpt) : EINVAL;
    } finally {
      putObject(ctx, hwpt);
    }
  } finally {
    putObject(ctx, idev);
  }
}

function* create(ucmd: Ucmd, cmd: ViewOf<typeof IommuViommuAlloc>, unit: IommuUnit, hwpt: HwptPaging): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const viommu = allocObject(ctx, new IommufdViommu(ctx, unit, hwpt, cmd.type));
  if (viommu instanceof Errno) return viommu;
  hwpt.users++;
  const data = cmd.data_len === 0 ? undefined : { type: cmd.type, address: cmd.data_uptr, length: cmd.data_len };
  const ops = yield* unit.viommuInit(viommu, hwpt.domain, data);
  let e: Errno | undefined;
  if (ops instanceof Errno) {
    e = ops;
  } else {
    viommu.ops = ops;
    cmd.out_viommu_id = viommu.id;
    e = respond(ucmd, cmd);
  }
  if (e === undefined) finalizeObject(ctx, viommu);
  else yield* abortObject(ctx, viommu);
  return e;
}
