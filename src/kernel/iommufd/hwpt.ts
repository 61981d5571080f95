/** What all hardware page tables share: a domain, once there is one, a fault queue if they were made with one, and whether PASIDs may use it. */
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommuDomain } from "../iommu/domain.ts";
import type { IommufdFault } from "./fault.ts";
import type { HwptPaging } from "./hw_pagetable.ts";
import { decUsers, IommufdObject } from "./object.ts";

export abstract class IommufdHwpt extends IommufdObject {
  /** Made so that it can be attached to a PASID. */
  readonly pasidCompat: boolean;
  /** Where page requests go; it has a user for this. */
  fault: IommufdFault | undefined = undefined;
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

  /** Frees the domain and lets go of the fault queue. */
  protected freeDomain(): void {
    this.#domain?.free();
    if (this.fault !== undefined) decUsers(this.fault);
  }

  /** The table that maps an IOAS: itself, or the parent of a nested one. */
  abstract get paging(): HwptPaging | undefined;

  /** Drops an attachment's user; the last of an automatic table destroys it. No lock held. */
  abstract put(): Step<void>;
}
