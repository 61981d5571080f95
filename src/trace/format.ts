/** An event as one line of text: its type, then its fields, addresses in hexadecimal. */
import type { TraceRecord } from "./trace.ts";

/** `vfio.reset device=0000:01:00.0`; the log's own lines stand alone. */
export function formatEvent(record: TraceRecord): string {
  const { event } = record;
  if (event.type === "sched.printk") return event.text;
  const parts: string[] = [event.type];
  for (const [name, value] of Object.entries(event)) {
    if (name !== "type" && value !== undefined) parts.push(`${name}=${formatValue(value)}`);
  }
  return parts.join(" ");
}

function formatValue(value: unknown): string {
  if (typeof value === "bigint") return `0x${value.toString(16)}`;
  if (typeof value === "string") return /[\s=]/.test(value) ? JSON.stringify(value) : value;
  if (Array.isArray(value)) return `[${value.map(formatValue).join(",")}]`;
  return String(value);
}
