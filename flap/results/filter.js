// Filter and sort the table as the form says, and keep the values of the form in the address of the
// page. If the user chooses no order, the rows keep the order in which the page was written.
(() => {
  "use strict";
  const form = document.getElementById("filters");
  const heads = [...document.querySelectorAll("#results thead th[aria-sort]")];
  const names = heads.map((head) => head.dataset.name);
  const body = document.getElementById("cells");
  const rows = [...body.rows].map((row) => ({
    row,
    keys: JSON.parse(row.dataset.keys),
    fields: JSON.parse(row.dataset.fields),
    text: row.textContent.toLowerCase(),
  }));

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });

  function sort(order) {
    const descending = order.startsWith("-");
    const index = names.indexOf(descending ? order.slice(1) : order);
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== index ? "none" : descending ? "descending" : "ascending"));
    if (index < 0) return body.append(...rows.map(({ row }) => row));
    const sorted = [...rows].sort((one, other) => {
      const [a, b] = [one.keys[index], other.keys[index]];
      if (a === null || b === null) return (a === null) - (b === null); // unknown values are last in both directions
      return descending ? compare(b, a) : compare(a, b);
    });
    body.append(...sorted.map(({ row }) => row));
  }

  function filter({ search = "", sort, ...fields }) {
    const words = search.toLowerCase().split(/\s+/);
    let count = 0;
    for (const { row, fields: own, text } of rows) {
      const chosen = Object.entries(fields).every(([name, value]) => own[name] === value);
      row.hidden = !(chosen && words.every((word) => text.includes(word)));
      count += row.hidden ? 0 : 1;
    }
    document.getElementById("shown").value = `${count} of ${rows.length} cell${rows.length === 1 ? "" : "s"} shown`;
  }

  function show() {
    const view = [...new FormData(form)].filter(([, value]) => value);
    sort(form.elements.sort.value);
    filter(Object.fromEntries(view));
    const address = `#${new URLSearchParams(view)}`;
    document.getElementById("link").href = address;
    history.replaceState(null, "", address);
  }

  function restore() {
    const view = new URLSearchParams(location.hash.slice(1));
    for (const element of [...form.elements].filter(({ name }) => name)) {
      const value = view.get(element.name) ?? "";
      if (element.value !== value) element.value = value; // setting an equal value would move the caret
      if (value) element.closest("details")?.setAttribute("open", "");
    }
    show();
  }

  document.getElementById("results").addEventListener("click", ({ target }) => {
    const name = target.closest("thead button")?.parentElement.dataset.name;
    if (!name) return;
    form.elements.sort.value = form.elements.sort.value === name ? `-${name}` : name;
    show();
  });
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => {
    form.reset();
    show();
  });
  window.addEventListener("hashchange", restore);
  restore();
})();
