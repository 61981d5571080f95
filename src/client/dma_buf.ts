/** A dma-buf: a piece of a device's memory behind a descriptor. */
import * as u from "../uapi/index.ts";
import * as p from "../uapi/proposed.ts";
import { Handle, must } from "./handle.ts";

const STATES = ["live", "revoked", "dead"] as const;

export interface DmaBufState {
  readonly state: (typeof STATES)[number];
  /** Attachments. */
  readonly importers: number;
  /** Mappings of importers that did not let go; the buffer stays revoked while there are any. */
  readonly fenced: number;
  /** Revokes so far. */
  readonly epoch: bigint;
}

export class DmaBufHandle extends Handle {
  /** Bytes. */
  get size(): bigint {
    return must(this.os.lseek(this.fd, 0n, u.SEEK_END), "lseek", { fd: this.fd, whence: "SEEK_END" });
  }

  /**
   * What its exporter and importers have agreed on says of it now; also ends the
   * POLLPRI that says "changed". Only on a machine whose interconnect is
   * negotiated: ENOTTY otherwise.
   */
  state(): DmaBufState {
    return this.os.withMemory((alloc) => {
      const m = alloc(p.DmaBufQueryState.size);
      must(this.os.ioctl(this.fd, p.DMA_BUF_IOCTL_QUERY_STATE, m.address), "DMA_BUF_IOCTL_QUERY_STATE", {});
      const s = p.DmaBufQueryState.over(m.get());
      return { state: STATES[s.state] ?? "dead", importers: s.importers, fenced: s.fenced, epoch: s.epoch };
    });
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
