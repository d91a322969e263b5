// The decisions, their undo and redo, and where the browser keeps them.
// A decision: { decision, label, given, time }; label is null for drop and unsure.

const WORDS = { keep: "kept", relabel: "relabelled", drop: "dropped", unsure: "unsure" };
const STORAGE_KEY = `fastac-review:${page.storage_key}`;
const STEPS_KEPT = 200;
const decisions = new Map();
let done = []; // steps that can be undone; a step is a list of { id, before, after }
let undone = [];
let earlierTaken = null; // the key of the earlier decisions that are among them
let storageWorks = true;
let changed = () => {}; // set by main.js: called with the ids whose decision changed

// What is wrong with a decision, null where it is right. fastac/decisions.py checks the same.
function wrongIn(id, entry) {
  if (entry === null || typeof entry !== "object") return "it is no decision";
  const { decision, label, given, time } = entry;
  const below = (value, end) => Number.isInteger(value) && value >= 0 && value < end;
  const wrong = (name, value, should) =>
    `${name} is ${clip(JSON.stringify(value) ?? "missing", 80)}; it should be ${should}`;
  if (!below(id, page.num_samples)) return wrong("index", id, `a whole number in [0, ${page.num_samples})`);
  if (!below(given, names.length)) return wrong("given_label", given, `a whole number in [0, ${names.length})`);
  if (typeof decision !== "string" || !Object.hasOwn(WORDS, decision)) {
    return wrong("decision", decision, "keep, relabel, drop or unsure");
  }
  if (typeof time !== "string" || !/^\d{4}-\d\d-\d\d/.test(time) || Number.isNaN(Date.parse(time))) {
    return wrong("time", time, "like 2026-01-31T12:00:00Z");
  }
  if (decision === "drop" || decision === "unsure") return label === null ? null : wrong("label", label, `empty with ${decision}`);
  if (!below(label, names.length)) return wrong("label", label, `a whole number in [0, ${names.length})`);
  if ((label === given) === (decision === "keep")) return null;
  return wrong("label", label, `${decision === "keep" ? "the given label" : "another label than the given one"} (${given}) `
    + `with ${decision}`);
}

const validDecision = (id, entry) => wrongIn(id, entry) === null;
const sameDecision = (one, other) => one.decision === other.decision && one.label === other.label;

function place(id, entry) {
  if (entry === null) decisions.delete(id);
  else decisions.set(id, entry);
}

function commit(step) {
  for (const { id, after } of step) place(id, after);
  done.push(step);
  undone = [];
  keepInBrowser();
  changed(step.map(({ id }) => id));
}

// Undo or redo one step; returns the ids it changed, none where there is no step.
function travel(back) {
  const [from, to] = back ? [done, undone] : [undone, done];
  const step = from.pop();
  if (step === undefined) return [];
  for (const { id, before, after } of step) place(id, back ? before : after);
  to.push(step);
  keepInBrowser();
  const ids = step.map(({ id }) => id);
  changed(ids);
  return ids;
}

function entryFor(position, decision, label) {
  const given = page.given[position];
  if (decision === "relabel" && label === given) decision = "keep";
  if (decision === "keep") label = given;
  return { decision, label, given, time: now() };
}

function decide(position, decision, label = null) {
  const id = page.index[position], after = decision === null ? null : entryFor(position, decision, label);
  const before = decisions.get(id) ?? null;
  if (before === null && after === null) return;
  commit([{ id, before, after }]);
}

function now() {
  return new Date().toISOString().replace(/\.\d+Z$/, "Z");
}

function keepInBrowser() {
  if (!storageWorks) return;
  const write = (steps) => localStorage.setItem(STORAGE_KEY, JSON.stringify(
    { decisions: [...decisions], earlier: earlierTaken, ...steps }));
  try {
    try {
      write({ done: done.slice(-STEPS_KEPT), undone: undone.slice(-STEPS_KEPT) });
    } catch {
      write({ done: [], undone: [] }); // a browser has room for some megabytes: decisions first
    }
  } catch (error) {
    storageFailed(error);
  }
}

function storageFailed(error) {
  storageWorks = false;
  notice(`This browser does not keep decisions for this page (${error.name}): what you decide now is lost when it is `
    + "closed. Export it before that.", "error");
}

function readFromBrowser() {
  let text = null;
  try {
    text = localStorage.getItem(STORAGE_KEY);
  } catch (error) {
    storageFailed(error);
  }
  if (text !== null) takeState(text);
}

function takeState(text) {
  try {
    const state = JSON.parse(text);
    const entries = state.decisions.filter(([id, entry]) => validDecision(id, entry));
    const isStep = (step) => Array.isArray(step) && step.every(({ id, before, after }) =>
      [before, after].every((entry) => entry === null || validDecision(id, entry)));
    const steps = [state.done, state.undone].map((list) => list.every(isStep) ? list : []);
    if (entries.length < state.decisions.length) throw new RangeError("some are not valid");
    decisions.clear();
    for (const [id, entry] of entries) decisions.set(id, entry);
    [done, undone] = steps;
    earlierTaken = state.earlier ?? null;
  } catch (error) {
    notice(`The decisions that this browser kept for this page can't be read (${error.message}).`, "error");
  }
}

// What was decided before this page was written, once: own decisions stay, and what is undecided again stays so.
function takeEarlier() {
  if (page.earlier === null || page.earlier.key === earlierTaken) return;
  const fresh = page.earlier.decisions.filter(([id]) => !decisions.has(id));
  for (const [id, entry] of fresh) place(id, entry);
  earlierTaken = page.earlier.key;
  keepInBrowser();
  if (fresh.length) notice(`Taken over from an earlier review: ${plural(fresh.length, "decision")}.`);
}

// The same page in another tab.
window.addEventListener("storage", (event) => {
  if (event.key !== STORAGE_KEY || event.newValue === null) return;
  takeState(event.newValue);
  changed([...page.index]);
});

window.addEventListener("beforeunload", (event) => {
  if (!storageWorks && decisions.size > 0) event.preventDefault();
});
