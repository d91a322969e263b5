// The selected sample at large, with the buttons that decide.

const selected = () => view[active];

function choice(kind, text, key, extra, action) {
  const entry = decisions.get(page.index[selected()]);
  const pressed = entry?.decision === kind && (kind !== "relabel" || extra.label === entry.label);
  const button = make("button", { type: "button", className: `${kind} ${extra.wide ? "wide" : ""}`,
    id: `choose-${extra.id ?? kind}`, "aria-pressed": String(pressed), "aria-keyshortcuts": key.toUpperCase(),
    disabled: Boolean(extra.disabled) },
    make("span", { className: "name", textContent: text, title: text }), make("kbd", { textContent: key.toUpperCase() }));
  button.addEventListener("click", action);
  return button;
}

function choices(position) {
  const suggested = page.suggested[position], entry = decisions.get(page.index[position]);
  const other = entry?.decision === "relabel" && entry.label !== suggested ? entry.label : null;
  return make("div", { className: "choices", role: "group", "aria-label": "Decision" },
    choice("relabel", suggested === null ? "No suggestion" : `Relabel to ${className(suggested)}`, "r",
      { wide: true, label: suggested, disabled: suggested === null }, relabelToSuggested),
    choice("relabel", other === null ? "Choose a class…" : `Relabelled to ${className(other)}`, "c",
      { wide: true, label: other, id: "other" }, openChooser),
    choice("keep", "Keep", "k", {}, () => take("keep")), choice("drop", "Drop", "d", {}, () => take("drop")),
    choice("unsure", "Unsure", "u", {}, () => take("unsure")),
    choice("clear", "Undecided", "x", { disabled: entry === undefined }, () => take(null)));
}

function labelRow(what, label) {
  return [make("dt", { textContent: what }),
    make("dd", { className: label === null ? "muted" : what, textContent: label === null ? "none" : className(label, 600) }),
    make("span", { className: "number", textContent: label === null ? "" : `class ${label}` })];
}

function scoreTable(position) {
  const rows = Object.entries(page.scores).map(([name, values]) => make("tr", {},
    make("th", { scope: "row", textContent: name }), make("td", { textContent: number(values[position]) })));
  return make("div", { className: "chart" }, make("h3", { textContent: "Scores" }),
    make("table", { className: "scores" }, make("tbody", {}, ...rows)));
}

function showDetail() {
  const detail = byId("detail"), focused = document.activeElement?.id;
  if (view.length === 0) {
    detail.replaceChildren();
    return;
  }
  const position = selected();
  const flag = page.issue[position] ? "flagged" : "not flagged";
  const large = page.text
    ? make("div", { className: "excerpt", tabIndex: 0, role: "region", "aria-label": "Text", textContent: page.text[position] })
    : picture(position);
  large?.querySelector("img")?.setAttribute("alt", `Sample ${page.index[position]}`);
  detail.replaceChildren(...[
    make("div", { className: "detail-head" }, make("h2", { textContent: `Sample ${page.index[position]}` }),
      make("span", { className: "muted small", textContent: `rank ${position + 1}, ${flag}` })),
    large,
    page.path ? make("p", { className: "path muted", textContent: clip(page.path[position], 2000) }) : null,
    make("dl", { className: "pair-box" }, ...labelRow("given", page.given[position]),
      ...labelRow("suggested", page.suggested[position])),
    page.kind && page.kind[position] ? make("p", { className: "small muted", textContent: `Kind: ${clip(page.kind[position], 200)}` }) : null,
    choices(position), alphaChart(position), historyChart(position), scoreTable(position),
  ].filter((part) => part !== null));
  if (focused?.startsWith("choose-")) (byId(focused)?.disabled ? gallery : byId(focused))?.focus();
}

// ---- deciding

function take(decision, label = null) {
  if (view.length === 0) return;
  const position = selected(), spot = active, shownBefore = view.length;
  decide(position, decision, label);
  const left = view.length < shownBefore; // the filter no longer shows it: the next one is in its place
  if (options.advance && decision !== null && !left) select(spot + 1);
  const next = view.length && selected() !== position ? ` Next: ${describe(selected())}.` : "";
  const entry = decisions.get(page.index[position]);
  announce(`${describe(position)}${entry ? "" : ", undecided"}. ${progressText()}.${next}`);
}

function relabelToSuggested() {
  if (view.length && page.suggested[selected()] !== null) take("relabel", page.suggested[selected()]);
}

function undoRedo(back) {
  const ids = travel(back);
  const spot = ids.length ? view.indexOf(positionOf.get(ids[0]) ?? -1) : -1;
  if (spot >= 0) select(spot);
  announce(ids.length === 0 ? `Nothing to ${back ? "undo" : "redo"}`
    : `${back ? "Undone" : "Redone"}: ${spot >= 0 && ids.length === 1 ? describe(view[spot]) : plural(ids.length, "decision")}. `
      + progressText());
}

// ---- the chooser: any class, found by typing

const CHOICES = 100;
let matches = [], match = 0;

function openChooser() {
  if (view.length === 0) return;
  byId("chooser-input").value = "";
  findClasses();
  byId("chooser").showModal();
  byId("chooser-input").focus();
}

function findClasses() {
  const text = byId("chooser-input").value.trim().toLowerCase();
  const found = [];
  for (let label = 0; label < names.length; label++) {
    const name = names[label].toLowerCase();
    if (text === "" || name.includes(text) || String(label) === text) {
      // A name before a number: in a folder's order the class "2" may be number 4.
      found.push([name === text ? 0 : String(label) === text ? 1 : name.startsWith(text) ? 2 : 3, label]);
    }
  }
  found.sort(([a, one], [b, other]) => a - b || one - other);
  matches = found.slice(0, CHOICES).map(([, label]) => label);
  match = 0;
  byId("chooser-note").textContent = found.length === 0 ? "No class has this name or number."
    : found.length > CHOICES ? `${(found.length - CHOICES).toLocaleString("en")} more: type to narrow.` : "";
  byId("chooser-list").replaceChildren(...matches.map((label, i) => {
    const item = make("li", { role: "option", id: `choice-${i}` }, nameSpan(label),
      make("span", { className: "number", textContent: String(label) }));
    item.addEventListener("click", () => choose(label));
    return item;
  }));
  markChoice();
}

function markChoice() {
  [...byId("chooser-list").children].forEach((item, i) => item.setAttribute("aria-selected", String(i === match)));
  byId(`choice-${match}`)?.scrollIntoView({ block: "nearest" });
  if (matches.length) byId("chooser-input").setAttribute("aria-activedescendant", `choice-${match}`);
  else byId("chooser-input").removeAttribute("aria-activedescendant");
}

function choose(label) {
  byId("chooser").close();
  take("relabel", label);
}

byId("chooser-input").addEventListener("input", findClasses);
byId("chooser-input").addEventListener("keydown", (event) => {
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
  if (event.key in moves && matches.length) match = Math.min(Math.max(match + moves[event.key], 0), matches.length - 1);
  else if (event.key === "Enter") { if (matches.length) choose(matches[match]); }
  else return;
  event.preventDefault();
  markChoice();
});
byId("chooser-cancel").addEventListener("click", () => byId("chooser").close());
