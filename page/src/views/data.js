// A feature's children in the tree against those that the data would give it, and other candidate parents.
import { html } from "../html.js";
import { forest, useAsk } from "../store.js";
import { percent, percentBy, plural } from "../text.js";
import { Answer, EdgeNumber, FeatureLink } from "../ui.js";
import { Term } from "../term.js";
import { FeatureHead } from "./feature.js";

/** What stands beside the name of a feature in a list of this kind: [title, of a row, help]. */
function cellsOf(kind, tree, least) {
  const column = tree.telling;
  const covered = ["Covered", (row) => html`<td class="numeric num">${percentBy(row.p, [least])}</td>`];
  if (kind === "agreed" || kind === "tree-only") {
    const edge = [column?.title, (row) => html`<td><${EdgeNumber} column=${column} id=${row.id} bounds=${column.name === "ungated" ? [least] : []} /></td>`, column?.description];
    return column?.name === "ungated" ? [edge] : column ? [covered, edge] : [covered]; // the column and “covered” are the same there
  }
  if (kind === "data-only") return [covered, ["In the tree under", (row) => html`<td>${tree.parent[row.id] < 0 ? "a root" : html`<${FeatureLink} id=${tree.parent[row.id]} view="family" />`}</td>`]];
  return [["Of this one’s tokens", (row) => html`<td class="numeric num">${percent(row.p)}</td>`], ["Of all tokens", (row) => html`<td class="numeric num">${percent(row.base)}</td>`, "By chance: how often that feature is active on any token"]];
}

function Part({ title, hint, rows, kind, least }) {
  const cells = cellsOf(kind, forest.value, least);
  return html`<section class=${`data-part ${kind}`} aria-label=${title}><h2>${title} <span class="muted num">${rows.length}</span></h2><p class="hint">${hint}</p>
    ${rows.length ? html`<table class="plain"><thead><tr><th scope="col">Feature</th>${cells.map(([name, , help]) => html`<th scope="col" key=${name} class=${name === "Covered" || name.startsWith("Of ") ? "numeric" : ""} title=${help}>${name}</th>`)}</tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.id}><th scope="row"><${FeatureLink} id=${row.id} label=${row.label} /></th>${cells.map(([, render]) => render(row))}</tr>`)}</tbody></table>` : html`<p class="state empty">None.</p>`}</section>`;
}

export function DataView({ id }) {
  const tree = forest.value;
  const answer = useAsk(`tree-data/${id}`);
  const agreed = (value) => value.agreed.length;
  return html`<div class="wide"><${FeatureHead} id=${id} view="data" />
    <${Answer} answer=${answer} what="The comparison">${(value) => html`
      <p class="intro">Of the tree’s ${plural(agreed(value) + value.tree_only.length, "child", "children")}, the data agree with ${agreed(value)}, and would add ${value.data_only.length}. They agree if their <${Term} word="ungated">coverage without the gate</${Term}> is at least ${percent(value.least ?? 0.5)}: how often this feature is active where the child’s <${Term} word="detector">own detector</${Term}> is on (“covered”). Of all tokens, it is active on <strong class="num">${percent(tree.density[id])}</strong>: that much is chance. The tree’s children are listed by how often they fire, the most frequent first; the others by how far they are above chance.</p>
      <div class="columns-3">
        <${Part} kind="agreed" title="Agreed" hint="Children in the tree and by the data." least=${value.least ?? 0.5} rows=${value.agreed} />
        <${Part} kind="tree-only" title="Only the tree" hint="Children that are active mostly elsewhere: look at what the edge’s evidence is." least=${value.least ?? 0.5} rows=${value.tree_only} />
        <${Part} kind="data-only" title="Only the data" hint="Covered by this feature, but placed elsewhere in the tree." least=${value.least ?? 0.5} rows=${value.data_only} />
      </div>
      <${Part} kind="parents" title="Other candidate parents" hint=${tree.parent[id] >= 0 ? `The tree’s parent is ${tree.parent[id]}. These are often active where this feature is, too; those furthest above how often they are active on any token come first.` : "A root in the tree. These are often active where this feature is; those furthest above how often they are active on any token come first."} rows=${value.other_parents ?? []} />`}</${Answer}></div>`;
}
