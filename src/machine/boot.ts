/**
 * Boots a machine: from a description to a kernel with its modules loaded and
 * its devices bound.
 *
 * Everything that depends on the description alone is computed at its first
 * boot and shared by all later ones; a boot itself only makes objects. It is
 * cheap enough to be done again for every schedule that an explorer tries.
 */
import { systemHeapInit } from "../kernel/dma_buf/system_heap.ts";
import { udmabufInit } from "../kernel/dma_buf/udmabuf.ts";
import { iommufdInit } from "../kernel/iommufd/main.ts";
import { iommufdSelftestInit } from "../kernel/iommufd/selftest.ts";
import { Kernel } from "../kernel/kernel.ts";
import type { PciDev } from "../kernel/pci/pci_dev.ts";
import { type VfioPciParams, vfioInit, vfioPciInit } from "../kernel/vfio/pci/vfio_pci.ts";
import { physAddr } from "../lib/addr.ts";
import { Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import { builtinModels, type ModelRegistry } from "./models.ts";
import { type MachineDescription, MachineError, MODULES, parseSize, pathOf } from "./schema.ts";
import { type FunctionPlan, type MachinePlan, planMachine } from "./topology.ts";

export interface BootOptions {
  /** Models beside barlink's own, by the name that a description calls them. */
  readonly models?: ModelRegistry;
  /** A kernel built for its own tests: IOMMU_TEST_CMD is there. Default: it is not. */
  readonly selftest?: boolean;
  /** Called with the kernel before anything is built on it: to listen from the first event on. */
  readonly onKernel?: (kernel: Kernel) => void;
  /** Parameters of the module vfio-pci. */
  readonly vfioPci?: VfioPciParams;
}

/** RAM below this address; the rest goes above 4 GiB, past the window of 32-bit BARs. */
const LOW_RAM_BASE = 0x10_0000n;
const LOW_RAM_LIMIT = 0x8000_0000n;
const HIGH_RAM_BASE = 0x1_0000_0000n;
const DEFAULT_MEMORY = 1n << 30n;
const DEFAULT_DRIVER = "vfio-pci";

/** Throws `MachineError` when the description asks for what cannot be. */
export function boot(machine: MachineDescription, options: BootOptions = {}): Kernel {
  const plan = planMachine(machine, options.models ?? builtinModels);
  const kernel = new Kernel(machine.interconnect);
  options.onKernel?.(kernel);
  addMemory(kernel, machine.memory === undefined ? DEFAULT_MEMORY : parseSize(machine.memory));
  if (machine.iommu !== null) kernel.iommu.addUnit(machine.iommu);
  kernel.pci.build(plan.topology);
  loadModules(kernel, machine, options);
  const thread = kernel.sched.thread("boot");
  kernel.sched.execute(thread, bindDrivers(kernel, machine, plan));
  return kernel;
}

function addMemory(kernel: Kernel, size: bigint): void {
  const low = size < LOW_RAM_LIMIT ? size : LOW_RAM_LIMIT;
  kernel.phys.addRam(physAddr(LOW_RAM_BASE), low - LOW_RAM_BASE);
  if (size > low) kernel.phys.addRam(physAddr(HIGH_RAM_BASE), size - low);
}

function loadModules(kernel: Kernel, machine: MachineDescription, options: BootOptions): void {
  const modules = new Set<string>(machine.modules ?? MODULES);
  if (modules.has("udmabuf")) udmabufInit(kernel);
  if (modules.has("system-heap")) systemHeapInit(kernel);
  if (modules.has("iommufd")) iommufdInit(kernel);
  if (modules.has("iommufd") && options.selftest === true) iommufdSelftestInit(kernel);
  if (modules.has("vfio-pci")) {
    vfioInit(kernel);
    vfioPciInit(kernel, { enableSriov: true, ...options.vfioPci });
  }
}

function* bindDrivers(kernel: Kernel, machine: MachineDescription, plan: MachinePlan): Step<void> {
  for (const [address, f] of plan.functions) {
    const dev = kernel.pci.devices.get(address);
    if (dev !== undefined) yield* bindDriver(kernel, machine, dev, f);
  }
}

function* bindDriver(kernel: Kernel, machine: MachineDescription, dev: PciDev, { node, path }: FunctionPlan): Step<void> {
  if (node.resetMethods !== undefined) dev.resetMethods = node.resetMethods;
  const name = node.driver === undefined ? defaultDriver(kernel) : node.driver;
  if (name === null) return;
  if (kernel.pci.driver(name) === undefined) {
    throw new MachineError(machine.name, [
      `${pathOf([...path, "driver"])}: no driver "${name}" here: use "${DEFAULT_DRIVER}", or null for none`,
    ]);
  }
  dev.driverOverride = name;
  const r = yield* kernel.pci.bind(name, dev.name);
  // Behind no IOMMU vfio-pci refuses every device; only a driver that was asked for by name must bind.
  if (r instanceof Errno && node.driver !== undefined) {
    throw new MachineError(machine.name, [`${pathOf([...path, "driver"])}: ${name} does not bind to ${dev.name}: ${r.name}, ${r.meaning}`]);
  }
}

const defaultDriver = (kernel: Kernel): string | null => (kernel.pci.driver(DEFAULT_DRIVER) === undefined ? null : DEFAULT_DRIVER);
