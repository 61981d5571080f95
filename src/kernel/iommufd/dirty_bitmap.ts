/**
 * A bitmap in the caller's memory: one bit per page of IOVA, set where a page was
 * written. Bits are only ever added. A bitmap that cannot be written takes no
 * more, silently.
 *
 * A page of the bitmap is read when a bit in it is first set, and written back
 * when another one is needed, or by `flush`: a bit at a time would be two copies.
 *
 * Source: drivers/iommu/iommufd/iova_bitmap.c.
 */
import { PAGE_MASK_N, PAGE_SIZE } from "../../lib/addr.ts";
import type { DirtyRecorder } from "../iommu/domain.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromPinned, copyToPinned } from "../mm/user_memory.ts";

export class DirtyBitmap implements DirtyRecorder {
  readonly #kernel: Kernel;
  readonly #base: bigint;
  readonly #shift: bigint;
  readonly #data: bigint;
  #broken = false;
  /** Bytes of the page of the bitmap at `#page`. */
  readonly #bytes = new Uint8Array(PAGE_SIZE);
  #page = -1n;
  /** Bytes of it that were changed: [#from, #to). */
  #from = PAGE_SIZE;
  #to = 0;

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
    for (let at = first >> 3n; at <= lastByte && !this.#broken; ) {
      const address = this.#data + at;
      if (!this.#enter(address & ~PAGE_MASK_N)) return;
      const offset = Number(address & PAGE_MASK_N);
      const room = PAGE_SIZE - offset;
      const n = lastByte - at < BigInt(room) ? Number(lastByte - at) + 1 : room;
      const begin = first > at << 3n ? Number(first & 7n) : 0;
      const end = at + BigInt(n) > lastByte ? Number(last - (at << 3n)) : n * 8 - 1;
      this.#set(offset, begin, end);
      at += BigInt(n);
    }
  }

  /** Writes back what is not yet. To be called once all is recorded. */
  flush(): void {
    if (this.#broken || this.#from >= this.#to) return;
    this.#broken = copyToPinned(this.#kernel, this.#page + BigInt(this.#from), this.#bytes.subarray(this.#from, this.#to)) > 0;
    this.#from = PAGE_SIZE;
    this.#to = 0;
  }

  /** Makes the page at `address` the one in hand; false when that cannot be. */
  #enter(address: bigint): boolean {
    if (address === this.#page) return true;
    this.flush();
    this.#page = address;
    this.#broken ||= copyFromPinned(this.#kernel, this.#bytes, address) > 0;
    return !this.#broken;
  }

  /** Sets bits [begin, end], counted from byte `offset` of the page. */
  #set(offset: number, begin: number, end: number): void {
    const bytes = this.#bytes;
    const [head, tail] = [offset + (begin >> 3), offset + (end >> 3)];
    const headMask = (0xff << (begin & 7)) & 0xff;
    const tailMask = 0xff >> (7 - (end & 7));
    if (head === tail) {
      bytes[head] = (bytes[head] as number) | (headMask & tailMask);
    } else {
      bytes[head] = (bytes[head] as number) | headMask;
      bytes.fill(0xff, head + 1, tail);
      bytes[tail] = (bytes[tail] as number) | tailMask;
    }
    if (head < this.#from) this.#from = head;
    if (tail >= this.#to) this.#to = tail + 1;
  }
}
