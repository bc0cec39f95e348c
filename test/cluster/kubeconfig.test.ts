// What a kubeconfig says, in all the ways that kubelets have it: files beside it, data in it, tokens, programs.

import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Kubeconfig } from "../../src/cluster/kubeconfig.ts";

let folder = "";
let file = "";

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kubeconfig-"));
  file = join(folder, "kubelet.conf");
});

afterEach(() => {
  rmSync(folder, { recursive: true });
});

function write(cluster: object, user: object): Kubeconfig {
  const config = {
    clusters: [
      { name: "other", cluster: { server: "https://other" } },
      { name: "c", cluster: { server: "https://api.example.com:6443", ...cluster } },
    ],
    users: [{ name: "u", user }],
    contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
    "current-context": "x",
  };
  writeFileSync(file, JSON.stringify(config));
  return new Kubeconfig({ files: [file] });
}

function lay(name: string, text: string, mode = 0o600): void {
  writeFileSync(join(folder, name), text);
  chmodSync(join(folder, name), mode);
}

const base64 = (text: string): string => Buffer.from(text).toString("base64");

test("kubeadm's own, in YAML, with kubelet's certificate in a file that is exchanged", async () => {
  lay("kubelet-client-current.pem", "first");
  writeFileSync(
    file,
    `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: ${base64("authority")}
    server: https://10.0.0.1:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: default-auth
  name: default-auth@kubernetes
current-context: default-auth@kubernetes
kind: Config
users:
- name: default-auth
  user:
    client-certificate: kubelet-client-current.pem
    client-key: ${join(folder, "kubelet-client-current.pem")}
`,
  );
  const kubeconfig = new Kubeconfig({ files: [file] });
  const { url, options } = await kubeconfig.read();
  expect(url.href).toBe("https://10.0.0.1:6443/");
  expect(options).toEqual({ ca: Buffer.from("authority"), cert: "first", key: "first", headers: {} });
  lay("kubelet-client-current.pem", "second");
  expect((await kubeconfig.read()).options.cert).toBe("second");
});

test.each([
  { user: { token: "t" }, header: "Bearer t" },
  { user: { token: "t", tokenFile: "token" }, header: "Bearer from the file" },
  { user: { username: "u", password: "p" }, header: `Basic ${base64("u:p")}` },
  { user: {}, header: undefined },
])("$user authorizes with $header", async ({ user, header }) => {
  lay("token", "from the file\n");
  expect((await write({}, user).read()).options.headers["authorization"]).toBe(header);
});

test("a server's other name, and one that is not verified", async () => {
  const { options } = await write({ "tls-server-name": "name", "insecure-skip-tls-verify": true }, {}).read();
  expect(options).toEqual({ servername: "name", rejectUnauthorized: false, headers: {} });
});

test("a program is told what it is for, and its credentials are used until they are about to end", async () => {
  const plugin = (untilMs: number): void => {
    const status = { token: "granted", expirationTimestamp: new Date(untilMs).toISOString() };
    const answer = JSON.stringify({ kind: "ExecCredential", status });
    lay("plugin", `#!/bin/sh\necho "$1 $WORD $KUBERNETES_EXEC_INFO" >>"$2"\necho '${answer}'\n`, 0o700);
  };
  const calls = join(folder, "calls");
  const exec = {
    apiVersion: "client.authentication.k8s.io/v1beta1",
    command: "./plugin",
    args: ["get-token", calls],
    env: [{ name: "WORD", value: "given" }],
  };
  plugin(Date.now() + 30_000);
  const kubeconfig = write({}, { exec });
  for (let times = 0; times < 2; times++)
    expect((await kubeconfig.read()).options.headers["authorization"]).toBe("Bearer granted");
  plugin(Date.now() + 3_600_000);
  await kubeconfig.read();
  await kubeconfig.read();
  const told = readFileSync(calls, "utf8").trim().split("\n");
  expect(told).toHaveLength(3);
  const information = { kind: "ExecCredential", apiVersion: exec.apiVersion, spec: { interactive: false } };
  expect(told[0]).toBe(`get-token given ${JSON.stringify(information)}`);
  kubeconfig.forget();
  await kubeconfig.read();
  expect(readFileSync(calls, "utf8").trim().split("\n")).toHaveLength(4);
});

test.each([
  { why: "no file", make: () => new Kubeconfig({ files: [file] }), says: /no such file/ },
  { why: "no server", make: () => write({ server: undefined }, {}), says: /Invalid URL/ },
  {
    why: "a proxy",
    make: () => write({ "proxy-url": "http://proxy" }, {}),
    says: /proxy-url is not supported/,
  },
  {
    why: "no such certificate",
    make: () => write({}, { "client-key": "absent" }),
    says: /no such file.*absent/,
  },
  {
    why: "no such program",
    make: () => write({}, { exec: { command: "/absent" } }),
    says: /\/absent failed: ENOENT/,
  },
  {
    why: "a program that fails, with a secret in what it prints",
    make: () => {
      lay("plugin", "#!/bin/sh\necho secret >&2\necho secret\nexit 3\n", 0o700);
      return write({}, { exec: { command: "./plugin" } });
    },
    says: /plugin failed: 3$/,
  },
  {
    why: "a program that prints something else",
    make: () => {
      lay("plugin", "#!/bin/sh\necho secret\n", 0o700);
      return write({}, { exec: { command: "./plugin" } });
    },
    says: /printed no JSON$/,
  },
])("$why: told with the file's path", async ({ make, says }) => {
  const failure = make().read();
  await expect(failure).rejects.toMatchObject({ code: "invalid", message: expect.stringMatching(says) });
  await expect(failure).rejects.toThrow(`the kubeconfig ${file} cannot be used: `);
});

test("of several files, what comes first counts, each beside its own files; another context may be asked for", async () => {
  const named = (context: string, cluster: string, more: object = {}): object => ({
    contexts: [{ name: context, context: { cluster, user: "u", namespace: `of-${context}` } }],
    clusters: [{ name: cluster, cluster: { server: `https://${context}.example.com` } }],
    ...more,
  });
  const other = join(folder, "other");
  mkdirSync(other);
  writeFileSync(file, JSON.stringify({ ...named("one", "c1"), "current-context": "two" }));
  const second = join(other, "config");
  const users = [{ name: "u", user: { tokenFile: "token" } }];
  writeFileSync(second, JSON.stringify({ ...named("two", "c2", { users }), "current-context": "one" }));
  writeFileSync(join(other, "token"), "of the second\n");
  const both = { files: [file, second] };
  expect((await new Kubeconfig(both).read()).url.hostname).toBe("two.example.com");
  expect((await new Kubeconfig(both).read()).options.headers["authorization"]).toBe("Bearer of the second");
  expect(await new Kubeconfig(both).namespace()).toBe("of-two");
  const one = new Kubeconfig({ ...both, context: "one" });
  expect((await one.read()).url.hostname).toBe("one.example.com");
  expect(await one.namespace()).toBe("of-one");
  await expect(new Kubeconfig({ ...both, context: "three" }).read()).rejects.toThrow(
    /it has no context three/,
  );
});

test("a program for credentials is run with the environment of whoever asks", async () => {
  lay("plugin", `#!/bin/sh\nprintf '{"status":{"token":"%s"}}' "$PROFILE-$OWN"\n`, 0o700);
  const exec = { command: "./plugin", env: [{ name: "OWN", value: "own" }] };
  const { files } = { files: [file] };
  write({}, { exec });
  const kubeconfig = new Kubeconfig({ files, environment: { PROFILE: "profile", OWN: "another" } });
  expect((await kubeconfig.read()).options.headers["authorization"]).toBe("Bearer profile-own");
});
