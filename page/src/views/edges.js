// The audit of all edges: any two of their properties against each other, with the null's cloud, and a table.
import { html, useMemo } from "../html.js";
import { go, query, route, to } from "../route.js";
import { forest, lacking, overview, ratings, useAsk } from "../store.js";
import { array } from "../transport.js";
import { cell, count, percent, plural, visible } from "../text.js";
import { Empty, FeatureLink, ForcedTag, Gauge, Select, download, nameOf } from "../ui.js";
import { within } from "../rows.js";
import { Term } from "../term.js";
import { forced } from "../words.js";
import { Scatter } from "../charts/scatter.js";
import { Table } from "../table.js";

/** What a column is, and the share of edges above the null's 95th percentile, where chance gives 5%. */
function Axis({ column }) {
  const beat = overview.value.beats?.find((entry) => entry.column === column.name);
  return html`<p class="about"><strong>${column.title}</strong>: ${column.description}${column.defined ? ` Defined where ${column.defined}.` : ""} <${ForcedTag} column=${column} /> ${beat && html`<strong>${percent(beat.share)}</strong> of ${beat.n === undefined ? "" : count(beat.n)} edges beat 95% of null pairs (by chance 5%)${beat.auc === null || beat.auc === undefined ? "" : html`, <${Term} word="auc" /> ${beat.auc.toFixed(2)}`}.`}</p>`;
}

function csv(tree, ids) {
  const head = ["parent", "child", ...tree.about.flatMap(({ name }) => [name, `${name}_beats_null`])];
  const quote = (text) => `"${String(text ?? "").replaceAll('"', '""')}"`;
  const rows = ids.map((id) => [tree.parent[id], id, ...tree.about.flatMap(({ name }) => [tree.value(name, id), tree.place(name, id)])].map((value) => (Number.isNaN(value) ? "" : value)));
  return [[...head, "parent_label", "child_label"].join(","), ...rows.map((row, place) => [...row, quote(nameOf(tree.parent[ids[place]])), quote(nameOf(ids[place]))].join(","))].join("\n");
}

export function EdgesView() {
  const tree = forest.value;
  const { query: state } = route.value;
  const telling = tree.about.filter((column) => !column.mechanical);
  const X = tree.column(state.get("x")) ?? telling[0] ?? tree.about[0];
  const Y = tree.column(state.get("y")) ?? telling.find((column) => column !== X && column.name !== "lift") ?? telling.find((column) => column !== X) ?? tree.about[1] ?? X;
  const nulls = useAsk(lacking("nulls") ? null : "nulls");
  const brushText = state.get("brush");
  const brush = useMemo(() => (brushText ? brushText.split("_").map(Number) : null), [brushText]);
  const at = state.has("at") && tree.has(Number(state.get("at"))) ? Number(state.get("at")) : null;
  const sort = { key: state.get("sort") ?? (Y?.mechanical || X === Y ? "x-place" : "y-place"), down: state.get("up") !== "1" };

  const clouds = useMemo(() => {
    const columns = nulls.value?.columns ?? {};
    return new Map(Object.entries(columns).map(([name, values]) => [name, array(values)]));
  }, [nulls.value]);
  const ids = useMemo(() => (X ? Array.from(tree.edges).filter((id) => Number.isFinite(tree.value(X.name, id)) && Number.isFinite(tree.value(Y.name, id))) : []), [tree, X, Y]);
  const [low, high] = ["pmin", "pmax"].map((key) => (state.get(key) ? Math.fround(Number(state.get(key))) : null));
  const bounded = low !== null || high !== null;
  const rows = useMemo(() => {
    if (!X || (!brush && !bounded)) return ids;
    const [x, y, places] = [tree.columns.get(X.name), tree.columns.get(Y.name), tree.places.get(X.name)];
    return ids.filter((id) => (!brush || (within(x[id], brush[0], brush[1]) && within(y[id], brush[2], brush[3]))) && (!bounded || within(places[id], low, high)));
  }, [ids, brush, low, high]);
  // Without a choice all edges are saved, those too that one of the plot's two columns has no value for.
  const chosen = brush || bounded;
  const saved = chosen ? rows : Array.from(tree.edges);
  const columns = useMemo(() => X && [
    { key: "parent", title: "Parent", sort: (id) => tree.parent[id], render: (id) => html`<${FeatureLink} id=${tree.parent[id]} view="family" />` },
    { key: "child", title: "Child", sort: (id) => id, render: (id) => html`<${FeatureLink} id=${id} />` },
    ...[["x", X], ["y", Y]].filter(([axis]) => axis === "x" || X !== Y).flatMap(([axis, column]) => [
      { key: axis, title: column.title, numeric: true, help: column.description, sort: (id) => tree.value(column.name, id), render: (id) => html`<span class="num">${cell(column, tree.value(column.name, id))}</span>` },
      { key: `${axis}-place`, title: "Beats null pairs", help: `Share of null pairs that the edge beats by “${column.title}”; a tie counts half`, numeric: true, sort: (id) => tree.place(column.name, id) + 1e-9 * tree.value(column.name, id) * (column.higher_is_more === false ? -1 : 1), render: (id) => html`<${Gauge} place=${tree.place(column.name, id)} column=${column} />` },
    ]),
    { key: "density", title: "Density", numeric: true, help: "Of the child", sort: (id) => tree.density[id], render: (id) => html`<span class="num">${percent(tree.density[id])}</span>` },
    ...(ratings.value.size ? [{ key: "rating", title: "Rated", sort: (id) => ratings.value.get(id)?.rating ?? null, render: (id) => ratings.value.get(id)?.rating ?? "" }] : []),
  ], [tree, X, Y, ratings.value]);

  if (!X) return html`<div class="wide"><h1>Edges</h1><${Empty}>${tree.edges.length ? "This index has no edge columns. “saeforest index RUN” makes them." : "This forest has no edges."}</${Empty}></div>`;
  const options = tree.about.map((column) => [column.name, `${column.title}${column.mechanical ? ` (${forced(column).tag})` : ""}`]);
  const cloud = [clouds.get(X.name) ?? null, clouds.get(Y.name) ?? null];
  return html`<div class="wide edges-view">
    <div class="head"><h1>Edges</h1><p class="hint"><svg class="glyph" width="10" height="10" aria-hidden="true"><circle cx="5" cy="5" r="3" /></svg> the ${count(ids.length)} <${Term} word="edge">edges</${Term}> on which both are defined, of ${count(tree.edges.length)}. <svg class="glyph cross" width="10" height="10" aria-hidden="true"><path d="M2 2l6 6M2 8l6-6" /></svg> <${Term} word="null">null pairs</${Term}>: parents shuffled within the layer among features that fire as often. Where dots lie among crosses, the tree says no more than chance.</p></div>
    <div class="tools">
      <${Select} label="Across" value=${X.name} options=${options} onChoose=${(x) => query({ x, brush: null })} />
      <${Select} label="Up" value=${Y.name} options=${options} onChoose=${(y) => query({ y, brush: null })} />
      <${Select} label="Null pairs beaten (across)" value=${state.get("pmin") ?? ""} options=${[["", "any"], ["0.5", "at least 50%"], ["0.95", "at least 95%"], ["0.99", "at least 99%"]]} onChoose=${(pmin) => query({ pmin })} />
      <${Select} label="and" value=${state.get("pmax") ?? ""} options=${[["", "any"], ["0.05", "at most 5%"], ["0.5", "at most 50%"], ["0.95", "at most 95%"]]} onChoose=${(pmax) => query({ pmax })} />
      <span class="grow"></span>
      ${chosen && html`<button type="button" onClick=${() => query({ brush: null, pmin: null, pmax: null })}>Show all edges</button>`}
      <button type="button" onClick=${() => download("edges.csv", csv(tree, saved))}>Save ${plural(saved.length, "edge")} as CSV</button>
    </div>
    <div class="columns-edges">
      <div>
        <${Scatter} ids=${ids} x=${tree.columns.get(X.name)} y=${tree.columns.get(Y.name)} nullX=${cloud[0]} nullY=${cloud[1]} columnX=${X} columnY=${Y}
          brush=${brush} onBrush=${(area) => query({ brush: area ? area.map((value) => Number(value.toPrecision(4))).join("_") : null })} at=${at} onAt=${(id) => query({ at: id })} height=${440} />
        <p class="hint">Drag a rectangle to choose edges. ${nulls.state === "error" ? html`<span class="warn-text">The null’s cloud could not be loaded: ${visible(nulls.error.message)}</span>` : lacking("nulls") ? html`<span class="warn-text">No null’s cloud: ${visible(lacking("nulls"))}</span>` : null}</p>
        <${Axis} column=${X} />${X !== Y && html`<${Axis} column=${Y} />`}
      </div>
      <div>
        <p class="tally" role="status">${plural(rows.length, "edge")}${brush ? " in the rectangle" : ""}${chosen ? `, of ${count(ids.length)}` : ""}${at !== null ? html`: chosen <${FeatureLink} id=${tree.parent[at]} view="family" /> → <${FeatureLink} id=${at} />` : ""}</p>
        <${Table} rows=${rows} columns=${columns} sort=${sort} onSort=${({ key, down }) => query({ sort: key, up: !down })} keyOf=${(id) => id} selected=${at} onSelect=${(id) => query({ at: id }, { replace: true })} onOpen=${(id) => go(to("feature", id))} label="Edges" height=${560} />
      </div>
    </div></div>`;
}
