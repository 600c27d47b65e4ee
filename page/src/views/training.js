// How it was trained: losses, dead features by layer, and how the forest came about.
import { html, useState } from "../html.js";
import { lacking, useAsk } from "../store.js";
import { Answer, Empty, FeatureLink, Lacking } from "../ui.js";
import { Bars, Lines, Spark } from "../charts/lines.js";
import { Table } from "../table.js";
import { count, plural } from "../text.js";

const WORDS = {
  fve: "Variance explained", l0: "Active features per token (L0)", loss: "Loss", reconstruction: "Reconstruction loss", auxiliary: "Auxiliary loss",
  grad_norm: "Norm of the gradient", moved: "Features moved", receivers: "Parents that gained", donors: "Parents that lost",
};
const words = (name) => WORDS[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
const SHARES = new Set(["fve"]);
const KINDS = {
  reallocation: "reallocation", root_reset: "dead features sent to the root", parents: "parents chosen from data", hierarchy: "parents by the decoder", promoted: "features promoted",
};

/** Series named "NAME, layer N" are lines of one chart. */
function grouped(series) {
  const groups = new Map();
  for (const [name, values] of Object.entries(series)) {
    const [, title, layer] = name.match(/^(.*?)(?:, (layer \d+))?$/);
    groups.set(title, [...(groups.get(title) ?? []), { name: layer ?? name, values }]);
  }
  return groups;
}

function Parents({ parents, steps, until }) {
  const [sort, setSort] = useState({ key: "changed", down: true });
  const columns = [
    { key: "id", title: "Parent", sort: ({ id }) => id, render: ({ id, label }) => html`<${FeatureLink} id=${id} label=${label} view="family" />` },
    { key: "children", title: `Children from step ${count(steps[0])} to ${count(until)}`, render: ({ children }) => html`<${Spark} steps=${steps} values=${children} until=${until} />` },
    { key: "first", title: "at the start", numeric: true, sort: ({ children }) => children[0], render: ({ children }) => html`<span class="num">${count(children[0])}</span>` },
    { key: "most", title: "at most", numeric: true, sort: ({ children }) => Math.max(...children), render: ({ children }) => html`<span class="num">${count(Math.max(...children))}</span>` },
    { key: "end", title: "at the end", numeric: true, sort: ({ children }) => children.at(-1), render: ({ children }) => html`<span class="num">${count(children.at(-1))}</span>` },
    { key: "gained", title: "gained", numeric: true, sort: ({ gained }) => gained, render: ({ gained }) => html`<span class="num">+${count(gained)}</span>` },
    { key: "lost", title: "lost", numeric: true, sort: ({ lost }) => lost, render: ({ lost }) => html`<span class="num">−${count(lost)}</span>` },
    { key: "changed", title: "both", numeric: true, sort: ({ gained, lost }) => gained + lost, render: ({ gained, lost }) => html`<span class="num">${count(gained + lost)}</span>` },
  ];
  return html`<${Table} rows=${parents} columns=${columns} keyOf=${({ id }) => id} sort=${sort} onSort=${setSort} label="Parents whose families changed most" height=${360} />`;
}

/** How the forest came about: who moved when, beside what the layer then looked like. */
function Allocation({ allocation, until }) {
  const { steps, kinds, layers, parents } = allocation;
  const happened = new Map();
  for (const kind of kinds.slice(1)) for (const part of kind.split(" + ")) happened.set(part, (happened.get(part) ?? 0) + 1);
  const between = ({ moved, from_root: from, to_root: away }) => moved.map((n, place) => n - (from[place] ?? 0) - (away[place] ?? 0));
  const known = (key) => layers.some((layer) => layer[key]?.some((value) => value !== null && value !== undefined));
  const lines = (key) => layers.map((layer) => ({ name: `layer ${layer.layer}`, values: layer[key] }));
  const parts = (layer) => (layer.from_root.some((n) => n !== null)
    ? [{ name: "from one parent to another", values: between(layer) }, { name: "from the root to a parent", values: layer.from_root }, { name: "from a parent to the root", values: layer.to_root }]
    : [{ name: "moved", values: layer.moved }]);
  return html`<section aria-labelledby="allocation"><h2 id="allocation">How the forest came about</h2>
    <p class="hint">Parents were chosen anew after ${plural(steps.length - 1, "step")}: ${[...happened].map(([kind, n]) => `${KINDS[kind] ?? kind.replaceAll("_", " ")} ${count(n)}×`).join(", ")}. That features move says that training was at work, not that the hierarchy is good: see <a href="#/">the overview</a> for that.</p>
    <div class="charts">
      ${layers.map((layer) => html`<${Bars} key=${layer.layer} title=${`Features of layer ${layer.layer} that moved`} steps=${steps} series=${parts(layer)} until=${until} />`)}
      ${known("with_parent") && html`<${Lines} title="Features with a parent" unit="share of the layer" share=${true} held=${true} zero=${true} steps=${steps} series=${lines("with_parent")} until=${until} />`}
      ${known("excess") && html`<${Lines} title="Excess of the edges chosen" unit="dotted: parents shuffled" held=${true} zero=${true} steps=${steps} until=${until}
        series=${layers.flatMap((layer) => [{ name: `layer ${layer.layer}`, values: layer.excess }, { name: `layer ${layer.layer}, shuffled`, values: layer.excess_null, kind: "null" }])} />`}
      ${known("families") && html`<${Lines} title="Families" unit="parents with a child in the layer" held=${true} zero=${true} steps=${steps} series=${lines("families")} until=${until} />`}
      ${known("largest") && html`<${Lines} title="Largest family" unit="children in the layer" held=${true} zero=${true} steps=${steps} series=${lines("largest")} until=${until} />`}
    </div>
    ${parents.length > 0 && html`<h3>Families that changed most</h3><${Parents} parents=${parents} steps=${steps} until=${until} />`}</section>`;
}

export function TrainingView() {
  const lacks = lacking("training");
  const answer = useAsk(lacks ? null : "training");
  return html`<div class="wide"><div class="head"><h1>Training</h1><p class="hint">From the run’s log. Every value is of the training batch at that step.</p></div>
    ${lacks ? html`<${Lacking} text=${lacks} />` : html`<${Answer} answer=${answer} what="The training log">${({ steps = [], series = {}, layers = {}, allocation = null }) => {
      const byLayer = (rows) => (rows?.length && rows[0].length > 1 ? rows[0].map((_, layer) => ({ name: `layer ${layer}`, values: rows.map((row) => row[layer]) })) : null);
      const [dead, l0] = [byLayer(layers.dead_share), byLayer(layers.l0)];
      if (!steps.length) return html`<${Empty}>This run has no training log.</${Empty}>`;
      return html`<div class="charts">
        ${[...grouped(series)].map(([name, lines]) => html`<${Lines} key=${name} title=${words(name)} steps=${steps} series=${lines} share=${SHARES.has(name)} />`)}
        ${l0 && html`<${Lines} title="Active features per token, by layer" steps=${steps} series=${l0} />`}
        ${dead && html`<${Lines} title="Dead features" unit="share of the layer" steps=${steps} series=${dead} share=${true} zero=${true} />`}
      </div>
      ${allocation ? html`<${Allocation} allocation=${allocation} until=${steps[steps.length - 1]} />` : html`<section aria-labelledby="allocation"><h2 id="allocation">How the forest came about</h2><p class="hint">The log holds no choice of parents: this SAE has no forest of its own, or it was inferred afterwards.</p></section>`}`;
    }}</${Answer}>`}</div>`;
}
