import { execFile, execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** Runs a program under barlink on the machine of the record: standard output. Rejects when it fails. */
function run(args: readonly string[], input = "", as?: number): Promise<string> {
  const line = ["--import", "tsx", at("../../src/cli/main.ts"), "run", "--machine", at("../../machines/oracle.json"), "--", ...args];
  return new Promise((resolve, reject) => {
    const ids = as === undefined ? {} : { uid: as, gid: as };
    const child = execFile(process.execPath, line, { cwd: at("../.."), maxBuffer: 1 << 24, ...ids }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`${args.join(" ")}: ${error.message}\n${stdout}\n${stderr}`));
    });
    child.stdin?.end(input);
  });
}

const root = process.getuid?.() === 0;
const NOBODY = 65534;

/** Where ours is not Linux's answer, and why. */
const DIFFERENT: readonly [RegExp, string][] = [
  [/"data": ?"x{100}/, "too long to be trapped: refused with EPERM, not EINVAL"],
  [/numa_node/, "the kernel of the record knows no NUMA nodes"],
  [/"o".*resource0/, "BARs are reached through VFIO only"],
];

describe("programs that walk the tree", () => {
  let scratch: string;
  let probe: string;

  beforeAll(() => {
    scratch = mkdtempSync(join(tmpdir(), "barlink-test-"));
    chmodSync(scratch, 0o755);
    probe = join(scratch, "sysprobe");
    execFileSync("cc", ["-O1", "-static", "-o", probe, at("../data/sysfs/sysprobe.c")]);
  });
  afterAll(() => rmSync(scratch, { recursive: true }));

  it("are answered as Linux answered the same program: opens, writes, and what follows", async () => {
    const ours = (await run([probe, "ops"], readFileSync(at("../data/sysfs/writes.txt"), "utf8"))).trimEnd().split("\n");
    const linux = readFileSync(at("../data/sysfs/writes.jsonl"), "utf8").trimEnd().split("\n");
    expect(ours.length).toBe(linux.length);
    const wrong: string[] = [];
    linux.forEach((line, i) => {
      const mine = ours[i] ?? "";
      if (DIFFERENT.some(([p]) => p.test(line))) return;
      if (JSON.stringify(JSON.parse(line)) !== JSON.stringify(JSON.parse(mine))) wrong.push(`${line} / ${mine}`);
    });
    expect(wrong).toEqual([]);
  });

  it.each([["as who runs the test", undefined], ...(root ? [["as nobody", NOBODY] as const] : [])] as const)(
    "find the tree by any way, %s",
    async (_, as) => {
      const out = JSON.parse(await run(["python3", at("programs/tree_tour.py")], "", as)) as Record<string, unknown>;
      const path = "/sys/devices/pci0000:00/0000:00:03.0/0000:01:00.0";
      expect(out).toMatchObject({
        walk: [expect.any(Number), true],
        relative: ["0x1234\n", "../../../../bus/pci/drivers/vfio-pci", 256],
        listing: ["driver", "iommu", "iommu_group", "subsystem"],
        same_file: true,
        fd_link: `${path}/vendor`,
        fd_stat: [true, 4096, "0o100444"],
        reopened: "0x1234\n",
        realpath: path,
        o_path: ["lrwxrwxrwx", "../../../../bus/pci/drivers/vfio-pci"],
        chr: [true, true, true],
        numbers: [true, "vfio1"],
        chr_listed: ["vfio0", "vfio1", "vfio2", "vfio3"],
        config: ["3412e811", "0701"],
        config_position: [1, 0x3d, "0b"],
        read_only: 9,
        config_end: [256, 6, 0],
        unbind_waited: true,
        gone: [false, false, ["vfio0", "vfio2", "vfio3"], 2],
        pwrite: 13,
        busy: 16,
        nodev: 19,
        too_long_is_loud: 1,
        writev: 13,
        shell: ["../../../../bus/pci/drivers/vfio-pci", "0", "directory", ""].map((s) => expect.stringContaining(s)),
        copied: "0x1234\n",
        tail: `${Array(3).fill("0x0000000000000000").join(" ")}\n`,
        merged: [true, [], true, "/dev", true, true, 13, true],
        chdir: [path, "0x11e8\n", "ari_enabled", 2],
        child: [path, "0x1234", "/sys/devices/pci0000:00/0000:00:03.0", "/", "1", ""],
        fchdir: [path, "0x11e8\n"],
        back: "/tmp",
        links: ["0x1234\n", "0x1234\n"],
        refused: [1, 1, 1, 13],
        owner: ["0o20640", 7, 8],
      });
    },
  );

  it("get at no file that their user could not, by no pointer, path or race", async () => {
    const secret = join(scratch, "secret");
    writeFileSync(secret, "not for you");
    chmodSync(secret, 0);
    const out = JSON.parse(
      await run(["python3", at("programs/tree_hostile.py"), secret, "not for you"], "", root ? NOBODY : undefined),
    ) as Record<string, unknown>;
    const [EACCES, EFAULT, ENAMETOOLONG] = [13, -14, -36];
    expect(out).toMatchObject({
      path_at_null: EFAULT,
      path_unmapped: EFAULT,
      path_into_a_hole: EFAULT,
      path_up_to_a_hole: true,
      too_long: ENAMETOOLONG,
      too_many_dots: true,
      stat_into_null: EFAULT,
      stat_into_a_hole: EFAULT,
      statx_into_null: EFAULT,
      readlink_into_null: EFAULT,
      how_unmapped: EFAULT,
      write_from_null: EFAULT,
      write_from_a_hole: EFAULT,
      iovec_unmapped: EFAULT,
      straight: Array(6).fill(EACCES),
      relative: EACCES,
      from_cwd: EACCES,
      through_proc_fd: EACCES,
      write_outside: EACCES,
      device_outside: EACCES,
      raced_path_opened: true,
      bind: "opened",
      planted: 1,
      after_planting: 20,
      still_serves: "opened",
      got: [],
    });
  });

  it.runIf(root)("that give up their user lose with it what only that user could", async () => {
    const secret = join(scratch, "root-only");
    writeFileSync(secret, "not for you");
    chmodSync(secret, 0o600);
    const nobody = ["setpriv", "--reuid", `${NOBODY}`, "--regid", `${NOBODY}`, "--clear-groups", "env", "PATH=/usr/bin:/bin"];
    const out = JSON.parse(await run([...nobody, "python3", at("programs/tree_hostile.py"), secret, "not for you"])) as object;
    expect(out).toMatchObject({
      bind: 13,
      straight: Array(6).fill(13),
      relative: 13,
      from_cwd: 13,
      through_proc_fd: 13,
      planted: 0,
      after_planting: 21,
      still_serves: "opened",
      got: [],
    });
  });
});
