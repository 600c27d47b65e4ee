// The rows of the tree list: which features a filter keeps, and which rows are open.

/** What the address says about the list. */
export function readFilter(state) {
  const numberOf = (key) => (state.has(key) && state.get(key) !== "" ? Math.fround(Number(state.get(key))) : null);
  return {
    q: state.get("q") ?? "", regex: state.get("re") === "1", where: state.get("in") ?? "label,token,text",
    layer: numberOf("layer"), depth: numberOf("depth"), dmin: numberOf("dmin"), dmax: numberOf("dmax"),
    kids: state.get("kids") ?? "", col: state.get("col"), pmin: numberOf("pmin"), vmin: numberOf("vmin"), only: state.get("only") ?? "", sort: state.get("sort") ?? "density",
  };
}

export const isFiltered = (filter) =>
  Boolean(filter.q || filter.layer !== null || filter.depth !== null || filter.dmin !== null || filter.dmax !== null || filter.kids || filter.pmin !== null || filter.vmin !== null || filter.only);

/** Features that pass every filter, as flags over feature numbers; null if nothing is filtered. */
export function matching(tree, filter, found, marked) {
  if (!isFiltered(filter)) return null;
  const keep = new Uint8Array(tree.n);
  const places = filter.pmin === null ? null : tree.places.get(filter.col);
  const values = filter.vmin === null ? null : tree.columns.get(filter.col);
  for (const id of tree.ids) {
    if (filter.q && !found.has(id)) continue;
    if (filter.layer !== null && tree.layer[id] !== filter.layer) continue;
    if (filter.depth !== null && tree.depth[id] !== filter.depth) continue;
    if (filter.dmin !== null && !(tree.density[id] >= filter.dmin)) continue;
    if (filter.dmax !== null && !(tree.density[id] <= filter.dmax)) continue;
    const n = filter.kids ? tree.kids(id).length : 0;
    if (filter.kids === "some" && !n) continue;
    if (filter.kids === "none" && n) continue;
    if (filter.kids === "many" && n < 5) continue;
    if (places && !(places[id] >= filter.pmin)) continue;
    if (values && !(values[id] >= filter.vmin)) continue;
    if (filter.only === "alive" && tree.dead[id]) continue;
    if (filter.only === "dead" && !tree.dead[id]) continue;
    if ((filter.only === "bookmarked" || filter.only === "rated" || filter.only === "noted") && !marked(filter.only, id)) continue;
    keep[id] = 1;
  }
  return keep;
}

/** Order of siblings by what the list is sorted by. */
function comparing(tree, sort) {
  const [kind, name] = sort.split(":");
  if (kind === "id") return (a, b) => a - b;
  if (kind === "size") return (a, b) => tree.size[b] - tree.size[a] || a - b;
  const values = kind === "place" ? tree.places.get(name) : null;
  if (values) {
    const of = (id) => (Number.isNaN(values[id]) ? -1 : values[id]);
    return (a, b) => of(b) - of(a) || a - b;
  }
  return null; // children are sorted by density already
}

/** {rows: [{id, level, place, count, kids, open, match}], n}: the visible rows; ancestors of matches are kept as a way to them. */
export function visibleRows(tree, { open, all, keep, sort }) {
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
  const compare = comparing(tree, sort);
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
    const below = way ? kids.some((child) => way[child]) : kids.length > 0;
    const isOpen = below && (way ? !open.has(id) : all !== open.has(id)); // among matches, `open` holds what was closed
    rows.push({ id, level, place, count, kids: kids.length, below, open: isOpen, match: !keep || keep[id] === 1 });
    if (isOpen) push(kids, level + 1);
  }
  return { rows, n };
}
