/**
 * What a module keeps of one kernel, without the kernel knowing of the module.
 *
 * It lies in the kernel itself, so that it goes when the kernel goes.
 */
import type { Kernel } from "./kernel.ts";

export class PerKernel<T> {
  get(kernel: Kernel): T | undefined {
    return kernel.moduleState.get(this) as T | undefined;
  }

  has(kernel: Kernel): boolean {
    return kernel.moduleState.has(this);
  }

  set(kernel: Kernel, value: T): void {
    kernel.moduleState.set(this, value);
  }

  /** What is there, or what `make` makes of it the first time. */
  getOr(kernel: Kernel, make: (kernel: Kernel) => T): T {
    let value = this.get(kernel);
    if (value === undefined) {
      value = make(kernel);
      this.set(kernel, value);
    }
    return value;
  }
}
