// What the page was given, and small tools that all parts use. Text reaches the document by textContent alone.

const page = JSON.parse(document.getElementById("data").textContent);
const count = page.index.length;
const names = page.class_names;
const positionOf = new Map(page.index.map((id, position) => [id, position]));
const byId = (id) => document.getElementById(id);

// `props`: properties, or attributes where the name has a dash or is role.
function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// At most `length` UTF-16 units, no character cut in half, the cut shown.
function clip(text, length) {
  if (text.length <= length) return text;
  const end = /[\uD800-\uDBFF]/.test(text[length - 1]) ? length - 1 : length;
  return text.slice(0, end) + "…";
}

// A class by its name; by its number where the name says nothing.
function className(label, length = 60) {
  return clip(names[label].trim() === "" ? `class ${label}` : names[label], length);
}

function nameSpan(label, extra = "") {
  return make("span", { className: `name ${extra}`, textContent: className(label), title: className(label, 500) });
}

function number(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const text = Number.isInteger(value) ? String(value)
    : size >= 1e4 || size < 1e-4 ? value.toExponential(1) : value.toPrecision(3);
  return text.replace("-", "−");
}

function plural(amount, what) {
  return `${amount.toLocaleString("en")} ${what}${amount === 1 ? "" : "s"}`;
}

function announce(text) {
  byId("live").textContent = text;
}

function notice(text, kind = "") {
  const close = make("button", { type: "button", textContent: "Dismiss" });
  const box = make("div", { className: `notice ${kind}`, role: kind === "error" ? "alert" : "status" },
    make("span", { textContent: clip(text, 1000) }), close);
  close.addEventListener("click", () => box.remove());
  byId("notices").append(box);
}
