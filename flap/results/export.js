// Export the rows that are shown, in their order: as CSV with the columns of study.csv, or as LaTeX
// (booktabs) with the columns of the table.
(() => {
  "use strict";
  const shown = () => [...document.querySelectorAll("#cells tr:not([hidden])")];

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function csv() {
    const { columns, data } = JSON.parse(document.getElementById("records").textContent);
    const byCell = Object.fromEntries(data.map((row) => [row[0], row]));
    const lines = [columns, ...shown().map((row) => byCell[row.dataset.folder])];
    return lines.map((line) => line.map((value) => quoted(String(value ?? ""))).join(",") + "\n").join("");
  }

  const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "≈": "$\\approx$" };
  const escaped = (text) => text.trim().replace(/[\\~^±≈&%$#_{}]/g, (sign) => special[sign] ?? `\\${sign}`);

  // The texts of a row, without the columns of the cell and of its state. The first field of a dense
  // model spans these two columns and all choices.
  function texts(row, width) {
    const cells = [...row.cells].filter((cell) => !cell.matches(".files, .folder"));
    const [first, ...others] = cells;
    const dense = first.colSpan > 1;
    const values = (dense ? others : others.slice(1)).map((cell) => {
      const text = escaped(cell.textContent);
      return cell.matches(".best") ? `\\textbf{${text}}` : text;
    });
    const before = dense ? [escaped(first.textContent), ...Array(width - values.length - 1).fill("")] : [];
    return [...before, ...values];
  }

  function latex() {
    const heads = [...document.querySelectorAll("#results thead th[data-name]")].slice(2);
    const dense = [...document.querySelectorAll("tbody.dense tr")].map((row) => texts(row, heads.length));
    const rows = shown().filter((row) => row.matches(".finished")).map((row) => texts(row, heads.length));
    const kept = heads.map((_, i) => i).filter((i) => [...dense, ...rows].some((row) => row[i]));
    const line = (values) => `${kept.map((i) => values[i]).join(" & ")} \\\\\n`;
    const columns = kept.map((i) => (heads[i].matches(".number") ? "r" : "l")).join("");
    return (
      `% needs \\usepackage{booktabs}\n\\begin{tabular}{${columns}}\n\\toprule\n` +
      `${line(heads.map((head) => escaped(head.dataset.name)))}\\midrule\n` +
      `${dense.map(line).join("")}${dense.length && rows.length ? "\\midrule\n" : ""}${rows.map(line).join("")}` +
      "\\bottomrule\n\\end{tabular}\n"
    );
  }

  document.getElementById("csv").addEventListener("click", () => save("study.csv", csv()));
  document.getElementById("latex").addEventListener("click", () => save("study.tex", latex()));
})();
