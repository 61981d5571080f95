/**
 * Who a served process is, and what it may lock and open: as the real kernel
 * says now, read when the embedded kernel asks.
 *
 * - uid: the effective one. The user that locked memory is charged to goes by
 *   the real uid, and is the same object for all processes of that uid.
 * - capabilities: the effective ones of the calling thread. They count in the
 *   first user namespace only: `capable()` is what drivers ask, and the root of
 *   a container without privileges is nobody to it.
 * - RLIMIT_NOFILE, RLIMIT_MEMLOCK: the soft limits, by prlimit.
 *
 * With `rootHolds` user 0 also has the capabilities that this host keeps from
 * every root (a container's bounding set): the kernel's selftests need
 * CAP_SYS_RESOURCE, and what it allows concerns the embedded kernel alone.
 *
 * Most calls never ask: it is read once a call, at the first question (`begin`
 * forgets the answers). What a process that is gone was last is what it stays.
 *
 * Source: current_user(), capable(), rlimit().
 */
import { effectiveCapabilities, usersOf } from "../host/creds.ts";
import { AT_FDCWD } from "../host/openat.ts";
import { readStatus } from "../host/proc.ts";
import { getRlimit, RLIMIT_MEMLOCK, RLIMIT_NOFILE } from "../host/rlimit.ts";
import { statAt } from "../host/stat.ts";
import type { Credentials, Rlimits, UserStruct } from "../kernel/fs/process.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { EINVAL, Errno } from "../lib/errno.ts";
import { bugOn } from "../lib/kernel_bug.ts";
import * as capability from "../uapi/capability.ts";

/** Capability names by bit. */
export const CAPABILITIES: readonly string[] = namesByBit();
/** /proc/PID/ns/user of the namespace the machine started with: PROC_USER_INIT_INO. */
const FIRST_NAMESPACE = 4_026_531_837n;
/** More descriptors than a table of the kernel can have. */
const NOFILE_MAX = 0x4000_0000;

export interface CredentialTarget {
  readonly pid: number;
  readonly tid: number;
  /** Of the process; without one, or before Linux 6.13, its status is read, which takes ten times as long. */
  readonly pidfd?: number;
}

/** Both what is asked of credentials and of limits; install it in a process by `track`. */
export class TargetCredentials implements Credentials, Rlimits {
  readonly #kernel: Kernel;
  readonly #target: CredentialTarget;
  readonly #rootHolds: bigint;
  #fresh = false;
  #uid = 0;
  #user: UserStruct;
  #capabilities: Set<string> = named(0n);
  #nofile = 1024;
  #memlock = 0n;

  /** `rootHolds`: a bit for each capability that user 0 has in any case. */
  constructor(kernel: Kernel, target: CredentialTarget, rootHolds = 0n) {
    this.#kernel = kernel;
    this.#target = target;
    this.#rootHolds = rootHolds;
    this.#user = kernel.fs.user(0);
    this.#read();
    this.#fresh = false;
  }

  /** A call begins: what was read before may be old. */
  begin(): void {
    this.#fresh = false;
  }

  get uid(): number {
    this.#read();
    return this.#uid;
  }

  get user(): UserStruct {
    this.#read();
    return this.#user;
  }

  get capabilities(): Set<string> {
    this.#read();
    return this.#capabilities;
  }

  get nofile(): number {
    const soft = this.#soft(RLIMIT_NOFILE);
    if (soft !== undefined) this.#nofile = soft > BigInt(NOFILE_MAX) ? NOFILE_MAX : Number(soft);
    return this.#nofile;
  }

  get memlock(): bigint {
    this.#memlock = this.#soft(RLIMIT_MEMLOCK) ?? this.#memlock;
    return this.#memlock;
  }

  #soft(resource: number): bigint | undefined {
    const limit = getRlimit(this.#target.tid, resource);
    return limit instanceof Errno ? undefined : limit.soft;
  }

  #read(): void {
    if (this.#fresh) return;
    this.#fresh = true;
    const { tid } = this.#target;
    const effective = effectiveCapabilities(tid);
    const users = this.#users();
    if (effective instanceof Errno || users === undefined) return;
    this.#uid = users.effective;
    this.#user = this.#kernel.fs.user(users.real);
    const held = inFirstNamespace(tid) ? effective : 0n;
    this.#capabilities = named(users.effective === 0 ? held | this.#rootHolds : held);
  }

  #users(): { readonly real: number; readonly effective: number } | undefined {
    const { pid, tid, pidfd } = this.#target;
    // A pidfd speaks of the leader; another thread may differ from it.
    const quick = pidfd === undefined || pid !== tid ? EINVAL : usersOf(pidfd);
    if (!(quick instanceof Errno)) return quick;
    const uids = readStatus(tid)?.uids;
    return uids === undefined ? undefined : { real: uids[0], effective: uids[1] };
  }
}

/** What a process has in place of credentials and limits of its own. */
export interface Tracked {
  readonly creds: Credentials;
  readonly rlimits: Rlimits;
}

/** Makes a process's credentials and limits the target's, from now on. */
export function track(process: Tracked, live: TargetCredentials): void {
  for (const key of ["uid", "user", "capabilities"] as const) {
    Object.defineProperty(process.creds, key, { get: () => live[key], enumerable: true, configurable: true });
  }
  for (const key of ["nofile", "memlock"] as const) {
    Object.defineProperty(process.rlimits, key, { get: () => live[key], enumerable: true, configurable: true });
  }
}

/** What this host keeps from every root: a bit for each capability that is not in our bounding set. */
export function withheldFromRoot(): bigint {
  const bounding = readStatus(process.pid)?.capBnd;
  return bounding === undefined ? 0n : ALL & ~bounding;
}

const ALL: bigint = (1n << BigInt(CAPABILITIES.length)) - 1n;
/** Few different sets ever occur. Nobody changes one. */
const sets: Map<bigint, Set<string>> = new Map();

function named(mask: bigint): Set<string> {
  let set = sets.get(mask);
  if (set === undefined) {
    set = new Set(CAPABILITIES.filter((_, bit) => (mask >> BigInt(bit)) & 1n));
    sets.set(mask, set);
  }
  return set;
}

function inFirstNamespace(tid: number): boolean {
  const st = statAt(AT_FDCWD, `/proc/${tid}/ns/user`);
  return !(st instanceof Errno) && st.ino === FIRST_NAMESPACE;
}

function namesByBit(): string[] {
  const names: string[] = [];
  for (const [name, bit] of Object.entries(capability)) if (name !== "CAP_LAST_CAP") names[bit] = name;
  bugOn(names.length !== capability.CAP_LAST_CAP + 1, "a capability has no name");
  return names;
}
