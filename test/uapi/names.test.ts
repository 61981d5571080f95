import { describe, expect, test } from "vitest";
import * as uapi from "../../src/uapi/index.ts";
import { describeFeature, describeIoctl, describeMember, formatStruct, ioctlName } from "../../src/uapi/index.ts";

describe("commands", () => {
  test("a command is known by its number, with the structure that it takes", () => {
    expect(describeIoctl(uapi.IOMMU_IOAS_MAP_FILE)).toEqual({
      name: "IOMMU_IOAS_MAP_FILE",
      kind: "iommufd",
      struct: uapi.IommuIoasMapFile,
    });
    expect(describeIoctl(uapi.VFIO_DEVICE_RESET)).toEqual({ name: "VFIO_DEVICE_RESET", kind: "vfio-device" });
    expect(describeIoctl(0x1234)).toBeUndefined();
  });

  test("the descriptor's kind decides between two commands of one number", () => {
    expect(ioctlName(uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "vfio-device")).toBe("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO");
    expect(ioctlName(uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "vfio-container")).toBe("VFIO_IOMMU_GET_INFO");
    expect(describeIoctl(uapi.IOMMU_DESTROY, "vfio-device")).toBeUndefined();
  });

  test("an iommufd answers to the container's commands as well", () => {
    expect(ioctlName(uapi.VFIO_IOMMU_MAP_DMA, "iommufd")).toBe("VFIO_IOMMU_MAP_DMA");
  });

  test("a command that nobody knows prints as its parts", () => {
    expect(ioctlName(uapi._IOWR("b", 9, 8))).toBe("_IOC(_IOC_READ|_IOC_WRITE, 0x62, 0x9, 8)");
    expect(ioctlName(uapi._IO("x", 1))).toBe("_IOC(_IOC_NONE, 0x78, 0x1, 0)");
  });

  test("every command has a name but those that another of the same kind shadows", () => {
    const types = [uapi.IOMMUFD_TYPE, uapi.DMA_BUF_BASE, uapi.DMA_HEAP_IOC_MAGIC, uapi.SYNC_IOC_MAGIC, "u".charCodeAt(0)];
    const commands = Object.entries(uapi).filter((entry): entry is [string, number] => {
      const [name, value] = entry;
      const isNumber = typeof value === "number" && /^(IOMMU|VFIO|DMA_BUF|DMA_HEAP|UDMABUF|SYNC_IOC)_/.test(name);
      return isNumber && value > 0xff && types.includes(uapi._IOC_TYPE(value));
    });
    const kinds = [undefined, "vfio-device", "vfio-container", "vfio-migration", "dma-buf"] as const;
    const unnamed = commands.filter(([name, cmd]) => !kinds.some((kind) => describeIoctl(cmd, kind)?.name === name));
    expect(unnamed.map(([name]) => name).sort()).toEqual([
      "DMA_BUF_SET_NAME", // is DMA_BUF_SET_NAME_B
      "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
      "VFIO_IOMMU_SPAPR_TCE_GET_INFO",
    ]);
    expect(commands.length).toBeGreaterThan(60);
  });

  test("a feature is known by the low bits of its flags", () => {
    expect(describeFeature(uapi.VFIO_DEVICE_FEATURE_GET | uapi.VFIO_DEVICE_FEATURE_DMA_BUF)).toEqual({
      name: "VFIO_DEVICE_FEATURE_DMA_BUF",
      struct: uapi.VfioDeviceFeatureDmaBuf,
    });
    expect(describeFeature(14)).toBeUndefined();
  });
});

describe("members", () => {
  test("flags print by name, and bits without one in hexadecimal", () => {
    const name = (value: number): string | undefined => describeMember(uapi.IommuIoasMap, "flags", value);
    expect(name(uapi.IOMMU_IOAS_MAP_READABLE | uapi.IOMMU_IOAS_MAP_WRITEABLE)).toBe("IOMMU_IOAS_MAP_WRITEABLE|IOMMU_IOAS_MAP_READABLE");
    expect(name(uapi.IOMMU_IOAS_MAP_READABLE | 0x40)).toBe("IOMMU_IOAS_MAP_READABLE|0x40");
    expect(name(0)).toBe("0");
    expect(name(0x40)).toBe("0x40");
  });

  test("one of several values prints by name, and another as a number", () => {
    expect(describeMember(uapi.IommuOption, "op", uapi.IOMMU_OPTION_OP_GET)).toBe("IOMMU_OPTION_OP_GET");
    expect(describeMember(uapi.IommuOption, "op", 9)).toBe("0x9");
    expect(describeMember(uapi.IommuOption, "object_id", 9)).toBeUndefined();
  });

  test("an access mode of 0 is a name, too", () => {
    const name = (value: number): string | undefined => describeMember(uapi.VfioDeviceFeatureDmaBuf, "open_flags", value);
    expect(name(uapi.O_RDWR | uapi.O_CLOEXEC)).toBe("O_RDWR|O_CLOEXEC");
    expect(name(0)).toBe("O_RDONLY");
    expect(name(3)).toBe("0x3");
  });

  test("a structure prints in one line, without what is reserved and zero", () => {
    const map = uapi.IommuIoasMap.alloc({ size: 40, flags: uapi.IOMMU_IOAS_MAP_READABLE, ioas_id: 3, length: 4096n });
    expect(formatStruct(uapi.IommuIoasMap, map)).toBe(
      "{size=40, flags=IOMMU_IOAS_MAP_READABLE, ioas_id=3, user_va=0x0, length=0x1000, iova=0x0}",
    );
    map.__reserved = 1;
    expect(formatStruct(uapi.IommuIoasMap, map)).toContain("__reserved=1");
  });

  test("nested structures and arrays print inside, a long array cut off", () => {
    const info = uapi.VfioPciHotResetInfo.alloc({ count: 1, devices: [{ group_id: 7, bus: 2 }] });
    expect(formatStruct(uapi.VfioPciHotResetInfo, info)).toBe(
      "{argsz=0, flags=0, count=1, devices=[{group_id=7, segment=0, bus=2, devfn=0}]}",
    );
    const irqs = uapi.VfioIrqSet.alloc({}, 20);
    expect(formatStruct(uapi.VfioIrqSet, irqs)).toMatch(/index=VFIO_PCI_INTX_IRQ_INDEX, .*data=\[(0, ){16}…\]\}$/);
  });

  test("the data of a feature prints as the structure of that feature", () => {
    const request = uapi.VfioDeviceFeatureDmaBuf.alloc({ region_index: 2, nr_ranges: 1, dma_ranges: [{ length: 4096n }] });
    const feature = uapi.VfioDeviceFeature.alloc({
      argsz: 40,
      flags: uapi.VFIO_DEVICE_FEATURE_GET | uapi.VFIO_DEVICE_FEATURE_DMA_BUF,
      data: request.bytes,
    });
    expect(formatStruct(uapi.VfioDeviceFeature, feature)).toBe(
      "{argsz=40, flags=VFIO_DEVICE_FEATURE_DMA_BUF|VFIO_DEVICE_FEATURE_GET, data={region_index=VFIO_PCI_BAR2_REGION_INDEX, " +
        "open_flags=O_RDONLY, flags=0, nr_ranges=1, dma_ranges=[{offset=0x0, length=0x1000}]}}",
    );
  });

  test("of a union the member prints which the command means", () => {
    const format = (op: number): string => formatStruct(uapi.IommuTestCmd, uapi.IommuTestCmd.alloc({ op }));
    expect(format(uapi.IOMMU_TEST_OP_DMABUF_GET)).toBe(
      "{size=0, op=IOMMU_TEST_OP_DMABUF_GET, id=0, dmabuf_get={length=0, open_flags=0}, last=0}",
    );
    expect(format(99)).toBe("{size=0, op=0x63, id=0, last=0}");
    const meant = Object.entries(uapi).filter(([name]) => name.startsWith("IOMMU_TEST_OP_"));
    expect(meant.filter(([, op]) => !/id=0, \w+=\{/.test(format(op as number)))).toEqual([]);
  });
});
