/** IOMMU_GET_HW_INFO, of the selftest's unit and of those of a machine: what is asked for, what comes back, and what is refused. */
import { describe, expect, test } from "vitest";
import { EFAULT, ENOENT, EOPNOTSUPP, type Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { IommufdRig } from "./support.ts";
import { ViommuRig } from "./viommu_support.ts";

type Init = Parameters<typeof u.IommuHwInfo.alloc>[0];
const BY_TYPE = u.IOMMU_HW_INFO_FLAG_INPUT_TYPE;
const SELFTEST = u.IOMMU_HW_INFO_TYPE_SELFTEST;

const ask = (r: IommufdRig, init: Init): { e: Errno | 0; cmd: ReturnType<typeof u.IommuHwInfo.alloc> } => {
  const cmd = u.IommuHwInfo.alloc({ size: u.IommuHwInfo.size, ...init });
  return { e: r.ioctl(u.IOMMU_GET_HW_INFO, cmd), cmd };
};

describe("of the selftest's unit", () => {
  test.each<[string, Init, Errno | 0]>([
    ["an unknown flag", { flags: 2 }, EOPNOTSUPP],
    ["a reserved byte", { __reserved: [0, 0, 1] }, EOPNOTSUPP],
    ["a device that is not there", { dev_id: 0x7fff }, ENOENT],
    ["another unit's type", { flags: BY_TYPE, in_data_type: u.IOMMU_HW_INFO_TYPE_INTEL_VTD }, EOPNOTSUPP],
    ["another unit's type, without saying that it asks for one", { in_data_type: u.IOMMU_HW_INFO_TYPE_INTEL_VTD }, 0],
    ["no type in particular", { flags: BY_TYPE, in_data_type: u.IOMMU_HW_INFO_TYPE_DEFAULT }, 0],
    ["its own type", { flags: BY_TYPE, in_data_type: SELFTEST }, 0],
    ["room that cannot be written", { data_len: 8, data_uptr: 0x10n }, EFAULT],
    ["no room, nowhere", { data_len: 0, data_uptr: 0x10n }, 0],
  ])("asked with %s", (_, init, e) => {
    const r = new ViommuRig();
    const got = ask(r, { dev_id: r.idev, ...init });
    expect(got.e).toBe(e);
    if (e !== 0) return;
    expect([got.cmd.out_data_type, got.cmd.data_len]).toEqual([SELFTEST, u.IommuTestHwInfo.size]);
  });

  test("what is beyond its length is zeroed, and what cannot be zeroed is EFAULT", () => {
    const r = new ViommuRig();
    const at = r.put(new Uint8Array(64).fill(0xff));
    expect(ask(r, { dev_id: r.idev, data_len: 16, data_uptr: at }).cmd.data_len).toBe(u.IommuTestHwInfo.size);
    expect([...r.peek(at + 8n, 16)]).toEqual([...new Array(8).fill(0), ...new Array(8).fill(0xff)]);
    const edge = r.user(8192) + 4096n - 8n;
    r.run(r.process.sys.munmap(edge + 8n, 4096n));
    expect(ask(r, { dev_id: r.idev, data_len: 8, data_uptr: edge }).e).toBe(0);
    expect(ask(r, { dev_id: r.idev, data_len: 9, data_uptr: edge }).e).toBe(EFAULT);
  });

  test("what a device can do: PASIDs and dirty tracking are its own", () => {
    const r = new ViommuRig();
    const of = (flags: number): [bigint, number] => {
      const { cmd } = ask(r, { dev_id: r.mock(r.ioas, flags).idev });
      return [cmd.out_capabilities, cmd.out_max_pasid_log2];
    };
    const noAts = u.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED;
    expect(of(0)).toEqual([noAts | u.IOMMU_HW_CAP_DIRTY_TRACKING, 0]);
    expect(of(u.MOCK_FLAGS_DEVICE_PASID)).toEqual([noAts | u.IOMMU_HW_CAP_DIRTY_TRACKING, u.MOCK_PASID_WIDTH]);
    expect(of(u.MOCK_FLAGS_DEVICE_NO_DIRTY)).toEqual([noAts, 0]);
  });
});

test.each([
  ["VT-d", { kind: "intel-scalable", nesting: true }, u.IOMMU_HW_INFO_TYPE_INTEL_VTD, u.IommuHwInfoVtd.size],
  ["AMD", { kind: "amd" }, u.IOMMU_HW_INFO_TYPE_AMD, u.IommuHwInfoAmd.size],
] as const)("of %s: its own type, and no other", (_, unit, type, length) => {
  const r = new IommufdRig(unit);
  const dev_id = r.bind().id;
  for (const asked of [u.IOMMU_HW_INFO_TYPE_DEFAULT, type]) {
    const { e, cmd } = ask(r, { dev_id, flags: BY_TYPE, in_data_type: asked });
    expect([e, cmd.out_data_type, cmd.data_len, cmd.out_max_pasid_log2]).toEqual([0, type, length, 0]);
  }
  for (const other of [1, 2, 3, 4, SELFTEST].filter((t) => t !== type)) {
    expect(ask(r, { dev_id, flags: BY_TYPE, in_data_type: other }).e).toBe(EOPNOTSUPP);
  }
});
