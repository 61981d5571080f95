"""Runs a command on a terminal of its own: types each text once the one before it was answered with what is expected.

Arguments: a JSON list of [expected, typed] pairs, then the command. Prints all that came, and how the command ended."""
import json, os, pty, select, sys, time

script, command = json.loads(sys.argv[1]), sys.argv[2:]
pid, fd = pty.fork()
if pid == 0:
    os.environ.update(PS1="$ ", TERM="dumb", HISTFILE="/dev/null")
    os.execvp(command[0], command)
out, seen, deadline = b"", 0, time.time() + 50


def more():
    global out
    ready, _, _ = select.select([fd], [], [], 0.1)
    try:
        data = os.read(fd, 65536) if ready else None
    except OSError:
        return False
    if data == b"":
        return False
    out += data or b""
    return time.time() < deadline


for expected, typed in script:
    while out.find(expected.encode(), seen) < 0:
        if not more():
            sys.exit("in vain for %r: %r" % (expected, out))
    seen = out.find(expected.encode(), seen) + len(expected)
    time.sleep(0.1)
    os.write(fd, typed.encode())
while more():
    pass
_, status = os.waitpid(pid, 0)
print(json.dumps({"out": out.decode().replace("\r\n", "\n"), "status": os.waitstatus_to_exitcode(status)}))
