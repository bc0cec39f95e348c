// How the pages look: colours by what somebody's system is set to, light or dark, and nothing that is loaded.

export const style = `
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f4f5f7; --line: #d5d9e0; --text: #1c2330; --faint: #5d6675;
  --stage: #6b7280; --download: #2563eb; --unpack: #15803d; --commit: #9333ea; --wait: #c9ced8;
  --registry: #b45309; --network: #2563eb; --cpu: #15803d; --disk: #be123c; --containerd: #9333ea;
  --limit: #c2410c; --others: #0f766e; --hawser: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11151c; --raised: #1a202b; --line: #323a48; --text: #e6e9ef; --faint: #98a2b3;
    --stage: #9aa3b2; --download: #60a5fa; --unpack: #4ade80; --commit: #c084fc; --wait: #454e5e;
    --registry: #fbbf24; --network: #60a5fa; --cpu: #4ade80; --disk: #fb7185; --containerd: #c084fc;
    --limit: #fb923c; --others: #2dd4bf; --hawser: #9aa3b2;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { display: flex; gap: 1rem; align-items: baseline; padding-top: 1.25rem; }
header a { color: inherit; text-decoration: none; font-weight: 650; font-size: 1.15rem; }
header .faint { margin-left: auto; }
h1 { font-size: 1.3rem; margin: 1.2rem 0 0.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.8rem 0 0.5rem; }
a { color: var(--download); }
.faint { color: var(--faint); }
.card { background: var(--raised); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 1.1rem; margin: 0.8rem 0; }
.card p { margin: 0.2rem 0; }
.card ul { margin: 0.4rem 0; padding-left: 1.2rem; }
.verdict { font-size: 1.1rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.35rem 0.9rem 0.35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 500; }
td.wide { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
progress { width: 8rem; accent-color: var(--download); vertical-align: middle; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.scroll svg[role] { min-width: 44rem; }
svg text { fill: var(--text); }
svg .faint { fill: var(--faint); }
svg .grid { stroke: var(--line); stroke-width: 1; }
.stage { fill: var(--stage); } .download { fill: var(--download); } .unpack { fill: var(--unpack); }
.commit { fill: var(--commit); } .wait { fill: var(--wait); }
.registry { fill: var(--registry); } .network { fill: var(--network); } .cpu { fill: var(--cpu); }
.disk { fill: var(--disk); } .containerd { fill: var(--containerd); } .limit { fill: var(--limit); }
.others { fill: var(--others); } .hawser { fill: var(--hawser); }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; color: var(--faint); margin: 0.4rem 0; }
.legend svg { width: 0.8rem; height: 0.8rem; display: inline-block; vertical-align: -0.05rem; margin-right: 0.35rem; }
`;
