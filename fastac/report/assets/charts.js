// The score's history as a line, and α̂ of the top classes as bars.

function historyOf(position) {
  const score = page.history?.score[position] ?? null;
  return score === null || score.every((value) => value === null) ? null : score;
}

// The curve in a box of 100 × 30, with a line at zero where zero is in its range.
function curve(score) {
  const known = score.filter((value) => value !== null);
  const low = Math.min(...known), high = Math.max(...known);
  const y = (value) => high > low ? 28 - 26 * (value - low) / (high - low) : 15;
  const x = (i) => score.length > 1 ? 1 + 98 * i / (score.length - 1) : 50;
  let path = "", pen = false;
  score.forEach((value, i) => {
    if (value !== null) path += `${pen ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = value !== null;
  });
  const box = draw("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (low <= 0 && high >= 0) box.append(draw("line", { class: "axis", x1: 0, x2: 100, y1: y(0), y2: y(0) }));
  box.append(draw("path", { class: "curve", d: path }));
  return box;
}

function alphaOf(position) {
  const classes = page.alpha?.classes[position] ?? null;
  return classes === null ? null : classes.map((label, i) => ({ label, value: page.alpha.values[position][i] }));
}

function role(position, label) {
  return label === page.given[position] ? "given" : label === page.suggested[position] ? "suggested" : "other";
}

// Small bars side by side, up for a positive α̂.
function miniBars(position) {
  const bars = alphaOf(position);
  const box = draw("svg", { viewBox: `0 0 ${Math.max(5, bars.length) * 10} 30`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const zero = 30 * Math.max(page.alpha.high, 0) / page.alpha.range;
  bars.forEach(({ label, value }, i) => {
    const height = Math.max(30 * Math.abs(value) / page.alpha.range, 0.5);
    box.append(draw("rect", { class: `fill-${role(position, label)}`, x: i * 10 + 1.5, width: 7, height,
      y: value > 0 ? zero - height : zero }));
  });
  box.append(draw("line", { class: "axis", x1: 0, x2: "100%", y1: zero, y2: zero }));
  return box;
}

function alphaChart(position) {
  const bars = alphaOf(position);
  if (bars === null) return null;
  const zero = 100 * Math.max(-page.alpha.low, 0) / page.alpha.range;
  const rows = bars.flatMap(({ label, value }) => {
    const width = 100 * Math.abs(value) / page.alpha.range;
    return [nameSpan(label, role(position, label)),
      draw("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
        draw("rect", { class: `fill-${role(position, label)}`, x: value < 0 ? zero - width : zero, width, y: 1, height: 10 }),
        draw("line", { class: "axis", x1: zero, x2: zero, y1: 0, y2: 12 })),
      make("span", { className: "value", textContent: Math.abs(value) < 1e4 ? value.toFixed(3).replace("-", "−") : number(value) })];
  });
  return make("div", { className: "chart" }, make("h3", { textContent: "α̂ of the top classes" }),
    make("div", { className: "bars" }, ...rows));
}

function historyChart(position) {
  const score = historyOf(position);
  if (score === null) return null;
  const epochs = page.history.epoch, last = score.findLast((value) => value !== null);
  const range = score.filter((value) => value !== null);
  const picture = curve(score);
  picture.setAttribute("height", "72");
  return make("div", { className: "chart" }, make("h3", { textContent: "Score by epoch" }), picture,
    make("div", { className: "axis-labels" }, make("span", { textContent: `epoch ${epochs[0]}` }),
      make("span", { textContent: `from ${number(Math.min(...range))} to ${number(Math.max(...range))}, last ${number(last)}` }),
      make("span", { textContent: `epoch ${epochs.at(-1)}` })));
}
