/**
 * The supervising thread of `barlink run`. It comes up, and loads the embedded
 * kernel, before anybody knows what is to be run; the order comes by message.
 */
import { parentPort, workerData } from "node:worker_threads";
import { ProgramStarter } from "../host/spawn.ts";
import type { RunMessage, RunOrder, RunThreadData } from "./messages.ts";
import { superviseProgram } from "./run_supervised.ts";

const { spawn } = workerData as RunThreadData;

parentPort?.once("message", (order: RunOrder) => {
  superviseProgram(order, new ProgramStarter(spawn), (m: RunMessage) => parentPort?.postMessage(m));
});
