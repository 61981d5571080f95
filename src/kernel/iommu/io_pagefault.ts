/**
 * Page requests of devices: from the unit that receives them to whoever handles
 * them for the domain, and the answer back.
 *
 * A device asks for pages in groups. Requests other than a group's last are kept
 * (`FaultParam.partial`) until the last one comes; then they are an `IopfGroup`,
 * which goes to the handler of the domain that the requests' PASID is attached
 * to. The handler answers the group (`respond`) and gives it back (`free`), in
 * that order and once each: now, or whenever it likes, after it has taken the
 * group off its device's list (`dequeue`).
 *
 * A unit puts a device into its `IopfQueue` when the first domain with a handler
 * is attached to it and takes it out after the last. What still stands in the
 * device's list then is answered "invalid"; what a handler has dequeued stays
 * the handler's to answer.
 *
 * Invariant: a group is answered exactly once and freed after that; a request
 * that no domain handles is answered at once.
 *
 * Nothing here sleeps, so that a step of a task is one operation: the queue's,
 * the device's and the parameter's mutexes of Linux have nothing to guard. Nor
 * does a queue have a worker: whoever wants one for its groups brings it.
 *
 * Source: drivers/iommu/io-pgfault.c.
 */
import { EBUSY, EINVAL, ENODEV, ENOMEM, type Errno, KernelBug } from "../../lib/index.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { NO_PASID } from "./fault.ts";
import type { AttachHandle } from "./group.ts";
import type { IommuUnit } from "./unit.ts";

/** `pasid` says something. */
export const PAGE_REQUEST_PASID_VALID: number = 1 << 0;
/** The last of its group: it wants an answer. */
export const PAGE_REQUEST_LAST_PAGE: number = 1 << 1;

/** Source: struct iommu_fault_page_request. */
export interface PageRequest {
  /** PAGE_REQUEST_*. */
  readonly flags: number;
  readonly pasid: number;
  /** Page request group index: which group of the device it belongs to. */
  readonly grpid: number;
  /** What access is asked for; IOMMU_PGFAULT_PERM_*. */
  readonly perm: number;
  readonly addr: bigint;
}

/**
 * `success`: the page is there, try again. `invalid`: it is not, do not try again. `failure`: nothing of the kind will work,
 * send no more of them.
 */
export type PageResponseCode = "success" | "invalid" | "failure";

export interface PageResponse {
  readonly pasid: number;
  readonly grpid: number;
  readonly code: PageResponseCode;
}

/** Takes a group over; an error: it does not, and the group is answered "failure". */
export type IopfHandler = (group: IopfGroup) => Errno | undefined;

/** Page requests of one device, while it is in a queue. */
export class FaultParam {
  readonly dev: Device;
  readonly queue: IopfQueue;
  /** Requests whose group's last one has not come. */
  partial: PageRequest[] = [];
  /** Groups that no handler has dequeued. */
  readonly groups: Set<IopfGroup> = new Set();

  constructor(dev: Device, queue: IopfQueue) {
    this.dev = dev;
    this.queue = queue;
  }
}

export class IopfGroup {
  readonly param: FaultParam;
  /** What was attached where the requests came from. */
  readonly handle: AttachHandle;
  /** In the order they came; never empty. */
  readonly faults: readonly PageRequest[];
  /** The handler's name for it. */
  cookie = 0;
  readonly #last: PageRequest;
  #answered = false;
  #freed = false;

  /** Takes the group's earlier requests from `param` and stands in its list. */
  constructor(param: FaultParam, last: PageRequest, handle: AttachHandle) {
    this.param = param;
    this.handle = handle;
    this.#last = last;
    this.faults = [...param.partial.filter((r) => r.grpid === last.grpid), last];
    param.partial = param.partial.filter((r) => r.grpid !== last.grpid);
    param.groups.add(this);
    param.queue.groups++;
  }

  /** From here on the handler alone answers it. */
  dequeue(): void {
    this.param.groups.delete(this);
  }

  /** Answers the device. */
  respond(code: PageResponseCode): void {
    if (this.#answered) throw new KernelBug(`${this.param.dev.name}: group ${this.#last.grpid} of page requests is answered twice`);
    this.#answered = true;
    pageResponse(this.param.dev, this.#last, code);
    this.dequeue();
  }

  /** Its end. */
  free(): void {
    if (!this.#answered || this.#freed) {
      throw new KernelBug(
        `${this.param.dev.name}: group ${this.#last.grpid} of page requests is freed ${this.#freed ? "twice" : "unanswered"}`,
      );
    }
    this.#freed = true;
    this.param.queue.groups--;
    unitOf(this.param.dev).kernel.sched.freed(this);
  }
}

function unitOf(dev: Device): IommuUnit {
  if (dev.iommuUnit === undefined) throw new KernelBug(`${dev.name} made a page request, and is behind no unit`);
  return dev.iommuUnit;
}

function pageResponse(dev: Device, last: PageRequest, code: PageResponseCode): void {
  const { pasid, grpid } = last;
  const unit = unitOf(dev);
  const { trace } = unit.kernel;
  if (trace.on) trace.emit({ type: "iommu.page_response", device: dev.name, pasid, grpid, code });
  unit.pageResponse?.(dev, last, { pasid, grpid, code });
}

/** The devices of one unit whose page requests are taken. */
export class IopfQueue {
  readonly name: string;
  /** The device added last comes first. */
  readonly devices: FaultParam[] = [];
  /** Groups not yet freed. */
  groups = 0;

  constructor(kernel: Kernel, name: string) {
    this.name = name;
    kernel.leakChecks.set(`page requests of ${name}`, () => this.groups + this.devices.reduce((n, p) => n + p.partial.length, 0));
    kernel.leakChecks.set(`devices of ${name}`, () => this.devices.length);
  }

  /** ENODEV: its unit cannot answer. EBUSY: it is in a queue already. ENOMEM. */
  addDevice(dev: Device): Errno | undefined {
    const unit = dev.iommuUnit;
    if (unit?.pageResponse === undefined) return ENODEV;
    if (dev.faultParam !== undefined) return EBUSY;
    if (unit.kernel.fault.slab("iommu_fault_param")) return ENOMEM;
    dev.faultParam = new FaultParam(dev, this);
    this.devices.unshift(dev.faultParam);
    return undefined;
  }

  /** Nothing more is taken from the device; what no handler has dequeued is answered "invalid". */
  removeDevice(dev: Device): void {
    const param = dev.faultParam;
    if (param === undefined || param.queue !== this) throw new KernelBug(`${dev.name} is not in the queue ${this.name}`);
    param.partial = [];
    for (const group of [...param.groups]) {
      group.respond("invalid");
      group.free();
    }
    this.devices.splice(this.devices.indexOf(param), 1);
    dev.faultParam = undefined;
  }

  /** The unit's own queue overflowed: the last requests of groups may be lost, so none can be completed. */
  discardPartial(): void {
    for (const param of this.devices) param.partial = [];
  }
}

/** What is attached where the request comes from, if its domain handles requests. */
function findFaultHandler(dev: Device, request: PageRequest): { handle: AttachHandle; handler: IopfHandler } | undefined {
  const group = dev.iommuGroup;
  const pasid = (request.flags & PAGE_REQUEST_PASID_VALID) === 0 ? NO_PASID : request.pasid;
  let handle = group?.handleOf(pasid);
  if (handle === undefined && pasid !== NO_PASID && dev.iommuUnit?.userPasidTable === true) {
    const whole = group?.handleOf(NO_PASID);
    if (whole?.domain?.type === "nested") handle = whole;
  }
  const handler = handle?.domain?.iopfHandler;
  return handle === undefined || handler === undefined ? undefined : { handle, handler };
}

/**
 * A unit's driver received a page request. The caller keeps the device's attachments from changing meanwhile. EINVAL: nobody
 * handles it, and it has been answered "invalid". ENOMEM: there was no memory to keep it until its group's last one comes.
 */
export function reportDeviceFault(dev: Device, request: PageRequest): Errno | undefined {
  const kernel = unitOf(dev).kernel;
  const { pasid, grpid, addr, perm, flags } = request;
  const last = (flags & PAGE_REQUEST_LAST_PAGE) !== 0;
  if (kernel.trace.on) kernel.trace.emit({ type: "iommu.page_request", device: dev.name, pasid, grpid, addr, perm, last });
  const found = findFaultHandler(dev, request);
  const param = dev.faultParam;
  // In no queue, though a domain with a handler is attached: a PASID of a device that has none, which no driver was told of.
  if (found === undefined || param === undefined) {
    pageResponse(dev, request, "invalid");
    return EINVAL;
  }
  if (!last) {
    if (kernel.fault.slab("iopf_fault")) return ENOMEM;
    param.partial.push(request);
    return undefined;
  }
  // Without memory for it there is a group all the same, or its requests could not be answered; but no handler sees it.
  const aborted = kernel.fault.slab("iopf_group");
  const group = new IopfGroup(param, request, found.handle);
  if (aborted || found.handler(group) !== undefined) {
    kernel.printk(`${dev.name}: iopf with pasid ${pasid} aborted`);
    group.respond("failure");
    group.free();
  }
  return undefined;
}
