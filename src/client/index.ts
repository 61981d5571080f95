/** barlink for a TypeScript program, in reading order. */

export { DmaBufHandle } from "./dma_buf.ts";
export { EmbeddedHost, type Translated } from "./embedded_host.ts";
export { EmbeddedTransport } from "./embedded_transport.ts";
export { type CallArguments, CallError } from "./error.ts";
export { Handle } from "./handle.ts";
export { Host } from "./host.ts";
export { Hwpt, type HwptOptions, Ioas, Iommufd, type IovaRange, type IovaRanges, type MapFileOptions, type MapOptions } from "./iommufd.ts";
export { readMachine } from "./machine_file.ts";
export { Program } from "./program.ts";
export type { FileStatus, Mapping, PollRequest, Signal, Transport, UserBuffer } from "./transport.ts";
export { type ExportOptions, Region, type RegionInfo, VfioDevice } from "./vfio.ts";
