// Export and import of decisions. fastac/decisions.py reads the same two formats; keep them alike.

const COLUMNS = ["index", "given_label", "given_class", "decision", "label", "class", "time"];
const NEEDED = ["index", "given_label", "decision", "label", "time"];
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

function readText(buffer) {
  const [one, two] = new Uint8Array(buffer);
  const encoding = one === 0xFF && two === 0xFE ? "utf-16le" : one === 0xFE && two === 0xFF ? "utf-16be" : "utf-8";
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(buffer); // without the byte order mark
  } catch {
    throw new Error("it should be text in UTF-8, which spreadsheets save as “CSV UTF-8”");
  }
}

// What a spreadsheet has put after the first cell.
function separatorOf(text) {
  const found = /^[ \r\n]*(?:"[^"]*"|[^",;\t\r\n]*)([,;\t])/.exec(text);
  if (found === null) {
    throw new Error(`it begins with ${clip(JSON.stringify(text), 80)}; it should be #format and more cells, between `
      + "commas, semicolons or tabs");
  }
  return found[1];
}

// Lines of cells, as RFC 4180 has them, with the number of each one's first line.
function parseCsv(text, separator) {
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
    else if (c === separator) { cells.push(cell); cell = ""; }
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
  let header = null;
  for (const { cells, line } of parseCsv(text, separatorOf(text))) {
    if (header !== null) entries.push(readRow(header, cells, line));
    else if (!cells[0].startsWith("#")) header = readHeader(cells, line);
    else if (cells[0] !== "#class_names") head[cells[0].slice(1)] = unguard(cells[1] ?? "");
    else head.class_names = cells.slice(2, 2 + (Number(cells[1]) || 0)).map(unguard);
  }
  return { ...head, num_samples: whole(head.num_samples ?? ""), rows: whole(head.rows ?? ""), entries };
}

function readHeader(cells, line) {
  const header = cells.map((name) => name.trim().toLowerCase());
  const times = (name) => header.filter((other) => other === name).length;
  if (NEEDED.some((name) => times(name) !== 1) || COLUMNS.some((name) => times(name) > 1)) {
    throw new Error(`line ${line} is ${clip(cells.join(), 200)}; it should have ${COLUMNS.join(",")}, each once`);
  }
  return header;
}

function readRow(header, cells, line) {
  const named = header.findLastIndex((name) => name !== "") + 1;
  while (cells.length > header.length && cells.at(-1) === "") cells.pop();
  if (cells.length < named || cells.length > header.length) {
    throw new Error(`line ${line} has ${cells.length} cells; it should have ${named}: ${header.slice(0, named).join()}`);
  }
  const row = Object.fromEntries(COLUMNS.map((name) => [name, cells[header.indexOf(name)]]));
  return { ...row, where: `line ${line}`, index: whole(row.index), given_label: whole(row.given_label),
    label: row.label === "" ? null : whole(row.label), decision: row.decision.trim().toLowerCase(),
    classes: [["given_class", row.given_class], ["class", row.class]] };
}

// A number, or the text that is none. 74.0 is a spreadsheet's 74; 1.000 may be a thousand.
function whole(text) {
  return /^\s*\d{1,15}(\.00?)?\s*$/.test(text) ? Number(text) : text;
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
  for (const { where, index, given_label, decision, label, time, classes = [] } of file.entries) {
    const after = { decision, label, given: given_label, time };
    const wrong = wrongIn(index, after);
    if (wrong !== null) throw new Error(`${where}: ${wrong}`);
    // The names are for people; one that was changed without its label shows a slip.
    for (const [i, [column, name]] of classes.entries()) {
      const beside = [given_label, label][i], want = beside === null ? "" : names[beside];
      if (name !== undefined && unguard(name) !== want) {
        throw new Error(`${where}: ${column} is ${clip(JSON.stringify(name), 80)} and the label beside it is ${beside}, `
          + `${clip(JSON.stringify(want), 80)}; change the label`);
      }
    }
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

function importFile(buffer, name) {
  try {
    const read = readExport(readText(buffer));
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
