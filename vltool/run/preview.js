"use strict";
const find = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll("article")].map((card) => ({
  card,
  text: card.textContent.toLowerCase(),
  kinds: card.dataset.kinds.split(" ").filter(Boolean),
}));
const boxes = [...document.querySelectorAll("input[data-kind]")];

function filter() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const off = boxes.filter((box) => !box.checked).map((box) => box.dataset.kind);
  let left = 0;
  for (const { card, text, kinds } of cards) {
    const hidden =
      words.some((word) => !text.includes(word)) ||
      (find("found").checked && !("found" in card.dataset)) ||
      (kinds.length > 0 && kinds.every((kind) => off.includes(kind)));
    card.hidden = hidden;
    left += !hidden;
  }
  for (const box of boxes) document.body.classList.toggle("no-" + box.dataset.kind, !box.checked);
  find("left").textContent = left === cards.length ? "" : left + " of " + cards.length + " records";
}

for (const input of [find("filter"), find("found"), ...boxes]) input.addEventListener("input", filter);
for (const name of ["names", "cuts"]) {
  find(name).addEventListener("input", (event) => document.body.classList.toggle(name, event.target.checked));
}

// What is pointed at, tapped or focused lights up in its picture, whose caption says what it is.
let lit = [];
function show(target) {
  const object = target.closest("[data-o]");
  for (const element of lit) element.classList.remove("lit");
  for (const caption of document.querySelectorAll("figcaption b:not(:empty)")) caption.textContent = "";
  lit = [];
  if (!object) return;
  const figure = object.closest("figure") || object.closest("article").querySelector("figure");
  const drawn = figure && figure.querySelector('g[data-o="' + object.dataset.o + '"]');
  if (!drawn) return;
  lit = object === drawn ? [drawn] : [drawn, object];
  for (const element of lit) element.classList.add("lit");
  figure.querySelector("figcaption b").textContent = drawn.querySelector("title").textContent;
}
for (const name of ["pointerover", "click", "focusin"]) document.addEventListener(name, (event) => show(event.target));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") show(document.body);
  if (event.key === "/" && event.target.tagName !== "INPUT") {
    event.preventDefault();
    find("filter").focus();
  }
});
