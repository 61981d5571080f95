/** A program's view of one operating system: what it can open. */

import { ENODEV } from "../lib/errno.ts";
import { O_CLOEXEC, O_RDWR } from "../uapi/index.ts";
import { CallError } from "./error.ts";
import { Handle, must } from "./handle.ts";
import { Iommufd } from "./iommufd.ts";
import type { Transport } from "./transport.ts";
import { VfioDevice } from "./vfio.ts";

export class Program<T extends Transport = Transport> {
  /** The bare system calls, which return errnos and throw nothing. */
  readonly os: T;

  constructor(os: T) {
    this.os = os;
  }

  /** Opens /dev/iommu: a new, empty context. */
  openIommufd(): Iommufd {
    return new Iommufd(this.os, this.#open("/dev/iommu"));
  }

  /** Opens the VFIO character device of a PCI device, `0000:01:00.0`. */
  openDevice(address: string): VfioDevice {
    const path = this.os.vfioDevicePath(address);
    if (path === undefined) throw new CallError("open", { device: address }, ENODEV);
    return new VfioDevice(this.os, this.#open(path), address);
  }

  /** A memfd of `length` bytes. */
  createMemfd(name: string, length: bigint, flags = 0): Handle {
    const fd = must(this.os.memfdCreate(name, flags), "memfd_create", { name, flags });
    must(this.os.ftruncate(fd, length), "ftruncate", { fd, length });
    return new Handle(this.os, fd);
  }

  #open(path: string): number {
    const flags = O_RDWR | O_CLOEXEC;
    return must(this.os.open(path, flags), "open", { path, flags });
  }
}
