// What versions answered, drawn and held against each other.
const MOST_CLASSES = 5;
const MOST_VALUES = 8;
const MOST_ROWS = 50;
// As the gate of a shadow holds it: vectors by their direction, other numbers within a share.
const LEAST_COSINE = 0.99;
const MOST_DIFFERENCE = 0.05;

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

function flatten(value, into = []) {
  if (typeof value === "number") into.push(value);
  else if (typeof value === "boolean") into.push(Number(value));
  else if (Array.isArray(value)) for (const one of value) flatten(one, into);
  else if (value && typeof value === "object") for (const one of Object.values(value)) flatten(one, into);
  return into;
}

const short = (number) => (Number.isInteger(number) ? `${number}` : Number(number).toPrecision(4));
const isClass = (row) => row && typeof row === "object" && typeof row.label === "string" && row.scores;

// --- Drawn

function classes(row) {
  const best = Object.entries(row.scores)
    .sort(([, a], [, b]) => b - a)
    .slice(0, MOST_CLASSES);
  const items = best.map(([label, score]) => {
    const bar = make("progress", { max: 1, value: score });
    bar.setAttribute("aria-label", label);
    return make(
      "li",
      {},
      make("span", { textContent: label }),
      bar,
      make("span", { className: "r", textContent: `${(100 * score).toFixed(1)} %` }),
    );
  });
  return [make("p", { className: "top-label", textContent: row.label }), make("ul", { className: "scores" }, ...items)];
}

function shape(value) {
  const sizes = [];
  for (let at = value; Array.isArray(at); at = at[0]) sizes.push(at.length);
  return sizes.join(" × ");
}

function named(name, value, words, say) {
  const numbers = flatten(value);
  if (!Array.isArray(value) || !numbers.length) {
    const text = typeof value === "number" ? short(value) : JSON.stringify(value);
    return make("p", { className: "values" }, make("b", { textContent: name }), ` ${text}`);
  }
  const norm = Math.sqrt(numbers.reduce((sum, one) => sum + one * one, 0));
  const first = numbers.slice(0, MOST_VALUES).map(short).join(", ");
  const more = numbers.length > MOST_VALUES ? ", …" : "";
  const about = say(words.values, { count: shape(value), norm: norm.toPrecision(4) });
  return make(
    "p",
    { className: "values" },
    make("b", { textContent: name }),
    " ",
    make("code", { textContent: `[${first}${more}]` }),
    make("small", { className: "muted", textContent: ` ${about}` }),
  );
}

function one(row, words, say) {
  if (isClass(row)) return classes(row);
  const fields = row && typeof row === "object" && !Array.isArray(row) ? Object.entries(row) : [["", row]];
  return fields.map(([name, value]) => named(name, value, words, say));
}

export function draw(predictions, words, say) {
  if (predictions.length === 1) return one(predictions[0], words, say);
  const items = predictions.slice(0, MOST_ROWS).map((row, at) => {
    const about = make("b", { textContent: say(words.row, { number: at + 1 }) });
    if (isClass(row)) return make("li", {}, about, ` ${row.label} `, make("small", { className: "muted", textContent: `${(100 * row.score).toFixed(1)} %` }));
    return make("li", {}, about, ...one(row, words, say));
  });
  const left = predictions.length - items.length;
  if (left) items.push(make("li", { textContent: say(words.more, { count: left }) }));
  return [make("ol", { className: "row-answers" }, ...items)];
}

// --- Held against each other

const vectorOf = (row, like) =>
  isClass(row) && isClass(like) ? Object.keys(like.scores).map((label) => row.scores[label]) : flatten(row);

export function compare(base, other) {
  const found = { count: 0, same: 0, comparable: true, cosine: null, difference: 0, differs: false };
  if (base.predictions.length !== other.predictions.length) return { ...found, comparable: false, differs: true };
  base.predictions.forEach((row, at) => {
    const beside = other.predictions[at];
    const labelled = isClass(row) && isClass(beside);
    if (labelled) {
      found.count += 1;
      found.same += row.label === beside.label;
      found.differs ||= row.label !== beside.label;
    }
    const [a, b] = [vectorOf(row, row), vectorOf(beside, row)];
    if (a.length !== b.length || b.some((value) => !Number.isFinite(value))) {
      Object.assign(found, { comparable: false, differs: true });
      return;
    }
    if (!a.length) {
      found.differs ||= JSON.stringify(row) !== JSON.stringify(beside);
      return;
    }
    let [dot, aa, bb, difference, largest] = [0, 0, 0, 0, 0];
    a.forEach((value, place) => {
      dot += value * b[place];
      aa += value * value;
      bb += b[place] * b[place];
      difference = Math.max(difference, Math.abs(value - b[place]));
      largest = Math.max(largest, Math.abs(value));
    });
    const cosine = aa && bb ? dot / Math.sqrt(aa * bb) : Number(aa === bb);
    found.cosine = Math.min(found.cosine ?? 1, cosine);
    found.difference = Math.max(found.difference, difference);
    const apart = row?.embedding ? cosine < LEAST_COSINE : difference > MOST_DIFFERENCE * largest;
    if (!labelled) found.differs ||= apart;
  });
  return found;
}
