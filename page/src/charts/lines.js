// Line charts and histograms in SVG; each has its numbers beside it or in a title.
import { html } from "../html.js";
import { count, number } from "../text.js";

/** Histogram of activations: bars by bin, counts on a logarithmic axis as they span orders of magnitude. */
export function Histogram({ histogram, max }) {
  const counts = histogram?.counts ?? [];
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (!total) return html`<p class="hint">No activations.</p>`;
  const { edges } = histogram;
  let [first, last] = [counts.findIndex((n) => n > 0), counts.findLastIndex((n) => n > 0)];
  const shown = counts.slice(first, last + 1);
  const top = Math.log1p(Math.max(...shown));
  const [W, H] = [320, 96];
  const step = W / shown.length;
  const words = `Histogram of ${count(total)} activations from ${number(edges[first])} to ${number(edges[last + 1])}; counts on a logarithmic axis`;
  return html`<figure class="chart"><svg viewBox=${`0 0 ${W} ${H + 16}`} role="img" aria-label=${words}>
    ${shown.map((n, place) => {
      const h = (Math.log1p(n) / top) * H;
      return html`<rect key=${place} class="bin" x=${place * step + 0.5} y=${H - h} width=${Math.max(0.5, step - 1)} height=${h}><title>${number(edges[first + place])} to ${number(edges[first + place + 1])}: ${count(n)}</title></rect>`;
    })}
    <line class="axis" x1="0" x2=${W} y1=${H + 0.5} y2=${H + 0.5} />
    <text x="0" y=${H + 13}>${number(edges[first])}</text><text x=${W} y=${H + 13} text-anchor="end">${number(edges[last + 1])}</text>
  </svg><figcaption class="hint">Counts on a logarithmic axis${max ? `; maximum ${number(max)}` : ""}.</figcaption></figure>`;
}

const DASH = ["", "6 3", "2 2", "8 2 2 2", "4 2", "1 3"];

/** Lines over steps. series: [{name, values}]. The last value stands beside the name: the chart's table in short. */
export function Lines({ steps, series, title, unit = "" }) {
  const [W, H, L, B] = [360, 150, 46, 20];
  const all = series.flatMap(({ values }) => values).filter((value) => Number.isFinite(value));
  if (!all.length || steps.length < 1) return null;
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const [from, until] = [steps[0], steps[steps.length - 1]];
  const x = (step) => L + ((step - from) / (until - from || 1)) * (W - L - 6);
  const y = (value) => 8 + (1 - (value - low) / (high - low)) * (H - B - 8);
  const path = (values) => values.map((value, place) => (Number.isFinite(value) ? `${place && Number.isFinite(values[place - 1]) ? "L" : "M"}${x(steps[place]).toFixed(1)} ${y(value).toFixed(1)}` : "")).join("");
  const last = (values) => values.findLast((value) => Number.isFinite(value));
  return html`<figure class="chart lines"><figcaption><strong>${title}</strong>${unit && ` (${unit})`}</figcaption>
    <svg viewBox=${`0 0 ${W} ${H}`} role="img" aria-label=${`${title} from step ${count(from)} to ${count(until)}: ${series.map(({ name, values }) => `${name} ends at ${number(last(values))}`).join(", ")}`}>
      ${[low, (low + high) / 2, high].map((value) => html`<g key=${value}><line class="grid" x1=${L} x2=${W - 6} y1=${y(value)} y2=${y(value)} /><text x=${L - 6} y=${y(value) + 4} text-anchor="end">${number(Number(value.toPrecision(3)))}</text></g>`)}
      <text x=${L} y=${H - 4}>${count(from)}</text><text x=${W - 6} y=${H - 4} text-anchor="end">step ${count(until)}</text>
      ${series.map(({ name, values }, place) => html`<path key=${name} class=${`line s${place % 8}`} stroke-dasharray=${DASH[place % DASH.length]} d=${path(values)} />`)}
    </svg>
    <ul class="line-key">${series.map(({ name, values }, place) => html`<li key=${name}>${series.length > 1 && html`<svg width="22" height="8" aria-hidden="true"><path class=${`line s${place % 8}`} stroke-dasharray=${DASH[place % DASH.length]} d="M0 4H22" /></svg>`}${series.length > 1 ? name : "last"} <span class="num">${number(last(values))}</span></li>`)}</ul>
  </figure>`;
}
