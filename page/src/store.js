// What all views share: overview, forest, labels and what a person wrote. Everything else is asked for by path.
import { batch, signal } from "@preact/signals";
import { useEffect, useState } from "./html.js";
import { Forest } from "./forest.js";
import { transport } from "./transport.js";

export const overview = signal(null);
export const forest = signal(null);
export const labels = signal(new Map());
export const sources = signal(new Map());
export const notes = signal(new Map());
export const ratings = signal(new Map());
export const trouble = signal(null);
/** A line for the reader and for screen readers: what was saved, what failed. */
export const said = signal("");

/** Whether all of this has arrived, or will not: nothing is shown before, as names that arrive later would move what is seen. */
export const complete = signal(false);

export async function start() {
  const [about, whole, named, written] = await Promise.allSettled(["overview", "forest", "labels", "annotations"].map((path) => transport.get(path)));
  const byNumber = (object) => new Map(Object.entries(object ?? {}).map(([id, value]) => [Number(id), value]));
  batch(() => {
    try {
      if (about.reason ?? whole.reason) throw about.reason ?? whole.reason;
      overview.value = about.value;
      forest.value = new Forest(whole.value, about.value.n_features);
    } catch (error) {
      trouble.value = error;
    }
    if (named.status === "fulfilled") {
      labels.value = byNumber(named.value.labels);
      sources.value = byNumber(named.value.sources);
    }
    if (written.status === "fulfilled") {
      notes.value = byNumber(written.value.annotations);
      ratings.value = byNumber(written.value.ratings);
    }
    complete.value = true;
  });
}

export const canWrite = () => transport.writes && overview.value?.static !== true && overview.value?.writes !== false;

/** What to do about a part that this explorer lacks ("training", "geometry", "prompt", "nulls", "logits"); null if it is there. */
export function lacking(part) {
  const has = overview.value?.has;
  if (!has || has[part] !== false) return null;
  return has.missing?.[part] ?? "It is not in this index; `saeforest index RUN` makes it.";
}

const cache = new Map();

/** Ask for a path once; later questions get the same answer. Failures are asked again. */
export function ask(path) {
  if (!cache.has(path)) {
    cache.set(path, transport.get(path));
    cache.get(path).catch(() => cache.delete(path));
    if (cache.size > 400) cache.delete(cache.keys().next().value);
  }
  return cache.get(path);
}

/** The next question for a path is asked anew. */
export function forget(path) {
  cache.delete(path);
}

/** {state: "loading" | "ready" | "error", value, error} for a path; null asks for nothing. */
export function useAsk(path) {
  const [answer, setAnswer] = useState({ state: path ? "loading" : "none", path });
  useEffect(() => {
    if (!path) {
      setAnswer({ state: "none", path });
      return;
    }
    let current = true;
    setAnswer({ state: "loading", path });
    ask(path).then(
      (value) => current && setAnswer({ state: "ready", value, path }),
      (error) => current && setAnswer({ state: "error", error, path }),
    );
    return () => (current = false);
  }, [path]);
  return answer.path === path ? answer : { state: path ? "loading" : "none", path };
}

function changed(map, id, value) {
  const copy = new Map(map.value);
  if (value === undefined || value === null) copy.delete(id);
  else copy.set(id, value);
  map.value = copy;
}

/** Save label, note or bookmark of a feature. */
export async function annotate(id, change) {
  try {
    const answer = await transport.send("PUT", `annotations/${id}`, change);
    const saved = answer.label === undefined && "label" in change ? change.label : answer.label;
    changed(notes, id, { ...notes.value.get(id), ...change });
    if ("label" in change) {
      if (saved) changed(labels, id, saved);
      else {
        const again = await transport.get("labels");
        changed(labels, id, again.labels[id]);
        changed(sources, id, again.sources[id]);
      }
      if (saved) changed(sources, id, "hand");
    }
    cache.delete(`feature/${id}`);
    said.value = `Saved feature ${id}.`;
    return true;
  } catch (error) {
    said.value = `Not saved: ${error.message}`;
    return false;
  }
}

/** Save what a person thinks of an edge: "yes", "no", "unsure". */
export async function rate(child, rating) {
  try {
    await transport.send("PUT", `rating/${child}`, { rating, blind: false });
    changed(ratings, child, { rating, blind: false });
    said.value = `Edge to ${child} rated “${rating}”.`;
  } catch (error) {
    said.value = `Not saved: ${error.message}`;
  }
}
