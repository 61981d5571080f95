/**
 * From the description's tree to the PCI subsystem's.
 *
 * Made once per description and kept: the PCI layer plans each topology object
 * once, so booting the same description again costs only the objects.
 */
import { type PciNode, type PciPortNode, type PciTopology, planTopology } from "../kernel/pci/topology.ts";
import { type ModelFactory, type ModelRegistry, modelFactory } from "./models.ts";
import {
  type DeviceNode,
  type MachineDescription,
  MachineError,
  pathOf,
  type RootPortNode,
  type SwitchNode,
  type TopologyNode,
} from "./schema.ts";

type Path = readonly (string | number)[];

/** What booting does to a function after it is found. */
export interface FunctionPlan {
  readonly node: DeviceNode;
  readonly path: Path;
  /** Tells which function of the planned topology this node became. */
  readonly model: ModelFactory;
}

export interface MachinePlan {
  readonly topology: PciTopology;
  /** By address: one for each `type: "device"` node. */
  readonly functions: ReadonlyMap<string, FunctionPlan>;
}

interface Place {
  device?: number;
  function?: number;
}

function placeOf(slot: string | undefined): Place {
  if (slot === undefined) return {};
  const [device = "0", fn = "0"] = slot.split(".");
  return { device: Number.parseInt(device, 16), function: Number(fn) };
}

class Translator {
  readonly functions: FunctionPlan[] = [];
  readonly problems: string[] = [];
  readonly #models: ModelRegistry;

  constructor(models: ModelRegistry) {
    this.#models = models;
  }

  nodes(list: readonly TopologyNode[], path: Path): PciNode[] {
    this.#checkSlots(list, path);
    return list.flatMap((n, i) => {
      const made = this.#node(n, [...path, i]);
      return made === undefined ? [] : [made];
    });
  }

  /** Two functions of one bus cannot have the same place. */
  #checkSlots(list: readonly { readonly slot?: string | undefined }[], path: Path): void {
    const taken = new Map<string, Path>();
    list.forEach(({ slot }, i) => {
      if (slot === undefined) return;
      const other = taken.get(slot);
      if (other === undefined) taken.set(slot, [...path, i]);
      else this.problems.push(`${pathOf([...path, i, "slot"])}: ${slot} is taken by ${pathOf(other)}: give another, or leave it out`);
    });
  }

  #node(node: TopologyNode, path: Path): PciNode | undefined {
    switch (node.type) {
      case "device":
        return this.#device(node, path);
      case "root-port":
        return this.#port("root-port", node, path);
      case "switch":
        return this.#switch(node, path);
    }
  }

  #device(node: DeviceNode, path: Path): PciNode | undefined {
    const found = modelFactory(this.#models, node, path, this.problems);
    if (found === undefined) return undefined;
    // A function of its own for each node, so that two equal nodes can be told apart.
    const model: ModelFactory = () => found();
    this.functions.push({ node, path, model });
    return { kind: "function", ...placeOf(node.slot), model };
  }

  #port(kind: "root-port" | "downstream-port", node: Pick<RootPortNode, "slot" | "acs" | "children">, path: Path): PciPortNode {
    return {
      kind,
      ...placeOf(node.slot),
      ...(node.acs === undefined ? {} : { acs: node.acs }),
      children: this.nodes(node.children, [...path, "children"]),
    };
  }

  #switch(node: SwitchNode, path: Path): PciPortNode {
    this.#checkSlots(node.ports, [...path, "ports"]);
    const children = node.ports.map((p, i) => this.#port("downstream-port", p, [...path, "ports", i]));
    return { kind: "upstream-port", ...placeOf(node.slot), children };
  }
}

const plans: WeakMap<MachineDescription, MachinePlan> = new WeakMap();

/** Throws `MachineError` for a model or an option that does not exist. */
export function planMachine(machine: MachineDescription, models: ModelRegistry): MachinePlan {
  const known = plans.get(machine);
  if (known !== undefined) return known;
  const t = new Translator(models);
  const root = t.nodes(machine.pci.children, ["pci", "children"]);
  if (t.problems.length > 0) throw new MachineError(machine.name, t.problems);
  const topology: PciTopology = { root, cpuSupportsP2pdma: machine.pci.peerToPeerHostBridge === true, enableAcs: machine.iommu !== null };
  const plan: MachinePlan = { topology, functions: byAddress(machine, topology, t.functions) };
  plans.set(machine, plan);
  return plan;
}

function byAddress(machine: MachineDescription, topology: PciTopology, functions: readonly FunctionPlan[]): Map<string, FunctionPlan> {
  const byModel = new Map(functions.map((f) => [f.model, f]));
  const out = new Map<string, FunctionPlan>();
  try {
    for (const { name, makeModel } of planTopology(topology).functions) {
      const f = makeModel === undefined ? undefined : byModel.get(makeModel);
      if (f !== undefined) out.set(name, f);
    }
  } catch (e) {
    if (e instanceof RangeError) throw new MachineError(machine.name, [`pci: ${e.message}`]);
    throw e;
  }
  return out;
}
