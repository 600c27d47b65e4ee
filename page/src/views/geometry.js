// Geometry of a family (figure 9 of the Tree SAE paper): activations under the parent in their plane, linked to contexts.
import { html, useMemo } from "../html.js";
import { query, route, to } from "../route.js";
import { forest, lacking, useAsk } from "../store.js";
import { number, percent, plural, visible, visibleToken } from "../text.js";
import { Answer, FeatureLink, Lacking } from "../ui.js";
import { childMarks } from "../contexts.js";
import { Plane, Shape } from "../charts/plane.js";
import { FeatureHead } from "./feature.js";

const MOST = 12;

function Geometry({ value, id }) {
  const tree = forest.value;
  const { points = [], explained } = value;
  // Of a large family, the children that these activations show; more arrows than that cannot be told apart.
  const { directions, left } = useMemo(() => {
    const n = new Map();
    for (const { child } of points) n.set(child, (n.get(child) ?? 0) + 1);
    const all = value.directions ?? [];
    const shown = all.length <= MOST ? all : all.filter(({ child }) => n.has(child)).sort((a, b) => n.get(b.child) - n.get(a.child)).slice(0, MOST);
    return { directions: shown, left: all.length - shown.length };
  }, [value]);
  const marks = useMemo(() => childMarks(directions.map(({ child }) => child)), [directions]);
  const places = useMemo(() => new Map(directions.map(({ child }, place) => [child, place])), [directions]);
  const order = ({ child }) => places.get(child) ?? MOST;
  const text = route.value.query.get("points");
  const chosen = useMemo(() => (text ? new Set(text.split(".").map(Number)) : null), [text]);
  const shown = points.map((point, index) => ({ ...point, index })).filter(({ index }) => !chosen || chosen.has(index)).sort((a, b) => order(a) - order(b) || b.x - a.x);
  const untrained = value.null && typeof value.null === "object" ? value.null.explained : value.null;
  return html`<div class="columns-geometry">
    <div><${Plane} points=${points} directions=${directions} marks=${marks} chosen=${chosen} explained=${explained} onChoose=${(list) => query({ points: list?.join(".") })} />
      <p class="hint">Drag to choose points. Arrows: encoder directions of the children, in this plane. ${explained ? `The plane holds ${percent(explained[0] + explained[1])} of the variance` : ""}${Array.isArray(untrained) ? `; in an untrained tree ${percent(untrained[0] + untrained[1])}.` : untrained ? `. ${visible(String(untrained))}` : explained ? ". What a plane of an untrained tree would hold was not measured here: groups seen by eye are no proof." : ""}</p>
    </div>
    <div>
      <section aria-labelledby="kinds"><h2 id="kinds">Children</h2>
        <p class="hint">Beside each: on how many of these ${plural(points.length, "activation")} of the parent it is the child that fires most strongly. A small sample: the first that were read.</p>
        <ul class="plane-key">${directions.map(({ child }) => html`<li key=${child}><svg width="16" height="16" aria-hidden="true"><${Shape} kid=${marks.get(child)} /></svg> <span class="mark-number">${marks.get(child).mark}</span> <${FeatureLink} id=${child} /> <span class="muted num">${points.filter((point) => point.child === child).length}</span></li>`)}
          <li><svg width="16" height="16" aria-hidden="true"><${Shape} kid=${null} /></svg> <span class="mark-number"></span> <span>${left ? "only the parent, or a child not shown" : "only the parent"}</span> <span class="muted num">${points.filter((point) => !marks.has(point.child)).length}</span></li></ul>
        ${left > 0 && html`<p class="hint">The ${directions.length} children with most of these ${points.length} activations; ${plural(left, "more child", "more children")} ${left === 1 ? "is" : "are"} in the <a href=${to("family", id)}>family</a>.</p>`}</section>
      <section aria-labelledby="points"><div class="head"><h2 id="points">${plural(shown.length, "activation")}</h2>${chosen && html`<a class="button" href=${to("geometry", id)}>Show all</a>`}</div>
        <div class="table-box points-box" tabindex="0" role="region" aria-label="Activations"><table><thead><tr><th scope="col">Child</th><th scope="col">Context</th><th scope="col" class="numeric">x</th><th scope="col" class="numeric">y</th></tr></thead>
          <tbody>${shown.map((point) => html`<tr key=${point.index} data-context tabindex="-1"><td class="num">${marks.get(point.child)?.mark ?? "–"}</td><td class="point-text"><bdi>${visible(point.before ?? "").slice(-36)}<mark>${visible(point.token)}</mark>${visible(point.after ?? "").slice(0, 36)}</bdi></td><td class="numeric num">${number(point.x)}</td><td class="numeric num">${number(point.y)}</td></tr>`)}</tbody></table></div></section>
    </div></div>`;
}

export function GeometryView({ id }) {
  const tree = forest.value;
  const enough = tree.kids(id).filter((kid) => !tree.dead[kid]).length >= 2;
  const lacks = lacking("geometry");
  const answer = useAsk(enough && !lacks ? `geometry/${id}` : null);
  return html`<div class="wide"><${FeatureHead} id=${id} view="geometry" />
    ${lacks ? html`<${Lacking} text=${lacks} />` : enough ? html`<${Answer} answer=${answer} what="The geometry">${(value) => html`<${Geometry} value=${value} id=${id} />`}</${Answer}>`
      : html`<p class="state empty">A plane needs two children that fire; this feature has ${tree.kids(id).filter((kid) => !tree.dead[kid]).length}. ${tree.parent[id] >= 0 && html`Its parent’s: <${FeatureLink} id=${tree.parent[id]} view="geometry" />`}</p>`}</div>`;
}
