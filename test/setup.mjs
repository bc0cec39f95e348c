// Makes a fresh Debian machine ready to build, test and measure: Debian packages, node modules, addon, program. Packages
// that one command needs, and no other, are its arguments.
//
// Plain Node without dependencies, since it runs before there are any. Each step is skipped when there is nothing to
// do, so that a second run costs a second or two.

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, rmSync, statSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const packages = [
  // To build the addon.
  "g++",
  "make",
  "libc6-dev",
  "libisal-dev",
  "libzstd-dev",
  // What is tested against, and what containers need.
  "containerd",
  "runc",
  "docker-registry",
  "pigz",
  "apache2-utils",
  "prometheus",
  // What test images are made of and looked at with.
  "busybox-static",
  "attr",
  "openssl",
  "dpkg-dev",
  "zstd",
  // To look at the status page with.
  "chromium",
  // To lay down a Debian of its own, to run bundles on and to boot.
  "mmdebstrap",
  ...process.argv.slice(2),
];

try {
  main();
} catch (error) {
  console.error(`setup: ${error.message}`);
  process.exitCode = 1;
}

function main() {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 19))
    throw new Error(`Node.js 20.19 or newer is needed, this is ${process.version}`);
  if (process.getuid?.() !== 0)
    throw new Error("run this as root: it installs packages and starts a private containerd");
  installPackages();
  installModules();
  run("building the addon", "npm", ["run", "--silent", "build:native"]);
  run("building the program", "npm", ["run", "--silent", "build"]);
}

function installPackages() {
  const missing = packages.filter((name) => !isInstalled(name));
  if (missing.length === 0) return;
  if (spawnSync("apt-get", ["--version"]).status !== 0)
    throw new Error(`apt-get is needed to install: ${missing.join(" ")}`);
  console.log(`Installing Debian packages: ${missing.join(" ")}`);
  // Servers are started by tests, privately; their packages must not start any by themselves.
  const policy = "/usr/sbin/policy-rc.d";
  const mayWrite = !existsSync(policy);
  // The policy must not outlive this, so an interruption ends apt-get alone, and this process then fails for it.
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"];
  const stay = () => {};
  for (const signal of signals) process.on(signal, stay);
  if (mayWrite) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  try {
    const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    run("updating the list of packages", "apt-get", ["update", "-qq"], env);
    run(
      "installing packages",
      "apt-get",
      ["install", "-y", "-qq", "--no-install-recommends", ...missing],
      env,
    );
  } finally {
    if (mayWrite) rmSync(policy, { force: true });
    for (const signal of signals) process.off(signal, stay);
  }
}

function isInstalled(name) {
  const query = spawnSync("dpkg-query", ["-W", "-f", "${db:Status-Status}", name], { encoding: "utf8" });
  return query.status === 0 && query.stdout === "installed";
}

/** npm itself writes node_modules/.package-lock.json last, so its age tells whether the modules are of this lock file. */
function installModules() {
  const stamp = join(root, "node_modules/.package-lock.json");
  const lock = join(root, "package-lock.json");
  if (existsSync(stamp) && statSync(stamp).mtimeMs >= statSync(lock).mtimeMs) return;
  console.log("Installing node modules");
  run("installing node modules", "npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
}

function run(what, command, args, env = process.env) {
  try {
    const path = `${join(root, "node_modules/.bin")}${delimiter}${env.PATH}`;
    execFileSync(command, args, {
      cwd: root,
      env: { ...env, PATH: path },
      stdio: ["ignore", "pipe", "pipe"],
      maxBuffer: 2 ** 28,
    });
  } catch (error) {
    const output = [error.stdout, error.stderr].map((bytes) => bytes?.toString() ?? "").join("");
    const why = output === "" ? error.message : `\n${output.slice(-4000)}`;
    throw new Error(`${what} failed: ${why}`, { cause: error });
  }
}
