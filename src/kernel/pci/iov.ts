/**
 * SR-IOV: making virtual functions of a physical one, and taking them away.
 *
 * A VF answers config cycles while the PF's VF Enable is set; its vendor and
 * device id read ffff there, it has no memory enable of its own and no INTx.
 * Its BARs are slices of the PF's VF BARs. The kernel gives it the PF's bridge
 * and lock class, and a device of its own, in its own IOMMU group where the
 * path isolates it.
 *
 * Source: drivers/pci/iov.c, PCIe 5.0 chapter 9.
 */
import { EBUSY, EINVAL, ENOMEM, type Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { PCI_SRIOV_BAR, PCI_SRIOV_CTRL, PCI_SRIOV_CTRL_MSE, PCI_SRIOV_CTRL_VFE, PCI_SRIOV_NUM_VF } from "../../uapi/pci_regs.ts";
import { bdfName } from "./bdf.ts";
import { configTemplate } from "./config_template.ts";
import { PciFunction } from "./function.ts";
import { PciDev } from "./pci_dev.ts";
import type { PciModel, SriovCapability } from "./pci_model.ts";
import { NO_RESOURCE, NUM_BARS, type PciResource } from "./resource.ts";

const MS = 1_000_000;

/** A PF's model makes its VFs' models. */
export interface SriovModel extends PciModel {
  /** Model of VF `index`, with the description of the capability's `vf`. */
  makeVf(index: number): PciModel;
}

export class PciIov {
  readonly dev: PciDev;
  readonly capability: SriovCapability;
  /** By BAR: the range of all VFs' BARs together. */
  readonly resources: readonly PciResource[];
  numVfs = 0;
  readonly vfs: PciDev[] = [];

  constructor(dev: PciDev, capability: SriovCapability, resources: readonly PciResource[]) {
    this.dev = dev;
    this.capability = capability;
    this.resources = resources;
  }

  get #ctrlAt(): number {
    return this.dev.fn.template.sriovCap + PCI_SRIOV_CTRL;
  }

  setEnabled(numVfs: number): void {
    const cap = this.dev.fn.template.sriovCap;
    const ctrl = this.dev.configRead(this.#ctrlAt, 2) & ~(PCI_SRIOV_CTRL_VFE | PCI_SRIOV_CTRL_MSE);
    if (numVfs > 0) {
      for (let i = 0; i < NUM_BARS; i++) {
        const r = this.resources[i];
        if (r === undefined || r.length === 0n) continue;
        this.dev.configWrite(cap + PCI_SRIOV_BAR + 4 * i, 4, Number(r.start & 0xffff_ffffn));
        if (r.flags.mem64) this.dev.configWrite(cap + PCI_SRIOV_BAR + 4 * i + 4, 4, Number(r.start >> 32n));
      }
    }
    this.dev.configWrite(cap + PCI_SRIOV_NUM_VF, 2, numVfs);
    this.dev.configWrite(this.#ctrlAt, 2, numVfs > 0 ? ctrl | PCI_SRIOV_CTRL_VFE | PCI_SRIOV_CTRL_MSE : ctrl);
  }

  /** After a reset of the PF: sriov_restore_state. */
  restore(): void {
    if (this.numVfs === 0 || (this.dev.configRead(this.#ctrlAt, 2) & PCI_SRIOV_CTRL_VFE) !== 0) return;
    this.setEnabled(this.numVfs);
    for (const vf of this.vfs) vf.fn.updateDecode();
  }
}

/** EBUSY: VFs are enabled already; EINVAL: more than there are; ENOMEM: bus numbers or memory run out, and there is none then. */
export function* enableSriov(dev: PciDev, numVfs: number): Step<Errno | undefined> {
  const iov = dev.iov;
  if (iov === undefined || numVfs < 1 || numVfs > iov.capability.totalVfs) return EINVAL;
  if (iov.numVfs > 0) return EBUSY;
  const ridOf = (i: number): number => dev.rid + iov.capability.vfOffset + i * iov.capability.vfStride;
  // A VF on another bus than the PF's would need that bus reserved below the same bridge.
  if (ridOf(numVfs - 1) >> 8 !== dev.pciBus.number) return ENOMEM;
  yield* dev.cfgAccessLock();
  iov.setEnabled(numVfs);
  yield* dev.kernel.sched.sleep(100 * MS);
  dev.cfgAccessUnlock();
  for (let i = 0; i < numVfs; i++) {
    if (dev.kernel.fault.slab("pci_dev")) {
      yield* removeVfs(iov);
      return ENOMEM;
    }
    addVf(iov, i, ridOf(i));
  }
  iov.numVfs = numVfs;
  const trace = dev.kernel.trace;
  if (trace.on) trace.emit({ type: "pci.sriov", device: dev.name, vfs: iov.vfs.map((v) => v.name) });
  return undefined;
}

function addVf(iov: PciIov, index: number, rid: number): void {
  const pf = iov.dev;
  const d = iov.capability.vf;
  const template = configTemplate(d, true);
  const model = (pf.model as SriovModel).makeVf(index);
  if (model.description !== d) throw new TypeError(`${pf.name}: a VF's model must have the description of the SR-IOV capability's vf`);
  const resources = Array.from({ length: NUM_BARS + 1 }, (_, i): PciResource => {
    const all = iov.resources[i];
    const bar = template.bars[i];
    return all === undefined || bar === undefined
      ? NO_RESOURCE
      : { start: all.start + bar.size * BigInt(index), length: bar.size, flags: all.flags };
  });
  const name = bdfName(rid);
  const fn = new PciFunction(pf.kernel, model, template, template.bytes, pf.fn.parent, name, {
    pf: pf.fn,
    bars: resources.map((r) => r.start),
  });
  const vf = new PciDev({
    kernel: pf.kernel,
    name,
    rid,
    bus: pf.pciBus,
    fn,
    multifunction: false,
    resources,
    hasResetSlot: false,
    physfn: pf,
  });
  iov.vfs.push(vf);
  pf.kernel.pci.add(vf);
}

/** Unbinds and removes all VFs; a VF's driver may keep it waiting. */
export function* disableSriov(dev: PciDev): Step<void> {
  const iov = dev.iov;
  if (iov === undefined || iov.numVfs === 0) return;
  yield* removeVfs(iov);
  iov.numVfs = 0;
  const trace = dev.kernel.trace;
  if (trace.on) trace.emit({ type: "pci.sriov", device: dev.name, vfs: [] });
}

/** Those that there are, the last one first; then the PF has none. */
function* removeVfs(iov: PciIov): Step<void> {
  const { dev } = iov;
  for (const vf of [...iov.vfs].reverse()) yield* dev.kernel.pci.removeDevice(vf.name);
  iov.vfs.length = 0;
  yield* dev.cfgAccessLock();
  iov.setEnabled(0);
  yield* dev.kernel.sched.sleep(1000 * MS);
  dev.cfgAccessUnlock();
}
