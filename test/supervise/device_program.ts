/** The C program `device.c`, built, and run under `barlink run` on the oracle's machine. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import * as V from "../../src/uapi/vfio.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const NUMBERS = {
  V_BIND_IOMMUFD: V.VFIO_DEVICE_BIND_IOMMUFD,
  V_GET_REGION_INFO: V.VFIO_DEVICE_GET_REGION_INFO,
  V_RESET: V.VFIO_DEVICE_RESET,
  V_SET_IRQS: V.VFIO_DEVICE_SET_IRQS,
  V_IOEVENTFD: V.VFIO_DEVICE_IOEVENTFD,
};

export class DeviceProgram {
  /** False without a C compiler. */
  readonly built: boolean;
  readonly #folder: string = mkdtempSync(join(tmpdir(), "barlink-test-"));
  readonly #path: string = join(this.#folder, "device");

  constructor() {
    const defines = Object.entries(NUMBERS).map(([name, n]) => `-D${name}=${n}ul`);
    const source = fileURLToPath(new URL("device.c", import.meta.url));
    let built = true;
    try {
      execFileSync("cc", ["-O1", "-w", ...defines, "-o", this.#path, source], { stdio: "ignore" });
    } catch {
      built = false;
    }
    this.built = built;
  }

  /** What it prints, when it and the embedded kernel end as they should. */
  output(args: readonly string[], options: readonly string[] = []): string {
    const barlink = ["--import", "tsx", "src/cli/main.ts", "run", "--debug", "--machine", "machines/oracle.json", ...options];
    const r = spawnSync(process.execPath, [...barlink, "--", this.#path, ...args], { cwd: root, encoding: "utf8", timeout: 110_000 });
    expect(r.stderr).toContain("nothing is left in the embedded kernel");
    expect(r.status).toBe(0);
    return r.stdout;
  }

  /** The same, line by line: what stands before the colon, and after it. */
  lines(args: readonly string[], options: readonly string[] = []): Record<string, string> {
    const lines = this.output(args, options).trimEnd().split("\n");
    return Object.fromEntries(lines.map((l) => [l.slice(0, l.indexOf(": ")), l.slice(l.indexOf(": ") + 2)]));
  }

  remove(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
