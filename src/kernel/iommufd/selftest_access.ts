/**
 * In-kernel accesses as the selftest has them: a descriptor per access, and a
 * list of what was pinned through it, which an unmap empties.
 *
 * Lock: `lock`, held around a pin and its entry in the list, so that an unmap
 * that asks for the pages finds them there; outside the access's own.
 * Source: selftest_access in drivers/iommu/iommufd/selftest.c.
 */
import { PAGE_MASK_N, PAGE_SIZE_N, type Pfn, U64_MAX } from "../../lib/addr.ts";
import { EBADE, EBADFD, EFAULT, ENOENT, ENOMEM, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import { O_CLOEXEC, O_RDWR } from "../../uapi/index.ts";
import {
  type IommuTestCmd,
  MOCK_ACCESS_RW_SLOW_PATH,
  MOCK_ACCESS_RW_WRITE,
  MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES,
  MOCK_FLAGS_ACCESS_SYZ,
  MOCK_FLAGS_ACCESS_WRITE,
} from "../../uapi/iommufd_test.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { File, FileOps } from "../fs/file.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import {
  type IommufdAccess,
  iommufdAccessAttach,
  iommufdAccessCreate,
  iommufdAccessDestroy,
  iommufdAccessPinPages,
  iommufdAccessReplace,
  iommufdAccessRw,
  iommufdAccessUnpinPages,
} from "./access.ts";
import type { IommufdCtx } from "./ctx.ts";
import type { IoPagetable } from "./io_pagetable.ts";
import { userPage } from "./selftest_check.ts";
import { respond, type Ucmd } from "./ucmd.ts";

type TestCmd = ViewOf<typeof IommuTestCmd>;

const LOCK: LockClass = new LockClass("selftest_access.lock");
/** Of pages or of bytes at once. */
const MOST_BYTES = 16n * 1024n * 1024n;

interface Item {
  readonly id: number;
  readonly iova: bigint;
  readonly length: bigint;
}

class SelftestAccess {
  readonly lock: Mutex;
  /** Pages are pinned through it, not only copied. */
  readonly pins: boolean;
  /** Undefined until it is complete. */
  access: IommufdAccess | undefined = undefined;
  /** Under `lock`. */
  items: Item[] = [];
  /** Under `lock`. */
  nextId = 0;

  constructor(kernel: Kernel, pins: boolean) {
    this.lock = new Mutex(kernel.sched, LOCK);
    this.pins = pins;
  }

  get complete(): IommufdAccess {
    if (this.access === undefined) throw new KernelBug("an access of the selftest is used before it is complete");
    return this.access;
  }

  /** Gives back what lies in the range. */
  *unmap(iova: bigint, length: bigint): Step<void> {
    const last = iova + length - 1n;
    yield* this.lock.lock();
    try {
      for (const item of [...this.items]) {
        if (iova > item.iova + item.length - 1n || last < item.iova) continue;
        this.items.splice(this.items.indexOf(item), 1);
        yield* iommufdAccessUnpinPages(this.complete, item.iova, item.length);
      }
    } finally {
      this.lock.unlock();
    }
  }

  *fuzzedIova(iova: bigint): Step<bigint> {
    const { ioasLock, ioas } = this.complete;
    yield* ioasLock.lock();
    try {
      return ioas === undefined ? 0n : yield* fuzzedIova(ioas.iopt, iova);
    } finally {
      ioasLock.unlock();
    }
  }
}

/** IOVA of a fuzzer, which knows no addresses: the number of an area in the low half, an offset in the high one; 0 for no area. */
export function* fuzzedIova(iopt: IoPagetable, iova: bigint): Step<bigint> {
  yield* iopt.iovaSem.downRead();
  const area = [...iopt.areas][Number(iova & 0xffff_ffffn)];
  iopt.iovaSem.upRead();
  return area === undefined ? 0n : BigInt.asUintN(64, area.start + (iova >> 32n));
}

const accessFops: FileOps = {
  name: "iommufd-selftest-access",
  *release(f: File): Step<void> {
    const s = f.privateData as SelftestAccess;
    if (s.access === undefined) return;
    yield* s.unmap(0n, U64_MAX);
    yield* iommufdAccessDestroy(s.access);
  },
};

/** The access behind a descriptor, with a reference on its file; EBADFD. */
function getAccess(kernel: Kernel, fd: number): { s: SelftestAccess; file: File } | Errno {
  const file = kernel.current.files.fget(fd | 0);
  if (file instanceof Errno) return EBADFD;
  if (file.ops === accessFops) return { s: file.privateData as SelftestAccess, file };
  kernel.fs.fput(file);
  return EBADFD;
}

/** IOMMU_TEST_OP_CREATE_ACCESS. EOPNOTSUPP: unknown flags; ENOMEM: no descriptor; what the attach says. */
export function* createAccess(ucmd: Ucmd, cmd: TestCmd): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const { kernel } = ctx;
  const { flags } = cmd.create_access;
  if ((flags & ~MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES) !== 0) return EOPNOTSUPP;
  if (kernel.fault.slab("selftest_access")) return ENOMEM;
  const s = new SelftestAccess(kernel, flags !== 0);
  const file = kernel.fs.allocAnonFile(accessFops, { flags: O_RDWR, privateData: s, path: "anon_inode:[iommufd_test_staccess]" });
  if (file instanceof Errno) return file;
  const { files } = kernel.current;
  const fd = files.getUnused(O_CLOEXEC);
  if (fd instanceof Errno) {
    kernel.fs.fput(file);
    return ENOMEM;
  }
  const access = iommufdAccessCreate(ctx, { needsPinPages: s.pins, unmap: (iova, length) => s.unmap(iova, length) });
  if (access instanceof Errno) {
    files.putUnused(fd);
    kernel.fs.fput(file);
    return access;
  }
  let e = yield* iommufdAccessAttach(access, cmd.id);
  if (e === undefined) {
    cmd.create_access.out_access_fd = fd;
    e = respond(ucmd, cmd);
  }
  if (e !== undefined) {
    yield* iommufdAccessDestroy(access);
    files.putUnused(fd);
    kernel.fs.fput(file);
    return e;
  }
  s.access = access;
  files.install(fd, file);
  return undefined;
}

/** IOMMU_TEST_OP_ACCESS_REPLACE_IOAS. */
export function* accessReplaceIoas({ kernel }: IommufdCtx, fd: number, ioasId: number): Step<Errno | undefined> {
  const a = getAccess(kernel, fd);
  if (a instanceof Errno) return a;
  try {
    return yield* iommufdAccessReplace(a.s.complete, ioasId);
  } finally {
    kernel.fs.fput(a.file);
  }
}

/** IOMMU_TEST_OP_ACCESS_PAGES. EBADE: the pages are not those of the program's memory, where it says which. */
export function* accessPages(ucmd: Ucmd, cmd: TestCmd): Step<Errno | undefined> {
  const { kernel } = ucmd.ctx;
  const { flags, length } = cmd.access_pages;
  if (length > MOST_BYTES) return ENOMEM;
  if ((flags & ~(MOCK_FLAGS_ACCESS_WRITE | MOCK_FLAGS_ACCESS_SYZ)) !== 0) return EOPNOTSUPP;
  const a = getAccess(kernel, cmd.id);
  if (a instanceof Errno) return a;
  const { s } = a;
  try {
    if (!s.pins) return EOPNOTSUPP;
    if (kernel.fault.slab("array of pages", Number(length / PAGE_SIZE_N) * 8)) return ENOMEM;
    const iova = (flags & MOCK_FLAGS_ACCESS_SYZ) === 0 ? cmd.access_pages.iova : yield* s.fuzzedIova(cmd.access_pages.iova);
    yield* s.lock.lock();
    try {
      return yield* pinItem(ucmd, cmd, s, iova, length);
    } finally {
      s.lock.unlock();
    }
  } finally {
    kernel.fs.fput(a.file);
  }
}

function* pinItem(ucmd: Ucmd, cmd: TestCmd, s: SelftestAccess, iova: bigint, length: bigint): Step<Errno | undefined> {
  const { flags, uptr } = cmd.access_pages;
  const pfns = yield* iommufdAccessPinPages(s.complete, iova, length, flags & MOCK_FLAGS_ACCESS_WRITE);
  if (pfns instanceof Errno) return pfns;
  let e = uptr === 0n ? undefined : samePages(ucmd.ctx.kernel, uptr - (iova & PAGE_MASK_N), pfns);
  if (e === undefined && ucmd.ctx.kernel.fault.slab("selftest_access_item")) e = ENOMEM;
  if (e === undefined) {
    const id = s.nextId++;
    cmd.access_pages.out_access_pages_id = id;
    e = respond(ucmd, cmd);
    if (e === undefined) s.items.push({ id, iova, length });
  }
  if (e !== undefined) yield* iommufdAccessUnpinPages(s.complete, iova, length);
  return e;
}

function samePages(kernel: Kernel, uptr: bigint, pfns: readonly Pfn[]): Errno | undefined {
  for (const [i, pfn] of pfns.entries()) {
    const own = userPage(kernel, BigInt.asUintN(64, uptr + BigInt(i) * PAGE_SIZE_N));
    if (own instanceof Errno) return own;
    if (own !== pfn) return EBADE;
  }
  return undefined;
}

/** IOMMU_TEST_OP_DESTROY_ACCESS_PAGES. ENOENT: nothing of that id, or an unmap has had it. */
export function* destroyAccessPages({ kernel }: IommufdCtx, fd: number, id: number): Step<Errno | undefined> {
  const a = getAccess(kernel, fd);
  if (a instanceof Errno) return a;
  const { s, file } = a;
  yield* s.lock.lock();
  try {
    const i = s.items.findIndex((item) => item.id === id);
    const item = s.items[i];
    if (item === undefined) return ENOENT;
    s.items.splice(i, 1);
    yield* iommufdAccessUnpinPages(s.complete, item.iova, item.length);
    return undefined;
  } finally {
    s.lock.unlock();
    kernel.fs.fput(file);
  }
}

/** IOMMU_TEST_OP_ACCESS_RW: between the program's buffer and the IOVAs. */
export function* accessRw({ kernel }: IommufdCtx, fd: number, rw: TestCmd["access_rw"]): Step<Errno | undefined> {
  const { flags, length, uptr } = rw;
  if (length > MOST_BYTES) return ENOMEM;
  if ((flags & ~(MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH | MOCK_FLAGS_ACCESS_SYZ)) !== 0) return EOPNOTSUPP;
  const a = getAccess(kernel, fd);
  if (a instanceof Errno) return a;
  try {
    if (kernel.fault.slab("buffer", Number(length))) return ENOMEM;
    const data = new Uint8Array(Number(length));
    const write = (flags & MOCK_ACCESS_RW_WRITE) !== 0;
    if (write && copyFromUser(kernel, data, uptr) !== 0) return EFAULT;
    const iova = (flags & MOCK_FLAGS_ACCESS_SYZ) === 0 ? rw.iova : yield* a.s.fuzzedIova(rw.iova);
    const e = yield* iommufdAccessRw(a.s.complete, iova, data, flags);
    if (e !== undefined) return e;
    return !write && copyToUser(kernel, uptr, data) !== 0 ? EFAULT : undefined;
  } finally {
    kernel.fs.fput(a.file);
  }
}
