// Debian's Chromium, with a profile that is gone when it is closed, and a list of what it was not content with.

import { type Browser, chromium, type Page } from "playwright-core";

export interface Seen {
  readonly page: Page;
  /** Origins of everything that was asked for. */
  readonly origins: Set<string>;
  /** Errors of scripts, of what was loaded and of what a policy kept from being. */
  readonly errors: string[];
}

export async function openBrowser(): Promise<Browser> {
  // Tests run as root, for which its sandbox is not made.
  return await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
}

export async function openPage(browser: Browser, url: string): Promise<Seen> {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const origins = new Set<string>();
  const errors: string[] = [];
  page.on("request", (request) => void origins.add(new URL(request.url()).origin));
  page.on("console", (message) => {
    if (message.type() === "error") errors.push(message.text());
  });
  page.on("pageerror", (error) => void errors.push(error.message));
  await page.goto(url);
  return { page, origins, errors };
}
