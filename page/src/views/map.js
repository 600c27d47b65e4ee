// The map of all features: an icicle to zoom into, colored by whatever there is, and the same as a table.
import { html, useEffect, useMemo, useState } from "../html.js";
import { go, query, route, to } from "../route.js";
import { forest } from "../store.js";
import { cell, percent, plural } from "../text.js";
import { About, FeatureLink, Gauge, Select, nameOf } from "../ui.js";
import { Icicle, Legend } from "../charts/icicle.js";
import { Table } from "../table.js";
import { visible } from "../text.js";

function useHeight() {
  const fit = () => Math.max(320, Math.min(1100, innerHeight - 276));
  const [height, setHeight] = useState(fit);
  useEffect(() => {
    const follow = () => setHeight(fit());
    addEventListener("resize", follow);
    return () => removeEventListener("resize", follow);
  }, []);
  return height;
}

function MapTable({ root, color, at, height }) {
  const tree = forest.value;
  const [sort, setSort] = useState({ key: "below", down: true });
  const [, key] = color.split(":");
  const column = tree.column(key) ?? tree.telling;
  const rows = useMemo(() => [...(root < 0 ? tree.roots : [root, ...tree.kids(root)])], [tree, root]);
  const columns = useMemo(() => [
    { key: "id", title: "Feature", sort: (id) => id, render: (id) => html`<${FeatureLink} id=${id} />` },
    { key: "below", title: "Features below", numeric: true, sort: (id) => tree.size[id], render: (id) => html`<span class="num">${tree.size[id] - 1}</span>` },
    { key: "layer", title: "Layer", numeric: true, sort: (id) => tree.layer[id], render: (id) => html`<span class="num">${tree.layer[id]}</span>` },
    { key: "density", title: "Density", numeric: true, sort: (id) => tree.density[id], render: (id) => html`<span class="num">${tree.dead[id] ? "never fired" : percent(tree.density[id])}</span>` },
    ...(column ? [
      { key: "value", title: column.title, numeric: true, help: column.description, sort: (id) => tree.value(column.name, id), render: (id) => html`<span class="num">${cell(column, tree.value(column.name, id))}</span>` },
      { key: "place", title: "Beats null pairs", sort: (id) => tree.place(column.name, id), render: (id) => html`<${Gauge} place=${tree.place(column.name, id)} column=${column} />` },
    ] : []),
    { key: "zoom", title: "", render: (id) => (tree.kids(id).length && id !== root ? html`<a href=${to("map", null, { root: id, color, table: 1 })}>zoom<span class="sr"> into ${id}</span></a>` : null) },
  ], [tree, column, root, color]);
  return html`<${Table} rows=${rows} columns=${columns} sort=${sort} onSort=${setSort} keyOf=${(id) => id} selected=${at} onSelect=${(id) => query({ at: id }, { replace: true })} onOpen=${(id) => go(to("feature", id))} label="Features of the map" height=${height} />`;
}

export function MapView() {
  const tree = forest.value;
  const { query: state } = route.value;
  const given = Number(state.get("root") ?? -1);
  const root = tree.has(given) ? given : -1;
  const color = state.get("color") ?? (tree.telling ? `place:${tree.telling.name}` : "density");
  const at = state.has("at") && tree.has(Number(state.get("at"))) ? Number(state.get("at")) : null;
  const asTable = state.get("table") === "1";
  const height = useHeight();
  const options = [
    { group: "Of a feature", options: [["density", "Density"], ["layer", "Layer"], ["dead", "Dead or alive"]] },
    { group: "Of the edge: how many null pairs it beats", options: tree.about.map((column) => [`place:${column.name}`, column.title]) },
    { group: "Of the edge: value", options: tree.about.map((column) => [`value:${column.name}`, column.title]) },
  ];
  const path = root < 0 ? [] : tree.path(root);
  return html`<div class="wide">
    <div class="head"><h1>Forest map</h1>
      <nav class="crumbs" aria-label="Where the map is"><a href=${to("map", null, { color, table: asTable })} aria-current=${root < 0 ? "true" : null}>All ${plural(tree.ids.length, "feature")}</a>
        ${path.map((id) => html`<span key=${id}><span aria-hidden="true">›</span> <a href=${to("map", null, { root: id, color, table: asTable })} aria-current=${id === root ? "true" : null}><span class="num">${id}</span> <bdi>${visible(nameOf(id) ?? "")}</bdi></a></span>`)}</nav></div>
    <div class="tools">
      <${Select} label="Color" wide=${true} value=${color} options=${options} onChoose=${(value) => query({ color: value })} />
      <${Legend} color=${color} />
      <span class="grow"></span>
      ${root >= 0 && html`<a class="button" href=${to("feature", root)}>Open feature ${root}</a>`}
      <button type="button" aria-pressed=${asTable} onClick=${() => query({ table: !asTable })}>Table</button>
    </div>
    ${!asTable && html`<p class="hint">Each bar is a feature, as tall as it has features below it; its children are to its right. Click a bar to zoom into it, or a feature without children to open its page; arrow keys walk.</p>`}
    ${asTable
      ? html`<${MapTable} root=${root} color=${color} at=${at} height=${height} />`
      : html`<${Icicle} root=${root} color=${color} height=${height} at=${at} onAt=${(id) => query({ at: id }, { replace: true })} onZoom=${(id) => query({ root: id < 0 ? null : id, at: id < 0 ? null : id })} />`}
    <${About} column=${tree.column(color.split(":")[1])} />
  </div>`;
}
