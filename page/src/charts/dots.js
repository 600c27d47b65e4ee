// Values of the hierarchy on one axis each, with their nulls and intervals.
import { html } from "../html.js";
import { measure } from "../text.js";
import { Term } from "../term.js";
import { wordOfValue } from "../words.js";

const NAMES = { shuffled: "parents shuffled", untrained: "untrained" };
const W = 260;
const at = (x) => (x === null || x === undefined ? null : typeof x === "number" ? { value: x, interval: null } : x);

function Row({ value }) {
  const own = { value: value.value, interval: value.interval };
  const nulls = Object.keys(NAMES).map((name) => [name, at(value.null[name])]).filter(([, x]) => x && x.value !== null);
  const over = at(value.null.over_shuffled) ?? at(value.null.over_untrained);
  const against = value.null.over_shuffled ? "shuffled" : "untrained";
  const all = [own, ...nulls.map(([, x]) => x)].flatMap((x) => [x.value, ...(x.interval ?? [])]).filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...all), Math.max(1, ...all)];
  const x = (v) => 6 + ((v - low) / (high - low)) * (W - 12);
  const mark = ({ value: v, interval }, y, kind) => html`<g class=${kind}>
    ${interval && html`<line x1=${x(interval[0])} x2=${x(interval[1])} y1=${y} y2=${y} />`}
    ${kind === "own" ? html`<circle cx=${x(v)} cy=${y} r="4.5" />` : html`<path d=${`M${x(v) - 4} ${y}l4 -4l4 4l-4 4z`} />`}</g>`;
  const words = (v) => `${measure(v.value)}${v.interval ? ` (${measure(v.interval[0])} to ${measure(v.interval[1])})` : ""}`;
  return html`<tr>
    <th scope="row"><${Term} ...${wordOfValue(value)}>${value.title}</${Term}>${value.unit === "log2" && " (log2)"}</th>
    <td class="num own-number">${words(own)}</td>
    <td><svg class="dots" width=${W} height=${16 + 10 * nulls.length} aria-hidden="true"><line class="axis" x1="6" x2=${W - 6} y1="8" y2="8" />
      ${nulls.map(([, v], place) => mark(v, 18 + 10 * place, "null"))}${mark(own, 8, "own")}</svg></td>
    <td class="num null-number">${nulls.length ? nulls.map(([name, v]) => html`<div key=${name}>${NAMES[name]} ${words(v)}</div>`) : "no null measured"}
      ${over && over.value !== null && html`<div>over ${against}: ${over.value > 0 ? "+" : ""}${words(over)}</div>`}</td>
  </tr>`;
}

export function NullDots({ values }) {
  return html`<table class="plain null-dots">
    <caption>Measures of the hierarchy (filled circle) and their nulls (hollow diamonds), with 95% intervals</caption>
    <thead><tr><th scope="col">Measure</th><th scope="col">This SAE</th><th scope="col"><span class="sr">Picture</span></th><th scope="col">Null</th></tr></thead>
    <tbody>${values.map((value) => html`<${Row} key=${value.name} value=${value} />`)}</tbody>
  </table>`;
}
