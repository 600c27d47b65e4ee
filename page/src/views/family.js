// A parent with its children: its contexts colored by which child fires, what is left to the parent alone, and how the
// children divide it.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import { query, route, to } from "../route.js";
import { ask, forest, forget, lacking, overview, said, useAsk } from "../store.js";
import { array, isStatic } from "../transport.js";
import { count, percent, percentBy, plural, visible, visibleToken } from "../text.js";
import { Answer, Bar, EdgeNumber, FeatureLink, Failure, ForcedTag, Loading } from "../ui.js";
import { ChildKey, Contexts, Swatch, childMarks, useContextSwitches } from "../contexts.js";
import { Term } from "../term.js";
import { FeatureHead } from "./feature.js";

/** Scrolls to a section of this page, whose address names only the view. */
const scrollTo = (id) => document.getElementById(id)?.scrollIntoView({ block: "start" });

function Children({ kids, marks, chosen }) {
  const tree = forest.value;
  const column = tree.telling;
  const given = tree.column("p_child");
  // Of a child that fires under its parent, while its own detector is on mostly without it.
  const elsewhere = (id) => column?.name === "ungated" && tree.value("ungated", id) < 0.5;
  return html`<table class="plain children"><thead><tr><th scope="col">Child</th><th scope="col">Tokens that set it apart</th><th scope="col">P(child | parent)${given && html`<${ForcedTag} column=${given} />`}</th>${column && html`<th scope="col"><${Term} word=${column.name} text=${column.description}>${column.title}</${Term}>, and how many <${Term} word="null">null pairs</${Term}> it beats</th>`}</tr></thead>
    <tbody>${kids.map((kid) => html`<tr key=${kid.id} class=${chosen === kid.id ? "selected" : ""}>
      <th scope="row"><button type="button" class="only" aria-pressed=${chosen === kid.id} title="Only contexts with this child" onClick=${() => query({ child: chosen === kid.id ? null : kid.id })}><${Swatch} kid=${marks.get(kid.id)} /><span class="sr"> only contexts of child ${kid.id}</span></button> <${FeatureLink} id=${kid.id} label=${kid.label} /></th>
      <td class="apart">${(kid.distinguishes ?? []).map((token, place) => html`<code class="token" key=${place}>${visibleToken(token)}</code>`)}</td>
      <td class=${given?.mechanical ? "forced" : ""}><${Bar} value=${kid.p_child} text=${percent(kid.p_child)} /></td>
      ${column && html`<td><${EdgeNumber} column=${column} id=${kid.id} bounds=${[0.5]} />${elsewhere(kid.id) && html`<button type="button" class="elsewhere" title="Show where this child’s own detector is on without the parent" onClick=${() => (query({ child: kid.id }), scrollTo("ungated"))}>mostly without the parent: where?</button>`}</td>`}</tr>`)}</tbody></table>`;
}

/** A share below 1 in three characters. */
const short = (share) => (share < 0.005 ? "0" : share > 0.995 ? "1" : share.toFixed(2).slice(1));

/** The overlap of two children over what chance gives; a triangle where chance rarely gives one so large or so small. */
function Cell({ value, expected, place }) {
  if (place !== undefined && !Number.isFinite(place)) return html`<td class="num" title="One of the two fires on none of the tokens read: there is no overlap to speak of">–</td>`;
  const known = place !== undefined;
  const sign = !known ? "" : place > 0.975 ? "▴" : place < 0.025 ? "▾" : "";
  const words = known ? `${value.toFixed(3)}, on average by chance ${expected.toFixed(3)}; chance gives a smaller overlap with probability ${percentBy(place, [0.025, 0.975])} (ties count half)` : value.toFixed(3);
  return html`<td class=${`num heat h${Math.min(5, Math.ceil(value * 10))}`} title=${words}>${short(value)}${sign && html`<span class=${`sign ${sign === "▴" ? "more" : "less"}`}>${sign}</span>`}${known && html`<small>${short(expected)}</small>`}</td>`;
}

function Overlap({ overlap, marks, asking }) {
  const [values, expected, places] = [array(overlap?.matrix), array(overlap?.expected), array(overlap?.place)];
  const ids = overlap?.ids ?? [];
  const title = html`<${Asked} asking=${asking} id="overlap">Sibling overlap</${Asked}>`;
  if (!values && asking.offered) {
    return html`<section aria-labelledby="overlap">${title}
      <${RunModel} asking=${asking} from="overlap">How often children fire on the same tokens, beside what chance gives</${RunModel}></section>`;
  }
  if (!values || ids.length < 2) return null;
  const n = ids.length;
  const shown = ids.slice(0, 16);
  const swatch = (id) => html`<${Swatch} kid=${marks.get(id)} />`;
  return html`<section aria-labelledby="overlap">${title}
    <p class="hint">Of the tokens on which either of two children fires, the share on which both do (Jaccard; .12 is 12%). Below it, small: the average by chance, if each fired as often as it does on any of the parent’s tokens. A mark stands only where luck hardly explains the difference: <span class="sign less">▾</span> chance gives so small an overlap less than 2.5% of the time, so the two divide their parent’s meaning; <span class="sign more">▴</span> so large a one less than 2.5% of the time, so they share it. Of children that fire on few of the tokens read, even numbers far apart may be luck, and have no mark. –: one of the two fires on none of these tokens.${n > shown.length ? ` The first ${shown.length} of ${n}.` : ""}</p>
    <div class="scroll-x" tabindex="0" role="region" aria-label="Overlap of siblings"><table class="matrix"><thead><tr><td></td>${shown.map((id) => html`<th scope="col" key=${id}>${swatch(id)}</th>`)}</tr></thead>
      <tbody>${shown.map((id, i) => html`<tr key=${id}><th scope="row">${swatch(id)}</th>
        ${shown.map((other, j) => (i === j ? html`<td key=${other}></td>` : html`<${Cell} key=${other} value=${values[i * n + j]} expected=${expected?.[i * n + j]} place=${places?.[i * n + j]} />`))}</tr>`)}</tbody></table></div></section>`;
}

/** Whether the model has read its part of the text for this page: from then on an answer takes no waiting. */
let hasRead = false;

/** What only the model can say about a family: asked for by the reader, since it takes seconds; at once when it has read. */
function useModel(family, id) {
  const shown = useRef(true);
  const [answer, setAnswer] = useState({ state: "none" });
  const empty = !family.overlap && !family.ungated?.length;
  const live = !isStatic && overview.value?.static !== true && overview.value?.has?.prompt === true;
  const run = (from) => {
    setAnswer({ state: "loading", from });
    ask(`ungated/${id}`).then(
      (value) => {
        forget(`family/${id}`); // the server's family holds the answer from now on
        hasRead = true;
        if (!shown.current) return; // the reader has gone on
        if (from) said.value = `The model has run: where the children of ${id} would fire without the gate, and their overlap.`;
        setAnswer({ state: "ready", from, value });
      },
      (error) => setAnswer({ state: "error", from, error }),
    );
  };
  useEffect(() => {
    shown.current = true;
    if (hasRead && empty && live && !lacking("prompt")) run(null);
    return () => void (shown.current = false);
  }, [id]);
  return { ...answer, run, empty, offered: empty && live && answer.state !== "ready" };
}

/** A heading that takes the focus when the model has answered a button below it, which is gone then. */
function Asked({ asking, id, children }) {
  const heading = useRef(null);
  useLayoutEffect(() => {
    if (asking.state === "ready" && asking.from === id && [document.body, null].includes(document.activeElement)) heading.current.focus({ preventScroll: true });
  }, [asking.state]);
  return html`<h2 id=${id} ref=${heading} tabindex="-1">${children}</h2>`;
}

function RunModel({ asking, from, children }) {
  if (asking.state === "loading") return html`<${Loading} what="The model reads a part of the indexed text" />`;
  return html`${asking.state === "error" && html`<${Failure} error=${asking.error} what="The model was not run." />`}
    <p class="state empty">${children}: the language model has to read about 8,000 tokens, once. A model of 135M parameters takes about 10 seconds of processor time for it, a larger one longer; families after the first are answered at once. <button type="button" class="primary" onClick=${() => asking.run(from)}>${asking.state === "error" ? "Run the model again" : "Run the model"}</button></p>`;
}

function Ungated({ entries, n_tokens, asking, marks, chosen, switches: { full, figures } }) {
  const tree = forest.value;
  const shown = entries.filter((entry) => chosen === null || entry.child === chosen);
  const [somewhere, nowhere] = [shown.filter(({ contexts }) => contexts?.length), shown.filter(({ contexts }) => !contexts?.length)];
  const column = tree.column("ungated");
  const key = ({ child }) => html`<${ChildKey} kid=${marks.get(child) ?? { id: child, color: 0, kind: 0, mark: "" }} /> ${column && html`<${EdgeNumber} column=${column} id=${child} />`}`;
  const why = isStatic || overview.value?.static === true ? "Not in this export: it was not asked for before the file was made. “Run the model” on the live page, then save the family." : lacking("prompt");
  const nothing = asking.state === "ready" || entries.length ? "This child was not looked for: a large family is asked for its most frequent children." : why ? visible(why) : "Not in this index, or this forest has no gate.";
  return html`<section aria-labelledby="ungated"><${Asked} asking=${asking} id="ungated">Without the gate</${Asked}>
    <p class="hint">Where each child’s <${Term} word="detector">own detector</${Term}> would fire with its parent silent. A child that belongs to its parent has few such places: tokens are marked where its detector is on; “Coverage without the gate” counts them against the null.${n_tokens ? ` Looked for in ${count(n_tokens)} tokens of the indexed text.` : ""}</p>
    ${somewhere.map((entry) => html`<div key=${entry.child}><h3>${key(entry)}</h3>
      <${Contexts} contexts=${entry.contexts.slice(0, 4)} max=${tree.max[entry.child]} full=${full} figures=${figures} label=${`Where child ${entry.child} would fire`} /></div>`)}
    ${nowhere.length > 0 && html`<h3>${somewhere.length ? "The others nowhere" : "Nowhere"} in the sample</h3><ul class="kin columns nowhere">${nowhere.map((entry) => html`<li key=${entry.child}>${key(entry)}</li>`)}</ul>`}
    ${asking.offered ? html`<${RunModel} asking=${asking} from="ungated">Where else the children would fire</${RunModel}>` : !shown.length && html`<p class="state empty">${nothing}</p>`}</section>`;
}

/** On how many of its tokens a parent fires without any child, as far as how often each of them fires tells. */
function left(kids) {
  const shares = kids.map(({ p_child: share }) => share ?? 0);
  const most = 1 - Math.max(...shares);
  const least = Math.max(0, 1 - shares.reduce((sum, share) => sum + share, 0));
  if (kids.length === 1) return `The parent fires without its child on ${percent(most)} of its tokens.`;
  return `The parent fires alone on at least ${percent(least)} of its tokens (if no two children ever fire together) and at most ${percent(most)} (if all fire where the most frequent does): the index counts each child by itself, and not where none fires.`;
}

function Family({ family, id }) {
  const tree = forest.value;
  const { full, figures, switches } = useContextSwitches();
  const kids = family.children ?? [];
  const marks = useMemo(() => childMarks(kids.map((kid) => kid.id)), [family]);
  const given = Number(route.value.query.get("child") ?? -1);
  const chosen = marks.has(given) ? given : null;
  const all = family.contexts ?? [];
  const contexts = chosen === null ? all : all.filter((context) => context.child?.includes(chosen));
  const asking = useModel(family, id);
  const judged = useMemo(() => tree.telling && tree.families(tree.telling).find(({ parent }) => parent === id), [tree, id]);
  const max = tree.max[id];
  if (!kids.length) return html`<p class="state empty">This feature has ${tree.kids(id).length ? `${plural(tree.kids(id).length, "child", "children")}, but none fired on the indexed text` : "no children"}. <a href=${to("feature", id)}>Its own page</a> shows its contexts.</p>`;
  return html`
    <section aria-labelledby="children"><h2 id="children">${plural(kids.length, "child", "children")}</h2>
      <p class="hint">The letter and color of a child mark it below; where the parent fires alone, the text is gray. P(child | parent): how often the child is active where its parent is.${tree.telling?.name === "ungated" ? html` With the gate, a child is active only with its parent; coverage without the gate asks whether it would be so by itself, where its <${Term} word="detector">own detector</${Term}> is on. So a child may be active under its parent here and still have 0%: its detector is on elsewhere.` : ""}${judged ? html` By “${tree.telling.title}”, ${judged.beat} of ${judged.n} judged children beat 95% of <${Term} word="null">null pairs</${Term}> (by chance 5% do); the middle one beats ${percentBy(judged.middle)}.` : ""}</p>
      <${Children} kids=${kids} marks=${marks} chosen=${chosen} /></section>
    <section aria-labelledby="contexts"><div class="head"><h2 id="contexts">The parent’s contexts, by which child fires</h2>${switches}</div>
      <p class="hint">First the strongest, then a few from each part of the range of strengths: strong contexts are here far more often than in the text, so their number says nothing of how often a child fires; P(child | parent) does.</p>
      ${chosen !== null && html`<p class="hint">Only contexts in which <${FeatureLink} id=${chosen} /> fires. <a href=${to("family", id)}>Show all</a></p>`}
      ${contexts.length ? html`<${Contexts} contexts=${contexts} max=${max} kids=${marks} full=${full} figures=${figures} label="Contexts of the parent" />` : html`<p class="state empty">No stored context has this child.</p>`}</section>
    <div class="columns-even">
      <section aria-labelledby="residue"><h2 id="residue">Residue: only the parent fires</h2>
        <p class="hint">What the children leave over: a family that divides its parent well leaves little. ${left(kids)} Marked is only the token on which the parent fires alone.</p>
        ${family.residue?.length ? html`<${Contexts} contexts=${family.residue} max=${max} full=${true} alone=${true} figures=${figures} label="Contexts where only the parent fires" />` : html`<p class="state empty">Some child fires in every stored context.</p>`}</section>
      <${Overlap} overlap=${family.overlap ?? asking.value?.overlap} marks=${marks} asking=${asking} />
    </div>
    <${Ungated} entries=${asking.value?.ungated ?? family.ungated ?? []} n_tokens=${asking.value?.n_tokens ?? family.n_tokens} asking=${asking} marks=${marks} chosen=${chosen} switches=${{ full, figures }} />`;
}

export function FamilyView({ id }) {
  const answer = useAsk(`family/${id}`);
  return html`<div class="wide family-view"><${FeatureHead} id=${id} view="family" />
    <${Answer} answer=${answer} what="The family">${(family) => html`<${Family} key=${id} family=${family} id=${id} />`}</${Answer}></div>`;
}
