"use strict";
// A table that a person pastes -> recordings, as `seqclf predict` reads the same file. Errors name
// the line. tests/test_demo.py compares both.

const SEPARATORS = [";", "\t", "|", ",", " "]; // the first of them is taken where several are as likely
const LINES_OF_SAMPLE = 20; // lines that decide what separates the cells
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i, COMMA = /^[+-]?\d*,\d+(e[+-]?\d+)?$/i;
const CLOCK = /^(\d{1,2}):([0-5]\d)(?::([0-5]\d(?:[.,]\d+)?))?$/;
const DATE = /^(?:(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{1,2})\.(\d{1,2})\.(\d{4}))(?:[ T](.*))?$/;
const ZONED = /^(.*?) ?(?:(Z|UTC)|([+-])(\d\d):?(\d\d)?)$/;

/** Return {names, sequences}: of each recording its id, null where the table has none, and its steps. */
function parseTable(text, spec) {
  text = text.replace(/\r\n?/g, "\n");
  const separator = findSeparator(text.split("\n").filter((line) => line.trim()).slice(0, LINES_OF_SAMPLE));
  const { rows, open } = splitText(text, separator);
  if (open) throw Error(`Line ${open}: a quote is left open, or not doubled inside a cell.`);
  const header = rows.length && isHeader(rows[0][1], spec) ? rows.shift()[1] : null;
  if (header && !rows.length) throw Error("No steps: the header line stands alone.");
  const readNumber = numberReader(spec, separator);
  const columns = findColumns(header, spec);
  const idColumn = header && spec.id !== null ? header.indexOf(spec.id) : -1;
  const timeColumn = header && spec.time !== null ? header.indexOf(spec.time) : -1;
  const recordings = new Map();
  let last, firstTime = null;
  for (const [number, row] of rows) {
    const wanted = header ? header.length : spec.num_features;
    if (row.length !== wanted) throw Error(wrongLength(number, row.length, header, spec));
    const id = idColumn < 0 ? null : row[idColumn];
    if (id === "") throw Error(`Line ${number}: no ${spec.id}.`);
    if (id !== last && recordings.has(id)) {
      throw Error(`Line ${number}: ${isolated(id)} begins again; the lines of one recording follow each other.`);
    }
    last = id;
    if (!recordings.has(id)) recordings.set(id, []);
    const time = timeColumn < 0 ? null : readTime(row[timeColumn], number, separator);
    firstTime ??= time;
    if (time?.kind !== firstTime?.kind) {
      throw Error(`Line ${number}: '${row[timeColumn]}' is ${time.kind}, where the first time is ${firstTime.kind}.`);
    }
    const values = columns.map((column) => readNumber(row[column], number));
    recordings.get(id).push({ number, values, at: time?.at });
  }
  const names = [...recordings.keys()];
  const found = names.map((name) => finish(recordings.get(name), spec));
  return {
    names,
    sequences: found.map(({ steps }) => steps),
    numFilled: found.map(({ numFilled }) => numFilled),
    hasHeader: header !== null,
  };
}

function findSeparator(lines) {
  const countOf = (separator) => lines
    .flatMap((line) => splitText(line, separator).rows.flatMap(([, cells]) => cells))
    .filter((cell) => NUMBER.test(cell) || COMMA.test(cell)).length;
  const counts = SEPARATORS.map(countOf);
  return SEPARATORS[counts.indexOf(Math.max(...counts))];
}

/** Return the cells of each row that is not blank, with its line, and the line where a quote stays open. */
function splitText(text, separator) {
  if (separator === " ") {
    const lines = text.split("\n").map((line, i) => [i + 1, line.trim()]).filter(([, line]) => line);
    return { rows: lines.map(([number, line]) => [number, line.split(/\s+/)]), open: 0 };
  }
  const rows = [];
  let cells = [""], isQuoted = false, line = 1, first = 1, start = 0;
  for (let i = 0; i <= text.length; i++) {
    const letter = text[i]; // undefined after the last one
    if (letter === '"' && isQuoted && text[i + 1] === '"') cells[cells.length - 1] += text[i++];
    else if (letter === '"' && isQuoted) isQuoted = false;
    else if (letter === '"' && !cells.at(-1).trim()) {
      isQuoted = true; // elsewhere in a cell it is a letter, as in 5" tall
      cells[cells.length - 1] = "";
    } else if (letter === undefined || (letter === "\n" && !isQuoted)) {
      if (text.slice(start, i).trim()) rows.push([first, cells.map((cell) => cell.trim())]);
      if (letter === undefined) break;
      [cells, start, first] = [[""], i + 1, ++line];
    } else if (letter === separator && !isQuoted) cells.push("");
    else {
      cells[cells.length - 1] += letter;
      if (letter === "\n") line++;
    }
  }
  return { rows, open: isQuoted ? first : 0 };
}

function isHeader(cells, spec) {
  const names = spec.features;
  if (names.length > 1 && names.every((name) => cells.includes(name))) return true;
  return cells.some((cell) => /^[\p{L}_<]/u.test(cell) && !spec.missing.includes(cell.toLowerCase()) && !/^(true|false)$/i.test(cell));
}

function findColumns(header, spec) {
  const all = Array.from({ length: spec.num_features }, (_, f) => f);
  if (!header || !spec.features.length) return all;
  const twice = [...spec.features, spec.id, spec.time].find((name) => header.indexOf(name) !== header.lastIndexOf(name));
  if (twice !== undefined) throw Error(`Line 1: column '${twice}' comes twice; rename one.`);
  const missing = spec.features.filter((name) => !header.includes(name));
  if (missing.length) throw Error(`Line 1: no column ${missing.join(", ")}, which the model reads.`);
  return spec.features.map((name) => header.indexOf(name));
}

function wrongLength(number, length, header, spec) {
  const cells = `Line ${number}: ${length} ${length === 1 ? "cell" : "cells"}`;
  if (header) return `${cells}, where the header line has ${header.length}.`;
  const names = spec.features.length ? ` (${spec.features.join(", ")})` : "";
  return `${cells}, where a step has ${spec.num_features}${names}.`;
}

/** Return a function of a cell and its line; all numbers of a table have the same decimal mark. */
function numberReader(spec, separator) {
  let mark = null; // the first cell with a decimal mark
  return (cell, number) => {
    const text = cell.replace("−", "-"), word = text.toLowerCase();
    if (spec.missing.includes(word)) return NaN;
    if (word === "true" || word === "false") return Number(word === "true");
    const isComma = separator !== "," && COMMA.test(text);
    if (!isComma && !NUMBER.test(text)) throw Error(`Line ${number}: '${cell}' is no number.`);
    if (isComma || text.includes(".")) {
      mark ??= { cell, isComma };
      if (mark.isComma !== isComma) throw Error(`Line ${number}: '${cell}' has another decimal mark than '${mark.cell}'.`);
    }
    const value = Number(text.replace(",", "."));
    if (!Number.isFinite(Math.fround(value))) throw Error(`Line ${number}: '${cell}' is too large.`);
    return value;
  };
}

/** Return what a time is, and a number that sorts it. */
function readTime(cell, number, separator) {
  if (/^\d+$/.test(cell)) return { kind: "a number", at: BigInt(cell) }; // nanoseconds need all digits
  if (NUMBER.test(cell)) return { kind: "a number", at: Number(cell) };
  if (separator !== "," && COMMA.test(cell)) return { kind: "a number", at: Number(cell.replace(",", ".")) };
  const clock = CLOCK.exec(cell);
  if (clock) return { kind: "a time of a clock", at: seconds(clock) };
  const date = DATE.exec(cell);
  if (date) {
    const [year, month, day] = date[1] ? [date[1], date[3], date[4]] : [date[7], date[6], date[5]];
    const zone = ZONED.exec(date[8] ?? ""), time = CLOCK.exec(zone ? zone[1] : (date[8] ?? "0:00"));
    const midnight = new Date(Date.UTC(year, month - 1, day));
    if (time && midnight.getUTCMonth() === month - 1) {
      const [sign, hours, minutes] = zone?.[3] ? [`${zone[3]}1`, zone[4], zone[5] ?? 0] : [0, 0, 0];
      const kind = `a date${zone ? " with a time zone" : ""}`;
      return { kind, at: midnight / 1000 + seconds(time) - sign * (3600 * hours + 60 * minutes) };
    }
  }
  throw Error(`Line ${number}: '${cell}' is no time that this page can read.`);
}

const seconds = ([, hours, minutes, rest = "0"]) => 3600 * hours + 60 * minutes + Number(rest.replace(",", "."));

/** Return a recording's steps in the order of their times, without padding and gaps. */
function finish(lines, spec) {
  const sorted = [...lines].sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
  const isPadding = ({ values }) => spec.pad_value !== null && values.every((value) => value === spec.pad_value);
  while (sorted.length && isPadding(sorted.at(-1))) sorted.pop();
  const gap = sorted.find(({ values }) => values.some(Number.isNaN));
  if (!gap) return { steps: sorted.map(({ values }) => values), numFilled: 0 };
  if (!spec.fill_missing) throw Error(`Line ${gap.number}: a missing value, where the training data had none.`);
  const steps = sorted.map(({ values }) => [...values]);
  const isGap = steps.map((step) => step.map(Number.isNaN));
  for (let f = 0; f < spec.num_features; f++) {
    const measured = steps.map((_, t) => t).filter((t) => !isGap[t][f]);
    let after = 0; // the place in `measured` of the next one
    for (let t = 0; t < steps.length; t++) {
      while (measured[after] < t) after++;
      if (!isGap[t][f]) continue;
      const [left, right] = [measured[after - 1] ?? measured[after], measured[after] ?? measured[after - 1]];
      // A feature without any value has the mean of the training data.
      if (left === undefined) steps[t][f] = spec.mean[f] + (spec.offset[f] ?? 0);
      else steps[t][f] = steps[left][f] + ((steps[right][f] - steps[left][f]) * (t - left)) / (right - left || 1);
    }
  }
  return { steps, numFilled: isGap.flat().filter(Boolean).length };
}

/** A name within a sentence, so that one that is written from right to left leaves the rest in its place. */
function isolated(name) {
  return `\u2068${name}\u2069`;
}
