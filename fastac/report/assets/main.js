// Keys, buttons, the theme, and the start.

const SETTINGS_KEY = "fastac-review-settings";
const options = { keys: true, advance: true, theme: "auto", ...readSettings() };

function readSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS_KEY)) ?? {};
  } catch {
    return {};
  }
}

function setOption(name, value) {
  options[name] = value;
  try {
    localStorage.setItem(SETTINGS_KEY, JSON.stringify(options));
  } catch {
    // store.js has said that nothing is kept
  }
}

// ---- progress

function progressText() {
  const shown = page.index.filter((id) => decisions.has(id)).length;
  return `${shown.toLocaleString("en")} of ${count.toLocaleString("en")} decided`;
}

function showProgress() {
  const kinds = counted([...decisions.values()].map((entry) => entry.decision));
  byId("progress-count").textContent = progressText();
  byId("progress-kinds").textContent = Object.keys(WORDS).filter((kind) => kinds.has(kind))
    .map((kind) => `${kinds.get(kind).toLocaleString("en")} ${WORDS[kind]}`).join(" · ");
  byId("progress-bar").max = Math.max(count, 1);
  byId("progress-bar").value = page.index.filter((id) => decisions.has(id)).length;
  byId("undo").disabled = done.length === 0;
  byId("redo").disabled = undone.length === 0;
}

changed = (ids) => {
  showProgress();
  if (filter.status) {
    const hold = ids.length === 1 ? positionOf.get(ids[0]) : undefined;
    refilter(hold);
    return;
  }
  const touched = new Set(ids);
  for (const [spot, card] of cards) if (touched.has(page.index[view[spot]])) fillCard(card, view[spot]);
  showDetail();
};

// ---- keys

// Digit keys choose the class of that number; of that name where all names are digits. Where a name has another number
// in it ("1 star" as class 0) a key would be taken for that one, and there are none.
function digitClasses() {
  const texts = names.map((name) => name.trim());
  if (texts.every((text) => /^[0-9]$/.test(text)) && new Set(texts).size === texts.length) {
    return new Map(texts.map((text, label) => [text, label]));
  }
  const own = (text, label) => (text.match(/[0-9]+/g) ?? []).every((digits) => Number(digits) === label);
  return new Map(names.length <= 10 && texts.every(own) ? texts.map((text, label) => [String(label), label]) : []);
}

const DIGITS = digitClasses();
const ROWS_A_PAGE = () => Math.max(1, Math.floor(gallery.clientHeight / STEP));
const MOVES = {
  ArrowRight: () => 1, n: () => 1, ArrowLeft: () => -1, p: () => -1, ArrowDown: () => columns,
  ArrowUp: () => -columns, PageDown: () => columns * ROWS_A_PAGE(), PageUp: () => -columns * ROWS_A_PAGE(),
  Home: () => -count, End: () => count,
};
const ACTIONS = {
  k: () => take("keep"), r: relabelToSuggested, c: openChooser, d: () => take("drop"), u: () => take("unsure"),
  x: () => take(null), z: (event) => undoRedo(!event.shiftKey), a: openAccept, "/": openFind,
  "?": () => byId("help-dialog").showModal(),
};

function openFind() {
  if (!byId("filter-find").checkVisibility()) byId("filters-toggle").click();
  byId("filter-find").focus();
  byId("filter-find").select();
}

// Letters as keys, whatever Caps Lock says; in Cyrillic, Greek and other scripts by the key's place.
function keyOf(event) {
  if (event.key.length > 1) return event.key;
  const place = /^(?:Key([A-Z])|Digit([0-9]))$/.exec(event.code ?? "");
  const foreign = /[\p{L}\p{Nd}]/u.test(event.key) && !/[0-9\p{Script=Latin}]/u.test(event.key);
  return (foreign && place ? place[1] ?? place[2] : event.key).toLowerCase();
}

function move(key) {
  select(active + MOVES[key]());
  if (view.length) announce(`${describe(selected())}, ${active + 1} of ${view.length}`);
}

document.addEventListener("keydown", (event) => {
  const field = event.target.closest?.("input, select, textarea, dialog");
  if (field || event.altKey || document.querySelector("dialog[open]")) return;
  const key = keyOf(event);
  let action = null;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") action = () => undoRedo(!event.shiftKey);
    else if (key === "y") action = () => undoRedo(false);
  } else if (key in MOVES && (key.length > 1 || options.keys)) action = () => move(key);
  else if (key === "Enter" && event.target.id === "gallery") action = relabelToSuggested;
  else if (options.keys && key in ACTIONS) action = () => ACTIONS[key](event);
  else if (options.keys && DIGITS.has(key)) action = () => take("relabel", DIGITS.get(key));
  if (action === null) return;
  event.preventDefault();
  action();
});

const HELP = [
  ["← → ↑ ↓", "previous, next, row above, row below (also P, N, Page Up, Page Down, Home, End)"],
  ["K", "keep the given label"], ["R or Enter", "relabel to the suggested class"], ["C", "choose another class"],
  ...(DIGITS.size ? [[[...DIGITS.keys()].sort().join(" "), `relabel to the class of that ${
    [...DIGITS].every(([digit, label]) => names[label].trim() === digit) ? "name" : "number"}`]] : []),
  ["A", "accept all suggestions shown (asks first)"], ["/", "find a sample"],
  ["D", "drop: leave the sample out of training"], ["U", "unsure: leave the label as it is"], ["X", "undecided again"],
  ["Z or Ctrl+Z", "undo"], ["Shift+Z or Ctrl+Y", "redo"], ["?", "this help"],
];

// ---- theme

const dark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = { auto: "◐", light: "☀", dark: "☾" };

function showTheme() {
  const theme = options.theme === "auto" ? (dark.matches ? "dark" : "light") : options.theme;
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = THEMES[options.theme] ?? THEMES.auto;
  byId("theme").setAttribute("aria-label", `Theme: ${options.theme}`);
}

// ---- start

function connect() {
  const click = (id, action) => byId(id).addEventListener("click", action);
  click("undo", () => undoRedo(true));
  click("redo", () => undoRedo(false));
  click("accept", openAccept);
  click("export-csv", () => download(exportCsv(), "text/csv;charset=utf-8", "csv"));
  click("export-json", () => download(exportJson(), "application/json", "json"));
  click("import", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) importFile(await file.arrayBuffer(), file.name);
    event.target.value = "";
  });
  click("help", () => byId("help-dialog").showModal());
  click("theme", () => {
    const order = Object.keys(THEMES);
    setOption("theme", order[(order.indexOf(options.theme) + 1) % order.length]);
    showTheme();
    announce(`Theme: ${options.theme}`);
  });
  dark.addEventListener("change", showTheme);
  click("filters-toggle", () => {
    const open = document.querySelector(".columns").classList.toggle("with-filters");
    byId("filters-toggle").setAttribute("aria-expanded", String(open));
    layout();
  });
  for (const name of ["keys", "advance"]) {
    byId(`option-${name}`).checked = options[name];
    byId(`option-${name}`).addEventListener("change", (event) => setOption(name, event.target.checked));
  }
  byId("help-keys").replaceChildren(...HELP.flatMap(([keys, what]) =>
    [make("dt", {}, make("kbd", { textContent: keys })), make("dd", { textContent: what })]));
  new ResizeObserver(layout).observe(gallery);
}

byId("title").textContent = page.title;
byId("subtitle").textContent = byId("subtitle").title = page.subtitle;
showTheme();
readFromBrowser();
takeEarlier();
connect();
buildFilters();
buildPairs();
showFilters();
showProgress();
refilter();
gallery.focus();
document.documentElement.dataset.ready = "true";
