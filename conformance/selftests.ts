/**
 * The kernel's own selftests: those of iommufd case by case against Linux
 * (`iommu.ts`), and those of VFIO, of which is shown that each reaches its last
 * test and says its totals.
 */
import * as iommu from "./iommu.ts";
import { complete, count, runSelftest } from "./selftest_run.ts";

const NVME = "0000:03:00.0";
const VFIO: readonly string[] = ["vfio_dma_mapping_test", "vfio_dma_mapping_mmio_test", "vfio_iommufd_setup_test", "vfio_pci_device_test"];

export async function run(args: readonly string[]): Promise<number> {
  let status = await iommu.run(args);
  for (const name of VFIO) {
    const r = await runSelftest(name, [NVME]);
    if (!complete(name, r)) {
      status = 1;
      continue;
    }
    const [pass, fail, skip] = (["pass", "fail", "skip"] as const).map((c) => count(r, c));
    process.stdout.write(`${name.padEnd(28)} ${pass} pass, ${fail} fail, ${skip} skip of ${r.planned}, ${r.secondsInAll.toFixed(1)} s\n`);
  }
  return status;
}
