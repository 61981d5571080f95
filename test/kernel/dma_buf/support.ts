/** A kernel, a process, an exporter that does nothing but tell, and importers. */

import { Device } from "../../../src/kernel/device.ts";
import {
  type DmaBufAttachment,
  type DmaBufAttachOps,
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufMapAttachmentUnlocked,
  dmaBufUnmapAttachmentUnlocked,
} from "../../../src/kernel/dma_buf/attachment.ts";
import { type DmaBuf, type DmaBufOps, dmaBufExport } from "../../../src/kernel/dma_buf/dma_buf.ts";
import type { SgTable } from "../../../src/kernel/dma_buf/mapping.ts";
import type { Process } from "../../../src/kernel/fs/process.ts";
import { Kernel } from "../../../src/kernel/kernel.ts";
import { Errno } from "../../../src/lib/errno.ts";
import type { Step, Task } from "../../../src/sched/task.ts";
import type { TraceEvent } from "../../../src/trace/events.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";

/** The value of a call that must succeed. */
export function ok<T>(value: T | Errno): T {
  if (value instanceof Errno) throw new Error(`unexpected ${value.name}`);
  return value;
}

export class Rig {
  readonly kernel: Kernel = new Kernel();
  readonly process: Process = this.kernel.fs.createProcess({ name: "prog" });
  readonly events: TraceEvent[] = [];

  constructor() {
    this.kernel.trace.listen((r) => this.events.push(r.event));
  }

  /** Runs on the process's main thread, to the end. */
  run<T>(body: Step<T>): T {
    return this.process.run(body);
  }

  /** Runs plain code on the process's main thread. */
  call<T>(fn: () => T): T {
    return this.run(
      (function* () {
        return fn();
      })(),
    );
  }

  /** Fresh memory of the process, whole pages of zeros. */
  user(length: number): bigint {
    return ok(this.run(this.process.sys.mmap(0n, BigInt(length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1)));
  }

  /** Puts bytes into the process's memory: their address. */
  put(bytes: Uint8Array): bigint {
    const addr = this.user(bytes.length);
    this.process.mm.memory.write(addr, bytes);
    return addr;
  }

  /** Bytes of the process's memory. */
  peek(addr: bigint, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.process.mm.memory.read(addr, bytes);
    return bytes;
  }

  /** Another thread of the process, started and run as far as it goes. */
  start(name: string, body: () => Step<unknown>): Task {
    const t = this.kernel.sched.spawn(name, body, this.process);
    this.kernel.sched.settle();
    return t;
  }

  /** What the leak checks count that is not nought. */
  leaks(): Record<string, number> {
    const out: Record<string, number> = {};
    for (const [name, count] of this.kernel.leakChecks) if (count() !== 0) out[name] = count();
    return out;
  }

  typesOf(prefix: string): string[] {
    return this.events.filter((e) => e.type.startsWith(prefix)).map((e) => e.type);
  }
}

/** An exporter of nothing: every op notes its call, and answers what the test says. */
export class Exporter {
  readonly log: string[] = [];
  attachAnswer: Errno | undefined = undefined;
  pinAnswer: Errno | undefined = undefined;
  mapAnswer: Errno | undefined = undefined;
  readonly ops: DmaBufOps;

  constructor(options: { pins?: boolean } = {}) {
    const { log } = this;
    const note = (what: string): void => {
      log.push(what);
    };
    const self = this;
    this.ops = {
      *attach(): Step<Errno | undefined> {
        note("attach");
        return self.attachAnswer;
      },
      *detach(): Step<void> {
        note("detach");
      },
      ...(options.pins === true && {
        pin: () => {
          note("pin");
          return self.pinAnswer;
        },
        unpin: () => note("unpin"),
      }),
      *mapDmaBuf(): Step<SgTable | Errno> {
        note("map");
        return self.mapAnswer ?? { entries: [{ address: 0x1000n, length: 0x1000n }], priv: undefined };
      },
      *unmapDmaBuf(): Step<void> {
        note("unmap");
      },
      *release(): Step<void> {
        note("release");
      },
    };
  }

  export(rig: Pick<Rig, "kernel">, size = 0x1000n): DmaBuf {
    rig.kernel.modules.load("exporter");
    return ok(dmaBufExport(rig.kernel, { expName: "exporter", owner: "exporter", ops: this.ops, size, flags: 2, priv: this }));
  }
}

/** A device that imports: what it was told, and what it has mapped. */
export class Importer {
  readonly dev: Device;
  readonly log: string[] = [];
  readonly ops: DmaBufAttachOps;
  sgt: SgTable | undefined = undefined;
  att: DmaBufAttachment | undefined = undefined;
  /** What it does when it must let go. Default: nothing, and unmap later. */
  onInvalidate: (att: DmaBufAttachment) => Step<void> = function* () {};

  constructor(dev: Device, options: { peer2peer?: boolean; revocable?: boolean } = {}) {
    const self = this;
    this.dev = dev;
    this.ops = {
      allowPeer2peer: options.peer2peer ?? true,
      ...(options.revocable !== false && {
        *invalidateMappings(att: DmaBufAttachment): Step<void> {
          self.log.push("invalidate");
          yield* self.onInvalidate(att);
        },
      }),
    };
  }

  *attach(buf: DmaBuf): Step<DmaBufAttachment | Errno> {
    const att = yield* dmaBufDynamicAttach(buf, this.dev, this.ops, this);
    if (!(att instanceof Errno)) this.att = att;
    return att;
  }

  *map(): Step<SgTable | Errno> {
    const sgt = yield* dmaBufMapAttachmentUnlocked(this.attached, "bidirectional");
    if (!(sgt instanceof Errno)) this.sgt = sgt;
    return sgt;
  }

  *unmap(): Step<void> {
    if (this.sgt === undefined) throw new Error("nothing is mapped");
    yield* dmaBufUnmapAttachmentUnlocked(this.attached, this.sgt, "bidirectional");
    this.sgt = undefined;
  }

  *detach(): Step<void> {
    yield* dmaBufDetach(this.attached.dmabuf, this.attached);
    this.att = undefined;
  }

  get attached(): DmaBufAttachment {
    if (this.att === undefined) throw new Error("not attached");
    return this.att;
  }
}

export const plainDevice = (name = "0000:00:09.0"): Device => new Device(name, "pci", 0x48);
