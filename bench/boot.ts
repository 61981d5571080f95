/** What it costs to boot a machine, and to run the shortest useful program on it. */
import { do_not_optimize, measure } from "mitata";
import { EmbeddedHost, readMachine } from "../src/client/index.ts";
import { boot } from "../src/machine/boot.ts";

const us = (ns: number): string => `${(ns / 1000).toFixed(1).padStart(9)} µs`;

export async function run(): Promise<void> {
  // The reference: making as many plain objects as a small machine has parts.
  const reference = await measure(() => do_not_optimize(Array.from({ length: 1000 }, (_, i) => ({ i, next: undefined }))), {});
  process.stdout.write(`${"reference: 1,000 plain objects".padEnd(44)}${us(reference.p50)}\n`);
  for (const name of ["default", "oracle"]) {
    const machine = readMachine(name);
    const booted = await measure(() => do_not_optimize(boot(machine)), {});
    process.stdout.write(
      `${`boot "${name}"`.padEnd(44)}${us(booted.p50)}  p99 ${us(booted.p99)}  ×${(booted.p50 / reference.p50).toFixed(1)} of the reference\n`,
    );
    const tried = await measure(() => {
      const host = EmbeddedHost.boot(machine);
      const iommufd = host.openIommufd();
      iommufd.allocIoas();
      do_not_optimize(host.shutdown());
    }, {});
    process.stdout.write(`${`boot "${name}", open, IOAS_ALLOC, exit`.padEnd(44)}${us(tried.p50)}  p99 ${us(tried.p99)}\n`);
  }
}
