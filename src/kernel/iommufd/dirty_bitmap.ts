/**
 * A bitmap in the caller's memory: one bit per page of IOVA, set where a page was
 * written. Bits are only ever added. A bitmap that cannot be written takes no
 * more, silently. Source: drivers/iommu/iommufd/iova_bitmap.c.
 */

import type { DirtyRecorder } from "../iommu/domain.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";

export class DirtyBitmap implements DirtyRecorder {
  readonly #kernel: Kernel;
  readonly #base: bigint;
  readonly #shift: bigint;
  readonly #data: bigint;
  #broken = false;

  /** Bit 0 of `data` stands for `base`; a bit covers the lowest set bit of `pageSize`. */
  constructor(kernel: Kernel, base: bigint, pageSize: bigint, data: bigint) {
    this.#kernel = kernel;
    this.#base = base;
    this.#shift = BigInt((pageSize & -pageSize).toString(2).length - 1);
    this.#data = data;
  }

  record(iova: bigint, length: bigint): void {
    const first = (iova - this.#base) >> this.#shift;
    const last = (iova + length - 1n - this.#base) >> this.#shift;
    const lastByte = last >> 3n;
    const chunk = new Uint8Array(4096);
    for (let at = first >> 3n; at <= lastByte && !this.#broken; ) {
      const n = Number(lastByte - at + 1n < 4096n ? lastByte - at + 1n : 4096n);
      const bytes = chunk.subarray(0, n);
      this.#broken = copyFromUser(this.#kernel, bytes, this.#data + at) > 0;
      if (this.#broken) return;
      const from = first > at << 3n ? Number(first - (at << 3n)) : 0;
      const end = Number(last - (at << 3n));
      for (let bit = from; bit <= end && bit < n * 8; bit++) bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) | (1 << (bit & 7));
      this.#broken = copyToUser(this.#kernel, this.#data + at, bytes) > 0;
      at += BigInt(n);
    }
  }
}
