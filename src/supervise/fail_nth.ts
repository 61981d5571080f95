/**
 * /proc/PID/fail-nth and /proc/PID/make-it-fail, of any thread of the program,
 * as a kernel with fault injection has them: with the selftest only.
 *
 * The calls of a thread are served by one task, and that task's counter is the
 * thread's. Reads of other files are rarely trapped when they are long; here
 * they are, so that what is read is what the counter says at that moment.
 *
 * Source: fs/proc/base.c.
 */
import { statAt } from "../host/index.ts";
import { openTaskFault, type TaskFaultFile } from "../kernel/fs/fail_nth.ts";
import { ENOENT, Errno } from "../lib/errno.ts";
import type { Step, Task } from "../sched/task.ts";
import { O_DIRECTORY, O_PATH } from "../uapi/fcntl.ts";
import { Call } from "./call.ts";
import * as sys from "./numbers.ts";
import type { Core } from "./supervisor.ts";
import { answer, type Handler, type Outcome, type TrappedCall, type When } from "./types.ts";

const AT_FDCWD = -100;
const PATH = /^\/+proc\/+(self|thread-self|\d+)(?:\/+task\/+(\d+))?\/+(fail-nth|make-it-fail)$/;

/** Longest read or write of these files that is served, past what any tool asks for; a longer one would meet an empty file. */
const LONGEST = 1 << 20;

export function registerFailNth(core: Core): void {
  const opens: [nr: number, path: number, flags: number][] = [
    [sys.SYS_open, 0, 1],
    [sys.SYS_openat, 1, 2],
  ];
  for (const [nr, path, flags] of opens) {
    const handler: Handler = (call) => open(core, call, call.path(path), call.int(flags));
    handler.concerns = (call) => {
      const p = call.path(path);
      return typeof p === "string" && PATH.test(p);
    };
    core.handle(nr, handler);
  }
  const short: When = { kind: "at-most", arg: 2, most: LONGEST };
  const transfer = (nr: number, body: (call: TrappedCall) => Step<number | Errno>): void => {
    const handler: Handler = function* (call): Step<Outcome> {
      return answer(yield* body(call));
    };
    handler.concerns = (call) => call instanceof Call && core.concernsFile(call);
    core.handle(nr, handler, short);
  };
  transfer(sys.SYS_read, (c) => c.process.sys.read(c.int(0), c.args[1] as bigint, Number(c.args[2])));
  transfer(sys.SYS_write, (c) => c.process.sys.write(c.int(0), c.args[1] as bigint, Number(c.args[2])));
  transfer(sys.SYS_pread64, (c) =>
    c.process.sys.pread(c.int(0), c.args[1] as bigint, Number(c.args[2]), BigInt.asIntN(64, c.args[3] as bigint)),
  );
  transfer(sys.SYS_pwrite64, (c) =>
    c.process.sys.pwrite(c.int(0), c.args[1] as bigint, Number(c.args[2]), BigInt.asIntN(64, c.args[3] as bigint)),
  );
}

function* open(core: Core, call: TrappedCall, path: string | Errno, flags: number): Step<Outcome | undefined> {
  if (path instanceof Errno || (flags & (O_PATH | O_DIRECTORY)) !== 0) return undefined;
  const m = PATH.exec(path);
  if (m === null || !call.valid()) return undefined;
  const task = taskOf(core, call, m[1] as string, m[2]);
  // A process that is not the program's is none of ours to fail.
  if (task === undefined) return answer(ENOENT);
  const file = openTaskFault(core.kernel, m[3] as TaskFaultFile, task, flags, path);
  return file instanceof Errno ? answer(file) : { kind: "file", file, flags };
}

/** The thread of the program that a path names: a process's leader, or the one of that number. */
function taskOf(core: Core, call: TrappedCall, who: string, tid: string | undefined): Task | undefined {
  const pid = who === "self" || who === "thread-self" ? call.pid : Number(who);
  const number = tid !== undefined ? Number(tid) : who === "thread-self" ? call.tid : pid;
  // Whoever is asked for by number is met, so it must be one of the program's.
  if (core.process(pid) === undefined || statAt(AT_FDCWD, `/proc/${pid}/task/${number}`) instanceof Errno) return undefined;
  return core.registry.thread(number)?.task;
}
