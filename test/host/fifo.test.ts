import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import {
  closeFd,
  createFifo,
  IN_CLOSE,
  Inotify,
  MOST_PACKETS,
  PacketPipe,
  POLLIN,
  POLLOUT,
  PollSet,
  readFd,
  reopenFd,
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

const packet = (...bytes: number[]): Uint8Array => Uint8Array.from(bytes);
const ONE = [packet(1)];

describe("a pipe without a name", () => {
  it("is as readable as it is made, for who reads and for who writes too", () => {
    const path = join(dir, "q");
    const own = ok(createFifo(path));
    expect(existsSync(path)).toBe(false);
    const pipe = new PacketPipe(own);
    const [reader, both] = [ok(reopenFd(own, O_RDONLY | O_NONBLOCK)), ok(reopenFd(own, O_RDWR | O_NONBLOCK))];
    expect([ready(reader), ready(both)]).toEqual([0, POLLOUT]);
    expect([pipe.show(ONE), pipe.show(ONE)]).toEqual([0, 0]);
    expect([ready(reader), ready(both)]).toEqual([POLLIN, POLLIN | POLLOUT]);
    expect(pipe.show([])).toBe(0);
    expect([ready(reader), ready(both)]).toEqual([0, POLLOUT]);
    for (const fd of [own, reader, both]) closeFd(fd);
  });

  it("gives a packet to a read, and tells how many were read", () => {
    const own = ok(createFifo(join(dir, "q")));
    const pipe = new PacketPipe(own);
    const reader = ok(reopenFd(own, O_RDONLY | O_NONBLOCK));
    const read = (room: number): number[] => {
      const to = new Uint8Array(room);
      return [...to.subarray(0, ok(readFd(reader, to)))];
    };
    const packets = Array.from({ length: MOST_PACKETS }, (_, i) => packet(i, i, i));
    expect(pipe.show(packets.slice(0, 3))).toBe(0);
    expect(pipe.show(packets)).toBe(0);
    expect([read(100), read(2), pipe.taken(), pipe.taken(), read(100), pipe.taken()]).toEqual([[0, 0, 0], [1, 1], 2, 0, [2, 2, 2], 1]);
    // One is read between the question and the change: it is told, and nothing is shown until the next.
    expect([read(100), pipe.show([packet(9)]), ready(reader), pipe.show([packet(9)]), read(100)]).toEqual([[3, 3, 3], 1, 0, 0, [9]]);
    for (const fd of [own, reader]) closeFd(fd);
  });

  it("is right again after others wrote into it", () => {
    const own = ok(createFifo(join(dir, "q")));
    const pipe = new PacketPipe(own);
    const other = ok(reopenFd(own, O_RDWR | O_NONBLOCK));
    pipe.show(ONE);
    while (typeof writeFd(other, new Uint8Array(8192)) === "number");
    expect(ready(other)).toBe(POLLIN);
    expect([pipe.taken(), pipe.show(ONE), ready(other)]).toEqual([0, 0, POLLIN | POLLOUT]);
    expect([pipe.show([]), ready(other)]).toEqual([0, POLLOUT]);
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
