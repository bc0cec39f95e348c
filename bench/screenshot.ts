// The pictures of the status page in the README: a pull over a slow network, in a real browser, light and dark.
//
//     npm run screenshot

import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { FakeRegistry } from "../test/fakes/registry.ts";
import { dir, file, tar } from "../test/fakes/tar.ts";
import { openBrowser } from "../test/harness/browser.ts";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";

const megabytes = [13, 32, 1, 17, 6, 24];

await using containerd = await PrivateContainerd.start();
await using fake = await FakeRegistry.start();
await using hawser = await PrivateHawser.start({ containerd: containerd.address, page: true });
await using browser = await openBrowser();
const layers = megabytes.map((size, index) => {
  const bytes = tar([dir(`${index}`), file(`${index}/noise`, randomBytes(size * 1_000_000))]);
  return { bytes: gzipSync(bytes, { level: 1 }), tar: bytes };
});
const image = fake.put("team/shop:v12", layers);
fake.behave = ({ path }) => (path.includes("/blobs/") ? { bytesPerSecond: 4_000_000 } : undefined);
await hawser.cri.mustPull(image.reference);
const port = /status page on 127\.0\.0\.1:(\d+)/.exec(hawser.logs())?.[1] ?? "";
for (const colorScheme of ["light", "dark"] as const) {
  const page = await browser.newPage({ viewport: { width: 1100, height: 760 }, colorScheme });
  await page.goto(`http://127.0.0.1:${port}/pull/latest`);
  await page.locator("#verdict").waitFor();
  const path = fileURLToPath(new URL(`results/status-page-${colorScheme}.png`, import.meta.url));
  await page.screenshot({ path });
}
