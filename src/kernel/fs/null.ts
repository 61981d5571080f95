/** /dev/null: reads end at once, writes vanish. Source: drivers/char/mem.c. */
import type { FileOps } from "./file.ts";
import type { DeviceNode } from "./vfs.ts";

const NULL_OPS: FileOps = {
  name: "null",
  *read() {
    return 0;
  },
  *write(_f, _buf, count) {
    return count;
  },
  *llseek(f) {
    f.pos = 0n;
    return 0n;
  },
};

export const NULL_DEVICE: DeviceNode = { major: 1, minor: 3, mode: 0o666, ops: NULL_OPS };
