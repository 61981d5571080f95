/** What the module keeps per kernel: its parameters, its open contexts, its counters. */
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Kernel } from "../kernel.ts";
import type { IommufdCtx } from "./ctx.ts";

export class IommufdModule {
  /** Module parameter: bind devices whose interrupts the platform cannot isolate. */
  allowUnsafeInterrupts = false;
  /** Contexts not yet released. */
  readonly contexts: Set<IommufdCtx> = new Set();
  /** Contexts made since boot. */
  nextSerial = 1;
  /** `iopt_pages` not yet released. */
  livePages = 0;
  /** Areas in every IOAS. */
  liveAreas = 0;
}

const modules: WeakMap<Kernel, IommufdModule> = new WeakMap();

/** Makes the module's state; once per kernel. */
export function makeIommufdModule(kernel: Kernel): IommufdModule {
  if (modules.has(kernel)) throw new KernelBug("iommufd is loaded twice");
  const m = new IommufdModule();
  modules.set(kernel, m);
  return m;
}

/** The module of a kernel on which it is loaded. */
export function iommufdModule(kernel: Kernel): IommufdModule {
  const m = modules.get(kernel);
  if (m === undefined) throw new KernelBug("iommufd is not loaded");
  return m;
}
