// The search field. In the tree, the list follows what is typed; elsewhere, what was found hangs below the field.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { go, query, route, to } from "./route.js";
import { forest } from "./store.js";
import { count, visible } from "./text.js";
import { EVERYWHERE, useSearch, useSettled } from "./search.js";
import { nameOf, unnamed } from "./ui.js";

const MOST = 8;

/** The text around what was found, in short. */
const around = ({ tokens, at }) => tokens.slice(Math.max(0, at - 5), at + 6).join("");

function Found({ search, q, at, onPick }) {
  const ids = [...search.found.keys()].slice(0, MOST);
  const all = search.found.size;
  return html`<div class="found">
    <ul id="found" role="listbox" aria-label="Features found">${ids.map((id, place) => {
      const context = search.found.get(id);
      return html`<li key=${id} id=${`found-${id}`} role="option" aria-selected=${String(place === at)} onMouseDown=${(event) => event.preventDefault()} onClick=${() => onPick(id)}>
        <span class="id num">${id}</span> <bdi class="label">${visible(nameOf(id) ?? unnamed(id))}</bdi>${context ? html`<small><bdi>${visible(around(context))}</bdi></small>` : null}</li>`;
    })}</ul>
    <p class="hint" role="status">${search.state === "loading" && !all ? "Searching …" : search.state === "error" ? visible(search.error.message)
      : all ? html`<a href=${to("tree", null, { q })} onMouseDown=${(event) => event.preventDefault()}>${search.truncated ? `More than ${count(all)}` : count(all)} found: all in the tree</a> (Enter)` : "Nothing found."}</p></div>`;
}

export function SearchBox() {
  const { view, query: now } = route.value;
  const inTree = view === "tree";
  const address = inTree ? (now.get("q") ?? "") : "";
  const [text, setText] = useState(address);
  const [open, setOpen] = useState(false);
  const [at, setAt] = useState(-1);
  // What was last sent to the address from here, and whether something was typed since. What another hand writes there, and
  // another view, replace the text; what was sent does not come back late.
  const last = useRef({ view, sent: address, typed: false });
  useLayoutEffect(() => {
    if (last.current.view === view && last.current.sent === address) return;
    last.current = { view, sent: address, typed: false };
    setText(address);
  }, [view, address]);
  const settled = useSettled(text, 200);
  useEffect(() => {
    if (!inTree || !last.current.typed || settled !== text || settled === last.current.sent) return;
    last.current.sent = settled;
    query({ q: settled, at: null, open: null }, { replace: true });
  }, [settled, text, inTree]);
  const shown = open && !inTree && settled.trim() !== "";
  const search = useSearch({ q: shown ? settled : "", regex: false, where: EVERYWHERE }, 100);
  const ids = shown ? [...search.found.keys()].slice(0, MOST) : [];
  const chosen = ids[at];

  const pick = (id) => {
    setOpen(false);
    setText("");
    go(to("feature", id));
  };
  const submit = (event) => {
    event.preventDefault();
    const id = /^\d+$/.test(text.trim()) ? Number(text) : null;
    if (chosen !== undefined) return pick(chosen);
    if (id !== null && forest.value?.has(id)) return pick(id);
    setOpen(false);
    if (inTree) query({ q: text, at: null, open: null });
    else go(to("tree", null, { q: text }));
  };
  const keys = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && ids.length) {
      event.preventDefault();
      setAt(Math.max(-1, Math.min(ids.length - 1, at + step)));
    }
    if (event.key === "Escape" && shown) {
      event.preventDefault();
      setOpen(false);
    }
  };
  return html`<form class="search" role="search" onSubmit=${submit}>
    <input type="search" id="search" value=${text} role="combobox" aria-expanded=${String(shown)} aria-controls=${shown ? "found" : null} aria-autocomplete="list"
      aria-activedescendant=${chosen === undefined ? null : `found-${chosen}`}
      onInput=${(event) => {
        last.current.typed = true;
        setText(event.currentTarget.value);
        setOpen(true);
        setAt(-1);
      }} onKeyDown=${keys} onBlur=${() => setOpen(false)} placeholder="Search features  /"
      aria-label="Search labels, tokens and contexts, or type a feature's number" autocomplete="off" spellcheck=${false} />
    ${shown && html`<${Found} search=${search} q=${settled} at=${at} onPick=${pick} />`}
  </form>`;
}
