#!/usr/bin/env node
// What `npm start`, `npm test` and the rest do: install what is missing, build
// what changed, then run. Plain JavaScript without a dependency, because on a
// fresh machine it runs before anything is installed.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const [verb = "help", ...args] = process.argv.slice(2);
const bin = (name) => join(root, "node_modules", ".bin", name);

function fail(message, status = 1) {
  process.stderr.write(`barlink: ${message}\n`);
  process.exit(status);
}

function run(command, argv, options = {}) {
  const r = spawnSync(command, argv, { cwd: root, stdio: "inherit", ...options });
  if (r.error) fail(`cannot run ${command}: ${r.error.message}`);
  if (r.signal) fail(`${command} was ended by ${r.signal}`);
  if (r.status !== 0) process.exit(r.status ?? 1);
}

/** node_modules matches the lockfile when the stamp says so; `npm ci` otherwise. */
function install() {
  const lock = createHash("sha256")
    .update(readFileSync(join(root, "package-lock.json")))
    .digest("hex");
  const stamp = join(root, "node_modules", ".barlink-lock");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === lock) return;
  process.stderr.write("barlink: installing what is missing (npm ci) …\n");
  run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], { stdio: ["ignore", "ignore", "inherit"] });
  writeFileSync(stamp, lock);
}

async function build(project) {
  run(process.execPath, [bin("tsc"), "-b", project]);
  try {
    const { bundle } = await import("./bundle.mjs");
    await bundle(root);
  } catch (e) {
    process.stderr.write(`barlink: programs will start slower, since no bundle could be made: ${e.message}\n`);
  }
}

const tsx = (file) => run(process.execPath, ["--expose-gc", "--import", "tsx", file, ...args]);

async function check() {
  await build(".");
  run(bin("biome"), ["check", "--error-on-warnings"]);
  run(bin("knip"), []);
  run(bin("publint"), ["--strict"]);
}

const verbs = {
  start: async () => {
    await build("src/cli");
    run(process.execPath, [join(root, "dist/cli/main.js"), ...(args.length > 0 ? args : ["tour"])]);
  },
  build: () => build("."),
  check,
  test: async () => {
    if (args.length === 0) await check();
    else await build(".");
    run(bin("vitest"), ["run", ...args]);
  },
  conformance: async () => {
    await build(".");
    tsx("conformance/main.ts");
  },
  bench: async () => {
    await build(".");
    tsx("bench/main.ts");
  },
};

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19)) fail(`Node ${process.versions.node} is too old: 20.19 or newer is needed`, 2);
const action = verbs[verb];
if (action === undefined) fail(`unknown verb "${verb}"; one of ${Object.keys(verbs).join(", ")}`, 2);
install();
await action();
