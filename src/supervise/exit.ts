/** Ending as the program ended. */
import { constants } from "node:os";
import type { RunMessage } from "./messages.ts";

const SIGNALS = new Map(Object.entries(constants.signals).map(([name, n]) => [n, name as NodeJS.Signals]));
/** Long enough for a signal to arrive. */
const SIGNAL_MS = 1000;

/**
 * Ends this process with the program's status, or by its signal, so that who
 * waits for barlink sees what it would see of the program. Where the signal does
 * not end Node, the shell's number for it: 128 + N.
 */
export function endLike(end: Extract<RunMessage, { kind: "ended" }>): void {
  if (end.how === "exited") {
    process.exit(end.status);
  }
  const name = SIGNALS.get(end.status);
  if (name === undefined) process.exit(128 + end.status);
  // Node ignores SIGPIPE and SIGXFSZ; the end of a listener puts the default action back.
  if (name !== "SIGKILL" && name !== "SIGSTOP") process.on(name, () => {});
  process.removeAllListeners(name);
  setTimeout(() => process.exit(128 + end.status), SIGNAL_MS);
  process.kill(process.pid, name);
}
