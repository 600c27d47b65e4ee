// Ends and ticks of axes at round numbers.

/** Round numbers between two ends, about `n` of them. */
export function ticksBetween(low, high, n = 4) {
  const raw = (high - low) / n || 1;
  const ten = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * ten).find((part) => part >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) ticks.push(Math.abs(tick) < step / 1e6 ? 0 : Number(tick.toPrecision(12)));
  return ticks;
}

/** An axis that holds all the values: {low, high, ticks}. From 0 if the values come near it. */
export function axisOf(values, { zero = false, n = 4 } = {}) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return null;
  if (zero || (low > 0 && low < 0.35 * high)) low = Math.min(0, low);
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const ticks = ticksBetween(low, high, n);
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : high - low;
  if (ticks[ticks.length - 1] < high - step * 0.15) ticks.push(Number((ticks[ticks.length - 1] + step).toPrecision(12)));
  if (ticks[0] > low + step * 0.15) ticks.unshift(Number((ticks[0] - step).toPrecision(12)));
  return { low: Math.min(low, ticks[0]), high: Math.max(high, ticks[ticks.length - 1]), ticks };
}
