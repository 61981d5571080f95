/** A dma-buf: a piece of a device's memory behind a descriptor. */
import * as u from "../uapi/index.ts";
import { Handle, must } from "./handle.ts";

export class DmaBufHandle extends Handle {
  /** Bytes. */
  get size(): bigint {
    return must(this.os.lseek(this.fd, 0n, u.SEEK_END), "lseek", { fd: this.fd, whence: "SEEK_END" });
  }

  /** Names the buffer, as fdinfo shows it. At most 32 bytes. */
  setName(name: string): void {
    const bytes = new TextEncoder().encode(`${name}\0`);
    this.os.withMemory((alloc) => {
      const m = alloc(bytes.length);
      m.set(bytes);
      must(this.os.ioctl(this.fd, u.DMA_BUF_SET_NAME_B, m.address), "DMA_BUF_SET_NAME", { name });
    });
  }
}
