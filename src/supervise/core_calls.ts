/**
 * The calls that the core serves itself: on descriptors of the embedded
 * kernel's files, and those it only watches.
 *
 * What a call means is the embedded kernel's business (`kernel/fs/syscalls.ts`);
 * here its arguments are taken from the registers. What reads, writes and maps
 * a device's regions is in `device_files.ts`, and what takes paths in `tree/`.
 */
import { AT_EMPTY_PATH, encodeStat, encodeStatx } from "../host/index.ts";
import { EFAULT, ENOSYS, Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import { F_ADD_SEALS, F_GET_SEALS, F_GETFL, F_SETFL, IommuHwptPgfault } from "../uapi/index.ts";
import { Call } from "./call.ts";
import * as sys from "./numbers.ts";
import { imageOf, type ServedProcess } from "./processes.ts";
import { hostStatus } from "./stat_bytes.ts";
import type { Core } from "./supervisor.ts";
import { answer, CONTINUE, type Handler, type Outcome, type TrappedCall, type When } from "./types.ts";

/** iommufd and VFIO, dma-buf, dma-heap, udmabuf, sync files. */
const IOCTL_TYPES = [..."; bHu>"].filter((c) => c !== " ").map((c) => c.charCodeAt(0));

/** Longer than a register, which a program would read that took a device for a plain file, and than what it asks an event queue for. */
const SHORT_READ = 64;
/** As short as what the tree takes, so that it costs no trap of its own. */
const SHORT_WRITE = 256;

export function registerCoreCalls(core: Core): void {
  /** For calls whose argument 0 is a descriptor of ours. */
  const onFile = (nr: number, body: (call: TrappedCall) => Step<Outcome | undefined>, ...when: When[]): void => {
    core.handle(nr, Object.assign(body, { concerns: (call: TrappedCall) => call instanceof Call && core.concernsFile(call) }), ...when);
  };
  onFile(sys.SYS_ioctl, ioctl, { kind: "ioctl-type", arg: 1, types: IOCTL_TYPES });
  onFile(sys.SYS_lseek, lseek);
  // Longer ones are most of what a program reads and writes elsewhere. Of a fault queue whole page requests are read, however
  // many: no size of a buffer that is a power of two is a multiple of theirs.
  onFile(sys.SYS_read, read, { kind: "at-most", arg: 2, most: SHORT_READ }, { kind: "multiple", arg: 2, of: IommuHwptPgfault.size });
  onFile(sys.SYS_write, write, { kind: "at-most", arg: 2, most: SHORT_WRITE });
  onFile(sys.SYS_fcntl, fcntl, { kind: "equals", arg: 1, values: [F_GETFL, F_SETFL, F_ADD_SEALS, F_GET_SEALS] });
  onFile(sys.SYS_fstat, (c) => fstat(c, 1));
  onFile(sys.SYS_newfstatat, (c) => fstat(c, 2, 3), { kind: "bits", arg: 3, bits: AT_EMPTY_PATH });
  onFile(sys.SYS_statx, (c) => fstat(c, 4, 2), { kind: "bits", arg: 2, bits: AT_EMPTY_PATH });

  for (const nr of [sys.SYS_execve, sys.SYS_execveat]) core.handle(nr, watchExec);
  core.handle(sys.SYS_io_uring_setup, ioUring(core));
}

function* ioctl(call: TrappedCall): Step<Outcome> {
  return answer(yield* call.process.sys.ioctl(call.int(0), Number(BigInt.asUintN(32, call.args[1] as bigint)), call.args[2] as bigint));
}

function* read(call: TrappedCall): Step<Outcome> {
  return answer(yield* call.process.sys.read(call.int(0), call.args[1] as bigint, Number(call.args[2])));
}

function* write(call: TrappedCall): Step<Outcome> {
  return answer(yield* call.process.sys.write(call.int(0), call.args[1] as bigint, Number(call.args[2])));
}

function* lseek(call: TrappedCall): Step<Outcome> {
  return answer(yield* call.process.sys.lseek(call.int(0), BigInt.asIntN(64, call.args[1] as bigint), call.int(2)));
}

function* fcntl(call: TrappedCall): Step<Outcome> {
  const r = yield* call.process.sys.fcntl(call.int(0), call.int(1), Number(call.args[2] as bigint));
  // Flags are the real descriptor's as well: O_NONBLOCK, O_APPEND. A pipe keeps its own: nothing that we do not see may wait.
  const own = call instanceof Call && call.host.isQueue(call.tid, call.int(0));
  return call.int(1) === F_SETFL && !(r instanceof Errno) && !own ? CONTINUE : answer(r);
}

/** fstat, and newfstatat and statx of the descriptor itself; of a path they are somebody else's. `flags`: which argument has them. */
function* fstat(call: TrappedCall, buffer: number, flags?: number): Step<Outcome | undefined> {
  if (flags !== undefined) {
    const path = call.args[1] === 0n ? "" : call.path(1);
    if (path !== "" || (call.int(flags) & AT_EMPTY_PATH) === 0) return undefined;
  }
  const s = yield* call.process.sys.fstat(call.int(0));
  if (s instanceof Errno) return answer(s);
  const status = hostStatus(s, process.geteuid?.() ?? 0, process.getegid?.() ?? 0);
  const bytes = call.nr === sys.SYS_statx ? encodeStatx(status) : encodeStat(status);
  return answer(call.memory.write(call.args[buffer] as bigint, bytes) > 0 ? EFAULT : 0);
}

function* watchExec(call: TrappedCall): Step<Outcome> {
  (call.process as ServedProcess).execPending = imageOf(call.tid);
  return CONTINUE;
}

/** Operations that go through a ring are seen by no filter: who asks for one is told that there is none, and does without. */
const ioUring = (core: Core): Handler =>
  function* (call): Step<Outcome> {
    core.warnOnce("io_uring", `${call.process.name} asked for io_uring, which cannot be supervised: it was told ENOSYS`);
    return answer(ENOSYS);
  };
