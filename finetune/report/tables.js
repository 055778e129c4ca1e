"use strict";

// A number is compared as such, and a missing one comes last. Texts are compared as people order them.
const texts = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function compare(first, second) {
  const [x, y] = [Number(first), Number(second)];
  if (first === "-" || second === "-") return (first === "-") - (second === "-");
  return Number.isNaN(x) || Number.isNaN(y) ? texts.compare(first, second) : x - y;
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Names are sorted from A on, numbers from the highest on; a second click turns the order.
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const order = now ? (now === "ascending" ? "descending" : "ascending") : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map((row) => [row.cells[place].textContent, row]);
      rows.sort(([x], [y]) => (x === "-" || y === "-" ? 1 : sign) * compare(x, y));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= 20) return;
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  input.type = "search";
  input.autocomplete = "off";
  input.spellcheck = false;
  label.append("Filter rows ", input);
  const box = document.createElement("p");
  box.className = "filter";
  box.append(label, " ", count);
  table.parentElement.before(box);
  const contents = rows.map((row) => row.textContent.toLowerCase());
  const show = () => {
    const wanted = input.value.toLowerCase().trim();
    rows.forEach((row, place) => (row.hidden = !contents[place].includes(wanted)));
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  input.addEventListener("input", show);
  show();
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  sortable(table);
  filterable(table);
}

// A part that scrolls can be reached by the keyboard, and others are no stop.
const scrolls = new ResizeObserver((parts) => {
  for (const { target: part } of parts) {
    const moves = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
    moves ? part.setAttribute("tabindex", "0") : part.removeAttribute("tabindex");
  }
});
document.querySelectorAll(".scroll").forEach((part) => scrolls.observe(part));

// Paper has everything open.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((part) => (part.open = true));
});
addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
