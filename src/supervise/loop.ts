/**
 * The loop of the supervising thread: sleeps in epoll until a call waits, a
 * process ends, or time is due, and ends when the last process has ended.
 */
import { type ChildEvent, EPOLLHUP, EPOLLIN, Epoll, Listener, waitAny } from "../host/index.ts";
import { EINTR, Errno } from "../lib/errno.ts";
import { signalWaits } from "./signals.ts";
import type { Core } from "./supervisor.ts";

/** How soon a blocked call notices a signal to its thread: at first, and at most. */
const SIGNAL_LOOK_MS = { first: 1, most: 20 };
/** How often children that never made a trapped call are waited for. */
const REAP_MS = 500;
/** How often is looked whether the program has been started. */
const START_MS = 5;
const NS_PER_MS = 1e6;

export interface LoopResult {
  /** How the program itself ended; undefined when somebody else waited for it. */
  readonly end: ChildEvent | undefined;
}

/** Serves until nobody is bound by the filter any more. `programPid`: of the program itself, once it is known. */
export function runLoop(core: Core, listenerFd: number, programPid: () => number | undefined): LoopResult {
  const listener = new Listener(listenerFd);
  // Before Linux 6.6 there is no such flag; then it is slower.
  listener.setSyncWakeUp();
  core.listener = listener;
  const epoll = new Epoll();
  core.onWatch = { add: (fd) => void epoll.add(fd), remove: (fd) => void epoll.remove(fd) };
  for (const fd of core.readable.keys()) epoll.add(fd);
  epoll.add(listenerFd, EPOLLIN);
  epoll.add(core.files.inotifyFd, EPOLLIN);
  const ends = new Map<number, ChildEvent>();
  const reap = (): void => {
    for (let e = waitAny(); e !== undefined && !(e instanceof Errno); e = waitAny()) {
      const pid = programPid();
      if (pid === undefined || e.pid === pid) ends.set(e.pid, e);
    }
  };
  let look: number = SIGNAL_LOOK_MS.first;
  let lastLook = 0;
  let lastReap = performance.now();
  for (;;) {
    const busy = core.pending.size > 0;
    const starting = programPid() === undefined;
    const ready = epoll.wait(timeout(core, starting ? START_MS : busy ? look : REAP_MS));
    const n = ready instanceof Errno ? 0 : ready;
    let notification = false;
    let gone = false;
    let closes = false;
    for (let i = 0; i < n; i++) {
      const fd = epoll.readyFd(i);
      if (fd === listenerFd) {
        notification = (epoll.readyMask(i) & EPOLLIN) !== 0;
        gone = (epoll.readyMask(i) & EPOLLHUP) !== 0;
      } else if (fd === core.files.inotifyFd) {
        closes = true;
      } else {
        core.ready(fd);
        reap();
      }
    }
    if (notification) {
      const call = listener.recv();
      // With nothing to wait for, what came before matters to served calls only, not to each open of an ordinary file.
      const due = call instanceof Errno || closes || busy || core.kernel.sched.nextTimer !== undefined;
      if (due) core.catchUp();
      if (!(call instanceof Errno)) core.serve(call, due);
    } else core.catchUp();
    if (gone && !notification) break;
    tick(core);
    if (busy) {
      // Not at every notification: a look costs more than a call that others make meanwhile.
      const t = performance.now();
      if (n === 0 || t - lastLook >= look) {
        lastLook = t;
        for (const call of core.pending) if (signalWaits(call.tid) || !call.valid()) core.interrupt(call);
      }
      look = n === 0 ? Math.min(look * 2, SIGNAL_LOOK_MS.most) : SIGNAL_LOOK_MS.first;
    }
    // However busy others keep us.
    if (performance.now() - lastReap >= REAP_MS) {
      lastReap = performance.now();
      reap();
    }
  }
  // The last process lets go of the filter a moment before it can be waited for.
  reap();
  const pid = programPid();
  while (pid !== undefined && !ends.has(pid)) {
    const e = waitAny({ block: true });
    if (e === EINTR) continue;
    if (e === undefined || e instanceof Errno) break;
    ends.set(e.pid, e);
  }
  epoll.close();
  return { end: pid === undefined ? undefined : ends.get(pid) };
}

function timeout(core: Core, most: number): number {
  let ms = most;
  const { nextTimer, now } = core.kernel.sched;
  if (nextTimer !== undefined) ms = Math.min(ms, (nextTimer - now) / NS_PER_MS);
  if (core.tickers.size > 0) {
    const t = performance.now();
    for (const k of core.tickers) ms = Math.min(ms, k.due - t);
  }
  return Math.max(0, Math.ceil(ms));
}

function tick(core: Core): void {
  if (core.tickers.size === 0) return;
  const t = performance.now();
  for (const k of core.tickers) {
    if (k.due > t) continue;
    k.due = t + k.ms;
    k.callback();
  }
}
