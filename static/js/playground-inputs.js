// Inputs made by hand: a drawn digit, an image, a text, a table. Each gives rows of named fields.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

const SIDE = 28;
// A digit fills twenty of its twenty-eight pixels, as those do that models are trained on.
const BOX = 20;
const TEXT = "How do I read a file?";
// The example of a digit: a seven, as two strokes over the field.
const SEVEN = [[80, 75], [200, 75], [130, 215]];

async function imageFrom(file, words) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(words.noImage);
  }
}

function complainOf(error) {
  $("#trouble").textContent = error?.message ?? "";
}

// --- A drawn digit

function digit(takes, words) {
  const canvas = $("#draw");
  const sent = $("#sent");
  const ink = canvas.getContext("2d", { willReadFrequently: true });
  const small = sent.getContext("2d", { willReadFrequently: true });
  let empty = true;

  function wipe() {
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, canvas.width, canvas.height);
    small.fillStyle = "#000";
    small.fillRect(0, 0, SIDE, SIDE);
    empty = true;
  }

  // Fit what is drawn into the box and put its weight into the middle.
  function reduce() {
    const { width, height } = canvas;
    const { data } = ink.getImageData(0, 0, width, height);
    let [left, right, top, bottom, total, sumX, sumY] = [width, -1, height, -1, 0, 0, 0];
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const value = data[4 * (y * width + x)];
        if (value < 20) continue;
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
        total += value;
        sumX += value * x;
        sumY += value * y;
      }
    }
    small.fillStyle = "#000";
    small.fillRect(0, 0, SIDE, SIDE);
    if (right < 0) return;
    const [wide, high] = [right - left + 1, bottom - top + 1];
    const scale = BOX / Math.max(wide, high);
    const middle = SIDE / 2;
    const x = Math.min(Math.max(middle - (sumX / total - left) * scale, 0), SIDE - wide * scale);
    const y = Math.min(Math.max(middle - (sumY / total - top) * scale, 0), SIDE - high * scale);
    small.imageSmoothingQuality = "high";
    small.drawImage(canvas, left, top, wide, high, x, y, wide * scale, high * scale);
  }

  function stroke(points) {
    Object.assign(ink, { strokeStyle: "#fff", lineWidth: 22, lineCap: "round", lineJoin: "round" });
    ink.beginPath();
    ink.moveTo(...points[0]);
    for (const point of points) ink.lineTo(...point);
    ink.stroke();
    empty = false;
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  };
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = at(event);
    stroke([from]);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    const to = at(event);
    stroke([from, to]);
    from = to;
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (from) reduce();
      from = null;
    });
  }
  $("#clear").addEventListener("click", wipe);
  $("#image-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      const image = await imageFrom(file, words);
      wipe();
      const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
      const [wide, high] = [image.width * scale, image.height * scale];
      ink.filter = "grayscale(1)";
      ink.drawImage(image, (canvas.width - wide) / 2, (canvas.height - high) / 2, wide, high);
      ink.filter = "none";
      turnLight();
      empty = false;
      complainOf(null);
      reduce();
    } catch (error) {
      complainOf(error);
    }
  });

  // Ink on paper becomes light on black.
  function turnLight() {
    const image = ink.getImageData(0, 0, canvas.width, canvas.height);
    const { data } = image;
    const [middle] = [4 * ((canvas.height >> 1) * canvas.width)];
    const corner = (data[0] + data[middle] + data[data.length - 4]) / 3;
    let sum = 0;
    for (let place = 0; place < data.length; place += 4) sum += data[place];
    if (Math.max(corner, (4 * sum) / data.length) < 128) return;
    for (let place = 0; place < data.length; place += 4) {
      for (const channel of [0, 1, 2]) data[place + channel] = 255 - data[place + channel];
    }
    ink.putImageData(image, 0, 0);
  }

  const bytes = () => {
    const { data } = small.getImageData(0, 0, SIDE, SIDE);
    return Uint8Array.from({ length: SIDE * SIDE }, (_, place) => data[4 * place]);
  };
  const pixelsOf = (value) => {
    if (typeof value === "string") return Uint8Array.from(atob(value), (one) => one.charCodeAt(0));
    return Uint8Array.from(value.flat());
  };
  function paint(context, pixels) {
    const image = context.createImageData(SIDE, SIDE);
    pixels.forEach((value, place) => image.data.set([value, value, value, 255], 4 * place));
    context.putImageData(image, 0, 0);
  }

  wipe();
  return {
    rows() {
      if (empty) throw new Error(words.noInput);
      return [{ [takes.column]: btoa(String.fromCharCode(...bytes())) }];
    },
    show(rows) {
      if (rows.length !== 1) return false;
      wipe();
      paint(small, pixelsOf(rows[0][takes.column]));
      ink.imageSmoothingEnabled = true;
      ink.drawImage(sent, 0, 0, canvas.width, canvas.height);
      empty = false;
      return true;
    },
    example() {
      wipe();
      stroke(SEVEN);
      reduce();
    },
    picture(rows) {
      const tiny = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE, className: "pixels" });
      paint(tiny.getContext("2d"), pixelsOf(rows[0][takes.column]));
      return { nodes: [tiny], text: words.digitDrawn };
    },
  };
}

// --- An image of any size, scaled to what the model takes

function picture(takes, words) {
  const canvas = $("#draw");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let ready = false;

  function cover(image) {
    const scale = Math.max(canvas.width / image.width, canvas.height / image.height);
    const [wide, high] = [image.width * scale, image.height * scale];
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (canvas.width - wide) / 2, (canvas.height - high) / 2, wide, high);
    ready = true;
  }
  $("#image-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      cover(await imageFrom(file, words));
      complainOf(null);
    } catch (error) {
      complainOf(error);
    }
  });

  function tensor() {
    const { data } = context.getImageData(0, 0, takes.width, takes.height);
    const value = (x, y, channel) => {
      const place = 4 * (y * takes.width + x);
      const grey = () => 0.299 * data[place] + 0.587 * data[place + 1] + 0.114 * data[place + 2];
      const plain = takes.channels === 1 ? grey() : data[place + channel];
      return takes.whole ? Math.round(plain) : Number((plain / 255).toFixed(4));
    };
    const list = (count, make) => Array.from({ length: count }, (_, at) => make(at));
    if (takes.layout === "first") {
      return list(takes.channels, (c) => list(takes.height, (y) => list(takes.width, (x) => value(x, y, c))));
    }
    return list(takes.height, (y) => list(takes.width, (x) => list(takes.channels, (c) => value(x, y, c))));
  }

  return {
    rows() {
      if (!ready) throw new Error(words.noInput);
      return [{ [takes.column]: tensor() }];
    },
    // The numbers are kept, the image is not.
    show: () => false,
    example() {
      const shade = context.createLinearGradient(0, 0, canvas.width, canvas.height);
      shade.addColorStop(0, "#204060");
      shade.addColorStop(1, "#f0c040");
      context.fillStyle = shade;
      context.fillRect(0, 0, canvas.width, canvas.height);
      ready = true;
    },
    picture: () => ({ nodes: [], text: words.picture }),
  };
}

// --- A text

function text(takes, words) {
  const field = $("#text");
  return {
    rows() {
      if (!field.value.trim()) throw new Error(words.noInput);
      return [{ [takes.column]: field.value }];
    },
    show(rows) {
      if (rows.length !== 1) return false;
      field.value = rows[0][takes.column];
      return true;
    },
    example() {
      field.value = TEXT;
    },
    picture: (rows) => ({ nodes: [], text: String(rows[0][takes.column]).slice(0, 80) }),
  };
}

// --- A table

function table(takes, words, say) {
  const body = $("#table tbody");

  function add(values = []) {
    const row = document.createElement("tr");
    takes.columns.forEach((column, at) => {
      const field = document.createElement("input");
      field.className = "input";
      field.type = column.kind === "number" ? "number" : "text";
      if (column.kind === "number") field.step = column.whole ? "1" : "any";
      field.value = values[at] ?? (column.kind === "number" ? 0 : "");
      const cell = document.createElement("td");
      cell.append(field);
      row.append(cell);
    });
    const button = Object.assign(document.createElement("button"), { type: "button", className: "icon-btn mini", textContent: "×" });
    button.addEventListener("click", () => {
      row.remove();
      if (!body.children.length) add();
      name();
    });
    const cell = document.createElement("td");
    cell.append(button);
    row.append(cell);
    body.append(row);
    name();
  }
  function name() {
    [...body.children].forEach((row, number) => {
      $$("input", row).forEach((field, at) =>
        field.setAttribute("aria-label", `${takes.columns[at].name}, ${say(words.row, { number: number + 1 })}`),
      );
      $("button", row).setAttribute("aria-label", say(words.removeRow, { number: number + 1 }));
    });
  }
  $("#add-row").addEventListener("click", () => add());
  add();

  return {
    rows() {
      return [...body.children].map((line) => {
        const fields = {};
        $$("input", line).forEach((field, at) => {
          const column = takes.columns[at];
          if (column.kind === "number" && field.value === "") throw new Error(words.noInput);
          const value = column.kind === "number" ? Number(field.value) : field.value;
          if (column.at === null) fields[column.input] = value;
          else (fields[column.input] ??= [])[column.at] = value;
        });
        return fields;
      });
    },
    show(rows) {
      body.replaceChildren();
      for (const row of rows) add(takes.columns.map(({ input, at }) => (at === null ? row[input] : row[input]?.[at])));
      return true;
    },
    example() {
      body.replaceChildren();
      add(takes.columns.map(({ kind }, at) => (kind === "number" ? at + 1 : "a")));
    },
    picture: (rows) => ({ nodes: [], text: `${say(words.rows, { count: rows.length })} ${JSON.stringify(rows[0]).slice(0, 60)}` }),
  };
}

const plain = () => ({ rows: () => [], show: () => false, example() {}, picture: null });

export function makeInput(takes, words, say) {
  const made = ({ digit, picture, text, table }[takes.kind] ?? plain)(takes, words, say);
  return {
    ...made,
    // Rows that came as JSON may be of another shape: they are then shown as JSON.
    show(rows) {
      try {
        return made.show(rows);
      } catch {
        return false;
      }
    },
    describe(rows) {
      try {
        if (rows.length === 1 || takes.kind === "table") {
          const found = made.picture?.(rows);
          if (found) return found;
        }
      } catch {
        // Not made by hand; its JSON says enough.
      }
      return { nodes: [], text: JSON.stringify(rows.length === 1 ? rows[0] : rows).slice(0, 80) };
    },
  };
}
