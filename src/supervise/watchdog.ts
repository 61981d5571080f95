/**
 * What cleans up when barlink itself is killed.
 *
 * A shell in a session of its own waits for the end of its standard input,
 * which is a pipe from us. A line on it says that all is well; its mere end says
 * that we are gone. Then the program's devices are gone too, and its next calls
 * would fail with ENOSYS in ways that it never met: the watchdog kills every
 * process of the program, says so, and removes our folder.
 *
 * It finds them in a list in that folder (pid and start time, so that a pid that
 * was used again is left alone), with their descendants.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The list in our folder: "PID START_TIME" a line. */
export const PROCESS_LIST = "processes";

const SCRIPT = `
trap '' HUP INT QUIT TERM TSTP TTIN TTOU
dir=$1
read -r word && [ "$word" = done ] && exit 0
[ -d "$dir" ] || exit 0
start_of() {
  read -r line 2>/dev/null < "/proc/$1/stat" || return 1
  set -- \${line##*) }
  ppid=$2 start=\${20}
}
ours=' '
while read -r pid start0; do
  start_of "$pid" && [ "$start" = "$start0" ] && ours="$ours$pid "
done 2>/dev/null < "$dir/${PROCESS_LIST}"
killed=0 round=0
while [ "$round" -lt 5 ]; do
  round=$((round + 1)) found=
  for p in /proc/[0-9]*; do
    pid=\${p#/proc/}
    case $ours in *" $pid "*) continue ;; esac
    start_of "$pid" || continue
    case $ours in *" $ppid "*) ours="$ours$pid " found=1 ;; esac
  done
  for pid in $ours; do
    case " $dead " in *" $pid "*) continue ;; esac
    kill -KILL "$pid" && killed=$((killed + 1))
    dead="$dead $pid"
  done 2>/dev/null
  [ -n "$found" ] || break
done
case $killed in
  0) what='barlink was killed while its program was starting' ;;
  1) what='barlink was killed, and its program with it: the devices that it used are gone' ;;
  *) what="barlink was killed, and the $killed processes of its program with it: the devices that they used are gone" ;;
esac
echo "barlink: $what" >&2
rm -rf "$dir"
`;

/** A tidy end waits so long at most for the watchdog. */
const END_MS = 300;

export class Watchdog {
  readonly #child: ChildProcess;
  /** Ours, 0700, in the folder for temporary files; it goes with us. */
  readonly directory: string;

  /** Makes the folder once somebody watches who would remove it. Without /bin/sh nobody does. */
  constructor() {
    this.directory = join(tmpdir(), `barlink-${randomName()}`);
    this.#child = spawn("/bin/sh", ["-c", SCRIPT, "barlink-watchdog", this.directory], {
      detached: true,
      cwd: "/",
      env: { PATH: "/usr/bin:/bin" },
      stdio: ["pipe", "ignore", "inherit"],
    });
    this.#child.on("error", () => {});
    this.#child.stdin?.on("error", () => {});
    this.#child.unref();
    try {
      mkdirSync(this.directory, 0o700);
    } catch (e) {
      // It is not ours to be removed.
      this.#child.stdin?.end("done\n");
      throw e;
    }
    writeFileSync(join(this.directory, PROCESS_LIST), "");
  }

  /** All went well: the folder is removed, and the watchdog ends. */
  async dismiss(): Promise<void> {
    const child = this.#child;
    if (child.pid !== undefined && child.exitCode === null) {
      const ended = new Promise<void>((resolve) => {
        child.once("exit", () => resolve());
        setTimeout(resolve, END_MS);
      });
      child.ref();
      child.stdin?.end("done\n");
      rmSync(this.directory, { recursive: true, force: true });
      await ended;
    } else rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Six bytes that nobody can guess. node:crypto would take longer to load than all else here. */
function randomName(): string {
  const fd = openSync("/dev/urandom", "r");
  try {
    const bytes = Buffer.alloc(6);
    readSync(fd, bytes);
    return bytes.toString("hex");
  } finally {
    closeSync(fd);
  }
}
