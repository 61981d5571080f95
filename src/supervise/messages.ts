/** What the command's thread and the supervising thread tell each other. */

import type { SpawnHandle } from "../host/spawn_order.ts";

/** What the supervising thread begins with. */
export interface RunThreadData {
  /** Of the thread that will start the program. */
  readonly spawn: SpawnHandle;
}

export interface RunOrder {
  /** A file, or the name of a description that comes with barlink. */
  readonly machine: string;
  /** The file to execute, and its argv. */
  readonly file: string;
  readonly argv: readonly string[];
  readonly traceFile: string | undefined;
  readonly strace: boolean;
  readonly selftest: boolean;
  readonly registerMaps: boolean;
  readonly debug: boolean;
  /** Private folder, 0700. */
  readonly directory: string;
}

export type RunMessage =
  /** The program runs. */
  | { readonly kind: "started"; readonly pid: number }
  /** It could not be started. */
  | { readonly kind: "refused"; readonly status: number; readonly message: string }
  /** The last process has ended; this is how the program itself did. */
  | { readonly kind: "ended"; readonly how: "exited" | "killed"; readonly status: number };
