export type * from "./events.ts";
export { formatEvent } from "./format.ts";
export { Trace, type TraceClock, type TraceListener, type TraceRecord } from "./trace.ts";
