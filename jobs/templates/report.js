"use strict";
// Tables sort by a click on a heading; without scripts they stand in the order of the report.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, body, heading));
  }
}

function sortBy(table, body, heading) {
  const numeric = heading.classList.contains("num");
  const before = heading.getAttribute("aria-sort");
  const down = before ? before === "ascending" : numeric && heading.cellIndex > 0;
  const value = (row) => row.cells[heading.cellIndex].dataset.sort;
  const compare = (a, b) => (numeric ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true }));
  const rows = [...body.rows];
  const known = rows.filter((row) => value(row) !== "").sort((a, b) => (down ? compare(b, a) : compare(a, b)));
  body.append(...known, ...rows.filter((row) => value(row) === ""));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
}
