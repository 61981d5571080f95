/** Every event barlink emits: a union told apart by `type`. One file per subsystem in `events/`. */
import type { DmaBufEvent } from "./events/dma_buf.ts";
import type { IommuEvent } from "./events/iommu.ts";
import type { IommufdEvent } from "./events/iommufd.ts";
import type { MmEvent } from "./events/mm.ts";
import type { PciEvent } from "./events/pci.ts";
import type { SchedEvent } from "./events/sched.ts";
import type { VfioEvent } from "./events/vfio.ts";

export type TraceEvent = SchedEvent | MmEvent | PciEvent | IommuEvent | DmaBufEvent | VfioEvent | IommufdEvent;
export type { DmaBufEvent, IommuEvent, IommufdEvent, MmEvent, PciEvent, SchedEvent, VfioEvent };
