/** The descriptor table against an array: the lowest free number, always. */
import fc from "fast-check";
import { expect, it } from "vitest";
import { EBADF, EMFILE, Errno } from "../../../src/lib/errno.ts";
import { boot, expectNothingLeaks } from "../../harness.ts";

const LIMIT = 12;
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ op: fc.constant("open" as const), cloexec: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("close" as const), fd: fc.nat(LIMIT) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("dup2" as const), fd: fc.nat(LIMIT), to: fc.nat(LIMIT) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("dupfd" as const), fd: fc.nat(LIMIT), from: fc.nat(LIMIT - 1) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("exec" as const) }) },
);

it("gives out the lowest free number and forgets nothing", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80, size: "max" }), (steps) => {
      const { kernel, p } = boot();
      p.rlimits.nofile = LIMIT;
      const model: ({ file: number; cloexec: boolean } | undefined)[] = new Array(LIMIT).fill(undefined);
      let next = 0;
      const lowest = (from: number): number => {
        for (let i = from; i < LIMIT; i++) if (model[i] === undefined) return i;
        return -1;
      };
      for (const s of steps) {
        if (s.op === "open") {
          const fd = lowest(0);
          expect(p.run(p.sys.eventfd(0, s.cloexec ? 0o2000000 : 0))).toBe(fd < 0 ? EMFILE : fd);
          if (fd >= 0) model[fd] = { file: next++, cloexec: s.cloexec };
        } else if (s.op === "close") {
          expect(p.run(p.sys.close(s.fd))).toBe(model[s.fd] === undefined ? EBADF : undefined);
          if (s.fd < LIMIT) model[s.fd] = undefined;
        } else if (s.op === "dup2") {
          const of = model[s.fd];
          const fine = of !== undefined && s.to < LIMIT;
          expect(p.run(p.sys.dup2(s.fd, s.to))).toBe(fine ? s.to : EBADF);
          if (fine && s.fd !== s.to) model[s.to] = { file: of.file, cloexec: false };
        } else if (s.op === "dupfd") {
          const of = model[s.fd];
          const fd = lowest(s.from);
          expect(p.run(p.sys.fcntl(s.fd, 0, s.from))).toBe(of === undefined ? EBADF : fd < 0 ? EMFILE : fd);
          if (of !== undefined && fd >= 0) model[fd] = { file: of.file, cloexec: false };
        } else {
          p.run(p.exec());
          model.forEach((m, i) => {
            if (m?.cloexec) model[i] = undefined;
          });
        }
        expect(kernel.fs.openFiles).toBe(new Set(model.filter((m) => m !== undefined).map((m) => m.file)).size);
        model.forEach((m, fd) => {
          expect(p.files.get(fd) instanceof Errno).toBe(m === undefined);
          if (m !== undefined) expect(p.files.cloexec(fd)).toBe(m.cloexec);
        });
      }
      expectNothingLeaks(kernel);
    }),
    { numRuns: 150 },
  );
});
