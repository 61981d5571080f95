export * from "./addr.ts";
export * from "./errno.ts";
export * from "./fifo.ts";
export * from "./interval_tree.ts";
export * from "./kernel_bug.ts";
export * from "./rng.ts";
