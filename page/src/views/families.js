// All families in a table: how many of a parent's children beat chance, from the best to the worst or the other way round.
import { html, useMemo } from "../html.js";
import { go, query, route, to } from "../route.js";
import { forest, lacking } from "../store.js";
import { count, percent, plural, visible } from "../text.js";
import { Choice, Empty, FeatureLink, ForcedTag, Gauge, Lacking, Select, nameOf, unnamed } from "../ui.js";
import { Term } from "../term.js";
import { Table } from "../table.js";
import { supports } from "../words.js";

export function FamiliesView() {
  const tree = forest.value;
  const { query: state } = route.value;
  const column = tree.column(state.get("col")) ?? tree.telling;
  const least = Number(state.get("least") ?? 3);
  const at = state.has("at") ? Number(state.get("at")) : null;
  const sort = { key: state.get("sort") ?? "middle", down: state.get("up") !== "1" };
  const all = useMemo(() => (column ? tree.families(column) : []), [tree, column]);
  const rows = useMemo(() => all.filter(({ n }) => n >= least), [all, least]);
  const columns = useMemo(() => column && [
    { key: "parent", title: "Family", sort: ({ parent }) => parent, render: ({ parent }) => html`<${FeatureLink} id=${parent} view="family" />` },
    { key: "first", title: "Its most frequent children", render: ({ parent }) => html`<bdi class="first-children">${tree.kids(parent).slice(0, 3).map((id) => visible(nameOf(id) ?? unnamed(id))).join("; ")}</bdi>` },
    { key: "children", title: "Children judged", numeric: true, help: `Children with a place among null pairs by “${column.title}”${column.defined ? `: those where ${column.defined}` : ""}`, sort: ({ n }) => n, render: ({ n }) => html`<span class="num">${count(n)}</span>` },
    { key: "beat", title: "Beat 95% of null pairs", numeric: true, help: "By chance 5% do", sort: ({ n, beat }) => beat / n + 1e-6 * n, render: ({ n, beat }) => html`<span class="num">${count(beat)}, ${percent(beat / n)}</span>` },
    { key: "middle", title: "The middle child beats", numeric: true, help: "Median over the children of the share of null pairs that they beat", sort: ({ middle, n }) => middle + 1e-6 * n * (middle > 0.5 ? 1 : -1), render: ({ middle }) => html`<${Gauge} place=${middle} column=${column} />` },
    { key: "below", title: "Features below", numeric: true, sort: ({ parent }) => tree.size[parent], render: ({ parent }) => html`<span class="num">${count(tree.size[parent] - 1)}</span>` },
    { key: "density", title: "Density", numeric: true, help: "Of the parent", sort: ({ parent }) => tree.density[parent], render: ({ parent }) => html`<span class="num">${percent(tree.density[parent])}</span>` },
  ], [tree, column]);
  if (!column || !all.length) return html`<div class="wide"><h1>Families</h1>${lacking("nulls") ? html`<${Lacking} text=${lacking("nulls")} />` : html`<${Empty}>No family has children that fired often enough to be judged.</${Empty}>`}</div>`;
  const failing = rows.filter(({ middle }) => middle <= 0.5).length;
  return html`<div class="wide families-view">
    <div class="head"><h1>Families</h1><p class="hint">A family fails where its children are no better than <${Term} word="null">null pairs</${Term}>. By chance, half of them <${Term} word="beats">beat</${Term}> half of the null pairs, and 5% beat 95%. Few children say little: among many small families, some fail or shine by chance.</p></div>
    <div class="tools">
      <${Choice} label="Order" value=${sort.key === "middle" ? (sort.down ? "best" : "worst") : ""} options=${[["best", "Best first"], ["worst", "Worst first"]]} onChoose=${(which) => query({ sort: null, up: which === "worst" })} />
      <${Select} label="Judged by" wide=${true} value=${column.name} options=${tree.about.filter(({ of_pair: pair }) => pair !== false).map(({ name, title }) => [name, title])} onChoose=${(col) => query({ col })} />
      <${Select} label="Children judged" value=${String(least)} options=${[["1", "1 or more"], ["3", "3 or more"], ["5", "5 or more"], ["10", "10 or more"]]} onChoose=${(value) => query({ least: value === "3" ? null : value })} />
      <${ForcedTag} column=${column} />
      <span class="hint">${supports(column)}</span>
    </div>
    <p class="tally" role="status">${plural(rows.length, "family", "families")} of ${count(all.length)}; in ${count(failing)} the middle child does not beat half of the null pairs</p>
    <${Table} rows=${rows} columns=${columns} sort=${sort} onSort=${({ key, down }) => query({ sort: key === "middle" ? null : key, up: !down })} keyOf=${({ parent }) => parent} selected=${at}
      onSelect=${({ parent }) => query({ at: parent }, { replace: true })} onOpen=${({ parent }) => go(to("family", parent))} label="Families" height=${620} /></div>`;
}
