/** Interrupts to a real program's eventfds, and eventfds that make the kernel do something. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DeviceProgram } from "./device_program.ts";

const program = new DeviceProgram();
afterAll(() => program.remove());

describe.skipIf(!program.built)("a program that waits for interrupts", () => {
  let interrupts: Record<string, string>;
  beforeAll(() => {
    interrupts = program.lines(["interrupts"]);
  }, 120_000);

  it("gets MSI through its eventfd, raised through the mapping or by a call", () => {
    expect(interrupts["MSI to an eventfd"]).toBe("ok");
    expect(interrupts["raised through the mapping"]).toBe("1");
    expect(interrupts["raised by pwrite"]).toBe("1");
    expect(interrupts.status).toBe("1 1");
  });

  it("gets INTx, masked until it is unmasked by its eventfd", () => {
    expect(interrupts["INTx to an eventfd"]).toBe("ok");
    expect(interrupts["and one to unmask"]).toBe("ok");
    expect(interrupts.raised).toBe("1");
    expect(interrupts["unmasked while it is up"]).toBe("1");
    expect(interrupts["unmasked when it is down"]).toBe("0");
    expect(interrupts["raised again"]).toBe("1");
  });

  it("has an eventfd of its own write a register", () => {
    expect(interrupts.ioeventfd).toBe("ok");
    expect(interrupts.wrote).toBe("ffffff88");
  });
});

describe.skipIf(!program.built)("a program with several vectors", () => {
  let vectors: Record<string, string>;
  beforeAll(() => {
    vectors = program.lines(["vectors"]);
  }, 120_000);

  it("gets each through its own eventfd, counted as that eventfd counts", () => {
    expect(vectors["MSI-X to four eventfds"]).toBe("ok");
    expect(vectors["fire two"]).toBe("ok");
    expect(vectors.counted).toBe("0 1 1 0");
    expect(vectors["three twice"]).toBe("2 0 1 1 2");
  });

  it("adds one and takes one away while the others are in use", () => {
    expect(vectors["another vector"]).toBe("ok");
    expect(vectors["it fires"]).toBe("1");
    expect(vectors["one taken away"]).toBe("ok, 0");
  });

  it("is refused what is no eventfd, and may close one that is in use", () => {
    expect(vectors["not an eventfd"]).toBe("EINVAL");
    expect(vectors["not a descriptor"]).toBe("EBADF");
    expect(vectors["a closed one"]).toBe("ok");
  });

  it("shares them with a child", () => {
    expect(vectors["fired by a child"]).toBe("1");
  });

  it("gets the kernel's own lines, and is asked to let go when its device is unbound", () => {
    expect(vectors["error line"]).toBe("ok");
    expect(vectors["it fires too"]).toBe("1");
    expect(vectors["request line"]).toBe("ok");
    expect(vectors["asked to let go"]).toBe("1");
    expect(vectors.unbound).toBe("0");
  });
});
