/**
 * The supervising thread of `barlink run`. The thread that will start the
 * program comes up while this one loads the embedded kernel.
 */
import { parentPort, workerData } from "node:worker_threads";
import { ProgramStarter } from "../host/spawn.ts";
import type { RunMessage, RunOrder } from "./messages.ts";

const starter = new ProgramStarter();
const { superviseProgram } = await import("./run_supervised.ts");
await superviseProgram(workerData as RunOrder, starter, (m: RunMessage) => parentPort?.postMessage(m));
