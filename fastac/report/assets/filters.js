// Which samples are shown, and in which order.

const filter = { sort: "suspicion", find: "", flagged: null, status: "", given: null, suggested: null, kind: null };
const NO_FILTER = { find: "", flagged: null, status: "", given: null, suggested: null, kind: null };
let view = []; // positions of the samples shown

function fits(position) {
  const entry = decisions.get(page.index[position]);
  if (filter.status === "open" ? entry !== undefined : filter.status && entry?.decision !== filter.status) return false;
  if (filter.find && !found(position, filter.find.toLowerCase())) return false;
  return (filter.flagged === null || page.issue[position] === filter.flagged)
    && (filter.given === null || page.given[position] === filter.given)
    && (filter.suggested === null || page.suggested[position] === filter.suggested)
    && (filter.kind === null || page.kind[position] === filter.kind);
}

// An id, with or without #, or a part of a path.
function found(position, text) {
  return text.replace(/^#/, "") === String(page.index[position])
    || (page.path !== null && page.path[position].toLowerCase().includes(text));
}

function updateView() {
  const last = names.length; // no suggestion comes after all classes
  const keys = {
    suspicion: (position) => position,
    given: (position) => page.given[position],
    suggested: (position) => page.suggested[position] ?? last,
    id: (position) => page.index[position],
  };
  const key = keys[filter.sort];
  view = [...Array(count).keys()].filter(fits).sort((one, other) => key(one) - key(other) || one - other);
}

function setFilter(changes) {
  Object.assign(filter, changes);
  showFilters();
  refilter();
  announce(`${plural(view.length, "sample")} shown`);
}

function counted(values) {
  const counts = new Map();
  for (const value of values) if (value !== null) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

function fillSelect(id, values, name, order) {
  const options = [...counted(values)].sort(order).map(([value, amount]) =>
    make("option", { value: String(value), textContent: `${name(value)} (${amount.toLocaleString("en")})` }));
  byId(id).replaceChildren(make("option", { value: "", textContent: "all" }), ...options);
}

function buildFilters() {
  const byNumber = ([one], [other]) => one - other;
  fillSelect("filter-given", page.given, (label) => className(label, 40), byNumber);
  fillSelect("filter-suggested", page.suggested, (label) => className(label, 40), byNumber);
  byId("find-label").textContent = page.path === null ? "Find by id" : "Find by id or path";
  byId("filter-find").addEventListener("input", (event) => setFilter({ find: event.target.value.trim() }));
  byId("filter-find").addEventListener("keydown", (event) => {
    if (event.key === "Enter") gallery.focus();
  });
  byId("filter-kind-field").hidden = !page.kind;
  if (page.kind) fillSelect("filter-kind", page.kind, (kind) => clip(kind, 60), ([, one], [, other]) => other - one);
  const bind = (id, key, read) => byId(id).addEventListener("change", (event) =>
    setFilter({ [key]: read(event.target.value) }));
  const label = (text) => text === "" ? null : Number(text);
  bind("sort", "sort", (text) => text);
  bind("filter-status", "status", (text) => text);
  bind("filter-flagged", "flagged", label);
  bind("filter-given", "given", label);
  bind("filter-suggested", "suggested", label);
  bind("filter-kind", "kind", (text) => text === "" ? null : text);
  byId("filter-clear").addEventListener("click", () => setFilter(NO_FILTER));
}

function showFilters() {
  byId("sort").value = filter.sort;
  byId("filter-status").value = filter.status;
  if (byId("filter-find").value.trim() !== filter.find) byId("filter-find").value = filter.find;
  for (const key of ["flagged", "given", "suggested", "kind"]) byId(`filter-${key}`).value = String(filter[key] ?? "");
  const chips = [];
  const chip = (text, cleared) => {
    const button = make("button", { type: "button", "aria-label": `Remove the filter: ${text}` },
      make("span", { className: "name", textContent: text }), make("span", { textContent: "×", "aria-hidden": "true" }));
    button.addEventListener("click", () => setFilter(cleared));
    chips.push(button);
  };
  if (filter.find) chip(`found: ${clip(filter.find, 40)}`, { find: "" });
  if (filter.flagged !== null) chip(filter.flagged ? "flagged" : "not flagged", { flagged: null });
  if (filter.given !== null) chip(`given: ${className(filter.given, 40)}`, { given: null });
  if (filter.suggested !== null) chip(`suggested: ${className(filter.suggested, 40)}`, { suggested: null });
  if (filter.kind !== null) chip(`kind: ${clip(filter.kind, 40)}`, { kind: null });
  if (filter.status) chip(filter.status === "open" ? "not yet decided" : WORDS[filter.status], { status: "" });
  byId("chips").replaceChildren(...chips);
  byId("filter-clear").disabled = chips.length === 0;
  markPair();
}

// ---- the pairs of classes: a heat map for up to 40 classes a side, and the most frequent ones as a list

const HEAT_CLASSES = 40;
let pairButtons = [];
let pairsShown = 12;

function flaggedPairs() {
  const pairs = new Map();
  for (let position = 0; position < count; position++) {
    const suggested = page.suggested[position];
    if (!page.issue[position] || suggested === null) continue;
    const key = `${page.given[position]} ${suggested}`;
    const pair = pairs.get(key) ?? { given: page.given[position], suggested, amount: 0 };
    pair.amount++;
    pairs.set(key, pair);
  }
  return [...pairs.values()].sort((one, other) =>
    other.amount - one.amount || one.given - other.given || one.suggested - other.suggested);
}

function pairButton(pair, ...children) {
  const button = make("button", { type: "button", "aria-pressed": "false" }, ...children);
  button.setAttribute("aria-label", `${className(pair.given)} given, ${className(pair.suggested)} suggested: `
    + plural(pair.amount, "sample"));
  button.title = button.getAttribute("aria-label");
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    setFilter(pressed ? { given: null, suggested: null } : { given: pair.given, suggested: pair.suggested });
  });
  pairButtons.push({ button, pair });
  return button;
}

function markPair() {
  for (const { button, pair } of pairButtons) {
    button.setAttribute("aria-pressed", String(pair.given === filter.given && pair.suggested === filter.suggested));
  }
}

function buildPairs() {
  const pairs = flaggedPairs();
  byId("confusion").hidden = pairs.length === 0;
  const total = pairs.reduce((sum, { amount }) => sum + amount, 0);
  byId("confusion-note").textContent = `${plural(total, "flagged sample")} on this page. A click shows the pair.`;
  buildHeatmap(pairs);
  const heat = pairButtons;
  const list = () => {
    pairButtons = [...heat];
    byId("pairs").replaceChildren(...pairs.slice(0, pairsShown).map((pair) => make("li", {}, pairButton(pair,
      nameSpan(pair.given), make("span", { textContent: "→", className: "muted" }), nameSpan(pair.suggested),
      make("span", { className: "count", textContent: pair.amount.toLocaleString("en") })))));
    byId("pairs-more").hidden = pairs.length <= pairsShown;
    markPair();
  };
  byId("pairs-more").addEventListener("click", () => { pairsShown += 48; list(); });
  list();
}

function buildHeatmap(pairs) {
  const ascending = (one, other) => one - other;
  const rows = [...new Set(pairs.map((pair) => pair.given))].sort(ascending);
  const columns = [...new Set(pairs.map((pair) => pair.suggested))].sort(ascending);
  byId("heatmap").hidden = Math.max(rows.length, columns.length) > HEAT_CLASSES || pairs.length === 0;
  if (byId("heatmap").hidden) return;
  const most = pairs[0].amount;
  const cells = new Map(pairs.map((pair) => [`${pair.given} ${pair.suggested}`, pair]));
  const cell = (given, suggested) => {
    const pair = cells.get(`${given} ${suggested}`);
    if (pair === undefined) return make("td");
    const button = pairButton(pair, pair.amount > 999 ? "" : String(pair.amount));
    const depth = 0.12 + 0.88 * Math.sqrt(pair.amount / most);
    button.style.backgroundColor = `rgba(var(--heat), ${depth})`;
    return make("td", {}, button);
  };
  const head = make("tr", {}, make("td", { className: "corner" }),
    ...columns.map((label) => make("th", { scope: "col" }, nameSpan(label))));
  const body = rows.map((given) => make("tr", {}, make("th", { scope: "row" }, nameSpan(given)),
    ...columns.map((suggested) => cell(given, suggested))));
  const short = columns.every((label) => className(label).length <= 2);
  byId("heatmap").replaceChildren(make("table", { className: short ? "short" : "" },
    make("caption", { className: "visually-hidden", textContent: "Rows: given class. Columns: suggested class." }),
    make("thead", {}, head), make("tbody", {}, ...body)));
}
