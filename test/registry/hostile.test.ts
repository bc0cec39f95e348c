// Registries that mean harm: whatever one says, or does not stop saying, the request ends with an error in one line,
// and the caller's secret goes nowhere but to the registry and to the token server that it names.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PullError } from "../../src/errors.ts";
import { parseDigest } from "../../src/oci/digest.ts";
import { parseReference } from "../../src/oci/reference.ts";
import type { RegistryOptions } from "../../src/registry/client.ts";
import { Spool } from "../../src/spool.ts";
import { answer, drip, flood, RawServer, type Script } from "../fakes/raw.ts";
import { permits, testRegistry } from "./registries.ts";

const never = new AbortController().signal;
const login = { username: "robot", password: "s3cret-hunter2" };
const digest = parseDigest(`sha256:${"a".repeat(64)}`);
const manifestType = "content-type: application/vnd.oci.image.manifest.v1+json";
const chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const chunk = `10000\r\n${"[".repeat(65_536)}\r\n`;

let folder = "";

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "hostile-"));
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

type Want = "resolve" | "resolve again" | "fetch" | "download";

async function ask(host: string, want: Want, options: Partial<RegistryOptions>): Promise<unknown> {
  const registry = testRegistry({ progressTimeoutMs: 300, fallbackAfterMs: 2000, retries: 0, ...options });
  try {
    const repository = registry.repository(parseReference(`${host}/a/b:v1`), login);
    switch (want) {
      case "resolve":
        return await repository.resolve(false, never);
      case "resolve again":
        return await repository.resolve(true, never);
      case "fetch":
        return await repository.fetch({ mediaType: "any", digest, size: 1000 }, 2 ** 20, never);
      case "download": {
        const size = 200_000;
        await using spool = await Spool.open(join(folder, `spool-${Math.random()}`), size);
        return await repository.download({ mediaType: "any", digest, size }, spool, permits, never);
      }
    }
  } finally {
    await registry.close();
  }
}

/** What the registry's answers make of the request: an error in one short line that has no secret in it. */
async function failure(
  want: Want,
  script: Script,
  options: Partial<RegistryOptions> = {},
): Promise<{ readonly error: PullError; readonly heads: readonly string[] }> {
  await using raw = await RawServer.start(script);
  const thrown: unknown = await ask(raw.host, want, options).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(thrown).toBeInstanceOf(PullError);
  const error = thrown as PullError;
  expect(error.message).not.toMatch(/s3cret|aHVudGVy|\n/);
  expect(error.message.length).toBeLessThan(500);
  expect(error.code).not.toBe("internal");
  return { error, heads: raw.heads };
}

const says =
  (text: string): Script =>
  (_head, socket) =>
    void socket.write(text, "latin1");

/** A challenge that leads to a token server on the same host; the script answers there. */
const withToken =
  (script: Script): Script =>
  (head, socket, before) => {
    if (/^(?:GET|POST) \/token/.test(head)) return script(head, socket, before);
    const host = /^host: (.*)$/im.exec(head)?.[1] ?? "";
    socket.write(answer("401 Unauthorized", [`www-authenticate: Bearer realm="http://${host}/token"`]));
  };

describe("answers that do not end", () => {
  test.each<[string, Want, Script, string]>([
    [
      "a header of a megabyte",
      "resolve",
      says(answer("200 OK", [`x: ${"a".repeat(1_000_000)}`])),
      "unavailable",
    ],
    [
      "headers",
      "resolve",
      (_head, socket) => {
        socket.write("HTTP/1.1 200 OK\r\n");
        flood(socket, `x-a: ${"b".repeat(1000)}\r\n`);
      },
      "unavailable",
    ],
    [
      "headers that drip",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 200 OK\r\n");
        drip(socket, "x: y\r\n");
      },
      "slow",
    ],
    [
      "a status line",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 200 ");
        flood(socket, "x".repeat(10_000));
      },
      "slow",
    ],
    [
      "103 Early Hints",
      "fetch",
      (_head, socket) => flood(socket, "HTTP/1.1 103 Early Hints\r\n\r\n"),
      "slow",
    ],
    [
      "103 that drip",
      "download",
      (_head, socket) => drip(socket, "HTTP/1.1 103 Early Hints\r\n\r\n"),
      "slow",
    ],
    [
      "a manifest",
      "resolve",
      (_head, socket) => {
        socket.write(`HTTP/1.1 200 OK\r\n${manifestType}\r\ntransfer-encoding: chunked\r\n\r\n`);
        flood(socket, chunk);
      },
      "corrupt",
    ],
    [
      "a config without a length",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        flood(socket, chunk);
      },
      "corrupt",
    ],
    [
      "a config that drips",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        drip(socket, "x");
      },
      "slow",
    ],
    [
      "a layer that drips",
      "download",
      (_head, socket) => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n");
        drip(socket, "x");
      },
      "slow",
    ],
    [
      "a layer that is longer than announced",
      "download",
      (_head, socket) => {
        socket.write(chunked);
        flood(socket, chunk);
      },
      "corrupt",
    ],
    [
      "a chunk's extension",
      "download",
      (_head, socket) => {
        socket.write(`${chunked}10;x=`);
        flood(socket, "y".repeat(10_000));
      },
      "slow",
    ],
    [
      "trailers",
      "download",
      (_head, socket) => {
        socket.write(`${chunked}0\r\n`);
        flood(socket, `x-a: ${"b".repeat(1000)}\r\n`);
      },
      "unavailable",
    ],
    [
      "an error's body",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n");
        flood(socket, chunk);
      },
      "not_found",
    ],
    [
      "an error's body that drips",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 404 Not Found\r\ncontent-length: 50000\r\n\r\n");
        drip(socket, "x");
      },
      "not_found",
    ],
    [
      "a challenge's body that drips",
      "fetch",
      (_head, socket) => {
        socket.write("HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\ncontent-length: 50000\r\n\r\n");
        drip(socket, "x");
      },
      "refused",
    ],
    [
      "a redirect's body that drips",
      "fetch",
      (_head, socket, before) => {
        if (before > 0) return void socket.write(answer("404 Not Found"));
        socket.write("HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 50000\r\n\r\n");
        drip(socket, "x");
      },
      "not_found",
    ],
    [
      "a token",
      "fetch",
      withToken((_head, socket) => {
        socket.write(chunked);
        flood(socket, chunk);
      }),
      "unavailable",
    ],
    [
      "a token that drips",
      "fetch",
      withToken((_head, socket) => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n");
        drip(socket, " ");
      }),
      "slow",
    ],
    ["nothing at all", "fetch", () => {}, "slow"],
  ])("%s", async (_name, want, script, code) => {
    expect((await failure(want, script)).error).toHaveProperty("code", code);
  });
});

describe("answers that make no sense", () => {
  test.each<[string, Want, string]>([
    ["100 Continue", "resolve", "HTTP/1.1 100 Continue\r\n\r\n"],
    ["101", "resolve", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
    ["no HTTP", "resolve", "220 ready\r\n"],
    ["a negative length", "resolve", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"],
    ["two lengths", "resolve", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"],
    ["a length beyond counting", "resolve", `HTTP/1.1 200 OK\r\ncontent-length: ${"9".repeat(30)}\r\n\r\n`],
    [
      "a length, and chunks",
      "resolve",
      "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    [
      "a second answer in the first one's body",
      "download",
      "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n",
    ],
    [
      "several ranges",
      "download",
      answer("206 Partial", ["content-type: multipart/byteranges; boundary=x"], "hi"),
    ],
    ["nothing new", "download", answer("304 Not Modified")],
    ["no content", "download", "HTTP/1.1 204 No Content\r\n\r\n"],
    [
      "a type that speaks to the terminal",
      "resolve",
      answer("200 OK", ["content-type: \u009b2J\u00e9"], "x"),
    ],
    ["an endless type", "resolve", answer("200 OK", [`content-type: ${"x".repeat(15_000)}`], "x")],
    [
      "a digest that is a path",
      "resolve again",
      answer("200 OK", [manifestType, "docker-content-digest: ../../etc/passwd"]),
    ],
  ])("%s", async (_name, want, text) => {
    await failure(want, says(text));
  });
});

describe("redirects", () => {
  test.each([
    `/${"x".repeat(15_000)}`,
    "file:///etc/passwd",
    "unix:///run/containerd/containerd.sock",
    "data:text/plain,x",
    "javascript:alert(1)",
    "http://127.0.0.1:99999/",
    "http://[",
  ])("to %.30s lead nowhere", async (location) => {
    const { error } = await failure("resolve", says(answer("302 Found", [`location: ${location}`])));
    expect(error.code).toBe("unavailable");
  });

  test("in a circle, or without a target, end", async () => {
    const circle = await failure("resolve", says(answer("307 Temporary Redirect", ["location: /v2/"])));
    expect(circle.heads.length).toBeLessThanOrEqual(11);
    await failure("resolve", says(answer("302 Found")));
  });

  test("carry no credentials to another host, whatever they say", async () => {
    await using elsewhere = await RawServer.start(says(answer("404 Not Found")));
    const { heads } = await failure("fetch", (head, socket) => {
      if (!/^authorization: basic/im.test(head))
        return void socket.write(answer("401 Unauthorized", ["www-authenticate: Basic"]));
      socket.write(answer("307 Temporary Redirect", [`location: http://robot:x@${elsewhere.host}/there`]));
    });
    expect(heads.filter((head) => /^authorization/im.test(head))).toHaveLength(1);
    expect(elsewhere.heads).toHaveLength(1);
    expect(elsewhere.heads.join()).not.toMatch(/authorization|hunter|robot/i);
  });
});

describe("challenges", () => {
  test.each([
    ["thousands of parameters", `Bearer ${"a=b,".repeat(3900)}`],
    ["thousands of commas", `Bearer ${",".repeat(15_000)}`],
    ["thousands of spaces", `Bearer${" ".repeat(7000)}a${" ".repeat(7000)}b`],
    ["thousands of quotes", `Bearer ${'a="'.repeat(5000)}`],
    ["thousands of schemes", "a ".repeat(7500)],
    ["an open string", `Bearer realm="${"\\\\".repeat(7000)}`],
    ["a realm that is a file", 'Bearer realm="file:///etc/passwd"'],
    ["a realm that is a socket", 'Bearer realm="unix:///run/containerd/containerd.sock"'],
    ["a realm that is relative", 'Bearer realm="/token"'],
  ])("refused at once: %s", async (_name, challenge) => {
    const script = says(answer("401 Unauthorized", [`www-authenticate: ${challenge}`]));
    const { error, heads } = await failure("resolve", script, { retries: 3, fallbackAfterMs: 20_000 });
    expect(error).toMatchObject({ code: "refused", temporary: false });
    expect(heads).toHaveLength(1);
  });

  test.each([
    ["ends its header", '{"token":"a\\r\\nx-injected: 1"}'],
    ["is no string", '{"token":{"a":1},"access_token":[1]}'],
    ["is nothing", "null"],
    ["is nested deeply", "[".repeat(200_000)],
  ])("a token that %s is not shown", async (_name, body) => {
    const { error, heads } = await failure("resolve", withToken(says(answer("200 OK", [], body))), {
      fallbackAfterMs: 20_000,
    });
    expect(error.code).toBe("unavailable");
    expect(heads.join("\n")).not.toMatch(/^authorization: bearer|x-injected/im);
  });

  test("a token server that redirects is not followed: it was this one that was named", async () => {
    await using elsewhere = await RawServer.start(says(answer("200 OK", [], '{"token":"t"}')));
    const redirect = answer("307 Temporary Redirect", [`location: http://${elsewhere.host}/token`]);
    await failure("resolve", withToken(says(redirect)));
    expect(elsewhere.heads).toEqual([]);
  });
});

test.each(["999999999", "999999999999", "Wed, 01 Jan 2999 00:00:00 GMT"])(
  "Retry-After: %s is not waited for, nor taken for none",
  async (value) => {
    const script = says(answer("429 Too Many Requests", [`retry-after: ${value}`]));
    expect((await failure("fetch", script, { retries: 3 })).heads).toHaveLength(1);
  },
);
