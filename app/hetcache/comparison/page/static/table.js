/* Tables: a click on a column's title sorts by it; what has no value stays at the end. */
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  titles.forEach((title, column) => {
    title.querySelector("button").addEventListener("click", () => {
      const first = title.dataset.better === "higher" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = title.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      titles.forEach((each) => each.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", order);
      const rows = [...body.rows].map((row) => [row, row.cells[column]]);
      rows.sort(([, one], [, two]) => {
        if (column === 0) return sign * one.textContent.localeCompare(two.textContent);
        const [a, b] = [one, two].map((cell) => cell.dataset.value ?? "");
        if (a === "" || b === "") return (a === "") - (b === "");
        return a === b ? 0 : sign * (Number(a) < Number(b) ? -1 : 1);
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}

/* The filter shows the methods whose name holds every word. */
for (const filter of document.querySelectorAll(".filter input")) {
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll("table.sortable tbody tr")) {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
    }
  });
}
