// Line charts and histograms in SVG; each has its numbers beside it or in a title.
import { html } from "../html.js";
import { count, number, percent } from "../text.js";
import { axisOf } from "./ticks.js";

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
const [W, H, L, R, T, B] = [380, 170, 50, 8, 8, 20];

/** The frame of a chart over steps: scales, grid and labels. Shares are written as percentages. */
function frame({ steps, until, y, share }) {
  const from = steps[0];
  const end = Math.max(until ?? 0, steps[steps.length - 1]);
  const px = (step) => L + ((step - from) / (end - from || 1)) * (W - L - R);
  const py = (value) => T + (1 - (value - y.low) / (y.high - y.low)) * (H - B - T);
  const show = (tick) => (share ? percent(tick) : tick.toLocaleString("en-US", { maximumSignificantDigits: 4 }).replace("-", "−"));
  const grid = html`${y.ticks.map((tick) => html`<g key=${tick}><line class="grid" x1=${L} x2=${W - R} y1=${py(tick)} y2=${py(tick)} /><text x=${L - 6} y=${py(tick) + 4} text-anchor="end">${show(tick)}</text></g>`)}
    <text x=${L} y=${H - 4}>${count(from)}</text><text x=${W - R} y=${H - 4} text-anchor="end">step ${count(end)}</text>`;
  return { px, py, grid, from, end };
}

/** How the last values of a chart are written: all with the same decimals, three digits of the largest. */
function alike(values) {
  const most = Math.max(...values.filter(Number.isFinite).map(Math.abs), 0);
  if (most === 0 || most >= 1000 || values.every((value) => !Number.isFinite(value) || Number.isInteger(value))) return number;
  const digits = Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(most))));
  return (value) => (!Number.isFinite(value) || (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits) ? number(value) : value.toFixed(digits).replace("-", "−"));
}

const last = (values) => values.findLast((value) => Number.isFinite(value));

/**
 * Lines over steps. series: [{name, values, kind?}]; kind "null" draws what chance gives, in the color of the series before it.
 * held: a value holds until the next step, and until `until`. The last value stands beside the name: the chart's table in short.
 */
export function Lines({ steps, series, title, unit = "", share = false, held = false, until = null, zero = false }) {
  const y = axisOf(series.flatMap(({ values }) => values), { zero });
  if (!y || steps.length < 1) return null;
  const { px, py, grid, from, end } = frame({ steps, until, y, share });
  const path = (values) => {
    let [text, on] = ["", false];
    values.forEach((value, place) => {
      if (!Number.isFinite(value)) return void (on = false);
      const [a, b] = [px(steps[place]).toFixed(1), py(value).toFixed(1)];
      text += !on ? `M${a} ${b}` : held ? `H${a}V${b}` : `L${a} ${b}`;
      on = true;
    });
    return text + (held && on ? `H${px(end).toFixed(1)}` : "");
  };
  let place = -1;
  const styled = series.map((one) => ({ ...one, at: one.kind === "null" ? place : ++place }));
  const look = ({ at, kind }) => ({ class: `line s${at % 8}${kind === "null" ? " null-line" : ""}`, "stroke-dasharray": kind === "null" ? "1 3" : DASH[at % DASH.length] });
  const text = share ? percent : alike(series.map(({ values }) => last(values)));
  return html`<figure class="chart lines"><figcaption><strong>${title}</strong>${unit && ` (${unit})`}</figcaption>
    <svg viewBox=${`0 0 ${W} ${H}`} role="img" aria-label=${`${title} from step ${count(from)} to ${count(end)}: ${series.map(({ name, values }) => `${name} ends at ${text(last(values))}`).join(", ")}`}>
      ${grid}${styled.map((one) => html`<path key=${one.name} ...${look(one)} d=${path(one.values)} />`)}
    </svg>
    <ul class="line-key">${styled.map((one) => html`<li key=${one.name}>${series.length > 1 && html`<svg width="22" height="8" aria-hidden="true"><path ...${look(one)} d="M0 4H22" /></svg>`}${series.length > 1 ? one.name : "last"} <span class="num">${text(last(one.values))}</span></li>`)}</ul>
  </figure>`;
}

/** Stacked bars at steps. series: [{name, values}], from the bottom up; their sums and last values stand in the key. */
export function Bars({ steps, series, title, unit = "", until = null }) {
  const sums = steps.map((_, place) => series.reduce((sum, { values }) => sum + (values[place] ?? 0), 0));
  const y = axisOf(sums, { zero: true });
  if (!y || !sums.some(Boolean)) return null;
  const { px, py, grid } = frame({ steps, until, y, share: false });
  const gap = Math.min(...steps.slice(1).map((step, place) => px(step) - px(steps[place])), 14);
  const width = Math.max(1, gap * 0.7);
  const total = (values) => values.reduce((sum, value) => sum + (value ?? 0), 0);
  return html`<figure class="chart lines"><figcaption><strong>${title}</strong>${unit && ` (${unit})`}</figcaption>
    <svg viewBox=${`0 0 ${W} ${H}`} role="img" aria-label=${`${title}: ${series.map(({ name, values }) => `${name} ${count(total(values))} altogether`).join(", ")}`}>
      ${grid}${steps.map((step, place) => {
        let floor = 0;
        return html`<g key=${step}><title>${`step ${count(step)}: ${series.map(({ name, values }) => `${name} ${count(values[place] ?? 0)}`).join(", ")}`}</title>
          ${series.map(({ name, values }, at) => {
            const value = values[place] ?? 0;
            const [top, bottom] = [py(floor + value), py(floor)];
            floor += value;
            return value > 0 && html`<rect key=${name} class=${`part p${at}`} x=${Math.min(px(step) - width / 2, W - R - width)} width=${width} y=${top} height=${bottom - top} />`;
          })}</g>`;
      })}
    </svg>
    <ul class="line-key">${series.map(({ name, values }, at) => html`<li key=${name}><svg width="12" height="10" aria-hidden="true"><rect class=${`part p${at}`} width="12" height="10" /></svg>${name} <span class="num">${count(total(values))}</span></li>`)}</ul>
  </figure>`;
}

/** A line without axes, for a cell of a table. */
export function Spark({ steps, values, until }) {
  const [w, h] = [150, 22];
  const high = Math.max(...values, 1);
  const end = Math.max(until ?? 0, steps[steps.length - 1]);
  const x = (step) => 2 + ((step - steps[0]) / (end - steps[0] || 1)) * (w - 4);
  const y = (value) => h - 2 - (value / high) * (h - 4);
  const d = values.map((value, place) => `${place ? `H${x(steps[place]).toFixed(1)}V` : `M${x(steps[0]).toFixed(1)} `}${y(value).toFixed(1)}`).join("");
  return html`<svg class="spark" width=${w} height=${h} aria-hidden="true"><path class="line s0" d=${`${d}H${x(end)}`} /></svg>`;
}
