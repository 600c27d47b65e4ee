// What a search finds: by the server, or, in an export, in labels and tokens here.
import { useEffect, useMemo, useState } from "./html.js";
import { ask, forest, labels, useAsk } from "./store.js";
import { isStatic } from "./transport.js";

export const EVERYWHERE = "label,token,text";

/** The last value that stayed for a moment: while somebody types or holds a key, nothing is asked for. */
export function useSettled(value, ms = 90) {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}

/** Labels that begin with what is looked for come first, then those that hold it. */
function inLabels(test, small) {
  const found = [...labels.value].filter(([id, text]) => test(text) && forest.value?.has(id));
  return found.sort(([, a], [, b]) => b.toLowerCase().startsWith(small) - a.toLowerCase().startsWith(small)).map(([id]) => [id, null]);
}

/** {state, found: Map id -> context|null, the most relevant first, truncated, note, error}. Labels are searched here at once. */
export function useSearch({ q, regex, where }, n = 500) {
  const [answer, setAnswer] = useState({ q: "", state: "none", found: new Map() });
  const stored = useAsk(isStatic && q ? "tokens" : null);
  const tokens = stored.value?.tokens;
  const local = useMemo(() => {
    if (!q || (!isStatic && !where.includes("label"))) return { found: new Map() };
    let test;
    const small = q.toLowerCase();
    try {
      const pattern = regex ? new RegExp(q, "iu") : null;
      test = (text) => (pattern ? pattern.test(text) : text.toLowerCase().includes(small));
    } catch (error) {
      return { found: new Map(), error };
    }
    const found = new Map(where.includes("label") ? inLabels(test, small) : []);
    for (const [id, words] of Object.entries(tokens ?? {})) if (where.includes("token") && words.some(test) && !found.has(Number(id))) found.set(Number(id), null);
    return { found };
  }, [q, regex, where, labels.value, tokens]);
  useEffect(() => {
    if (!q || isStatic) return;
    let current = true;
    const path = `search?${new URLSearchParams({ q, regex: regex ? 1 : 0, in: where, n })}`;
    const timer = setTimeout(() => ask(path).then(
      (value) => current && setAnswer({ q, state: "ready", found: new Map(value.results.map((hit) => [hit.id, hit.context])), truncated: value.truncated, note: value.note }),
      (error) => current && setAnswer({ q, state: "error", error, found: new Map() }),
    ), 120);
    setAnswer((old) => ({ ...old, state: "loading", error: undefined }));
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [q, regex, where, n]);
  return useMemo(() => {
    if (!q) return { state: "none", found: new Map() };
    if (isStatic) return { state: local.error ? "error" : "ready", ...local, note: "An export is searched by labels and tokens." };
    // The server knows best what is relevant; until it answers, and beyond what it lists, labels are known here.
    const known = answer.q === q ? answer : { ...answer, found: new Map() };
    return { ...known, found: new Map([...known.found, ...[...local.found].filter(([id]) => !known.found.has(id))]) };
  }, [q, local, answer]);
}
