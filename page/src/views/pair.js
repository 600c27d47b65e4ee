// A feature and its match in another SAE: how parents and children map over, and what both fire on.
import { html } from "../html.js";
import { to } from "../route.js";
import { useAsk } from "../store.js";
import { number, percent, plural, visible } from "../text.js";
import { Answer, Lacking } from "../ui.js";
import { Contexts } from "../contexts.js";
import { STATES } from "../comparison.js";

const MOST = 24;

export function EdgeState({ state }) {
  const [sign, word, meaning] = STATES[state];
  return html`<span class=${`edge-state ${state}`} title=${meaning}><span aria-hidden="true">${sign}</span> ${word}</span>`;
}

/** A feature of either side: here a link to its page, there a button that chooses it. */
function Name({ side, id, onChoose }) {
  const text = side.name(id);
  return html`<button type="button" class="plain-button feature-link" onClick=${() => onChoose(side.key, id)}><span class="id num">${id}</span> ${text ? html`<bdi class="label">${visible(text)}</bdi>` : html`<span class="label muted">${side.tree.dead[id] ? "never fired" : "no label"}</span>`}</button>`;
}

/** The parent and the children of a feature, each with its match and where that is in the other forest. */
function Mapping({ side, id, least, onChoose }) {
  const { tree, other } = side;
  const mate = side.match[id];
  const parent = tree.parent[id];
  const kids = tree.kids(id);
  const theirs = other.key === "here" ? "here" : "there";
  const row = (relative, what, state, under) => {
    const match = side.match[relative];
    const sure = side.matched(relative, least);
    const above = other.tree.parent[under];
    return html`<tr key=${relative}><td class="muted">${what}</td><th scope="row"><${Name} side=${side} id=${relative} onChoose=${onChoose} /></th>
      <td class=${sure ? "" : "muted"}>${sure ? html`<${Name} side=${other} id=${match} onChoose=${onChoose} />` : html`none; the nearest is ${match}`}</td><td class="numeric num">${number(side.cos[relative])}</td>
      <td><${EdgeState} state=${state} />${state === "elsewhere" && html` <span class="muted">${above < 0 ? `a root ${theirs}` : html`${theirs} under <${Name} side=${other} id=${above} onChoose=${onChoose} />`}</span>`}</td></tr>`;
  };
  const own = kids.filter((kid) => side.state(kid, least) === "kept").length;
  const chance = kids.reduce((sum, kid) => sum + (side.state(kid, least) === "kept" || side.state(kid, least) === "elsewhere" ? side.chance[kid] : 0), 0);
  const title = `${side.key === "here" ? "This SAE" : "The other SAE"}: ${id}`;
  return html`<section aria-label=${title}><h3>${title} <bdi>${visible(side.name(id) ?? "")}</bdi></h3>
    <p class="hint">${kids.length ? `${plural(kids.length, "child", "children")}, of which ${own} ${own === 1 ? "is" : "are"} under ${mate} ${theirs} too; with the parents ${theirs} shuffled, ${number(Number(chance.toPrecision(2)))} would be.` : "No children."}</p>
    ${parent >= 0 || kids.length ? html`<div class="scroll-x" tabindex="0" role="region" aria-label=${`Parent and children of ${id}`}><table class="plain mapping"><thead><tr><th scope="col"><span class="sr">Kin</span></th><th scope="col">Feature</th><th scope="col">Match ${theirs}</th><th scope="col" class="numeric">Cosine</th><th scope="col">Its edge ${theirs}</th></tr></thead>
      <tbody>${parent >= 0 && row(parent, "parent", side.state(id, least), mate)}${kids.slice(0, MOST).map((kid) => row(kid, "child", side.state(kid, least), side.match[kid]))}</tbody></table></div>` : html`<p class="state empty">A root without children: no edge to compare.</p>`}
    ${kids.length > MOST && html`<p class="hint">The ${MOST} most frequent of ${kids.length}; the list above has all.</p>`}</section>`;
}

function Fires({ title, path, lacks }) {
  const answer = useAsk(path);
  return html`<section aria-label=${title}><h3>${title}</h3>
    ${lacks ? html`<${Lacking} text=${lacks} />` : html`<${Answer} answer=${answer} what="The contexts">${(feature) => (feature.top?.length ? html`<${Contexts} contexts=${feature.top.slice(0, 5)} max=${feature.max} label=${title} />` : html`<p class="hint">It never fired on the indexed tokens.</p>`)}</${Answer}>`}</section>`;
}

/** here, there: the sides; side: that of them where the feature was chosen; id: its number. */
export function Pair({ here, there, side, id, least, missing, onChoose }) {
  const mate = side.match[id];
  const { other } = side;
  const back = other.match[mate];
  const [own, theirs] = side === here ? [id, mate] : [mate, id];
  const sure = side.matched(id, least);
  const name = (of, feature) => html`${of === here ? html`<a href=${to("feature", feature)} title="Its page">${feature}</a>` : feature} <bdi>${visible(of.name(feature) ?? "")}</bdi>`;
  return html`<section class="pair" aria-labelledby="pair">
    <div class="head"><h2 id="pair">${name(side, id)} <span class="muted" role="img" aria-label=${sure ? "matches" : "is nearest to"}>${sure ? "↔" : "⋯"}</span> ${name(other, mate)}</h2>
      <p class="hint">Cosine <strong class="num">${number(side.cos[id])}</strong>${sure ? "" : html`: <strong>no match</strong>, only the nearest`}. ${back === id ? "Each is the other’s nearest." : html`The nearest of ${mate} is another: <button type="button" class="plain-button" onClick=${() => onChoose(other.key, mate)}>${back}</button>.`}</p></div>
    <div class="columns-even">
      <${Mapping} side=${here} id=${own} least=${least} onChoose=${onChoose} />
      <${Mapping} side=${there} id=${theirs} least=${least} onChoose=${onChoose} />
      <${Fires} title=${`What ${own} fires on, here`} path=${`feature/${own}`} />
      <${Fires} title=${`What ${theirs} fires on, there`} path=${missing === null ? `compare/feature?${new URLSearchParams({ other: there.title, id: theirs })}` : null} lacks=${missing} />
    </div></section>`;
}
