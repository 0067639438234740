// The model reading an example: what it said after each step is in the page; nothing is computed.

if (at("payload")) playReading(JSON.parse(at("payload").textContent));

function playReading({ examples, features, colours }) {
  const WIDE = 600, HIGH = 100, LANE = 30, MOST_LINES = 6; // of the drawings, in their own units
  let one = examples[0], position = 0, playing = 0, turn = () => {};
  const last = () => one.ends.length - 1;
  const across = (index) => (WIDE * one.ends[index]) / one.ends[last()];
  const bestOf = (chances) => chances.indexOf(Math.max(...chances));
  const marker = (high) => svg("line", { y1: 0, y2: high, class: "marker" });
  const move = (mark) => (mark.setAttribute("x1", across(position)), mark.setAttribute("x2", across(position)));

  function choose(index, isPlayed) {
    stop();
    one = examples[index];
    for (const button of document.querySelectorAll("[data-example]")) button.setAttribute("aria-pressed", Number(button.dataset.example) === index);
    document.querySelector(".live").classList.toggle("wide", one.kind !== "image");
    turn = { image: showImage, series: showSeries, text: showText }[one.kind]();
    at("position").max = last();
    at("story").textContent = `test ${one.title}: ${one.story}`;
    const mark = drawChances(), turnPicture = turn;
    turn = () => (turnPicture(), move(mark));
    step(last());
    if (isPlayed && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  }

  function drawChances() {
    const most = (c) => one.chances[last()][c] + 1e-3 * Math.max(...one.chances.map((chances) => chances[c]));
    const best = one.classes.map((_, c) => c).sort((a, b) => most(b) - most(a)).slice(0, MOST_LINES);
    const mark = marker(HIGH);
    const lines = best.map((c, i) => line([[0, one.chances[0][c]], ...one.chances.map((chances, k) => [across(k), chances[c]])].map(([x, y]) => [x, HIGH - 2 - ((HIGH - 4) * y) / 1e4]), colours[i]));
    at("chances").replaceChildren(...lines, mark);
    at("legend").replaceChildren(...best.map((c, i) => legendItem(one.classes[c], colours[i])));
    return mark;
  }

  function showImage() {
    const frame = element("div", "picture"), image = element("img", ""), veil = element("div", `veil ${one.across ? "across" : "down"}`);
    image.src = one.image;
    image.alt = `test ${one.title}, truth ${one.truth}`;
    // A drawing of few pixels is as large as one of many.
    const ratio = one.size[0] / one.size[1];
    frame.style.aspectRatio = ratio;
    frame.style.width = `min(100%, ${22 * ratio}rem, ${40 * ratio}vh)`;
    frame.append(image, veil);
    at("shown").replaceChildren(frame);
    return () => {
      veil.style[one.across ? "left" : "top"] = `${(100 * (position + 1)) / one.ends.length}%`;
      veil.hidden = position === last();
    };
  }

  function showSeries() {
    const marks = [];
    const lanes = one.series.map((heights, f) => {
      const lane = element("div", "lane"), mark = marker(LANE);
      const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${LANE}`, preserveAspectRatio: "none", role: "img", "aria-label": features[f] });
      drawing.style.height = `${Math.max(2.2, 11 / one.series.length)}rem`;
      drawing.append(line(heights.map((height, t) => [(WIDE * (t + 1)) / heights.length, LANE - 2 - ((LANE - 4) * height) / 100]), colours[f % colours.length]), mark);
      marks.push(mark);
      lane.append(element("span", "name", features[f]), drawing);
      listen(drawing);
      return lane;
    });
    const all = element("div", "lanes");
    all.tabIndex = 0;
    all.setAttribute("role", "region");
    all.setAttribute("aria-label", "The sequence, each feature in its own scale");
    all.append(...lanes);
    at("shown").replaceChildren(all);
    return () => marks.forEach(move);
  }

  function showText() {
    const words = one.lines.map((text) => element("span", "", text));
    const all = element("p", "words");
    all.append(...words.flatMap((word) => [word, one.separator]));
    at("shown").replaceChildren(all);
    return () => words.forEach((word, k) => (word.className = k === position ? "read now" : k < position ? "read" : "unread"));
  }

  function step(to) {
    position = Math.max(0, Math.min(to, last()));
    turn();
    const chances = one.chances[position], best = bestOf(chances);
    at("bars").replaceChildren(...one.classes.map((name, c) => bar(name, chances[c] / 1e4, c === best)));
    const rest = Math.max(0, 1 - chances.reduce((sum, chance) => sum + chance, 0) / 1e4);
    at("rest").textContent = one.num_others ? `${count(one.num_others)} other classes: ${percent(rest)}` : "";
    at("position").value = position;
    const where = `${one.unit} ${count(one.ends[position])} of ${count(one.ends[last()])}`;
    at("where").textContent = where;
    at("position").setAttribute("aria-valuetext", `${where}: ${one.classes[best]}, ${percent(chances[best] / 1e4)}`);
    // A screen reader is told of the end only, not of each step of the animation.
    if (playing) return;
    const isMistaken = one.classes[best] !== one.truth;
    const name = (text) => Object.assign(document.createElement("bdi"), { textContent: text }); // written from right to left, it would move the number
    at("answer").replaceChildren(name(one.classes[best]), `: ${percent(chances[best] / 1e4)}`, ...(isMistaken ? [", truth ", name(one.truth)] : []));
    at("answer").classList.toggle("mistaken", isMistaken);
  }

  function stop() {
    clearInterval(playing);
    playing = 0;
    at("play").textContent = "Play";
  }

  function play() {
    const pause = Math.min(150, 2500 / one.ends.length), stride = Math.max(1, Math.round(16 / pause));
    at("play").textContent = "Stop";
    playing = setInterval(() => {
      if (position + stride >= last()) stop();
      step(position + stride);
    }, Math.max(16, pause));
    step(0);
  }

  function listen(drawing) {
    drawing.addEventListener("pointermove", (event) => {
      if (playing) return;
      const box = drawing.getBoundingClientRect();
      const end = ((event.clientX - box.left) / box.width) * one.ends[last()];
      const index = one.ends.findIndex((each) => each >= end);
      step(index < 0 ? last() : index);
    });
  }

  at("play").addEventListener("click", () => (playing ? (stop(), step(last())) : play()));
  at("position").addEventListener("input", (event) => (stop(), step(Number(event.target.value))));
  listen(at("chances"));
  for (const button of document.querySelectorAll("[data-example]")) button.addEventListener("click", () => choose(Number(button.dataset.example), true));
  document.querySelector(".still").hidden = true;
  document.querySelector(".live").hidden = false;
  choose(0, false);
}
