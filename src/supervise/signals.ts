/** Signals of the program, seen from outside. */
import { readFileSync } from "node:fs";

const field = (status: string, name: string): bigint => BigInt(`0x${new RegExp(`^${name}:\\t([0-9a-f]+)`, "m").exec(status)?.[1] ?? "0"}`);

/** The thread has a signal to take that it neither blocks nor ignores. False when it is gone. */
export function signalWaits(tid: number): boolean {
  let status: string;
  try {
    status = readFileSync(`/proc/${tid}/status`, "latin1");
  } catch {
    return false;
  }
  const waiting = field(status, "SigPnd") | field(status, "ShdPnd");
  return (waiting & ~field(status, "SigBlk") & ~field(status, "SigIgn")) !== 0n;
}
