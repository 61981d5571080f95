/**
 * The programs by which optimal DPOR is measured in the literature, and how
 * many traces each has.
 *
 * Source: Abdulla et al., JACM 2017 (readers, lastzero); Flanagan, Godefroid,
 * "Dynamic partial-order reduction for model checking software", POPL 2005
 * (indexer, file system).
 */
import { type AbstractThread, abstractProgram, lock, type Program, read, unlock, update, write } from "../src/explore/index.ts";

/** One writer of x; n readers of it. */
export function readers(n: number): Program {
  const threads: AbstractThread[] = [
    function* () {
      yield write(0, 1);
    },
  ];
  for (let i = 0; i < n; i++) {
    threads.push(function* () {
      yield read(0);
    });
  }
  return abstractProgram(`readers(${n})`, 1, 0, threads);
}

/** n writers, each a successor of its neighbour's cell; one thread that looks for the last zero from the end. */
export function lastzero(n: number): Program {
  const threads: AbstractThread[] = [
    function* () {
      let i = n;
      while ((yield read(i)) !== 0) i--;
    },
  ];
  for (let i = 1; i <= n; i++) {
    threads.push(function* () {
      const v = yield read(i - 1);
      yield write(i, v + 1);
    });
  }
  return abstractProgram(`lastzero(${n})`, n + 1, 0, threads);
}

/** n threads put four messages each into a hash table of 128. */
export function indexer(n: number): Program {
  const size = 128;
  const threads = Array.from(
    { length: n },
    (_, tid): AbstractThread =>
      function* () {
        for (let m = 1; m <= 4; m++) {
          const w = m * 11 + tid;
          let h = (w * 7) % size;
          while ((yield update(h, (old) => (old === 0 ? w : old))) !== 0) h = (h + 1) % size;
        }
      },
  );
  return abstractProgram(`indexer(${n})`, size, 0, threads);
}

/** n threads give a block to their inode, under a lock per inode and per block. */
export function filesystem(n: number): Program {
  const blocks = 26;
  const inodes = 32;
  const threads = Array.from(
    { length: n },
    (_, tid): AbstractThread =>
      function* () {
        const i = tid % inodes;
        yield lock(i);
        if ((yield read(i)) === 0) {
          for (let b = (i * 2) % blocks; ; b = (b + 1) % blocks) {
            yield lock(inodes + b);
            const busy = yield read(inodes + b);
            if (busy === 0) {
              yield write(inodes + b, 1);
              yield write(i, b + 1);
            }
            yield unlock(inodes + b);
            if (busy === 0) break;
          }
        }
        yield unlock(i);
      },
  );
  return abstractProgram(`filesystem(${n})`, inodes + blocks, inodes + blocks, threads);
}

export const EXPECTED: readonly (readonly [make: (n: number) => Program, n: number, traces: number])[] = [
  [readers, 2, 4],
  [readers, 8, 256],
  [readers, 13, 8192],
  [lastzero, 5, 64],
  [lastzero, 10, 3328],
  [lastzero, 15, 147_456],
  [indexer, 12, 8],
  [indexer, 15, 4096],
  [filesystem, 14, 2],
  [filesystem, 16, 8],
  [filesystem, 18, 32],
  [filesystem, 19, 64],
];
