// One feature: label, contexts, histogram, logits, the way to the root, siblings, children, neighbors, and its edge's evidence.
import { html, useState } from "../html.js";
import { query, route, to } from "../route.js";
import { annotate, canWrite, forest, lacking, notes, rate, ratings, useAsk } from "../store.js";
import { cell, count, number, percent, plural, visible, visibleToken } from "../text.js";
import { Answer, Bar, Choice, Editable, EdgeNumber, FeatureLink, ForcedTag, Gauge, Lacking, SourceTag, Ties, nameOf } from "../ui.js";
import { Contexts, useContextSwitches } from "../contexts.js";
import { Term } from "../term.js";
import { supports } from "../words.js";
import { SaveFamily } from "./save.js";
import { Histogram } from "../charts/lines.js";

const TABS = [["feature", "Feature"], ["family", "Family"], ["data", "Tree against data"], ["geometry", "Geometry"]];

/** Head of all views of one feature: the path, the name, and the ways between the views. */
export function FeatureHead({ id, view }) {
  const tree = forest.value;
  const path = tree.path(id);
  const marked = notes.value.get(id)?.bookmark;
  return html`<div class="feature-head">
    <nav class="crumbs" aria-label="Path from the root"><a href=${to("tree", null, { at: id })}>Tree</a>
      ${path.map((at) => html`<span key=${at}><span aria-hidden="true">›</span> ${at === id ? html`<span aria-current="true" class="num">${at}</span>` : html`<${FeatureLink} id=${at} view=${view === "family" ? "family" : "feature"} />`}</span>`)}</nav>
    <div class="head"><h1><span class="num id">${id}</span> <bdi>${visible(nameOf(id) ?? (tree.dead[id] ? "never fired" : "no label"))}</bdi> <${SourceTag} id=${id} /></h1>
      ${canWrite() && html`<button type="button" class="star" aria-pressed=${Boolean(marked)} aria-label="Bookmark" title="Bookmark" onClick=${() => annotate(id, { bookmark: !marked })}>${marked ? "★" : "☆"}</button>`}
      <${SaveFamily} key=${id} id=${id} />
      <nav class="tabs" aria-label="Views of this feature">${TABS.map(([key, title]) => html`<a key=${key} href=${to(key, id)} aria-current=${key === view ? "page" : null}>${title}</a>`)}
        ${tree.whole && html`<a href=${to("map", null, { root: tree.kids(id).length ? id : tree.parent[id] >= 0 ? tree.parent[id] : null, at: id })}>On the map</a>`}</nav></div>
  </div>`;
}

function EdgeEvidence({ id }) {
  const tree = forest.value;
  const parent = tree.parent[id];
  if (parent < 0) return html`<section aria-labelledby="edge"><h2 id="edge">Edge</h2><p class="hint">A root: it has no parent.</p></section>`;
  const rating = ratings.value.get(id)?.rating;
  return html`<section aria-labelledby="edge"><h2 id="edge">The edge from its parent</h2>
    <p class="hint">Under <${FeatureLink} id=${parent} view="family" />. The mark: how many <${Term} word="null">null pairs</${Term}> it beats, parents shuffled within the layer among features that fire as often. Middle: chance. The value says how often, the place whether chance gives as much: trust a value only as far as its place is high.</p>
    <table class="plain evidence"><thead><tr><th scope="col">Property</th><th scope="col" class="numeric">Value</th><th scope="col"><${Term} word="beats" /></th></tr></thead>
      <tbody>${tree.about.map((column) => html`<tr key=${column.name} class=${column.mechanical ? "forced" : ""}>
        <th scope="row" title=${column.description}>${column.title}<${ForcedTag} column=${column} /><small>${column.defined && Number.isNaN(tree.value(column.name, id)) ? `only where ${column.defined}` : supports(column)}</small></th>
        <td class="numeric num">${cell(column, tree.value(column.name, id))}</td><td><${Gauge} place=${tree.place(column.name, id)} column=${column} />${column.defined && Number.isNaN(tree.value(column.name, id)) ? null : html`<div><${Ties} column=${column} id=${id} /></div>`}</td></tr>`)}</tbody></table>
    ${canWrite() ? html`<div class="rating"><span id="rate-label">Does this edge make sense?</span> <${Choice} label="Does this edge make sense?" value=${rating} options=${[["yes", "Yes"], ["no", "No"], ["unsure", "Unsure"]]} onChoose=${(value) => rate(id, value)} /></div>` : rating && html`<p class="hint">Rated: ${rating}</p>`}
  </section>`;
}

function Kin({ feature, id }) {
  const tree = forest.value;
  const column = tree.telling;
  const siblings = tree.parent[id] < 0 ? [] : tree.kids(tree.parent[id]).filter((other) => other !== id);
  const kids = tree.kids(id);
  const silent = kids.filter((kid) => tree.dead[kid]).length;
  const list = (ids, edge) => html`<ul class="kin">${ids.map((other) => html`<li key=${other}><${FeatureLink} id=${other} />${edge && column ? html`<${EdgeNumber} column=${column} id=${other} />` : null}</li>`)}</ul>`;
  return html`<section aria-labelledby="kin"><h2 id="kin">In the forest</h2>
    <h3>${plural(kids.length, "child", "children")}${silent ? `, ${silent} silent` : ""}${kids.length ? html` · <a href=${to("family", id)}>family</a>` : ""}</h3>
    ${kids.length ? html`${column && html`<p class="hint">With “${column.title}” and its place among null pairs.</p>`}${list(kids.slice(0, 12), true)}${kids.length > 12 ? html`<p class="hint"><a href=${to("tree", null, { at: id, open: `.${id}` })}>All ${kids.length} in the tree</a></p>` : null}` : null}
    <h3>${plural(siblings.length, "sibling")}</h3>
    ${siblings.length ? html`${list(siblings.slice(0, 8), true)}${siblings.length > 8 ? html`<p class="hint"><a href=${to("family", tree.parent[id])}>All of the family</a></p>` : null}` : null}
  </section>`;
}

function Logits({ logits }) {
  if (!logits) return html`<${Lacking} text=${lacking("logits") ?? "This feature has no logit effects in the index."} />`;
  const most = Math.max(...[...logits.up, ...logits.down].map(({ value }) => Math.abs(value)), 1e-9);
  const list = (title, rows) => html`<div><h3>${title}</h3><ol class="logits">${rows.map((row, place) => html`<li key=${place}><code class="token">${visibleToken(row.token)}</code><${Bar} value=${Math.abs(row.value)} most=${most} text=${number(row.value)} /></li>`)}</ol></div>`;
  return html`<div class="two">${list("Makes likelier", logits.up)}${list("Makes unlikelier", logits.down)}</div>`;
}

function Neighbors({ feature }) {
  const rows = (list, what, base) => list?.length
    ? html`<table class="plain"><thead><tr><th scope="col">Feature</th><th scope="col" class="numeric">${what}</th>${base && html`<th scope="col" class="numeric" title="By chance: how often that feature is active on any token">Of all tokens</th>`}</tr></thead>
      <tbody>${list.map((row) => html`<tr key=${row.id}><td><${FeatureLink} id=${row.id} label=${row.label} />${row.in_tree ? html` <span class="tag">in the tree</span>` : null}</td><td class="numeric num">${percent(row.p)}</td>${base && html`<td class="numeric num">${percent(row.base)}</td>`}</tr>`)}</tbody></table>`
    : html`<p class="hint">None.</p>`;
  return html`<section aria-labelledby="near"><h2 id="near">Neighbors</h2>
    <div class="two"><div><h3>Often active where this is</h3><p class="hint">Candidates for its parent by the data. Those first whose share of this feature’s tokens is furthest above their share of all tokens.</p>${rows(feature.over, "Of this one’s tokens", true)}</div>
    <div><h3>This is often active where they are</h3><p class="hint">Candidates for its children by the data, the largest share first. Of all tokens, this feature is active on ${percent(feature.density)}: a share above that is more than chance.</p>${rows(feature.under, "Of their tokens", false)}</div></div>
    <h3>Nearest decoder rows</h3>
    ${feature.near?.length ? html`<ul class="kin columns">${feature.near.map((row) => html`<li key=${row.id}><${FeatureLink} id=${row.id} label=${row.label} /> <span class="num muted">cos ${number(row.cos)}</span></li>`)}</ul>` : html`<p class="hint">None.</p>`}
  </section>`;
}

function ContextPart({ feature }) {
  const { full, figures, switches } = useContextSwitches();
  const which = route.value.query.get("contexts") ?? "top";
  const bins = feature.quantiles ?? [];
  return html`<section aria-labelledby="contexts"><div class="head"><h2 id="contexts">Contexts</h2>
      <${Choice} label="Which contexts" value=${which} options=${[["top", "Strongest"], ["quantiles", "By quantile"]]} onChoose=${(key) => query({ contexts: key === "top" ? null : key })} />${switches}</div>
    ${which === "top"
      ? feature.top?.length ? html`<${Contexts} contexts=${feature.top} max=${feature.max} full=${full} figures=${figures} label="Strongest contexts" />` : html`<p class="state empty">It never fired on the indexed tokens. More text may wake it: <code>saeforest index RUN --tokens 10M</code></p>`
      : bins.length ? [...bins].reverse().map((bin) => html`<h3 key=${bin.bin}>${number(bin.lo)} to ${number(bin.hi)}</h3><${Contexts} contexts=${bin.contexts} max=${feature.max} full=${full} figures=${figures} label=${`Contexts with activations ${number(bin.lo)} to ${number(bin.hi)}`} />`) : html`<p class="state empty">No samples in this index.</p>`}
  </section>`;
}

export function FeatureView({ id }) {
  const answer = useAsk(`feature/${id}`);
  const note = notes.value.get(id) ?? {};
  const kids = forest.value.kids(id);
  return html`<div class="wide feature-view"><${FeatureHead} id=${id} view="feature" />
    <${Answer} answer=${answer} what="The feature">${(feature) => html`<div class="columns-2">
      <div class="main-column">
        <dl class="facts small">
          <div class="fact"><dt>Density</dt><dd class="num">${percent(feature.density)}<small>${plural(feature.n_fired, "token")}</small></dd></div>
          <div class="fact"><dt>Maximum</dt><dd class="num">${number(feature.max)}<small>mean ${number(feature.mean)}</small></dd></div>
          <div class="fact"><dt>Layer</dt><dd class="num">${feature.layer}<small>depth ${feature.depth}</small></dd></div>
          <div class="fact"><dt>Children</dt><dd class="num">${count(kids.length)}${kids.length > 0 && html`<small>${feature.n_silent ?? 0} silent</small>`}</dd></div>
        </dl>
        <${ContextPart} feature=${feature} />
        <section aria-labelledby="logits"><h2 id="logits">Effect on the next token</h2><p class="hint">By how much one unit of activation changes a token’s <${Term} word="logits">logit</${Term}>, directly.</p><${Logits} logits=${feature.logits} /></section>
        <${Neighbors} feature=${feature} />
      </div>
      <div class="side-column">
        <${EdgeEvidence} id=${id} />
        <${Kin} feature=${feature} id=${id} />
        <section aria-labelledby="hist"><h2 id="hist">Activations</h2><${Histogram} histogram=${feature.histogram} max=${feature.max} /></section>
        <section aria-labelledby="yours"><h2 id="yours">Yours</h2>
          ${canWrite() ? html`<label class="stack"><span>Label</span><${Editable} label="Label" value=${nameOf(id) ?? ""} onSave=${(label) => annotate(id, { label: label || null })} placeholder="What does it fire on?" /></label>
            <label class="stack"><span>Note</span><${Editable} label="Note" value=${note.note ?? feature.note ?? ""} onSave=${(text) => annotate(id, { note: text || null })} multiline=${true} placeholder="Saved when you leave the field" /></label>
            <p class="hint">An empty label brings the automatic one back. All of it is in the run’s annotations.sqlite.</p>`
          : html`<p class="hint">${visible(feature.note ?? "") || "An export cannot be changed."}</p>`}
        </section>
      </div></div>`}</${Answer}></div>`;
}
