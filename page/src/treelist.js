// A forest as a list to walk with the keys: only the rows in sight are drawn, and what is chosen is kept in sight.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./html.js";

export const ROW = 28;
export const HEAD = 24;

function Row({ row, tree, chosen, kind, prefix, name, cells, onToggle, onPick, onOpen }) {
  const { id } = row;
  const names = ["row", !row.match && "way", tree.dead[id] && "dead", kind].filter(Boolean);
  return html`<div role="treeitem" id=${`${prefix}-${id}`} class=${names.join(" ")} aria-level=${row.level} aria-posinset=${row.place} aria-setsize=${row.count}
    aria-expanded=${row.below ? String(row.open) : null} aria-selected=${String(chosen)} onClick=${() => onPick(id)} onDblClick=${() => onOpen?.(id)}>
    <span class=${`indent i${Math.min(row.level - 1, 12)}`}></span>
    <span class="twist" aria-hidden="true" onClick=${(event) => {
      event.stopPropagation();
      onToggle(id);
    }} onDblClick=${(event) => event.stopPropagation()}>${row.below ? (row.open ? "▾" : "▸") : ""}</span>
    <span class="id num">${id}</span>
    <span class="name">${name(id)}</span>
    ${cells(row)}
  </div>`;
}

/**
 * tree: the Forest; rows: what `visibleRows` found; at: the chosen feature; wanted: the feature that the address asks for,
 * which may have no row; of: what the rows are of, a list of something else begins at its top; kindOf(id): more classes of a row; name(id), cells(row): its content; head: titles of the cells;
 * prefix: of the rows' ids; onPick(id, {byKey}), onToggle(id), onOpen(id), onJump(): another list's key, if there is one;
 * onTop(top, height): where the list is scrolled to.
 */
export function TreeList({ tree, rows, of = null, at, wanted = at, label, prefix = "row", name, cells, head, kindOf, onPick, onToggle, onOpen, onJump, onTop }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setHeight(entry.contentRect.height));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  useEffect(() => onTop?.(top, height), [top, height]);
  const places = useMemo(() => new Map(rows.map((row, place) => [row.id, place])), [rows]);
  const place = at === null ? -1 : (places.get(at) ?? -1);
  // Before it is painted: rows do not move once they are seen.
  useLayoutEffect(() => {
    if (place < 0) return;
    const { current } = box;
    const y = place * ROW;
    const [over, under] = [current.scrollTop - y, y + ROW + HEAD - current.scrollTop - current.clientHeight];
    if (over > ROW * 3 || under > ROW * 3) current.scrollTop = y - current.clientHeight / 3;
    else if (over > 0) current.scrollTop = y;
    else if (under > 0) current.scrollTop += under;
  }, [place, rows, height]);

  useLayoutEffect(() => {
    if (place < 0) box.current.scrollTop = 0;
  }, [of]);
  // With the pointer, the row under it is the choice: another one chosen first would move the rows away from under it.
  const focused = (event) => event.currentTarget.matches(":focus-visible") && wanted === null && rows.length && onPick(rows[0].id, { byKey: true });
  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = rows[place];
    const page = Math.max(1, Math.floor((height - HEAD) / ROW) - 1);
    const step = (target) => rows.length && onPick(rows[Math.max(0, Math.min(rows.length - 1, target))].id, { byKey: true });
    const action = {
      ArrowDown: () => step(place + 1), ArrowUp: () => step(place < 0 ? 0 : place - 1), Home: () => step(0), End: () => step(rows.length - 1),
      PageDown: () => step(place + page), PageUp: () => step(place - page),
      ArrowRight: () => row && (row.below && !row.open ? onToggle(row.id) : row.open && step(place + 1)),
      ArrowLeft: () => row && (row.open ? onToggle(row.id) : tree.parent[row.id] >= 0 && onPick(tree.parent[row.id], { byKey: true })),
      Enter: () => row && onOpen?.(row.id),
      " ": () => row?.below && onToggle(row.id),
      m: onJump && (() => row && onJump()),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };
  const first = Math.max(0, Math.min(Math.floor(top / ROW) - 15, rows.length - 1));
  const last = Math.min(rows.length, first + Math.ceil(height / ROW) + 30);
  return html`<div class="rows" ref=${box} role="tree" tabindex="0" aria-label=${label} aria-activedescendant=${place >= first && place < last && place >= 0 ? `${prefix}-${at}` : null}
    onScroll=${(event) => setTop(event.currentTarget.scrollTop)} onKeyDown=${keys} onFocus=${focused}>
    <div class="row row-head" aria-hidden="true"><span class="name">Feature</span>${head}</div>
    <div class="rows-all" role="presentation" style=${{ height: `${rows.length * ROW}px` }}><div class="rows-shown" role="presentation" style=${{ transform: `translateY(${first * ROW}px)` }}>
      ${rows.slice(first, last).map((row) => html`<${Row} key=${row.id} row=${row} tree=${tree} chosen=${at === row.id} kind=${kindOf?.(row.id)} prefix=${prefix} name=${name} cells=${cells} onToggle=${onToggle} onPick=${onPick} onOpen=${onOpen} />`)}
    </div></div>
  </div>`;
}

/** Which rows are open, as an address holds it: the numbers of what is open, ".3.17", or, after "all", of what is closed. */
export const readOpen = (text) => ({ all: (text ?? "").startsWith("all"), open: new Set((text ?? "").match(/\d+/g)?.map(Number) ?? []) });

/** The same as text; an address has its limits. */
export const openText = ({ all, open }) => `${all ? "all" : ""}${[...open].slice(-400).map((id) => `.${id}`).join("")}` || null;

export function toggled({ all, open }, id) {
  const set = new Set(open);
  if (!set.delete(id)) set.add(id);
  return { all, open: set };
}

/** With all of these features open, too. */
export function withOpen({ all, open }, ids) {
  const set = new Set(open);
  for (const id of ids) {
    set.delete(id); // the last ones are kept where an address is too long
    if (!all) set.add(id);
  }
  return { all, open: set };
}
