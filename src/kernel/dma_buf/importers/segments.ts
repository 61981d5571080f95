/** Finding a byte of a buffer in a scatter list. */
import type { SgEntry } from "../mapping.ts";

/** The bus address of byte `offset`; undefined past the end. */
export function segmentAt(segments: readonly SgEntry[], offset: bigint): bigint | undefined {
  let skip = offset;
  for (const s of segments) {
    if (skip < s.length) return s.address + skip;
    skip -= s.length;
  }
  return undefined;
}
