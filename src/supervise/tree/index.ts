/** The files that real programs look for: sysfs and /dev of the described machine. See README.md. */
import type { Supervisor } from "../types.ts";
import { registerChanges } from "./change_calls.ts";
import { TreeContext } from "./context.ts";
import { registerOpens } from "./open_calls.ts";
import { registerStats } from "./stat_calls.ts";
import { registerWrites } from "./write_calls.ts";

/**
 * Serves the tree. Registered before the core's own handlers: what a path
 * means is decided here, and a descriptor of a device node is its node.
 */
export function registerTree(supervisor: Supervisor): TreeContext {
  const context = new TreeContext(supervisor);
  const uid = process.geteuid?.();
  // Whoever starts barlink is the root of the machine in it.
  if (uid !== undefined) supervisor.kernel.fs.owners.add(uid);
  registerOpens(context);
  registerStats(context);
  registerWrites(context);
  registerChanges(context);
  supervisor.observe({
    end: () => context.sync(),
    process: (what, p) => {
      if (what === "new") context.cwds.born(p.target.pid);
      else if (what === "exit") context.cwds.forget(p.target.pid);
    },
  });
  supervisor.atEnd(() => context.close());
  return context;
}
