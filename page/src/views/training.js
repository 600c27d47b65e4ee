// How it was trained: losses, dead features by layer, reallocations.
import { html, useState } from "../html.js";
import { lacking, useAsk } from "../store.js";
import { Answer, Empty, Lacking } from "../ui.js";
import { Lines } from "../charts/lines.js";
import { Table } from "../table.js";
import { count } from "../text.js";

const words = (name) => ({ fve: "Fraction of variance explained", l0: "Active features per token (L0)", loss: "Loss" })[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

/** Series named "NAME, layer N" are lines of one chart. */
function grouped(series) {
  const groups = new Map();
  for (const [name, values] of Object.entries(series)) {
    const [, title, layer] = name.match(/^(.*?)(?:, (layer \d+))?$/);
    groups.set(title, [...(groups.get(title) ?? []), { name: layer ?? name, values }]);
  }
  return groups;
}

export function TrainingView() {
  const lacks = lacking("training");
  const answer = useAsk(lacks ? null : "training");
  const [sort, setSort] = useState({ key: "step", down: true });
  return html`<div class="wide"><div class="head"><h1>Training</h1><p class="hint">From the run’s log. Every value is of the training batch at that step.</p></div>
    ${lacks ? html`<${Lacking} text=${lacks} />` : html`<${Answer} answer=${answer} what="The training log">${({ steps = [], series = {}, layers = {}, moves = [] }) => {
      const dead = layers.dead_share?.length ? layers.dead_share : null;
      // By step or by layer: whichever way it comes, a line is a layer.
      const byLayer = dead && (dead.length === steps.length ? dead[0].map((_, layer) => dead.map((row) => row[layer])) : dead);
      const l0 = layers.l0?.length && layers.l0[0]?.length > 1 ? layers.l0[0].map((_, layer) => layers.l0.map((row) => row[layer])) : null;
      const groups = grouped(series);
      const keys = moves.length ? Object.keys(moves[0]).filter((key) => typeof moves[0][key] !== "object") : [];
      if (!steps.length) return html`<${Empty}>This run has no training log.</${Empty}>`;
      return html`<div class="charts">
        ${[...groups].map(([name, lines]) => html`<${Lines} key=${name} title=${words(name)} steps=${steps} series=${lines} />`)}
        ${l0 && html`<${Lines} title="Active features per token by layer" steps=${steps} series=${l0.map((values, layer) => ({ name: `layer ${layer}`, values }))} />`}
        ${byLayer && html`<${Lines} title="Dead features by layer" unit="share" steps=${steps} series=${byLayer.map((values, layer) => ({ name: `layer ${layer}`, values }))} />`}
      </div>
      <section aria-labelledby="moves"><h2 id="moves">Reallocations</h2>
        ${moves.length ? html`<p class="hint">When features were given a new parent.</p><${Table} rows=${moves} keyOf=${(row) => moves.indexOf(row)} sort=${sort} onSort=${setSort} label="Reallocations" height=${320}
          columns=${keys.map((key) => ({ key, title: words(key), numeric: typeof moves[0][key] === "number", sort: (row) => row[key], render: (row) => html`<span class="num">${typeof row[key] === "number" ? count(row[key]) : String(row[key] ?? "")}</span>` }))} />`
        : html`<p class="hint">None in the log.</p>`}</section>`;
    }}</${Answer}>`}</div>`;
}
