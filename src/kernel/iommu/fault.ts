/**
 * Faults: why an access was refused, and the line the kernel logs for it.
 *
 * A unit names the cause; each driver has its own codes for it. VT-d reports a
 * reason code per fault record, AMD an IO_PAGE_FAULT event with flags.
 * Source: VT-d specification 7.1.3 (fault conditions), table "fault reasons";
 * AMD I/O virtualization specification 2.5.3 (IO_PAGE_FAULT);
 * drivers/iommu/intel/dmar.c and drivers/iommu/amd/iommu.c for the log lines.
 */
import { hex } from "../../lib/index.ts";

/** What stopped a nested access in the guest's first stage, or on the way to it. */
export type NestedFaultCause =
  | "first-stage-not-canonical"
  | "first-stage-not-present"
  | "first-stage-reserved"
  /** A user's request, and a page of the supervisor. */
  | "first-stage-supervisor"
  /** The address of an entry is wider than the second stage. */
  | "first-stage-beyond-width"
  /** The second stage does not let an entry be read. */
  | "first-stage-unreadable"
  /** The second stage does not let the A or D bit of an entry be set. */
  | "first-stage-unwritable"
  /** Nobody answers where an entry is. */
  | "first-stage-lost"
  /** The first stage leads to where the second has nothing. */
  | "second-stage";

/** What stopped the access. */
export type FaultCause =
  | NestedFaultCause
  /** Nothing is configured for the requester, or it is blocked. */
  | "no-domain"
  /** The PASID of the request has no domain. */
  | "no-pasid"
  | "not-present"
  | "read-denied"
  | "write-denied"
  /** The address does not fit the table. */
  | "beyond-width"
  /** An access to the interrupt window that is no interrupt. */
  | "interrupt-window";

/** An access that did not happen. */
export class IommuFault {
  /** Requester id, bus << 8 | device << 3 | function. */
  readonly requester: number;
  /** As sysfs names the requester. */
  readonly device: string;
  readonly iova: bigint;
  readonly write: boolean;
  readonly pasid: number;
  /** Id of the domain it was looked up in; 0 when none. */
  readonly domain: number;
  readonly cause: FaultCause;
  /** VT-d: the fault reason code. AMD: the event's flags. */
  readonly reason: number;
  /** The code in words. */
  readonly why: string;
  /** The line of the kernel's log. */
  readonly text: string;

  constructor(f: Omit<IommuFault, never>) {
    this.requester = f.requester;
    this.device = f.device;
    this.iova = f.iova;
    this.write = f.write;
    this.pasid = f.pasid;
    this.domain = f.domain;
    this.cause = f.cause;
    this.reason = f.reason;
    this.why = f.why;
    this.text = f.text;
  }
}

/** A request without a PASID. */
export const NO_PASID = 0;

/** A fault before a driver has put its code to it. */
export interface FaultFacts {
  readonly requester: number;
  readonly device: string;
  readonly iova: bigint;
  readonly write: boolean;
  readonly pasid: number;
  readonly domain: number;
  readonly cause: FaultCause;
}

/** `0000:01:00.0` of a requester id nobody registered. */
export function bdfOf(rid: number): string {
  const h = (v: number, digits: number): string => v.toString(16).padStart(digits, "0");
  return `0000:${h(rid >> 8, 2)}:${h((rid >> 3) & 31, 2)}.${rid & 7}`;
}

/** A VT-d fault record; `code` is the reason, `why` its text. Reasons 0x20 … 0x2f are the interrupt remapper's. */
export function intelFault(f: FaultFacts, code: number, why: string): IommuFault {
  const access = f.write ? "DMA Write" : "DMA Read";
  const pasid = f.pasid === NO_PASID ? "NO_PASID" : `PASID ${hex(f.pasid)}`;
  const page = f.iova & ~0xfffn;
  const codeText = `0x${code.toString(16).padStart(2, "0")}`;
  const remap = code >= 0x20 && code < 0x30;
  const text = remap
    ? `DMAR: [INTR-REMAP] Request device [${f.device}] fault index ${hex(f.iova >> 48n)} [fault reason ${codeText}] ${why}`
    : `DMAR: [${access} ${pasid}] Request device [${f.device}] fault addr ${hex(page)} [fault reason ${codeText}] ${why}`;
  return new IommuFault({ ...f, reason: code, why, text });
}

/** An AMD event. */
export function amdFault(f: FaultFacts, flags: number, why: string): IommuFault {
  const h4 = (v: number): string => `0x${v.toString(16).padStart(4, "0")}`;
  const text = `AMD-Vi: Event logged [IO_PAGE_FAULT device=${f.device} domain=${h4(f.domain)} address=${hex(f.iova)} flags=${h4(flags)}]`;
  return new IommuFault({ ...f, reason: flags, why, text });
}
