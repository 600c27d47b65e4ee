// What this SAE is, how much of its hierarchy beats chance, the whole in one picture, and where to go.
import { html } from "../html.js";
import { to } from "../route.js";
import { forest, lacking, overview } from "../store.js";
import { count, measure, percent, plural, visible } from "../text.js";
import { FeatureLink, Gauge, Lacking } from "../ui.js";
import { Icicle, Legend } from "../charts/icicle.js";
import { NullDots } from "../charts/dots.js";

const intervalOf = (interval) => (interval ? `${measure(interval[0])} to ${measure(interval[1])}` : null);

function Fact({ term, children, note }) {
  return html`<div class="fact"><dt>${term}</dt><dd>${children}${note && html`<small>${note}</small>`}</dd></div>`;
}

function Values({ values }) {
  const fit = values.filter((value) => !value.null);
  if (!fit.length) return html`<p class="hint lead-hint">No measures yet. <code>saeforest eval RUN</code> takes them: how well it reconstructs, how sparse it is, and its hierarchy beside the nulls.</p>`;
  return html`<dl class="facts">${fit.map(
    (value) => html`<${Fact} key=${value.name} term=${value.title} note=${value.interval && `95%: ${intervalOf(value.interval)}`}>
      <span class="num" title=${value.description}>${value.name === "dead.dead_share" ? percent(value.value) : measure(value.value)}</span></${Fact}>`,
  )}</dl>`;
}

function Beats({ beats }) {
  if (!beats?.length) return html`<${Lacking} text=${lacking("nulls") ?? "The edges have no null yet; `saeforest index RUN` makes it with the index."} />`;
  return html`<table class="plain beats">
    <caption>Of all edges, how many exceed 95% of null pairs: parents shuffled within their layer, among features that fire as often. By chance: 5%.</caption>
    <thead><tr><th scope="col">Edge column</th><th scope="col">Edges above the null’s top 5%</th><th scope="col" class="numeric" title="Probability that an edge of the tree exceeds a null pair; 0.5 is chance">AUC</th></tr></thead>
    <tbody>${beats.map((beat) => {
      const column = forest.value.column(beat.column);
      const mechanical = column?.mechanical;
      return html`<tr key=${beat.column} class=${mechanical ? "forced" : ""}>
        <th scope="row"><a href=${to("edges", null, { x: beat.column })} title=${column?.description}>${beat.title ?? column?.title ?? beat.column}</a>${mechanical && html` <span class="tag warn">forced by the gate</span>`}</th>
        <td><span class="bar wide" role="img" aria-label=${`${percent(beat.share)}, by chance ${percent(beat.chance ?? 0.05)}`}><span class="bar-track" aria-hidden="true"><span class="bar-fill" style=${{ width: `${beat.share * 100}%` }}></span><span class="bar-tick" style=${{ left: `${(beat.chance ?? 0.05) * 100}%` }}></span></span><span class="num">${percent(beat.share)}</span></span></td>
        <td class="numeric num">${beat.auc === null || beat.auc === undefined ? "–" : beat.auc.toFixed(2)}</td></tr>`;
    })}</tbody></table>`;
}

function FamilyCard({ family }) {
  const tree = forest.value;
  const column = tree.telling;
  const kids = tree.kids(family.parent).slice(0, 5);
  return html`<li class="family-card">
    <h3><${FeatureLink} id=${family.parent} label=${family.label} view="family" /></h3>
    <ul>${kids.map(
      (id) => html`<li key=${id}><${FeatureLink} id=${id} />${column && html`<${Gauge} place=${tree.place(column.name, id)} mechanical=${column.mechanical} />`}</li>`,
    )}</ul>
    <p class="hint">${family.n_children > kids.length ? `and ${plural(family.n_children - kids.length, "more child", "more children")}. ` : ""}${visible(family.why ?? "")}</p>
  </li>`;
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
      <p class="intro">${visible(about.system ?? "An SAE")} with ${plural(about.n_features, "feature")} in ${plural(layers.length, "layer")} (${layers.map(count).join(", ")}), on <code>${visible(about.site)}</code> of <strong>${visible(about.model)}</strong>. ${origin}</p>
      <dl class="facts">
        <${Fact} term="Alive" note=${`of ${count(about.n_features)} features`}><span class="num">${count(about.n_alive)}</span></${Fact}>
        <${Fact} term="Edges" note=${about.n_judged === undefined ? "parent and child" : `${count(about.n_judged)} fired often enough to judge`}><span class="num">${count(about.n_edges)}</span></${Fact}>
        <${Fact} term="Roots"><span class="num">${count(about.n_roots)}</span></${Fact}>
        <${Fact} term="Indexed tokens"><span class="num">${count(about.n_tokens)}</span></${Fact}>
      </dl>
      <${Values} values=${about.values ?? []} />
    </section>
    <section aria-labelledby="whole">
      <div class="head"><h2 id="whole">The whole forest</h2><a href=${to("map")}>Open the map</a></div>
      <a class="thumb" href=${to("map")} aria-label="Open the forest map"><${Icicle} root=${-1} color=${color} height=${250} still=${true} /></a>
      <${Legend} color=${color} />
      <p class="hint">Each bar is a feature, its children to its right.${column ? " A root has no edge and no color." : ""}</p>
    </section></div>
    <section aria-labelledby="real">
      <h2 id="real">Is the hierarchy real?</h2>
      <p class="hint">A number about a hierarchy says nothing by itself: an untrained tree scores high on many. Each stands beside what chance gives.</p>
      <${Beats} beats=${about.beats} />
      ${hierarchy.length > 0 && html`<${NullDots} values=${hierarchy} />`}
    </section>
    <section aria-labelledby="families">
      <h2 id="families">Families worth seeing</h2>
      <p class="hint">Chosen among ${count(about.n_edges)} edges because they read well: what a good family looks like, not how good the forest is. ${column ? `The mark at each child: its place among null pairs by “${column.title}”.` : ""}</p>
      ${about.families?.length ? html`<ul class="family-cards">${about.families.map((family) => html`<${FamilyCard} key=${family.parent} family=${family} />`)}</ul>` : html`<p class="state empty">No family has children that fired often enough. Index more text: <code>saeforest index RUN --tokens 1M</code></p>`}
    </section>
    <section aria-labelledby="where">
      <h2 id="where">Where to go</h2>
      <ul class="ways">
        <li><a href=${to("tree")}>Tree</a> Every feature in a list to walk with the arrow keys, search and filter.</li>
        <li><a href=${to("edges")}>Edges</a> Any two properties of all edges against each other, with the null’s cloud behind.</li>
        <li><a href=${to("prompt")}>Prompt</a> Which paths of the forest are active on a text of yours.</li>
        <li><a href=${to("audit")}>Blind audit</a> Rate pairs without knowing which are edges of the tree, and see whether you can tell.</li>
        <li><a href=${to("training")}>Training</a> Losses, dead features, reallocations. <a href=${to("compare")}>Compare</a> with another SAE.</li>
      </ul>
    </section>
  </div>`;
}
