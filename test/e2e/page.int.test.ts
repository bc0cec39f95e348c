// The status page, as a browser shows it: pulls as they go on and end, one pull's verdict and waterfall, light and dark.

import { randomBytes } from "node:crypto";
import { request } from "node:http";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { askAdmin } from "../../src/front/client.ts";
import type { PullList } from "../../src/front/pulls.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tar } from "../fakes/tar.ts";
import { openBrowser, openPage, type Seen } from "../harness/browser.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let fake: FakeRegistry;
let browser: Browser;
let port = "";
let count = 0;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  fake = await FakeRegistry.start();
  hawser = await PrivateHawser.start({ containerd: containerd.address, page: true });
  browser = await openBrowser();
  await hawser.untilLogged(/status page on/);
  port = /status page on 127\.0\.0\.1:(\d+)/.exec(hawser.logs())?.[1] ?? "";
});

afterEach(async () => {
  fake.behave = () => undefined;
  for (const context of browser.contexts()) await context.close();
});

afterAll(async () => {
  await browser.close();
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

function put(layers: number): FakeImage {
  count += 1;
  const made = Array.from({ length: layers }, (_, index) => {
    const bytes = tar([dir(`${index}`), file(`${index}/noise`, randomBytes(1_000_000)), file(`n${count}`)]);
    return { bytes: gzipSync(bytes, { level: 1 }), tar: bytes };
  });
  return fake.put(`seen/image-${count}:v1`, made);
}

async function open(path: string): Promise<Seen> {
  return await openPage(browser, `http://127.0.0.1:${port}${path}`);
}

/** Whatever the page was told to load, it had from here, and nothing was kept from it. */
function mustBeContent({ origins, errors }: Seen): void {
  expect([...origins]).toEqual([`http://127.0.0.1:${port}`]);
  expect(errors).toEqual([]);
}

/** The row of a table that names this image. */
function rowOf(page: Page, { reference }: FakeImage) {
  return page.locator("tr", { hasText: reference });
}

/** For how long the pull of this image has gone on. */
async function secondsOf({ reference }: FakeImage): Promise<number> {
  const { running } = (await askAdmin(join(hawser.root, "admin.sock"), "GET", "/pulls")) as PullList;
  const pull = running.find(({ image }) => image === reference);
  if (!pull) throw new Error(`${reference} is not being pulled`);
  return pull.seconds;
}

test("a pull is seen to go on and to end, without the page being loaded again; then why it was slow", async () => {
  const image = put(3);
  const half = gate();
  const last = image.layers[2]?.digest ?? "";
  fake.behave = ({ path }) => (path.endsWith(last) ? { after: 500_000, afterwards: half.opened } : undefined);
  const seen = await open("/");
  const { page } = seen;
  await page.getByText("none", { exact: true }).waitFor();
  const pulling = hawser.cri.mustPull(image.reference);
  await rowOf(page, image).getByText("2.5 MB of 3.0 MB").waitFor();
  expect(await rowOf(page, image).locator("progress").getAttribute("value")).toMatch(/^25\d{5}$/);
  // Until this wait is most of it, however long a busy machine took to come so far, and takes for the rest.
  const atHalf = await secondsOf(image);
  await eventually(async () => {
    expect(await secondsOf(image)).toBeGreaterThan(1 + 4 * atHalf);
  }, "a pull that has waited for long");
  await rowOf(page, image)
    .locator("td", { hasText: /^\d+\.\d\d? s$/ })
    .last()
    .waitFor();
  half.open();
  await pulling;
  await rowOf(page, image).getByText("ok", { exact: true }).waitFor();
  expect(await rowOf(page, image).innerText()).toContain("network, ");
  await page.getByRole("link", { name: image.reference }).click();
  await page
    .getByText(/^Bottleneck: the network: \d+ % of \d+\.\d+ s went by while bytes were on their way\.$/)
    .waitFor();
  expect(await page.locator("#verdict li").allInnerTexts()).toEqual([
    expect.stringMatching(/^3\.0 MB came from 127\.0\.0\.1:\d+ at .* in \d requests that got .* each$/),
    expect.stringMatching(/^unpacking 3\.0 MB in 3 layers took .*, \d+\.\d+ s waiting for bytes, /),
  ]);
  // A line for each stage and layer, and in them a bar for each thing that they were at.
  const chart = page.getByRole("img", { name: /^Waterfall of the pull/ });
  expect(await chart.locator("g").count()).toBe(2 + 3 + 1);
  expect(await chart.locator("rect.download").count()).toBe(3);
  expect(await chart.locator("rect.unpack").count()).toBe(3);
  expect(await chart.locator("rect.commit").count()).toBe(3);
  expect(await page.locator("tbody tr").count()).toBe(3);
  mustBeContent(seen);
});

test("one pull's page follows it to its end", async () => {
  const image = put(2);
  const half = gate();
  const last = image.layers[1]?.digest ?? "";
  fake.behave = ({ path }) => (path.endsWith(last) ? { after: 500_000, afterwards: half.opened } : undefined);
  const pulling = hawser.cri.mustPull(image.reference);
  const seen = await open("/");
  // As long as a hand needs, in which the page changes.
  await seen.page.getByRole("link", { name: image.reference }).click({ delay: 1000 });
  await seen.page.getByText(/^goes on, after/).waitFor();
  await seen.page.getByText(/1\.5 MB of 2\.0 MB at .*\/s, .* left$/).waitFor();
  half.open();
  await pulling;
  await seen.page.getByText(/^ended: ok, after/).waitFor();
  mustBeContent(seen);
});

test("on a narrow page, the chart is as large as it is to be read", async () => {
  const image = put(1);
  await hawser.cri.mustPull(image.reference);
  const { page } = await open("/pull/latest");
  await page.setViewportSize({ width: 390, height: 800 });
  const chart = await page.getByRole("img", { name: /^Waterfall of the pull/ }).boundingBox();
  expect(chart?.width).toBeGreaterThan(600);
  expect(await page.evaluate<number>("document.documentElement.scrollWidth")).toBeLessThanOrEqual(390);
});

test("names that are markup are text", async () => {
  const name = `<img src=x onerror=alert(1)>"'&amp;`;
  await expect(hawser.cri.mustPull(name)).rejects.toThrow();
  const seen = await open("/");
  await seen.page.getByRole("link", { name, exact: true }).click();
  await seen.page.getByRole("heading", { name, exact: true }).waitFor();
  expect(await seen.page.locator("main img:not([role])").count()).toBe(0);
  await seen.page.getByText(/^Left to containerd: invalid/).waitFor();
  mustBeContent(seen);
});

test.each(["light", "dark"] as const)(
  "in %s, text and bars stand out from what is behind them",
  async (scheme) => {
    const image = put(1);
    await hawser.cri.mustPull(image.reference);
    const { page } = await open("/");
    await page.emulateMedia({ colorScheme: scheme });
    await page.getByRole("link", { name: image.reference }).click();
    await page.locator("#verdict").waitFor();
    const ground = luminance(await colourOf(page, "body", "background-color"));
    const card = luminance(await colourOf(page, ".card", "background-color"));
    expect(ground > 0.5).toBe(scheme === "light");
    // The least that WCAG asks for: 4.5 of text, 3 of what is drawn.
    expect(contrast(luminance(await colourOf(page, "body", "color")), ground)).toBeGreaterThan(7);
    for (const faint of ["p.faint", "th", "header a"])
      expect(contrast(luminance(await colourOf(page, faint, "color")), ground), faint).toBeGreaterThan(4.5);
    expect(contrast(luminance(await colourOf(page, "svg text", "fill")), card)).toBeGreaterThan(4.5);
    for (const bar of ["rect.stage", "rect.download", "rect.unpack", "rect.commit"])
      expect(contrast(luminance(await colourOf(page, bar, "fill")), card), bar).toBeGreaterThan(3);
  },
);

async function colourOf(page: Page, selector: string, property: string): Promise<readonly number[]> {
  const name = JSON.stringify(property);
  const element = `document.querySelector(${JSON.stringify(selector)})`;
  const text = await page.evaluate<string>(`getComputedStyle(${element}).getPropertyValue(${name})`);
  return text.match(/\d+/g)?.map(Number) ?? [];
}

/** WCAG 2.2, relative luminance. */
function luminance(colour: readonly number[]): number {
  const [red = 0, green = 0, blue = 0] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(one: number, other: number): number {
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}

test("the page's port lets look and change nothing, and answers to this machine's names alone", async () => {
  const ask = async (method: string, path: string, headers = {}): Promise<number | undefined> =>
    await new Promise((resolve, reject) => {
      const sent = request({ host: "127.0.0.1", port, method, path, headers, agent: false }, (response) => {
        response.resume();
        resolve(response.statusCode);
      });
      sent.on("error", reject);
      sent.end();
    });
  const image = put(1);
  await hawser.cri.mustPull(image.reference);
  expect(await ask("GET", "/pulls/latest")).toBe(200);
  expect(await ask("GET", "/", { host: `localhost:${port}` })).toBe(200);
  expect(await ask("GET", "/", { host: "rebound.example.com" })).toBe(403);
  expect(await ask("POST", "/pulls/latest/cancel")).toBe(404);
  expect(await ask("PUT", "/passthrough")).toBe(404);
  expect(await ask("GET", "/metrics")).toBe(404);
  expect(await ask("GET", "/pull/0123456789abcdef")).toBe(404);
  expect(await ask("GET", "/pulls?count=0")).toBe(400);
  expect(await ask("GET", "/pulls/nonsense")).toBe(400);
  expect(await ask("GET", "//")).toBe(400);
  for (const path of ["/", "/pulls", "/pull/latest", "/events", "/changes"])
    expect(await ask("HEAD", path)).toBe(200);
});

test("the admin socket has the page too, and refuses what other pages send there", async () => {
  const ask = async (method: string, path: string, headers = {}): Promise<number | undefined> =>
    await new Promise((resolve, reject) => {
      const socketPath = join(hawser.root, "admin.sock");
      const sent = request({ socketPath, method, path, headers, agent: false }, (response) => {
        response.resume();
        resolve(response.statusCode);
      });
      sent.on("error", reject);
      sent.end();
    });
  expect(await ask("GET", "/")).toBe(200);
  expect(await ask("GET", "/", { host: "rebound.example.com" })).toBe(403);
  expect(await ask("POST", "/reload", { origin: "http://evil.example.com" })).toBe(403);
  expect(await ask("POST", "/pulls/latest/cancel", { origin: "http://localhost:9465" })).toBe(403);
  expect(await ask("POST", "/pulls/latest/cancel")).toBe(400);
});
