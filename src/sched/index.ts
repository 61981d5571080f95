export { LockClass, Lockdep, type LockLike } from "./lockdep.ts";
export { Mutex, RwSem, WwAcquireCtx, WwMutex } from "./locks.ts";
export { Refcount } from "./refcount.ts";
export { Sched, type SchedObserver, type Timer, WouldBlock } from "./sched.ts";
export { type Held, type Named, type PointOp, type SchedPoint, type Step, type Steps, Task, type TaskState } from "./task.ts";
export { Completion, Waitable, WaitQueue } from "./wait.ts";
