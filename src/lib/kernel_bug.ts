/**
 * A broken kernel invariant: a WARN_ON, a refcount underflow, a lock order
 * cycle, a call made without the lock it demands. Never a user's mistake.
 */
export class KernelBug extends Error {
  constructor(message: string) {
    super(message);
    this.name = "KernelBug";
  }
}

/** Throws `KernelBug` when `condition` is true, as WARN_ON_ONCE would print. */
export function bugOn(condition: boolean, message: string): asserts condition is false {
  if (condition) throw new KernelBug(message);
}

/** For a switch that must be exhaustive. */
export function assertUnreachable(value: never): never {
  throw new KernelBug(`unreachable: ${String(value)}`);
}
