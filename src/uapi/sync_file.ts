/** Fences as files (include/uapi/linux/sync_file.h). */
import { _IOW, _IOWR } from "./ioctl.ts";
import { struct } from "./struct.ts";

/** A new file, `fence`, that stands for the fences of the file called and of `fd2`. */
export const SyncMergeData = struct("sync_merge_data", {
  name: ["u8", 32],
  fd2: "s32",
  fence: "s32",
  flags: "u32",
  pad: "u32",
});

/** One fence; `status` is 0 while pending, 1 when done, a negative errno when it failed. */
export const SyncFenceInfo = struct("sync_fence_info", {
  obj_name: ["u8", 32],
  driver_name: ["u8", 32],
  status: "s32",
  flags: "u32",
  timestamp_ns: "u64",
});

/** The file as a whole, and at `sync_fence_info`, when `num_fences` makes room, its fences one by one. */
export const SyncFileInfo = struct("sync_file_info", {
  name: ["u8", 32],
  status: "s32",
  flags: "u32",
  num_fences: "u32",
  pad: "u32",
  sync_fence_info: "u64",
});

/** When somebody will wait for it, CLOCK_MONOTONIC. */
export const SyncSetDeadline = struct("sync_set_deadline", { deadline_ns: "u64", pad: "u64" });

export const SYNC_IOC_MAGIC = 0x3e; // '>'
export const SYNC_IOC_MERGE = _IOWR(SYNC_IOC_MAGIC, 3, SyncMergeData);
export const SYNC_IOC_FILE_INFO = _IOWR(SYNC_IOC_MAGIC, 4, SyncFileInfo);
export const SYNC_IOC_SET_DEADLINE = _IOW(SYNC_IOC_MAGIC, 5, SyncSetDeadline);
