/** As much of a kernel as the IOMMU layer needs: scheduler, trace, units, and devices to put behind them. */
import { Device } from "../../../src/kernel/device.ts";
import { FaultInjection } from "../../../src/kernel/fault_inject.ts";
import type { IommuDomain } from "../../../src/kernel/iommu/domain.ts";
import type { IommuGroup } from "../../../src/kernel/iommu/group.ts";
import { type AddDeviceOptions, type IommuDescription, IommuSubsystem } from "../../../src/kernel/iommu/iommu.ts";
import type { IommuUnit } from "../../../src/kernel/iommu/unit.ts";
import type { Kernel } from "../../../src/kernel/kernel.ts";
import { Errno } from "../../../src/lib/index.ts";
import { Sched, type Step, type Task } from "../../../src/sched/index.ts";
import { Trace, type TraceEvent } from "../../../src/trace/index.ts";

export interface MiniKernel {
  readonly kernel: Kernel;
  readonly iommu: IommuSubsystem;
  readonly events: TraceEvent[];
  run<T>(body: Step<T>): T;
  device(bus: number, options?: AddDeviceOptions & { readonly group?: IommuGroup }): Device;
}

export function miniKernel(...units: IommuDescription[]): MiniKernel {
  const sched = new Sched();
  const trace = new Trace({ now: 0, taskName: "" });
  const events: TraceEvent[] = [];
  trace.listen((r) => events.push(r.event));
  const partial: Record<string, unknown> = {
    sched,
    trace,
    printk(text: string) {
      trace.emit({ type: "sched.printk", text });
    },
  };
  const kernel = partial as unknown as Kernel;
  partial.fault = new FaultInjection(kernel);
  const iommu = new IommuSubsystem(kernel);
  partial.iommu = iommu;
  for (const d of units) iommu.addUnit(d);
  const task: Task = sched.thread("test", {});
  return {
    kernel,
    iommu,
    events,
    run: (body) => sched.execute(task, body),
    device(bus, options) {
      const dev = new Device(`0000:0${bus}:00.0`, "pci", bus << 8);
      const e = iommu.addDevice(dev, options?.group, options);
      if (e !== undefined) throw new Error(`addDevice: ${e.name}`);
      return dev;
    },
  };
}

export function unitOf(dev: Device): IommuUnit {
  if (dev.iommuUnit === undefined) throw new Error(`${dev.name} is behind no unit`);
  return dev.iommuUnit;
}

export function groupOf(dev: Device): IommuGroup {
  if (dev.iommuGroup === undefined) throw new Error(`${dev.name} has no group`);
  return dev.iommuGroup;
}

/** A domain made for `dev`, attached to its group (which a test claims first). */
export function attachNew(m: MiniKernel, dev: Device, flags = 0): IommuDomain {
  const domain = m.run(unitOf(dev).domainAllocPagingFlags(dev, flags));
  if (domain instanceof Errno) throw new Error(`domain: ${domain.name}`);
  const group = groupOf(dev);
  if (!group.dmaOwnerClaimed) {
    const claimed = m.run(group.claimDmaOwner(m));
    if (claimed !== undefined) throw new Error(`claim: ${claimed.name}`);
  }
  const e = m.run(group.attachHandle(domain, { domain }));
  if (e !== undefined) throw new Error(`attach: ${e.name}`);
  return domain;
}
