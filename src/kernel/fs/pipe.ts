/**
 * Pipes: 64 KiB of bytes between a write end and a read end.
 *
 * A write of up to 4096 bytes is whole or waits; a longer one may be split.
 * Source: fs/pipe.c (packet mode and resizing are left out).
 */
import { EAGAIN, EFAULT, ENFILE, ENOMEM, EPIPE, type Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";
import { O_NONBLOCK, O_RDONLY, O_WRONLY, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM, S_IFIFO } from "../../uapi/index.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { File, FileOps } from "./file.ts";
import { PollQueue } from "./poll.ts";

const CAPACITY = 65536;
const ATOMIC = 4096;

class Pipe {
  readonly ino: number;
  readonly bytes: Uint8Array = new Uint8Array(CAPACITY);
  head = 0;
  used = 0;
  readers = 1;
  writers = 1;
  readonly waiters: WaitQueue;
  readonly pollQueue: PollQueue = new PollQueue();

  constructor(kernel: Kernel) {
    this.ino = kernel.fs.nextIno();
    this.waiters = new WaitQueue(kernel.sched, "pipe");
  }

  changed(): void {
    this.waiters.wakeUp();
    this.pollQueue.wakeUp();
  }

  peek(n: number): Uint8Array {
    const out = new Uint8Array(n);
    for (let i = 0; i < n; i++) out[i] = this.bytes[(this.head + i) % CAPACITY] as number;
    return out;
  }

  push(src: Uint8Array): void {
    for (let i = 0; i < src.length; i++) this.bytes[(this.head + this.used + i) % CAPACITY] = src[i] as number;
    this.used += src.length;
  }
}

const pipeOf = (f: File): Pipe => f.privateData as Pipe;

const COMMON = {
  name: "pipe",
  stream: true,
  stat(f: File) {
    return { mode: S_IFIFO | 0o600, ino: pipeOf(f).ino };
  },
};

const READ_OPS: FileOps = {
  ...COMMON,
  *read(f, buf, count): Step<number | Errno> {
    const p = pipeOf(f);
    if (count === 0) return 0;
    if (p.used === 0) {
      if (p.writers === 0) return 0;
      if ((f.flags & O_NONBLOCK) !== 0) return EAGAIN;
      const e = yield* p.waiters.waitEventInterruptible(() => p.used > 0 || p.writers === 0);
      if (e !== undefined) return e;
    }
    const n = Math.min(count, p.used);
    const done = n - copyToUser(f.kernel, buf, p.peek(n));
    p.head = (p.head + done) % CAPACITY;
    p.used -= done;
    if (done > 0) p.changed();
    return done === 0 && n > 0 ? EFAULT : done;
  },
  poll(f) {
    const p = pipeOf(f);
    return (p.used > 0 ? POLLIN | POLLRDNORM : 0) | (p.writers === 0 ? POLLHUP : 0);
  },
  *release(f) {
    const p = pipeOf(f);
    p.readers--;
    p.changed();
  },
};

const WRITE_OPS: FileOps = {
  ...COMMON,
  *write(f, buf, count): Step<number | Errno> {
    const p = pipeOf(f);
    if (count === 0) return 0;
    let done = 0;
    while (done < count) {
      // Nobody reads: the caller's SIGPIPE is its own affair.
      if (p.readers === 0) return done === 0 ? EPIPE : done;
      const left = count - done;
      const need = count <= ATOMIC ? left : 1;
      if (CAPACITY - p.used < need) {
        if ((f.flags & O_NONBLOCK) !== 0) return done === 0 ? EAGAIN : done;
        const e = yield* p.waiters.waitEventInterruptible(() => CAPACITY - p.used >= need || p.readers === 0);
        if (e !== undefined) return done === 0 ? e : done;
        continue;
      }
      const chunk = new Uint8Array(Math.min(left, CAPACITY - p.used));
      const missed = copyFromUser(f.kernel, chunk, buf + BigInt(done));
      const got = chunk.length - missed;
      p.push(chunk.subarray(0, got));
      done += got;
      if (got > 0) p.changed();
      if (missed > 0) return done === 0 ? EFAULT : done;
    }
    return done;
  },
  poll(f) {
    const p = pipeOf(f);
    return (CAPACITY - p.used >= ATOMIC ? POLLOUT | POLLWRNORM : 0) | (p.readers === 0 ? POLLERR : 0);
  },
  *release(f) {
    const p = pipeOf(f);
    p.writers--;
    p.changed();
  },
};

/** Both ends, each with one reference. `flags`: O_NONBLOCK or 0. ENFILE: no memory for the pipe itself; ENOMEM. */
export function newPipe(k: Kernel, flags: number): [read: File, write: File] | Errno {
  if (k.fault.slab("inode") || k.fault.slab("pipe")) return ENFILE;
  if (k.fault.slab("dentry") || k.fault.slab("file") || k.fault.slab("file")) return ENOMEM;
  const pipe = new Pipe(k);
  const path = `pipe:[${pipe.ino}]`;
  const status = flags & O_NONBLOCK;
  const ends: [File, File] = [
    k.fs.newFile(READ_OPS, { flags: O_RDONLY | status, privateData: pipe, path }),
    k.fs.newFile(WRITE_OPS, { flags: O_WRONLY | status, privateData: pipe, path }),
  ];
  for (const f of ends) f.pollQueue = pipe.pollQueue;
  return ends;
}
