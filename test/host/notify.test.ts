import { describe, expect, it } from "vitest";
import {
  arch,
  closeFd,
  createHeldMemfd,
  installListener,
  kill,
  Listener,
  makePipe,
  type Notification,
  nr,
  POLLHUP,
  POLLIN,
  PollSet,
  readFd,
  SECCOMP_RET_USER_NOTIF,
  seccompActionMissing,
  seccompNotifSizes,
  waitPid,
} from "../../src/host/index.ts";
import { EINVAL, ENOTTY } from "../../src/lib/errno.ts";
import { failure, leavesNothing, ok, python, serve, start, trapping } from "./support.ts";

leavesNothing();

/** Runs Python code with some calls trapped; `answer` answers those that are named, the rest goes on. Returns what was printed. */
function run(
  code: string,
  traps: readonly string[],
  answer: (listener: Listener, call: Notification) => void,
): { text: string; served: number } {
  const [out, into] = ok(makePipe());
  const program = start(python(code, into, { filter: trapping(...traps) }));
  closeFd(into);
  const listener = new Listener(program.listenerFd);
  const tids = new Set<number>();
  const served = serve(listener, (call) => {
    tids.add(call.tid);
    answer(listener, call);
  });
  listener.close();
  expect(ok(waitPid(program.pid, { block: true }))).toMatchObject({ kind: "exited", status: 0 });
  const buffer = new Uint8Array(4096);
  const text = Buffer.from(buffer.subarray(0, ok(readFd(out, buffer)))).toString();
  closeFd(out);
  expect(tids.has(program.pid)).toBe(true);
  return { text, served };
}

/** What a second answer fails with: the first one has been taken, or not yet. */
const answered = ["ENOENT", "EINPROGRESS"];

const IOCTLS = `
import fcntl
def call(fd, cmd, arg):
    try: return fcntl.ioctl(fd, cmd, arg)
    except OSError as e: return e.strerror
`;

describe("a listener", () => {
  it("sees a call's thread, number, architecture and arguments, and answers it with a value or an errno", () => {
    const seen: Notification[] = [];
    const { text } = run(`${IOCTLS}print(call(0, 0x3b85, 7), call(1, 0x3b86, 0x7fffffff))`, ["ioctl"], (listener, call) => {
      if (call.args[1] === 0x3b85n) {
        seen.push(call);
        expect(listener.idValid(call.id)).toBe(true);
        expect(listener.returnValue(call.id, 42)).toBeUndefined();
        expect(listener.idValid(call.id)).toBe(false);
      } else if (call.args[1] === 0x3b86n) {
        seen.push(call);
        expect(listener.returnErrno(call.id, EINVAL)).toBeUndefined();
      } else {
        listener.continue(call.id);
      }
    });
    expect(text).toBe("42 Invalid argument\n");
    expect(seen.map((c) => [c.nr, c.arch, c.args[0], c.args[2]])).toEqual([
      [nr("ioctl"), arch.audit, 0n, 7n],
      [nr("ioctl"), arch.audit, 1n, 0x7fff_ffffn],
    ]);
  });

  it("lets the kernel do a call", () => {
    const { text, served } = run("import os; print(os.getppid())", ["getppid"], (listener, call) => listener.continue(call.id));
    expect(text).toBe(`${process.pid}\n`);
    expect(served).toBe(1);
  });

  it("says that an answered call is not there any more", () => {
    run("import os; os.getppid()", ["getppid"], (listener, call) => {
      listener.returnValue(call.id, 1n);
      expect(answered).toContain(failure(listener.returnErrno(call.id, ENOTTY)));
      expect(answered).toContain(failure(listener.continue(call.id)));
    });
  });

  it("gives the target a descriptor, anywhere or at a number, before or as the answer", () => {
    const fd = ok(createHeldMemfd(31));
    const code = `
import os, fcntl
a = os.getppid()
print(a, os.readlink(f"/proc/self/fd/{a}"), os.get_inheritable(a), os.readlink("/proc/self/fd/57"), fcntl.fcntl(57, fcntl.F_GETFD))
`;
    let inTarget: number | undefined;
    const { text } = run(code, ["getppid"], (listener, call) => {
      expect(ok(listener.addFd(call.id, fd, { at: 57, cloexec: true }))).toBe(57);
      expect(failure(listener.addFd(call.id, 9999))).toBe("EBADF");
      inTarget = ok(listener.addFdSend(call.id, fd));
      expect(answered).toContain(failure(listener.addFdSend(call.id, fd)));
    });
    closeFd(fd);
    expect(text).toBe(`${inTarget} /memfd:barlink:31 (deleted) True /memfd:barlink:31 (deleted) 1\n`);
  });

  it("keeps a call waiting while others are answered", () => {
    const code = `
import fcntl, threading
order = []
def a(): fcntl.ioctl(0, 0x3b85, 1); order.append("a")
def b(): fcntl.ioctl(0, 0x3b86, 1); order.append("b")
ts = [threading.Thread(target=f) for f in (a, b)]
ts[0].start()
ts[1].start()
for t in ts: t.join()
print("".join(order))
`;
    const held: bigint[] = [];
    const [out, into] = ok(makePipe());
    const program = start(python(code, into, { filter: trapping("ioctl") }));
    closeFd(into);
    const listener = new Listener(program.listenerFd);
    let others = 0;
    serve(listener, (call) => {
      if (call.args[1] === 0x3b85n) held.push(call.id);
      else if (call.args[1] !== 0x3b86n) listener.continue(call.id);
      else {
        listener.returnValue(call.id, 0);
        others++;
      }
      if (others > 0) for (const id of held.splice(0)) listener.returnValue(id, 0);
    });
    listener.close();
    const text = new Uint8Array(16);
    expect(ok(readFd(out, text))).toBe(3);
    expect(Buffer.from(text.subarray(0, 3)).toString()).toMatch(/^(ab|ba)\n$/);
    closeFd(out);
  });

  it("is told by poll that nobody is bound any more, also when the target is killed in a call", async () => {
    const [out, into] = ok(makePipe());
    const program = start(python("import os; os.getppid()", into, { filter: trapping("getppid") }));
    closeFd(into);
    closeFd(out);
    const listener = new Listener(program.listenerFd);
    const set = new PollSet([{ fd: listener.fd, events: POLLIN }]);
    expect(set.wait()).toBe(1);
    expect(set.revents(0)).toBe(POLLIN);
    const call = ok(listener.recv());
    kill(program.pid, 9);
    expect(ok(waitPid(program.pid, { block: true }))).toMatchObject({ kind: "killed", status: 9 });
    await program.ended;
    set.wait();
    expect(set.revents(0) & POLLHUP).toBe(POLLHUP);
    expect(listener.idValid(call.id)).toBe(false);
    expect(failure(listener.returnValue(call.id, 0))).toBe("ENOENT");
    expect(failure(listener.recv())).toBe("ENOENT");
    listener.close();
  });

  it("closed under a waiting call, makes that call fail with ENOSYS", () => {
    const [out, into] = ok(makePipe());
    const program = start(python(`${IOCTLS}print(call(0, 0x3b85, 7))`, into, { filter: trapping("ioctl") }));
    closeFd(into);
    const listener = new Listener(program.listenerFd);
    const set = new PollSet([{ fd: listener.fd, events: POLLIN }]);
    for (;;) {
      set.wait();
      const call = ok(listener.recv());
      if (call.args[1] === 0x3b85n) break;
      listener.continue(call.id);
    }
    listener.close();
    waitPid(program.pid, { block: true });
    const text = new Uint8Array(64);
    expect(Buffer.from(text.subarray(0, ok(readFd(out, text)))).toString()).toBe("Function not implemented\n");
    closeFd(out);
  });

  it("is served on the waker's CPU where the kernel can do that", () => {
    const [out, into] = ok(makePipe());
    const program = start(python("import os; os.getppid()", into, { filter: trapping("getppid") }));
    closeFd(into);
    closeFd(out);
    const listener = new Listener(program.listenerFd);
    expect(listener.setSyncWakeUp()).toBeUndefined();
    serve(listener, (call) => listener.continue(call.id));
    listener.close();
  });
});

describe("seccomp", () => {
  it("tells which actions it knows, and how large its structs are", () => {
    expect(seccompActionMissing(SECCOMP_RET_USER_NOTIF)).toBeUndefined();
    expect(failure(seccompActionMissing(0x1234_0000))).toBe("EOPNOTSUPP");
    expect(seccompNotifSizes()).toEqual({ notif: 80, response: 24, data: 64 });
  });

  it("refuses an empty program, and leaves this thread unbound", () => {
    // An invalid program is refused before it binds anybody.
    expect(failure(installListener(new Uint8Array(0)))).toBe("EINVAL");
  });
});
