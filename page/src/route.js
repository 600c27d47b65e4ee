// The address: #/view/id?key=value. It holds the whole state of a view, so that back, forward and a copied link work.
import { signal } from "@preact/signals";

function parse() {
  const text = location.hash.replace(/^#\/?/, "");
  const [path, query = ""] = text.split("?", 2);
  const [view, id] = path.split("/");
  return { view: view || "overview", id: /^\d+$/.test(id ?? "") ? Number(id) : null, query: new URLSearchParams(query) };
}

/** Where an export begins, if its address names no view. */
export function beginAt(address) {
  if (!address || (location.hash && location.hash !== "#/")) return;
  try {
    history.replaceState(null, "", address);
  } catch {
    location.hash = address;
  }
  route.value = parse();
}

export const route = signal(parse());
addEventListener("hashchange", () => (route.value = parse()));
addEventListener("popstate", () => (route.value = parse()));

/** The address of a view. Values that are null, "" or false are left out. */
export function to(view, id = null, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false);
  const text = new URLSearchParams(kept.map(([key, value]) => [key, value === true ? "1" : String(value)])).toString();
  return `#/${view === "overview" ? "" : view}${id === null ? "" : `/${id}`}${text ? `?${text}` : ""}`;
}

export function go(address) {
  if (address !== location.hash) location.hash = address;
}

/** Change the query of this view's address; `replace` leaves no entry in the history (typing, moving along a list). */
export function query(change, { replace = false } = {}) {
  const { view, id, query: now } = route.value;
  const address = to(view, id, { ...Object.fromEntries(now), ...change });
  if (address === (location.hash || "#/")) return;
  try {
    history[replace ? "replaceState" : "pushState"](null, "", address);
    route.value = parse();
  } catch {
    location.hash = address; // replaceState throws in the frames of notebooks
  }
}
