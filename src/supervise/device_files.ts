/**
 * The system calls on files of the embedded kernel that come with a position:
 * mmap, pread, pwrite and their vectors.
 *
 * Reads and writes are the embedded kernel's own, at any width. A mapping is
 * checked by the file's own operation, in the order of do_mmap, and then made
 * by the real kernel, of the memfd that the descriptor really is; what a VFIO
 * device's BARs show there is `bars.ts`'s.
 *
 * The arguments of mmap are registers, so nothing can change between our look
 * and the real call but what the descriptor number refers to; whatever it is
 * then, it is the program's own.
 */
import type { File } from "../kernel/fs/file.ts";
import { AddressSpace } from "../kernel/mm/address_space.ts";
import { Vma } from "../kernel/mm/vma.ts";
import { VfioPciCoreDevice } from "../kernel/vfio/pci/vfio_pci_core.ts";
import { EACCES, EBADF, EBUSY, EFAULT, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EOVERFLOW, Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import {
  MAP_ANONYMOUS,
  MAP_NORESERVE,
  MAP_POPULATE,
  MAP_PRIVATE,
  MAP_SHARED,
  MAP_SHARED_VALIDATE,
  MAP_TYPE,
  PROT_WRITE,
  S_IFMT,
  S_IFREG,
} from "../uapi/index.ts";
import { BarWindow } from "./bars.ts";
import { Doorbells } from "./doorbells.ts";
import { showFrames } from "./frame_window.ts";
import { HeldMappings } from "./held_mappings.ts";
import {
  SYS_fallocate,
  SYS_ftruncate,
  SYS_mmap,
  SYS_mremap,
  SYS_pread64,
  SYS_preadv,
  SYS_preadv2,
  SYS_pwrite64,
  SYS_pwritev,
  SYS_pwritev2,
} from "./numbers.ts";
import { ProcessMemory } from "./process_memory.ts";
import { answer, CONTINUE, type Handler, type Outcome, type Supervisor, type TrappedCall, type When } from "./types.ts";

/** Region offsets of supervised machines begin at 1 << 40: `regionOffsetBase` of vfio-pci. */
export const REGION_OFFSET_BASE = 1;
/** The high half of the lowest offset of a region. */
const REGION_HIGH = REGION_OFFSET_BASE << 8;

const PAGE_MASK = 4095n;
const TASK_SIZE = 0x7fff_ffff_f000n;
const IOV_MAX = 1024;
const RWF_HIPRI = 1;

/** The windows into BARs that the program has, by function. */
export class DeviceFiles {
  readonly doorbells: Doorbells;
  readonly mappings: HeldMappings;
  readonly #supervisor: Supervisor;
  readonly #windows: Map<VfioPciCoreDevice, { readonly file: File; readonly window: BarWindow }> = new Map();
  /** Never holds anything: what a checked mapping is said to be in. */
  readonly #nowhere: AddressSpace;

  constructor(supervisor: Supervisor) {
    this.#supervisor = supervisor;
    this.mappings = new HeldMappings(supervisor);
    this.#nowhere = new AddressSpace(supervisor.kernel);
    this.doorbells = new Doorbells((ms, callback) => supervisor.every(ms, callback));
  }

  /** Windows that are open. */
  get windows(): number {
    return this.#windows.size;
  }

  /** Before a call is served: what was stored before it reaches the devices before it. */
  beforeCall(): void {
    if (this.#windows.size === 0) return;
    this.doorbells.look();
    for (const { window } of this.#windows.values()) window.look();
  }

  *mmap(call: TrappedCall): Step<Outcome | undefined> {
    const flags = call.int(3);
    if ((flags & MAP_ANONYMOUS) !== 0) return undefined;
    const file = call.fd(call.int(4));
    if (file === undefined) return undefined;
    const length = call.args[1] as bigint;
    const prot = call.int(2);
    const offset = call.args[5] as bigint;
    const rounded = (length + PAGE_MASK) & ~PAGE_MASK;
    if ((offset & PAGE_MASK) !== 0n || length === 0n) return answer(EINVAL);
    if (rounded > TASK_SIZE) return answer(ENOMEM);
    if ((offset >> 12n) + (rounded >> 12n) > 0xf_ffff_ffff_ffffn) return answer(EOVERFLOW);
    const type = flags & MAP_TYPE;
    const shared = type === MAP_SHARED || type === MAP_SHARED_VALIDATE;
    if (!shared && type !== MAP_PRIVATE) return answer(EINVAL);
    if ((shared && (prot & PROT_WRITE) !== 0 && !file.writable) || !file.readable) return answer(EACCES);
    if (file.ops.mmap === undefined) return answer(ENODEV);
    const vma = new Vma(this.#nowhere, 0n, rounded, prot, shared, file, offset);
    const error = file.ops.mmap(file, vma);
    if (error !== undefined) return answer(error);
    if (!(vma.privateData instanceof VfioPciCoreDevice)) {
      const refused = showFrames(this.#supervisor, file, vma);
      if (refused !== undefined) vma.ops?.close?.(vma);
      else if (vma.ops?.close !== undefined) this.mappings.hold(call.tid, file, vma);
      vma.cache?.put();
      return refused === undefined ? CONTINUE : answer(refused);
    }
    const refused = this.#map(file, vma.privateData, offset);
    return refused === undefined ? CONTINUE : answer(refused);
  }

  #map(file: File, vdev: VfioPciCoreDevice, offset: bigint): Errno | undefined {
    let open = this.#windows.get(vdev);
    if (open === undefined) {
      const memfd = this.#supervisor.files.memfd(file);
      if (memfd === undefined) return ENODEV;
      const window = new BarWindow(vdev, memfd, this.doorbells);
      open = { file, window };
      this.#windows.set(vdev, open);
      this.#supervisor.files.onLastClose(file, () => {
        this.#windows.delete(vdev);
        window.close();
      });
    } else if (open.file !== file) {
      this.#supervisor.warn(`${vdev.pdev.name}: its BARs are mapped through another open file of it; a second one cannot map them too`);
      return EBUSY;
    }
    const error = open.window.map(vdev.regionAt(offset));
    if (error === undefined) return undefined;
    this.#supervisor.warn(`${vdev.pdev.name}: its BARs cannot be mapped: ${error.name}; see ulimit -f`);
    return ENOMEM;
  }

  /** pread, pwrite. */
  *transfer(call: TrappedCall, write: boolean): Step<Outcome | undefined> {
    const fd = call.int(0);
    if (call.fd(fd) === undefined) return undefined;
    const { sys } = call.process;
    const [, buf, count, pos] = call.args as [bigint, bigint, bigint, bigint];
    // ssize_t: a count with the sign bit is refused by access_ok.
    if (count >> 63n !== 0n) return answer(EFAULT);
    const n = Number(count);
    return answer(yield* write ? sys.pwrite(fd, buf, n, pos) : sys.pread(fd, buf, n, pos));
  }

  /** preadv, pwritev, and those with flags: piece by piece, as Linux does for files without vector operations. */
  *vector(call: TrappedCall, write: boolean, flags: number): Step<Outcome | undefined> {
    const fd = call.int(0);
    if (call.fd(fd) === undefined) return undefined;
    const pieces = readVector(call);
    if (pieces instanceof Errno) return answer(pieces);
    if ((flags & ~RWF_HIPRI) !== 0) return answer(EOPNOTSUPP);
    const { sys } = call.process;
    let pos = call.args[3] as bigint;
    let done = 0;
    for (const { base, length } of pieces) {
      const r = yield* write ? sys.pwrite(fd, base, length, pos) : sys.pread(fd, base, length, pos);
      if (r instanceof Errno) return answer(done === 0 ? r : done);
      done += r;
      pos += BigInt(r);
      if (r < length) break;
    }
    return answer(done);
  }
}

// The memfd behind a descriptor is the program's to change, but for these.

function* ftruncate(call: TrappedCall): Step<Outcome> {
  return answer((yield* call.process.sys.ftruncate(call.int(0), BigInt.asIntN(64, call.args[1] as bigint))) ?? 0);
}

function* fallocate(call: TrappedCall): Step<Outcome> {
  const file = call.fd(call.int(0));
  if (file === undefined) return CONTINUE;
  const isRegular = ((file.ops.stat?.(file).mode ?? 0) & S_IFMT) === S_IFREG;
  return answer(file.writable ? (isRegular ? EOPNOTSUPP : ENODEV) : EBADF);
}

/** Of mremap's arguments: the new length is larger. */
const grows = (call: TrappedCall): boolean => (call.args[2] as bigint) > (call.args[1] as bigint);

/** A device's mapping does not grow (VM_DONTEXPAND). */
function* mremap(call: TrappedCall): Step<Outcome | undefined> {
  const { memory } = call;
  const mapping = memory instanceof ProcessMemory ? memory.mappingFrom(call.args[0] as bigint) : undefined;
  const ours = mapping !== undefined && mapping.start <= (call.args[0] as bigint) && mapping.path.startsWith("/memfd:barlink:");
  return ours ? answer(EFAULT) : undefined;
}

function readVector(call: TrappedCall): { base: bigint; length: number }[] | Errno {
  const count = Number(BigInt.asUintN(32, call.args[2] as bigint));
  if (count > IOV_MAX) return EINVAL;
  const bytes = new Uint8Array(16 * count);
  if (count > 0 && call.memory.read(call.args[1] as bigint, bytes) > 0) return EFAULT;
  const words = new DataView(bytes.buffer);
  const out: { base: bigint; length: number }[] = [];
  for (let i = 0; i < count; i++) {
    const length = words.getBigUint64(16 * i + 8, true);
    if (length >> 63n !== 0n) return EINVAL;
    out.push({ base: words.getBigUint64(16 * i, true), length: Number(length) });
  }
  return out;
}

/** Serves the calls above for every file that the program holds. */
export function registerDeviceFiles(supervisor: Supervisor): DeviceFiles {
  const d = new DeviceFiles(supervisor);
  supervisor.observe({
    begin(call) {
      d.mappings.beforeCall(call);
      d.beforeCall();
    },
  });
  const region = (arg: number): When => ({ kind: "high-half", arg, least: REGION_HIGH });
  const held = (call: TrappedCall, arg: number): boolean => supervisor.files.lookup(call.tid, call.int(arg)) !== undefined;
  // Programs map few files so: an offset that is no region's is refused too, and the files that cannot be mapped at all.
  const mmap: Handler = Object.assign((call: TrappedCall) => d.mmap(call), {
    concerns: (call: TrappedCall) => (call.int(3) & MAP_ANONYMOUS) === 0 && held(call, 4),
  });
  const shared: When = { kind: "bits", arg: 3, bits: MAP_SHARED };
  // As a program writes it; what the loader and malloc map privately has more flags, and goes by untouched.
  const plainlyPrivate: When = { kind: "equals", arg: 3, values: [MAP_PRIVATE, MAP_PRIVATE | MAP_POPULATE, MAP_PRIVATE | MAP_NORESERVE] };
  supervisor.handle(SYS_mmap, mmap, region(5), shared, plainlyPrivate);
  supervisor.handle(SYS_mremap, Object.assign(mremap, { concerns: grows }));
  const onFile = (nr: number, handler: Handler): void => {
    supervisor.handle(nr, Object.assign(handler, { concerns: (call: TrappedCall) => held(call, 0) }));
  };
  onFile(SYS_ftruncate, ftruncate);
  onFile(SYS_fallocate, fallocate);
  supervisor.handle(SYS_pread64, (call) => d.transfer(call, false), region(3));
  supervisor.handle(SYS_pwrite64, (call) => d.transfer(call, true), region(3));
  supervisor.handle(SYS_preadv, (call) => d.vector(call, false, 0), region(3));
  supervisor.handle(SYS_pwritev, (call) => d.vector(call, true, 0), region(3));
  supervisor.handle(SYS_preadv2, (call) => d.vector(call, false, call.int(5)), region(3));
  supervisor.handle(SYS_pwritev2, (call) => d.vector(call, true, call.int(5)), region(3));
  return d;
}
