// Keys, words, and how to read the numbers.
import { html } from "../html.js";
import { forest } from "../store.js";
import { Gauge } from "../ui.js";

const KEYS = [
  ["Everywhere", [["/", "search; a number opens that feature"], ["?", "this page"], ["j  k", "next and previous context"], ["Esc", "leave the search"]]],
  ["On a feature", [["p", "its parent"], ["c", "its first child"], ["[  ]", "previous and next sibling"], ["f", "between feature and family"], ["t", "its place in the tree"]]],
  ["In the tree", [["↑  ↓", "previous and next row"], ["→  ←", "open and close, or go down and up"], ["Space", "open or close"], ["Home  End", "first and last row"], ["Page ↑ ↓", "a screen further"], ["Enter", "the feature’s page"]]],
  ["In a comparison", [["↑  ↓  →  ←", "as in the tree"], ["m", "over to the match, in the other list"], ["Enter", "the page of a feature of this SAE"]]],
  ["On a prompt", [["→  ←", "next and previous token"]]],
  ["On the map", [["arrows", "walk from bar to bar"], ["Enter", "zoom in"], ["Backspace", "zoom out"]]],
  ["In the blind audit", [["y  n  u", "yes, no, unsure"], ["x", "next pair"]]],
];

export function HelpView() {
  const tree = forest.value;
  return html`<div class="help"><h1>Help</h1>
    <section aria-labelledby="read"><h2 id="read">How to read a number here</h2>
      <p>A tree that learned nothing scores high on many measures of hierarchy, because the gate makes a child active only where its parent is. So every number about an edge stands beside its <em>place among null pairs</em>: the share of null pairs that it beats. Null pairs are made by shuffling parents within the layer, among features that fire about as often.</p>
      <ul class="gauges"><li><${Gauge} place=${0.99} /> far above chance</li><li><${Gauge} place=${0.5} /> chance: the tree says nothing here</li><li><${Gauge} place=${0.12} /> below chance</li><li><${Gauge} place=${0.97} mechanical=${true} /> forced by the gate: says nothing, whatever it is</li></ul></section>
    <section aria-labelledby="keys"><h2 id="keys">Keys</h2><div class="key-groups">${KEYS.map(([title, rows]) => html`<div key=${title}><h3>${title}</h3><dl class="keys">${rows.map(([key, text]) => html`<div key=${key}><dt>${key.split(/ {2}/).map((part) => html`<kbd key=${part}>${part}</kbd> `)}</dt><dd>${text}</dd></div>`)}</dl></div>`)}</div></section>
    <section aria-labelledby="words"><h2 id="words">Words</h2><dl class="words">
      <div><dt>Density</dt><dd>The fraction of tokens on which a feature is active.</dd></div>
      <div><dt>Context</dt><dd>A token on which the feature fires, with the text around it. Darker and thicker underlined: a stronger activation, relative to the feature’s maximum. Point at a token for its value, or switch figures on.</dd></div>
      <div><dt>Quantiles</dt><dd>A sample of activations of every strength, not only the strongest: what a feature looks like on an ordinary day.</dd></div>
      <div><dt>Residue</dt><dd>Contexts in which a parent fires and none of its children does.</dd></div>
      <div><dt>Without the gate</dt><dd>A child’s own detector decides where it would fire, ignoring whether its parent is active.</dd></div>
      <div><dt>Match</dt><dd>In a comparison: the feature of the other SAE with the nearest decoder row, if the cosine is high enough.</dd></div>
      <div><dt>Kept, elsewhere</dt><dd>An edge is kept in another SAE if the match of the parent is the parent of the child’s match. It is elsewhere if both have a match, but that one has another parent there, or none.</dd></div>
      <div><dt>Marks in text</dt><dd><span class="tok">↵</span> a line break, <span class="tok">·</span> a space at the start of a token, <span class="tok">⟨U+202E⟩</span> a character that cannot be seen or would turn the text around.</dd></div>
      ${tree.about.map((column) => html`<div key=${column.name}><dt>${column.title}</dt><dd>${column.description}${column.mechanical ? " Forced by the gate." : ""}</dd></div>`)}
    </dl></section></div>`;
}
