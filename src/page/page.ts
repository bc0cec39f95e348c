// The status page: pulls that go on and those that have ended, and one of them with its waterfall.
//
// Pages are made whole on this side. What changes while somebody looks is sent again, made here as well, and put in the
// place of what was there; so the script is short, and no data is ever taken for markup. Nothing is loaded from
// elsewhere, which a policy in each answer has the browser hold to.

import { createHash } from "node:crypto";
import type { LayerRecord, PullRecord } from "../history/record.ts";
import { type PullSummary, summaryOf } from "../history/summary.ts";
import { delegationText, nameOf } from "../history/verdict.ts";
import { bytesText, rateText, secondsText } from "../history/words.ts";
import { causes, waterfall } from "./chart.ts";
import { html, Markup } from "./html.ts";
import { style } from "./style.ts";

const script = `
// Changes what differs and leaves the rest, so that a click or the focus stays where it was.
function patch(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const children = [...fresh.childNodes];
  children.forEach((child, index) => {
    const same = child.id ? [...old.children].find(({ id }) => id === child.id) : undefined;
    const there = old.childNodes[index];
    if (same && same !== there) old.insertBefore(same, there);
    if (old.childNodes[index]) patch(old.childNodes[index], child);
    else old.append(child);
  });
  while (old.childNodes.length > children.length) old.lastChild.remove();
}
const source = new EventSource(document.body.dataset.events);
source.addEventListener("page", ({ data }) => {
  const fresh = document.createElement("main");
  fresh.innerHTML = JSON.parse(data);
  patch(document.querySelector("main"), fresh);
});
source.addEventListener("over", () => source.close());
`;

/** What comes with every page; nothing but what is in it has any effect. */
export const pageHeaders: Readonly<Record<string, string>> = {
  "content-type": "text/html; charset=utf-8",
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "content-security-policy": [
    "default-src 'none'",
    `style-src '${hashOf(style)}'`,
    `script-src '${hashOf(script)}'`,
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; "),
};

/** `events` is where it is told of changes, and `json` where programs find the same. */
export function pageOf(
  title: string,
  content: Markup,
  { events, json }: { readonly events: string; readonly json: string },
): string {
  return `<!doctype html>\n${
    html`<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${title}</title><style>${new Markup(style)}</style></head>
<body data-events="${events}"><header><a href="/">Hawser</a><span class="faint"><a href="${json}">JSON</a></span></header>
<main>${content}</main>
<script>${new Markup(script)}</script></body></html>
`.text
  }`;
}

/** Pulls that go on, and those that have ended, the newest first. */
export function overview(running: readonly PullSummary[], ended: readonly PullSummary[]): Markup {
  const going = running.toReversed();
  return html`<h2>Pulls that go on</h2>
${going.length === 0 ? html`<p class="faint">none</p>` : table(["image", "progress", "rate", "left", "for", "bottleneck so far"], going.map(runningRow))}
<h2>Pulls that have ended</h2>
${ended.length === 0 ? html`<p class="faint">none yet</p>` : table(["image", "ended", "began", "time", "size", "bottleneck"], ended.map(endedRow))}`;
}

/** One pull: what it was slow with, its waterfall, and its layers. */
export function pullView(record: PullRecord): Markup {
  const { image, id, verdict, layers, startedAt, seconds, outcome, delegation } = record;
  const state = record.state === "running" ? "goes on" : `ended: ${endOf(record)}`;
  return html`<h1>${image || "?"}</h1>
<p class="faint">${state}, after ${secondsText(seconds)}; began ${timeOf(startedAt)}; id ${id}${record.isAhead ? "; ahead of need" : ""}</p>
${record.state === "running" ? progressLine(record) : undefined}
${outcome?.error === undefined ? undefined : html`<p>It failed: ${outcome.error}</p>`}
${delegation && html`<p>Left to containerd: ${delegationText(delegation)}</p>`}
${
  verdict &&
  html`<div class="card" id="verdict"><p class="verdict">Bottleneck: ${verdict.sentence}.</p>
<ul>${verdict.evidence.map((text) => html`<li>${text}</li>`)}</ul>
<p>What helps: ${verdict.advice}.</p>
${causes(verdict.parts, seconds)}</div>`
}
<h2>When each part was at what</h2>
<div class="card scroll">${waterfall(record)}</div>
<h2>Layers that were fetched (${layers.length}; ${record.presentLayers} were there)</h2>
${
  layers.length === 0
    ? html`<p class="faint">none</p>`
    : table(
        ["layer", "size", "download", "rate", "requests", "failures", "unpacked to", "unpacking", "commit"],
        layers.map((layer) => layerRow(layer, record)),
      )
}`;
}

function progressLine(record: PullRecord): Markup {
  const [done, rate, left] = progressParts(summaryOf(record));
  return html`<p>${done} at ${rate}, ${left} left</p>`;
}

function table(heads: readonly string[], rows: readonly Markup[]): Markup {
  return html`<div class="scroll"><table><thead><tr>${heads.map((head) => html`<th>${head}</th>`)}</tr></thead><tbody>
${rows}</tbody></table></div>`;
}

function runningRow(pull: PullSummary): Markup {
  return html`<tr id="pull-${pull.id}"><td class="wide">${linkTo(pull)}</td>${progressParts(pull).map((part) => html`<td>${part}</td>`)}<td>${secondsText(pull.seconds)}</td><td>${bottleneckOf(pull)}</td></tr>
`;
}

/** How far it is, at which rate, and for how long it will go on at that. */
function progressParts({
  bytes,
  doneBytes,
  bytesPerSecond = 0,
  remainingSeconds,
}: PullSummary): readonly Markup[] {
  return [
    html`<progress max="${Math.max(1, bytes)}" value="${doneBytes}"></progress> ${bytesText(doneBytes)} of ${bytesText(bytes)}`,
    html`${rateText(bytesPerSecond)}`,
    html`${remainingSeconds === undefined ? "-" : secondsText(remainingSeconds)}`,
  ];
}

function endedRow(pull: PullSummary): Markup {
  const { bytes } = pull;
  return html`<tr id="pull-${pull.id}"><td class="wide">${linkTo(pull)}</td><td>${endOf(pull)}</td><td>${timeOf(pull.startedAt)}</td><td>${secondsText(pull.seconds)}</td><td>${bytes > 0 ? bytesText(bytes) : "-"}</td><td>${bottleneckOf(pull)}</td></tr>
`;
}

function layerRow({ digest, index, bytes, spans, hosts, unpacked }: LayerRecord, record: PullRecord): Markup {
  const took = (name: string): number | undefined => {
    const span = spans.findLast((one) => one.name === name);
    return span && (span.endSeconds ?? record.seconds) - span.startSeconds;
  };
  const shown = (name: string): string => {
    const seconds = took(name);
    return seconds === undefined ? "-" : secondsText(seconds);
  };
  const received = hosts.reduce((sum, host) => sum + host.bytes, 0);
  const failures = hosts.flatMap((host) =>
    Object.entries(host.failures).map(([code, count]) => `${count} × ${code}`),
  );
  const download = took("download");
  return html`<tr><td>${index + 1} ${digest.replace("sha256:", "").slice(0, 12)}</td><td>${bytesText(bytes)}</td><td>${shown("download")}</td><td>${download ? rateText(received / download) : "-"}</td><td>${hosts.reduce((sum, host) => sum + host.requests, 0)}</td><td>${failures.join(", ") || "-"}</td><td>${unpacked ? bytesText(unpacked.bytes) : "-"}</td><td>${shown("unpack")}</td><td>${shown("commit")}</td></tr>
`;
}

function linkTo({ id, image, isAhead }: PullSummary): Markup {
  return html`<a href="/pull/${id}">${image || "?"}</a>${isAhead ? html` <span class="faint">ahead of need</span>` : undefined}`;
}

function endOf({ state, outcome }: Pick<PullSummary, "state" | "outcome">): string {
  return outcome?.path === "delegated" ? `${state}, by containerd` : state;
}

function bottleneckOf({ verdict }: PullSummary): string {
  return verdict ? `${nameOf(verdict)}, ${Math.round(100 * verdict.share)} %` : "-";
}

/** To the second, in UTC. */
function timeOf(moment: string): Markup {
  return html`<time datetime="${moment}">${moment.replace("T", " ").replace(/\.\d+Z$/, " UTC")}</time>`;
}

/** As a policy names what it allows (CSP3). */
function hashOf(text: string): string {
  return `sha256-${createHash("sha256").update(text).digest("base64")}`;
}
