// Lines over the last minutes, by uPlot. What they show is said in words as well.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

export interface Series {
  label: string;
  /** A custom property of the style sheet. */
  colour: string;
  values: (number | null)[];
}

/** As many seconds are shown at least. */
const SHORTEST = 60;

/** A colour of the style sheet as it is now: there it is a pair, of which a canvas knows nothing. */
function shown(name: string, element: HTMLElement) {
  element.style.color = `var(${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
}

export function Chart({ title, said, times, series, format, theme }: {
  title: string;
  /** What the lines show, for who does not see them. */
  said: string;
  /** Seconds. */
  times: number[];
  series: Series[];
  format: (value: number) => string;
  /** Colours are read anew where it changes. */
  theme: string;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const shape = `${theme} ${series.map(({ label }) => label).join()}`;
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const css = (name: string) => shown(name, element);
    const axis = { stroke: css("--muted"), font: `11px ${getComputedStyle(document.body).fontFamily}`, ticks: { show: false }, grid: { stroke: css("--line"), width: 1 } };
    const made = new uPlot(
      {
        width: element.clientWidth || 300,
        height: 120,
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { range: (_, first, last) => [Math.min(first, last - SHORTEST), last] }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.15 : 1] } },
        axes: [
          { ...axis, space: 70, size: 24, values: (_, splits) => splits.map((at) => new Date(at * 1000).toTimeString().slice(0, 8)) },
          { ...axis, size: 40, space: 28, values: (_, splits) => splits.map(format) },
        ],
        series: [{}, ...series.map(({ label, colour }) => ({ label, stroke: css(colour), width: 1.5, points: { show: false } }))],
      },
      [times, ...series.map(({ values }) => values)],
      element,
    );
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: 120 }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData([times, ...series.map(({ values }) => values)]), [times.at(-1)]);
  return (
    <figure class="chart" data-points={times.length}>
      <figcaption>
        {title}
        {series.length > 1 && series.map(({ label, colour }) => <span key={label} class="key"><i style={{ background: `var(${colour})` }} />{label}</span>)}
      </figcaption>
      <div ref={box} role="img" aria-label={`${title}: ${said}`} />
    </figure>
  );
}
