// Colors of canvases. They follow the page's theme; scales are read by people with any color vision: lightness carries them.
import { signal } from "@preact/signals";

const dark = matchMedia("(prefers-color-scheme: dark)");
export const theme = signal(dark.matches ? "dark" : "light");
dark.addEventListener("change", (event) => (theme.value = event.matches ? "dark" : "light"));

const RAMPS = {
  light: { one: ["#e6efee", "#a9cdd0", "#5fa3ae", "#1f7389", "#0b3f56"], two: ["#a04a00", "#dd9a4e", "#e9e7e0", "#6aa6b4", "#0d5a74"], none: "#efede6", dead: "#c9c6bd" },
  dark: { one: ["#17323b", "#1f5463", "#2f7f92", "#62b3c2", "#c9edf0"], two: ["#ffab5e", "#a8642a", "#33383a", "#2f7f92", "#8fdcea"], none: "#222a2c", dead: "#3a3d3d" },
};

const parse = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
const TABLES = {};

function table(name) {
  const key = `${theme.value}-${name}`;
  return (TABLES[key] ??= Array.from({ length: 65 }, (_, place) => {
    const stops = RAMPS[theme.value][name].map(parse);
    const at = (place / 64) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const mixed = stops[low].map((part, index) => Math.round(part + (stops[low + 1][index] - part) * (at - low)));
    return `rgb(${mixed.join(",")})`;
  }));
}

/** One hue, from little to much; `share` is 0 to 1. */
export const ramp = (share) => (Number.isNaN(share) ? RAMPS[theme.value].none : table("one")[Math.round(64 * Math.max(0, Math.min(1, share)))]);
/** From below chance (amber) over chance (gray) to above (blue). */
export const diverging = (share) => (Number.isNaN(share) ? RAMPS[theme.value].none : table("two")[Math.round(64 * Math.max(0, Math.min(1, share)))]);
export const deadColor = () => RAMPS[theme.value].dead;

/** Black or white, whichever is read better on rgb(r,g,b) or #rrggbb. */
export function inkOn(color) {
  const parts = color.startsWith("#") ? parse(color) : color.match(/\d+/g).map(Number);
  const [r, g, b] = parts.map((part) => ((part / 255) ** 2.2));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.19 ? "#14201f" : "#ffffff";
}

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A canvas of `width` by `height` CSS pixels, sharp on any screen, ready to draw. */
export function canvasOf(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** An array's finite 2nd and 98th percentile, for the ends of a scale. */
export function limits(values, low = 0.02, high = 0.98) {
  const finite = Float32Array.from(values.filter((value) => Number.isFinite(value))).sort();
  if (!finite.length) return [0, 1];
  const at = (share) => finite[Math.min(finite.length - 1, Math.floor(share * finite.length))];
  const [a, b] = [at(low), at(high)];
  return a === b ? [a, a + 1] : [a, b];
}
