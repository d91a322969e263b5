// All suggestions shown, accepted at once.

// The shown samples that are undecided and have a suggestion other than their label.
function acceptable() {
  return view.filter((position) => !decisions.has(page.index[position])
    && page.suggested[position] !== null && page.suggested[position] !== page.given[position]);
}

function openAccept() {
  const dialog = byId("accept-dialog"), positions = acceptable(), all = byId("chips").childElementCount === 0;
  byId("accept-text").textContent = positions.length === 0 ? "No sample shown is undecided and has a suggestion."
    : `Of ${plural(view.length, "sample")} shown${all ? ", all on this page as no filter is set," : ""} `
      + `${positions.length.toLocaleString("en")} ${positions.length === 1 ? "is" : "are"} undecided and `
      + `${positions.length === 1 ? "has" : "have"} a suggestion. Your decisions stay; one undo takes this back.`;
  byId("accept-all").textContent = `Relabel ${plural(positions.length, "sample")}`;
  byId("accept-all").disabled = positions.length === 0;
  dialog.returnValue = "";
  dialog.showModal();
}

byId("accept-dialog").addEventListener("close", () => {
  if (byId("accept-dialog").returnValue !== "accept") return;
  const step = acceptable().map((position) => ({ id: page.index[position], before: null,
    after: entryFor(position, "relabel", page.suggested[position]) }));
  if (step.length === 0) return;
  commit(step);
  notice(`Relabelled ${plural(step.length, "sample")} to the suggested class. Undo takes all of it back.`);
});
