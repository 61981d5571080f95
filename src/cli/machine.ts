/** `barlink machine check|schema`. */
import { EmbeddedHost, readMachine } from "../client/index.ts";
import { hex } from "../lib/index.ts";
import { machineJsonSchema } from "../machine/schema.ts";

/** Boots the machine and lists what is on it. */
export function checkMachine(nameOrFile: string): number {
  const machine = readMachine(nameOrFile);
  const host = EmbeddedHost.boot(machine);
  const out = process.stdout;
  out.write(`${machine.name}: ${machine.iommu === null ? "no IOMMU" : machine.iommu.kind}\n`);
  for (const [address, dev] of host.kernel.pci.devices) {
    const id = `${dev.vendor.toString(16).padStart(4, "0")}:${dev.device.toString(16).padStart(4, "0")}`;
    const group = dev.iommuGroup === undefined ? "-" : String(dev.iommuGroup.id);
    out.write(`${address}  ${id}  group ${group.padEnd(3)} ${(dev.driver?.name ?? "-").padEnd(10)} ${dev.fn.model.description.name}\n`);
    dev.resources.forEach((r, i) => {
      if (r.length > 0n) out.write(`    BAR ${i}: ${hex(r.start)}, ${hex(r.length)} bytes${r.flags.prefetch ? ", prefetchable" : ""}\n`);
    });
  }
  return 0;
}

export function printSchema(): void {
  process.stdout.write(`${JSON.stringify(machineJsonSchema(), null, 2)}\n`);
}
