/** The command line: each verb is a module of its own, loaded when it is called. */
import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import type { RunThreads } from "../supervise/run_threads.ts";
import type { ExploreCommand } from "./explore.ts";
import type { RunCommand } from "./run.ts";

/** Runs the verb of this process's arguments. `threads`: those of `run`, when they were started already. */
export async function main(threads: RunThreads | undefined): Promise<void> {
  const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };

  const program = new Command("barlink")
    .description("VFIO, iommufd and dma-buf peer-to-peer memory, as Linux does it, with no IOMMU, no device and no root")
    .version(version)
    .showHelpAfterError("(barlink --help lists the commands)")
    .enablePositionalOptions()
    .exitOverride();

  program
    .command("tour")
    .description("export a BAR, map it over the private interconnect, DMA into it, reset it, and see it revoked")
    .option("--machine <file>", "machine description to boot (JSON)")
    .option("--trace", "print every event of the kernel as it happens")
    .action(async (options: { machine?: string; trace?: boolean }) => {
      const { tour } = await import("./tour.ts");
      process.exitCode = tour(options);
    });

  program
    .command("doctor")
    .description("say what this machine allows, with reasons and remedies")
    .action(async () => {
      const { doctor } = await import("./doctor.ts");
      process.exitCode = await doctor();
    });

  program
    .command("run")
    .description("run a program for which the machine's /dev/iommu, /dev/vfio and PCI devices exist")
    .usage("[options] -- PROGRAM [ARGS...]")
    .option("--machine <file>", "machine description (JSON), or the name of one that comes with barlink")
    .option("--trace <file>", "write what the kernel does to a file that Perfetto opens")
    .option("--strace", "print each served call on standard error")
    .option("--selftest", "add the kernel's self-test ioctls")
    .option("--no-register-maps", "let only memory be mapped: registers are then read and written by calls, which is exact")
    .option("--debug", "check barlink itself, and say more when it fails")
    .argument("<program>", "what to run: a path, or a name to be looked for in PATH")
    .argument("[args...]", "its arguments")
    .passThroughOptions()
    .action(async (name: string, args: string[], options: RunCommand) => {
      const { runProgram } = await import("./run.ts");
      const { RunThreads } = await import("../supervise/run_threads.ts");
      await runProgram(threads ?? new RunThreads(), name, args, options);
    });

  program
    .command("explore")
    .description("take a scenario of the kernel's own code through every schedule that matters; without a name, list the scenarios")
    .option("--strategy <name>", "optimal (each trace once), all (every interleaving), pct or random", "optimal")
    .option("--preemptions <n>", "with all: how often a thread that could go on may be stopped")
    .option("--runs <n>", "with pct and random: how many runs", "1000")
    .option("--seed <n>", "with pct and random: what they draw from", "1")
    .option("--depth <n>", "with pct: ordered events that the bug needs", "3")
    .option("--trace <file>", "write the run that went wrong to a file that Perfetto opens")
    .option("--jobs <n>", "with optimal: divide the search among so many threads")
    .option("--campaign <file>", "write down what is explored, and go on from there when the file exists")
    .option("--queue <url>", "leave the exploring to `barlink worker`s at a Redis or Valkey server: redis://HOST:PORT")
    .option("--parts <n>", "parts to divide the search into at first", "32")
    .option("--part-runs <n>", "runs after which a part is divided further", "1000")
    .argument("[scenario]", "its name")
    .action(async (name: string | undefined, options: ExploreCommand) => {
      const { explore, listScenarios } = await import("./explore.ts");
      if (name === undefined) listScenarios();
      else if (options.jobs !== undefined || options.campaign !== undefined || options.queue !== undefined) {
        const { exploreCampaign } = await import("./explore_campaign.ts");
        process.exitCode = await exploreCampaign(name, options, version);
      } else process.exitCode = explore(name, options);
    });

  program
    .command("worker")
    .description("explore parts of searches for `barlink explore --queue`, here or on other machines, until it is ended with Ctrl-C")
    .requiredOption("--queue <url>", "the Redis or Valkey server: redis://HOST:PORT")
    .option("--jobs <n>", "threads; by default as many as there are processors")
    .action(async (options: { queue: string; jobs?: string }) => {
      const { work } = await import("./explore_work.ts");
      process.exitCode = await work(options, version);
    });

  program
    .command("replay")
    .description("run one schedule again, as explore has printed it, and show it step by step")
    .option("--trace <file>", "write the run to a file that Perfetto opens")
    .argument("<schedule>", "scenario:steps, as in map-vs-revoke:a2b4a")
    .action(async (schedule: string, { trace }: { trace?: string }) => {
      const { replaySchedule } = await import("./explore.ts");
      process.exitCode = replaySchedule(schedule, trace);
    });

  const machine = program.command("machine").description("machine descriptions");
  machine
    .command("check")
    .description("validate a description, boot it, and list what is in it")
    .argument("<file>", "machine description (JSON), or the name of one that comes with barlink")
    .action(async (file: string) => {
      const { checkMachine } = await import("./machine.ts");
      process.exitCode = checkMachine(file);
    });
  machine
    .command("schema")
    .description("print the JSON Schema of machine descriptions")
    .action(async () => {
      const { printSchema } = await import("./machine.ts");
      printSchema();
    });

  try {
    await program.parseAsync();
  } catch (e) {
    if (e instanceof CommanderError) process.exitCode = e.exitCode === 0 ? 0 : 2;
    else if (e instanceof Error && (e.name === "MachineError" || e.name === "UsageError")) {
      process.stderr.write(`barlink: ${e.message}\n`);
      process.exitCode = 2;
    } else throw e;
  }
}
