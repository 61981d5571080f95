/**
 * What the host layer's calls cost, and what a served call costs with nothing behind it. Each figure is the best of three
 * rounds: the machine does other things too.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  arch,
  BpfAssembler,
  closeFd,
  createHeldMemfd,
  eventfdCreate,
  eventfdSignal,
  FdLinks,
  Inotify,
  kill,
  Listener,
  makePipe,
  must,
  nr,
  POLLHUP,
  POLLIN,
  PollSet,
  prctl,
  preadFd,
  readFd,
  readMaps,
  readMemory,
  readPath,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_USER_NOTIF,
  spawnProgram,
  waitPid,
  writeMemory,
} from "../src/host/index.ts";
import { Errno } from "../src/lib/errno.ts";

const PR_GET_NO_NEW_PRIVS = 39;

function report(what: string, ns: number): void {
  process.stdout.write(`${what.padEnd(52)} ${ns.toFixed(0).padStart(8)} ns\n`);
}

function measure(what: string, calls: number, call: () => unknown): void {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < calls / 10; i++) call();
  for (let round = 0; round < 3; round++) {
    const began = process.hrtime.bigint();
    for (let i = 0; i < calls; i++) call();
    best = Math.min(best, Number(process.hrtime.bigint() - began) / calls);
  }
  report(what, best);
}

function singleCalls(): void {
  const held = must("memfd_create", createHeldMemfd(1234));
  const { pid } = spawnProgram({
    program: "sleep",
    argv: ["sleep", "100"],
    fds: [[5, held]],
  });
  const links = must("open", FdLinks.open(pid));
  const inotify = new Inotify();
  const event = must("eventfd", eventfdCreate());
  const stack = readMaps(pid)?.find((m) => m.path === "[stack]");
  if (stack === undefined) throw new Error("the child has no stack");
  const bytes = new Uint8Array(32);
  const page = new Uint8Array(4096);
  const ready = new PollSet([
    { fd: inotify.fd, events: POLLIN },
    { fd: held, events: POLLIN },
  ]);
  measure("a call that does nothing in the kernel (prctl)", 300_000, () => prctl(PR_GET_NO_NEW_PRIVS));
  measure("pread, 32 bytes of a memfd", 200_000, () => preadFd(held, bytes, 0));
  measure("poll, 2 descriptors, one ready", 200_000, () => ready.wait());
  measure("drain inotify, nothing there", 200_000, () => inotify.drain(() => {}));
  measure("signal an eventfd", 200_000, () => eventfdSignal(event));
  measure("read 32 bytes of another process", 100_000, () => readMemory(pid, stack.end - 64n, bytes));
  measure("write 32 bytes of another process", 100_000, () => writeMemory(pid, stack.end - 64n, bytes));
  measure("read 4096 bytes of another process", 100_000, () => readMemory(pid, stack.end - 4096n, page));
  measure("read a path of another process", 100_000, () => readPath(pid, stack.end - 64n));
  measure("whose memfd is a target's descriptor", 100_000, () => links.heldId(5));
  measure("make a held memfd, and close it", 20_000, () => closeFd(must("memfd_create", createHeldMemfd(7))));
  kill(pid, 9);
  waitPid(pid, { block: true });
  links.close();
  inotify.close();
  for (const fd of [held, event]) closeFd(fd);
}

const ioctlFilter = new BpfAssembler()
  .loadArch()
  .if("eq", arch.audit, undefined, "allow")
  .loadNr()
  .if("eq", nr("ioctl"), undefined, "allow")
  .loadArgLow(1)
  .if("eq", 0x3b85, "trap")
  .label("allow")
  .ret(SECCOMP_RET_ALLOW)
  .label("trap")
  .ret(SECCOMP_RET_USER_NOTIF)
  .assemble();

const CALLS = 50_000;
/** Times each call itself, so that the interpreter's part is small and constant. */
const CALLER = `
import ctypes, time
ioctl = ctypes.CDLL(None).ioctl
clock = time.perf_counter_ns
arg = ctypes.create_string_buffer(64)
times = []
for i in range(${CALLS}):
    t = clock(); ioctl(0, 0x3b85, arg); times.append(clock() - t)
times.sort()
print(times[len(times) // 2], times[len(times) * 99 // 100])
`;

function roundTrips(): void {
  const dir = mkdtempSync(join(tmpdir(), "barlink-bench-"));
  writeFileSync(join(dir, "caller.py"), CALLER);
  for (const [what, work] of [
    ["a served ioctl, answered at once", () => {}],
    [
      "a served ioctl, 32 bytes read and written",
      (tid: number, address: bigint) => {
        const bytes = new Uint8Array(32);
        readMemory(tid, address, bytes);
        writeMemory(tid, address, bytes);
      },
    ],
  ] as const) {
    const [out, into] = must("pipe2", makePipe());
    const { pid, listenerFd } = spawnProgram({
      program: "python3",
      argv: ["python3", join(dir, "caller.py")],
      fds: [
        [0, 0],
        [1, into],
        [2, 2],
      ],
      filter: ioctlFilter,
    });
    closeFd(into);
    const listener = new Listener(listenerFd);
    listener.setSyncWakeUp();
    const set = new PollSet([{ fd: listenerFd, events: POLLIN }]);
    for (;;) {
      set.wait();
      if ((set.revents(0) & POLLIN) !== 0) {
        const call = listener.recv();
        if (call instanceof Errno) continue;
        work(call.tid, call.args[2]);
        listener.returnValue(call.id, 0);
      } else if ((set.revents(0) & POLLHUP) !== 0) break;
    }
    listener.close();
    waitPid(pid, { block: true });
    const text = new Uint8Array(64);
    const [median = 0, p99 = 0] = Buffer.from(text.subarray(0, must("read", readFd(out, text))))
      .toString()
      .split(" ")
      .map(Number);
    closeFd(out);
    report(`${what}, median`, median);
    report(`${what}, p99`, p99);
  }
  rmSync(dir, { recursive: true });
}

function starts(): void {
  const took = Array.from({ length: 11 }, () => {
    const began = performance.now();
    const { pid } = spawnProgram({ program: "true" });
    const ms = performance.now() - began;
    waitPid(pid, { block: true });
    return ms;
  }).sort((a, b) => a - b);
  process.stdout.write(
    `${"start of a program, median of 11 (slower from source)".padEnd(52)} ${(took[5] ?? 0).toFixed(0).padStart(8)} ms\n`,
  );
}

export function run(): void {
  if (process.platform !== "linux") {
    process.stdout.write("only on Linux\n");
    return;
  }
  singleCalls();
  roundTrips();
  starts();
}
