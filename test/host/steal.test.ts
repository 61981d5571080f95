import { describe, expect, it } from "vitest";
import { closeFd, preadFd, pwriteFd } from "../../src/host/fd.ts";
import { ftruncateFd, memfdCreate } from "../../src/host/memfd.ts";
import { nextData } from "../../src/host/sparse.ts";
import { truncateKeeping } from "../../src/host/steal.ts";
import { Errno } from "../../src/lib/errno.ts";

const PAGE = 4096;

function memfd(): number {
  const fd = memfdCreate("test");
  if (fd instanceof Errno) throw new Error(fd.name);
  return fd;
}

describe("the data of a sparse file", () => {
  it("is found run by run", () => {
    const fd = memfd();
    ftruncateFd(fd, 1 << 30);
    expect(nextData(fd, 0)).toBeUndefined();
    pwriteFd(fd, new Uint8Array(PAGE).fill(1), 3 * PAGE);
    pwriteFd(fd, new Uint8Array(1).fill(1), 9 * PAGE + 5);
    expect(nextData(fd, 0)).toEqual({ start: 3 * PAGE, end: 4 * PAGE });
    expect(nextData(fd, 3 * PAGE + 7)).toEqual({ start: 3 * PAGE + 7, end: 4 * PAGE });
    expect(nextData(fd, 4 * PAGE)).toEqual({ start: 9 * PAGE, end: 10 * PAGE });
    expect(nextData(fd, 10 * PAGE)).toBeUndefined();
    closeFd(fd);
    expect(nextData(fd, 0)).toBeInstanceOf(Errno);
  });
});

describe("a truncation that keeps the contents", () => {
  it.each([
    ["nothing", []],
    ["one page", [[0, 1]]],
    [
      "runs apart",
      [
        [2, 3],
        [100, 140],
        [1 << 20, (1 << 20) + 1],
      ],
    ],
    ["more than a pipe", [[0, 700]]],
    ["more than all pipes", [[0, 66 * 256]]],
  ] as [string, [number, number][]][])("of %s", (_, runs) => {
    const fd = memfd();
    for (const [first, end] of runs) {
      for (let page = first; page < end; page++) pwriteFd(fd, new Uint8Array(PAGE).fill((page % 250) + 1), page * PAGE);
    }
    const ranges = runs.map(([first, end]) => ({ start: first * PAGE, end: end * PAGE }));
    const pieces = truncateKeeping(fd, ranges);
    expect(preadFd(fd, new Uint8Array(1), 0)).toBe(0);
    let at = 0;
    let bytes = 0;
    for (const p of pieces) {
      expect(p.start).toBeGreaterThanOrEqual(at);
      for (let i = 0; i < p.bytes.length; i += 511) expect(p.bytes[i]).toBe((Math.floor((p.start + i) / PAGE) % 250) + 1);
      at = p.start + p.bytes.length;
      bytes += p.bytes.length;
    }
    expect(bytes).toBe(ranges.reduce((n, r) => n + r.end - r.start, 0));
    closeFd(fd);
  });

  it("of a range past the end keeps what there is", () => {
    const fd = memfd();
    pwriteFd(fd, new Uint8Array(10).fill(9), 0);
    const pieces = truncateKeeping(fd, [
      { start: 0, end: PAGE },
      { start: PAGE, end: 9 * PAGE },
    ]);
    expect(pieces.map((p) => [p.start, p.bytes.length])).toEqual([[0, 10]]);
    closeFd(fd);
  });
});
