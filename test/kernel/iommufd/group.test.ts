import { expect, test } from "vitest";
import { Device } from "../../../src/kernel/device.ts";
import { iommufdCtxHasGroup, iommufdDeviceBind, iommufdDeviceReplace } from "../../../src/kernel/iommufd/device.ts";
import { EINVAL, EPERM } from "../../../src/lib/errno.ts";
import { O_RDWR } from "../../../src/uapi/index.ts";
import { IommufdRig, ok } from "./support.ts";

function twoInOneGroup(r: IommufdRig): [Device, Device] {
  const a = r.device();
  const b = new Device("0000:02:00.1", "pci", a.rid + 1);
  const e = r.kernel.iommu.addDevice(b, a.iommuGroup);
  if (e !== undefined) throw new Error(e.name);
  return [a, b];
}

test("devices of a group share their page table, and a replace moves all of them", () => {
  const r = new IommufdRig();
  const [x, y] = [r.allocIoas(), r.allocIoas()];
  const [a, b] = twoInOneGroup(r).map((d) => r.bind(d)) as [ReturnType<IommufdRig["bind"]>, ReturnType<IommufdRig["bind"]>];
  const hwpt = ok(r.attach(a, x));
  expect(r.run(iommufdDeviceReplace(b, 0, x))).toBe(EINVAL);
  expect(r.attach(b, x)).toBe(hwpt);
  const other = ok(r.run(iommufdDeviceReplace(a, 0, y)));
  expect(other).not.toBe(hwpt);
  expect(r.destroy(x)).toBe(0);
  expect(r.ranges(y).ranges).toHaveLength(2);
  r.check();
  r.detach(a);
  expect(r.ranges(y).ranges).toHaveLength(2);
  r.detach(b);
  expect(r.ranges(y).ranges).toHaveLength(1);
  expect(r.destroy(y)).toBe(0);
  r.unbind(a);
  r.unbind(b);
});

test("a group belongs to one context, and is free again after the last unbind", () => {
  const r = new IommufdRig();
  const [d, e] = twoInOneGroup(r);
  const a = r.bind(d);
  expect(iommufdCtxHasGroup(r.ctx, d.iommuGroup)).toBe(true);
  const fd = ok(r.run(r.process.sys.open("/dev/iommu", O_RDWR)));
  const other = ok(r.process.files.get(fd)).privateData as typeof r.ctx;
  expect(r.run(iommufdDeviceBind(other, e))).toBe(EPERM);
  r.unbind(a);
  expect(iommufdCtxHasGroup(r.ctx, d.iommuGroup)).toBe(false);
  expect(ok(r.run(iommufdDeviceBind(other, e))).id).toBe(1);
});
