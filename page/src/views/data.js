// A feature's children in the tree against those that the data would give it, and other candidate parents.
import { html } from "../html.js";
import { forest, useAsk } from "../store.js";
import { percent, plural } from "../text.js";
import { Answer, EdgeNumber, FeatureLink } from "../ui.js";
import { FeatureHead } from "./feature.js";

function Part({ title, hint, rows, edge, kind }) {
  const tree = forest.value;
  const column = tree.telling;
  return html`<section class=${`data-part ${kind}`} aria-label=${title}><h2>${title} <span class="muted num">${rows.length}</span></h2><p class="hint">${hint}</p>
    ${rows.length ? html`<table class="plain"><thead><tr><th scope="col">Feature</th><th scope="col" class="numeric">Covered</th>${edge && column ? html`<th scope="col" title=${column.description}>${column.title}</th>` : rows.some((row) => row.base !== undefined) ? html`<th scope="col" class="numeric">On any token</th>` : null}</tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.id}><td><${FeatureLink} id=${row.id} label=${row.label} /></td><td class="numeric num">${percent(row.p)}</td>${edge && column ? html`<td><${EdgeNumber} column=${column} id=${row.id} /></td>` : row.base !== undefined ? html`<td class="numeric num">${percent(row.base)}</td>` : null}</tr>`)}</tbody></table>` : html`<p class="state empty">None.</p>`}</section>`;
}

export function DataView({ id }) {
  const tree = forest.value;
  const answer = useAsk(`tree-data/${id}`);
  const agreed = (value) => value.agreed.length;
  return html`<div class="wide"><${FeatureHead} id=${id} view="data" />
    <${Answer} answer=${answer} what="The comparison">${(value) => html`
      <p class="intro">Of the tree’s ${plural(agreed(value) + value.tree_only.length, "child", "children")}, the data agree with ${agreed(value)}, and would add ${value.data_only.length}. They agree if this feature is active on at least ${percent(value.least ?? 0.5)} of the tokens where the child’s own detector is on, without the gate (“covered”): with it, it would be 100% of any. The null is how often it is active on any token: <strong class="num">${percent(tree.density[id])}</strong>.</p>
      <div class="columns-3">
        <${Part} kind="agreed" title="Agreed" hint="Children in the tree and by the data." rows=${value.agreed} edge=${true} />
        <${Part} kind="tree-only" title="Only the tree" hint="Children that are active mostly elsewhere: look at what the edge’s evidence is." rows=${value.tree_only} edge=${true} />
        <${Part} kind="data-only" title="Only the data" hint="Active almost only where this feature is, but placed elsewhere." rows=${value.data_only} />
      </div>
      <${Part} kind="parents" title="Other candidate parents" hint=${tree.parent[id] >= 0 ? `The tree’s parent is ${tree.parent[id]}. These are active where this feature is, far above their own rate (the null).` : "A root in the tree. These are active where this feature is, far above their own rate (the null)."} rows=${value.other_parents ?? []} />`}</${Answer}></div>`;
}
