// The forest as typed arrays over feature numbers. A part of a forest (an export) fills the rows of the features that it
// holds and of all their children, so that what is said of a family is true of the whole of it.
import { array } from "./transport.js";

/** How the numbers of a column are written, by its unit. */
const FORMATS = { fraction: "share", share: "share", cosine: "cosine", log2: "log2", rank: "rank" };

export class Forest {
  constructor(json, nFeatures) {
    const ids = array(json.ids);
    const n = Math.max(nFeatures, ids ? 0 : array(json.parent).length);
    const spread = (value, fill, Type) => {
      const given = array(value);
      if (!given) return null;
      if (!ids) return given;
      const whole = new Type(n).fill(fill);
      ids.forEach((id, place) => (whole[id] = given[place]));
      return whole;
    };
    this.n = n;
    this.known = ids ? Int32Array.from(ids).sort() : Int32Array.from({ length: n }, (_, id) => id);
    this.ids = ids ? Int32Array.from(array(json.held)).sort() : this.known;
    this.whole = !ids;
    this.present = new Uint8Array(n);
    for (const id of this.ids) this.present[id] = 1;
    this.parent = spread(json.parent, -1, Int32Array);
    this.layer = spread(json.layer, 0, Int32Array);
    const features = json.features ?? {};
    this.density = spread(features.density, NaN, Float32Array) ?? new Float32Array(n).fill(NaN);
    this.fired = spread(features.n_fired, 0, Int32Array) ?? new Int32Array(n);
    this.max = spread(features.max, NaN, Float32Array) ?? new Float32Array(n).fill(NaN);
    this.dead = spread(features.dead, 0, Uint8Array) ?? new Uint8Array(n);
    this.about = (json.about ?? []).filter(({ name }) => json.columns?.[name]).map((column) => ({ ...column, format: column.format ?? FORMATS[column.unit] }));
    this.columns = new Map(this.about.map(({ name }) => [name, spread(json.columns[name], NaN, Float32Array)]));
    this.places = new Map(
      this.about.map(({ name }) => [name, spread(json.places?.[name], NaN, Float32Array) ?? new Float32Array(n).fill(NaN)]),
    );
    // A place is the share of null pairs that the edge beats, whichever way the column counts.
    for (const { name, higher_is_more: more } of this.about) if (more === false) this.places.set(name, this.places.get(name).map((place) => 1 - place));
    this.link(spread(json.size, 1, Int32Array));
  }

  /** Children lists (the most frequent first), depths and sizes of subtrees; `size` is given for a part. */
  link(size) {
    const { n, parent, density, ids, known } = this;
    const frequent = (a, b) => (density[b] || 0) - (density[a] || 0) || a - b;
    this.children = new Map();
    this.roots = [];
    for (const id of known) {
      const above = parent[id];
      if (above < 0 || !this.present[above]) this.roots.push(id);
      else if (this.children.has(above)) this.children.get(above).push(id);
      else this.children.set(above, [id]);
    }
    for (const list of this.children.values()) list.sort(frequent);
    this.roots.sort(frequent);
    this.depth = new Int32Array(n);
    this.size = new Int32Array(n).fill(1);
    const order = [...this.roots];
    for (let place = 0; place < order.length; place++) {
      for (const child of this.kids(order[place])) {
        this.depth[child] = this.depth[order[place]] + 1;
        order.push(child);
      }
    }
    if (size) this.size = size;
    else for (let place = order.length - 1; place >= 0; place--) {
      const above = parent[order[place]];
      if (above >= 0 && this.present[above]) this.size[above] += this.size[order[place]];
    }
    this.maxDepth = order.length ? this.depth[order[order.length - 1]] : 0;
    this.nLayers = ids.length ? Math.max(...new Set(this.layer)) + 1 : 0;
    this.edges = ids.filter((id) => parent[id] >= 0);
  }

  has(id) {
    return id !== null && id >= 0 && id < this.n && this.present[id] === 1;
  }

  kids(id) {
    return this.children.get(id) ?? [];
  }

  /** Those of some features that this forest holds: in a part, not all children of an ancestor. */
  held(ids) {
    return this.whole ? ids : ids.filter((id) => this.present[id] === 1);
  }

  /** From the topmost ancestor down to the feature itself. */
  path(id) {
    const path = [];
    for (let at = id; at >= 0 && path.length <= 64; at = this.parent[at]) path.unshift(at);
    return path;
  }

  value(name, id) {
    return this.columns.get(name)?.[id] ?? NaN;
  }

  place(name, id) {
    return this.places.get(name)?.[id] ?? NaN;
  }

  column(name) {
    return this.about.find((column) => column.name === name);
  }

  /** The column that says most about an edge here: coverage without the gate, unless something forces it. */
  get telling() {
    const free = this.about.filter((column) => !column.mechanical);
    return free.find(({ name }) => name === "ungated") ?? free[0] ?? this.column("ungated") ?? this.about[0] ?? null;
  }

  /** Families by a column's places, of parents whose children have some: [{parent, n, beat, middle}]: how many children have a place, how many of them beat 95% of null pairs, and the median place. */
  families(column) {
    const places = this.places.get(column.name);
    const found = [];
    for (const [parent, kids] of this.children) {
      const known = kids.map((id) => places[id]).filter(Number.isFinite).sort((a, b) => a - b);
      const n = known.length;
      if (n) found.push({ parent, n, beat: known.filter((place) => place > 0.95).length, middle: (known[(n - 1) >> 1] + known[n >> 1]) / 2 });
    }
    return found;
  }
}
