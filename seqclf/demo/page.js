"use strict";
// The page around model.js and table.js: what a person draws, pastes or types becomes a sequence; bars and curves
// show what the model says after each step. Text from data is only ever set as text.

const page = JSON.parse(document.getElementById("payload").textContent);
const model = makeModel(page.spec, decodeWeights(page.tensors, page.weights, page.half));
const MOST_BARS = 10, MOST_LINES = 6; // classes that are shown, the most probable ones
const COLOURS = ["#3b7dd8", "#d9822b", "#3a9a5b", "#b85ac0", "#c2493d", "#7d7a2c"];
const WORK = 1.5e9; // multiplications of one reading, a second or two; if need be steps are skipped

const MOST_BYTES = 5e6; // of a file; a field for text holds no more at ease
const MOST_CHOICES = 1000; // recordings of a table

let table = { names: [] }; // what table.js made of the text
let sequence = [], ends = [], found = [], position = 0, playing = 0, reading = 0;

// ---- reading: what the model says after each step, a few prefixes at a time

function endsOf(length) {
  const { hidden_size: size, bidirectional, num_layers: layers, operations, streams, width } = page.spec;
  const lstm = 4 * size * (size + width) * (bidirectional ? 2 : 1) * layers;
  const cost = length * (lstm + operations);
  const most = streams ? length : Math.max(8, Math.floor((2 * WORK) / cost));
  const stride = Math.ceil(length / Math.min(length, most, 500));
  const chosen = [];
  for (let end = stride; end < length; end += stride) chosen.push(end);
  return { stride, chosen: [...chosen, length] };
}

function read(steps, note = "") {
  stop();
  const number = ++reading;
  sequence = steps;
  found = [];
  ends = [];
  if (!steps.length) return show(note);
  const { stride, chosen } = endsOf(steps.length);
  ends = chosen;
  const lengths = page.lengths;
  if (lengths && (steps.length > 2 * lengths[1] || 2 * steps.length < lengths[0])) {
    note += ` ${count(steps.length)} steps, where training had ${count(lengths[0])} to ${count(lengths[1])}: do not trust it.`;
  }
  if (stride > 1) note += ` The model was asked after every ${count(stride)} steps.`;
  let last;
  const prefixes = model.prefixes(steps, ends.slice(0, -1));
  at("position").max = ends.length - 1;
  const goOn = () => {
    if (number !== reading) return;
    last ??= model.probabilities(steps);
    const until = performance.now() + 30;
    for (let one; performance.now() < until && !(one = prefixes.next()).done; ) found.push(one.value);
    if (found.length < ends.length - 1) {
      show(`Reading step ${count(ends[found.length])} of ${count(steps.length)}.`);
      setTimeout(goOn);
      return;
    }
    found.push(last);
    position = ends.length - 1;
    document.body.dataset.ready = number; // for whoever waits for the end
    show(note);
    if (page.kind !== "text" && page.kind !== "tokens" && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  };
  if (stride === 1) return goOn();
  show(`Reading ${count(steps.length)} steps.`); // the page stands still while the model reads a long sequence
  setTimeout(goOn, 50);
}

// ---- showing

function show(note) {
  if (note !== undefined) at("note").textContent = note;
  const chances = found[Math.min(position, found.length - 1)];
  at("result").hidden = !chances;
  draw();
  if (!chances) return void (at("answer").textContent = sequence.length ? "" : page.invitation);
  const order = page.classes.map((_, c) => c).sort((a, b) => chances[b] - chances[a]);
  at("bars").replaceChildren(...order.slice(0, MOST_BARS).sort((a, b) => a - b).map((c) => bar(page.classes[c], chances[c], c === order[0])));
  const rest = order.slice(MOST_BARS).reduce((sum, c) => sum + chances[c], 0);
  at("rest").textContent = page.classes.length > MOST_BARS ? `${count(page.classes.length - MOST_BARS)} other classes: ${percent(rest)}` : "";
  at("position").value = position;
  const end = ends[position];
  at("where").textContent = at("position").ariaValueText = end === undefined ? "" : `${page.unit} ${count(end)} of ${count(sequence.length)}`;
  // A screen reader is told of the end only, not of each step of the animation.
  if (!playing) {
    const name = document.createElement("bdi"); // written from right to left, it would move the number
    name.textContent = page.classes[order[0]];
    at("answer").replaceChildren(name, `: ${percent(chances[order[0]])}`);
  }
  decide();
}

function decide() {
  const least = Number(at("until").value);
  at("least").textContent = percent(least);
  at("until").ariaValueText = percent(least);
  const index = found.findIndex((chances) => Math.max(...chances) >= least);
  if (found.length < ends.length) return;
  const chances = found[index];
  at("decision").textContent = chances
    ? `After ${page.unit} ${count(ends[index])} of ${count(sequence.length)} the model is that sure, of ${isolated(page.classes[chances.indexOf(Math.max(...chances))])}.`
    : "The model is never that sure.";
}

const WIDE = 600, HIGH = 140; // of a drawing, in its own units
const across = (step) => (WIDE * step) / Math.max(1, sequence.length);

function draw() {
  const marker = () => svg("line", { x1: across(ends[position] ?? 0), x2: across(ends[position] ?? 0), y1: 0, y2: HIGH, class: "marker" });
  const best = page.classes.map((_, c) => c).sort((a, b) => most(b) - most(a)).slice(0, MOST_LINES);
  function most(c) { return found.length ? found[found.length - 1][c] + 1e-3 * Math.max(...found.map((chances) => chances[c])) : 0; }
  const least = HIGH * (1 - Number(at("until").value));
  at("chances").replaceChildren(
    svg("line", { x1: 0, x2: WIDE, y1: least, y2: least, class: "threshold" }),
    ...best.map((c, i) => line(found.map((chances, k) => [across(ends[k]), HIGH * (1 - chances[c])]), COLOURS[i])),
    marker());
  at("legend").replaceChildren(...(found.length ? best : []).map((c, i) => legendItem(page.classes[c], COLOURS[i])));
  if (page.kind === "series") drawSeries(marker);
  if (page.kind === "image") drawImage();
  if (page.kind === "tokens" || page.kind === "text") at("so-far").textContent = soFar();
}

function drawSeries(marker) {
  const features = sequence.length ? Math.min(sequence[0].length, COLOURS.length) : 0;
  const lines = Array.from({ length: features }, (_, f) => {
    const values = sequence.map((step) => step[f]);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    return line(values.map((value, t) => [across(t + 1), HIGH - 4 - ((HIGH - 8) * (value - low)) / (high - low || 1)]), COLOURS[f]);
  });
  at("curve").replaceChildren(...lines, marker());
  const all = sequence.length ? sequence[0].length : 0;
  at("drawn").textContent = all > features ? `The first ${features} of ${all} features are drawn, each in its own scale.` : "";
}

function step(to) {
  position = Math.max(0, Math.min(to, found.length - 1));
  show();
}

function stop() {
  clearInterval(playing);
  playing = 0;
  at("play").textContent = "Play";
}

function play() {
  position = 0;
  at("play").textContent = "Stop";
  const pause = Math.min(150, 2500 / ends.length), stride = Math.max(1, Math.round(16 / pause));
  playing = setInterval(() => {
    if (position >= ends.length - 1) stop();
    step(position + stride);
  }, Math.max(16, pause));
  step(0);
}

at("play").addEventListener("click", () => (playing ? (stop(), step(ends.length - 1)) : play()));
at("position").addEventListener("input", (event) => (stop(), step(Number(event.target.value))));
at("until").addEventListener("input", () => (decide(), draw()));
for (const id of ["chances", "curve"]) {
  at(id)?.addEventListener("pointermove", (event) => {
    if (playing || !found.length) return;
    const box = event.currentTarget.getBoundingClientRect();
    const end = ((event.clientX - box.left) / box.width) * sequence.length;
    const index = ends.findIndex((one) => one >= end);
    step(index < 0 ? ends.length - 1 : index);
  });
}

// ---- examples of the test split

page.examples.forEach((example) => {
  const button = document.createElement("button");
  button.type = "button";
  if (page.kind === "image") {
    const canvas = document.createElement("canvas");
    paint(canvas, example.values);
    button.append(canvas);
    button.setAttribute("aria-label", `${example.title}, truth ${example.truth}`);
  } else {
    button.textContent = example.truth;
  }
  button.title = `${example.title}, truth ${example.truth}`;
  button.addEventListener("click", () => {
    if (page.kind === "image") {
      strokes = [];
      image = example.values;
      read(stepsOf(image), `Shown: ${example.title}, truth ${isolated(example.truth)}.`);
    } else {
      at("text").value = page.kind === "series" ? example.values.map((row) => row.join(",")).join("\n") : example.values;
      readText(`Shown: ${example.title}, truth ${isolated(example.truth)}.`);
    }
  });
  at("examples").append(button);
});

// ---- images: strokes become pixels as those of the data, in place, size and ink

var strokes = [], image = null; // strokes are points [x, y] in units of the paper's height
var pen = null;

function stepsOf(image) {
  const { read: order, permutation, keep } = page.spec, most = page.most_rows ?? image.length;
  const pixels = keep === "first" ? image.slice(0, most) : image.slice(-most);
  if (order === "rows") return pixels;
  if (order === "columns") return pixels[0].map((_, x) => pixels.map((row) => row[x]));
  const flat = pixels.flat();
  return (order === "permuted" ? permutation.map((index) => flat[index]) : flat).map((value) => [value]);
}

function rasterise() {
  const [rows, columns] = page.shape, points = strokes.flat();
  const [top, left, bottom, right] = page.box;
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const inkOf = (pixels) => pixels.flat().reduce((a, b) => a + b, 0) / (rows * columns);
  const inked = (radius) => {
    // The middle of a line stays half its width away from the edges.
    const [high, wide] = [bottom - top - 2 * radius, right - left - 2 * radius].map((size) => Math.max(size, 0.5));
    const factor = Math.min(high / Math.max(y1 - y0, 0.02), wide / Math.max(x1 - x0, 0.02));
    const placed = strokes.map((stroke) => stroke.map(([x, y]) => [
      (x - (x0 + x1) / 2) * factor + (left + right) / 2,
      (y - (y0 + y1) / 2) * factor + (top + bottom) / 2,
    ]));
    return Array.from({ length: rows }, (_, r) => Array.from({ length: columns }, (_, c) => {
      const nearest = Math.min(...placed.map((stroke) => distance(c + 0.5, r + 0.5, stroke)));
      return Math.max(0, Math.min(1, radius + 0.5 - nearest));
    }));
  };
  let [thin, thick] = [0.2, Math.max(rows, columns) / 8];
  for (let round = 0; round < 12; round++) {
    const radius = (thin + thick) / 2;
    if (inkOf(inked(radius)) < page.ink) thin = radius; else thick = radius;
  }
  return inked(thin).map((row) => row.map((ink) => Math.round(ink * page.brightest)));
}

function distance(x, y, stroke) {
  let nearest = Infinity;
  for (let i = 0; i < stroke.length; i++) {
    const [ax, ay] = stroke[i], [bx, by] = stroke[i + 1] ?? stroke[i];
    const [dx, dy] = [bx - ax, by - ay], length = dx * dx + dy * dy;
    const share = length ? Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
    nearest = Math.min(nearest, Math.hypot(x - ax - share * dx, y - ay - share * dy));
  }
  return nearest;
}

function paint(canvas, pixels) {
  [canvas.height, canvas.width] = page.shape;
  const context = canvas.getContext("2d"), data = context.createImageData(canvas.width, canvas.height);
  pixels.flat().forEach((value, i) => {
    const light = Math.round((255 * value) / page.brightest);
    data.data.set([light, light, light, 255], 4 * i);
  });
  context.putImageData(data, 0, 0);
}

function drawImage() {
  const paper = at("paper"), context = paper.getContext("2d"), side = paper.height;
  context.fillStyle = "#000";
  context.fillRect(0, 0, paper.width, side);
  if (image) {
    paint(at("seen"), image);
    if (!strokes.length) {
      context.imageSmoothingEnabled = false;
      context.drawImage(at("seen"), 0, 0, paper.width, side);
    }
  } else {
    paint(at("seen"), Array.from({ length: page.shape[0] }, () => Array(page.shape[1]).fill(0)));
  }
  context.strokeStyle = "#fff";
  context.lineWidth = side / 14;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    stroke.forEach(([x, y], i) => (i ? context.lineTo(x * side, y * side) : context.moveTo(x * side, y * side)));
    if (stroke.length === 1) context.lineTo(stroke[0][0] * side + 0.1, stroke[0][1] * side);
    context.stroke();
  }
  if (pen) {
    context.fillStyle = pen.down ? "#d64550" : "#3b7dd8";
    context.fillRect(pen.x * side - 5, pen.y * side - 5, 10, 10);
  }
  const mark = at("mark").style, end = ends[position];
  const isRead = image && end !== undefined && page.spec.read !== "permuted";
  mark.display = isRead ? "block" : "none";
  if (!isRead) return;
  const [rows, columns] = page.shape, byColumns = page.spec.read === "columns";
  const row = page.spec.read === "pixels" ? Math.ceil(end / columns) : end;
  mark.top = byColumns ? "0" : `${(100 * (row - 1)) / rows}%`;
  mark.left = byColumns ? `${(100 * (row - 1)) / columns}%` : "0";
  mark.height = byColumns ? "100%" : `${100 / rows}%`;
  mark.width = byColumns ? `${100 / columns}%` : "100%";
}

function drawn() {
  image = strokes.length ? rasterise() : null;
  read(image ? stepsOf(image) : []);
}

function listenToDrawing() {
  const paper = at("paper");
  paper.width = Math.round((paper.height * page.shape[1]) / page.shape[0]);
  const place = (event) => {
    const box = paper.getBoundingClientRect();
    return [(event.clientX - box.left) / box.height, (event.clientY - box.top) / box.height];
  };
  let isDown = false;
  paper.addEventListener("pointerdown", (event) => {
    paper.setPointerCapture(event.pointerId);
    isDown = true;
    pen = null;
    stop();
    if (!strokes.length) image = null;
    strokes.push([place(event)]);
    draw();
  });
  paper.addEventListener("pointermove", (event) => {
    if (!isDown) return;
    strokes.at(-1).push(place(event));
    draw();
  });
  const lift = () => {
    if (isDown) drawn();
    isDown = false;
  };
  paper.addEventListener("pointerup", lift);
  paper.addEventListener("pointercancel", lift);
  paper.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    pen ??= { x: paper.width / paper.height / 2, y: 0.5, down: false };
    if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) strokes.push([[pen.x, pen.y]]);
      else drawn();
    } else if (moves[event.key]) {
      const [dx, dy] = moves[event.key];
      pen.x = Math.max(0, Math.min(paper.width / paper.height, pen.x + dx / 20));
      pen.y = Math.max(0, Math.min(1, pen.y + dy / 20));
      if (pen.down) strokes.at(-1).push([pen.x, pen.y]);
    } else return;
    event.preventDefault();
    at("pen").textContent = `The pen is ${pen.down ? "down" : "up"}.`;
    draw();
  });
  at("undo").addEventListener("click", () => (strokes.pop(), drawn()));
  at("clear").addEventListener("click", () => ((strokes = []), (pen = null), drawn()));
}

// ---- series, tokens and texts

function readText(note = "") {
  const text = at("text").value;
  try {
    if (page.kind === "series") readTable(text, note);
    else if (page.kind === "text") read([...new TextEncoder().encode(text)], note);
    else {
      const words = wordsOf(text);
      const unknown = words.filter((word) => !(numbers.has(word)));
      if (unknown.length) note += ` Not in the training data, and read as an unknown token: ${unknown.slice(0, 5).join(", ")}.`;
      read(words.map((word) => numbers.get(word) ?? 0), note);
    }
  } catch (error) {
    refuse(error.message);
  }
}

function refuse(reason) {
  table = { names: [] };
  if (page.kind === "series") at("choice").hidden = true;
  read([], reason);
}

const numbers = new Map(page.tokens.map((name, index) => [name, index + 1]));

function wordsOf(text) {
  return page.by_line ? text.split(/\r?\n/).filter((line) => line !== "") : text.split(/\s+/).filter(Boolean);
}

function soFar() {
  const end = ends[position] ?? 0;
  if (page.kind === "tokens") return wordsOf(at("text").value).slice(0, end).join(page.by_line ? "\n" : " ");
  return new TextDecoder().decode(new Uint8Array(sequence.slice(0, end)));
}

function readTable(text, note) {
  table = parseTable(text, page.table);
  const options = table.names.slice(0, MOST_CHOICES).map((name) => {
    const option = document.createElement("option");
    option.textContent = name;
    return option;
  });
  at("recording").replaceChildren(...options);
  at("choice").hidden = options.length < 2;
  readRecording(0, note);
}

function readRecording(index, note = "") {
  const { names, sequences, numFilled, hasHeader } = table;
  if (names.length > 1) note += ` Recording ${isolated(names[index])}, one of ${count(names.length)}.`;
  if (names.length > MOST_CHOICES) note += ` The first ${count(MOST_CHOICES)} can be chosen.`;
  if (hasHeader && names[0] === null && page.table.id !== null) {
    note += ` The table has no column ${isolated(page.table.id)}, so all its lines are one recording.`;
  }
  if (numFilled[index]) note += ` Missing values that were filled: ${count(numFilled[index])}.`;
  read(sequences[index] ?? [], note.trim());
}

function listenToText() {
  let timer = 0;
  const text = at("text");
  text.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(readText, 200);
  });
  const take = async (file) => {
    if (!file) return;
    text.value = "";
    if (file.size > MOST_BYTES) {
      return refuse(`${file.name} has ${count(Math.ceil(file.size / 1e6))} MB, of which this page takes ${MOST_BYTES / 1e6}; use seqclf predict.`);
    }
    const content = await file.text();
    if (/[\0\ufffd]/.test(content)) return refuse(`${file.name} is no text in UTF-8; use seqclf predict.`);
    if (!content.trim()) return refuse(`${file.name} is empty.`);
    text.value = content;
    readText(`Read: ${file.name}.`);
  };
  at("file").addEventListener("click", (event) => (event.target.value = "")); // the same file again is read again
  at("file").addEventListener("change", (event) => take(event.target.files[0]));
  at("recording")?.addEventListener("change", (event) => readRecording(event.target.selectedIndex));
  // A file that is dropped beside the text would else take the place of the page.
  document.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
}

if (page.kind === "image") listenToDrawing();
else listenToText();
show();
