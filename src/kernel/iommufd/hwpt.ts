/** What all hardware page tables share: a domain, once there is one, and whether PASIDs may use it. */
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommuDomain } from "../iommu/domain.ts";
import type { HwptPaging } from "./hw_pagetable.ts";
import { IommufdObject } from "./object.ts";

export abstract class IommufdHwpt extends IommufdObject {
  /** Made so that it can be attached to a PASID. */
  readonly pasidCompat: boolean;
  #domain: IommuDomain | undefined = undefined;

  constructor(pasidCompat: boolean) {
    super();
    this.pasidCompat = pasidCompat;
  }

  get domain(): IommuDomain {
    if (this.#domain === undefined) throw new KernelBug(`hardware page table ${this.id} has no domain yet`);
    return this.#domain;
  }

  get domainOrNone(): IommuDomain | undefined {
    return this.#domain;
  }

  setDomain(domain: IommuDomain): void {
    this.#domain = domain;
  }

  /** The table that maps an IOAS: itself, or the parent of a nested one. */
  abstract get paging(): HwptPaging | undefined;

  /** Drops an attachment's user; the last of an automatic table destroys it. No lock held. */
  abstract put(): Step<void>;
}
