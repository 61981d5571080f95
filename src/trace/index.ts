export type * from "./events.ts";
export { formatEvent } from "./format.ts";
export { type PerfettoEvent, PerfettoWriter } from "./perfetto.ts";
export { Trace, type TraceClock, type TraceListener, type TraceRecord } from "./trace.ts";
