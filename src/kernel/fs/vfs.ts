/**
 * Files and processes of one kernel: their making, their counting, their paths.
 *
 * The last put of a file does not release it on the spot: it may happen under
 * any lock. The release is left to the end of the running task's call (task
 * work, the file put last goes first) or, where no task runs, to a worker.
 *
 * Paths are those that a client of this machine needs: device nodes,
 * /proc/self/fd/N, and plain files below /tmp.
 *
 * Source: fs/file_table.c, fs/namei.c, fs/char_dev.c.
 */
import { EACCES, EEXIST, EISDIR, ENOENT, ENOMEM, ENOTDIR, ENXIO, EPERM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";
import {
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  O_ACCMODE,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOCTTY,
  O_PATH,
  O_RDONLY,
  O_TRUNC,
  S_IFCHR,
  S_IFDIR,
} from "../../uapi/index.ts";
import type { Kernel } from "../kernel.ts";
import { AddressSpace } from "../mm/address_space.ts";
import { Mm } from "../mm/mm.ts";
import { PageCache } from "../mm/page_cache.ts";
import { SimulatedFdTable } from "./fd_table.ts";
import { File, type FileOps, type FileStat } from "./file.ts";
import { cacheFile, cacheStat } from "./memfd.ts";
import { NULL_DEVICE } from "./null.ts";
import { type Credentials, Process, type ProcessOptions, RLIM_INFINITY, ROOT_CAPABILITIES, type UserStruct } from "./process.ts";

export interface DeviceNode {
  readonly major: number;
  readonly minor: number;
  /** Permissions; default 0o600, root's alone. */
  readonly mode?: number;
  readonly ops: FileOps;
  /** Called with the new file, which is not visible yet; an error refuses the open. */
  open?(file: File): Step<Errno | undefined>;
}

export interface NewFile {
  readonly flags: number;
  readonly privateData?: unknown;
  readonly path: string;
}

/** What F_GETFL does not show: consumed by open itself. */
const OPEN_ONLY = O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC;

/** A file opened with O_PATH: it names its object, and keeps it when that has no name of its own. */
const PATH_OPS: FileOps = {
  name: "path",
  stat: (f) => (f.privateData instanceof PageCache ? cacheStat(f.privateData, f.path) : { mode: 0, ...f.kernel.fs.deviceStat(f.path) }),
  *release(f) {
    if (f.privateData instanceof PageCache) f.privateData.put();
  },
};
/** A directory can be opened and looked at; what is in it, nobody asks here. */
const DIRECTORY_OPS: FileOps = {
  name: "directory",
  *read() {
    return EISDIR;
  },
  stat: () => ({ mode: S_IFDIR | 0o755, nlink: 2 }),
};

export class Vfs {
  /** Files that exist, those waiting for their release included. */
  openFiles = 0;
  /** Objects of struct mm. */
  liveMms = 0;
  /** Contexts of eventfds. */
  eventfds = 0;
  /** Files' page caches, files of /tmp included. */
  pageCaches = 0;
  readonly kernel: Kernel;
  readonly processes: Map<number, Process> = new Map();
  readonly users: Map<number, UserStruct> = new Map();
  readonly devices: Map<string, DeviceNode> = new Map();
  /** Users for whom permissions do not count, root among them. */
  readonly owners: Set<number> = new Set([0]);
  /** Path → content of the files below /tmp. */
  readonly tmpfs: Map<string, PageCache> = new Map();
  #nextPid = 1000;
  #nextIno = 1024;
  #nextEventfd = 0;
  /** Files put where no task runs, in order. */
  readonly #delayed: File[] = [];
  #released: WaitQueue | undefined = undefined;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
    this.registerDevice("/dev/null", NULL_DEVICE);
  }

  nextPid(): number {
    return this.#nextPid++;
  }

  nextIno(): number {
    return this.#nextIno++;
  }

  nextEventfdId(): number {
    return this.#nextEventfd++;
  }

  /** Pid of the calling process, 0 in a kernel thread. */
  get currentPid(): number {
    return (this.kernel.sched.currentOrNone?.owner as Process | undefined)?.pid ?? 0;
  }

  /** The user of a uid, the same object each time. */
  user(uid: number): UserStruct {
    let u = this.users.get(uid);
    if (u === undefined) {
      u = { uid, lockedVm: 0 };
      this.users.set(uid, u);
    }
    return u;
  }

  /** Pages charged to any user. */
  get lockedVm(): number {
    let n = 0;
    for (const u of this.users.values()) n += u.lockedVm;
    return n;
  }

  /** A process with no open files. By default root, 1024 descriptors, no limit on locked memory. */
  createProcess(options: ProcessOptions = {}): Process {
    const uid = options.uid ?? 0;
    const creds: Credentials = {
      uid,
      user: this.user(uid),
      capabilities: new Set(options.capabilities ?? (uid === 0 ? ROOT_CAPABILITIES : [])),
    };
    const rlimits = { nofile: options.nofile ?? 1024, memlock: options.memlock ?? RLIM_INFINITY };
    const mm = new Mm(this.kernel, options.memory ?? new AddressSpace(this.kernel));
    return new Process(this.kernel, options.name ?? "user", mm, new SimulatedFdTable(rlimits, this.kernel.fault), creds, rlimits);
  }

  /** A file with one reference, the caller's; ENOMEM. On failure whatever `file` would have held is still the caller's. */
  allocFile(ops: FileOps, file: NewFile): File | Errno {
    return this.kernel.fault.slab("file") ? ENOMEM : this.newFile(ops, file);
  }

  /** The same for one without a name (anon_inode_getfile): its entry of the name cache comes first. */
  allocAnonFile(ops: FileOps, file: NewFile): File | Errno {
    return this.kernel.fault.slab("dentry") ? ENOMEM : this.allocFile(ops, file);
  }

  /** A file that stands for one that exists already, in a real process. */
  newFile(ops: FileOps, { flags, privateData, path }: NewFile): File {
    this.openFiles++;
    return new File(this.kernel, ops, flags & ~OPEN_ONLY, privateData, path);
  }

  /** Puts a reference. The last one has the file released when the running call ends, or by a worker. */
  fput(file: File): void {
    if (!file.count.put()) return;
    const task = this.kernel.sched.currentOrNone;
    if (task !== undefined && task.owner !== undefined) {
      task.taskWork.push(() => this.#release(file));
      return;
    }
    this.#delayed.push(file);
    if (this.#delayed.length === 1) this.kernel.sched.spawn("delayed_fput", () => this.#releaseDelayed());
  }

  /**
   * Waits until every file is released that was put where no task runs: for
   * whoever comes after a close that was not a call of its own. May sleep.
   */
  *releasesDone(): Step<void> {
    const last = this.#delayed.at(-1);
    if (last === undefined) return;
    this.#released ??= new WaitQueue(this.kernel.sched, "delayed_fput");
    yield* this.#released.waitEvent(() => !this.#delayed.includes(last));
  }

  /** Puts a reference and, if it was the last, releases the file before it returns. Holds no lock. */
  *fputSync(file: File): Step<void> {
    if (file.count.put()) yield* this.#release(file);
  }

  /** Runs the running task's deferred work now. Holds no lock. */
  *flushTaskWork(): Step<void> {
    const { taskWork } = this.kernel.sched.current;
    for (let work = taskWork.splice(0); work.length > 0; work = taskWork.splice(0)) {
      for (const w of work.reverse()) yield* w();
    }
  }

  /** A node in /dev; opening it calls `device.open`. */
  registerDevice(path: string, device: DeviceNode): void {
    if (this.devices.has(path)) throw new KernelBug(`${path} is registered already`);
    this.devices.set(path, device);
  }

  /** The node goes; files that are open stay. */
  unregisterDevice(path: string): void {
    if (!this.devices.delete(path)) throw new KernelBug(`${path} is not registered`);
  }

  /** Opens a path for the current process; a file with one reference. */
  *openPath(path: string, flags: number, mode = 0o600): Step<File | Errno> {
    const proc = /^\/proc\/(?:self|\d+)\/fd\/(\d+)$/.exec(path);
    if (proc !== null) return yield* this.#reopen(Number(proc[1]), flags);
    const device = this.devices.get(path);
    if (device !== undefined) return yield* this.#openDevice(path, device, flags);
    if (/^\/tmp\/[^/]+$/.test(path)) return this.#openTmp(path, flags, mode);
    if (isDirectory(path, this.devices)) return this.#openDirectory(path, flags);
    return ENOENT;
  }

  /** Forgets a file below /tmp (unlink). ENOENT. */
  unlink(path: string): Errno | undefined {
    const cache = this.tmpfs.get(path);
    if (cache === undefined) return ENOENT;
    this.tmpfs.delete(path);
    cache.put();
    return undefined;
  }

  *#openDevice(path: string, device: DeviceNode, flags: number): Step<File | Errno> {
    if ((flags & O_DIRECTORY) !== 0) return ENOTDIR;
    if ((flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0) return EEXIST;
    if ((flags & O_PATH) !== 0) return this.#pathFile(path, flags);
    if (!this.#mayOpen(device.mode ?? 0o600, flags)) return EACCES;
    const file = this.allocFile(device.ops, { flags, path });
    if (file instanceof Errno) return file;
    const error = device.open === undefined ? undefined : yield* device.open(file);
    if (error !== undefined) {
      // Never opened, so never released: the file only stops to exist.
      this.openFiles--;
      return error;
    }
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "fs.open", path, flags });
    return file;
  }

  /** stat of a device node that is open. */
  deviceStat(path: string): FileStat | undefined {
    const d = this.devices.get(path);
    return d === undefined ? undefined : { mode: S_IFCHR | (d.mode ?? 0o600), rdev: (d.major << 8) | d.minor };
  }

  #openDirectory(path: string, flags: number): File | Errno {
    if ((flags & O_PATH) !== 0) return this.#pathFile(path, flags);
    if ((flags & (O_ACCMODE | O_CREAT)) !== 0) return EISDIR;
    return this.allocFile(DIRECTORY_OPS, { flags, path });
  }

  #openTmp(path: string, flags: number, mode: number): File | Errno {
    let cache = this.tmpfs.get(path);
    if (cache === undefined) {
      if ((flags & O_CREAT) === 0 || (flags & O_PATH) !== 0) return ENOENT;
      cache = new PageCache(this.kernel, path);
      cache.mode = mode & 0o777;
      cache.seals = F_SEAL_SEAL;
      this.tmpfs.set(path, cache);
    } else if ((flags & O_PATH) === 0) {
      if ((flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0) return EEXIST;
      if ((flags & O_DIRECTORY) !== 0) return ENOTDIR;
      if (!this.#mayOpen(cache.mode, flags)) return EACCES;
    }
    if ((flags & O_PATH) !== 0) return this.#pathFile(path, flags, cache);
    if ((flags & O_TRUNC) !== 0) cache.truncate(0n);
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "fs.open", path, flags });
    return cacheFile(cache.get(), flags, path);
  }

  *#reopen(fd: number, flags: number): Step<File | Errno> {
    const of = this.kernel.current.files.getRaw(fd);
    if (of instanceof Errno) return ENOENT;
    const cache = of.isPath ? of.privateData : of.ops.pageCache?.(of);
    if ((flags & O_PATH) !== 0) return this.#pathFile(of.path, flags, cache instanceof PageCache ? cache : undefined);
    if (cache instanceof PageCache) {
      if (!this.#mayOpen(cache.mode, flags)) return EACCES;
      if ((flags & O_TRUNC) !== 0) {
        if (cache.size > 0n && (cache.seals & F_SEAL_SHRINK) !== 0) return EPERM;
        cache.truncate(0n);
      }
      if (this.kernel.trace.on) this.kernel.trace.emit({ type: "fs.open", path: of.path, flags });
      return cacheFile(cache.get(), flags, of.path);
    }
    // A device's node is opened anew by its name; what never had a name cannot be opened again.
    return this.devices.has(of.path) ? yield* this.openPath(of.path, flags) : ENXIO;
  }

  /** A file that only names `path`, and holds its content if given. */
  #pathFile(path: string, flags: number, cache?: PageCache): File | Errno {
    const file = this.allocFile(PATH_OPS, { flags: flags & (O_PATH | O_CLOEXEC), privateData: cache, path });
    if (!(file instanceof Errno)) cache?.get();
    return file;
  }

  #mayOpen(mode: number, flags: number): boolean {
    const p = this.kernel.current;
    if (this.owners.has(p.creds.uid) || p.capable("CAP_DAC_OVERRIDE")) return true;
    const access = flags & O_ACCMODE;
    const want = access === O_RDONLY ? 4 : access === 1 ? 2 : 6;
    return (mode & want) === want;
  }

  *#release(file: File): Step<void> {
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "fs.release", path: file.path });
    try {
      if (file.ops.release !== undefined) yield* file.ops.release(file);
    } finally {
      this.openFiles--;
    }
    this.kernel.sched.freed(file);
  }

  *#releaseDelayed(): Step<void> {
    for (let f = this.#delayed[0]; f !== undefined; f = this.#delayed[0]) {
      yield* this.#release(f);
      this.#delayed.shift();
      this.#released?.wakeUp();
    }
  }
}

/** `/dev`, `/dev/vfio`, `/tmp`…: a directory on the way to something that exists. */
function isDirectory(path: string, devices: Map<string, DeviceNode>): boolean {
  const prefix = path.endsWith("/") ? path : `${path}/`;
  if (prefix === "/" || prefix === "/tmp/" || prefix === "/proc/") return true;
  for (const p of devices.keys()) if (p.startsWith(prefix)) return true;
  return false;
}
