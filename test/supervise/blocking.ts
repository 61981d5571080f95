/**
 * Runs a program under a supervisor with a call that blocks: getpriority(9001)
 * waits until getpriority(9002), which tells how many it woke. For
 * blocking.test.ts, in a process of its own: it waits for any child.
 */
import { join } from "node:path";
import { readMachine } from "../../src/client/machine_file.ts";
import { setChildSubreaper, startProgram } from "../../src/host/index.ts";
import { boot } from "../../src/machine/boot.ts";
import { WaitQueue } from "../../src/sched/index.ts";
import { compileFilter } from "../../src/supervise/filter.ts";
import { runLoop } from "../../src/supervise/loop.ts";
import { registerAll } from "../../src/supervise/parts.ts";
import { Core } from "../../src/supervise/supervisor.ts";
import { answer } from "../../src/supervise/types.ts";

const SYS_getpriority = 140;
const WAIT = 9001;
const WAKE = 9002;
/** What the woken call returns. */
const WOKEN = 77;

const [program = "", directory = "", ...modes] = process.argv.slice(2);

/** Runs one mode, "name" or "name:argument", to its end, and tells about it in a line. */
function run(mode: string): void {
  const kernel = boot(readMachine(join(import.meta.dirname, "../../machines/default.json")));
  const core = new Core(kernel, { selftest: false, debug: true, directory, warn: (m) => process.stderr.write(`barlink: ${m}\n`) });
  registerAll(core, { strace: false, traceFile: undefined });
  const queue = new WaitQueue(kernel.sched, "test");
  let waiting = 0;
  let waits = 0;
  let generation = 0;
  core.handle(
    SYS_getpriority,
    function* (call) {
      if (call.int(0) === WAKE) {
        const woken = waiting;
        generation++;
        queue.wakeUp();
        return answer(woken);
      }
      waits++;
      waiting++;
      const since = generation;
      const e = yield* queue.waitEventInterruptible(() => generation > since);
      waiting--;
      return answer(e ?? WOKEN);
    },
    { kind: "equals", arg: 0, values: [WAIT, WAKE] },
  );
  const spawn = startProgram({ program, argv: [program, ...mode.split(":")], filter: compileFilter(core.traps) });
  const { end } = runLoop(core, spawn.waitListener(), () => spawn.poll()?.pid);
  const left = core.finish();
  process.stdout.write(
    `${JSON.stringify({ mode, end: end?.kind, status: end?.status, left: [...left], waits, pending: core.pending.size })}\n`,
  );
}

setChildSubreaper(true);
for (const mode of modes) run(mode);
