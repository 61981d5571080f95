export type * from "./events.ts";
export { Trace, type TraceClock, type TraceListener, type TraceRecord } from "./trace.ts";
