// Files chosen or dropped go up one by one as resumable uploads (tus 1.0.0); then the form is sent
// with the ids of the finished uploads in place of the files. Without scripts the form carries them.
const form = document.getElementById("upload-form");
const input = form.querySelector("input[type=file]");
const zone = document.getElementById("drop");
const list = document.getElementById("files");
const words = form.dataset;
const button = form.querySelector("button.primary");
const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
const BLOCK = 8 * 1024 * 1024;
const chosen = new Map();

const size = (bytes) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 999.95 && unit < units.length - 1; unit += 1) bytes /= 1000;
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
};

const element = (tag, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
};

function add(path, file) {
  chosen.get(path)?.row.remove();
  const state = element("span", { className: "state", textContent: size(file.size) });
  const remove = element("button", { type: "button", className: "icon-btn mini", textContent: "×" });
  remove.setAttribute("aria-label", `${words.remove}: ${path}`);
  const row = element("li", {}, element("span", { textContent: path }), state, remove);
  remove.addEventListener("click", () => {
    chosen.delete(path);
    row.remove();
  });
  chosen.set(path, { path, file, row, state, remove });
  list.append(row);
}

function withoutCommonFolder(paths) {
  const first = paths[0]?.split("/")[0];
  const common = paths.every((path) => path.includes("/") && path.split("/")[0] === first);
  return (path) => (common ? path.slice(first.length + 1) : path);
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

input.addEventListener("change", () => {
  for (const file of input.files) add(file.name, file);
  input.value = "";
});
for (const kind of ["dragenter", "dragover"]) {
  zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
zone.addEventListener("drop", async (event) => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const found = (await Promise.all(entries.map(filesOf))).flat();
  const shorten = withoutCommonFolder(found.map(([path]) => path));
  for (const [path, file] of found) add(shorten(path), file);
});

class Refused extends Error {}

async function ask(url, options) {
  const headers = { "Tus-Resumable": "1.0.0", "X-CSRFToken": token, ...options.headers };
  const answer = await fetch(url, { ...options, headers, credentials: "same-origin" });
  if (answer.ok) return answer;
  if (answer.status >= 500 || answer.status === 409 || answer.status === 423) throw new Error(answer.statusText);
  const problem = await answer.json().catch(() => ({}));
  throw new Refused(problem.detail || `${answer.status} ${answer.statusText}`);
}

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));

async function persist(item, attempt) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (error instanceof Refused || tries >= 8) throw error;
      item.state.textContent = words.retrying;
      await pause(Math.min(15000, 400 * 2 ** tries));
    }
  }
}

async function send(item) {
  const { file, path } = item;
  const bar = element("progress", { max: file.size || 1, value: 0 });
  bar.setAttribute("aria-label", path);
  item.row.append(bar);
  item.remove.hidden = true;
  const name = btoa(String.fromCharCode(...new TextEncoder().encode(path)));
  const begin = { method: "POST", headers: { "Upload-Length": `${file.size}`, "Upload-Metadata": `filename ${name}` } };
  const address = (await persist(item, () => ask("/uploads", begin))).headers.get("Location");
  let offset = 0;
  let lost = false;
  while (offset < file.size) {
    await persist(item, async () => {
      if (lost) offset = Number((await ask(address, { method: "HEAD" })).headers.get("Upload-Offset"));
      lost = true;
      if (offset >= file.size) return;
      const body = file.slice(offset, offset + BLOCK);
      const headers = { "Upload-Offset": `${offset}`, "Content-Type": "application/offset+octet-stream" };
      offset = Number((await ask(address, { method: "PATCH", headers, body })).headers.get("Upload-Offset"));
      lost = false;
    });
    bar.value = offset;
    item.state.textContent = `${words.uploading} ${size(offset)} / ${size(file.size)}`;
  }
  bar.remove();
  item.state.textContent = `${words.done} · ${size(file.size)}`;
  item.state.classList.add("good");
  item.id = new URL(address, location.href).pathname.split("/").pop();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!chosen.size) {
    input.setCustomValidity(words.none);
    input.reportValidity();
    input.setCustomValidity("");
    return;
  }
  button.disabled = true;
  for (const item of chosen.values()) if (!item.id) item.state.textContent = words.waiting;
  for (const item of chosen.values()) {
    if (item.id) continue;
    try {
      await send(item);
    } catch (error) {
      item.row.querySelector("progress")?.remove();
      item.state.textContent = `${words.failed}: ${error.message}`;
      item.state.classList.add("bad");
      item.remove.hidden = false;
      button.disabled = false;
      return;
    }
  }
  for (const [path, item] of chosen) {
    form.append(element("input", { type: "hidden", name: "upload", value: item.id }));
    form.append(element("input", { type: "hidden", name: "path", value: path }));
  }
  input.disabled = true;
  form.submit();
});
