import { execFileSync, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { closeFd, preadFd, readFds, readLinkAt } from "../../src/host/index.ts";
import type { PciFunctionDescription } from "../../src/kernel/pci/pci_model.ts";
import { EBUSY, EEXIST, EINVAL, ENODEV, ENOTDIR, ERANGE, type Errno } from "../../src/lib/errno.ts";
import { Contents } from "../../src/supervise/tree/contents.ts";
import type { DirNode, FileNode, Node } from "../../src/supervise/tree/node.ts";
import { parseBoolean, parseHexFields, parseUnsigned } from "../../src/supervise/tree/parse.ts";
import { sysfsPathOf } from "../../src/supervise/tree/render_pci.ts";
import { Shadow } from "../../src/supervise/tree/shadow.ts";
import { claimFolder } from "../../src/supervise/tree/sweep.ts";
import { Tree } from "../../src/supervise/tree/tree.ts";
import * as O from "../../src/uapi/fcntl.ts";
import { Bench, RAM_BYTES, TINY } from "../kernel/vfio/bench.ts";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

const VF: PciFunctionDescription = {
  name: "tiny vf",
  vendor: 0xffff,
  device: 0x5679,
  class: 0xff0000,
  bars: [{ index: 0, size: RAM_BYTES, kind: "mem64", prefetch: true }],
  capabilities: { pcie: { flr: true } },
};
const PF: PciFunctionDescription = { ...TINY, extended: { sriov: { totalVfs: 2, vfOffset: 8, vfStride: 8, vf: VF } } };

class TreeBench extends Bench {
  readonly tree: Tree;
  constructor(functions: readonly PciFunctionDescription[] = [TINY]) {
    super({ functions: [...functions], params: { enableSriov: true } });
    this.tree = new Tree(this.kernel);
  }

  get bdf(): string {
    return this.bdfs[0] as string;
  }
  file(path: string): FileNode {
    const node = this.tree.lookup(path);
    if (node?.kind !== "file") throw new Error(`${path} is no file`);
    return node;
  }
  dev(name: string, bdf: string = this.bdf): string {
    const dev = this.kernel.pci.devices.get(bdf);
    if (dev === undefined) throw new Error(`no ${bdf}`);
    return `${sysfsPathOf(dev)}/${name}`;
  }
  show(path: string): string {
    return this.file(path).show?.() as string;
  }
  write(path: string, text: string): number | Errno {
    const { store } = this.file(path);
    if (store === undefined) throw new Error(`${path} takes nothing`);
    return this.kernelRun(store(bytes(text), 0n));
  }
}

describe("what is written", () => {
  it("is a number as the kernel reads it", () => {
    const n = (t: string) => parseUnsigned(bytes(t));
    expect([n("1"), n("1\n"), n("0x10"), n("010"), n("+3"), n("0")]).toEqual([1n, 1n, 16n, 8n, 3n, 0n]);
    for (const bad of ["", "\n", "1\n\n", " 1", "1 ", "-1", "x", "08", "0x", "18446744073709551616"]) expect(n(bad)).toBe(EINVAL);
    expect(parseUnsigned(bytes("65536"), 0xffffn)).toBe(EINVAL);
  });

  it("is a flag, or a row of hexadecimal numbers", () => {
    expect(["y", "1", "on", "T"].map((t) => parseBoolean(bytes(t)))).toEqual([true, true, true, true]);
    expect(["N\n", "0", "off", "f"].map((t) => parseBoolean(bytes(t)))).toEqual([false, false, false, false]);
    expect(["", "o", "x"].map((t) => parseBoolean(bytes(t)))).toEqual([EINVAL, EINVAL, EINVAL]);
    expect(parseHexFields(bytes("8086 0x10c9 ffffffff 0\n"))).toEqual([0x8086, 0x10c9, 0xffff_ffff, 0]);
    expect(parseHexFields(bytes("12 zz 3"))).toEqual([0x12]);
  });
});

describe("files of a function", () => {
  it("make and remove virtual functions, each with its own folder and links", () => {
    const b = new TreeBench([PF]);
    const numvfs = b.dev("sriov_numvfs");
    expect(b.show(b.dev("sriov_totalvfs"))).toBe("2\n");
    expect(b.write(numvfs, "3")).toBe(ERANGE);
    expect(b.write(numvfs, "65536")).toBe(EINVAL);
    expect(b.write(numvfs, "2\n")).toBe(2);
    expect(b.show(numvfs)).toBe("2\n");
    const vf = b.tree.lookup(b.dev("virtfn0"));
    expect(vf?.kind === "link" && vf.text).toMatch(/^\.\.\/0000:/);
    const name = (vf as { text: string }).text.slice(3);
    expect(b.show(b.dev("vendor", name))).toBe(b.show(b.dev("vendor")));
    expect((b.tree.lookup(b.dev("physfn", name)) as { text: string }).text).toBe(`../${b.bdf}`);
    // Only vfio-pci may have them, and with autoprobe it does at once.
    expect((b.tree.lookup(b.dev("driver", name)) as { text: string }).text).toContain("vfio-pci");
    expect(b.write(numvfs, "1")).toBe(EBUSY);
    expect(b.write(numvfs, "0")).toBe(1);
    expect(b.tree.lookup(`/sys/bus/pci/devices/${name}`)).toBeUndefined();
  });

  it("let a driver have new devices by their ids", () => {
    const b = new TreeBench();
    const driver = "/sys/bus/pci/drivers/vfio-pci";
    b.write(`${driver}/unbind`, b.bdf);
    b.write(b.dev("driver_override"), "\n");
    expect(b.write(`${driver}/bind`, b.bdf)).toBe(ENODEV);
    const id = `${TINY.vendor.toString(16)} ${TINY.device.toString(16)}`;
    expect(b.write(`${driver}/new_id`, id)).toBe(id.length);
    expect(b.tree.lookup(b.dev("driver"))?.kind).toBe("link");
    expect(b.write(`${driver}/new_id`, id)).toBe(EEXIST);
    expect(b.write(`${driver}/remove_id`, id)).toBe(id.length);
    expect(b.write(`${driver}/remove_id`, id)).toBe(ENODEV);
  });

  it("take a function away for good", () => {
    const b = new TreeBench();
    const path = b.dev("remove");
    expect(b.write(path, "1")).toBe(1);
    expect(b.tree.lookup(path)).toBeUndefined();
    expect(b.tree.lookup(`/sys/bus/pci/devices/${b.bdf}`)).toBeUndefined();
  });

  it("wait with an unbind until the device is closed, and let others go on", () => {
    const b = new TreeBench();
    const fd = b.openCdev(b.bdf);
    const store = b.file("/sys/bus/pci/drivers/vfio-pci/unbind").store;
    if (store === undefined) throw new Error("unbind takes nothing");
    const writer = b.kernel.sched.spawn("writer", () => store(bytes(b.bdf), 0n), b.process);
    b.kernel.sched.advance(1_000_000_000);
    expect(writer.finished).toBe(false);
    // The cdev is gone already, the driver not yet; other files answer.
    expect(b.tree.lookup("/dev/vfio/devices/vfio0")).toBeUndefined();
    expect(b.tree.lookup(b.dev("driver"))?.kind).toBe("link");
    expect(b.show(b.dev("vendor"))).toMatch(/^0x/);
    b.close(fd);
    b.kernel.sched.advance(1_000_000_000);
    expect(writer.result).toBe(b.bdf.length);
    expect(b.tree.lookup(b.dev("driver"))).toBeUndefined();
  });
});

describe("the tree on disk", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "barlink-test-"));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const directory = (shadow: Shadow, node: Node | undefined): number | Errno => shadow.openDirectory(node as DirNode, O.O_RDONLY);
  const listing = (fd: number | Errno): string[] => readdirSync(`/proc/self/fd/${fd as number}`).sort();

  it("lists what the tree has, and follows it", () => {
    const b = new TreeBench();
    const shadow = new Shadow(b.tree, join(folder, "tree"));
    const dev = directory(shadow, b.tree.lookup(b.dev("vendor").slice(0, -7)));
    const cdevs = directory(shadow, b.tree.lookup("/dev/vfio/devices"));
    expect(listing(dev)).toEqual([...(b.tree.lookup(b.dev("x").slice(0, -2)) as DirNode).children.keys()].sort());
    expect(listing(cdevs)).toEqual(["vfio0"]);
    expect(readlinkSync(`/proc/self/fd/${dev as number}/driver`)).toMatch(/\/bus\/pci\/drivers\/vfio-pci$/);
    b.write("/sys/bus/pci/drivers/vfio-pci/unbind", b.bdf);
    shadow.sync();
    expect(listing(cdevs)).toEqual([]);
    expect(listing(dev)).not.toContain("driver");
    expect(listing(dev)).not.toContain("vfio-dev");
    b.write("/sys/bus/pci/drivers/vfio-pci/bind", b.bdf);
    shadow.sync();
    expect(listing(dev)).toContain("vfio-dev");
    expect(shadow.treePath(readLinkAt(-100, `/proc/self/fd/${dev as number}`) as string)).toBe(b.dev("x").slice(0, -2));
    for (const fd of [dev, cdevs]) closeFd(fd as number);
    shadow.close();
  });

  it("is walked beneath its folder and through no link, whatever the user puts there", () => {
    const b = new TreeBench();
    const shadow = new Shadow(b.tree, join(folder, "tree"));
    closeFd(directory(shadow, b.tree.lookup("/sys/bus/pci/drivers")) as number);
    mkdirSync(join(folder, "elsewhere"));
    writeFileSync(join(folder, "elsewhere/precious"), "");
    renameSync(join(folder, "tree/sys/bus/pci/drivers"), join(folder, "tree/sys/bus/pci/was"));
    symlinkSync(join(folder, "elsewhere"), join(folder, "tree/sys/bus/pci/drivers"));
    expect(directory(shadow, b.tree.lookup("/sys/bus/pci/drivers"))).toBe(ENOTDIR);
    b.write("/sys/bus/pci/drivers/vfio-pci/unbind", b.bdf);
    shadow.sync();
    expect(readdirSync(join(folder, "elsewhere"))).toEqual(["precious"]);
    shadow.close();
  });

  it("leaves no descriptor open", () => {
    const before = readFds("self")?.length;
    const b = new TreeBench();
    const shadow = new Shadow(b.tree, join(folder, "tree"));
    const contents = new Contents(b.tree);
    const fds = [
      contents.open(b.file(b.dev("config")), O.O_RDWR),
      contents.open(b.file(b.dev("vendor")), O.O_RDONLY),
      contents.name(b.dev("driver")),
    ];
    for (const path of ["/sys/bus/pci", b.dev("power"), "/dev/vfio"]) fds.push(directory(shadow, b.tree.lookup(path)));
    shadow.status(b.file(b.dev("vendor")));
    for (const fd of fds) closeFd(fd as number);
    contents.close();
    shadow.close();
    expect(readFds("self")?.length).toBe(before);
  });

  it("sweeps what the dead left behind, and nothing of the living", async () => {
    const [dead, alive, none] = ["barlink-dead", "barlink-alive", "barlink-none"].map((n) => join(folder, n)) as [string, string, string];
    for (const f of [dead, alive, none]) mkdirSync(join(f, "tree"), { recursive: true });
    const sleeper = spawn("sleep", ["60"]);
    const gone = Number(execFileSync("sh", ["-c", "echo $$"], { encoding: "utf8" }));
    const start = readFileSync(`/proc/${sleeper.pid}/stat`, "latin1").split(") ")[1]?.split(" ")[19];
    writeFileSync(join(dead, "owner"), `${gone} 1\n`);
    writeFileSync(join(alive, "owner"), `${sleeper.pid} ${start}\n`);
    const mine = join(folder, "barlink-mine");
    mkdirSync(mine);
    claimFolder(mine);
    expect([dead, alive, none, mine].map((f) => existsSync(f))).toEqual([false, true, true, true]);
    sleeper.kill();
  });
});

describe("an open file", () => {
  it("follows the kernel while it is open, and is forgotten when it is closed", () => {
    const b = new TreeBench();
    const contents = new Contents(b.tree);
    const read = (fd: number): string => {
      const dst = new Uint8Array(64);
      return new TextDecoder().decode(dst.subarray(0, preadFd(fd, dst, 0) as number));
    };
    const fd = contents.open(b.file(b.dev("driver_override")), O.O_RDONLY) as number;
    expect(read(fd)).toBe("vfio-pci\n");
    b.write(b.dev("driver_override"), "somebody-else\n");
    contents.sync();
    expect(read(fd)).toBe("somebody-else\n");
    b.write(b.dev("driver_override"), "\n");
    contents.sync();
    expect(read(fd)).toBe("(null)\n");
    expect(contents.count).toBe(1);
    closeFd(fd);
    contents.drain();
    expect(contents.count).toBe(0);
    contents.close();
  });

  it("that was opened to be written takes no byte that is not served", () => {
    const b = new TreeBench();
    const contents = new Contents(b.tree);
    const fd = contents.open(b.file("/sys/bus/pci/drivers/vfio-pci/bind"), O.O_WRONLY) as number;
    expect(() => writeFileSync(fd, "0000:00:00.0")).toThrow(/EPERM/);
    expect(contents.ofLink(readLinkAt(-100, `/proc/self/fd/${fd}`) as string)).toEqual({
      path: "/sys/bus/pci/drivers/vfio-pci/bind",
      isContent: true,
    });
    closeFd(fd);
    contents.close();
  });
});
