/**
 * The thread that will start a program, itself started ahead: it takes some 40 ms to come up, while others do something
 * else. Nothing here needs the FFI, so that a thread that loads next to nothing can start it for another.
 */
import { MessageChannel, type Worker } from "node:worker_threads";
import { ORDERED, RESULT_WORDS, type SpawnHandle, type SpawnThreadData, WORD } from "./spawn_order.ts";
import { startWorker } from "./worker.ts";

export class SpawnThread {
  /** For the `ProgramStarter` that gives the order, here or in another thread; before or after the start. */
  readonly handle: SpawnHandle;
  readonly #data: SpawnThreadData;
  #worker: Worker | undefined = undefined;
  #ended: Promise<void> = Promise.resolve();

  constructor() {
    const words = new Int32Array(new SharedArrayBuffer(4 * RESULT_WORDS));
    words[WORD.listener] = -1;
    words[WORD.pid] = -1;
    const { port1, port2 } = new MessageChannel();
    port1.unref();
    port2.unref();
    this.handle = { words, port: port1 };
    this.#data = { words, port: port2 };
  }

  /** Starts it. */
  start(): this {
    const worker = startWorker("./spawn_worker.ts", import.meta.url, { workerData: this.#data, transferList: [this.#data.port] });
    this.#ended = new Promise((resolve) => worker.once("exit", () => resolve()));
    worker.on("error", () => {});
    worker.unref();
    this.#worker = worker;
    return this;
  }

  /** Resolves when the thread has ended, and the filter has lost that user. Only who asks for it keeps this process alive for it. */
  get ended(): Promise<void> {
    this.#worker?.ref();
    return this.#ended;
  }

  /** Ends it when it was given no order, and nobody will give one. */
  abandon(): void {
    abandonSpawn(this.handle.words);
  }
}

/** Says that there is nothing to start, unless an order was given; by the words that are shared with the thread. */
export function abandonSpawn(words: Int32Array): void {
  Atomics.compareExchange(words, WORD.ordered, ORDERED.notYet, ORDERED.nothing);
  Atomics.notify(words, WORD.ordered);
}
