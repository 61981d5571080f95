import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { EmbeddedHost, readMachine } from "../../src/client/index.ts";
import { machineNames } from "../../src/client/machine_file.ts";
import { MachineError, machineJsonSchema, parseMachine, parseSize } from "../../src/machine/schema.ts";

const base = { name: "m", iommu: { kind: "intel-legacy" }, pci: { children: [] } };
const port = (children: unknown[]): unknown => ({ type: "root-port", children });

function problems(value: unknown): readonly string[] {
  try {
    EmbeddedHost.boot(parseMachine(value));
  } catch (e) {
    if (e instanceof MachineError) return e.problems;
    throw e;
  }
  return [];
}

describe("a machine description", () => {
  it.each(machineNames())("%s, which comes with barlink, boots", (name) => {
    const host = EmbeddedHost.boot(readMachine(name));
    expect(host.devices.length).toBeGreaterThan(0);
    expect(host.shutdown()).toEqual({});
  });

  it.each([
    ["a missing field", { name: "m", pci: { children: [] } }, /^iommu: /],
    ["an unknown field", { ...base, iomu: null }, /unknown field "iomu"/],
    ["an unknown IOMMU", { ...base, iommu: { kind: "sparc" } }, /^iommu\.kind: .*intel-legacy/],
    ["a width no unit has", { ...base, iommu: { kind: "amd", addressWidth: 40 } }, /^iommu\.addressWidth/],
    ["a size that is no size", { ...base, memory: "lots" }, /^memory: expected bytes, or a size/],
    [
      "a slot that is no slot",
      { ...base, pci: { children: [{ type: "device", model: "edu", slot: "3" }] } },
      /^pci\.children\[0\]\.slot: expected device\.function/,
    ],
    ["an unknown kind of node", { ...base, pci: { children: [{ type: "bridge" }] } }, /^pci\.children\[0\]/],
    [
      "an unknown model",
      { ...base, pci: { children: [port([{ type: "device", model: "gpu" }])] } },
      /^pci\.children\[0\]\.children\[0\]\.model: .*"gpu".*edu/,
    ],
    [
      "an unknown option of a model",
      { ...base, pci: { children: [{ type: "device", model: "edu", options: { colour: 1 } }] } },
      /^pci\.children\[0\]\.options\.colour/,
    ],
    [
      "a BAR size that is no power of two",
      { ...base, pci: { children: [{ type: "device", model: "ivshmem", options: { size: "3 MiB" } }] } },
      /^pci\.children\[0\]\.options\.size: .*power of two/,
    ],
    [
      "an unknown driver",
      { ...base, pci: { children: [{ type: "device", model: "edu", driver: "e1000" }] } },
      /^pci\.children\[0\]\.driver: .*vfio-pci/,
    ],
    [
      "two devices in one slot",
      {
        ...base,
        pci: {
          children: [
            { type: "device", model: "edu", slot: "03.0" },
            { type: "device", model: "edu", slot: "03.0" },
          ],
        },
      },
      /^pci\.children\[1\]\.slot: 03\.0 is taken by pci\.children\[0\]/,
    ],
  ])("with %s is refused with the path of the field", (_name, value, path) => {
    const found = problems(value);
    expect(found.length).toBeGreaterThan(0);
    expect(found[0]).toMatch(path);
  });

  it("takes sizes in bytes and in binary units", () => {
    expect([parseSize(4096), parseSize("256 B"), parseSize("16MiB"), parseSize("2 TiB")]).toEqual([4096n, 256n, 16n << 20n, 2n << 40n]);
  });

  it("has a published JSON Schema that is the one the code validates by", () => {
    const file = join(import.meta.dirname, "..", "..", "machines", "machine.schema.json");
    expect(JSON.parse(readFileSync(file, "utf8"))).toEqual(JSON.parse(JSON.stringify(machineJsonSchema())));
  });

  it("that names a file which is not there says which names there are", () => {
    expect(() => readMachine("nowhere")).toThrow(/default, negotiated, oracle/);
  });
});
