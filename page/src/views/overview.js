// What this SAE is, how much of its hierarchy beats chance, the whole in one picture, and where to go.
import { html } from "../html.js";
import { to } from "../route.js";
import { canWrite, forest, lacking, overview } from "../store.js";
import { isStatic } from "../transport.js";
import { count, measure, percent, plural, visible } from "../text.js";
import { FeatureLink, ForcedTag, Gauge, Lacking } from "../ui.js";
import { Term } from "../term.js";
import { WORDS, mayBeNone, wordOfValue } from "../words.js";
import { ReadFirst } from "./help.js";
import { Icicle, Legend } from "../charts/icicle.js";
import { NullDots } from "../charts/dots.js";

const intervalOf = (interval) => (interval ? `${measure(interval[0])} to ${measure(interval[1])}` : null);

function Fact({ term, children, note }) {
  return html`<div class="fact"><dt>${term}</dt><dd>${children}${note && html`<small>${note}</small>`}</dd></div>`;
}

function Values({ values }) {
  const fit = values.filter((value) => !value.null);
  if (!fit.length && overview.value.has?.missing?.measures) return html`<p class="hint lead-hint">No measures: ${visible(overview.value.has.missing.measures)}.</p>`;
  if (!fit.length) return html`<p class="hint lead-hint">No measures yet. <code>saeforest eval RUN</code> takes them: how well it reconstructs, how sparse it is, and its hierarchy beside the nulls.</p>`;
  return html`<dl class="facts">${fit.map(
    (value) => html`<${Fact} key=${value.name} term=${html`<${Term} ...${wordOfValue(value)}>${value.title}</${Term}>`} note=${value.name === "dead.dead_share" ? "of features, on held-out text" : value.interval && `95%: ${intervalOf(value.interval)}`}>
      <span class="num">${value.name === "dead.dead_share" ? percent(value.value) : measure(value.value)}</span></${Fact}>`,
  )}</dl>`;
}

function Beats({ beats }) {
  const tree = forest.value;
  if (!beats?.length) return html`<${Lacking} text=${lacking("nulls") ?? "The edges have no null yet; `saeforest index RUN` makes it with the index."} />`;
  return html`<table class="plain beats">
    <caption>Of the edges that a column is defined on, how many <${Term} word="beats">beat</${Term}> 95% of <${Term} word="null">null pairs</${Term}>. By chance: 5%.</caption>
    <thead><tr><th scope="col">Edge column</th><th scope="col">Edges that beat 95% of null pairs</th><th scope="col" class="numeric"><${Term} word="edge">Edges with a value</${Term}></th><th scope="col" class="numeric"><${Term} word="auc" /></th></tr></thead>
    <tbody>${beats.map((beat) => {
      const column = forest.value.column(beat.column);
      const mechanical = column?.mechanical;
      return html`<tr key=${beat.column} class=${mechanical ? "forced" : ""}>
        <th scope="row"><${tree.whole ? "a" : "span"} href=${tree.whole ? to("edges", null, { x: beat.column }) : null} title=${column?.description}>${beat.title ?? column?.title ?? beat.column}</${tree.whole ? "a" : "span"}>${beat.column in WORDS && html` <${Term} word=${beat.column}>what is that?</${Term}>`}<${ForcedTag} column=${column} /></th>
        <td><span class="bar wide" role="img" aria-label=${`${percent(beat.share)}, by chance ${percent(beat.chance ?? 0.05)}`}><span class="bar-track" aria-hidden="true"><span class="bar-fill" style=${{ width: `${beat.share * 100}%` }}></span><span class="bar-tick" style=${{ left: `${(beat.chance ?? 0.05) * 100}%` }}></span></span><span class="num">${percent(beat.share)}</span></span></td>
        <td class="numeric num">${beat.n === undefined ? "–" : count(beat.n)}</td>
        <td class="numeric num">${beat.auc === null || beat.auc === undefined ? "–" : beat.auc.toFixed(2)}</td></tr>`;
    })}</tbody></table><${Defined} beats=${beats} />`;
}

/** Why columns count different numbers of edges: a line for each reason. */
function Defined({ beats }) {
  const n = overview.value.n_edges;
  const groups = new Map();
  for (const { column, n } of beats) {
    const about = forest.value.column(column);
    if (!about) continue;
    const key = `${n} ${about.defined ?? ""}`;
    groups.set(key, { n, defined: about.defined, titles: [...(groups.get(key)?.titles ?? []), about.title] });
  }
  const fewer = [...groups.values()].filter((group) => group.n < n && group.defined).sort((a, b) => b.n - a.n);
  if (!fewer.length) return null;
  return html`<div class="hint defined"><p class="hint">The forest has ${plural(n, "edge")}. A column leaves out those that it is not defined on; it has a value for</p>
    <ul>${fewer.map(({ n, defined, titles }) => html`<li key=${titles[0]}><strong class="num">${count(n)}</strong> edges, where ${defined}: ${titles.map((title) => `“${title}”`).join(", ")}</li>`)}</ul></div>`;
}

/** first: which of its children to show first, by their places; the most frequent if it is not given. */
function FamilyCard({ family, first = null, verdict = null }) {
  const tree = forest.value;
  const column = tree.telling;
  const all = tree.kids(family.parent);
  const kids = (first ? [...all].sort((a, b) => first(a) - first(b)) : all).slice(0, 5);
  return html`<li class=${`family-card ${verdict === "fails" ? "fails" : ""}`}>
    <h3><${FeatureLink} id=${family.parent} label=${family.label} view="family" />${verdict && html` <span class=${`tag ${verdict === "fails" ? "warn" : ""}`}>${verdict}</span>`}</h3>
    <ul>${kids.map(
      (id) => html`<li key=${id}><${FeatureLink} id=${id} />${column && html`<${Gauge} place=${tree.place(column.name, id)} column=${column} />`}</li>`,
    )}</ul>
    <p class="hint">${family.n_children > kids.length ? `and ${plural(family.n_children - kids.length, "more child", "more children")}. ` : ""}${visible(family.why ?? "")}</p>
  </li>`;
}

const [FEW, FAILED] = [3, 3];

/** The families whose children look most like null pairs. */
function Failing() {
  const tree = forest.value;
  if (!tree.whole) return null; // a part says nothing of which are the weakest
  const column = tree.telling;
  const judged = column ? tree.families(column).filter(({ n }) => n >= FEW) : [];
  const worst = judged.sort((a, b) => a.middle - b.middle || b.n - a.n).slice(0, FAILED);
  if (!worst.length) return null;
  const failing = (families) => families.filter(({ n, middle }) => n >= FEW && middle <= 0.5).length;
  const under = failing(judged);
  const others = tree.about.filter((other) => other !== column && !other.mechanical && other.of_pair !== false && !mayBeNone(other));
  const place = (id) => tree.place(column.name, id);
  return html`<section aria-labelledby="failing">
    <h2 id="failing">${under >= worst.length ? "Families that fail" : "The weakest families"}</h2>
    <p class="hint">A family fails if its <${Term} word="middle">middle child</${Term}> does not beat half of the <${Term} word="null">null pairs</${Term}>: it is no better than chance. By “${column.title}”, ${count(under)} of ${plural(judged.length, "family", "families")} with ${FEW} or more <${Term} word="judged">judged</${Term}> children ${under === 1 ? "fails" : "fail"}; <a href=${to("families", null, { up: true })}>all, the worst first</a>. ${others.length > 0 && html`By other evidence: ${others.map(
      (other, place) => html`${place ? ", " : ""}<a key=${other.name} href=${to("families", null, { col: other.name, up: true })}>${other.title}</a> ${count(failing(tree.families(other)))}`,
    )}.`} Below are the ${worst.length} that come last, with their worst children.</p>
    <ul class="family-cards failing">${worst.map(({ parent, n, beat, middle }) => html`<${FamilyCard} key=${parent} verdict=${middle <= 0.5 ? "fails" : "weak, does not fail"} first=${(id) => (Number.isFinite(place(id)) ? place(id) : 2)}
      family=${{ parent, n_children: tree.kids(parent).length, why: `${beat} of ${n} beat 95% of null pairs; the middle child beats ${percent(middle)}.` }} />`)}</ul></section>`;
}

export function Overview() {
  const about = overview.value;
  const tree = forest.value;
  const layers = about.layer_sizes ?? [];
  const column = tree.telling;
  const color = column ? `place:${column.name}` : "density";
  const hierarchy = (about.values ?? []).filter((value) => value.null);
  const origin = about.forest === "learned" ? "The forest was learned in training." : about.forest === "none" ? "It has no forest." : `The forest: ${visible(about.forest)}.`;
  return html`<div class="overview">
    <div class="lead"><section aria-labelledby="title">
      <h1 id="title"><bdi>${visible(about.title)}</bdi></h1>
      <p class="intro">${visible(about.system ?? "An SAE")} with ${plural(about.n_features, "feature")} in ${plural(layers.length, "layer")} (${layers.map(count).join(", ")}), on <code>${visible(about.site)}</code> of <strong>${visible(about.model)}</strong>. ${origin}${tree.whole ? "" : ` This file holds ${plural(tree.ids.length, "feature")} of it; the numbers on this page are of the whole.`}</p>
      <dl class="facts">
        <${Fact} term=${html`<${Term} word="dead">Alive</${Term}>`} note=${`of ${count(about.n_features)}, on the indexed tokens`}><span class="num">${count(about.n_alive)}</span></${Fact}>
        <${Fact} term=${html`<${Term} word="edge">Edges</${Term}>`} note=${about.n_judged === undefined ? "parent and child" : `in ${count(about.n_judged)} the child fires ${about.min_count} times or more`}><span class="num">${count(about.n_edges)}</span></${Fact}>
        <${Fact} term="Roots"><span class="num">${count(about.n_roots)}</span></${Fact}>
        <${Fact} term="Indexed tokens"><span class="num">${count(about.n_tokens)}</span></${Fact}>
      </dl>
      <${Values} values=${about.values ?? []} />
    </section>
    ${tree.whole ? html`<section aria-labelledby="whole">
      <div class="head"><h2 id="whole">The whole forest</h2><a href=${to("map")}>Open the map</a></div>
      <a class="thumb" href=${to("map")} aria-label="Open the forest map"><${Icicle} root=${-1} color=${color} height=${250} still=${true} /></a>
      <${Legend} color=${color} />
      <p class="hint">Each bar is a feature, its children to its right.${column ? " A root has no edge and no color." : ""}</p>
    </section>` : html`<section aria-labelledby="held">
      <h2 id="held">What this file holds</h2>
      <p><${FeatureLink} id=${about.export.root} view=${tree.kids(about.export.root).length ? "family" : "feature"} />, ${plural(tree.size[about.export.root] - 1, "feature")} below it, and its ancestors. The <a href=${to("tree")}>tree</a> lists them.</p>
    </section>`}</div>
    <section aria-labelledby="real">
      <h2 id="real">Is the hierarchy real?</h2>
      <${ReadFirst} />
      <${Beats} beats=${about.beats} />
      ${hierarchy.length > 0 && html`<${NullDots} values=${hierarchy} />`}
    </section>
    ${tree.whole && html`<section aria-labelledby="families">
      <h2 id="families">Families worth seeing</h2>
      <p class="hint">Chosen among ${count(about.n_edges)} edges because they read well: what a good family looks like, not how good the forest is. ${column ? `The mark at each child: its place among null pairs by “${column.title}”.` : ""}</p>
      ${about.families?.length ? html`<ul class="family-cards">${about.families.map((family) => html`<${FamilyCard} key=${family.parent} family=${family} />`)}</ul>` : html`<p class="state empty">No family has children that fired often enough. Index more text: <code>saeforest index RUN --tokens 1M</code></p>`}
    </section>`}
    <${Failing} />
    ${tree.whole && html`<section aria-labelledby="where">
      <h2 id="where">Where to go</h2>
      <ul class="ways">
        <li><a href=${to("tree")}>Tree</a> Every feature in a list to walk with the arrow keys, search and filter.</li>
        <li><a href=${to("families")}>Families</a> Every parent, with how many of its children beat chance: the best and the worst.</li>
        <li><a href=${to("edges")}>Edges</a> Any two properties of all edges against each other, with the null’s cloud behind.</li>
        ${!isStatic && html`<li><a href=${to("prompt")}>Prompt</a> Which paths of the forest are active on a text of yours.</li>`}
        ${canWrite() && html`<li><a href=${to("audit")}>Blind audit</a> Rate pairs without knowing which are edges of the tree, and see whether you can tell.</li>`}
        ${!(isStatic && lacking("training")) && html`<li><a href=${to("training")}>Training</a> Losses, dead features, reallocations.</li>`}
        ${!isStatic && html`<li><a href=${to("compare")}>Compare</a> This SAE with another one.</li>`}
      </ul>
    </section>`}
  </div>`;
}
