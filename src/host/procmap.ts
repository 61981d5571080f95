/**
 * One mapping of a process, by address: PROCMAP_QUERY on /proc/PID/maps (Linux
 * 6.11), and the text of that file where there is none.
 *
 * The descriptor that is held belongs to the memory, not to the pid: after an
 * exec or the process's end a query finds nothing, whoever has the pid then.
 */
import { closeSync, openSync, readFileSync } from "node:fs";
import { ENOTTY, Errno, ESRCH } from "../lib/errno.ts";
import { checkVoid, ioctl, reserve } from "./ffi.ts";
import { type Mapping, parseMapping } from "./proc.ts";

const PROCMAP_QUERY = 0xc068_6611;
const QUERY_BYTES = 104;
const COVERING_OR_NEXT = 0x10n;
const READABLE = 1n;
const WRITABLE = 2n;
const EXECUTABLE = 4n;
const SHARED = 8n;
const NAME_BYTES = 4096;

const query = reserve(QUERY_BYTES);
const name = reserve(NAME_BYTES);
const decoder = new TextDecoder("latin1");

export class ProcessMaps {
  readonly #fd: number;
  /** undefined: not tried yet. */
  #query: boolean | undefined = undefined;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Of a process, by one of its threads. ESRCH: they are gone, or do not let themselves be read. */
  static open(pid: number, tid: number = pid): ProcessMaps | Errno {
    try {
      return new ProcessMaps(openSync(`/proc/${pid}/task/${tid}/maps`, "r"));
    } catch {
      return ESRCH;
    }
  }

  /** The mapping that contains `address`, or else the next one above it. undefined: there is none, or no memory any more. */
  from(address: bigint): Mapping | undefined {
    if (this.#query !== false) {
      const found = this.#ask(address);
      if (this.#query) return found;
    }
    return this.all().find((m) => m.end > address);
  }

  /** Every mapping, by address. */
  all(): Mapping[] {
    try {
      // Opened anew, because of the position: this goes by the pid again.
      return readFileSync(`/proc/self/fd/${this.#fd}`, "latin1")
        .split("\n")
        .flatMap((line) => parseMapping(line) ?? []);
    } catch {
      return [];
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  #ask(address: bigint): Mapping | undefined {
    const { u64, u32 } = query;
    u64.fill(0n);
    u64[0] = BigInt(QUERY_BYTES);
    u64[1] = COVERING_OR_NEXT;
    u64[2] = address;
    u32[20] = NAME_BYTES;
    u64[11] = BigInt(name.address);
    const failed = checkVoid(ioctl(this.#fd, PROCMAP_QUERY, query.address));
    if (failed === ENOTTY) this.#query = false;
    else this.#query = true;
    if (failed instanceof Errno) return undefined;
    const flags = u64[5] as bigint;
    const length = u32[20] as number;
    return {
      start: u64[3] as bigint,
      end: u64[4] as bigint,
      readable: (flags & READABLE) !== 0n,
      writable: (flags & WRITABLE) !== 0n,
      executable: (flags & EXECUTABLE) !== 0n,
      shared: (flags & SHARED) !== 0n,
      offset: u64[7] as bigint,
      inode: u64[8] as bigint,
      devMajor: u32[18] as number,
      devMinor: u32[19] as number,
      path: length > 1 ? decoder.decode(name.bytes.slice(0, length - 1)) : "",
    };
  }
}
