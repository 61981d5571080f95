/**
 * `--strace`: each served call on one line, decoded.
 *
 *     [pid 4242] ioctl(5</dev/iommu>, IOMMU_IOAS_ALLOC, {size=12, flags=0, out_ioas_id=0} => {…, out_ioas_id=3}) = 0
 *
 * A struct is shown as the program gave it; behind `=>` stand the members that
 * the kernel changed. Calls that the real kernel answered are not shown: they
 * are strace's.
 */
import type { File } from "../kernel/fs/file.ts";
import type { Errno } from "../lib/errno.ts";
import { type AnyStruct, type DescriptorKind, describeIoctl, formatStruct, ioctlName, O_ACCMODE, type StructView } from "../uapi/index.ts";
import * as sys from "./numbers.ts";
import { syscallName } from "./syscall_names.ts";
import type { CallObserver, SupervisedProcess, TrappedCall } from "./types.ts";

/** Structs are shown up to here, bytes. */
const MOST = 1024;

interface Pending {
  readonly text: string;
  /** Prints what the call changed behind its pointer. */
  readonly changes: (() => string) | undefined;
}

const OPEN_FLAGS: readonly (readonly [bit: number, name: string])[] = [
  [0o100, "O_CREAT"],
  [0o200, "O_EXCL"],
  [0o1000, "O_TRUNC"],
  [0o2000, "O_APPEND"],
  [0o4000, "O_NONBLOCK"],
  [0o200000, "O_DIRECTORY"],
  [0o400000, "O_NOFOLLOW"],
  [0o2000000, "O_CLOEXEC"],
  [0o10000000, "O_PATH"],
];

/** `O_RDWR|O_CLOEXEC`, unknown bits in hexadecimal. */
export function openFlags(flags: number): string {
  const out = [["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][flags & O_ACCMODE] ?? ""];
  let rest = flags & ~O_ACCMODE;
  for (const [bit, name] of OPEN_FLAGS) {
    if ((rest & bit) === 0) continue;
    out.push(name);
    rest &= ~bit;
  }
  if (rest !== 0) out.push(`0x${(rest >>> 0).toString(16)}`);
  return out.join("|");
}

const hex = (v: bigint): string => (v < 10n ? v.toString() : `0x${v.toString(16)}`);
const quote = (s: string): string => JSON.stringify(s);

/** Which family of ioctls a file answers, by what it is. */
function kindOf(file: File | undefined): DescriptorKind | undefined {
  const path = file?.path ?? "";
  if (path === "/dev/iommu") return "iommufd";
  if (path.startsWith("/dev/vfio/devices/") || path.includes("[vfio-device]")) return "vfio-device";
  if (path === "/dev/vfio/vfio") return "vfio-container";
  if (path.startsWith("/dev/vfio/")) return "vfio-group";
  if (path.startsWith("/dmabuf:")) return "dma-buf";
  return undefined;
}

export class StraceWriter implements CallObserver {
  readonly #write: (line: string) => void;
  readonly #pending: Map<bigint, Pending> = new Map();
  /** Processes of which something was printed. */
  readonly #seen: Set<number> = new Set();

  /** `write` gets each line without its newline. */
  constructor(write: (line: string) => void) {
    this.#write = write;
  }

  begin(call: TrappedCall): void {
    this.#pending.set(call.id, describe(call));
  }

  end(call: TrappedCall, result: bigint | undefined, error: Errno | undefined): void {
    const p = this.#pending.get(call.id);
    this.#pending.delete(call.id);
    if (p === undefined || result === undefined) return;
    this.#seen.add(call.pid);
    const answered = error === undefined ? hex(result) : `-1 ${error.name} (${error.meaning})`;
    const changes = error === undefined ? (p.changes?.() ?? "") : "";
    this.#write(`[pid ${call.pid}] ${syscallName(call.nr)}(${p.text}${changes}) = ${answered}`);
  }

  process(what: "new" | "exec" | "exit", process: SupervisedProcess): void {
    if (what === "exit" && this.#seen.delete(process.target.pid)) this.#write(`[pid ${process.target.pid}] +++ ended +++`);
  }
}

function describe(call: TrappedCall): Pending {
  switch (call.nr) {
    case sys.SYS_ioctl:
      return describeCommand(call);
    case sys.SYS_openat:
      return plain(`${directory(call)}, ${path(call, 1)}, ${openFlags(call.int(2))}`);
    case sys.SYS_open:
      return plain(`${path(call, 0)}, ${openFlags(call.int(1))}`);
    case sys.SYS_openat2:
      return plain(`${directory(call)}, ${path(call, 1)}, ${hex(call.args[2] ?? 0n)}`);
    case sys.SYS_stat:
    case sys.SYS_lstat:
    case sys.SYS_access:
    case sys.SYS_readlink:
      return plain(path(call, 0));
    case sys.SYS_newfstatat:
    case sys.SYS_statx:
    case sys.SYS_readlinkat:
    case sys.SYS_faccessat:
    case sys.SYS_faccessat2:
      return plain(`${directory(call)}, ${path(call, 1)}`);
    case sys.SYS_pread64:
    case sys.SYS_pwrite64:
      return plain(`${descriptor(call)}, ${hex(call.args[1] ?? 0n)}, ${call.args[2]}, ${hex(call.args[3] ?? 0n)}`);
    case sys.SYS_write:
      return plain(`${descriptor(call)}, ${text(call)}, ${call.args[2]}`);
    case sys.SYS_mmap:
      return plain(
        `${hex(call.args[0] ?? 0n)}, ${call.args[1]}, ${call.int(2)}, ${call.int(3)}, ${descriptor(call, 4)}, ${hex(call.args[5] ?? 0n)}`,
      );
    default:
      return plain(`${descriptor(call)}, ${call.args.slice(1).map(hex).join(", ")}`);
  }
}

const plain = (t: string): Pending => ({ text: t, changes: undefined });

function descriptor(call: TrappedCall, arg = 0): string {
  const fd = call.int(arg);
  const file = call.fd(fd);
  return file === undefined ? String(fd) : `${fd}<${file.path}>`;
}

const AT_FDCWD = -100;
const directory = (call: TrappedCall): string => (call.int(0) === AT_FDCWD ? "AT_FDCWD" : descriptor(call));

function path(call: TrappedCall, arg: number): string {
  const p = call.path(arg);
  return typeof p === "string" ? quote(p) : hex(call.args[arg] ?? 0n);
}

function text(call: TrappedCall): string {
  const bytes = new Uint8Array(Math.min(Number(call.args[2] ?? 0n), 64));
  if (call.memory.read(call.args[1] ?? 0n, bytes) !== 0) return hex(call.args[1] ?? 0n);
  return quote(new TextDecoder().decode(bytes));
}

function describeCommand(call: TrappedCall): Pending {
  const cmd = call.int(1) >>> 0;
  const arg = call.args[2] ?? 0n;
  const file = call.fd(call.int(0));
  const kind = kindOf(file);
  const known = describeIoctl(cmd, kind);
  const head = `${descriptor(call)}, ${ioctlName(cmd, kind)}`;
  const struct = known?.struct;
  if (struct === undefined) return plain(`${head}, ${hex(arg)}`);
  const before = readStruct(call, struct, arg);
  if (before === undefined) return plain(`${head}, ${hex(arg)}`);
  return {
    text: `${head}, ${formatStruct(struct, before)}`,
    changes: () => changed(struct, before, readStruct(call, struct, arg)),
  };
}

/** The struct at `at`, with what lies behind it when its first member says that there is more. */
function readStruct(call: TrappedCall, struct: AnyStruct, at: bigint): StructView | undefined {
  const size = new Uint8Array(4);
  if (call.memory.read(at, size) !== 0) return undefined;
  const said = new DataView(size.buffer).getUint32(0, true);
  const length = Math.min(Math.max(struct.size, struct.tailElementSize === 0 ? 0 : said), MOST);
  const bytes = new Uint8Array(length);
  return call.memory.read(at, bytes) === 0 ? struct.over(bytes) : undefined;
}

/** ` => {…}` with the members that differ; nothing when none does. */
function changed(struct: AnyStruct, before: StructView, after: StructView | undefined): string {
  if (after === undefined) return "";
  const shown = (v: StructView): string[] => splitMembers(formatStruct(struct, v));
  const old = shown(before);
  const differing = shown(after).filter((m, i) => m !== old[i]);
  return differing.length === 0 ? "" : ` => {${differing.join(", ")}}`;
}

/** The members of `{a=1, b={c=2, d=3}}`: split at the commas that stand outside of any bracket. */
function splitMembers(formatted: string): string[] {
  const out: string[] = [];
  let depth = 0;
  let from = 1;
  for (let i = 1; i < formatted.length - 1; i++) {
    const c = formatted[i];
    if (c === "{" || c === "[") depth++;
    else if (c === "}" || c === "]") depth--;
    else if (c === "," && depth === 0) {
      out.push(formatted.slice(from, i).trim());
      from = i + 1;
    }
  }
  out.push(formatted.slice(from, -1).trim());
  return out;
}
