/**
 * The transport over the embedded kernel: one simulated process.
 *
 * Each call runs the kernel's system call on the process's main thread to its
 * end. Memory that a call points to is taken from an arena in the process's
 * own address space, as a stack, so that the kernel copies from and to user
 * memory as it does for any program.
 */

import type { Process } from "../kernel/fs/process.ts";
import { vfioOf } from "../kernel/vfio/vfio_main.ts";
import { ENOMEM, Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../uapi/index.ts";
import type { FileStatus, Mapping, PollRequest, Signal, Transport, UserBuffer } from "./transport.ts";

/** Bytes of the arena; a call that needs more gets memory of its own. */
const ARENA = 256 * 1024;
const RW = PROT_READ | PROT_WRITE;
const NS_PER_MS = 1_000_000;

export class EmbeddedTransport implements Transport {
  readonly process: Process;
  #arena: bigint | undefined = undefined;
  #used = 0;

  constructor(process: Process) {
    this.process = process;
  }

  #run<T>(body: Step<T>): T {
    return this.process.run(body);
  }

  open(path: string, flags: number): number | Errno {
    return this.#run(this.process.sys.open(path, flags));
  }

  close(fd: number): Errno | undefined {
    const r = this.#run(this.process.sys.close(fd));
    return r instanceof Errno ? r : undefined;
  }

  ioctl(fd: number, request: number, arg: bigint): number | Errno {
    return this.#run(this.process.sys.ioctl(fd, request, arg));
  }

  ioctlBytes(fd: number, request: number, bytes: Uint8Array): number | Errno {
    return this.#withBytes(bytes, (address) => {
      const r = this.ioctl(fd, request, address);
      this.process.mm.memory.read(address, bytes);
      return r;
    });
  }

  read(fd: number, length: number): Uint8Array | Errno {
    return this.#readInto(length, (address) => this.process.sys.read(fd, address, length));
  }

  write(fd: number, bytes: Uint8Array): number | Errno {
    return this.#withBytes(bytes, (address) => this.#run(this.process.sys.write(fd, address, bytes.length)));
  }

  pread(fd: number, length: number, position: bigint): Uint8Array | Errno {
    return this.#readInto(length, (address) => this.process.sys.pread(fd, address, length, position));
  }

  pwrite(fd: number, bytes: Uint8Array, position: bigint): number | Errno {
    return this.#withBytes(bytes, (address) => this.#run(this.process.sys.pwrite(fd, address, bytes.length, position)));
  }

  lseek(fd: number, offset: bigint, whence: number): bigint | Errno {
    return this.#run(this.process.sys.lseek(fd, offset, whence));
  }

  mmap(fd: number, length: number, prot: number, flags: number, offset: bigint): Mapping | Errno {
    const address = this.#run(this.process.sys.mmap(0n, BigInt(length), prot, flags, fd, offset));
    return address instanceof Errno ? address : new EmbeddedMapping(this.process, address, length);
  }

  /** Fresh private memory, readable and writable, zero. */
  mmapAnonymous(length: number): Mapping {
    const m = this.mmap(-1, length, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0n);
    if (m instanceof Errno) throw new RangeError(`cannot map ${length} bytes of memory: ${m.name}`);
    return m;
  }

  mprotect(address: bigint, length: number, prot: number): Errno | undefined {
    return this.#run(this.process.sys.mprotect(address, BigInt(length), prot));
  }

  poll(requests: readonly PollRequest[], timeoutMs: number): { ready: number; revents: number[] } | Errno {
    const fds = requests.map(({ fd, events }) => ({ fd, events, revents: 0 }));
    const ready = this.#run(this.process.sys.poll(fds, timeoutMs < 0 ? -1 : timeoutMs * NS_PER_MS));
    return ready instanceof Errno ? ready : { ready, revents: fds.map((f) => f.revents) };
  }

  fcntl(fd: number, command: number, arg = 0): number | Errno {
    return this.#run(this.process.sys.fcntl(fd, command, arg));
  }

  fstat(fd: number): FileStatus | Errno {
    return this.#run(this.process.sys.fstat(fd));
  }

  ftruncate(fd: number, length: bigint): Errno | undefined {
    return this.#run(this.process.sys.ftruncate(fd, length));
  }

  memfdCreate(name: string, flags: number): number | Errno {
    return this.#run(this.process.sys.memfdCreate(name, flags));
  }

  eventfd(initial: number, flags: number): number | Errno {
    return this.#run(this.process.sys.eventfd(initial, flags));
  }

  /** The two ends, reader first. */
  pipe(): [reader: number, writer: number] | Errno {
    return this.#run(this.process.sys.pipe());
  }

  withMemory<T>(body: (allocate: (length: number) => UserBuffer) => T): T {
    const mark = this.#used;
    const own: Mapping[] = [];
    try {
      return body((length) => new EmbeddedBuffer(this.process, this.#allocate(length, own), length));
    } finally {
      this.#used = mark;
      for (const m of own) m.unmap();
    }
  }

  vfioDevicePath(address: string): string | undefined {
    return vfioOf(this.process.kernel).cdevPathOf(address);
  }

  /** fork(2): a child with a copy of the memory and the same open files. */
  fork(): EmbeddedTransport {
    return new EmbeddedTransport(this.process.fork());
  }

  /** Becomes another user without capabilities. */
  dropPrivileges(uid: number): void {
    this.process.setUid(uid);
  }

  /** exit(2): memory, then descriptors. */
  exit(): void {
    this.#run(this.process.exit());
  }

  #allocate(length: number, own: Mapping[]): bigint {
    this.#arena ??= this.mmapAnonymous(ARENA).address;
    const size = (length + 15) & ~15;
    if (this.#used + size > ARENA) {
      const m = this.mmapAnonymous((length + 4095) & ~4095);
      own.push(m);
      return m.address;
    }
    const at = this.#arena + BigInt(this.#used);
    this.#used += size;
    return at;
  }

  #withBytes<T>(bytes: Uint8Array, body: (address: bigint) => T): T {
    return this.withMemory((allocate) => {
      const m = allocate(bytes.length);
      m.set(bytes);
      return body(m.address);
    });
  }

  #readInto(length: number, call: (address: bigint) => Step<number | Errno>): Uint8Array | Errno {
    return this.withMemory((allocate) => {
      const m = allocate(length);
      const n = this.#run(call(m.address));
      return n instanceof Errno ? n : m.get(0, n);
    });
  }
}

class EmbeddedBuffer implements UserBuffer {
  readonly address: bigint;
  readonly length: number;
  readonly #process: Process;

  constructor(process: Process, address: bigint, length: number) {
    this.#process = process;
    this.address = address;
    this.length = length;
  }

  get(offset = 0, length: number = this.length - offset): Uint8Array {
    const bytes = new Uint8Array(length);
    const missing = this.#process.mm.memory.read(this.address + BigInt(offset), bytes);
    if (missing > 0) throw new RangeError(`${missing} of ${length} bytes at offset ${offset} are not readable`);
    return bytes;
  }

  set(bytes: Uint8Array, offset = 0): void {
    const missing = this.#process.mm.memory.write(this.address + BigInt(offset), bytes);
    if (missing > 0) throw new RangeError(`${missing} of ${bytes.length} bytes at offset ${offset} are not writable`);
  }
}

class EmbeddedMapping implements Mapping {
  readonly address: bigint;
  readonly length: number;
  readonly #process: Process;
  #mapped = true;

  constructor(process: Process, address: bigint, length: number) {
    this.#process = process;
    this.address = address;
    this.length = length;
  }

  load(offset: number, length: number): Uint8Array | Signal {
    const bytes = new Uint8Array(length);
    const r = this.#process.run(this.#process.space.load(this.address + BigInt(offset), bytes));
    return r === "ok" ? bytes : r;
  }

  store(offset: number, bytes: Uint8Array): Signal | undefined {
    const r = this.#process.run(this.#process.space.store(this.address + BigInt(offset), bytes));
    return r === "ok" ? undefined : r;
  }

  unmap(): void {
    if (!this.#mapped) return;
    this.#mapped = false;
    const r = this.#process.run(this.#process.sys.munmap(this.address, BigInt(this.length)));
    if (r instanceof Errno && r !== ENOMEM) throw new RangeError(`munmap of ${this.length} bytes failed: ${r.name}`);
  }
}
