// What the page of a run and the page of `seqclf demo` both draw. Text from data is only set as text.

const at = (id) => document.getElementById(id);
// Less than all is never 100 %.
const percent = (share) => {
  const digits = (100 * share).toFixed(share >= 0.9995 || share < 0.0005 ? 2 : 1);
  return share < 1 && Number(digits) === 100 ? ">99.99 %" : share === 1 ? "100 %" : `${digits} %`;
};
const count = (number) => number.toLocaleString("en");

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function bar(name, chance, isBest) {
  const row = element("li", isBest ? "best" : ""), label = element("span", "name", name);
  const track = element("span", "track"), fill = element("span", "");
  label.title = name;
  fill.style.width = `${100 * chance}%`;
  track.append(fill);
  row.append(label, track, element("span", "value", percent(chance)));
  return row;
}

function legendItem(name, colour) {
  const item = element("li", "", name);
  item.style.setProperty("--colour", colour);
  return item;
}

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function line(points, colour) {
  return svg("polyline", { points: points.map((point) => point.map((x) => x.toFixed(1)).join(",")).join(" "), fill: "none", stroke: colour, "stroke-width": 2 });
}
