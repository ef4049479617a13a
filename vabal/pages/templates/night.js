// Sorts the picks of each group; without scripts they stand by rank.
"use strict";
for (const chooser of document.querySelectorAll(".orders")) {
  chooser.hidden = false;
  const told = chooser.querySelector("output");
  chooser.querySelector("select").addEventListener("change", (event) => {
    const order = event.target.value;
    for (const cards of document.querySelectorAll(".cards")) {
      const sorted = [...cards.children].sort((a, b) => a.dataset[order] - b.dataset[order]);
      cards.append(...sorted);
    }
    told.value = "sorted by " + event.target.selectedOptions[0].text;
  });
}
