// Export and import of decisions. fastac/decisions.py reads the same two formats; keep them alike.

const COLUMNS = ["index", "given_label", "given_class", "decision", "label", "class", "time"];
// What a spreadsheet would run as a formula gets an apostrophe before it; reading takes exactly that one away.
const FORMULA = /^[ '\u00A0\uFEFF]*[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20]/;
const guard = (text) => FORMULA.test(text) ? `'${text}` : text;
const unguard = (text) => text.startsWith("'") && FORMULA.test(text.slice(1)) ? text.slice(1) : text;

function exportHead() {
  return { format: "fastac decisions", version: 1, fingerprint: page.fingerprint, num_samples: page.num_samples,
    class_names: names, run: page.run, exported: now(), rows: decisions.size };
}

function sortedDecisions() {
  return [...decisions].sort(([one], [other]) => one - other);
}

function exportJson() {
  const rows = sortedDecisions().map(([index, { given, decision, label, time }]) =>
    JSON.stringify({ index, given_label: given, decision, label, time }));
  const head = JSON.stringify({ ...exportHead(), decisions: 0 }, null, 1);
  return head.replace(/0\n}$/, () => rows.length ? `[\n  ${rows.join(",\n  ")}\n ]\n}\n` : "[]\n}\n");
}

function exportCsv() {
  const cell = (value) => typeof value === "number" ? String(value) : `"${guard(value).replaceAll('"', '""')}"`;
  const head = exportHead();
  const lines = [
    ["#format", head.format, head.version], ["#fingerprint", head.fingerprint], ["#num_samples", head.num_samples],
    ["#class_names", names.length, ...names], ["#run", head.run], ["#exported", head.exported], ["#rows", head.rows], COLUMNS,
    ...sortedDecisions().map(([index, { given, decision, label, time }]) =>
      [index, given, names[given], decision, label ?? "", label === null ? "" : names[label], time]),
  ];
  // The byte order mark tells spreadsheets that this is UTF-8.
  return "\uFEFF" + lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
}

function download(text, type, suffix) {
  const name = `decisions-${page.run.replace(/[^\w.-]+/g, "_").slice(0, 80)}.${suffix}`;
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  announce(`Exported ${plural(decisions.size, "decision")} to ${name}`);
}

// Lines of cells, as RFC 4180 has them, with the number of each one's first line.
function parseCsv(text) {
  const rows = [];
  let cells = [], cell = "", quoted = false, line = 1, start = 1;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === "\n") line++;
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += '"'; i++; }
      else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === ",") { cells.push(cell); cell = ""; }
    else if (c === "\n" || (c === "\r" && text[i + 1] !== "\n")) {
      rows.push({ cells: [...cells, cell], line: start });
      cells = []; cell = ""; start = line;
    } else if (c !== "\r") cell += c;
  }
  if (quoted) throw new Error(`line ${start}: a quoted cell has no end`);
  if (cell !== "" || cells.length) rows.push({ cells: [...cells, cell], line: start });
  return rows.filter((row) => row.cells.some((value) => value !== ""));
}

function readCsv(text) {
  const head = {}, entries = [];
  let header = false;
  for (const { cells, line } of parseCsv(text.replace(/^\uFEFF/, ""))) {
    const width = cells[0] === "#class_names" ? (whole(cells[1]) || 0) + 2 : COLUMNS.length;
    while (cells.length > width && cells.at(-1) === "") cells.pop();
    if (!header && cells[0].startsWith("#")) {
      const value = cells[0] === "#class_names" ? cells.slice(2) : cells[1];
      head[cells[0].slice(1)] = Array.isArray(value) ? value.map(unguard) : unguard(value ?? "");
    } else if (!header) {
      if (cells.join() !== COLUMNS.join()) throw new Error(`line ${line}: it should be ${COLUMNS.join(",")}`);
      header = true;
    } else {
      if (cells.length !== COLUMNS.length) throw new Error(`line ${line} has ${cells.length} cells, not 7`);
      const [index, given, , decision, label, , time] = cells;
      entries.push({ where: `line ${line}`, index: whole(index), given_label: whole(given), decision,
        label: label === "" ? null : whole(label), time });
    }
  }
  return { ...head, version: whole(head.version ?? "1"), num_samples: whole(head.num_samples ?? ""),
    rows: whole(head.rows ?? ""), entries };
}

function whole(text) {
  return /^\d{1,15}$/.test(text) ? Number(text) : NaN;
}

function readJson(text) {
  const content = JSON.parse(text);
  if (!Array.isArray(content?.decisions)) throw new Error("it has no list of decisions");
  const entries = content.decisions.map((entry, i) => ({ ...entry, where: `decision ${i + 1}` }));
  return { ...content, entries };
}

// The decisions of an exported file, by id. Throws an Error that says what is wrong.
function readExport(text) {
  const file = /^\s*\{/.test(text) ? readJson(text) : readCsv(text);
  if (file.format !== "fastac decisions") throw new Error("it is no file that this page has exported");
  if (file.fingerprint !== page.fingerprint || file.num_samples !== page.num_samples
    || JSON.stringify(file.class_names) !== JSON.stringify(names)) {
    throw new Error(`it was made for other data, of the run ${file.run}`);
  }
  const read = new Map();
  for (const { where, index, given_label, decision, label, time } of file.entries) {
    const after = { decision, label, given: given_label, time };
    if (!validDecision(index, after)) throw new Error(`${where} is no valid decision`);
    const position = positionOf.get(index);
    if (position !== undefined && page.given[position] !== given_label) {
      throw new Error(`${where}: given_label is ${given_label}, it should be ${page.given[position]}`);
    }
    const other = read.get(index);
    if (other && !sameDecision(other, after)) throw new Error(`${where}: another decision for the id ${index}`);
    if (!other) read.set(index, after);
  }
  if (read.size !== file.rows) throw new Error(`it has ${read.size} decisions; it should have ${file.rows}`);
  return read;
}

// ---- taking over what was read

const DIFFERENCES = 10; // that the dialog lists

const differing = (read) => [...read.keys()].filter((id) =>
  decisions.has(id) && !sameDecision(decisions.get(id), read.get(id)));

function importText(text, name) {
  try {
    const read = readExport(text);
    if (differing(read).length === 0) takeOver(read, name, false);
    else askWhose(read, name);
  } catch (error) {
    notice(`${clip(name, 100)} was not imported: ${error.message}`, "error");
  }
}

// One step, so that one undo takes the whole import back. Own decisions that differ stay, unless `theirs`.
function takeOver(read, name, theirs) {
  const differ = new Set(differing(read));
  const step = [...read].filter(([id]) => !decisions.has(id) || (theirs && differ.has(id)))
    .map(([id, after]) => ({ id, before: decisions.get(id) ?? null, after }));
  if (step.length) commit(step);
  const same = read.size - step.length - (theirs ? 0 : differ.size);
  const hidden = step.filter(({ id }) => !positionOf.has(id)).length;
  notice(`Imported ${plural(step.length, "decision")} from ${clip(name, 100)}.`
    + (same ? ` The same as yours already: ${same.toLocaleString("en")}.` : "")
    + (differ.size ? ` Different from yours: ${differ.size.toLocaleString("en")}, ${theirs ? "theirs taken" : "yours kept"}.` : "")
    + (hidden ? ` ${plural(hidden, "of their sample")} not on this page: kept and exported all the same.` : "")
    + (step.length ? " Undo takes the whole import back." : ""));
}

function askWhose(read, name) {
  const dialog = byId("import-dialog"), ids = differing(read);
  byId("import-text").textContent = `${ids.length.toLocaleString("en")} of the ${plural(read.size, "decision")} in `
    + `${clip(name, 100)} ${ids.length === 1 ? "differs" : "differ"} from yours. Keep yours and import the others, or `
    + "take all of theirs?";
  const more = ids.length - DIFFERENCES;
  byId("import-list").replaceChildren(...ids.slice(0, DIFFERENCES).map((id) => make("li", {
    textContent: `Sample ${id}: yours ${decidedText(decisions.get(id))}, theirs ${decidedText(read.get(id))}` })),
    ...(more > 0 ? [make("li", { textContent: `and ${more.toLocaleString("en")} more` })] : []));
  dialog.returnValue = "";
  dialog.addEventListener("close", () => {
    if (dialog.returnValue) takeOver(read, name, dialog.returnValue === "theirs");
    else notice(`${clip(name, 100)} was not imported: you cancelled it.`);
  }, { once: true });
  dialog.showModal();
}
