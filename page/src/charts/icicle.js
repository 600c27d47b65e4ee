// The forest as an icicle on canvas: roots on the left, children to the right, each as tall as its subtree has features.
import { hierarchy, partition } from "d3-hierarchy";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import { canvasOf, css, deadColor, diverging, inkOn, limits, ramp, theme } from "../colors.js";
import { forest, labels } from "../store.js";
import { cell, percent, visible } from "../text.js";
import { placeWords } from "../ui.js";


/** What a color means: {of(id) -> CSS color, title, words(id), legend}. */
export function coloring(name, tree) {
  const [kind, key] = name.split(":");
  const column = tree.column(key);
  if (kind === "place" && column) {
    const places = tree.places.get(key);
    return {
      of: (id) => diverging(places[id]), title: `${column.title}: place among null pairs`, column,
      words: (id) => (tree.parent[id] < 0 ? "a root has no edge" : placeWords(places[id])),
      legend: { scale: diverging, ends: ["0%", "100% of null pairs"], middle: "chance" },
    };
  }
  if (kind === "value" && column) {
    const values = tree.columns.get(key);
    const [low, high] = limits(values);
    return {
      of: (id) => ramp((values[id] - low) / (high - low)), title: column.title, column,
      words: (id) => (tree.parent[id] < 0 ? "a root has no edge" : `${column.title} ${cell(column, values[id])}, ${placeWords(tree.place(key, id))}`),
      legend: { scale: ramp, ends: [cell(column, low), cell(column, high)] },
    };
  }
  if (kind === "layer") {
    const last = Math.max(1, tree.nLayers - 1);
    return {
      of: (id) => ramp(0.15 + 0.7 * (tree.layer[id] / last)), title: "Layer",
      words: (id) => `layer ${tree.layer[id]}`, legend: { scale: (share) => ramp(0.15 + 0.7 * share), ends: ["0", String(tree.nLayers - 1)] },
    };
  }
  if (kind === "dead")
    return {
      of: (id) => (tree.dead[id] ? css("--k1") : ramp(0.3)), title: "Dead features", words: (id) => (tree.dead[id] ? "never fired" : "alive"),
      legend: { swatches: [[() => ramp(0.3), "alive"], [() => css("--k1"), "never fired"]] },
    };
  const logs = Float32Array.from(tree.density, (x) => (x > 0 ? Math.log10(x) : NaN));
  const [low, high] = limits(logs);
  return {
    of: (id) => (tree.dead[id] ? deadColor() : ramp((logs[id] - low) / (high - low))), title: "Density (share of tokens)",
    words: (id) => (tree.dead[id] ? "never fired" : `active on ${percent(tree.density[id])} of tokens`),
    legend: { scale: ramp, ends: [percent(10 ** low), percent(10 ** high)], note: "logarithmic" },
  };
}

function layout(tree, root, width, height) {
  const top = root < 0 ? { id: -1, kids: tree.roots } : { id: root };
  const whole = hierarchy(top, (node) => (node.kids ?? tree.kids(node.id)).map((id) => ({ id })));
  whole.count().sort((a, b) => b.value - a.value || (tree.density[b.data.id] || 0) - (tree.density[a.data.id] || 0));
  const levels = whole.height + 1 - (root < 0 ? 1 : 0);
  const column = width / Math.max(1, levels);
  partition().size([height, width])(whole);
  const nodes = [];
  const byId = new Map();
  whole.each((node) => {
    const depth = node.depth - (root < 0 ? 1 : 0);
    if (depth < 0) return;
    const box = { id: node.data.id, x: depth * column, y: node.x0, w: column, h: node.x1 - node.x0, depth, leaf: !node.children, size: tree.size[node.data.id] };
    nodes.push(box);
    byId.set(box.id, box);
  });
  return { nodes, byId, column };
}

// A name on a bar that is lower than it stands on a strip in the bar's color. These keep a distance, to leave the bars in sight; in
// the first column, where the reader begins, a short one.
const STRIP = 14;
const [FIRST, OTHERS] = [{ least: 1, apart: 17 }, { least: 4, apart: 26 }];

/** Bars lower than a name that get one all the same, the highest first, of which no two names come close in a column. */
function cramped(nodes, height) {
  const taken = new Map();
  const rule = ({ depth }) => (depth === 0 ? FIRST : OTHERS);
  return nodes.filter((box) => box.h >= rule(box).least && box.h < STRIP - 1).sort((a, b) => b.h - a.h).flatMap((box) => {
    const middle = Math.max(STRIP / 2, Math.min(height - STRIP / 2, box.y + box.h / 2));
    const others = taken.get(box.depth) ?? [];
    if (others.some((y) => Math.abs(y - middle) < rule(box).apart)) return [];
    taken.set(box.depth, [...others, middle]);
    return [{ box, middle }];
  });
}

/** still: a small picture, with the names of the highest bars alone. */
function draw(canvas, { nodes, column }, width, height, color, at, still) {
  const context = canvasOf(canvas, width, height);
  const ground = css("--ground");
  context.font = `12px ${css("--sans")}`;
  context.textBaseline = "middle";
  for (const box of nodes) {
    context.fillStyle = color.of(box.id);
    // A leaf in an early column is drawn short, so that the eye finds where subtrees end.
    const gap = box.h > 3 ? 1 : 0;
    context.fillRect(box.x, box.y, box.w - 1, Math.max(box.h - gap, 0.35));
  }
  const names = labels.value;
  const name = ({ id }) => `${id}  ${visible(names.get(id) ?? "")}`;
  for (const { box, middle } of still || column < 60 ? [] : cramped(nodes, height)) {
    const fill = color.of(box.id);
    const text = fit(context, name(box), box.w - 12);
    const strip = [box.x + 2, middle - STRIP / 2, context.measureText(text).width + 9, STRIP];
    context.fillStyle = fill;
    context.fillRect(...strip);
    context.strokeStyle = ground;
    context.lineWidth = 1;
    context.strokeRect(...strip);
    context.fillStyle = inkOn(fill);
    context.fillText(text, box.x + 6, middle);
  }
  for (const box of nodes) {
    if (box.h < (still ? 24 : STRIP - 1) || column < 60) continue;
    const fill = color.of(box.id);
    context.fillStyle = inkOn(fill);
    const text = name(box);
    const room = box.w - 12;
    context.fillText(fit(context, text, room), box.x + 6, box.y + Math.min(box.h / 2, 12));
    if (box.h > 34 && !box.leaf) {
      context.globalAlpha = 0.75;
      context.fillText(fit(context, `${box.size - 1} below`, room), box.x + 6, box.y + Math.min(box.h / 2, 12) + 15);
      context.globalAlpha = 1;
    }
  }
  const chosen = at === null ? null : nodes.find(({ id }) => id === at);
  if (chosen) {
    context.lineWidth = 4;
    context.strokeStyle = ground;
    context.strokeRect(chosen.x, chosen.y, chosen.w - 1, Math.max(chosen.h, 3));
    context.lineWidth = 2;
    context.strokeStyle = css("--ink");
    context.strokeRect(chosen.x, chosen.y, chosen.w - 1, Math.max(chosen.h, 3));
  }
}

/** Text cut to the room there is, by bisection over whole characters. */
function fit(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  const letters = [...text];
  let [low, high] = [0, letters.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(`${letters.slice(0, middle).join("")}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  return low ? `${letters.slice(0, low).join("")}…` : "";
}

/** The icicle below `root` (-1: all). `at` is the chosen feature; still: a picture only. */
export function Icicle({ root, color, height, at = null, onAt, onZoom, still = false, label = "Forest map" }) {
  const box = useRef(null);
  const canvas = useRef(null);
  const [width, setWidth] = useState(0);
  const [hover, setHover] = useState(null);
  const tree = forest.value;
  useLayoutEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const laid = useMemo(() => (width ? layout(tree, root, width, height) : null), [tree, root, width, height]);
  const paint = useMemo(() => coloring(color, tree), [color, tree, theme.value]);
  useEffect(() => {
    if (laid) draw(canvas.current, laid, width, height, paint, at, still);
  }, [laid, paint, at, theme.value, labels.value]);

  const find = (event) => {
    const area = canvas.current.getBoundingClientRect();
    const [x, y] = [event.clientX - area.left, event.clientY - area.top];
    return laid?.nodes.find((node) => x >= node.x && x < node.x + node.w && y >= node.y && y < node.y + Math.max(node.h, 0.5)) ?? null;
  };
  if (still) return html`<span class="icicle" ref=${box}><canvas ref=${canvas} style=${{ width: "100%", height: `${height}px` }} aria-hidden="true"></canvas></span>`;

  const keys = (event) => {
    const node = at === null ? null : laid?.byId.get(at);
    const above = node && laid.byId.get(tree.parent[at]);
    const shown = (list) => list.filter((id) => laid.byId.has(id)).sort((a, b) => laid.byId.get(a).y - laid.byId.get(b).y);
    const peers = node ? shown(at === root ? [at] : tree.parent[at] < 0 ? tree.roots : tree.kids(tree.parent[at])) : [];
    const first = () => (root < 0 ? shown(tree.roots)[0] : root);
    const next = {
      ArrowDown: () => (node ? peers[peers.indexOf(at) + 1] : first()),
      ArrowUp: () => (node ? peers[peers.indexOf(at) - 1] : first()),
      ArrowRight: () => (node ? shown(tree.kids(at))[0] : first()),
      ArrowLeft: () => above?.id,
      Enter: () => void (node && (at === root ? (location.hash = `#/feature/${at}`) : onZoom(at))),
      Backspace: () => void onZoom(root < 0 ? -1 : tree.parent[root]),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const id = next();
    if (id !== undefined) onAt(id);
  };
  const told = hover ?? at;
  const spot = told === null ? null : laid?.byId.get(told);
  return html`<div class="icicle" ref=${box} tabindex="0" role="application" aria-label=${`${label}. Arrow keys walk, Enter zooms in, Backspace zooms out. The table holds the same.`} onKeyDown=${keys}>
    <canvas ref=${canvas} style=${{ width: "100%", height: `${height}px` }} aria-hidden="true"
      onMouseMove=${(event) => setHover(find(event)?.id ?? null)} onMouseLeave=${() => setHover(null)}
      onClick=${(event) => {
        const node = find(event);
        if (!node) return;
        if (node.id === at || node.leaf) location.hash = `#/feature/${node.id}`;
        else onZoom(node.id === root ? tree.parent[root] : node.id);
      }}></canvas>
    ${spot && html`<div class="tip" role="status" style=${{ left: `${Math.min(spot.x + 8, width - 280)}px`, top: `${spot.y + Math.min(spot.h, 36) + 70 > height ? Math.max(0, spot.y - 70) : spot.y + Math.min(spot.h, 36) + 6}px` }}>
      <strong class="num">${told}</strong> <bdi>${visible(labels.value.get(told) ?? "no label")}</bdi><br />
      <span class="muted">${paint.words(told)}${spot.size > 1 ? ` · ${spot.size - 1} below` : ""}</span></div>`}
  </div>`;
}

export function Legend({ color }) {
  const tree = forest.value;
  const { title, legend } = useMemo(() => coloring(color, tree), [color, tree, theme.value]);
  if (legend.swatches) return html`<div class="legend"><span>${title}</span>${legend.swatches.map(([fill, text]) => html`<span class="legend-part"><span class="legend-box" style=${{ background: fill() }}></span>${text}</span>`)}</div>`;
  return html`<div class="legend"><span>${title}</span><span class="num">${legend.ends[0]}</span>
    <span class="legend-ramp" aria-hidden="true">${Array.from({ length: 24 }, (_, place) => html`<span key=${place} style=${{ background: legend.scale(place / 23) }}></span>`)}${legend.middle && html`<i>${legend.middle}</i>`}</span>
    <span class="num">${legend.ends[1]}</span>${legend.note && html`<span class="muted">${legend.note}</span>`}</div>`;
}
