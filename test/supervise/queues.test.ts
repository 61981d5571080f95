/**
 * Event queues of real programs: their descriptors are waited for by the real
 * kernel. What the C program prints is what it printed on Linux 7.3.4 (VT-d,
 * with iommufd's self-test); the Python program asks for the same in its way.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { barlink, compile, NOTHING_LEFT, privateTmp, root } from "./support.ts";

let dir = "";
beforeAll(() => {
  dir = privateTmp();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const LINUX = [
  "iommufd: poll IO",
  "read 8: -1 Invalid argument",
  "read 40: -1 Invalid argument",
  "read 64: -1 Invalid argument",
  "write 8: -1 Invalid argument",
  "fault queue: poll O, select w, epoll O",
  "empty: 0 ",
  "a fault: poll IOR, select rw, epoll IO",
  "read 64: -1 Illegal seek",
  "read 39: -1 Illegal seek",
  "still: poll IOR, select rw, epoll IO",
  "read 4000: 40 ",
  "then: poll O, select w, epoll O",
  "write 4: -1 Illegal seek",
  "answer: 8 ",
  "lseek: -1 Illegal seek",
  "flags 4002",
  "empty, of any size: 0 ",
  "event queue: poll -, select , epoll -",
  "empty: 0 ",
  "write: -1 Invalid argument",
  "the child: 1 I",
  "an event: poll IR, select r, epoll I",
  "read 12: 12 ",
  "then: poll IR, select r, epoll I",
  "read 12: 12 ",
  "then: poll IR, select r, epoll I",
  "read 12: 8 ",
  "then: poll -, select , epoll -",
  "read 12: 0 ",
  "then: poll -, select , epoll -",
  "a copy: poll -, select , epoll -",
  "the lowest number: 1",
];

const PYTHON = [
  "fault queue: poll OUT, select w, epoll OUT close-on-exec True",
  "an empty one reads b''",
  "a fault: poll IN|OUT|RDNORM, select rw, epoll IN|OUT",
  "of another size: Illegal seek",
  "still: poll IN|OUT|RDNORM, select rw, epoll IN|OUT",
  "read 40 bytes: poll OUT, select w, epoll OUT",
  "answered: 8",
  "event queue: poll 0, select -, epoll 0 fault queue: poll OUT, select w, epoll OUT",
  "child: IN",
  "an event: poll IN|RDNORM, select r, epoll IN",
  "read 12 bytes: poll 0, select -, epoll 0",
  "nothing: b''",
  "sequence and sender (1, 153) poll IN|RDNORM, select r, epoll IN",
  "sequence and sender (2, 153) poll IN|RDNORM, select r, epoll IN",
  "sequence and sender (1, 4) poll 0, select -, epoll 0",
  "a copy: poll OUT, select w, epoll OUT",
  "a copy: poll 0, select -, epoll 0",
];

describe("descriptors of event queues", () => {
  it("are ready in poll, select and epoll when Linux's are, and read and written alike", () => {
    const r = barlink(["--selftest", "--", compile("queues.c", dir)]);
    expect(r.out.trimEnd().split("\n")).toEqual(LINUX);
    expect(r.err).toBe(NOTHING_LEFT);
    expect(r.status).toBe(0);
  });

  it("wake a process that sleeps in the real kernel, from Python too", () => {
    const r = barlink(["--selftest", "--", "python3", join(root, "test/supervise/programs/queues.py")]);
    expect(r.out.trimEnd().split("\n")).toEqual(PYTHON);
    expect(r.err).toBe(NOTHING_LEFT);
    expect(r.status).toBe(0);
  });
});
