// A sortable table that draws only the rows in sight: twenty thousand edges scroll like twenty.
import { html, useLayoutEffect, useMemo, useRef, useState } from "./html.js";

const ROW = 30;
const EXTRA = 12;

/**
 * rows: any values; columns: [{key, title, help?, render(row), sort?(row), numeric?}];
 * sort: {key, down}; onSort(sort); selected: key of the chosen row; keyOf(row); onSelect(row); onOpen(row).
 */
export function Table({ rows, columns, sort, onSort, keyOf, selected = null, onSelect, onOpen, label, height = 480 }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const sorted = useMemo(() => {
    const column = columns.find(({ key }) => key === sort?.key);
    if (!column?.sort) return rows;
    const sign = sort.down ? -1 : 1;
    const keys = new Map(rows.map((row) => [row, column.sort(row)]));
    const absent = (value) => value === null || value === undefined || Number.isNaN(value);
    return [...rows].sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (absent(x) || absent(y)) return absent(x) - absent(y); // undefined values come last either way
      return x < y ? -sign : x > y ? sign : 0;
    });
  }, [rows, sort?.key, sort?.down, columns]);

  const place = selected === null ? -1 : sorted.findIndex((row) => keyOf(row) === selected);
  useLayoutEffect(() => {
    const { current } = box;
    if (!current || place < 0) return;
    const at = place * ROW;
    if (at < current.scrollTop || at > current.scrollTop + current.clientHeight - 2 * ROW) current.scrollTop = at - current.clientHeight / 3;
  }, [selected, sorted]);

  const first = Math.max(0, Math.min(Math.floor(top / ROW) - EXTRA, sorted.length - 1));
  const last = Math.min(sorted.length, first + Math.ceil(height / ROW) + 2 * EXTRA);
  const keys = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
    if (step && sorted.length && onSelect) {
      event.preventDefault();
      onSelect(sorted[Math.max(0, Math.min(sorted.length - 1, place + step))]);
    }
    if (event.key === "Enter" && place >= 0 && onOpen && event.target === box.current) onOpen(sorted[place]);
  };

  return html`<div class="table-box" ref=${box} tabindex="0" role="region" aria-label=${label} style=${{ maxHeight: `${height}px` }}
    onScroll=${(event) => setTop(event.currentTarget.scrollTop)} onKeyDown=${keys}>
    <table aria-rowcount=${sorted.length + 1} aria-label=${label}>
      <thead><tr aria-rowindex="1">
        ${columns.map((column) => {
          const on = sort?.key === column.key;
          const order = on ? (sort.down ? "descending" : "ascending") : null;
          const text = html`${column.title}${on ? html`<span aria-hidden="true"> ${sort.down ? "↓" : "↑"}</span>` : null}`;
          return html`<th scope="col" key=${column.key} class=${column.numeric ? "numeric" : ""} aria-sort=${order} title=${column.help}>
            ${column.sort && onSort ? html`<button type="button" onClick=${() => onSort({ key: column.key, down: on ? !sort.down : column.numeric === true })}>${text}</button>` : text}
          </th>`;
        })}
      </tr></thead>
      <tbody>
        ${first > 0 && html`<tr aria-hidden="true" class="pad"><td colspan=${columns.length} style=${{ height: `${first * ROW}px` }}></td></tr>`}
        ${sorted.slice(first, last).map((row, offset) => {
          const key = keyOf(row);
          return html`<tr key=${key} aria-rowindex=${first + offset + 2} class=${key === selected ? "selected" : ""} onClick=${() => onSelect?.(row)}>
            ${columns.map((column) => html`<td key=${column.key} class=${column.numeric ? "numeric" : ""}>${column.render(row)}</td>`)}
          </tr>`;
        })}
        ${last < sorted.length && html`<tr aria-hidden="true" class="pad"><td colspan=${columns.length} style=${{ height: `${(sorted.length - last) * ROW}px` }}></td></tr>`}
      </tbody>
    </table>
    ${sorted.length === 0 && html`<p class="state empty">Nothing matches.</p>`}
  </div>`;
}
