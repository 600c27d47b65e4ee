// Text and numbers as they are shown. Text of a model is data: characters that would act are made visible.

// What hides, or reorders its neighbors: zero-width, bidi, line separators, soft hyphen, variation tags.
const HIDDEN = /[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udfff](?![\udc00-\udfff])/gu;
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/g;

/** Text with control and bidi characters shown instead of obeyed. */
export function visible(text) {
  return String(text ?? "")
    .replace(CONTROL, (letter) => {
      const code = letter.charCodeAt(0);
      if (letter === "\n") return "↵";
      if (letter === "\t") return "⇥";
      return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
    })
    .replace(HIDDEN, (letter) => `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A token by itself: a space before it is shown, as it is part of the token. */
export const visibleToken = (token) => visible(token).replace(/^ /, "␣").replace(/ $/, "␣") || "∅";

const UNDEFINED = "–";

/** Three significant digits, without an exponent where that is readable. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNDEFINED;
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size !== 0 && size < 0.001) return value.toExponential(1).replace("-", "−");
  return value.toPrecision(size < 1 ? 2 : 3).replace("-", "−");
}

/** A share as a percentage with two significant digits. */
export function percent(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNDEFINED;
  const hundred = value * 100;
  if (hundred === 0) return "0%";
  if (Math.abs(hundred) < 0.001) return hundred < 0 ? "0%" : "<0.001%"; // below zero by rounding
  if (hundred < 0) return `−${percent(-value)}`;
  if (hundred >= 99.5) return hundred === 100 ? "100%" : `${Math.min(99.9, hundred).toFixed(1)}%`;
  return `${hundred >= 9.95 ? hundred.toFixed(0) : hundred.toPrecision(2)}%`;
}

/**
 * A share that is judged by bounds: it has as many more digits as tell it from a bound that rounding would write.
 */
export function percentBy(value, bounds = [0.5, 0.95]) {
  const text = percent(value);
  const near = bounds.find((bound) => percent(bound) === text && Math.abs(value - bound) > 1e-6); // less is float32
  if (near === undefined) return text;
  const digits = [1, 2, 3].find((n) => (value * 100).toFixed(n) !== (near * 100).toFixed(n)) ?? 4;
  return `${(value * 100).toFixed(digits)}%`;
}

/** A measure with three digits, as it is quoted. */
export function measure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNDEFINED;
  if (Number.isInteger(value)) return count(value);
  return (Math.abs(value) < 1 ? value.toFixed(3) : value.toPrecision(3)).replace("-", "−");
}

/** A value of an edge column in the column's own form; bounds: those that a share is judged by. */
export function cell(column, value, bounds = []) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNDEFINED;
  if (column?.format === "share") return percentBy(value, bounds);
  if (column?.format === "rank") return Math.round(value).toLocaleString("en-US");
  if (column?.format === "log2") return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
  if (column?.format === "cosine") return value.toFixed(2).replace("-", "−");
  return number(value);
}

export const count = (value) => (value ?? 0).toLocaleString("en-US");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
