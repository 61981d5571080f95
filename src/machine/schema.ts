/**
 * The machine description: what a user writes in JSON.
 *
 * One declaration gives the TypeScript type, the validation with the path of
 * each mistake, and the published JSON Schema (`machines/machine.schema.json`).
 * A description says what the hardware is; addresses the firmware would choose
 * are derived, in order, and so are the same at every boot.
 */
import * as z from "zod";

const UNITS: Readonly<Record<string, bigint>> = { B: 1n, KiB: 1n << 10n, MiB: 1n << 20n, GiB: 1n << 30n, TiB: 1n << 40n };

/** Bytes of `"16 MiB"`, `4096`. */
export function parseSize(size: string | number): bigint {
  if (typeof size === "number") return BigInt(size);
  const [, digits = "0", unit = "B"] = /^(\d+)\s*(B|KiB|MiB|GiB|TiB)$/.exec(size) ?? [];
  return BigInt(digits) * (UNITS[unit] as bigint);
}

/** A size as descriptions write it. */
export const sizeSchema = z
  .union([z.number().int().positive(), z.string().regex(/^\d+\s*(B|KiB|MiB|GiB|TiB)$/, 'expected bytes, or a size such as "16 MiB"')])
  .describe('bytes, or a number with a binary unit: "256 B", "16 MiB", "1 GiB"');

const acsFlag = z.enum(["SV", "TB", "RR", "CR", "UF", "EC", "DT"]);
const acs = z
  .array(acsFlag)
  .describe("access control services the port has and Linux enables: without them the devices below it share an IOMMU group");

const slot = z
  .string()
  .regex(/^[0-9a-f]{2}\.[0-7]$/, 'expected device.function in hexadecimal, such as "03.0"')
  .describe("device and function on its bus; the next free device when absent");

const deviceNode = z
  .strictObject({
    type: z.literal("device"),
    slot: slot.optional(),
    model: z.string().min(1).describe("which model: edu, ivshmem, nvme, or one that the program registers"),
    options: z.record(z.string(), z.unknown()).optional().describe("what this model can be told; see the model"),
    driver: z.string().nullable().optional().describe('driver bound at boot; default "vfio-pci", null for none'),
    resetMethods: z
      .array(z.enum(["device_specific", "acpi", "flr", "af_flr", "pm", "bus", "cxl_bus"]))
      .optional()
      .describe("as written to the device's reset_method; default: what the function supports"),
  })
  .describe("a function of one of the device models");

export type DeviceNode = z.infer<typeof deviceNode>;
export interface RootPortNode {
  type: "root-port";
  slot?: string | undefined;
  acs?: z.infer<typeof acs> | undefined;
  children: TopologyNode[];
}
export interface SwitchNode {
  type: "switch";
  slot?: string | undefined;
  ports: { slot?: string | undefined; acs?: z.infer<typeof acs> | undefined; children: TopologyNode[] }[];
}
export type TopologyNode = DeviceNode | RootPortNode | SwitchNode;

const node: z.ZodType<TopologyNode> = z.lazy(() => z.discriminatedUnion("type", [deviceNode, rootPortNode, switchNode]));
const children = z.array(node).describe("what is on the bus below");
const rootPortNode = z
  .strictObject({ type: z.literal("root-port"), slot: slot.optional(), acs: acs.optional(), children })
  .describe("a PCIe root port");
const switchNode = z
  .strictObject({
    type: z.literal("switch"),
    slot: slot.optional(),
    ports: z.array(z.strictObject({ slot: slot.optional(), acs: acs.optional(), children })).min(1),
  })
  .describe("a PCIe switch: one upstream port, and its downstream ports");

const iommu = z
  .strictObject({
    kind: z.enum(["intel-legacy", "intel-scalable", "intel-first-stage", "amd"]).describe("the unit and the page tables its driver writes"),
    addressWidth: z
      .union([z.literal(39), z.literal(48), z.literal(57), z.literal(64)])
      .exactOptional()
      .describe("bits of an IOVA; default 48"),
    snoopControl: z.boolean().exactOptional().describe("DMA can be forced to snoop the caches; default false"),
    coherentWalk: z.boolean().exactOptional().describe("the table walker snoops the caches; default false"),
    pages2m: z.boolean().exactOptional().describe("2 MiB leaves; default true"),
    pages1g: z.boolean().exactOptional().describe("1 GiB leaves; default true"),
    dirtyTracking: z.boolean().exactOptional().describe("the unit records which pages DMA wrote; default false"),
    nesting: z.boolean().exactOptional().describe("domains can be parents of nested ones; default false"),
    pasid: z.boolean().exactOptional().describe("requests may carry PASIDs; default false"),
    interruptRemapping: z.boolean().exactOptional().describe("interrupts are isolated per device; default true"),
    cachingMode: z.boolean().exactOptional().describe("VT-d caching mode, as a hypervisor's unit has it; default false"),
  })
  .describe("the unit that translates DMA");

export const MODULES = ["iommufd", "vfio-pci", "udmabuf", "system-heap"] as const;

export const machineSchema = z
  .strictObject({
    $schema: z.string().optional(),
    name: z.string().min(1).describe("what messages call it"),
    description: z.string().optional(),
    memory: sizeSchema.optional().describe("RAM; default 1 GiB"),
    iommu: iommu.nullable().describe("null: the machine has none"),
    modules: z.array(z.enum(MODULES)).optional().describe("kernel modules loaded at boot; default all"),
    interconnect: z
      .enum(["linux-7.3", "negotiated"])
      .optional()
      .describe("how buffers are shared: as Linux 7.3 does it (default), or by negotiation (docs/negotiation.md)"),
    pci: z.strictObject({
      peerToPeerHostBridge: z.boolean().optional().describe("the processor routes peer traffic between root ports; default false"),
      children: children.describe("what is on the root bus"),
    }),
  })
  .describe("A machine for barlink's kernel");

/** A validated description. */
export type MachineDescription = z.infer<typeof machineSchema>;

/** A description that cannot be: each problem with the path of its field and what to write instead. */
export class MachineError extends Error {
  readonly problems: readonly string[];
  constructor(source: string, problems: readonly string[]) {
    super(`${source} is not a machine description:\n${problems.map((p) => `  ${p}`).join("\n")}`);
    this.name = "MachineError";
    this.problems = problems;
  }
}

/** A description is read once: a validator that is compiled for it first would take longer. */
export const ONCE = { jitless: true } as const;

/** Validates what JSON.parse gave. Throws `MachineError`; `source` is what it calls the input. */
export function parseMachine(value: unknown, source = "the description"): MachineDescription {
  const r = machineSchema.safeParse(value, ONCE);
  if (r.success) return r.data;
  throw new MachineError(source, r.error.issues.map(describeIssue));
}

function describeIssue(issue: z.core.$ZodIssue): string {
  const at = issue.path.length === 0 ? "(top)" : pathOf(issue.path);
  if (issue.code === "unrecognized_keys") {
    return `${at}: unknown field ${issue.keys.map((k) => `"${k}"`).join(", ")}: remove it or mend its spelling`;
  }
  if (issue.code === "invalid_union" && issue.errors.length > 0) {
    const first = issue.errors[0]?.[0];
    return first === undefined ? `${at}: ${issue.message}` : `${at}: ${first.message}`;
  }
  return `${at}: ${issue.message}`;
}

/** `pci.children[0].options`, as one would write it in a program. */
export function pathOf(path: readonly PropertyKey[]): string {
  return path.map((k, i) => (typeof k === "number" ? `[${k}]` : i === 0 ? String(k) : `.${String(k)}`)).join("");
}

/** The JSON Schema of `machines/machine.schema.json`. */
export function machineJsonSchema(): object {
  return z.toJSONSchema(machineSchema, { io: "input" });
}
