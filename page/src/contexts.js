// Contexts: text with its tokens marked by activation, by color and by an underline; the value on hover or in figures.
import { html, useEffect, useState } from "./html.js";
import { number, percent, visible, visibleToken } from "./text.js";
import { FeatureLink } from "./ui.js";

const LEVELS = 5;

/** A share of the maximum in whole percent; the strongest activation is 100%, whatever its last digit was rounded to. */
const ofMaximum = (share) => (share > 0 && share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`);

/** Level 1 to 5 of an activation relative to the feature's maximum; 0 where it is silent. */
const level = (value, max) => (value > 0 ? Math.min(LEVELS, Math.max(1, Math.ceil((value / (max || value)) * LEVELS - 1e-6))) : 0);

function Token({ token, value, max, peak, kid, figures }) {
  const strength = level(value, max);
  const names = ["tok"];
  if (strength) names.push(`l${strength}`);
  if (peak) names.push("peak");
  if (kid) names.push(kidClass(kid));
  const text = visible(token);
  if (!strength && !peak) return html`<span class="tok">${text}</span>`;
  const title = `${visibleToken(token)}: ${number(value)} (${percent(value / max)} of the maximum)${kid ? `, child ${kid.mark}: ${kid.id}` : ""}`;
  return html`<span class=${names.join(" ")} title=${title}>${text}${kid ? html`<sub class="mark-of">${kid.mark}</sub>` : null}${figures && strength ? html`<sub class="num">${number(value)}</sub>` : null}</span>`;
}

/** Sides of the peak, each a run of tokens; in a snippet the peak stands in one column. */
function Line({ context, max, full, figures, kids, alone }) {
  const { tokens, values = [], at, child } = context;
  const show = (place) => {
    const kid = kids && child?.[place] >= 0 ? kids.get(child[place]) : null;
    return html`<${Token} key=${place} token=${tokens[place]} value=${alone && place !== at ? 0 : (values[place] ?? 0)} max=${max} peak=${place === at} kid=${kid} figures=${figures} />`;
  };
  const range = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, place) => show(from + place));
  if (full) return html`<bdi class="text full">${range(0, tokens.length)}</bdi>`;
  return html`<span class="kwic"><bdi class="text before"><span>${range(Math.max(0, at - 18), at)}</span></bdi><bdi class="text after"><span>${range(at, Math.min(tokens.length, at + 18))}</span></bdi></span>`;
}

/**
 * A list of contexts. j and k move along it.
 * max: the feature's maximum, by which tokens are colored; kids: Map of child id -> a mark of `childMarks`;
 * alone: color only the token that each context is about.
 */
export function Contexts({ contexts, max, full = false, figures = false, kids = null, alone = false, label = "Contexts", current = null, onPick = null }) {
  const most = max ?? Math.max(0, ...contexts.map((context) => context.value ?? 0));
  return html`<div class="contexts-head" aria-hidden="true"><span class="share">of max.</span><span>text</span></div><ol class=${`contexts${full ? " is-full" : ""}${kids ? " by-child" : ""}`} aria-label=${label}>
    ${contexts.map((context, place) => {
      const share = context.value === undefined || context.value === null ? null : context.value / most;
      return html`<li key=${`${context.row}-${place}`} class="context" tabindex="-1" data-context
        aria-current=${current === place ? "true" : null} onClick=${onPick ? () => onPick(place) : null}>
        <span class="share num" title=${`activation ${number(context.value)}, ${visible(context.document ?? "")}`}>${share === null ? "" : ofMaximum(share)}<span class="sr"> of the maximum</span></span>
        <${Line} context=${context} max=${most} full=${full} figures=${figures} kids=${kids} alone=${alone} />
      </li>`;
    })}
  </ol>`;
}

/** Switches of how contexts are shown, kept for the session. */
export function useContextSwitches() {
  const [full, setFull] = useState(() => remembered("full"));
  const [figures, setFigures] = useState(() => remembered("figures"));
  useEffect(() => remember("full", full), [full]);
  useEffect(() => remember("figures", figures), [figures]);
  const switches = html`<span class="switches">
    <label><input type="checkbox" checked=${full} onChange=${(event) => setFull(event.currentTarget.checked)} /> whole passages</label>
    <label><input type="checkbox" checked=${figures} onChange=${(event) => setFigures(event.currentTarget.checked)} /> figures</label>
  </span>`;
  return { full, figures, switches };
}

function remembered(key) {
  try {
    return sessionStorage.getItem(`saeforest.${key}`) === "1";
  } catch {
    return false; // no storage in a sandboxed frame
  }
}

function remember(key, value) {
  try {
    sessionStorage.setItem(`saeforest.${key}`, value ? "1" : "0");
  } catch {
    // not kept
  }
}

/** A, B, … Z, AA, AB, … */
const letters = (place) => (place < 26 ? "" : letters(Math.floor(place / 26) - 1)) + String.fromCharCode(65 + (place % 26));

/** Marks of children: a letter, which no token of digits is mistaken for; and a color, of eight, with a line of another kind each time they repeat. */
export function childMarks(ids) {
  return new Map(ids.map((id, place) => [id, { id, color: place % 8, kind: Math.floor(place / 8) % 3, mark: letters(place) }]));
}

export const kidClass = (kid) => (kid ? `k${kid.color} v${kid.kind}` : "k0");

export function Swatch({ kid, hidden = false }) {
  return html`<span class=${`swatch ${kidClass(kid)}`} aria-hidden=${hidden ? "true" : null}>${kid?.mark ?? "?"}</span>`;
}

export function ChildKey({ kid, label }) {
  return html`<span class="child-key"><${Swatch} kid=${kid} hidden=${true} /> <${FeatureLink} id=${kid.id} label=${label} /></span>`;
}
