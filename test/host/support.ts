/** Programs that tests start and end, and what must not be left of them. */
import { spawnSync } from "node:child_process";
import { afterEach, beforeEach, expect, vi } from "vitest";
import {
  AT_FDCWD,
  arch,
  BpfAssembler,
  kill,
  type Listener,
  type Notification,
  nr,
  openAt,
  POLLHUP,
  POLLIN,
  PollSet,
  readFds,
  readLinkAt,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_USER_NOTIF,
  type SpawnedProgram,
  type SpawnOptions,
  spawnProgram,
  waitPid,
} from "../../src/host/index.ts";
import { Errno } from "../../src/lib/errno.ts";

type Started = SpawnedProgram & { readonly ended: Promise<void> };
const started: Started[] = [];

/** A program that the test may leave running: it is killed after it. */
export function start(options: SpawnOptions): Started {
  const program = spawnProgram(options);
  started.push(program);
  return program;
}

/** The value of a call that must succeed. */
export function ok<T>(value: T | Errno): T {
  if (value instanceof Errno) throw new Error(`failed with ${value.name}`);
  return value;
}

/** The name of the failure of a call that must fail. */
export function failure(value: unknown): string {
  if (!(value instanceof Errno)) throw new Error(`did not fail: ${String(value)}`);
  return value.name;
}

/** Traps the calls that are named, of any architecture that is ours. */
export function trapping(...names: string[]): Uint8Array {
  const asm = new BpfAssembler().loadArch().if("eq", arch.audit, undefined, "allow").loadNr();
  for (const name of names) asm.if("eq", nr(name), "trap");
  return asm.ret(SECCOMP_RET_ALLOW).label("trap").ret(SECCOMP_RET_USER_NOTIF).label("allow").ret(SECCOMP_RET_ALLOW).assemble();
}

const PATIENCE_NS = 10_000_000_000n;

/** Serves until nobody is bound by the filter. Calls of this process's own thread go on, as they must. */
export function serve(listener: Listener, answer: (call: Notification) => void): number {
  const set = new PollSet([{ fd: listener.fd, events: POLLIN }]);
  for (let count = 0; ; ) {
    if (set.wait(PATIENCE_NS) === 0) throw new Error("the target made no call, and did not end");
    const ready = set.revents(0);
    if ((ready & POLLIN) !== 0) {
      const call = listener.recv();
      if (call instanceof Errno) continue;
      count++;
      answer(call);
    } else if ((ready & POLLHUP) !== 0) return count;
  }
}

export function open(path: string, flags = 0): number {
  return ok(openAt(AT_FDCWD, path, flags));
}

/** The interpreter itself: what is called python3 may be a script that makes calls of its own. */
export const interpreter = spawnSync("python3", ["-c", "import sys; print(sys.executable)"]).stdout.toString().trim();

/** A small Python program, its output in the pipe whose end is given. */
export function python(code: string, out: number, options: Partial<SpawnOptions> = {}): SpawnOptions {
  return {
    program: interpreter,
    argv: ["python3", "-c", code],
    fds: [
      [0, 0],
      [1, out],
      [2, 2],
    ],
    ...options,
  };
}

/** What is behind each descriptor of this process. */
function descriptors(): Set<string> {
  const found = new Set<string>();
  for (const fd of readFds("self") ?? []) {
    const link = readLinkAt(AT_FDCWD, `/proc/self/fd/${fd}`);
    if (!(link instanceof Errno)) found.add(`${fd}: ${link}`);
  }
  return found;
}

/** Registers the checks: every program ended, no descriptor left. */
export function leavesNothing(): void {
  let before = new Set<string>();
  beforeEach(() => {
    before = descriptors();
  });
  afterEach(async () => {
    for (const program of started.splice(0)) {
      await program.ended;
      if (waitPid(program.pid) === undefined) {
        kill(program.pid, 9);
        waitPid(program.pid, { block: true });
      }
    }
    // Other tests run in other threads of this process: what they have, they have for a while only.
    await vi.waitFor(() => expect([...descriptors()].filter((d) => !before.has(d))).toEqual([]), { timeout: 5000, interval: 20 });
  });
}
