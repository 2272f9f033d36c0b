// Files chosen or dropped go up at once as resumable uploads (tus 1.0.0), each with its own progress,
// pause and retry; then the form is sent with the ids of the finished uploads in place of the files.
// The addresses of unfinished uploads are remembered, so that the same file goes on after a reload.
// Without scripts the form carries the files itself.
const form = document.getElementById("upload-form");
const zone = document.getElementById("drop");
const list = document.getElementById("files");
const summary = document.getElementById("upload-summary");
const spoken = document.getElementById("upload-status");
const pattern = document.getElementById("file-row").content.firstElementChild;
const [input, folder] = form.querySelectorAll("input[type=file]");
const button = form.querySelector("button.primary");
const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
const words = form.dataset;

const BLOCK = 16 * 1024 * 1024;
const AT_ONCE = 3;
const TRIES = 8;
const REMEMBERED = "modelyard-uploads";
const REMEMBERED_MOST = 500;
const chosen = new Map();
let waiting = false;

const size = (bytes) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 999.95 && unit < units.length - 1; unit += 1) bytes /= 1000;
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
};
const percent = (part, whole) => (whole ? Math.floor((100 * part) / whole) : 100);
const say = (words, values) => words.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const hidden = (name, value) => Object.assign(document.createElement("input"), { type: "hidden", name, value });

// --- What is remembered from one visit to the next

const memory = {
  read() {
    try {
      return JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
    } catch {
      return {};
    }
  },
  write(change) {
    const all = this.read();
    change(all);
    const newest = Object.entries(all).sort(([, a], [, b]) => b.at - a.at);
    try {
      localStorage.setItem(REMEMBERED, JSON.stringify(Object.fromEntries(newest.slice(0, REMEMBERED_MOST))));
    } catch {
      // A browser that keeps nothing: the upload begins anew after a reload.
    }
  },
  find: (key) => memory.read()[key]?.address,
  keep: (key, address) => memory.write((all) => (all[key] = { address, at: Date.now() })),
  forget: (key) => memory.write((all) => delete all[key]),
};

// --- Talking to the server

class Refused extends Error {}
class Gone extends Refused {}

function ask(method, url, { headers = {}, body = null, signal, progress } = {}) {
  return new Promise((answer, fail) => {
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    const over = (act, value) => {
      signal?.removeEventListener("abort", abort);
      act(value);
    };
    request.open(method, url);
    for (const [name, value] of Object.entries({ "Tus-Resumable": "1.0.0", "X-CSRFToken": token, ...headers })) {
      request.setRequestHeader(name, value);
    }
    if (progress) request.upload.addEventListener("progress", (event) => progress(event.loaded));
    request.addEventListener("load", () => {
      const { status } = request;
      if (status < 300) return over(answer, request);
      let detail = `${status} ${request.statusText}`;
      try {
        detail = JSON.parse(request.responseText).detail || detail;
      } catch {
        // Something between us and the server answered in its own words.
      }
      if (status === 404 || status === 410) return over(fail, new Gone(detail));
      // Another request may still hold the upload, or the offset was another: asking for it helps.
      if (status === 409 || status === 423 || status === 429) return over(fail, new Error(detail));
      if (status >= 500 && status !== 507) return over(fail, new Error(detail));
      // When there is space again, the upload goes on; anything else that was refused begins anew.
      return over(fail, Object.assign(new Refused(detail), { keeps: status === 507 }));
    });
    request.addEventListener("error", () => over(fail, new Error(words.lost)));
    request.addEventListener("abort", () => over(fail, new DOMException("paused", "AbortError")));
    if (signal?.aborted) return over(fail, new DOMException("paused", "AbortError"));
    signal?.addEventListener("abort", abort);
    request.send(body);
  });
}

function rest(milliseconds, signal) {
  return new Promise((go) => {
    const timer = setTimeout(go, milliseconds);
    const now = () => {
      clearTimeout(timer);
      go();
    };
    signal.addEventListener("abort", now, { once: true });
    addEventListener("online", now, { once: true });
  });
}

// --- One file

class Item {
  constructor(path, file) {
    this.path = path;
    this.file = file;
    this.size = file.size;
    this.key = [words.repository, path, file.size, file.lastModified].join("|");
    this.address = memory.find(this.key);
    this.sent = 0;
    this.build(pattern.cloneNode(true));
    list.append(this.row);
    this.become("waiting");
  }

  // What the server says is here already: a form that was refused does not lose its files.
  static adopt(row) {
    const item = Object.create(Item.prototype);
    const id = row.querySelector("[name=upload]").value;
    const path = row.querySelector("[name=path]").value;
    Object.assign(item, { path, id, size: Number(row.dataset.size), sent: Number(row.dataset.size), key: "" });
    item.address = `${words.uploads}/${id}`;
    const fresh = pattern.cloneNode(true);
    row.replaceWith(fresh);
    item.build(fresh);
    item.become("done");
    return item;
  }

  build(row) {
    this.row = row;
    row.querySelector(".path").textContent = this.path;
    this.bar = row.querySelector("progress");
    this.bar.setAttribute("aria-label", this.path);
    this.text = row.querySelector(".state");
    for (const act of row.querySelectorAll("[data-act]")) {
      act.setAttribute("aria-label", `${act.title}: ${this.path}`);
      act.addEventListener("click", () => this[act.dataset.act]());
    }
  }

  become(state, detail = "") {
    this.state = state;
    this.row.dataset.state = state;
    this.detail = detail;
    const focused = this.row.contains(document.activeElement);
    const shown = { waiting: ["pause"], uploading: ["pause"], retrying: ["pause"], paused: ["resume"], failed: ["retry"] };
    for (const act of this.row.querySelectorAll("[data-act]")) {
      act.hidden = act.dataset.act !== "cancel" && !shown[state]?.includes(act.dataset.act);
    }
    if (focused && document.activeElement.hidden) this.row.querySelector("[data-act]:not([hidden])").focus();
    if (state === "done" || state === "failed") spoken.textContent = `${this.path}: ${words[state]} ${detail}`;
    this.draw();
    schedule();
  }

  draw() {
    this.bar.hidden = this.state === "done" || (this.state === "failed" && !this.sent);
    this.bar.value = this.size ? this.sent / this.size : 0;
    const far = `${size(this.sent)} / ${size(this.size)} · ${percent(this.sent, this.size)} %`;
    const says = {
      waiting: `${words.waiting} · ${size(this.size)}`,
      uploading: this.sent < this.size ? far : `${far} · ${words.checking}`,
      retrying: `${far} · ${words.retrying}`,
      paused: `${words.paused} · ${far}`,
      failed: `${words.failed}: ${this.detail}`,
      done: `${words.done} · ${size(this.size)}`,
    };
    this.text.textContent = says[this.state];
    drawSummary();
  }

  pause() {
    this.stop?.abort();
    this.become("paused");
  }

  resume() {
    this.become("waiting");
  }

  retry() {
    this.become("waiting");
  }

  cancel() {
    this.stop?.abort();
    this.state = "gone";
    this.row.remove();
    if (chosen.get(this.path) === this) chosen.delete(this.path);
    if (this.key) memory.forget(this.key);
    if (this.address) ask("DELETE", this.address).catch(() => {});
    drawSummary();
    schedule();
  }

  async start() {
    const stop = (this.stop = new AbortController());
    const mine = () => this.stop === stop && !stop.signal.aborted;
    this.become("uploading");
    try {
      await this.send(stop.signal);
      if (!mine()) return;
      this.sent = this.size;
      this.id = new URL(this.address, location.href).pathname.split("/").pop();
      this.become("done");
    } catch (error) {
      if (!mine()) return;
      if (error instanceof Refused && !error.keeps) this.forgetAddress();
      this.become("failed", error.message);
    }
  }

  async send(signal) {
    let tries = 0;
    // A file that is new here is at its beginning; of any other the server knows more than we do.
    let known = !this.address;
    for (;;) {
      try {
        if (!this.address) await this.begin(signal);
        if (!known) await this.look(signal);
        known = true;
        while (this.sent < this.size || !this.complete) {
          const before = this.sent;
          await this.block(signal);
          if (this.sent > before) tries = 0;
          if (this.state === "retrying") this.become("uploading");
        }
        return;
      } catch (error) {
        if (signal.aborted) throw error;
        if (error instanceof Gone && this.address && !this.renewed) {
          this.renewed = true;
          this.forgetAddress();
          known = true;
          continue;
        }
        tries += 1;
        if (error instanceof Refused || tries > TRIES) throw error;
        known = false;
        this.become("retrying");
        await rest(Math.min(15000, 300 * 2 ** tries), signal);
        if (signal.aborted) throw error;
      }
    }
  }

  async begin(signal) {
    const name = btoa(String.fromCharCode(...new TextEncoder().encode(this.path)));
    const metadata = `filename ${name},namespace ${btoa(words.namespace)}`;
    const headers = { "Upload-Length": `${this.size}`, "Upload-Metadata": metadata };
    const answer = await ask("POST", words.uploads, { headers, signal });
    this.address = answer.getResponseHeader("Location");
    this.complete = !this.size;
    this.sent = 0;
    memory.keep(this.key, this.address);
  }

  async look(signal) {
    const answer = await ask("HEAD", this.address, { signal });
    this.sent = Number(answer.getResponseHeader("Upload-Offset"));
    this.complete = this.sent === this.size;
    this.draw();
  }

  async block(signal) {
    const start = this.sent;
    const body = this.file.slice(start, start + BLOCK);
    const headers = { "Upload-Offset": `${start}`, "Content-Type": "application/offset+octet-stream" };
    const progress = (loaded) => {
      this.sent = Math.min(start + loaded, this.size);
      this.draw();
    };
    try {
      const answer = await ask("PATCH", this.address, { headers, body, signal, progress });
      this.sent = Number(answer.getResponseHeader("Upload-Offset"));
      this.complete = this.sent === this.size;
    } catch (error) {
      // Of a pause, the server keeps what arrived; it says how much when asked.
      if (!signal.aborted) this.sent = start;
      throw error;
    }
    this.draw();
  }

  forgetAddress() {
    memory.forget(this.key);
    this.address = undefined;
    this.complete = false;
    this.sent = 0;
  }
}

// --- All of them

function schedule() {
  for (;;) {
    const items = [...chosen.values()];
    const next = items.find(({ state }) => state === "waiting");
    const active = items.filter(({ state }) => state === "uploading" || state === "retrying");
    if (!next || active.length >= AT_ONCE) break;
    next.start();
  }
  if (waiting) finish();
}

function drawSummary() {
  const items = [...chosen.values()];
  const add = (field) => items.reduce((sum, item) => sum + item[field], 0);
  const [sent, total] = [add("sent"), add("size")];
  summary.hidden = items.length < 2;
  summary.textContent = say(words.summary, {
    done: items.filter(({ state }) => state === "done").length,
    count: items.length,
    sent: size(sent),
    total: size(total),
    percent: `${percent(sent, total)} %`,
  });
}

function add(found) {
  for (const [path, file] of found) {
    chosen.get(path)?.cancel();
    chosen.set(path, new Item(path, file));
  }
  schedule();
}

function withoutCommonFolder(found) {
  const first = found[0]?.[0].split("/")[0];
  const common = found.every(([path]) => path.includes("/") && path.split("/")[0] === first);
  return common ? found.map(([path, file]) => [path.slice(first.length + 1), file]) : found;
}

async function filesOf(entry) {
  if (entry.isFile) {
    return [[entry.fullPath.slice(1), await new Promise((found, failed) => entry.file(found, failed))]];
  }
  const reader = entry.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((found, failed) => reader.readEntries(found, failed));
    if (!some.length) break;
    entries.push(...some);
  }
  return (await Promise.all(entries.map(filesOf))).flat();
}

function take(field) {
  add(withoutCommonFolder([...field.files].map((file) => [file.webkitRelativePath || file.name, file])));
  field.value = "";
}

for (const field of [input, folder]) {
  field.addEventListener("change", () => take(field));
}
for (const kind of ["dragenter", "dragover"]) {
  zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
zone.addEventListener("drop", async (event) => {
  event.preventDefault();
  // Both have to be read before the first wait: the browser empties them then.
  const files = [...event.dataTransfer.files].map((file) => [file.name, file]);
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  add(withoutCommonFolder(entries.length ? (await Promise.all(entries.map(filesOf))).flat() : files));
});

// --- Sending the form

function stopWaiting() {
  waiting = false;
  button.disabled = false;
}

function finish() {
  const items = [...chosen.values()];
  const stuck = items.find(({ state }) => state === "failed" || state === "paused");
  if (stuck) {
    stopWaiting();
    spoken.textContent = `${stuck.path}: ${words[stuck.state]}`;
    stuck.row.querySelector("[data-act]:not([hidden])").focus();
    return;
  }
  if (!items.length) return stopWaiting();
  if (!items.every(({ state }) => state === "done")) return;
  waiting = false;
  for (const item of items) {
    if (item.key) memory.forget(item.key);
    form.append(hidden("upload", item.id), hidden("path", item.path));
  }
  input.disabled = folder.disabled = true;
  form.enctype = "application/x-www-form-urlencoded";
  form.submit();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!chosen.size) {
    input.setCustomValidity(words.none);
    input.reportValidity();
    input.setCustomValidity("");
    return;
  }
  waiting = true;
  button.disabled = true;
  finish();
});

for (const row of [...list.children]) {
  const item = Item.adopt(row);
  chosen.set(item.path, item);
}
// What was chosen while this script was still on its way.
for (const field of [input, folder]) if (field.files.length) take(field);
