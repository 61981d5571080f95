/**
 * `barlink run`, on the command's thread, which loads next to nothing: gives the supervising thread its order, passes
 * signals on, and ends as the program does.
 *
 * The program is in our process group and on our terminal, so what the terminal
 * sends (^C, ^\) reaches it without us, and must not end us before it. A signal
 * that somebody sends to us alone is meant for the program, and is passed on.
 */
import { readFileSync } from "node:fs";
import { endLike } from "./exit.ts";
import { findProgram, LaunchError } from "./launch.ts";
import type { RunOrder } from "./messages.ts";
import type { RunThreads } from "./run_threads.ts";
import { Watchdog } from "./watchdog.ts";

export interface RunOptions {
  /** A file, or the name of a description that comes with barlink. */
  readonly machine: string;
  readonly traceFile?: string | undefined;
  readonly strace: boolean;
  readonly selftest: boolean;
  /** BARs that are not plain memory can be mapped, as on Linux. */
  readonly registerMaps: boolean;
  readonly debug: boolean;
}

const PASSED_ON: readonly NodeJS.Signals[] = ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH", "SIGIO"];
const FROM_TERMINAL: readonly NodeJS.Signals[] = ["SIGINT", "SIGQUIT"];

const say = (message: string): void => void process.stderr.write(`barlink: ${message}\n`);

/** Runs the program to its end on `threads`; this process ends with it. */
export async function run(threads: RunThreads, command: string, args: readonly string[], options: RunOptions): Promise<void> {
  const signals = new SignalRelay();
  let launch: ReturnType<typeof findProgram>;
  let watchdog: Watchdog;
  try {
    launch = findProgram(command, args, process.cwd(), process.env.PATH);
    for (const w of launch.warnings) say(w);
    watchdog = startWatchdog();
  } catch (e) {
    await threads.abandon();
    if (!(e instanceof LaunchError)) throw e;
    say(e.message);
    process.exit(e.status);
  }
  const { directory } = watchdog;
  const order: RunOrder = { ...options, traceFile: options.traceFile, file: launch.file, argv: launch.argv, directory };
  const message = await threads.supervise(order, (pid) => signals.to(pid));
  await watchdog.dismiss();
  signals.stop();
  if (message.kind === "refused") {
    say(message.message);
    process.exit(message.status);
  }
  endLike(message);
}

/** The watchdog, with the private folder that it watches over. Throws `LaunchError`. */
function startWatchdog(): Watchdog {
  try {
    return new Watchdog();
  } catch (e) {
    const why = e instanceof Error ? e.message : String(e);
    throw new LaunchError(1, `cannot make a private folder: ${why}; set TMPDIR to a folder that can be written`);
  }
}

/** Signals to us, for the program. Those that come before it runs are kept. */
class SignalRelay {
  #pid: number | undefined = undefined;
  readonly #kept: NodeJS.Signals[] = [];
  readonly #listeners: [NodeJS.Signals, () => void][] = [];

  constructor() {
    for (const name of PASSED_ON) this.#listen(name, () => this.#pass(name));
    for (const name of FROM_TERMINAL) {
      this.#listen(name, () => {
        if (!isForeground()) this.#pass(name);
      });
    }
  }

  to(pid: number): void {
    this.#pid = pid;
    for (const name of this.#kept.splice(0)) this.#pass(name);
  }

  stop(): void {
    for (const [name, l] of this.#listeners) process.removeListener(name, l);
  }

  #listen(name: NodeJS.Signals, listener: () => void): void {
    this.#listeners.push([name, listener]);
    process.on(name, listener);
  }

  #pass(name: NodeJS.Signals): void {
    if (this.#pid === undefined) {
      this.#kept.push(name);
      return;
    }
    try {
      process.kill(this.#pid, name);
    } catch {
      // It has ended meanwhile.
    }
  }
}

/** Our process group is the terminal's foreground: ^C there reached the program as well. */
function isForeground(): boolean {
  try {
    const stat = readFileSync("/proc/self/stat", "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [, , pgrp, , , tpgid] = fields;
    return tpgid === pgrp;
  } catch {
    return false;
  }
}
