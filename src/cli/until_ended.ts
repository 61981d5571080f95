/** Ctrl-C and its like, for a verb that ends by itself in an order of its own. */
import { constants } from "node:os";

export interface UntilEnded {
  /** Aborted by the first signal. */
  readonly signal: AbortSignal;
  /** 128 and the signal's number, once there was one. */
  readonly status: number | undefined;
  /** Signals do what they do by default from here on. */
  forget(): void;
}

/** Catches SIGINT and SIGTERM; the second one ends the process at once. */
export function untilEnded(): UntilEnded {
  const controller = new AbortController();
  let status: number | undefined;
  const onSignal = (name: NodeJS.Signals): void => {
    if (status !== undefined) process.exit(status);
    status = 128 + constants.signals[name];
    controller.abort();
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  return {
    signal: controller.signal,
    get status() {
      return status;
    },
    forget() {
      process.off("SIGINT", onSignal);
      process.off("SIGTERM", onSignal);
    },
  };
}
