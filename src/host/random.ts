/** Random bytes of the kernel's: node:crypto takes longer to load than all of this layer. */
import { check, nr, reserve, syscall4 } from "./ffi.ts";
import { must } from "./host_error.ts";

const GETRANDOM = nr("getrandom");
const block = reserve(8);

/** A number below 2^48 that nobody can guess. Throws HostError where the system has none. */
export function random48(): number {
  // Up to 256 bytes come whole, and nothing interrupts it once the system has started.
  must("getrandom", check(syscall4(GETRANDOM, block.address, 6, 0, 0)));
  return (block.u32[0] as number) + ((block.u32[1] as number) & 0xffff) * 2 ** 32;
}
