// Two SAEs side by side: both forests as lists, features matched by the cosine of their decoder rows.
import { useSignal } from "@preact/signals";
import { html, useLayoutEffect, useMemo } from "../html.js";
import { go, query, route, to } from "../route.js";
import { overview, useAsk } from "../store.js";
import { isStatic } from "../transport.js";
import { count, percent, plural, visible } from "../text.js";
import { Answer, Bar, Empty, Failure, Loading, Select } from "../ui.js";
import { TreeList, openText, readOpen, toggled, withOpen } from "../treelist.js";
import { visibleRows } from "../rows.js";
import { SHOWN, keptBy, sidesOf } from "../comparison.js";
import { Links } from "../charts/links.js";
import { EdgeState, Pair } from "./pair.js";

/** A share of one SAE that the other has too, beside what chance gives. */
function Share({ value, chance, n, what }) {
  if (value === null || value === undefined) return html`<td class="muted">– <small>no ${what} to compare</small></td>`;
  const { value: by, interval } = typeof chance === "number" ? { value: chance } : chance;
  return html`<td><${Bar} value=${value} tick=${by} text=${percent(value)} /> <small class="num">of ${plural(n, what)}</small>
    <small class="null-number num">by chance ${percent(by)}${interval ? ` (${percent(interval[0])} to ${percent(interval[1])})` : ""}</small></td>`;
}

function Summary({ here, there, missing, least, onLeast }) {
  const rows = here.measures.map((of, place) => [of.threshold, of, there.measures[place]]);
  const share = (of) => html`<${Share} value=${of.matched} chance=${of.matched_chance} n=${of.n_features} what="feature" />`;
  const kept = (of) => html`<${Share} value=${of.kept} chance=${of.kept_chance} n=${of.n_both} what="edge" />`;
  return html`<div class="scroll-x" tabindex="0" role="region" aria-label="How much is shared"><table class="plain shares">
    <thead><tr><th scope="col">Cosine from</th><th scope="col">Features here with a match there</th><th scope="col">Features there with a match here</th><th scope="col">Edges here, kept there</th><th scope="col">Edges there, kept here</th></tr></thead>
    <tbody>${rows.map(([from, own, other]) => html`<tr key=${from} class=${from === least ? "selected" : ""}><th scope="row"><button type="button" aria-pressed=${from === least} title="What counts as a match below" onClick=${() => onLeast(from)}>${from.toFixed(1)}</button></th>
      ${share(own)}${share(other)}${kept(own)}${kept(other)}</tr>`)}</tbody></table></div>
    <p class="hint shares-words">Features: those that fire${missing === null ? "" : " (of the other SAE all, as it has no index)"}; by chance, their nearest among random directions that vary as the other’s decoder rows do. Edges: those with both ends matched; kept, if the parent’s match is the parent of the match; by chance, with the other forest’s parents shuffled within their layer.</p>`;
}

/** The state of one list in the address. */
function useList(side, { keep, opened }) {
  const view = useSignal({ top: 0, height: 400 });
  const { rows, n } = useMemo(() => visibleRows(side.tree, { ...opened, keep, sort: "density" }), [side, opened, keep]);
  const places = useMemo(() => new Map(rows.map((row, place) => [row.id, place])), [rows]);
  return { rows, n, places, view };
}

const KEYS = { here: ["open", "at"], there: ["open2", "there"] };

function Sides({ value, other }) {
  const { query: state } = route.value;
  const { here, there, missing } = useMemo(() => sidesOf(value, overview.value?.title ?? ""), [value]);
  const thresholds = here.measures.map(({ threshold }) => threshold);
  const least = thresholds.includes(Number(state.get("min"))) ? Number(state.get("min")) : value.threshold;
  const [show, q] = [state.get("show") ?? "", state.get("q") ?? ""];
  const keep = useMemo(() => ({ here: keptBy(here, { show, q, least }), there: keptBy(there, { show, q, least }) }), [here, show, q, least]);
  const opened = { here: useMemo(() => readOpen(state.get("open")), [state.get("open")]), there: useMemo(() => readOpen(state.get("open2")), [state.get("open2")]) };
  const lists = { here: useList(here, { keep: keep.here, opened: opened.here }), there: useList(there, { keep: keep.there, opened: opened.there }) };

  const side = state.has("there") ? there : here;
  const given = state.get(KEYS[side.key][1]);
  const id = given !== null && side.tree.has(Number(given)) ? Number(given) : null;
  const chosen = id === null ? { here: null, there: null } : { [side.key]: id, [side.other.key]: side.match[id] };
  const choose = (key, id, { byKey = false } = {}) => query({ at: null, there: null, [KEYS[key][1]]: id }, { replace: byKey });
  // What is chosen is shown on both sides: the way to it is opened.
  useLayoutEffect(() => {
    if (id === null) return;
    const change = {};
    for (const { key, tree } of [here, there]) {
      if (keep[key] || lists[key].places.has(chosen[key])) continue;
      change[KEYS[key][0]] = openText(withOpen(opened[key], tree.path(chosen[key]).slice(0, -1)));
    }
    if (Object.keys(change).length) query(change, { replace: true });
  }, [id, side, keep, lists.here.places, lists.there.places]);

  // A line for each match of which both ends have a row.
  const pairs = useMemo(() => lists.here.rows.flatMap(({ id: a }) => {
    const b = here.match[a];
    return here.matched(a, least) && lists.there.places.has(b) ? [{ a, b, kind: here.state(a, least) }] : [];
  }), [here, least, lists.here.rows, lists.there.places]);

  const list = (which) => {
    const { key, tree, match, cos } = which;
    const at = lists[key].places.has(chosen[key]) ? chosen[key] : null;
    const cells = ({ id }) => html`<span class="match num">${which.matched(id, least) ? html`<span class="muted">${key === "here" ? "→" : "←"}</span> ${match[id]}` : html`<span class="muted">–</span>`}</span>
      <span class=${`cosine${which.matched(id, least) ? "" : " muted"}`}><${Bar} value=${cos[id]} text=${cos[id].toFixed(2)} /></span>
      <span class="state-cell"><${EdgeState} state=${which.state(id, least)} /></span>`;
    const title = key === "here" ? "This SAE" : "The other SAE";
    return html`<div class="side"><h2>${title}: <bdi>${visible(which.title)}</bdi> <span class="tally" role="status">${keep[key] ? `${plural(lists[key].n, "feature")} of ${count(tree.ids.length)}` : plural(tree.ids.length, "feature")}</span></h2>
      <${TreeList} tree=${tree} rows=${lists[key].rows} at=${at} wanted=${chosen[key]} label=${`Features ${key}`} prefix=${key} cells=${cells}
        name=${(id) => (which.name(id) ? html`<bdi>${visible(which.name(id))}</bdi>` : html`<span class="muted">${tree.dead[id] ? "never fired" : "no label"}</span>`)}
        kindOf=${(id) => (id === chosen[key] && key !== side.key ? (side.matched(chosen[side.key], least) ? "mate" : "mate unsure") : null)}
        head=${html`<span class="match">match</span><span class="cosine">cosine</span><span class="state-cell">edge above</span>`}
        onPick=${(id, how) => choose(key, id, how)} onToggle=${(id) => query({ at: null, there: null, [KEYS[key][1]]: id, [KEYS[key][0]]: openText(toggled(opened[key], id)) }, { replace: true })}
        onOpen=${key === "here" ? (id) => go(to("feature", id)) : null} onJump=${() => document.querySelector(`[aria-label="Features ${which.other.key}"]`)?.focus()}
        onTop=${(top, height) => (lists[key].view.value = { top, height })} />
      ${lists[key].rows.length === 0 && html`<p class="state empty">No feature matches these filters.</p>`}</div>`;
  };
  const hidden = id !== null && (keep.here || keep.there) && [here, there].some(({ key }) => !lists[key].places.has(chosen[key]));
  return html`<${Summary} here=${here} there=${there} missing=${missing} least=${least} onLeast=${(min) => query({ min: min === value.threshold ? null : min })} />
    <div class="tools">
      <${Select} label="Show" value=${show} options=${SHOWN} onChoose=${(show) => query({ show })} />
      <label class="field"><span>Label</span><input type="search" value=${q} onInput=${(event) => query({ q: event.currentTarget.value }, { replace: true })} placeholder="find on both sides" /></label>
      ${hidden && html`<span class="hint" role="status">The filter hides a part of the chosen pair.</span>`}
    </div>
    <div class="sides">${list(here)}<div class="between"><${Links} sides=${[lists.here, lists.there]} pairs=${pairs} chosen=${id === null ? null : { a: chosen.here, b: chosen.there, sure: side.matched(id, least) }} /></div>${list(there)}</div>
    ${id === null ? html`<p class="hint">Choose a feature on either side: its match is shown on the other. Arrow keys walk, <kbd>m</kbd> goes over to the match, <kbd>Enter</kbd> opens the page of a feature of this SAE.</p>`
      : html`<${Pair} here=${here} there=${there} side=${side} id=${id} least=${least} missing=${missing} onChoose=${choose} />`}`;
}

/** What to do where there is nothing to compare with. */
const Second = () => html`<ol class="steps">
  <li>Train another SAE on the same model and site: with another seed, longer, or of another system.<br /><code>saeforest train --config RUN/config.yaml --seed 1 --out RUN-seed1</code></li>
  <li>Index it, so that its labels and texts are shown too.<br /><code>saeforest index RUN-seed1</code></li>
  <li>Stop this explorer, and start it again with both.<br /><code>saeforest explore RUN --compare RUN-seed1</code></li></ol>`;

export function CompareView() {
  const other = route.value.query.get("other") ?? "";
  const offered = useAsk(isStatic ? null : "compare");
  const answer = useAsk(other && !isStatic ? `compare?${new URLSearchParams({ other })}` : null);
  const runs = offered.value?.runs ?? [];
  const names = [...(runs.includes(other) ? [] : [[other, other || "choose an SAE"]]), ...runs.map((name) => [name, name])];
  const head = html`<div class="head"><h1>Compare</h1>${runs.length > 0 && html`<${Select} label="with" value=${other} options=${names} onChoose=${(name) => go(to("compare", null, { other: name }))} />`}
    <p class="hint">Features are matched by the cosine of their decoder rows.</p></div>`;
  if (isStatic) return html`<div class="wide">${head}<${Empty}>An export holds one SAE. <code>saeforest explore RUN</code> compares.</${Empty}></div>`;
  return html`<div class="wide compare-view">${head}
    ${offered.state === "loading" && html`<${Loading} what="Loading the SAEs to compare with" />`}
    ${offered.state === "error" && html`<${Failure} error=${offered.error} what="The SAEs to compare with could not be listed." />`}
    ${other ? html`<${Answer} answer=${answer} what="The comparison">${(value) => html`<${Sides} key=${other} value=${value} other=${other} />`}</${Answer}>`
      : offered.state === "ready" && html`<${Empty}>${runs.length ? "Choose an SAE above, trained on the same model and site." : "No other SAE is at hand."} A second seed shows which features and edges come back.</${Empty}>${runs.length === 0 && html`<${Second} />`}`}</div>`;
}
