// Small parts that many views use.
import { html, useState } from "./html.js";
import { cell, number, percent, percentBy, visible } from "./text.js";
import { forest, labels, sources } from "./store.js";
import { to } from "./route.js";
import { forced } from "./words.js";

export const nameOf = (id) => labels.value.get(id) ?? null;

/** What stands for a label where there is none. */
export const unnamed = (id) => (forest.value?.has(id) && forest.value.dead[id] ? "never fired" : "no label");

/** What a view says while it waits, when something failed, or when there is nothing. */
export function Loading({ what = "Loading" }) {
  return html`<p class="state" role="status"><span class="spinner" aria-hidden="true"></span>${what} …</p>`;
}

export function Failure({ error, what }) {
  if (error?.status === 409 || error?.status === 503) return html`<${Lacking} text=${error.message} />`;
  return html`<div class="state failed" role="alert">
    <p><strong>${what ?? "This could not be shown."}</strong></p>
    <${Advice} text=${error?.message ?? String(error)} />
  </div>`;
}

/** What is not there, and what to do about it: no failure. */
export function Lacking({ text }) {
  return html`<div class="state lacking" role="status"><${Advice} text=${text} /></div>`;
}

function Advice({ text }) {
  const [line, command] = split(visible(text));
  return html`<p>${line.split("`").map((part, place) => (place % 2 ? html`<code key=${place}>${part}</code>` : part))}</p>${command && html`<p><code>${command}</code></p>`}`;
}

/** A line that ends in "run: COMMAND" or holds it in “…” is shown with the command by itself. */
function split(line) {
  const found = line.match(/^(.*?)[;:.,]?\s*(?:run:?\s+)?[`“](saeforest [^`”]+)[`”]\.?\s*(.*)$/s);
  return found && !found[3] ? [`${found[1]}:`, found[2]] : [line, null];
}

export function Empty({ children }) {
  return html`<p class="state empty">${children}</p>`;
}

/** Content of an answer of useAsk, or what stands in for it. */
export function Answer({ answer, what, children }) {
  if (answer.state === "error") return html`<${Failure} error=${answer.error} what=${what && `${what} could not be shown.`} />`;
  if (answer.state !== "ready") return html`<${Loading} what=${what ? `Loading ${what[0].toLowerCase()}${what.slice(1)}` : "Loading"} />`;
  return children(answer.value);
}

/** Place of an edge among null pairs, as words. */
export function placeWords(place) {
  if (Number.isNaN(place) || place === null || place === undefined) return "no place among null pairs";
  return `beats ${percentBy(place)} of null pairs (ties count half)`;
}

/** A mark on a line from 0 to 100% of the null pairs; the tick in the middle is chance, the shaded end the top 5%. */
export function Gauge({ place, column }) {
  if (place === null || place === undefined || Number.isNaN(place)) return html`<span class="gauge none" role="img" aria-label="no place among null pairs">–</span>`;
  const x = 2 + 56 * place;
  const why = forced(column);
  const words = placeWords(place) + (why ? `; ${why.words}` : "");
  const kind = why ? "forced" : place > 0.95 ? "high" : place >= 0.5 ? "mid" : "low";
  return html`<span class=${`gauge ${kind}`} role="img" aria-label=${words} title=${words}>
    <svg width="60" height="12" aria-hidden="true">
      <rect class="track" x="2" y="4" width="56" height="4" rx="2" />
      <rect class="tail" x="55.2" y="2" width="2.8" height="8" />
      <line class="chance" x1="30" x2="30" y1="1" y2="11" />
      <line class="stem" x1="30" x2=${x} y1="6" y2="6" />
      <circle class="dot" cx=${x} cy="6" r="3.5" />
    </svg>
    <span class="place num">${percentBy(place)}</span>
  </span>`;
}

/** That a column's values say nothing about the tree, where that is so. */
export function ForcedTag({ column }) {
  const why = forced(column);
  return why && html` <span class="tag warn" title=${`${why.words[0].toUpperCase()}${why.words.slice(1)}.`}>${why.tag}</span>`;
}

/** A value of a column on an edge, beside its place among null pairs; bounds: those that the value is judged by. */
export function EdgeNumber({ column, id, bounds = [] }) {
  const tree = forest.value;
  return html`<span class="edge-number"><span class="num">${cell(column, tree.value(column.name, id), bounds)}</span>
    <${Gauge} place=${tree.place(column.name, id)} column=${column} /><${Ties} column=${column} id=${id} /></span>`;
}

/** From this share of tied null pairs on, it is said beside the place. */
const MANY = 0.2;

/**
 * That many null pairs have the same value as an edge, so that its place says little; or why there is no value. At an end of
 * a share's range nothing lies beyond the value, so all that is not above (or below) it is tied, and a tie counts half.
 */
export function Ties({ column, id }) {
  const tree = forest.value;
  const [value, place] = [tree.value(column.name, id), tree.place(column.name, id)];
  if (!Number.isFinite(place)) return tree.parent[id] >= 0 && Number.isNaN(value) ? html`<small class="ties">${column.defined ? `only where ${column.defined}` : "not defined for this edge"}</small>` : null;
  if (column.format !== "share" || (value !== 0 && value !== 1)) return null;
  const weakest = (value === 0) === (column.higher_is_more !== false);
  const tied = 2 * (weakest ? place : 1 - place);
  return tied >= MANY ? html`<small class="ties">${percent(Math.min(1, tied))} of null pairs have ${percent(value)} too</small>` : null;
}

/** A feature's number and label, as a link. */
export function FeatureLink({ id, label, view = "feature", plain = false }) {
  const text = nameOf(id) ?? label;
  const known = forest.value?.has(id) ?? true;
  const inside = html`<span class="id num">${id}</span>${text ? html` <bdi class="label">${visible(text)}</bdi>` : html` <span class="label muted">${unnamed(id)}</span>`}`;
  if (plain || !known) return html`<span class="feature-link" title=${known ? null : "not in this export"}>${inside}</span>`;
  return html`<a class="feature-link" href=${to(view, id)}>${inside}</a>`;
}

export function SourceTag({ id }) {
  const source = sources.value.get(id);
  if (!source || source === "auto") return null;
  return html`<span class="tag">${source === "hand" ? "by hand" : "by a judge"}</span>`;
}

/** A row of choices of which one is taken. */
export function Choice({ label, value, options, onChoose }) {
  return html`<div class="choice" role="group" aria-label=${label}>
    ${options.map(
      ([key, text]) =>
        html`<button type="button" key=${key} aria-pressed=${key === value} onClick=${() => onChoose(key)}>${text}</button>`,
    )}
  </div>`;
}

export function Select({ label, value, options, onChoose, wide = false }) {
  return html`<label class=${wide ? "field is-wide" : "field"}><span>${label}</span>
    <select value=${value} onChange=${(event) => onChoose(event.currentTarget.value)}>
      ${options.map((option) =>
        option.group
          ? html`<optgroup label=${option.group}>${option.options.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}</optgroup>`
          : html`<option value=${option[0]} selected=${option[0] === value}>${option[1]}</option>`,
      )}
    </select></label>`;
}

/**
 * What is being typed into a field that begins with `value`: [text, setText]. Another value replaces it; with `keep`, only
 * what nobody has changed: a label that arrives late takes nothing away from who is typing.
 */
export function useDraft(value, { keep = false } = {}) {
  const [draft, setDraft] = useState({ of: value, text: value });
  const current = draft.of === value || (keep && draft.text !== draft.of);
  return [current ? draft.text : value, (text) => setDraft({ of: value, text })];
}

/** A field that is saved when left or on Enter; Escape takes the change back. */
export function Editable({ value, label, onSave, multiline = false, placeholder = "" }) {
  const [text, setText] = useDraft(value ?? "", { keep: true });
  const save = (event) => {
    const typed = event.currentTarget.value.trim();
    if (typed !== (value ?? "")) onSave(typed);
  };
  const keys = (event) => {
    if (event.key === "Enter" && (!multiline || event.ctrlKey || event.metaKey)) event.currentTarget.blur();
    if (event.key === "Escape") {
      setText(value ?? "");
      event.stopPropagation();
    }
  };
  const shared = { value: text, "aria-label": label, placeholder, onInput: (event) => setText(event.currentTarget.value), onBlur: save, onKeyDown: keys };
  return multiline ? html`<textarea rows="3" ...${shared}></textarea>` : html`<input type="text" ...${shared} />`;
}

/** A bar from 0 to `most`, with its number; `tick` marks the null. */
export function Bar({ value, most = 1, tick = null, text, label }) {
  const width = (part) => `${Math.max(0, Math.min(1, (part || 0) / (most || 1))) * 100}%`;
  return html`<span class="bar" role=${label ? "img" : null} aria-label=${label}>
    <span class="bar-track" aria-hidden="true"><span class="bar-fill" style=${{ width: width(value) }}></span>
    ${tick !== null && tick !== undefined && html`<span class="bar-tick" style=${{ left: width(tick) }}></span>`}</span>
    <span class="num">${text ?? number(value)}</span></span>`;
}

export function About({ column }) {
  if (!column) return null;
  return html`<p class="about"><strong>${column.title}</strong>${column.unit ? ` (${column.unit})` : ""}: ${column.description}
    <${ForcedTag} column=${column} /></p>`;
}

/** Download text as a file, without a server. */
export const download = (name, text, type = "text/csv") => saveBlob(name, new Blob([text], { type }));

/** Hand a file to the browser's downloads. */
export function saveBlob(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
