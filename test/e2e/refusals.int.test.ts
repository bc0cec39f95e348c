// Refusals, in the words of whichever containerd it is: what is wrong with a caller's credentials is told at once and in
// containerd's own sentence, and they are shown no oftener than containerd alone would show them.

import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Asked, type Behaviour, FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import type { Auth } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { containerdRelease, minors } from "../harness/versions.ts";

const login = { username: "somebody", password: "not-the-right-one" };
const basic = { "www-authenticate": 'Basic realm="fake"' };
const challenged: Behaviour = { status: 401, headers: basic };

let registry: FakeRegistry;
let tokens: FakeRegistry;
let images = 0;

beforeAll(async () => {
  [registry, tokens] = await Promise.all([FakeRegistry.start(), FakeRegistry.start()]);
});

afterAll(async () => {
  await Promise.all([registry, tokens].map((fake) => fake[Symbol.asyncDispose]()));
});

afterEach(() => {
  registry.behave = () => undefined;
  tokens.behave = () => undefined;
});

function json(body: unknown): Behaviour {
  return { status: 200, body: Buffer.from(JSON.stringify(body)) };
}

const bearer = (more = ""): Behaviour => {
  const realm = `Bearer realm="http://${tokens.host}/token",service="fake registry"${more}`;
  return { status: 401, headers: { "www-authenticate": realm } };
};

interface Case {
  readonly registry: (asked: Asked) => Behaviour | undefined;
  readonly tokens?: (asked: Asked) => Behaviour;
  readonly says: string;
}

const giving = (): Behaviour => json({ token: "t", access_token: "t" });

const cases: Readonly<Record<string, Case>> = {
  "Basic that is wrong": { registry: () => challenged, says: "401 Unauthorized" },
  "Basic that gives no access": {
    registry: ({ authorization }) => (authorization ? { status: 403 } : challenged),
    says: "403 Forbidden",
  },
  "a token server that knows nobody by this password": {
    registry: () => bearer(),
    tokens: () => ({ status: 401 }),
    says: "401 Unauthorized",
  },
  "a token server that refuses POST": {
    registry: () => bearer(),
    tokens: () => ({ status: 403 }),
    says: "403 Forbidden",
  },
  "a token that gives no access": {
    registry: () => bearer(',error="insufficient_scope"'),
    tokens: giving,
    says: "insufficient_scope",
  },
  "a token that is not believed": {
    registry: () => bearer(),
    tokens: giving,
    says: "401 Unauthorized",
  },
  "a token, and then 403": {
    registry: ({ authorization }) => (authorization ? { status: 403 } : bearer()),
    tokens: giving,
    says: "403 Forbidden",
  },
};

/** In a repository of its own, for which nobody has a token yet. */
function put() {
  images += 1;
  return registry.put(`private/app${images}:v1`, [{ bytes: tarGz([file("x", String(images))]) }]);
}

/** Requests of one client that show the password. */
function strikes(by: "containerd" | "hawser"): number {
  const shown = [...registry.asked, ...tokens.asked].filter(({ method, path, authorization }) => {
    return authorization?.startsWith("Basic ") || (method === "POST" && path === "/token");
  });
  return shown.filter(({ headers }) => headers["user-agent"]?.startsWith(by)).length;
}

describe.each(minors)("beside containerd %s", (minor) => {
  let containerd: PrivateContainerd;
  let hawser: PrivateHawser;

  beforeAll(async () => {
    containerd = await PrivateContainerd.start({ release: containerdRelease(minor) });
    hawser = await PrivateHawser.start({ containerd: containerd.address });
  });

  afterAll(async () => {
    await hawser[Symbol.asyncDispose]();
    await containerd[Symbol.asyncDispose]();
  });

  test.each(Object.entries(cases))("%s", async (_name, given) => {
    const { reference } = put();
    registry.behave = given.registry;
    tokens.behave = given.tokens ?? (() => ({ status: 500 }));
    const reset = (): void => {
      registry.asked.length = 0;
      tokens.asked.length = 0;
    };
    reset();
    const theirs = await containerd.cri.pull(reference, login);
    const usual = strikes("containerd");
    reset();
    expect(await hawser.cri.pull(reference, login)).toEqual(theirs);
    expect(theirs).toHaveProperty("message", expect.stringContaining(given.says));
    // Hawser showed them, and containerd was not asked to do so once more; but for a 403, which is no guess gone wrong.
    expect(strikes("containerd")).toBeLessThanOrEqual(given.says.startsWith("403") ? usual : 0);
    expect(strikes("hawser")).toBeGreaterThan(0);
    expect(strikes("hawser")).toBeLessThanOrEqual(usual);
    expect(hawser.logs()).not.toContain(login.password);
  });

  test("a token of an earlier pull that forbids what is allowed by now is not shown again", async () => {
    const { reference, configDigest } = put();
    let right = "denied";
    registry.behave = ({ authorization }) => {
      if (authorization === undefined) return bearer();
      return authorization === "Bearer granted" ? undefined : { status: 403 };
    };
    tokens.behave = () => json({ token: right, access_token: right, expires_in: 3600 });
    expect(await hawser.cri.pull(reference, login)).toHaveProperty("message");
    right = "granted";
    expect(await hawser.cri.pull(reference, login)).toEqual({ value: configDigest });
    expect(
      registry.asked.filter(({ headers }) => headers["user-agent"]?.startsWith("containerd")),
    ).not.toEqual([]);
  });

  test("a registry that forbids GET of a tag, and not HEAD", async () => {
    const { reference, configDigest } = put();
    registry.behave = ({ authorization, method, path }) => {
      if (authorization === undefined) return challenged;
      return method === "GET" && path.endsWith("/manifests/v1") ? { status: 403 } : undefined;
    };
    expect(await hawser.cri.pull(reference, login)).toEqual({ value: configDigest });
  });

  test("a mirror that has trouble before the registry refuses: what containerd says of it", async () => {
    const { reference } = put();
    const mirror = await FakeRegistry.start();
    mirror.behave = () => ({ status: 500 });
    const folder = join(containerd.root, "certs.d", registry.host);
    mkdirSync(folder);
    const hosts = `server = "http://${registry.host}"\n[host."http://${mirror.host}"]\n`;
    writeFileSync(join(folder, "hosts.toml"), hosts);
    registry.behave = () => challenged;
    const theirs = await containerd.cri.pull(reference, login);
    expect(await hawser.cri.pull(reference, login)).toEqual(theirs);
    rmSync(folder, { recursive: true });
    await mirror[Symbol.asyncDispose]();
  });

  test.each<[string, Auth]>([
    ["without its padding", { auth: "dTpwOnE" }],
    ["with a line end", { auth: "dTpw\n" }],
    ["in the alphabet of URLs", { auth: "dTo_" }],
    ["of no pair", { auth: "dXA=" }],
    ["of nothing", {}],
    ["of a name alone", { username: "u" }],
    ["for another server", { username: "u", password: "p", serverAddress: "https://other.invalid" }],
    ["for a server without a scheme", { username: "u", password: "p", serverAddress: "127.0.0.1" }],
  ])("credentials %s: the same answer, where they are asked for and where not", async (_name, auth) => {
    for (const behave of [(): Behaviour => challenged, () => bearer(), () => undefined]) {
      const { reference } = put();
      registry.behave = behave;
      tokens.behave = giving;
      const theirs = await containerd.cri.pull(reference, auth);
      expect(await hawser.cri.pull(reference, auth)).toEqual(theirs);
    }
  });

  test.each([
    ["403", (asked: Asked): Behaviour => (asked.authorization ? { status: 403 } : challenged)],
    ["401", (): Behaviour => challenged],
  ])(
    "credentials that are good for a name but not for blobs: %s is containerd's own",
    async (status, refuse) => {
      const { reference } = put();
      registry.behave = (asked) => {
        if (asked.path.includes("/blobs/")) return refuse(asked);
        return asked.authorization ? undefined : challenged;
      };
      const theirs = await containerd.cri.pull(reference, login);
      expect(theirs).toHaveProperty("message", expect.stringContaining(`failed to copy`));
      expect(theirs).toHaveProperty("message", expect.stringContaining(status));
      expect(await hawser.cri.pull(reference, login)).toEqual(theirs);
    },
  );
});
