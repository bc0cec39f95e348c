// certs.d: what is good, wrong, left to containerd, or never read.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { checkCerts } from "../../src/doctor/certs.ts";
import { certificate } from "../harness/certificates.ts";
import { all, lines, MadeUpNode } from "./node.ts";

let pems = "";
let node: MadeUpNode;

beforeAll(() => {
  pems = mkdtempSync(join(tmpdir(), "pems-"));
  certificate(pems, "good");
  certificate(pems, "old", { dates: ["20200101000000Z", "20210101000000Z"] });
});

afterAll(() => {
  rmSync(pems, { recursive: true });
});

beforeEach(() => {
  node = new MadeUpNode();
});

afterEach(() => {
  node[Symbol.dispose]();
});

const root = "/certs.d";
const pem = (name: string): Buffer => readFileSync(join(pems, `${name}.crt`));

async function found(...configPath: readonly string[]): Promise<string[]> {
  const roots = configPath.length > 0 ? configPath : [root];
  const text = lines(await all(checkCerts(node.context({ configPath: roots }))));
  // Nothing that is printed may be a path that only this test has.
  expect(text.join("\n")).not.toContain(`${node.root}${root}`);
  return text;
}

async function of(toml: string): Promise<string[]> {
  node.write(`${root}/reg.example.com/hosts.toml`, toml);
  return await found();
}

test("no folder at all, none in a folder, and none in config_path", async () => {
  expect(await found()).toEqual([
    "ok /certs.d: is not there",
    "ok hosts: no folder for any registry: each registry is asked itself",
  ]);
  node.folder(root);
  node.write(`${root}/README`, "");
  expect(await found()).toEqual(["ok hosts: no folder for any registry: each registry is asked itself"]);
  expect(lines(await all(checkCerts(node.context({ configPath: [] }))))).toEqual([
    "ok hosts: config_path is not set: each registry is asked itself",
  ]);
});

test("hosts in their order, without users, queries and headers", async () => {
  const toml = `server = "https://reg.example.com"
[host."https://user:secret-word@mirror.example.com/path?token=secret-word"]
  [host."https://user:secret-word@mirror.example.com/path?token=secret-word".header]
  Authorization = "secret-word"
[host."http://127.0.0.1:30020"]
`;
  expect(await of(toml)).toEqual([
    "ok /certs.d/reg.example.com: https://mirror.example.com/path/v2, then http://127.0.0.1:30020/v2, then https://reg.example.com/v2",
  ]);
});

test("a default for all registries, and Docker's layout", async () => {
  node.write(`${root}/_default/hosts.toml`, '[host."https://mirror.example.com"]\n');
  node.write(`${root}/reg.example.com_5000_/ca.crt`, pem("good"));
  expect(await found()).toEqual([
    "ok /certs.d/reg.example.com_5000_: https://reg.example.com:5000/v2",
    "ok /certs.d/_default: https://mirror.example.com/v2, then the registry",
  ]);
});

const correct = "correct it; files are read afresh with each pull";
const file = `${root}/reg.example.com/hosts.toml`;

test.each([
  ["a = [", `broken /certs.d/reg.example.com: ${file} is not TOML (line 1, column 5) -> ${correct}`],
  [
    '[host."https://m"]\nca = "none.pem"\n',
    `broken /certs.d/reg.example.com: the certificate /certs.d/reg.example.com/none.pem cannot be read (there is no such file) -> ${correct}`,
  ],
  [
    '[host."https://m"]\nskip_verify = "yes"\n',
    `broken /certs.d/reg.example.com: ${file}: https://m: skip_verify is neither true nor false -> ${correct}`,
  ],
  [
    '[host."https://m m"]\n',
    `broken /certs.d/reg.example.com: ${file}: "https://m m" is no URL -> ${correct}`,
  ],
  [
    '[host."https://m"]\nfrob = 1\n',
    `slow /certs.d/reg.example.com: ${file}: https://m: key frob, which only containerd understands: it pulls these images itself -> write it without, if these pulls are to be accelerated`,
  ],
  [
    'server = "https://m"\n',
    `slow /certs.d/reg.example.com: ${file} has no host tables, which only containerd understands: it pulls these images itself -> write it without, if these pulls are to be accelerated`,
  ],
])("%j", async (toml, expected) => {
  expect(await of(toml)).toEqual([expected]);
});

test("a folder where a file should be", async () => {
  node.folder(file);
  expect(await found()).toEqual([
    `broken /certs.d/reg.example.com: ${file} cannot be read (it is a directory) -> ${correct}`,
  ]);
});

test("a certificate that is not verified, unless it is this machine's", async () => {
  const text = await of(
    '[host."https://m"]\nskip_verify = true\n[host."http://n"]\nskip_verify = true\n[host."https://127.0.0.1"]\nskip_verify = true\n',
  );
  expect(text.slice(1)).toEqual([
    "slow /certs.d/reg.example.com: the certificate of m is not verified (skip_verify): anybody in between can answer -> name its authority with ca, and take skip_verify out",
  ]);
});

test("authorities that hold nothing, or are past, alone or among others", async () => {
  node.write(`${root}/reg.example.com/empty.pem`, "no certificate");
  node.write(`${root}/reg.example.com/old.pem`, pem("old"));
  node.write(`${root}/reg.example.com/bundle.pem`, Buffer.concat([pem("old"), pem("good")]));
  const toml = ["empty", "old", "bundle"]
    .map((name) => `[host."https://${name}"]\nca = "${name}.pem"\n`)
    .join("");
  expect((await of(toml)).slice(1)).toEqual([
    "broken /certs.d/reg.example.com: a ca file for empty holds no certificate -> put the authority's certificate there, as PEM",
    "broken /certs.d/reg.example.com: the authority for old has expired on 2021-01-01 (old) -> put its successor there",
  ]);
});

test("folders that are never read, since another comes first", async () => {
  const mirror = '[host."https://m"]\n';
  node.write("/a/reg.example.com:5000/hosts.toml", "broken");
  node.write("/a/reg.example.com_5000_/hosts.toml", mirror);
  node.write("/a/_default/hosts.toml", mirror);
  node.write("/b/other.example.com/hosts.toml", mirror);
  const one = "make one folder of the two";
  expect((await found("/a", "/b")).filter((line) => !line.startsWith("ok"))).toEqual([
    `slow /a/reg.example.com:5000: is never read, since /a/reg.example.com_5000_ comes first -> ${one}`,
    `slow /b/other.example.com: is never read, since /a/_default comes first -> ${one}`,
  ]);
});
