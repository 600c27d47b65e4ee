// The list of all features as a tree: keyboard-driven, virtualized, searched and filtered; beside it the chosen feature.
import { html, useLayoutEffect, useMemo } from "../html.js";
import { go, query, route, to } from "../route.js";
import { forest, notes, ratings } from "../store.js";
import { count, percent, plural, visible } from "../text.js";
import { Choice, Failure, Gauge, Select, nameOf } from "../ui.js";
import { isFiltered, matching, readFilter, visibleRows } from "../rows.js";
import { EVERYWHERE, useSearch } from "../search.js";
import { Term } from "../term.js";
import { TreeList, openText, readOpen, toggled, withOpen } from "../treelist.js";
import { Preview } from "./preview.js";

const LEAST = [["", "any"], ["0.5", "at least 50%"], ["0.8", "at least 80%"], ["0.95", "at least 95%"], ["0.99", "at least 99%"]];
const MOST = [["", "any"], ["0.05", "at most 5%"], ["0.2", "at most 20%"], ["0.5", "at most 50%"], ["0.8", "at most 80%"], ["0.95", "at most 95%"]];

function Filters({ filter, tree, n, search, onOpenAll, onCloseAll }) {
  const set = (change) => query({ ...change, at: null, open: null });
  const number = (key, label, props) => html`<label class="field"><span>${label}</span><input type="number" value=${filter[key] ?? ""} ...${props} onChange=${(event) => set({ [key]: event.currentTarget.value })} /></label>`;
  const layers = Array.from({ length: tree.nLayers }, (_, layer) => [String(layer), `Layer ${layer}`]);
  const depths = Array.from({ length: tree.maxDepth + 1 }, (_, depth) => [String(depth), depth === 0 ? "0: roots" : String(depth)]);
  const col = filter.col ?? tree.telling?.name;
  const densities = [["", "any"], ["0.1", "10%"], ["0.01", "1%"], ["0.001", "0.1%"], ["0.0001", "0.01%"], ["0.00001", "0.001%"]];
  return html`<form class="filters" aria-label="Filters" onSubmit=${(event) => event.preventDefault()}>
    <div class="filter-line">
      <h1>Tree</h1>
      <${Choice} label="Search in" value=${filter.where} options=${[[EVERYWHERE, "Everything"], ["label", "Labels"], ["token", "Tokens"], ["text", "Contexts"]]} onChoose=${(where) => set({ in: where === EVERYWHERE ? null : where })} />
      <label class="check"><input type="checkbox" checked=${filter.regex} onChange=${(event) => set({ re: event.currentTarget.checked })} /> Regular expression</label>
      <span class="tally" role="status">${filter.q ? html`“<bdi>${visible(filter.q)}</bdi>”: ` : ""}${isFiltered(filter) ? `${plural(n, "feature")} of ${count(tree.ids.length)}` : plural(n, "feature")}${search.state === "loading" ? ", searching …" : ""}${search.truncated ? ", there may be more" : ""} ${search.note ?? ""}</span>
      <span class="grow"></span>
      ${isFiltered(filter) && html`<a class="button" href=${to("tree")}>Show all</a>`}
      <button type="button" onClick=${onOpenAll}>Open all</button>
      <button type="button" onClick=${onCloseAll}>Close all</button>
    </div>
    <div class="filter-line filter-fields">
      <${Select} label="Layer" value=${filter.layer === null ? "" : String(filter.layer)} options=${[["", "any"], ...layers]} onChoose=${(layer) => set({ layer })} />
      <${Select} label="Depth" value=${filter.depth === null ? "" : String(filter.depth)} options=${[["", "any"], ...depths]} onChoose=${(depth) => set({ depth })} />
      <${Select} label="Density from" value=${filter.dmin === null ? "" : String(filter.dmin)} options=${densities} onChoose=${(dmin) => set({ dmin })} />
      <${Select} label="to" value=${filter.dmax === null ? "" : String(filter.dmax)} options=${densities} onChoose=${(dmax) => set({ dmax })} />
      <${Select} label="Children" value=${filter.kids} options=${[["", "any"], ["some", "with children"], ["many", "5 or more"], ["none", "without"]]} onChoose=${(kids) => set({ kids })} />
      <${Select} label="Only" value=${filter.only} options=${[["", "all"], ["alive", "alive"], ["dead", "dead"], ["bookmarked", "bookmarked"], ["noted", "with a note"], ["rated", "rated edges"]]} onChoose=${(only) => set({ only })} />
      <${Select} label="Edge column" value=${col ?? ""} options=${tree.about.map(({ name, title }) => [name, title])} onChoose=${(col) => set({ col })} />
      <${Select} label="Beats null pairs" value=${filter.pmin === null ? "" : String(filter.pmin)} options=${LEAST} onChoose=${(pmin) => set({ pmin, col })} />
      <${Select} label="at most" value=${filter.pmax === null ? "" : String(filter.pmax)} options=${MOST} onChoose=${(pmax) => set({ pmax, col })} />
      ${number("vmin", "Value from", { step: "any" })}
      ${number("vmax", "to", { step: "any", "aria-label": "Value to" })}
      <${Select} label="Sort" value=${filter.sort} options=${[...(filter.q ? [["relevance", "Relevance"]] : []), ["density", "Density"], ["size", "Features below"], ["id", "Number"], ...tree.about.map(({ name, title }) => [`place:${name}`, `Place: ${title}`])]} onChoose=${(sort) => query({ sort: sort === (filter.q ? "relevance" : "density") ? null : sort })} />
      <button type="button" aria-pressed=${filter.up} title=${filter.up ? "The other way round" : "As usual: the largest first; numbers from 0"} aria-label="Reversed order" onClick=${() => query({ up: !filter.up })}>${filter.up ? "↑" : "↓"}</button>
    </div>
  </form>`;
}

function Name({ id, tree }) {
  const label = nameOf(id);
  return html`${label ? html`<bdi>${visible(label)}</bdi>` : html`<span class="muted">${tree.dead[id] ? "never fired" : "no label"}</span>`}${notes.value.get(id)?.bookmark ? html`<span class="mark" title="bookmarked">★</span>` : null}${ratings.value.has(id) ? html`<span class="mark" title="edge rated">${{ yes: "✓", no: "✗", unsure: "?" }[ratings.value.get(id).rating]}</span>` : null}`;
}

export function TreeView() {
  const tree = forest.value;
  const { query: state } = route.value;
  const filter = readFilter(state);
  const search = useSearch(filter);
  const opened = useMemo(() => readOpen(state.get("open")), [state.get("open")]);
  const marked = (what, id) => (what === "rated" ? ratings.value.has(id) : what === "noted" ? Boolean(notes.value.get(id)?.note) : Boolean(notes.value.get(id)?.bookmark));
  const key = state.toString().replace(/(^|&)(open|at)=[^&]*/g, "");
  const keep = useMemo(() => matching(tree, filter, search.found, marked), [tree, key, search.found, notes.value, ratings.value]);
  const { rows, n } = useMemo(() => visibleRows(tree, { ...opened, keep, sort: filter.sort, up: filter.up, found: filter.q ? search.found : null }), [tree, opened, keep, filter.sort, filter.up, search.found]);
  const column = tree.column(filter.col) ?? tree.telling;
  const wanted = state.has("at") ? Number(state.get("at")) : null;
  const at = useMemo(() => (rows.some(({ id }) => id === wanted) ? wanted : null), [rows, wanted]);
  // An address that names a feature opens the way to it.
  useLayoutEffect(() => {
    if (wanted === null || at !== null || !tree.has(wanted) || keep) return;
    query({ open: openText(withOpen(opened, tree.path(wanted).slice(0, -1))) }, { replace: true });
  }, [wanted, at, keep]);

  const pick = (id) => query({ at: id }, { replace: true });
  const toggle = (id) => query({ open: openText(toggled(opened, id)), at: id }, { replace: true });
  const cells = ({ id, kids }) => html`<span class="kids num">${kids || ""}</span>
    <span class="density num">${tree.dead[id] ? "" : percent(tree.density[id])}</span>
    <span class="place-cell">${column && tree.parent[id] >= 0 ? html`<${Gauge} place=${tree.place(column.name, id)} column=${column} />` : null}</span>`;
  return html`<div class="wide tree-view">
    <${Filters} filter=${filter} tree=${tree} n=${n} search=${search} onOpenAll=${() => query({ open: keep ? null : "all" })}
      onCloseAll=${() => query({ open: keep ? rows.filter((row) => row.below && row.level === 1).slice(0, 400).map((row) => `.${row.id}`).join("") : null })} />
    ${search.state === "error" && html`<${Failure} error=${search.error} what="The search failed." />`}
    <div class="split">
      <div class="tree-pane">
        <${TreeList} tree=${tree} rows=${rows} of=${key} at=${at} wanted=${wanted} label="Features" name=${(id) => html`<${Name} id=${id} tree=${tree} />`} cells=${cells}
          head=${html`<span class="kids">children</span><span class="density">density</span><span class="place-cell" title=${column?.title}>${column ? "beats null pairs" : ""}</span>`}
          onPick=${pick} onToggle=${toggle} onOpen=${(id) => go(to("feature", id))} />
        ${!rows.length && search.state !== "loading" && html`<p class="state empty">No feature matches. <a href=${to("tree")}>Show all</a></p>`}
      </div>
      <${Preview} id=${at} found=${at === null ? null : search.found.get(at)} />
    </div>
  </div>`;
}
