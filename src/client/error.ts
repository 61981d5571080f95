/** How a failed call reaches a TypeScript program. */
import type { Errno } from "../lib/errno.ts";
import { explain } from "./explain.ts";

/** The arguments of a call, by the field names of its struct. */
export type CallArguments = Readonly<Record<string, unknown>>;

export class CallError extends Error {
  /** The call, as the kernel headers name it: `IOMMU_IOAS_MAP_FILE`. */
  readonly call: string;
  readonly args: CallArguments;
  readonly errno: Errno;
  /** What the errno means for this call. */
  readonly meaning: string;

  constructor(call: string, args: CallArguments, errno: Errno) {
    const meaning = explain(call, errno) ?? errno.meaning;
    super(`${call}(${formatArguments(args)}) failed with ${errno.name}: ${meaning}`);
    this.meaning = meaning;
    this.name = "CallError";
    this.call = call;
    this.args = args;
    this.errno = errno;
  }
}

function formatArguments(args: CallArguments): string {
  return Object.entries(args)
    .map(([k, v]) => `${k}: ${formatValue(v)}`)
    .join(", ");
}

function formatValue(value: unknown): string {
  if (typeof value === "bigint") return `0x${value.toString(16)}`;
  if (Array.isArray(value)) return `[${value.map(formatValue).join(", ")}]`;
  if (typeof value === "object" && value !== null) return `{${formatArguments(value as CallArguments)}}`;
  return String(value);
}
