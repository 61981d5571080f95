import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  closeFd,
  createFifo,
  IN_CLOSE,
  Inotify,
  POLLIN,
  POLLOUT,
  PollSet,
  readFd,
  reopenFd,
  setReadable,
  writeFd,
} from "../../src/host/index.ts";
import { leavesNothing, ok } from "./support.ts";

leavesNothing();

const dir = mkdtempSync(join(tmpdir(), "barlink-fifo-"));
afterAll(() => rmSync(dir, { recursive: true }));
const [O_RDONLY, O_RDWR, O_NONBLOCK] = [0, 2, 0o4000];

function ready(fd: number): number {
  const set = new PollSet([{ fd, events: POLLIN | POLLOUT }]);
  set.wait(0n);
  return set.revents(0);
}

describe("a pipe without a name", () => {
  it("is as readable as it is made, for who reads and for who writes too", () => {
    const path = join(dir, "q");
    const own = ok(createFifo(path));
    expect(existsSync(path)).toBe(false);
    const [reader, both] = [ok(reopenFd(own, O_RDONLY | O_NONBLOCK)), ok(reopenFd(own, O_RDWR | O_NONBLOCK))];
    expect([ready(reader), ready(both)]).toEqual([0, POLLOUT]);
    setReadable(own, true);
    setReadable(own, true);
    expect([ready(reader), ready(both)]).toEqual([POLLIN, POLLIN | POLLOUT]);
    setReadable(own, false);
    expect([ready(reader), ready(both)]).toEqual([0, POLLOUT]);
    for (const fd of [own, reader, both]) closeFd(fd);
  });

  it("is so again after others took what was in it, or filled it", () => {
    const own = ok(createFifo(join(dir, "q")));
    const other = ok(reopenFd(own, O_RDWR | O_NONBLOCK));
    setReadable(own, true);
    expect(readFd(other, new Uint8Array(100))).toBe(1);
    setReadable(own, true);
    expect(ready(other)).toBe(POLLIN | POLLOUT);
    while (typeof writeFd(other, new Uint8Array(8192)) === "number");
    expect(ready(other)).toBe(POLLIN);
    setReadable(own, true);
    expect(ready(other)).toBe(POLLIN | POLLOUT);
    setReadable(own, false);
    expect(ready(other)).toBe(POLLOUT);
    for (const fd of [own, other]) closeFd(fd);
  });

  it("tells of its last close", () => {
    const own = ok(createFifo(join(dir, "q")));
    const other = ok(reopenFd(own, O_RDONLY | O_NONBLOCK));
    const inotify = new Inotify();
    const watch = ok(inotify.watchFd(own, IN_CLOSE));
    closeFd(other);
    const heard: number[] = [];
    inotify.drain((w) => heard.push(w));
    expect(heard).toEqual([watch]);
    closeFd(own);
    inotify.close();
  });
});
