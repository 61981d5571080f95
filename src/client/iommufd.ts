/** /dev/iommu: address spaces, their mappings, and page tables. */
import { Errno } from "../lib/errno.ts";
import * as u from "../uapi/index.ts";
import { IOMMU_OPTION_DMABUF_REVALIDATE } from "../uapi/proposed.ts";
import type { DmaBufHandle } from "./dma_buf.ts";
import { Handle, must } from "./handle.ts";

export interface MapOptions {
  /** Where to map; the kernel chooses when absent. */
  readonly iova?: bigint;
  /** Devices may read (default true). */
  readonly readable?: boolean;
  /** Devices may write (default true). */
  readonly writeable?: boolean;
}

export interface MapFileOptions extends MapOptions {
  /** First byte of the file to map (default 0). */
  readonly start?: bigint;
  /** Bytes to map. */
  readonly length: bigint;
}

export interface IovaRange {
  readonly start: bigint;
  /** Inclusive. */
  readonly last: bigint;
}

export interface IovaRanges {
  readonly ranges: readonly IovaRange[];
  /** Bytes; every map must be a multiple of it. */
  readonly alignment: bigint;
}

export interface HwptOptions {
  /** Id of the device that is to use it. */
  readonly device: number;
  /** Id of an IOAS or of a page table. */
  readonly parent: number;
  readonly flags?: number;
  /** IOMMU_HWPT_DATA_*, and the structure of that type. */
  readonly data?: { readonly type: number; readonly bytes: Uint8Array };
}

const mapFlags = (o: MapOptions): number =>
  (o.iova === undefined ? 0 : u.IOMMU_IOAS_MAP_FIXED_IOVA) |
  (o.readable === false ? 0 : u.IOMMU_IOAS_MAP_READABLE) |
  (o.writeable === false ? 0 : u.IOMMU_IOAS_MAP_WRITEABLE);

export class Iommufd extends Handle {
  /** A new, empty I/O address space. */
  allocIoas(): Ioas {
    const a = u.IommuIoasAlloc.alloc({ size: u.IommuIoasAlloc.size });
    this.call("IOMMU_IOAS_ALLOC", u.IOMMU_IOAS_ALLOC, a.bytes, {});
    return new Ioas(this, a.out_ioas_id);
  }

  /** Drops an object by id. EBUSY while anything uses it. */
  destroy(id: number): void {
    const a = u.IommuDestroy.alloc({ size: u.IommuDestroy.size, id });
    this.call("IOMMU_DESTROY", u.IOMMU_DESTROY, a.bytes, { id });
  }

  /**
   * A page table that a device can be attached to: over an IOAS, or with `data`, a driver's own description of a guest's table,
   * nested in a page table made with IOMMU_HWPT_ALLOC_NEST_PARENT. `flags`: IOMMU_HWPT_ALLOC_*.
   */
  allocHwpt(options: HwptOptions): Hwpt {
    const { device, parent, flags = 0, data } = options;
    return this.os.withMemory((alloc) => {
      const a = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, flags, dev_id: device, pt_id: parent });
      if (data !== undefined) {
        const buffer = alloc(data.bytes.length);
        buffer.set(data.bytes);
        u.IommuHwptAlloc.assign(a, { data_type: data.type, data_len: data.bytes.length, data_uptr: buffer.address });
      }
      this.call("IOMMU_HWPT_ALLOC", u.IOMMU_HWPT_ALLOC, a.bytes, { flags, dev_id: device, pt_id: parent, data_type: a.data_type });
      return new Hwpt(this, a.out_hwpt_id);
    });
  }

  /** Sets IOMMU_OPTION_* on the whole context (`object` 0) or one object. */
  setOption(option: number, value: bigint, object = 0): void {
    const a = u.IommuOption.alloc({
      size: u.IommuOption.size,
      option_id: option,
      op: u.IOMMU_OPTION_OP_SET,
      object_id: object,
      val64: value,
    });
    this.call("IOMMU_OPTION", u.IOMMU_OPTION, a.bytes, { option_id: option, object_id: object, val64: value });
  }

  /** Re-homes the pinned-memory accounting of memfd areas to the calling process. */
  changeProcess(): void {
    const a = u.IommuIoasChangeProcess.alloc({ size: u.IommuIoasChangeProcess.size });
    this.call("IOMMU_IOAS_CHANGE_PROCESS", u.IOMMU_IOAS_CHANGE_PROCESS, a.bytes, {});
  }

  /** What the IOMMU behind a bound device can do. */
  hwInfo(device: number): { readonly type: number; readonly capabilities: bigint; readonly data: Uint8Array } {
    return this.os.withMemory((alloc) => {
      const room = alloc(256);
      const a = u.IommuHwInfo.alloc({ size: u.IommuHwInfo.size, dev_id: device, data_len: room.length, data_uptr: room.address });
      this.call("IOMMU_GET_HW_INFO", u.IOMMU_GET_HW_INFO, a.bytes, { dev_id: device });
      return { type: a.out_data_type, capabilities: a.out_capabilities, data: room.get(0, Math.min(a.data_len, room.length)) };
    });
  }
}

/** An I/O address space: IOVAs, and what they map to. */
export class Ioas {
  readonly iommufd: Iommufd;
  readonly id: number;

  constructor(iommufd: Iommufd, id: number) {
    this.iommufd = iommufd;
    this.id = id;
  }

  /**
   * Mappings of dma-bufs made from now on come back by themselves after a
   * temporary revoke. Only where the interconnect is negotiated: EOPNOTSUPP otherwise.
   */
  restoreMappings(on = true): void {
    this.iommufd.setOption(IOMMU_OPTION_DMABUF_REVALIDATE, on ? 1n : 0n, this.id);
  }

  /** Usable IOVA ranges, and the alignment a map must have. */
  ranges(): IovaRanges {
    const os = this.iommufd.os;
    return os.withMemory((alloc) => {
      for (let room = 16; ; ) {
        const list = alloc(room * u.IommuIovaRange.size);
        const a = u.IommuIoasIovaRanges.alloc({
          size: u.IommuIoasIovaRanges.size,
          ioas_id: this.id,
          num_iovas: room,
          allowed_iovas: list.address,
        });
        const r = os.ioctlBytes(this.iommufd.fd, u.IOMMU_IOAS_IOVA_RANGES, a.bytes);
        if (r instanceof Errno && r.name === "EMSGSIZE" && a.num_iovas > room) {
          room = a.num_iovas;
          continue;
        }
        must(r, "IOMMU_IOAS_IOVA_RANGES", { ioas_id: this.id });
        const bytes = list.get();
        const ranges: IovaRange[] = [];
        for (let i = 0; i < a.num_iovas; i++) {
          const v = u.IommuIovaRange.over(bytes, i * u.IommuIovaRange.size);
          ranges.push({ start: v.start, last: v.last });
        }
        return { ranges, alignment: a.out_iova_alignment };
      }
    });
  }

  /**
   * Maps a part of a file: a memfd, or a dma-buf over the private interconnect.
   * Returns the IOVA.
   */
  mapFile(file: DmaBufHandle | Handle | number, options: MapFileOptions): bigint {
    const fd = typeof file === "number" ? file : file.fd;
    const a = u.IommuIoasMapFile.alloc({
      size: u.IommuIoasMapFile.size,
      flags: mapFlags(options),
      ioas_id: this.id,
      fd,
      start: options.start ?? 0n,
      length: options.length,
      iova: options.iova ?? 0n,
    });
    const { start, length, iova, flags } = a;
    this.request("IOMMU_IOAS_MAP_FILE", u.IOMMU_IOAS_MAP_FILE, a.bytes, { ioas_id: this.id, fd, start, length, iova, flags });
    return a.iova;
  }

  /** Maps the program's own memory at `address`. Returns the IOVA. */
  map(address: bigint, length: bigint, options: MapOptions = {}): bigint {
    const a = u.IommuIoasMap.alloc({
      size: u.IommuIoasMap.size,
      flags: mapFlags(options),
      ioas_id: this.id,
      user_va: address,
      length,
      iova: options.iova ?? 0n,
    });
    const { iova, flags } = a;
    this.request("IOMMU_IOAS_MAP", u.IOMMU_IOAS_MAP, a.bytes, { ioas_id: this.id, user_va: address, length, iova, flags });
    return a.iova;
  }

  /** Unmaps every area inside the range (whole areas only). Returns the bytes unmapped, dead ones included. */
  unmap(iova: bigint, length: bigint): bigint {
    const a = u.IommuIoasUnmap.alloc({ size: u.IommuIoasUnmap.size, ioas_id: this.id, iova, length });
    this.request("IOMMU_IOAS_UNMAP", u.IOMMU_IOAS_UNMAP, a.bytes, { ioas_id: this.id, iova, length });
    return a.length;
  }

  /** Unmaps everything. */
  unmapAll(): bigint {
    return this.unmap(0n, 0xffff_ffff_ffff_ffffn);
  }

  /** Maps into this IOAS the pages that `source` has at `sourceIova`. Returns the IOVA here. */
  copyFrom(source: Ioas, sourceIova: bigint, length: bigint, options: MapOptions = {}): bigint {
    const a = u.IommuIoasCopy.alloc({
      size: u.IommuIoasCopy.size,
      flags: mapFlags(options),
      dst_ioas_id: this.id,
      src_ioas_id: source.id,
      length,
      dst_iova: options.iova ?? 0n,
      src_iova: sourceIova,
    });
    this.request("IOMMU_IOAS_COPY", u.IOMMU_IOAS_COPY, a.bytes, {
      dst_ioas_id: this.id,
      src_ioas_id: source.id,
      length,
      dst_iova: options.iova ?? 0n,
      src_iova: sourceIova,
      flags: a.flags,
    });
    return a.dst_iova;
  }

  /** Large page-table entries on (the default) or off; only while nothing is mapped. */
  setHugePages(on: boolean): void {
    this.iommufd.setOption(u.IOMMU_OPTION_HUGE_PAGES, on ? 1n : 0n, this.id);
  }

  destroy(): void {
    this.iommufd.destroy(this.id);
  }

  private request(name: string, ioctl: number, bytes: Uint8Array, args: Record<string, unknown>): void {
    must(this.iommufd.os.ioctlBytes(this.iommufd.fd, ioctl, bytes), name, args);
  }
}

/** A hardware page table. */
export class Hwpt {
  readonly iommufd: Iommufd;
  readonly id: number;

  constructor(iommufd: Iommufd, id: number) {
    this.iommufd = iommufd;
    this.id = id;
  }

  /**
   * Says what changed in a guest's table: requests of one length, of the type IOMMU_HWPT_INVALIDATE_DATA_*. A failure ends
   * them; `entry_num` among the error's arguments is how many were carried out before.
   */
  invalidate(type: number, entries: readonly Uint8Array[]): void {
    const { os, fd } = this.iommufd;
    const length = entries[0]?.length ?? 0;
    if (entries.some((e) => e.length !== length)) throw new RangeError("invalidations of one call are of one length");
    os.withMemory((alloc) => {
      const list = alloc(Math.max(1, length * entries.length));
      for (const [i, e] of entries.entries()) list.set(e, i * length);
      const a = u.IommuHwptInvalidate.alloc({
        size: u.IommuHwptInvalidate.size,
        hwpt_id: this.id,
        data_uptr: list.address,
        data_type: type,
        entry_len: length,
        entry_num: entries.length,
      });
      const r = os.ioctlBytes(fd, u.IOMMU_HWPT_INVALIDATE, a.bytes);
      must(r, "IOMMU_HWPT_INVALIDATE", { hwpt_id: this.id, data_type: type, entry_num: a.entry_num });
    });
  }

  destroy(): void {
    this.iommufd.destroy(this.id);
  }
}
