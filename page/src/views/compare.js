// Two SAEs side by side: features matched by the cosine of their decoder rows.
import { html, useMemo, useState } from "../html.js";
import { go, query, route, to } from "../route.js";
import { forest, useAsk } from "../store.js";
import { isStatic } from "../transport.js";
import { measure, number, percent, plural, visible } from "../text.js";
import { Answer, Empty, FeatureLink } from "../ui.js";
import { Table } from "../table.js";

function Result({ value }) {
  const [sort, setSort] = useState({ key: "cos", down: true });
  const tree = forest.value;
  const columns = useMemo(() => [
    { key: "id", title: "Here", sort: ({ id }) => id, render: ({ id }) => html`<${FeatureLink} id=${id} />` },
    { key: "other", title: "There", sort: (pair) => pair.other_id, render: (pair) => html`<span class="num">${pair.other_id}</span> <bdi>${visible(pair.other_label ?? "")}</bdi>` },
    { key: "cos", title: "Cosine", numeric: true, sort: ({ cos }) => cos, render: ({ cos }) => html`<span class="num">${number(cos)}</span>` },
    { key: "density", title: "Density here", numeric: true, sort: ({ id }) => tree.density[id], render: ({ id }) => html`<span class="num">${percent(tree.density[id])}</span>` },
    ...(value.pairs.some((pair) => pair.parents_match !== undefined) ? [{ key: "parents", title: "Parents match", sort: (pair) => Number(pair.parents_match), render: (pair) => (pair.parents_match === null ? "–" : pair.parents_match ? "yes" : "no") }] : []),
  ], [value]);
  const facts = Object.entries(value).filter(([key, fact]) => typeof fact === "number" && key !== "api");
  const words = { matched_share: "Features with a match", parents_share: "Pairs whose parents match too", threshold: "Cosine of a match", mean_cos: "Mean cosine" };
  const shown = (key, fact) => (key.endsWith("share") ? percent(fact) : measure(fact));
  return html`<dl class="facts">${facts.map(([key, fact]) => html`<div class="fact" key=${key}><dt>${words[key] ?? key.replaceAll("_", " ")}</dt><dd class="num">${shown(key, fact)}${typeof value.null?.[key] === "number" && html`<small>by chance ${shown(key, value.null[key])}</small>`}</dd></div>`)}</dl>
    <p class="tally">${plural(value.pairs.length, "pair")}</p>
    <${Table} rows=${value.pairs} columns=${columns} sort=${sort} onSort=${setSort} keyOf=${({ id }) => id} onOpen=${({ id }) => go(to("feature", id))} label="Matched features" height=${560} />`;
}

export function CompareView() {
  const other = route.value.query.get("other") ?? "";
  const [text, setText] = useState(other);
  const answer = useAsk(other ? `compare?${new URLSearchParams({ other })}` : null);
  const offered = useAsk(isStatic || other ? null : "compare");
  const runs = offered.value?.runs ?? [];
  return html`<div class="wide"><div class="head"><h1>Compare</h1><p class="hint">Which features another SAE of the same activations has too. Matched by the cosine of their decoder rows; by chance: against random directions and shuffled parents.</p></div>
    ${isStatic ? html`<${Empty}>An export holds one SAE. <code>saeforest explore RUN</code> compares.</${Empty}>`
    : html`<form class="tools" onSubmit=${(event) => {
        event.preventDefault();
        query({ other: text.trim() });
      }}><label class="field grow"><span>Other SAE</span><input type="text" value=${text} onInput=${(event) => setText(event.currentTarget.value)} placeholder="runs/other, or its name in this run" /></label><button type="submit" class="primary">Compare</button></form>
      ${runs.length > 0 && html`<p>At hand: ${runs.map((name) => html`<a class="button" key=${name} href=${to("compare", null, { other: name })}><bdi>${visible(name)}</bdi></a> `)}</p>`}
      ${other ? html`<${Answer} answer=${answer} what="The comparison">${(value) => html`<${Result} value=${value} />`}</${Answer}>` : html`<${Empty}>Name another run, trained on the same model and site: a second seed shows which features and edges come back.</${Empty}>`}`}</div>`;
}
