// What the cluster's API says of the DaemonSet, and what is made of it.

import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Cluster } from "../../src/agent/cluster.ts";
import { type Answer, FakeCluster } from "../fakes/cluster.ts";
import { Authority } from "../harness/authority.ts";

const name = { namespace: "images", name: "hawser" };
let fake: FakeCluster;
let account: string;

beforeEach(async () => {
  fake = await FakeCluster.start();
  account = mkdtempSync(join(tmpdir(), "account-"));
  // With a newline, as an editor leaves it.
  writeFileSync(join(account, "token"), `${fake.token}\n`);
  copyFileSync(fake.authority, join(account, "ca.crt"));
});

afterEach(async () => {
  await fake[Symbol.asyncDispose]();
  rmSync(account, { recursive: true });
});

function cluster(): Cluster {
  return new Cluster({ host: "127.0.0.1", port: String(fake.port), account });
}

test.each<[Answer, string]>([
  ["there", "there"],
  ["deleting", "gone"],
  ["gone", "gone"],
  ["forbidden", "refused"],
  ["unauthorized", "refused"],
])("%s is %s", async (answer, kind) => {
  fake.answer = answer;
  expect(await cluster().find(name)).toEqual({ kind });
});

test("only metadata is asked for, of the object and its namespace", async () => {
  await cluster().find(name);
  const type = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
  expect(fake.asked).toEqual([
    `GET /apis/apps/v1/namespaces/images/daemonsets/hawser ${type}`,
    `GET /api/v1/namespaces/images ${type}`,
  ]);
});

test.each<[Answer, string]>([
  ["deleting", "gone"],
  ["forbidden", "there"],
])("what is there, in a namespace that is %s, is %s", async (answer, kind) => {
  fake.namespace = answer;
  expect(await cluster().find(name)).toEqual({ kind });
});

test("a token that was replaced is read anew", async () => {
  const asking = cluster();
  writeFileSync(join(account, "token"), "an old one");
  expect(await asking.find(name)).toEqual({ kind: "refused" });
  writeFileSync(join(account, "token"), fake.token);
  expect(await asking.find(name)).toEqual({ kind: "there" });
});

test.each<[string, RegExp, () => void]>([
  ["an API that is broken", /status 503/, () => void (fake.answer = "broken")],
  ["an answer that is no object", /no object of Kubernetes/, () => void (fake.answer = "strange")],
  ["an account without a token", /ENOENT|no such file/, () => rmSync(join(account, "token"))],
  [
    "an API that another authority vouches for",
    /certificate/,
    () => {
      using other = new Authority();
      copyFileSync(other.cert, join(account, "ca.crt"));
    },
  ],
])("%s is no answer", async (_, why, prepare) => {
  prepare();
  const asked = cluster().find(name);
  await expect(asked).rejects.toMatchObject({ code: "unavailable" });
  await expect(asked).rejects.toThrow(/the cluster's API does not answer: /);
  await expect(asked).rejects.toThrow(why);
  // The token is the pod's alone.
  await expect(asked).rejects.not.toThrow(fake.token);
});

test("an API that is not there is no answer", async () => {
  const asking = cluster();
  await fake[Symbol.asyncDispose]();
  await expect(asking.find(name)).rejects.toMatchObject({ code: "unavailable" });
  fake = await FakeCluster.start();
});
