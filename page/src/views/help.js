// Keys, words, and how to read the numbers.
import { html, useLayoutEffect } from "../html.js";
import { route } from "../route.js";
import { forest } from "../store.js";
import { ForcedTag, Gauge } from "../ui.js";
import { Term } from "../term.js";
import { WORDS, measuredWords, supports } from "../words.js";

const KEYS = [
  ["Everywhere", [["/", "search; a number opens that feature"], ["?", "this page"], ["j  k", "next and previous context"], ["Esc", "leave the search"]]],
  ["On a feature", [["p", "its parent"], ["c", "its first child"], ["[  ]", "previous and next sibling"], ["f", "between feature and family"], ["t", "its place in the tree"]]],
  ["In the tree", [["↑  ↓", "previous and next row"], ["→  ←", "open and close, or go down and up"], ["Space", "open or close"], ["Home  End", "first and last row"], ["Page ↑ ↓", "a screen further"], ["Enter", "the feature’s page"]]],
  ["In a comparison", [["↑  ↓  →  ←", "as in the tree"], ["m", "over to the match, in the other list"], ["Enter", "the page of a feature of this SAE"]]],
  ["On a prompt", [["→  ←", "next and previous token"]]],
  ["On the map", [["arrows", "walk from bar to bar"], ["Enter", "zoom in"], ["Backspace", "zoom out"]]],
  ["In the blind audit", [["y  n  u", "yes, no, unsure"], ["x", "next pair"]]],
];

const WHY = {
  gate: html`A tree that learned nothing scores high on many measures of hierarchy, because the <${Term} word="gate">gate</${Term}> makes a child active only where its parent is.`,
  choice: "The parents of this forest were chosen on this text, so the numbers that they were chosen by are high, whatever they mean.",
  none: "A tree that learned nothing scores high on some measures of hierarchy: a parent that fires often covers any child.",
};
const bias = () => {
  const column = forest.value.about.find(({ mechanical }) => mechanical);
  return column ? (column.forced_by ?? "gate") : "none";
};

/** What has to be known before any number of a hierarchy. */
export const ReadFirst = () => html`<p>${WHY[bias()]} So every number about an edge stands beside its <em>place among null pairs</em>: the share of null pairs that it beats, where a tie counts half. The value says how often something happens, the place whether chance gives as much: trust a value only as far as its place is high. Null pairs are made by shuffling parents within the layer, among features that fire about as often.</p>`;

const FORCED = { mechanical: true, forced_by: "gate" };

function Words({ chosen }) {
  const tree = forest.value;
  const entries = [
    ...Object.entries(WORDS).map(([key, [title, text]]) => [key, title, text]),
    ["marks", "Marks in text", html`<span class="tok">↵</span> a line break, <span class="tok">␣</span> a space at the start or end of a token, <span class="tok">⟨U+202E⟩</span> a character that cannot be seen or would turn the text around. In a label, <span class="tok">·</span> stands between the tokens by which a feature stands out.`],
    ...tree.about.filter(({ name }) => !WORDS[name]).map((column) => [column.name, column.title, html`${column.description}${column.defined ? ` Defined where ${column.defined}.` : ""} <span class="muted">Of an edge: ${supports(column)}.</span><${ForcedTag} column=${column} />`]),
    ...measuredWords(),
  ];
  return html`<dl class="words">${entries.map(([key, title, text]) => html`<div key=${key} id=${`word-${key}`} class=${key === chosen ? "chosen" : ""} tabindex=${key === chosen ? -1 : null}><dt>${title}</dt><dd>${text}</dd></div>`)}</dl>`;
}

export function HelpView() {
  const chosen = route.value.query.get("word");
  useLayoutEffect(() => {
    const entry = chosen && document.getElementById(`word-${chosen}`);
    entry?.scrollIntoView({ block: "center" });
    entry?.focus({ preventScroll: true });
  }, [chosen]);
  return html`<div class="help"><h1>Help</h1>
    <section aria-labelledby="read"><h2 id="read">How to read a number here</h2>
      <${ReadFirst} />
      <ul class="gauges"><li><${Gauge} place=${0.99} /> far above chance</li><li><${Gauge} place=${0.5} /> chance: the tree says nothing here</li><li><${Gauge} place=${0.12} /> below chance</li><li><${Gauge} place=${0.97} column=${FORCED} /> forced by the gate: says nothing, whatever it is</li></ul></section>
    <section aria-labelledby="keys"><h2 id="keys">Keys</h2><div class="key-groups">${KEYS.map(([title, rows]) => html`<div key=${title}><h3>${title}</h3><dl class="keys">${rows.map(([key, text]) => html`<div key=${key}><dt>${key.split(/ {2}/).map((part) => html`<kbd key=${part}>${part}</kbd> `)}</dt><dd>${text}</dd></div>`)}</dl></div>`)}</div></section>
    <section aria-labelledby="words"><h2 id="words">Words</h2><${Words} chosen=${chosen} /></section></div>`;
}
