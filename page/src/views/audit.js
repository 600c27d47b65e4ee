// Blind audit: rate pairs without knowing which are edges of the tree and which are null pairs. The tally says whether the
// difference can be seen.
import { html, useEffect, useRef, useState } from "../html.js";
import { canWrite, lacking } from "../store.js";
import { transport } from "../transport.js";
import { percent, visible, visibleToken } from "../text.js";
import { Empty, Failure, FeatureLink, Lacking, Loading } from "../ui.js";
import { Contexts, useContextSwitches } from "../contexts.js";

const RATINGS = [["yes", "Yes", "y"], ["no", "No", "n"], ["unsure", "Unsure", "u"]];

function Tally({ tally }) {
  const sum = (row) => RATINGS.reduce((total, [key]) => total + (row?.[key] ?? 0), 0);
  const rows = [["edge", "Edges of the tree"], ["null", "Null pairs"]];
  if (!sum(tally.edge) && !sum(tally.null)) return html`<p class="hint">Nothing rated yet.</p>`;
  return html`<table class="plain"><caption>If edges and null pairs get the same ratings, the hierarchy cannot be seen in these contexts.</caption>
    <thead><tr><th scope="col">Pair was</th>${RATINGS.map(([key, title]) => html`<th scope="col" class="numeric" key=${key}>${title}</th>`)}<th scope="col" class="numeric">Share “yes”</th></tr></thead>
    <tbody>${rows.map(([key, title]) => html`<tr key=${key}><th scope="row">${title}</th>${RATINGS.map(([rating]) => html`<td class="numeric num" key=${rating}>${tally[key]?.[rating] ?? 0}</td>`)}<td class="numeric num">${sum(tally[key]) ? percent((tally[key].yes ?? 0) / sum(tally[key])) : "–"}</td></tr>`)}</tbody></table>`;
}

function Side({ title, feature, full, figures }) {
  return html`<section aria-label=${title}><h2>${title}</h2>
    <p class="apart">${(feature.tokens ?? []).map((token, place) => html`<code class="token" key=${place}>${visibleToken(token)}</code>`)}${feature.label && !feature.tokens?.length ? html`<bdi>${visible(feature.label)}</bdi>` : null}</p>
    <${Contexts} contexts=${feature.contexts ?? []} full=${full} figures=${figures} label=${`Contexts of the ${title.toLowerCase()}`} /></section>`;
}

export function AuditView() {
  const [pair, setPair] = useState({ state: "loading" });
  const [result, setResult] = useState(null);
  const [tally, setTally] = useState(null);
  const { full, figures, switches } = useContextSwitches();
  const fail = (error) => setPair({ state: "error", error });
  const next = () => {
    setResult(null);
    setPair({ state: "loading" });
    transport.send("POST", "blind/next", {}).then((value) => setPair({ state: "ready", value }), fail);
  };
  const count = () => transport.get("blind/tally").then(setTally, () => {});
  useEffect(() => {
    if (!canWrite() || lacking("nulls")) return;
    next();
    count();
  }, []);
  const rate = (rating) => {
    if (pair.state !== "ready" || result) return;
    setResult({ rating });
    transport.send("POST", "blind/rate", { id: pair.value.id, rating }).then((answer) => {
      setResult({ rating, ...answer });
      count();
    }, fail);
  };
  const now = useRef(null);
  now.current = { rate, next, told: Boolean(result?.was) }; // a key pressed at once meets what is shown
  useEffect(() => {
    const keys = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=checkbox]), textarea, select")) return;
      const found = RATINGS.find(([, , key]) => key === event.key);
      if (found) now.current.rate(found[0]);
      else if (event.key === "x" && now.current.told) now.current.next();
    };
    document.addEventListener("keydown", keys);
    return () => document.removeEventListener("keydown", keys);
  }, []);
  if (!canWrite()) return html`<div class="wide"><h1>Blind audit</h1><${Empty}>An export cannot be rated. <code>saeforest explore RUN</code> keeps ratings in the run.</${Empty}></div>`;
  if (lacking("nulls")) return html`<div class="wide"><h1>Blind audit</h1><${Lacking} text=${lacking("nulls")} /></div>`;
  return html`<div class="wide audit-view">
    <div class="head"><h1>Blind audit</h1><p class="hint">Is the right one a special case of the left? Half of the pairs are edges of the tree, half are null pairs: parents shuffled within the layer among features that fire as often. You are told which after rating.</p>${switches}</div>
    ${pair.state === "loading" && html`<${Loading} what="Choosing a pair" />`}
    ${pair.state === "error" && html`<${Failure} error=${pair.error} what="No pair to rate." /><button type="button" onClick=${next}>Try again</button>`}
    ${pair.state === "ready" && html`
      <div class="rating-bar"><span>Does this pair make sense as parent and child?</span>
        <span class="choice" role="group" aria-label="Rating">${RATINGS.map(([key, title, letter]) => html`<button type="button" key=${key} aria-pressed=${result?.rating === key} disabled=${Boolean(result)} onClick=${() => rate(key)}>${title} <kbd>${letter}</kbd></button>`)}</span>
        <span role="status" class="verdict">${result?.was && html`It was <strong>${result.was === "edge" ? "an edge of the tree" : "a null pair"}</strong>${result.parent !== undefined && result.parent !== null ? html`: <${FeatureLink} id=${result.parent} /> → <${FeatureLink} id=${result.child} />` : ""}.`}</span>
        ${result?.was && html`<button type="button" class="primary" onClick=${next}>Next <kbd>x</kbd></button>`}</div>
      <div class="columns-even"><${Side} title="Parent" feature=${pair.value.parent} full=${full} figures=${figures} /><${Side} title="Child" feature=${pair.value.child} full=${full} figures=${figures} /></div>`}
    <section aria-labelledby="tally"><h2 id="tally">Your tally</h2>${tally ? html`<${Tally} tally=${tally} />` : html`<p class="hint">Nothing rated yet.</p>`}</section></div>`;
}
