/**
 * /sys/kernel/debug: the knobs of fault injection, as a kernel built for its
 * own tests has them. Sizes are 0 and everything is root's, as in debugfs.
 *
 * Source: fs/debugfs/file.c, lib/fault-inject.c (fault_create_debugfs_attr).
 */
import type { Knob } from "../../kernel/fault_attr.ts";
import type { Kernel } from "../../kernel/kernel.ts";
import { EINVAL, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { Store, TreeBuilder } from "./node.ts";
import { lineOf, parseBoolean, parseUnsigned } from "./parse.ts";

export const DEBUGFS = "/sys/kernel/debug";

export function renderDebugfs(t: TreeBuilder, kernel: Kernel): void {
  t.dir(DEBUGFS);
  for (const { name, knobs } of kernel.fault.knobs.directories()) {
    for (const knob of knobs) {
      const show = knob.kind === "bool" ? () => (knob.get() ? "Y\n" : "N\n") : () => `${knob.get()}\n`;
      t.file({ path: `${DEBUGFS}/${name}/${knob.name}`, mode: 0o600, size: 0, show, store: storeOf(knob), binary: false });
    }
  }
}

const storeOf = (knob: Knob): Store =>
  function* (data: Uint8Array): Step<number | Errno> {
    if (knob.kind === "bool") {
      const on = parseBoolean(data);
      // What is no truth value changes nothing, and nobody is told.
      if (!(on instanceof Errno)) knob.set(on);
      return data.length;
    }
    const value = knob.kind === "s32" ? parseSigned(data) : parseUnsigned(data);
    if (value instanceof Errno) return value;
    knob.set(knob.kind === "u32" ? BigInt.asUintN(32, value) : knob.kind === "s32" ? BigInt.asIntN(32, value) : value);
    return data.length;
  };

/** A number that may be below nought: kstrtoll, base 0. */
function parseSigned(data: Uint8Array): bigint | Errno {
  const text = lineOf(data);
  if (!text.startsWith("-")) return parseUnsigned(data);
  const rest = text.slice(1);
  const value = rest.startsWith("+") ? EINVAL : parseUnsigned(Uint8Array.from(rest, (c) => c.charCodeAt(0)));
  return value instanceof Errno ? value : -value;
}
