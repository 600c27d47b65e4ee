// The rows of the tree list: which features a filter keeps, and which rows are open.

/** What the address says about the list. */
export function readFilter(state) {
  const numberOf = (key) => (state.has(key) && state.get(key) !== "" ? Math.fround(Number(state.get(key))) : null);
  return {
    q: state.get("q") ?? "", regex: state.get("re") === "1", where: state.get("in") ?? "label,token,text",
    layer: numberOf("layer"), depth: numberOf("depth"), dmin: numberOf("dmin"), dmax: numberOf("dmax"),
    kids: state.get("kids") ?? "", col: state.get("col"), pmin: numberOf("pmin"), pmax: numberOf("pmax"), vmin: numberOf("vmin"), vmax: numberOf("vmax"), only: state.get("only") ?? "",
    sort: state.get("sort") ?? (state.get("q") ? "relevance" : "density"), up: state.get("up") === "1",
  };
}

const BOUNDS = ["layer", "depth", "dmin", "dmax", "pmin", "pmax", "vmin", "vmax"];
export const isFiltered = (filter) => Boolean(filter.q || filter.kids || filter.only || BOUNDS.some((key) => filter[key] !== null));

/** Whether a number is within bounds, of which either may be null; a number that is not defined is not. */
export const within = (value, low, high) => (low === null || value >= low) && (high === null || value <= high);

/** Features that pass every filter, as flags over feature numbers; null if nothing is filtered. */
export function matching(tree, filter, found, marked) {
  if (!isFiltered(filter)) return null;
  const keep = new Uint8Array(tree.n);
  const places = filter.pmin === null && filter.pmax === null ? null : tree.places.get(filter.col);
  const values = filter.vmin === null && filter.vmax === null ? null : tree.columns.get(filter.col);
  for (const id of tree.ids) {
    if (filter.q && !found.has(id)) continue;
    if (filter.layer !== null && tree.layer[id] !== filter.layer) continue;
    if (filter.depth !== null && tree.depth[id] !== filter.depth) continue;
    if (!within(tree.density[id], filter.dmin, filter.dmax)) continue;
    const n = filter.kids ? tree.kids(id).length : 0;
    if (filter.kids === "some" && !n) continue;
    if (filter.kids === "none" && n) continue;
    if (filter.kids === "many" && n < 5) continue;
    if (places && !within(places[id], filter.pmin, filter.pmax)) continue;
    if (values && !within(values[id], filter.vmin, filter.vmax)) continue;
    if (filter.only === "alive" && tree.dead[id]) continue;
    if (filter.only === "dead" && !tree.dead[id]) continue;
    if ((filter.only === "bookmarked" || filter.only === "rated" || filter.only === "noted") && !marked(filter.only, id)) continue;
    keep[id] = 1;
  }
  return keep;
}

/** How relevant each subtree is to a search: the place of its best feature among what was found. */
function relevance(tree, found) {
  const best = new Map();
  let place = 0;
  for (const id of found.keys()) {
    for (let at = id; at >= 0 && tree.present[at] && !best.has(at); at = tree.parent[at]) best.set(at, place);
    place++;
  }
  return (id) => -(best.get(id) ?? Infinity);
}

/** Order of siblings by what the list is sorted by, the largest first or last; what is not defined comes last either way. */
function comparing(tree, { sort, up, found }) {
  const [kind, name] = sort.split(":");
  if (kind === "density" && !up) return null; // children are sorted so already
  const places = tree.places.get(name);
  const of = {
    id: (id) => -id, size: (id) => tree.size[id], density: (id) => (tree.dead[id] ? NaN : tree.density[id]), relevance: found && relevance(tree, found),
    place: places && ((id) => places[id]),
  }[kind];
  if (!of) return null;
  return (a, b) => {
    const [x, y] = [of(a), of(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return (x === y ? 0 : (x < y) === up ? -1 : 1) || a - b;
  };
}

/** {rows: [{id, level, place, count, kids, open, match}], n}: the visible rows; ancestors of matches are kept as a way to them. `found`: of a search, the most relevant first. */
export function visibleRows(tree, { open, all, keep, sort, up = false, found = null }) {
  let way = null;
  let n = tree.ids.length;
  if (keep) {
    way = new Uint8Array(tree.n);
    n = 0;
    for (const id of tree.ids) {
      if (!keep[id]) continue;
      n++;
      for (let at = id; at >= 0 && tree.present[at] && !way[at]; at = tree.parent[at]) way[at] = 1;
    }
  }
  const compare = comparing(tree, { sort, up, found });
  const rows = [];
  const stack = [];
  const push = (list, level) => {
    const shown = way ? list.filter((id) => way[id]) : compare ? [...list] : list;
    if (compare) shown.sort(compare);
    for (let place = shown.length - 1; place >= 0; place--) stack.push([shown[place], level, place + 1, shown.length]);
  };
  push(tree.roots, 1);
  while (stack.length) {
    const [id, level, place, count] = stack.pop();
    const kids = tree.kids(id);
    const held = tree.held(kids);
    const below = way ? held.some((child) => way[child]) : held.length > 0;
    const isOpen = below && (way ? !open.has(id) : all !== open.has(id)); // among matches, `open` holds what was closed
    rows.push({ id, level, place, count, kids: kids.length, below, open: isOpen, match: !keep || keep[id] === 1 });
    if (isOpen) push(held, level + 1);
  }
  return { rows, n };
}
