/**
 * The kernel's own selftests of iommufd and VFIO, unmodified, under `barlink run`.
 *
 * What is shown: each starts, reaches its last test, and prints its totals;
 * iommufd's stand beside what Linux 7.3.4 printed. That every case passes is not
 * asked here.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const BIN = join(root, "dist", "selftests", "bin");
/** Long enough for the slowest on a loaded machine, ms. */
const PATIENCE = 300_000;
const NVME = "0000:03:00.0";

const TESTS: readonly { readonly name: string; readonly args: readonly string[]; readonly linux?: string }[] = [
  { name: "iommufd", args: [], linux: "241 pass, 0 fail, 5 skip" },
  { name: "vfio_dma_mapping_test", args: [NVME] },
  { name: "vfio_dma_mapping_mmio_test", args: [NVME] },
  { name: "vfio_iommufd_setup_test", args: [NVME] },
  { name: "vfio_pci_device_test", args: [NVME] },
];

interface Totals {
  readonly planned: number;
  readonly reached: number;
  readonly pass: number;
  readonly fail: number;
  readonly skip: number;
}

/** What a run in the Test Anything Protocol says of itself; undefined when it did not come to its totals. */
export function totalsOf(output: string): Totals | undefined {
  const planned = /^1\.\.(\d+)$/m.exec(output)?.[1];
  const totals = /^# Totals: pass:(\d+) fail:(\d+) xfail:\d+ xpass:\d+ skip:(\d+)/m.exec(output);
  if (planned === undefined || totals === null) return undefined;
  const [pass, fail, skip] = totals.slice(1).map(Number) as [number, number, number];
  return { planned: Number(planned), reached: (output.match(/^(not )?ok \d+/gm) ?? []).length, pass, fail, skip };
}

export function run(args: readonly string[]): number {
  if (!existsSync(join(BIN, "iommufd"))) {
    process.stdout.write("building the kernel's selftests (fetches its source once) …\n");
    const built = spawnSync(join(root, "scripts", "build-selftests"), [...args.filter((a) => !a.startsWith("-"))], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    if (built.status !== 0) return 1;
  }
  let status = 0;
  for (const test of TESTS) {
    const command = [join(root, "dist/cli/main.js"), "run", "--machine", "oracle", "--selftest", "--", join(BIN, test.name), ...test.args];
    const started = performance.now();
    const r = spawnSync(process.execPath, command, { encoding: "utf8", timeout: PATIENCE, killSignal: "SIGKILL" });
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const t = totalsOf(r.stdout);
    if (t === undefined || t.reached < t.planned) {
      status = 1;
      process.stdout.write(
        `${test.name}: did not come to its end (${t?.reached ?? 0} of ${t?.planned ?? "?"} tests)\n${r.stderr.slice(-500)}\n`,
      );
      continue;
    }
    const beside = test.linux === undefined ? "" : `; Linux: ${test.linux}`;
    process.stdout.write(`${test.name.padEnd(28)} ${t.pass} pass, ${t.fail} fail, ${t.skip} skip of ${t.planned}, ${seconds} s${beside}\n`);
  }
  return status;
}
