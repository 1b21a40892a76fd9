(() => {
  "use strict";
  const form = document.getElementById("filters");
  const search = document.getElementById("search");
  const selects = [...form.querySelectorAll("select")];
  const shown = document.getElementById("shown");
  const heads = [...document.querySelectorAll("#results thead th[aria-sort]")];
  const body = document.getElementById("cells");
  const rows = [...body.rows].map((row) => ({
    row,
    keys: JSON.parse(row.dataset.keys),
    text: row.textContent.toLowerCase(),
  }));

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });

  function sort(index) {
    const descending = heads[index].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
    rows.sort((one, other) => {
      const [a, b] = [one.keys[index], other.keys[index]];
      if (a === null || b === null) return (a === null) - (b === null); // unknown values stay last, either way
      return descending ? compare(b, a) : compare(a, b);
    });
    body.append(...rows.map(({ row }) => row));
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/);
    let count = 0;
    for (const { row, text } of rows) {
      const chosen = selects.every(({ value, dataset }) => !value || row.dataset[dataset.field] === value);
      row.hidden = !(chosen && words.every((word) => text.includes(word)));
      count += row.hidden ? 0 : 1;
    }
    shown.value = `${count} of ${rows.length} cells shown`;
  }

  heads.forEach((head, index) => head.firstElementChild.addEventListener("click", () => sort(index)));
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => {
    form.reset();
    filter();
  });
})();
