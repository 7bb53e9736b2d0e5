// Curves on a canvas. Knows rows of numbers and a time axis in seconds before now; refuses to know what they mean.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The canvas's context, cleared and scaled to CSS pixels, with its size; null while it is not shown. */
export function prepared(canvas) {
  const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
  if (!width || !height) return null;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** The smallest round number (1, 2 or 5 times a power of ten) that is not below `value`. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= value * 0.999999);
}

/**
 * Draw `curves` ({of: row => number|null, colour, dashed, stepped}) of `rows` (each with t_ms) over the last `seconds`.
 * `low` and `high` bound the values; `ticks` are labelled lines, `bands` [{from, to, colour}] shaded behind them.
 */
export function plot(canvas, rows, nowMs, { seconds, low, high, curves, ticks = [], bands = [], left = 34, unit = "", times = true }) {
  const area = prepared(canvas);
  if (!area) return;
  const { pen, width, height } = area;
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  for (const tick of ticks) left = Math.max(left, Math.ceil(pen.measureText(tick.label ?? String(tick.value)).width) + 9);
  const right = width - 2, top = 6, bottom = height - (times ? 17 : 4);
  const x = (ms) => right - ((nowMs - ms) / 1000 / seconds) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  for (const band of bands) {
    const from = Math.max(band.from, low), to = Math.min(band.to, high);
    if (to <= from) continue;
    pen.fillStyle = style(band.colour);
    pen.fillRect(left, y(to), right - left, y(from) - y(to));
  }
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  pen.lineWidth = 1;
  let free = Infinity;  // from the bottom up; labels that would lie on one another are left out
  for (const tick of ticks) {
    const at = Math.round(y(tick.value)) + 0.5;
    pen.strokeStyle = style("--grid");
    pen.beginPath();
    pen.moveTo(left, at);
    pen.lineTo(right, at);
    pen.stroke();
    if (tick.note) {  // under its line where the next one is too near for it to stand in between
      const next = ticks[ticks.indexOf(tick) + 1];
      pen.textAlign = "left";
      pen.fillStyle = style(tick.colour);
      pen.fillText(tick.note, left + 8, next && at - y(next.value) < 16 ? at + 9 : at - 8);
      pen.textAlign = "right";
    }
    if (at > free) continue;
    pen.fillStyle = style("--soft");
    pen.fillText(tick.label ?? String(tick.value), left - 7, at);
    free = at - 13;
  }
  if (times) {
    pen.fillStyle = style("--soft");
    pen.textBaseline = "alphabetic";
    for (let s = 0; s <= seconds; s += 10) {
      pen.textAlign = s === 0 ? "right" : s === seconds ? "left" : "center";
      pen.fillText(s === 0 ? "now" : `−${s} s`, x(nowMs - s * 1000), height - 2);
    }
  }
  pen.save();
  pen.beginPath();
  pen.rect(left, top - 4, right - left + 2, bottom - top + 6);
  pen.clip();
  pen.lineJoin = "round";
  for (const curve of curves) {
    pen.strokeStyle = style(curve.colour);
    pen.lineWidth = 1.6;
    pen.setLineDash(curve.dashed ? [4, 3] : []);
    pen.beginPath();
    let before = null;
    for (const row of rows) {
      const value = curve.of(row);
      if (value === null || value === undefined) { before = null; continue; }
      const isJoined = before !== null && row.t_ms - before.t_ms < 1000;
      if (!isJoined) pen.moveTo(x(row.t_ms), y(value));
      else {
        if (curve.stepped) pen.lineTo(x(row.t_ms), y(before.value));
        pen.lineTo(x(row.t_ms), y(value));
      }
      before = { t_ms: row.t_ms, value };
    }
    pen.stroke();
  }
  pen.restore();
}

export { style };
