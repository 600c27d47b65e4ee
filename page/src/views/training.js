// How it was trained: losses, dead features by layer, reallocations.
import { html, useState } from "../html.js";
import { useAsk } from "../store.js";
import { Answer, Empty } from "../ui.js";
import { Lines } from "../charts/lines.js";
import { Table } from "../table.js";
import { count } from "../text.js";

const words = (name) => ({ fve: "Fraction of variance explained", l0: "Active features per token (L0)", loss: "Loss" })[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

export function TrainingView() {
  const answer = useAsk("training");
  const [sort, setSort] = useState({ key: "step", down: true });
  return html`<div class="wide"><div class="head"><h1>Training</h1><p class="hint">From the run’s log. Every value is of the training batch at that step.</p></div>
    <${Answer} answer=${answer} what="The training log">${({ steps = [], series = {}, layers = {}, moves = [] }) => {
      const dead = layers.dead_share?.length ? layers.dead_share : null;
      // By step or by layer: whichever way it comes, a line is a layer.
      const byLayer = dead && (dead.length === steps.length ? dead[0].map((_, layer) => dead.map((row) => row[layer])) : dead);
      const keys = moves.length ? Object.keys(moves[0]).filter((key) => typeof moves[0][key] !== "object") : [];
      if (!steps.length) return html`<${Empty}>This run has no training log.</${Empty}>`;
      return html`<div class="charts">
        ${Object.entries(series).map(([name, values]) => html`<${Lines} key=${name} title=${words(name)} steps=${steps} series=${[{ name, values }]} />`)}
        ${byLayer && html`<${Lines} title="Dead features by layer" unit="share" steps=${steps} series=${byLayer.map((values, layer) => ({ name: `layer ${layer}`, values }))} />`}
      </div>
      <section aria-labelledby="moves"><h2 id="moves">Reallocations</h2>
        ${moves.length ? html`<p class="hint">When features were given a new parent.</p><${Table} rows=${moves} keyOf=${(row) => moves.indexOf(row)} sort=${sort} onSort=${setSort} label="Reallocations" height=${320}
          columns=${keys.map((key) => ({ key, title: words(key), numeric: typeof moves[0][key] === "number", sort: (row) => row[key], render: (row) => html`<span class="num">${typeof row[key] === "number" ? count(row[key]) : String(row[key] ?? "")}</span>` }))} />`
        : html`<p class="hint">None in the log.</p>`}</section>`;
    }}</${Answer}></div>`;
}
