/**
 * write, pwrite64, writev, pwritev on files of the tree, and what else a descriptor of one is asked.
 *
 * Only short ones are trapped: nothing that sysfs takes is long. A write that
 * was not trapped meets a sealed file, and fails.
 *
 * Source: fs/kernfs/file.c (kernfs_fop_write_iter), fs/sysfs/file.c.
 */
import { writeSync } from "node:fs";
import { closeFd, pidfdGetFd } from "../../host/index.ts";
import { EFAULT, EINVAL, ENODEV, ENOMEM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import * as O from "../../uapi/fcntl.ts";
import * as sys from "../numbers.ts";
import { answer, type Handler, type Outcome, type TrappedCall, type When } from "../types.ts";
import type { TreeContext } from "./context.ts";

/** Longest write that is trapped: a PCI address, a driver's name, a row of ids; registers of config space. */
const LONGEST = 64;
/** Pieces of a vectored write that is trapped: a C library's buffer and what did not fit. */
const MOST_PIECES = 4;
/** One write takes a page at most. */
const PAGE = 4096;

export function registerWrites(context: TreeContext): void {
  const add = (nr: number, body: (call: TrappedCall) => Step<Outcome | undefined>, when: When): void => {
    const handler: Handler = Object.assign(body, { concerns: () => context.anyWritable });
    context.supervisor.handle(nr, handler, when);
  };
  const short: When = { kind: "at-most", arg: 2, most: LONGEST };
  const few: When = { kind: "at-most", arg: 2, most: MOST_PIECES };
  const offset = (c: TrappedCall): bigint => BigInt.asIntN(64, c.args[3] as bigint);
  add(sys.SYS_write, (c) => write(context, c, contiguous(c), undefined), short);
  add(sys.SYS_pwrite64, (c) => write(context, c, contiguous(c), offset(c)), short);
  add(sys.SYS_writev, (c) => write(context, c, vectored(c), undefined), few);
  add(sys.SYS_pwritev, (c) => write(context, c, vectored(c), offset(c)), few);
  const sparse: Handler = (c) => refuseHoles(context, c);
  sparse.concerns = () => context.anyOpen;
  context.supervisor.handle(sys.SYS_lseek, sparse, { kind: "equals", arg: 2, values: [O.SEEK_DATA, O.SEEK_HOLE] });
}

/** A file of sysfs tells of no holes. The memory file would: from its end to the size that stat says, and cp believes it. */
function* refuseHoles(context: TreeContext, call: TrappedCall): Step<Outcome | undefined> {
  return context.view(call).nodeOf(call.int(0))?.isContent === true ? answer(EINVAL) : undefined;
}

interface Piece {
  readonly address: bigint;
  readonly length: number;
}

const contiguous = (call: TrappedCall): readonly Piece[] => [{ address: call.args[1] as bigint, length: Number(call.args[2]) }];

/** struct iovec, as many as there are; undefined when they cannot be read or are too long: the real kernel's to refuse. */
function vectored(call: TrappedCall): readonly Piece[] | undefined {
  const count = Number(call.args[2]);
  const bytes = new Uint8Array(16 * count);
  if (count > 0 && call.memory.read(call.args[1] as bigint, bytes) > 0) return undefined;
  const view = new DataView(bytes.buffer);
  const pieces: Piece[] = [];
  for (let i = 0; i < count; i++) {
    const length = view.getBigUint64(16 * i + 8, true);
    if (length > 0x7fff_f000n) return undefined;
    pieces.push({ address: view.getBigUint64(16 * i, true), length: Number(length) });
  }
  return pieces;
}

function* write(
  context: TreeContext,
  call: TrappedCall,
  pieces: readonly Piece[] | undefined,
  at: bigint | undefined,
): Step<Outcome | undefined> {
  const fd = call.int(0);
  const view = context.view(call);
  const known = view.nodeOf(fd);
  if (known === undefined || !known.isContent || pieces === undefined) return undefined;
  const state = view.fileState(fd);
  // Opened to be read only, or a negative offset: the real kernel says so.
  if (state === undefined || (state.flags & O.O_ACCMODE) === O.O_RDONLY || (at !== undefined && at < 0n)) return undefined;
  if (known.node?.kind !== "file" || known.node.store === undefined) return answer(ENODEV);
  const { fault } = context.supervisor.kernel;
  if (fault.slab("buffer", PAGE)) return answer(ENOMEM);
  const data = fault.userCopy() ? EFAULT : gather(call, pieces);
  if (data instanceof Errno) return answer(data);
  if (!call.valid()) return undefined;
  if (data.length === 0) return answer(0);
  const done = yield* known.node.store(data, at ?? state.position);
  context.sync();
  if (at === undefined && typeof done === "number" && done > 0 && known.node.binary) advance(call, fd, data.subarray(0, done));
  return answer(done);
}

/** What is written, a page at most. */
function gather(call: TrappedCall, pieces: readonly Piece[]): Uint8Array | Errno {
  const total = Math.min(
    PAGE,
    pieces.reduce((n, p) => n + p.length, 0),
  );
  const out = new Uint8Array(total);
  let done = 0;
  for (const p of pieces) {
    const part = out.subarray(done, Math.min(total, done + p.length));
    if (part.length > 0 && call.memory.read(p.address, part) > 0) return EFAULT;
    done += part.length;
  }
  return out;
}

/** Moves the position of the program's open file on: by writing the bytes there as well. */
function advance(call: TrappedCall, fd: number, data: Uint8Array): void {
  const copy = pidfdGetFd(call.process.target.pidfd, fd);
  if (copy instanceof Errno) return;
  try {
    writeSync(copy, data);
  } finally {
    closeFd(copy);
  }
}
