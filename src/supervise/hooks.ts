/** What is known of a process without the parts that look closer. */
import { readMemory, readStatus, writeMemory } from "../host/index.ts";
import type { FileOps } from "../kernel/fs/file.ts";
import { ROOT_CAPABILITIES } from "../kernel/fs/process.ts";
import { EFAULT, Errno } from "../lib/errno.ts";
import { O_RDWR } from "../uapi/index.ts";
import type { Hooks } from "./types.ts";

/** A descriptor of the program's that means nothing to the embedded kernel. */
const FOREIGN_OPS: FileOps = { name: "foreign" };

export function defaultHooks(): Hooks {
  return {
    memory: (_s, target) => ({
      read(addr, dst) {
        const n = readMemory(target.tid, addr, dst);
        return dst.length - (n instanceof Errno ? 0 : n);
      },
      write(addr, src) {
        const n = writeMemory(target.tid, addr, src);
        return src.length - (n instanceof Errno ? 0 : n);
      },
      pin: () => EFAULT,
      unpin() {},
    }),
    foreign: (s, _process, _tid, _fd, link) => s.kernel.fs.newFile(FOREIGN_OPS, { flags: O_RDWR, path: link }),
    credentials(s, process) {
      const status = readStatus(process.target.pid);
      if (status === undefined) return;
      const [, uid] = status.uids;
      process.creds.uid = uid;
      process.creds.user = s.kernel.fs.user(uid);
      process.creds.capabilities = new Set(status.capEff === 0n ? [] : ROOT_CAPABILITIES);
    },
  };
}
