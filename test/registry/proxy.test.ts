// HTTP_PROXY, HTTPS_PROXY and NO_PROXY as Go reads them; each line was decided by asking containerd.

import { describe, expect, test } from "vitest";
import { ProxyRules, proxySettings } from "../../src/registry/proxy.ts";

const no = [
  "exempt.example",
  ".below.example",
  "*.star.example",
  "port.example:5000",
  "10.1.0.0/16",
  "192.0.2.7",
  "192.0.2.8:5000",
  "[2001:db8::1]:443",
  "2001:db8::2",
  "2001:db8:1::/48",
  " spaced.example ",
  "UPPER.example",
].join(",");
const rules = new ProxyRules({ http: "http://proxy:3128", https: "secure-proxy:3129", no });

test.each([
  ["https://other.example", true],
  ["http://other.example", true],
  ["http://exempt.example", false],
  ["https://sub.exempt.example", false],
  ["https://notexempt.example", true],
  ["https://below.example", true],
  ["https://a.below.example", false],
  ["https://star.example", true],
  ["https://a.star.example", false],
  ["https://port.example", true],
  ["https://port.example:5000", false],
  ["https://sub.port.example:5000", false],
  ["https://10.1.2.3", false],
  ["https://10.2.2.3", true],
  ["https://192.0.2.7:8000", false],
  ["https://192.0.2.8", true],
  ["https://192.0.2.8:5000", false],
  ["https://[2001:db8::1]", false],
  ["https://[2001:db8::1]:444", true],
  ["https://[2001:db8::2]:444", false],
  ["https://[2001:db8:1::9]", false],
  ["https://[2001:db8:2::9]", true],
  ["https://spaced.example", false],
  ["https://upper.example", false],
  ["https://localhost:9999", false],
  ["https://127.9.9.9:9999", false],
  ["http://[::1]:9999", false],
  ["https://sub.localhost", true],
])("%s through a proxy: %s", (url, isProxied) => {
  const expected = url.startsWith("https:") ? "http://secure-proxy:3129" : "http://proxy:3128";
  expect(rules.proxyFor(new URL(url))?.origin).toBe(isProxied ? expected : undefined);
});

test("an asterisk exempts everything, and HTTP_PROXY is not for https", () => {
  const all = new ProxyRules({ http: "proxy", https: "proxy", no: "a.example, *" });
  expect(all.proxyFor(new URL("https://b.example"))).toBeUndefined();
  const half = new ProxyRules({ http: "proxy", https: "", no: "" });
  expect(half.proxyFor(new URL("https://b.example"))).toBeUndefined();
  expect(half.proxyFor(new URL("http://b.example"))?.host).toBe("proxy");
});

test("the environment in capitals goes before that in small letters, and empty is absent", () => {
  expect(proxySettings({ HTTP_PROXY: "", http_proxy: "a", HTTPS_PROXY: "b", https_proxy: "c" })).toEqual({
    http: "a",
    https: "b",
    no: "",
  });
});

describe("a proxy that is none for HTTP leaves pulls to containerd, and its password to nobody", () => {
  test.each(["socks5://user:s3cret@proxy:1080", "http://user:s3cret@:x", "http://"])("%s", (https) => {
    let thrown: unknown;
    try {
      thrown = new ProxyRules({ http: "", https, no: "" });
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toMatchObject({ name: "PullError", code: "unsupported" });
    expect(String(thrown)).not.toContain("s3cret");
  });
});
