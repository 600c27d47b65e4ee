// Two forests whose features are matched: the answer of `compare` as two sides that views treat alike.
import { Forest } from "./forest.js";
import { array } from "./transport.js";
import { forest } from "./store.js";
import { nameOf } from "./ui.js";

/** Whether the edge above a feature is in the other forest too, at a cosine from which two features match. */
export const STATES = {
  kept: ["✓", "kept", "The parent’s match is the parent of the match."],
  elsewhere: ["↷", "elsewhere", "Both ends have a match, but the match has another parent, or none."],
  unmatched: ["∅", "no match", "This feature or its parent has no match."],
  root: ["", "root", "A root: it has no parent."],
};

class Side {
  constructor(key, tree, name, title, { match, cos, kept, chance, measures }) {
    Object.assign(this, { key, tree, name, title, measures });
    this.match = array(match);
    this.cos = array(cos);
    this.kept = array(kept);
    this.chance = array(chance);
  }

  matched(id, least) {
    return this.cos[id] >= Math.fround(least); // as precise as the cosines
  }

  state(id, least) {
    const parent = this.tree.parent[id];
    if (parent < 0) return "root";
    if (!this.matched(id, least) || !this.matched(parent, least)) return "unmatched";
    return this.kept[id] ? "kept" : "elsewhere";
  }
}

/** {here, there, missing}: the sides of an answer of `compare`, and what to do about a missing index of the other. */
export function sidesOf(value, title) {
  const { parent, layer, density, dead, labels, missing } = value.forest;
  const names = new Map(Object.entries(labels ?? {}).map(([id, label]) => [Number(id), label]));
  const tree = new Forest({ parent, layer, features: { density, dead } }, 0);
  const here = new Side("here", forest.value, nameOf, title, value.here);
  const there = new Side("there", tree, (id) => names.get(id) ?? null, value.other, value.there);
  here.other = there;
  there.other = here;
  return { here, there, missing };
}

export const SHOWN = [["", "all features"], ["matched", "with a match"], ["unmatched", "without a match"], ["kept", "edges kept"], ["elsewhere", "edges elsewhere"]];

/** Features of a side that a filter keeps, as flags over their numbers; null if nothing is filtered. */
export function keptBy(side, { show, q, least }) {
  if (!show && !q) return null;
  const small = q.toLowerCase();
  const keep = new Uint8Array(side.tree.n);
  for (const id of side.tree.ids) {
    if (q && !(side.name(id) ?? "").toLowerCase().includes(small) && String(id) !== q) continue;
    if ((show === "matched" || show === "unmatched") && side.matched(id, least) !== (show === "matched")) continue;
    if ((show === "kept" || show === "elsewhere") && side.state(id, least) !== show) continue;
    keep[id] = 1;
  }
  return keep;
}
