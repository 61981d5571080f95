import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AT_SYMLINK_NOFOLLOW, closeFd, openAt, readLinkAt, statAt } from "../../src/host/index.ts";
import { ELOOP, ENOENT, ENOTDIR, Errno, EXDEV } from "../../src/lib/errno.ts";
import type { DirNode, Node } from "../../src/supervise/tree/node.ts";
import {
  type MachineView,
  type Probe,
  RESOLVE_BENEATH,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_SYMLINKS,
  RESOLVE_NO_XDEV,
  type TreeView,
  type Walked,
  walk,
} from "../../src/supervise/tree/paths.ts";
import * as O from "../../src/uapi/fcntl.ts";

/** What a machine and a tree hold; a link's text after "->". */
const MACHINE = [
  "/m/a/b/",
  "/m/a/file",
  "/m/l -> ../t/x",
  "/m/abs -> /t",
  "/m/self -> self",
  "/m/into -> a/../../t/x/l",
  "/m/dangling -> nowhere",
  "/m/dev/zero",
  "/m/one -> dev/one",
];
const TREE = [
  "/t/x/file",
  "/t/x/y/z/",
  "/t/x/l -> file",
  "/t/x/up -> ../../m/a",
  "/t/x/out -> ../../m/l/y",
  "/t/abs -> /m/a/b",
  "/t/dangling -> x/none",
  "/t/ring -> ring2",
  "/t/ring2 -> ring",
  "/t/dir -> x/y",
  "/m/dev/one",
];
const MOUNTS = new Set(["/t", "/m/dev/one"]);

function modelTree(): TreeView {
  const root: DirNode = { kind: "dir", path: "/", mode: 0o755, children: new Map() };
  const dir = (path: string): DirNode => {
    if (path === "") return root;
    const at = path.lastIndexOf("/");
    const parent = dir(path.slice(0, at));
    let node = parent.children.get(path.slice(at + 1));
    if (node === undefined) {
      node = { kind: "dir", path, mode: 0o755, children: new Map() };
      parent.children.set(path.slice(at + 1), node);
    }
    return node as DirNode;
  };
  for (const entry of TREE) {
    const [path = "", text] = entry.split(" -> ");
    if (path.endsWith("/")) {
      dir(path.slice(0, -1));
      continue;
    }
    const at = path.lastIndexOf("/");
    const node: Node =
      text === undefined ? { kind: "file", path, mode: 0o444, size: 0, binary: false, show: () => "" } : { kind: "link", path, text };
    dir(path.slice(0, at)).children.set(path.slice(at + 1), node);
  }
  return {
    lookup(path) {
      let node: Node = root;
      for (const name of path.split("/").filter(Boolean)) {
        const next: Node | undefined = node.kind === "dir" ? node.children.get(name) : undefined;
        if (next === undefined) return undefined;
        node = next;
      }
      return [...MOUNTS].some((m) => path === m || path.startsWith(`${m}/`)) ? node : undefined;
    },
    isMount: (path) => MOUNTS.has(path),
    isAbove: (path) => path === "/" || path === "/m" || path === "/m/dev",
  };
}

function make(root: string, entries: readonly string[]): void {
  for (const entry of entries) {
    const [path = "", text] = entry.split(" -> ");
    mkdirSync(join(root, path.endsWith("/") ? path : join(path, "..")), { recursive: true });
    if (text !== undefined) symlinkSync(text, join(root, path));
    else if (!path.endsWith("/")) writeFileSync(join(root, path), "");
  }
}

describe("a path of the program", () => {
  const tree = modelTree();
  let scratch: string;
  let machine: MachineView;
  /** A folder that holds both, for the real kernel to walk. */
  let both: number;
  let bothPath: string;

  beforeAll(() => {
    scratch = mkdtempSync(join(tmpdir(), "barlink-test-"));
    make(join(scratch, "machine"), MACHINE);
    make(join(scratch, "both"), [...MACHINE, ...TREE]);
    bothPath = join(scratch, "both");
    both = openAt(-100, bothPath, O.O_PATH | O.O_DIRECTORY) as number;
    machine = {
      probe(path): Probe {
        const real = join(scratch, "machine", path);
        const found = statAt(-100, real, AT_SYMLINK_NOFOLLOW);
        if (found instanceof Errno) return found;
        if ((found.mode & O.S_IFMT) === O.S_IFDIR) return "directory";
        return (found.mode & O.S_IFMT) === O.S_IFLNK ? { link: readLinkAt(-100, real) as string, magic: false } : "other";
      },
      shadowNode: () => undefined,
    };
  });
  afterAll(() => {
    closeFd(both);
    rmSync(scratch, { recursive: true });
  });

  /** Where the real kernel ends up: a canonical path, or why not. */
  function really(path: string, follow: boolean): string | Errno {
    const fd = openAt(both, path, O.O_PATH | (follow ? 0 : O.O_NOFOLLOW), { resolve: RESOLVE_IN_ROOT });
    if (fd instanceof Errno) return fd;
    const link = readLinkAt(-100, `/proc/self/fd/${fd}`) as string;
    closeFd(fd);
    return link === bothPath ? "/" : link.slice(bothPath.length);
  }

  const walked = (path: string, follow = true, start = "/", resolve?: number): Walked =>
    walk(tree, machine, tree.lookup(start) ?? start, path, resolve === undefined ? { follow } : { follow, resolve });

  it("leads where the real kernel finds it in a folder that holds machine and tree together", () => {
    const names = [
      "m",
      "a",
      "b",
      "l",
      "abs",
      "self",
      "into",
      "dangling",
      "dev",
      "zero",
      "one",
      "t",
      "x",
      "y",
      "z",
      "file",
      "up",
      "out",
      "ring",
      "dir",
      "none",
      ".",
      "..",
      "..",
    ];
    const component = fc.constantFrom(...names);
    const starts = ["/", "/m", "/m/a", "/m/a/b", "/t", "/t/x", "/t/x/y/z", "/m/dev"];
    fc.assert(
      fc.property(
        fc.array(component, { minLength: 1, maxLength: 9 }),
        fc.constantFrom(...starts),
        fc.boolean(),
        fc.constantFrom("", "", "/", "//", "/."),
        fc.boolean(),
        (parts, start, absolute, tail, follow) => {
          const path = (absolute ? "/" : "") + parts.join("/") + tail;
          const found = walked(path, follow, start);
          const real = really(absolute ? path : `${start}/${path}`, follow);
          const said = `${start} ${path} ${follow}: ${JSON.stringify(found, (k, v) => (k === "children" ? undefined : v))} / ${real instanceof Errno ? real.name : real}`;
          if (real instanceof Errno) {
            if (found.kind === "missing") expect(real, said).toBe(ENOENT);
            else if (found.kind === "error") expect(found.errno, said).toBe(real);
            else expect(found.kind, said).toBe("machine");
            return;
          }
          const ours = tree.lookup(real) !== undefined;
          expect(found.kind, said).toBe(ours ? "node" : "machine");
          if (found.kind === "node") expect(found.node.path, said).toBe(real);
          if (found.kind === "machine") expect(found.path, said).toBe(real);
        },
      ),
      { numRuns: 20_000 },
    );
  });

  it("goes to the real kernel as it is unless it went through the tree", () => {
    expect(walked("/m/a/file")).toMatchObject({ kind: "machine", escaped: false });
    expect(walked("/m/../m/a")).toMatchObject({ kind: "machine", escaped: false });
    expect(walked("/t/x/up/file")).toMatchObject({ kind: "machine", escaped: true, path: "/m/a/file" });
    expect(walked("../m/a", true, "/t")).toMatchObject({ kind: "machine", escaped: true, path: "/m/a" });
    expect(walked("../../../../..", true, "/t/x/y/z")).toMatchObject({ kind: "machine", escaped: true, path: "/" });
  });

  it("ends a ring of links, and a chain of more than forty", () => {
    expect(walked("/t/ring")).toMatchObject({ kind: "error", errno: ELOOP });
    expect(walked(`/t/${"dir/../../".repeat(41)}t`.replaceAll("dir/../../", "dir/../../"))).toMatchObject({ kind: "error" });
  });

  it("keeps within what openat2 was told", () => {
    expect(walked("../x/file", true, "/t/x", RESOLVE_BENEATH)).toMatchObject({ kind: "error", errno: EXDEV });
    expect(walked("y/../file", true, "/t/x", RESOLVE_BENEATH)).toMatchObject({ kind: "node" });
    expect(walked("/x/file", true, "/t", RESOLVE_BENEATH)).toMatchObject({ kind: "error", errno: EXDEV });
    expect(walked("/x/file", true, "/t", RESOLVE_IN_ROOT)).toMatchObject({ kind: "node" });
    expect(walked("../../../x/file", true, "/t", RESOLVE_IN_ROOT)).toMatchObject({ kind: "node" });
    expect(walked("x/l", true, "/t", RESOLVE_NO_SYMLINKS)).toMatchObject({ kind: "error", errno: ELOOP });
    expect(walked("/t/x", true, "/", RESOLVE_NO_XDEV)).toMatchObject({ kind: "error", errno: EXDEV });
  });

  it("is not there below a file, nor a file with a slash after it", () => {
    expect(walked("/t/x/file/")).toMatchObject({ kind: "error", errno: ENOTDIR });
    expect(walked("/t/x/file/..")).toMatchObject({ kind: "error", errno: ENOTDIR });
    expect(walked("/t/x/none")).toMatchObject({ kind: "missing", last: true });
    expect(walked("/t/none/more")).toMatchObject({ kind: "missing", last: false });
  });
});
