/**
 * The two threads of `barlink run`: the one that supervises, which is started
 * before the command line is looked at, and keeps nobody alive until it is given
 * work; and the one that starts the program, which comes up while the former
 * loads the embedded kernel.
 *
 * They are never ended from outside: a thread that is stopped while it loads the
 * FFI takes the process with it.
 */
import type { Worker } from "node:worker_threads";
import { SpawnThread } from "../host/spawn_thread.ts";
import { startWorker } from "../host/worker.ts";
import type { RunMessage, RunOrder, RunThreadData } from "./messages.ts";

export type LastMessage = Exclude<RunMessage, { kind: "started" }>;

export class RunThreads {
  readonly #spawn: SpawnThread = new SpawnThread();
  readonly #worker: Worker;
  readonly #last: Promise<LastMessage>;
  readonly #ended: Promise<void>;
  #ordered = false;
  #started: (pid: number) => void = () => {};

  constructor() {
    const { handle } = this.#spawn;
    const data: RunThreadData = { spawn: handle };
    this.#worker = startWorker("./run_worker.ts", import.meta.url, { workerData: data, transferList: [handle.port] });
    this.#last = new Promise((resolve) => {
      const failed = (why: string): void => resolve({ kind: "refused", status: 70, message: `internal error: ${why}` });
      this.#worker.on("message", (m: RunMessage) => {
        if (m.kind === "started") this.#started(m.pid);
        else resolve(m);
      });
      this.#worker.on("error", (e) => failed(e instanceof Error ? (e.stack ?? e.message) : String(e)));
      this.#worker.once("exit", () => failed("the supervising thread ended"));
    });
    this.#ended = new Promise((resolve) => this.#worker.once("exit", () => resolve()));
    this.#worker.unref();
  }

  /** Runs a program to its end; `started` hears of its start. When none ran, both threads have ended as well. */
  async supervise(order: RunOrder, started: (pid: number) => void): Promise<LastMessage> {
    this.#ordered = true;
    this.#started = started;
    // Only now: until here this thread was busy, and the other one is what everything waits for.
    this.#spawn.start();
    this.#worker.ref();
    // Who reads them keeps this process alive.
    this.#worker.stdout?.resume();
    this.#worker.stderr?.on("data", (d: Uint8Array) => process.stderr.write(d));
    this.#worker.postMessage(order);
    const message = await this.#last;
    if (message.kind === "refused") {
      this.#spawn.abandon();
      await Promise.all([this.#ended, this.#spawn.ended]);
    }
    return message;
  }

  /** There is nothing to run after all: resolves when the thread has ended. Does nothing when a program was run. */
  async abandon(): Promise<void> {
    if (this.#ordered) return;
    this.#ordered = true;
    this.#worker.ref();
    this.#worker.postMessage(undefined);
    await this.#ended;
  }
}
