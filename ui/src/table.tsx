// Tables and lists of any length: only what can be seen is in the page, and arrow keys go from row to row.

import type { ComponentChildren, RefObject } from "preact";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

/** Rows beyond the edges that are there already when they are scrolled to. */
const MORE = 8;

interface Part {
  from: number;
  to: number;
}

/** Which of `count` rows of a height can be seen in the window, or in `scroller`. */
function useVisible(count: number, height: number, body: RefObject<HTMLElement | null>, scroller?: RefObject<HTMLElement | null>): Part {
  const [part, set] = useState<Part>({ from: 0, to: Math.min(count, 40) });
  const look = useCallback(() => {
    const first = body.current?.getBoundingClientRect().top ?? 0;
    const box = scroller?.current?.getBoundingClientRect();
    const [top, bottom] = box ? [box.top, box.bottom] : [0, window.innerHeight];
    const from = Math.max(0, Math.min(count, Math.floor((top - first) / height) - MORE));
    const to = Math.max(from, Math.min(count, Math.ceil((bottom - first) / height) + MORE));
    set((known) => (known.from === from && known.to === to ? known : { from, to }));
  }, [count, height]);
  useLayoutEffect(look, [look]);
  useEffect(() => {
    const target: HTMLElement | Window = scroller?.current ?? window;
    target.addEventListener("scroll", look, { passive: true });
    window.addEventListener("resize", look);
    const observer = new ResizeObserver(look);
    if (body.current?.parentElement) observer.observe(body.current.parentElement);
    return () => {
      target.removeEventListener("scroll", look);
      window.removeEventListener("resize", look);
      observer.disconnect();
    };
  }, [look]);
  return { from: Math.min(part.from, count), to: Math.min(part.to, count) };
}

/** Where the focus is among rows, by which keys it goes, and how the row that it goes to comes into view. */
function useRows(count: number, height: number, body: RefObject<HTMLElement | null>, part: Part, scroller?: RefObject<HTMLElement | null>) {
  const [at, setAt] = useState(0);
  const wanted = useRef<number | null>(null);
  // One row can be reached with Tab: where the focus was, or else the first that is there.
  const stop = at >= part.from && at < part.to ? at : part.from;
  useLayoutEffect(() => {
    if (wanted.current === null) return;
    const row = body.current?.querySelector<HTMLElement>(`[data-row="${wanted.current}"] [data-stop]`);
    if (!row) return;
    wanted.current = null;
    row.focus({ preventScroll: true });
  });
  const moveTo = (index: number) => {
    const next = Math.max(0, Math.min(count - 1, index));
    wanted.current = next;
    setAt(next);
    const first = body.current?.getBoundingClientRect().top ?? 0;
    const box = scroller?.current?.getBoundingClientRect();
    // Room for what sticks at the top.
    const [top, bottom] = box ? [box.top, box.bottom] : [120, window.innerHeight];
    const [row, target] = [first + next * height, scroller?.current ?? window];
    if (row < top) target.scrollBy({ top: row - top });
    else if (row + height > bottom) target.scrollBy({ top: row + height - bottom + 4 });
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const own = event.target instanceof HTMLElement && event.target.closest("[data-stop]");
    if (!own || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = Number(own.closest<HTMLElement>("[data-row]")?.dataset["row"] ?? at);
    const page = Math.max(1, Math.floor(window.innerHeight / height) - 3);
    const moves: Record<string, number> = { ArrowDown: row + 1, ArrowUp: row - 1, PageDown: row + page, PageUp: row - page, Home: 0, End: count - 1 };
    const to = moves[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveTo(to);
  };
  return { stop, onKeyDown, onFocus: (index: number) => setAt(index) };
}

export interface Column<T> {
  id: string;
  title: string;
  /** `stop` belongs to the link or button that the row is reached by. */
  cell: (row: T, stop: { "data-stop": true; tabIndex: number }) => ComponentChildren;
  class?: string;
  sortable?: boolean;
}

export interface Sort {
  by: string;
  down: boolean;
}

export function Table<T>({ caption, columns, rows, height, keyOf, rowClass, sort, setSort }: {
  caption: string;
  columns: Column<T>[];
  rows: T[];
  /** Of each row, in pixels. */
  height: number;
  keyOf: (row: T, index: number) => string;
  rowClass?: (row: T) => string;
  sort?: Sort;
  setSort?: (sort: Sort) => void;
}) {
  const body = useRef<HTMLTableSectionElement>(null);
  const part = useVisible(rows.length, height, body);
  const { stop, onKeyDown, onFocus } = useRows(rows.length, height, body, part);
  const space = (count: number) => count > 0 && (
    <tr class="space" aria-hidden="true"><td style={{ height: `${count * height}px` }} /></tr>
  );
  return (
    <table class="rows" aria-rowcount={rows.length + 1} style={{ "--row": `${height}px` }}>
      <caption class="sr">{caption}</caption>
      <thead>
        <tr aria-rowindex={1}>
          {columns.map(({ id, title, sortable, class: name }) => (
            <th key={id} scope="col" class={name} aria-sort={sort?.by === id ? (sort.down ? "descending" : "ascending") : undefined}>
              {sortable && setSort
                ? <button type="button" class="sort" onClick={() => setSort({ by: id, down: sort?.by === id ? !sort.down : true })}>
                    {title}<span aria-hidden="true">{sort?.by === id ? (sort.down ? " ↓" : " ↑") : ""}</span>
                  </button>
                : title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody ref={body} onKeyDown={onKeyDown}>
        {space(part.from)}
        {rows.slice(part.from, part.to).map((row, offset) => {
          const index = part.from + offset;
          return (
            <tr key={keyOf(row, index)} data-row={index} aria-rowindex={index + 2} class={rowClass?.(row) ?? ""} onFocusCapture={() => onFocus(index)}>
              {columns.map(({ id, cell, class: name }) => <td key={id} class={name}>{cell(row, { "data-stop": true, tabIndex: index === stop ? 0 : -1 })}</td>)}
            </tr>
          );
        })}
        {space(rows.length - part.to)}
      </tbody>
    </table>
  );
}

/** A list in a box of its own. */
export function List<T>({ label, rows, height, keyOf, level, row }: {
  label: string;
  rows: T[];
  height: number;
  keyOf: (row: T) => string;
  level: (row: T) => number;
  row: (row: T, stop: { "data-stop": true; tabIndex: number }) => ComponentChildren;
}) {
  const [box, body] = [useRef<HTMLDivElement>(null), useRef<HTMLUListElement>(null)];
  const part = useVisible(rows.length, height, body, box);
  const { stop, onKeyDown, onFocus } = useRows(rows.length, height, body, part, box);
  return (
    <div class="list" ref={box}>
      <ul ref={body} aria-label={label} onKeyDown={onKeyDown} style={{ height: `${rows.length * height}px` }}>
        {rows.slice(part.from, part.to).map((one, offset) => {
          const index = part.from + offset;
          return (
            <li
              key={keyOf(one)} data-row={index} aria-level={level(one) + 1} aria-posinset={index + 1} aria-setsize={rows.length} onFocusCapture={() => onFocus(index)}
              style={{ top: `${index * height}px`, height: `${height}px`, paddingInlineStart: `${8 + 16 * level(one)}px` }}
            >
              {row(one, { "data-stop": true, tabIndex: index === stop ? 0 : -1 })}
            </li>
          );
        })}
      </ul>
    </div>
  );
}
