/** A descriptor the program owns, and the one way its calls succeed or throw. */
import { Errno } from "../lib/errno.ts";
import { type CallArguments, CallError } from "./error.ts";
import type { Transport } from "./transport.ts";

/** The value, or a thrown `CallError` that names the call and its arguments. */
export function must<T>(result: T | Errno, call: string, args: CallArguments): T {
  if (result instanceof Errno) throw new CallError(call, args, result);
  return result;
}

export class Handle {
  readonly os: Transport;
  /** The descriptor; -1 once closed. */
  #fd: number;

  constructor(os: Transport, fd: number) {
    this.os = os;
    this.#fd = fd;
  }

  get fd(): number {
    return this.#fd;
  }

  get closed(): boolean {
    return this.#fd < 0;
  }

  /** close(2). A second close does nothing. */
  close(): void {
    if (this.#fd < 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    must(this.os.close(fd), "close", { fd });
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** An ioctl whose struct is `bytes`; its answer is in them afterwards. Returns what ioctl(2) returns. */
  protected call(name: string, request: number, bytes: Uint8Array, args: CallArguments): number {
    return must(this.os.ioctlBytes(this.#fd, request, bytes), name, args);
  }
}
