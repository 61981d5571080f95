/**
 * Objects of an iommufd context and the table of their ids.
 *
 * An object is born with one user (the table) and one wait count. A reader that
 * found it by id holds one of each until it puts it back. DESTROY takes the
 * table's user away only if it is the last one, else EBUSY. An owner outside
 * (a VFIO device, an in-kernel access) holds a user and destroys the object
 * itself, waiting for short-lived readers to leave.
 *
 * Ids are the lowest free number from 1. An id is reserved before the object is
 * complete and published when nothing can fail any more: a reserved id answers
 * ENOENT.
 *
 * Invariant: users ≥ 1 and waitCnt ≥ 1 while the object is in the table.
 * Source: drivers/iommu/iommufd/main.c.
 */
import { EBUSY, ENOENT, ENOMEM, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommufdCtx } from "./ctx.ts";

export type ObjectType =
  | "ioas"
  | "device"
  | "hwpt_paging"
  | "hwpt_nested"
  | "access"
  | "fault"
  | "viommu"
  | "vdevice"
  | "veventq"
  | "hw_queue"
  | "selftest";

export abstract class IommufdObject {
  abstract readonly type: ObjectType;
  /** 0 until the table gives one. */
  id = 0;
  /** Everybody who needs the object to stay, the table included. */
  users = 1;
  /** Readers inside a call, biased by one while the object is in the table. */
  waitCnt = 1;

  /** Frees what the object holds. It is no longer in the table and nobody uses it. */
  abstract destroy(): Step<void>;

  /** Undoes a construction whose object was never published; by default as `destroy`. */
  *abort(): Step<void> {
    yield* this.destroy();
  }

  /** Called before waiting for readers of an object that is to go. */
  *preDestroy(): Step<void> {}
}

/** What a slot holds between the allocation of an id and the publication of the object, and what a tombstone is. */
const RESERVED: unique symbol = Symbol("reserved");
type Slot = IommufdObject | typeof RESERVED | undefined;

export class ObjectTable {
  /** Index = id; slot 0 is never used. */
  readonly #slots: Slot[] = [undefined];
  /** No id below this one is free. */
  #lowestFree = 1;
  #used = 0;

  /** True when nothing is published, reserved, or left as a tombstone. */
  get empty(): boolean {
    return this.#used === 0;
  }

  /** Reserves the lowest free id for `obj`. */
  reserve(obj: IommufdObject): void {
    let id = this.#lowestFree;
    while (this.#slots[id] !== undefined) id++;
    this.#slots[id] = RESERVED;
    this.#lowestFree = id + 1;
    this.#used++;
    obj.id = id;
  }

  /** Publishes an object whose id is reserved. */
  publish(obj: IommufdObject): void {
    if (this.#slots[obj.id] !== RESERVED) throw new KernelBug(`iommufd object ${obj.id} is published twice`);
    this.#slots[obj.id] = obj;
  }

  /** Frees an id, reserved or published. */
  erase(id: number): void {
    if (this.#slots[id] === undefined) throw new KernelBug(`iommufd object ${id} is erased twice`);
    this.#slots[id] = undefined;
    this.#used--;
    if (id < this.#lowestFree) this.#lowestFree = id;
    while (this.#slots.length > 1 && this.#slots[this.#slots.length - 1] === undefined) this.#slots.pop();
  }

  /** Takes a published object out and keeps its id: no other object gets it. */
  bury(id: number): void {
    if (this.load(id) === undefined) throw new KernelBug(`iommufd object ${id} is buried and was not published`);
    this.#slots[id] = RESERVED;
  }

  /** Frees every id that is left. */
  clear(): void {
    this.#slots.length = 1;
    this.#used = 0;
    this.#lowestFree = 1;
  }

  /** The published object of that id. */
  load(id: number): IommufdObject | undefined {
    const s = this.#slots[id];
    return s === RESERVED ? undefined : s;
  }

  /** Published objects in id order; objects may come and go meanwhile. */
  *[Symbol.iterator](): Generator<IommufdObject, void, void> {
    for (let id = 1; id < this.#slots.length; id++) {
      const s = this.load(id);
      if (s !== undefined) yield s;
    }
  }
}

/** Takes a user and a wait count unless the object is on its way out. */
export function lockObject(obj: IommufdObject): boolean {
  if (obj.users === 0 || obj.waitCnt === 0) return false;
  obj.users++;
  obj.waitCnt++;
  return true;
}

/** Gives back what `lockObject` or `getObject` took. */
export function putObject(ctx: IommufdCtx, obj: IommufdObject): void {
  decUsers(obj);
  if (obj.waitCnt <= 0) throw new KernelBug(`iommufd object ${obj.id}: wait count underflow`);
  obj.waitCnt--;
  if (obj.waitCnt === 0) ctx.destroyWait.wakeUp();
}

/** Drops a long-lived user. */
export function decUsers(obj: IommufdObject, n = 1): void {
  if (obj.users < n) throw new KernelBug(`iommufd object ${obj.id} (${obj.type}): user count underflow`);
  obj.users -= n;
}

/** Reserves an id for a fresh object, which so far holds nothing that must be given back; ENOMEM. */
export function allocObject<T extends IommufdObject>(ctx: IommufdCtx, obj: T): T | Errno {
  const { fault } = ctx.kernel;
  if (fault.slab(`iommufd ${obj.type}`) || fault.slab("entry of objects")) return ENOMEM;
  ctx.objects.reserve(obj);
  return obj;
}

/** The last step of a construction: from here on others can find it. */
export function finalizeObject(ctx: IommufdCtx, obj: IommufdObject): void {
  ctx.objects.publish(obj);
  if (ctx.kernel.trace.on) ctx.kernel.trace.emit({ type: "iommufd.object", ctx: ctx.serial, id: obj.id, object: obj.type });
}

/** Undoes a construction: everything the object holds is freed, then its id. */
export function* abortObject(ctx: IommufdCtx, obj: IommufdObject): Step<void> {
  yield* obj.abort();
  ctx.objects.erase(obj.id);
  obj.users = 0;
}

/** The object of that id and class with a reference for this call; ENOENT for a missing, dying or different one. */
export function getObject<T extends IommufdObject>(ctx: IommufdCtx, id: number, cls: abstract new (...args: never[]) => T): T | Errno {
  const obj = ctx.kernel.fault.iommufd("object") ? undefined : ctx.objects.load(id);
  if (obj === undefined || !(obj instanceof cls) || !lockObject(obj)) return ENOENT;
  return obj;
}

/** The object of that id, whatever it is. */
export function getAnyObject(ctx: IommufdCtx, id: number): IommufdObject | Errno {
  return getObject(ctx, id, IommufdObject);
}

/** How long an owner waits for readers that never leave, ns. */
const DESTROY_TIMEOUT_NS = 60_000_000_000;

function* decWait(ctx: IommufdCtx, obj: IommufdObject): Step<Errno | undefined> {
  if (obj.waitCnt <= 0) throw new KernelBug(`iommufd object ${obj.id}: wait count underflow`);
  obj.waitCnt--;
  if (obj.waitCnt === 0) return undefined;
  yield* obj.preDestroy();
  let late = false;
  const timer = ctx.kernel.sched.timer(DESTROY_TIMEOUT_NS, () => {
    late = true;
    ctx.destroyWait.wakeUp();
  });
  yield* ctx.destroyWait.waitEvent(() => obj.waitCnt === 0 || late);
  timer.cancel();
  if (obj.waitCnt === 0) return undefined;
  ctx.kernel.printk("iommufd: Time out waiting for iommufd object to become free");
  obj.waitCnt++;
  return EBUSY;
}

function* destroyRemoved(ctx: IommufdCtx, obj: IommufdObject): Step<void> {
  if (ctx.kernel.trace.on) ctx.kernel.trace.emit({ type: "iommufd.destroy", ctx: ctx.serial, id: obj.id, object: obj.type });
  yield* obj.destroy();
  ctx.kernel.sched.freed(obj);
}

/** Removes a published object if nobody but the table uses it; the caller has made sure which object it is. */
function* removeIfUnused(
  ctx: IommufdCtx,
  obj: IommufdObject,
  { waited = false, tombstone = false }: { waited?: boolean; tombstone?: boolean } = {},
): Step<Errno | undefined> {
  if (obj.users !== 1) {
    if (waited) obj.waitCnt = 1;
    return EBUSY;
  }
  obj.users = 0;
  if (tombstone) ctx.objects.bury(obj.id);
  else ctx.objects.erase(obj.id);
  if (ctx.vfioIoas === obj) ctx.vfioIoas = undefined;
  if (!waited) {
    const e = yield* decWait(ctx, obj);
    if (e !== undefined) throw new KernelBug(`iommufd object ${obj.id} is still read though it has no user`);
  }
  yield* destroyRemoved(ctx, obj);
  return undefined;
}

/** IOMMU_DESTROY: ENOENT for no such object, EBUSY while anything uses it. */
export function* removeObjectById(ctx: IommufdCtx, id: number): Step<Errno | undefined> {
  const obj = ctx.objects.load(id);
  if (obj === undefined) return ENOENT;
  return yield* removeIfUnused(ctx, obj);
}

/** One more user of a published object, for somebody who holds none; false when it is on its way out. */
export function tryIncUsers(ctx: IommufdCtx, obj: IommufdObject): boolean {
  if (ctx.objects.load(obj.id) !== obj) return false;
  obj.users++;
  return true;
}

/** An outside owner gives up its object: waits for readers, drops the owner's user, destroys. */
export function* destroyOwnedObject(ctx: IommufdCtx, obj: IommufdObject): Step<void> {
  yield* removeOwned(ctx, obj, false);
}

/** The same of an object that the program made: its id stays taken until the context is closed. */
export function* tombstoneOwnedObject(ctx: IommufdCtx, obj: IommufdObject): Step<void> {
  yield* removeOwned(ctx, obj, true);
}

function* removeOwned(ctx: IommufdCtx, obj: IommufdObject, tombstone: boolean): Step<void> {
  if ((yield* decWait(ctx, obj)) !== undefined) {
    // Left for the close of the context, as the kernel leaves it.
    decUsers(obj);
    return;
  }
  decUsers(obj);
  const e = yield* removeIfUnused(ctx, obj, { waited: true, tombstone });
  if (e !== undefined) throw new KernelBug(`iommufd object ${obj.id} (${obj.type}) is still in use when its owner destroys it`);
}

/** Drops the caller's user and destroys the object if that was the last besides the table's. */
export function* putAndTryDestroy(ctx: IommufdCtx, obj: IommufdObject): Step<void> {
  decUsers(obj);
  if (ctx.objects.load(obj.id) === obj) yield* removeIfUnused(ctx, obj);
}

/** Close: destroys leaves until nothing is left. Throws `KernelBug` when the users form a cycle. */
export function* destroyAllObjects(ctx: IommufdCtx): Step<void> {
  for (;;) {
    let left = 0;
    let destroyed = 0;
    for (const obj of ctx.objects) {
      left++;
      if (obj.users !== 1) continue;
      obj.users = 0;
      ctx.objects.erase(obj.id);
      destroyed++;
      yield* destroyRemoved(ctx, obj);
    }
    if (left === 0) break;
    if (destroyed === 0) throw new KernelBug("iommufd: objects that use each other are left at close");
  }
  ctx.objects.clear();
}
