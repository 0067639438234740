for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    const place = [...head.parentNode.children].indexOf(head);
    const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)], [p, q] = [Number(x), Number(y)];
      return isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q;
    };
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
    body.append(...rows);
  });
}

// A cell of a confusion matrix shows its examples beside the matrix, and the page stays where it is.
for (const link of document.querySelectorAll("svg a")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const cell = document.getElementById(link.getAttribute("href").slice(1));
    for (const other of cell.parentNode.children) other.classList.toggle("chosen", other === cell);
    for (const other of link.closest("svg").querySelectorAll("a")) other.classList.toggle("chosen", other === link);
  });
}
// The most frequent mistake is shown first.
for (const cells of document.querySelectorAll(".cells")) cells.firstElementChild.classList.add("chosen");
