// The cards. Only those near the visible part are in the document, so that thousands stay fluid.

const GAP = 12, NARROWEST = 148;
// As review.css has the parts: frame and three lines, the picture, the strip of small charts.
const HEIGHT = 82 + (page.has_pictures ? 132 : 0) + (page.alpha || page.history ? 38 : 0);
const STEP = HEIGHT + GAP;
const gallery = byId("gallery"), spacer = byId("spacer");
const cards = new Map(); // by place in `view`
let active = 0; // place in `view` of the selected sample
let columns = 1, cardWidth = NARROWEST;

function picture(position) {
  if (page.text) return make("div", { className: "excerpt", textContent: clip(page.text[position], 400) });
  if (!page.image) return null;
  const source = page.image[position];
  const box = make("div", { className: `picture ${page.pixelated ? "pixelated" : ""}` });
  box.append(source === null ? "no image" : make("img", { src: source, alt: "", decoding: "async", draggable: false }));
  return box;
}

function decidedText(entry) {
  return entry.decision === "relabel" ? `relabelled to ${className(entry.label)}` : WORDS[entry.decision];
}

function decisionText(entry) {
  return entry.decision === "relabel" ? `→ ${className(entry.label)}` : WORDS[entry.decision];
}

function labelLine(label, kind) {
  const line = make("div", { className: `label-line ${kind} ${label === null ? "none" : ""}` });
  line.append(label === null ? make("span", { className: "name", textContent: "no suggestion" }) : nameSpan(label));
  return line;
}

function describe(position) {
  const entry = decisions.get(page.index[position]), suggested = page.suggested[position];
  return `Sample ${page.index[position]}, given ${className(page.given[position])}, `
    + (suggested === null ? "no suggestion" : `suggested ${className(suggested)}`)
    + (entry ? `, ${decidedText(entry)}` : "");
}

function fillCard(card, position) {
  const entry = decisions.get(page.index[position]);
  const strip = make("div", { className: "strip" });
  if (historyOf(position) !== null) strip.append(curve(historyOf(position)));
  if (alphaOf(position) !== null) strip.append(miniBars(position));
  card.className = `card ${entry?.decision ?? ""}`;
  card.setAttribute("aria-label", describe(position));
  card.replaceChildren(...[
    make("div", { className: "card-top" }, make("span", { textContent: `#${page.index[position]}` }),
      entry ? make("span", { className: `badge name ${entry.decision}`, textContent: decisionText(entry) })
        : page.kind ? make("span", { className: "name", textContent: clip(page.kind[position] ?? "", 40) }) : null),
    picture(position), labelLine(page.given[position], "given"), labelLine(page.suggested[position], "suggested"),
    strip.childNodes.length ? strip : null,
  ].map((part) => part ?? ""));
}

function makeCard(spot) {
  const card = make("div", { role: "option", id: `card-${spot}`, "aria-setsize": view.length, "aria-posinset": spot + 1 });
  card.dataset.spot = spot;
  fillCard(card, view[spot]);
  card.style.width = `${cardWidth}px`;
  card.style.height = `${HEIGHT}px`;
  card.style.transform = `translate(${(spot % columns) * (cardWidth + GAP)}px, ${Math.floor(spot / columns) * STEP}px)`;
  card.setAttribute("aria-selected", String(spot === active));
  return card;
}

function layout() {
  const width = spacer.clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (NARROWEST + GAP)));
  cardWidth = (width - GAP * (columns - 1)) / columns;
  spacer.style.height = `${Math.max(0, Math.ceil(view.length / columns) * STEP - GAP)}px`;
  rebuild();
}

function rebuild() {
  cards.clear();
  spacer.replaceChildren();
  render();
}

function render() {
  const first = Math.max(0, (Math.floor(gallery.scrollTop / STEP) - 1) * columns);
  const end = Math.min(view.length, (Math.ceil((gallery.scrollTop + gallery.clientHeight) / STEP) + 1) * columns);
  const wanted = (spot) => (spot >= first && spot < end) || spot === active; // the selected one is referred to by id
  for (const [spot, card] of cards) {
    if (!wanted(spot)) {
      card.remove();
      cards.delete(spot);
    }
  }
  const fresh = document.createDocumentFragment();
  const add = (spot) => {
    if (spot >= view.length || cards.has(spot)) return;
    cards.set(spot, makeCard(spot));
    fresh.append(cards.get(spot));
  };
  add(active);
  for (let spot = first; spot < end; spot++) add(spot);
  spacer.append(fresh);
  if (view.length) gallery.setAttribute("aria-activedescendant", `card-${active}`);
  else gallery.removeAttribute("aria-activedescendant");
}

function select(spot, { scroll = true } = {}) {
  if (view.length === 0) return;
  cards.get(active)?.setAttribute("aria-selected", "false");
  active = Math.min(Math.max(spot, 0), view.length - 1);
  if (scroll) {
    const top = Math.floor(active / columns) * STEP, room = gallery.clientHeight - HEIGHT - 24;
    if (top < gallery.scrollTop) gallery.scrollTop = top;
    else if (top > gallery.scrollTop + room) gallery.scrollTop = top - Math.max(room, 0);
  }
  render();
  cards.get(active)?.setAttribute("aria-selected", "true");
  showDetail();
}

// Filter and sort anew; `hold` is the position to stay at, where it is still shown.
function refilter(hold = view[active]) {
  updateView();
  const spot = view.indexOf(hold);
  active = spot >= 0 ? spot : Math.min(active, Math.max(view.length - 1, 0));
  byId("nothing").hidden = view.length > 0;
  byId("shown").textContent = view.length === count ? plural(count, "sample")
    : `${view.length.toLocaleString("en")} of ${plural(count, "sample")}`;
  layout();
  select(active);
  if (view.length === 0) showDetail();
}

let waiting = false;
gallery.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; render(); });
}, { passive: true });
gallery.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card) select(Number(card.dataset.spot), { scroll: false });
});
