// Activations under a parent in their plane, in SVG: with a shape and a color for each child, with the children's encoder directions.
import { html, useRef, useState } from "../html.js";
import { kidClass } from "../contexts.js";
import { visible, visibleToken } from "../text.js";

const SIZE = 520;

const SHAPES = [
  (x, y) => `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0-8 0`, (x, y) => `M${x - 4} ${y - 4}h8v8h-8z`, (x, y) => `M${x} ${y - 5}l5 9h-10z`, (x, y) => `M${x} ${y - 5}l5 5l-5 5l-5-5z`,
  (x, y) => `M${x} ${y + 5}l5-9h-10z`, (x, y) => `M${x - 4} ${y - 1.5}h3v-3h2v3h3v2h-3v3h-2v-3h-3z`, (x, y) => `M${x - 5} ${y - 2}h10v4h-10z`, (x, y) => `M${x - 2} ${y - 5}h4v10h-4z`,
];

export const Shape = ({ kid, x = 8, y = 8 }) => html`<path class=${`point ${kid ? kidClass(kid) : "alone"}`} d=${SHAPES[kid ? kid.color : 0](x, y)} />`;

export function Plane({ points, directions, marks, chosen, onChoose, explained }) {
  const svg = useRef(null);
  const [drag, setDrag] = useState(null);
  const reach = Math.max(1e-6, ...points.flatMap(({ x, y }) => [Math.abs(x), Math.abs(y)])) * 1.08;
  const px = (x) => SIZE / 2 + (x / reach) * (SIZE / 2 - 24);
  const py = (y) => SIZE / 2 - (y / reach) * (SIZE / 2 - 24);
  const longest = Math.max(1e-6, ...directions.map(({ x, y }) => Math.hypot(x, y)));
  const place = (event) => {
    const area = svg.current.getBoundingClientRect();
    return [((event.clientX - area.left) / area.width) * SIZE, ((event.clientY - area.top) / area.height) * SIZE];
  };
  const finish = () => {
    if (!drag) return;
    const [x0, x1, y0, y1] = [Math.min(drag[0], drag[2]), Math.max(drag[0], drag[2]), Math.min(drag[1], drag[3]), Math.max(drag[1], drag[3])];
    const near = x1 - x0 < 4 && y1 - y0 < 4 ? 9 : 0;
    const inside = points.flatMap((point, index) => (px(point.x) >= x0 - near && px(point.x) <= x1 + near && py(point.y) >= y0 - near && py(point.y) <= y1 + near ? [index] : []));
    onChoose(inside.length ? inside : null);
    setDrag(null);
  };
  const tips = directions.map(({ child, x, y }) => ({ child, kid: marks.get(child), a: SIZE / 2 + (x / longest) * (SIZE / 2 - 40), b: SIZE / 2 - (y / longest) * (SIZE / 2 - 40) }));
  const share = (n) => (explained?.[n] === undefined ? "" : ` (${Math.round(explained[n] * 100)}% of the variance)`);
  return html`<svg class="plane" ref=${svg} viewBox=${`0 0 ${SIZE} ${SIZE}`} role="img" aria-label=${`${points.length} activations in the plane of their two principal components, and the encoder directions of ${directions.length} children. The list beside it holds the same points.`}
    onPointerDown=${(event) => {
      event.currentTarget.setPointerCapture(event.pointerId);
      setDrag([...place(event), ...place(event)]);
    }} onPointerMove=${(event) => drag && setDrag([drag[0], drag[1], ...place(event)])} onPointerUp=${finish}>
    <line class="axis" x1="0" x2=${SIZE} y1=${SIZE / 2} y2=${SIZE / 2} /><line class="axis" y1="0" y2=${SIZE} x1=${SIZE / 2} x2=${SIZE / 2} />
    ${tips.map(({ child, kid, a, b }) => html`<g key=${child} class=${`direction k${kid?.color ?? 0}`}><line x1=${SIZE / 2} y1=${SIZE / 2} x2=${a} y2=${b} /></g>`)}
    ${points.map((point, index) => html`<g key=${index} class=${chosen && !chosen.has(index) ? "faint" : ""}><${Shape} kid=${marks.get(point.child)} x=${px(point.x)} y=${py(point.y)} /><title>${visible(point.before ?? "")}«${visibleToken(point.token)}»${visible(point.after ?? "")}</title></g>`)}
    ${tips.map(({ child, kid, a, b }) => html`<g key=${child} class=${`direction k${kid?.color ?? 0}`}><circle cx=${a} cy=${b} r="9" /><text x=${a} y=${b + 4} text-anchor="middle">${kid?.mark ?? ""}</text><title>encoder direction of child ${child}</title></g>`)}
    <text x=${SIZE - 6} y=${SIZE - 8} text-anchor="end">first component${share(0)} →</text>
    <text x="8" y="15">↑ second component${share(1)}</text>
    ${drag && html`<rect class="brush" x=${Math.min(drag[0], drag[2])} y=${Math.min(drag[1], drag[3])} width=${Math.abs(drag[2] - drag[0])} height=${Math.abs(drag[3] - drag[1])} />`}
  </svg>`;
}
