/** What this layer throws: a call of the host that a caller cannot do without has failed, or there is no such host. */
import { Errno } from "../lib/errno.ts";

export class HostError extends Error {
  /** The call that failed, `"seccomp"`; `"platform"` when this layer cannot run here at all. */
  readonly call: string;
  /** What it failed with; undefined for `"platform"`. */
  readonly errno: Errno | undefined;

  constructor(call: string, errno: Errno | undefined, message: string) {
    super(message);
    this.name = "HostError";
    this.call = call;
    this.errno = errno;
  }
}

/** The value of a call that must not fail: throws what it failed with, and says what it was for. */
export function must<T>(call: string, value: T | Errno, what = ""): T {
  if (value instanceof Errno) {
    throw new HostError(call, value, `${call}${what === "" ? "" : ` (${what})`}: ${value.name}, ${value.meaning}`);
  }
  return value;
}
