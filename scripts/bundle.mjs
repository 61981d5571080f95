// The two threads of `barlink run` as one file each, with V8's code cache: they come up in a third of the time that some
// 300 modules take. `src/host/worker.ts` uses them when they are there and not older than what the compiler last wrote, so
// a bundle is never needed, and never stale.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

/** Module below dist, without its extension, by the name of its bundle. */
const ENTRIES = { run_worker: "supervise/run_worker", spawn_worker: "host/spawn_worker" };
/** What the bundle is a function of. */
const HEAD = "(function (require, module, exports, bundleUrl, bundleDirname) {";

// node:module would load the whole loader of ECMAScript modules, of which a bundle has no other use.
const withoutLoader = {
  name: "without-loader",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^node:module$/ }, () => ({ path: "create-require", namespace: "barlink" }));
    onLoad({ filter: /.*/, namespace: "barlink" }, () => ({ contents: "export const createRequire = () => require;" }));
  },
};

/** The worker's main file: compiles the bundle with what was compiled before. */
const stub = (name, before = "") => `"use strict";
const { readFileSync } = require("node:fs");
const { Script } = require("node:vm");
const filename = __dirname + "/${name}.js";
let cachedData;
try {
  cachedData = readFileSync(__dirname + "/${name}.cache");
} catch {}
const script = new Script(readFileSync(filename, "latin1"), { filename, cachedData });
${before}script.runInThisContext()(require, module, exports, "file://" + encodeURI(filename), __dirname);
`;

/** Put into a stub, writes down what is compiled by then: with each message, of which the last is the run's end, and when the thread ends. */
const recording = (name) => `const { parentPort } = require("node:worker_threads");
const record = () => require("node:fs").writeFileSync(__dirname + "/${name}.cache", script.createCachedData());
const post = parentPort.postMessage;
parentPort.postMessage = (m) => {
  record();
  post.call(parentPort, m);
};
process.on("exit", record);
`;

/** The moment of the compiler's last change, ms. */
function compiledAt(dist) {
  const folder = join(dist, ".tsbuildinfo");
  return Math.max(...readdirSync(folder).map((f) => statSync(join(folder, f)).mtimeMs));
}

/** Makes `dist/bundle` anew if the compiler has written since, or if the dependencies have changed. */
export async function bundle(root) {
  const dist = join(root, "dist");
  const folder = join(dist, "bundle");
  const made = Object.keys(ENTRIES).map((name) => join(folder, `${name}.cjs`));
  const oldest = Math.min(...made.map((f) => (existsSync(f) ? statSync(f).mtimeMs : 0)));
  const lock = join(root, "node_modules", ".barlink-lock");
  if (oldest >= Math.max(compiledAt(dist), existsSync(lock) ? statSync(lock).mtimeMs : 0)) return;
  // Made beside, and moved there when all is in it: a run that starts meanwhile finds the old one, or none.
  const fresh = `${folder}.${process.pid}`;
  rmSync(fresh, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true });
  try {
    for (const [name, entry] of Object.entries(ENTRIES)) {
      await build({
        entryPoints: [join(dist, `${entry}.js`)],
        outfile: join(fresh, `${name}.js`),
        bundle: true,
        platform: "node",
        format: "cjs",
        target: "node20",
        external: ["koffi"],
        plugins: [withoutLoader],
        define: { "import.meta.url": "bundleUrl", "import.meta.dirname": "bundleDirname" },
        banner: { js: HEAD },
        footer: { js: "})" },
        minifyWhitespace: true,
        legalComments: "none",
        logLevel: "error",
      });
      writeFileSync(join(fresh, `${name}.cjs`), stub(name, recording(name)));
    }
    rmSync(folder, { recursive: true, force: true });
    renameSync(fresh, folder);
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
  // One run of a program that does a little of everything records what is worth keeping compiled. Where none can be run,
  // the bundle goes without.
  const program = ["-c", ": < /dev/iommu; : < /dev/vfio/vfio; cat /sys/bus/pci/devices/*/vendor"];
  spawnSync(process.execPath, [join(dist, "cli/main.js"), "run", "--", "sh", ...program], { stdio: "ignore", timeout: 60_000 });
  for (const name of Object.keys(ENTRIES)) writeFileSync(join(folder, `${name}.cjs`), stub(name));
}
