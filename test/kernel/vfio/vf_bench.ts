/** A function with one virtual function, both in vfio-pci's hands, and the token that opens the second. */
import { expect } from "vitest";
import type { PciFunctionDescription } from "../../../src/kernel/pci/pci_model.ts";
import { Errno } from "../../../src/lib/errno.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, type BenchOptions, RAM_BYTES, TINY } from "./bench.ts";

export const VF: PciFunctionDescription = {
  name: "tiny vf",
  vendor: 0xffff,
  device: 0x5679,
  class: 0xff0000,
  bars: [{ index: 0, size: RAM_BYTES, kind: "mem64", prefetch: true }],
  capabilities: { pcie: { flr: true } },
};
export const PF: PciFunctionDescription = { ...TINY, extended: { sriov: { totalVfs: 2, vfOffset: 8, vfStride: 8, vf: VF } } };

export class VfBench extends Bench {
  constructor(options: BenchOptions = {}) {
    super({ functions: [PF], params: { enableSriov: true }, ...options });
  }
  get pf(): string {
    return this.bdfs[0] as string;
  }
  /** Enables one VF and binds it; its bdf. */
  vf(): string {
    expect(this.kernelRun(this.kernel.pci.setNumVfs(this.pf, 1))).not.toBeInstanceOf(Errno);
    const vf = [...this.kernel.pci.devices.values()].find((d) => d.isVirtfn);
    if (vf === undefined) throw new Error("no VF");
    expect(this.bindDriver(vf.name)).toBeUndefined();
    return vf.name;
  }
  bindWithToken(fd: number, token: readonly number[]): number | Errno {
    const bytes = new Uint8Array(64);
    bytes.set(token, 32);
    const at = this.user(bytes);
    Object.assign(V.VfioDeviceBindIommufd.over(bytes), { argsz: 24, flags: 1, iommufd: this.iommufd, token_uuid_ptr: at + 32n });
    return this.ioctl(fd, V.VFIO_DEVICE_BIND_IOMMUFD, { bytes });
  }
}

export const TOKEN: readonly number[] = Array.from({ length: 16 }, (_, i) => i + 1);
