/**
 * The state of a machine in a word, as far as a run of a scenario can change it.
 *
 * Two states with one word behave alike: what every descriptor, buffer, object,
 * area, mapping and device says of itself is in it, and every count of what
 * exists. Left out is what no call can tell apart: the addresses and serial
 * numbers of things, virtual time, what lockdep has learned (which the explorer
 * takes back itself).
 */
import type { Process } from "../kernel/fs/process.ts";
import { ledgerOf } from "../kernel/iommu/ledger.ts";
import { IommufdIoas } from "../kernel/iommufd/ioas.ts";
import { iommufdModule } from "../kernel/iommufd/module.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { VfioPciCoreDevice } from "../kernel/vfio/pci/vfio_pci_core.ts";
import { vfioOf } from "../kernel/vfio/vfio_main.ts";
import { Errno } from "../lib/errno.ts";

/** Descriptors that are looked at. */
const DESCRIPTORS = 32;

function bytesOf(bytes: Uint8Array): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < bytes.length; i++) h = Math.imul(h ^ (bytes[i] as number), 0x01000193);
  return h;
}

function deviceOf(d: VfioPciCoreDevice): string {
  const { pdev, vdev } = d;
  let s = `${vdev.registrations} ${vdev.openCount} ${pdev.currentState} ${pdev.enabled} ${pdev.pm.status} ${pdev.pm.usageCount} ${d.pmRuntimeEngaged}`;
  s += ` ${d.memoryEnabled()} ${d.memoryLock.locked} ${bytesOf(d.vconfig)} ${d.irqType} ${d.irqCtx.size} ${d.needsReset} ${d.ioeventfds.length}`;
  for (const b of d.dmabufs) {
    const { dmabuf } = b;
    s += ` [${b.revoked} ${b.kref.count} ${b.comp.satisfied()} ${dmabuf.file.count.count} ${dmabuf.resv.locked}`;
    const contract = dmabuf.negotiated;
    if (contract !== undefined) s += ` ${contract.state}:${contract.fenced}:${contract.attachments.map((a) => a.handles.size).join()}`;
    for (const a of dmabuf.attachments) s += ` ${a.dev.name}:${a.pins}:${a.maps}`;
    s += "]";
  }
  return s;
}

function contextsOf(kernel: Kernel): string {
  let s = "";
  for (const ctx of iommufdModule(kernel).contexts) {
    s += " (";
    for (const o of ctx.objects) {
      s += ` ${o.id}:${o.type}:${o.users}:${o.waitCnt}`;
      if (!(o instanceof IommufdIoas)) continue;
      const { iopt } = o;
      s += `:${iopt.areas.size}:${iopt.reserved.size}:${iopt.allowed.size}:${iopt.domains.length}:${iopt.accesses.length}:${iopt.iovaAlignment}`;
      for (const a of iopt.areas) s += ` ${a.start}-${a.last}:${a.prot}:${a.index}:${a.numAccesses}:${a.numLocks}:${a.pages?.npinned}`;
    }
    s += ")";
  }
  return s;
}

/** Of a kernel on which vfio-pci and iommufd are loaded, and one process. */
export function fingerprint(kernel: Kernel, process: Process): string {
  const { sched, frames, fs } = kernel;
  let s = `${sched.liveTasks().length} ${sched.pendingTimers} ${frames.live} ${frames.pinned} ${fs.openFiles} ${fs.lockedVm} ${process.files.size}`;
  for (const count of kernel.leakChecks.values()) s += ` ${count()}`;
  for (let fd = 0; fd < DESCRIPTORS; fd++) {
    const f = process.files.get(fd);
    if (!(f instanceof Errno)) s += ` ${fd}=${f.path}:${f.count.count}`;
  }
  s += contextsOf(kernel);
  for (const d of vfioOf(kernel).devices) {
    const core = kernel.pci.devices.get(d.dev.name)?.driverData;
    if (core instanceof VfioPciCoreDevice) s += ` {${deviceOf(core)}}`;
  }
  for (const [domain, e] of ledgerOf(kernel) ?? []) s += ` ${domain}:${e.start}-${e.last}:${e.pa}:${e.prot}`;
  return s;
}
