// Lines between two lists of rows, from each feature to its match; what they say stands in the rows too.
import { html } from "../html.js";
import { HEAD, ROW } from "../treelist.js";

const WIDTH = 56;

/** Where a row's middle is in the window of its list; NaN if it is out of sight. */
function middle(place, { top, height }) {
  const y = HEAD + place * ROW + ROW / 2 - top;
  return y < HEAD || y > height ? NaN : y;
}

/**
 * sides: [here, there], each {places: Map id -> row, view: signal of {top, height}}; pairs: [{a, b, kind}] of rows here and there;
 * chosen: {a, b, sure} or null.
 */
export function Links({ sides, pairs, chosen }) {
  const [left, right] = sides.map(({ view }) => view.value);
  const height = Math.max(left.height, right.height);
  const path = (a, b) => `M0 ${a}C${WIDTH / 2} ${a} ${WIDTH / 2} ${b} ${WIDTH} ${b}`;
  const lines = [];
  for (const { a, b, kind } of pairs) {
    const [from, until] = [middle(sides[0].places.get(a), left), middle(sides[1].places.get(b), right)];
    if (Number.isFinite(from) && Number.isFinite(until)) lines.push(html`<path key=${`${a}-${b}`} class=${kind} d=${path(from, until)} />`);
  }
  let chosenLine = null;
  if (chosen) {
    const [from, until] = [middle(sides[0].places.get(chosen.a), left), middle(sides[1].places.get(chosen.b), right)];
    if (Number.isFinite(from) && Number.isFinite(until)) chosenLine = html`<path class=${`chosen${chosen.sure ? "" : " unsure"}`} d=${path(from, until)} />`;
  }
  return html`<svg class="links" width=${WIDTH} height=${height} viewBox=${`0 0 ${WIDTH} ${height}`} aria-hidden="true">${lines}${chosenLine}</svg>`;
}
