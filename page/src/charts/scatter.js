// Edges as points on canvas over the null's cloud; a dragged rectangle chooses.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import { canvasOf, css, limits, theme } from "../colors.js";
import { labels } from "../store.js";
import { cell, visible } from "../text.js";
import { ticksBetween } from "./ticks.js";

const [LEFT, BOTTOM, EDGE] = [56, 40, 18];

/** Ends of an axis beyond all edges and null pairs, so that no mark is cut, and round ticks between. */
function axis(values, nulls, column) {
  const [a, b] = limits(Float32Array.from([...values, ...(nulls ?? [])]), 0, 1);
  let [low, high] = [a - 0.03 * (b - a), b + 0.03 * (b - a)];
  if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
  return { low, high, ticks: ticksBetween(low, high, 5), show: (tick) => (column?.format === "share" ? cell(column, tick) : String(Number(tick.toPrecision(4))).replace("-", "−")) };
}

/**
 * ids: edges by child; x, y: values over feature numbers; nullX, nullY: the cloud; brush: [x0, x1, y0, y1] in values.
 */
export function Scatter({ ids, x, y, nullX, nullY, columnX, columnY, brush, onBrush, at, onAt, height }) {
  const box = useRef(null);
  const canvas = useRef(null);
  const [width, setWidth] = useState(0);
  const [drag, setDrag] = useState(null);
  const [hover, setHover] = useState(null);
  const geometry = useRef(null);
  useLayoutEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);

  const axes = useMemo(() => [axis(ids.map((id) => x[id]), nullX, columnX), axis(ids.map((id) => y[id]), nullY, columnY)], [ids, x, y, nullX, nullY]);
  useEffect(() => {
    if (!width) return;
    const context = canvasOf(canvas.current, width, height);
    const [X, Y] = axes;
    const px = (value) => LEFT + ((value - X.low) / (X.high - X.low)) * (width - LEFT - EDGE);
    const py = (value) => EDGE + (1 - (value - Y.low) / (Y.high - Y.low)) * (height - BOTTOM - EDGE);
    geometry.current = { X, Y, px, py };
    context.font = `12px ${css("--sans")}`;
    context.lineWidth = 1;
    context.strokeStyle = css("--line");
    context.fillStyle = css("--muted");
    context.textAlign = "center";
    for (const tick of X.ticks) {
      context.beginPath(), context.moveTo(px(tick), EDGE), context.lineTo(px(tick), height - BOTTOM), context.stroke();
      context.fillText(X.show(tick), px(tick), height - BOTTOM + 16);
    }
    context.textAlign = "right";
    for (const tick of Y.ticks) {
      context.beginPath(), context.moveTo(LEFT, py(tick)), context.lineTo(width - EDGE, py(tick)), context.stroke();
      context.fillText(Y.show(tick), LEFT - 8, py(tick) + 4);
    }
    context.textAlign = "center";
    context.fillStyle = css("--ink");
    context.fillText(columnX.title, LEFT + (width - LEFT) / 2, height - 6);
    context.save();
    context.translate(13, EDGE + (height - BOTTOM) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(columnY.title, 0, 0);
    context.restore();
    context.save();
    context.beginPath();
    context.rect(LEFT, EDGE, width - LEFT - EDGE, height - BOTTOM - EDGE);
    context.clip();
    if (nullX && nullY) {
      context.strokeStyle = css("--null");
      context.globalAlpha = 0.4;
      for (let i = 0; i < nullX.length; i++) {
        if (!Number.isFinite(nullX[i]) || !Number.isFinite(nullY[i])) continue;
        const [a, b] = [px(nullX[i]), py(nullY[i])];
        context.beginPath(), context.moveTo(a - 2.5, b - 2.5), context.lineTo(a + 2.5, b + 2.5), context.moveTo(a - 2.5, b + 2.5), context.lineTo(a + 2.5, b - 2.5), context.stroke();
      }
    }
    const many = ids.length > 6000;
    context.fillStyle = css("--accent");
    context.globalAlpha = many ? 0.3 : 0.55;
    const size = many ? 2 : 3.2;
    for (const id of ids) {
      const [a, b] = [px(x[id]), py(y[id])];
      if (Number.isFinite(a) && Number.isFinite(b)) {
        context.beginPath();
        context.arc(a, b, size / 1.4, 0, 7);
        context.fill();
      }
    }
    context.globalAlpha = 1;
    const area = drag ? [Math.min(drag[0], drag[2]), Math.min(drag[1], drag[3]), Math.abs(drag[2] - drag[0]), Math.abs(drag[3] - drag[1])]
      : brush && [px(brush[0]), py(brush[3]), px(brush[1]) - px(brush[0]), py(brush[2]) - py(brush[3])];
    if (area) {
      context.fillStyle = css("--accent");
      context.globalAlpha = 0.08;
      context.fillRect(...area);
      context.globalAlpha = 1;
      context.strokeStyle = css("--accent");
      context.strokeRect(...area);
    }
    if (at !== null && Number.isFinite(x[at]) && Number.isFinite(y[at])) {
      context.beginPath();
      context.arc(px(x[at]), py(y[at]), 7, 0, 7);
      context.lineWidth = 4;
      context.strokeStyle = css("--ground");
      context.stroke();
      context.lineWidth = 2;
      context.strokeStyle = css("--ink");
      context.stroke();
    }
    context.restore();
  }, [ids, x, y, nullX, nullY, width, height, brush, drag, at, theme.value]);

  const place = (event) => {
    const area = canvas.current.getBoundingClientRect();
    return [event.clientX - area.left, event.clientY - area.top];
  };
  const nearest = ([a, b]) => {
    const { px, py } = geometry.current;
    let [best, distance] = [null, 144];
    for (const id of ids) {
      const d = (px(x[id]) - a) ** 2 + (py(y[id]) - b) ** 2;
      if (d < distance) [best, distance] = [id, d];
    }
    return best;
  };
  const value = ([a, b]) => {
    const { X, Y } = geometry.current;
    return [X.low + ((a - LEFT) / (width - LEFT - EDGE)) * (X.high - X.low), Y.low + (1 - (b - EDGE) / (height - BOTTOM - EDGE)) * (Y.high - Y.low)];
  };
  const finish = () => {
    if (!drag) return;
    const [a, b] = [value([drag[0], drag[1]]), value([drag[2], drag[3]])];
    if (Math.abs(drag[2] - drag[0]) < 4 && Math.abs(drag[3] - drag[1]) < 4) {
      const id = nearest([drag[2], drag[3]]);
      if (id !== null) onAt(id);
      else onBrush(null);
    } else onBrush([Math.min(a[0], b[0]), Math.max(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[1], b[1])]);
    setDrag(null);
  };
  const words = `Scatter of ${ids.length} edges: ${columnX.title} across, ${columnY.title} up, over the cloud of null pairs. The table holds the same edges.`;
  const spot = hover !== null && geometry.current ? [geometry.current.px(x[hover]), geometry.current.py(y[hover])] : null;
  return html`<div class="scatter" ref=${box}>
    <canvas ref=${canvas} role="img" aria-label=${words} style=${{ width: "100%", height: `${height}px` }}
      onPointerDown=${(event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        setDrag([...place(event), ...place(event)]);
      }}
      onPointerMove=${(event) => (drag ? setDrag([drag[0], drag[1], ...place(event)]) : setHover(nearest(place(event))))}
      onPointerUp=${finish} onPointerLeave=${() => setHover(null)}></canvas>
    ${spot && !drag && html`<div class="tip" style=${{ left: `${Math.min(spot[0] + 10, width - 260)}px`, top: `${Math.min(spot[1] + 10, height - 60)}px` }}><strong class="num">${hover}</strong> <bdi>${visible(labels.value.get(hover) ?? "no label")}</bdi><br /><span class="muted">${columnX.title} ${cell(columnX, x[hover])}, ${columnY.title} ${cell(columnY, y[hover])}</span></div>`}
  </div>`;
}
