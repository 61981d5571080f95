/** What the module keeps per kernel: its parameters, its open contexts, its counters. */
import type { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommuIoasCopy } from "../../uapi/iommufd.ts";
import type { IommuTestCmd } from "../../uapi/iommufd_test.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { PrivateMap } from "../dma_buf/interconnect.ts";
import type { Kernel } from "../kernel.ts";
import { PerKernel } from "../per_kernel.ts";
import type { IommufdCtx } from "./ctx.ts";
import type { Ucmd } from "./ucmd.ts";

/** In whose name the selftest reserves IOVAs, which nobody frees but the end of the IOAS. */
export const SELFTEST_RESERVATION = "selftest";

/** What a kernel built with its selftest has besides. */
export interface IommufdSelftest {
  /** IOMMU_TEST_CMD. */
  execute(ucmd: Ucmd, cmd: ViewOf<typeof IommuTestCmd>): Step<Errno | number | undefined>;
  /** A copy that a fuzzer asks for, whose source is the number of an area and an offset in it, gets the IOVA that is meant. */
  convertCopy(ctx: IommufdCtx, cmd: ViewOf<typeof IommuIoasCopy>): Step<void>;
  /** Where a buffer of the test exporter is; EOPNOTSUPP for any other. */
  readonly privateMap: PrivateMap;
}

export class IommufdModule {
  /** Module parameter: bind devices whose interrupts the platform cannot isolate. */
  allowUnsafeInterrupts = false;
  /** The kernel was built for its own tests. */
  selftest: IommufdSelftest | undefined = undefined;
  /** Contexts not yet released. */
  readonly contexts: Set<IommufdCtx> = new Set();
  /** Contexts made since boot. */
  nextSerial = 1;
  /** `iopt_pages` not yet released. */
  livePages = 0;
  /** Areas in every IOAS. */
  liveAreas = 0;
}

const modules: PerKernel<IommufdModule> = new PerKernel();

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
