/**
 * A chain of capabilities behind an info struct.
 *
 * Each has an eight-byte header: id (u16), version (u16), next (u32, offset
 * from the start of the whole answer; 0 ends the chain). Every one begins at a
 * multiple of eight. Source: vfio_info_cap_add in vfio_main.c, uapi vfio.h.
 */
import type { Kernel } from "../kernel.ts";

const HEADER_BYTES = 8;
const align8 = (n: number): number => (n + 7) & ~7;

export class InfoCaps {
  readonly #caps: { readonly id: number; readonly version: number; readonly body: Uint8Array }[] = [];

  /** Bytes of the whole chain. */
  get size(): number {
    let n = 0;
    for (const c of this.#caps) n += align8(HEADER_BYTES + c.body.length);
    return n;
  }

  /** Adds one at the end; `body` is what follows the header. */
  add(id: number, version: number, body: Uint8Array = new Uint8Array(0)): void {
    this.#caps.push({ id, version, body });
  }

  /** There is no memory for the chain, which grows with each capability. */
  lacksMemory(kernel: Kernel): boolean {
    return this.#caps.some((c) => kernel.fault.slab("vfio_info_cap", HEADER_BYTES + c.body.length));
  }

  /** The chain as it stands at `base` bytes from the start of the answer. */
  bytesAt(base: number): Uint8Array {
    const out = new Uint8Array(this.size);
    const view = new DataView(out.buffer);
    let at = 0;
    this.#caps.forEach((c, i) => {
      const end = at + align8(HEADER_BYTES + c.body.length);
      view.setUint16(at, c.id, true);
      view.setUint16(at + 2, c.version, true);
      view.setUint32(at + 4, i + 1 < this.#caps.length ? base + end : 0, true);
      out.set(c.body, at + HEADER_BYTES);
      at = end;
    });
    return out;
  }
}
