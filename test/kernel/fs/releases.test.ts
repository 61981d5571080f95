/** Releases that no task waits for, and who comes after them. */
import { expect, test } from "vitest";
import type { File } from "../../../src/kernel/fs/file.ts";
import { Kernel } from "../../../src/kernel/kernel.ts";
import type { Step } from "../../../src/sched/task.ts";
import { WaitQueue } from "../../../src/sched/wait.ts";

/** A file whose release sleeps until it is told to go on. */
function slowFile(kernel: Kernel, log: string[], name: string): { file: File; goOn(): void } {
  let told = false;
  const queue = new WaitQueue(kernel.sched, name);
  const file = kernel.fs.newFile(
    {
      name,
      *release(): Step<void> {
        yield* queue.waitEvent(() => told);
        log.push(`${name} released`);
      },
    },
    { flags: 0, path: name },
  );
  const goOn = (): void => {
    told = true;
    queue.wakeUp();
    kernel.sched.settle();
  };
  return { file, goOn };
}

function waiter(kernel: Kernel, log: string[], name: string): void {
  kernel.sched.spawn(name, function* () {
    yield* kernel.fs.releasesDone();
    log.push(name);
  });
  kernel.sched.settle();
}

test("a call waits for the releases that began before it, and for none that begins after", () => {
  const kernel = new Kernel();
  const log: string[] = [];
  const [one, two] = [slowFile(kernel, log, "one"), slowFile(kernel, log, "two")];
  waiter(kernel, log, "nothing to wait for");
  kernel.fs.fput(one.file);
  kernel.sched.settle();
  waiter(kernel, log, "after one");
  kernel.fs.fput(two.file);
  waiter(kernel, log, "after both");
  expect(log).toEqual(["nothing to wait for"]);
  one.goOn();
  expect(log).toEqual(["nothing to wait for", "one released", "after one"]);
  two.goOn();
  expect(log).toEqual(["nothing to wait for", "one released", "after one", "two released", "after both"]);
  expect(kernel.fs.openFiles).toBe(0);
});
