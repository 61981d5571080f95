/**
 * The supervising thread of `barlink run`. It comes up, and loads the embedded
 * kernel, before anybody knows what is to be run; the order comes by message:
 * undefined when there is nothing to run.
 */
import { parentPort, workerData } from "node:worker_threads";
import { ProgramStarter } from "../host/spawn.ts";
import type { RunMessage, RunOrder, RunThreadData } from "./messages.ts";
import { superviseProgram } from "./run_supervised.ts";

const { spawn } = workerData as RunThreadData;

parentPort?.once("message", (order: RunOrder | undefined) => {
  const starter = new ProgramStarter(spawn);
  if (order === undefined) starter.abandon();
  else superviseProgram(order, starter, (m: RunMessage) => parentPort?.postMessage(m));
});
