// The playground: one input, several versions, each called by this browser at the serving process.
// The registry lends a key for a model that is not public; nothing of an input goes through it.
import { compare, draw } from "./playground-answers.js";
import { clientCode, LARGE } from "./playground-code.js";
import { makeInput } from "./playground-inputs.js";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const form = $("#playground");
const spec = JSON.parse(form.dataset.playground);
const { words } = spec;
const say = (text, values = {}) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

const REMEMBERED = 20;
const PATIENCE_SECONDS = 600;

// --- The input: made by hand, or as JSON

const input = makeInput(spec.takes, words, say);
const json = $("#json");
let asJson = spec.takes.kind === "json";

function show(rows) {
  json.value = JSON.stringify(rows.length === 1 ? rows[0] : rows);
  if (!asJson && !input.show(rows)) useJson(true);
}

function useJson(on) {
  asJson = on;
  $("#json-field").hidden = !on;
  $("#by-hand").hidden = on;
  $("#as-json")?.setAttribute("aria-pressed", on);
}

function readRows() {
  if (!asJson) return input.rows();
  let value;
  try {
    value = JSON.parse(json.value);
  } catch (error) {
    throw new Error(say(words.badJson, { detail: error.message }));
  }
  const rows = Array.isArray(value) ? value : [value];
  if (!rows.length || !rows.every((row) => row && typeof row === "object" && !Array.isArray(row))) {
    throw new Error(words.badRows);
  }
  return rows;
}

$("#as-json")?.addEventListener("click", () => {
  if (asJson) return useJson(false);
  try {
    const rows = input.rows();
    json.value = JSON.stringify(rows.length === 1 ? rows[0] : rows);
  } catch {
    // Nothing was made yet: the example stands there.
  }
  return useJson(true);
});
$("#example").addEventListener("click", () => {
  if (asJson) json.value = JSON.stringify(spec.takes.example);
  else input.example();
});

// --- Which versions

const boxes = $$("input[name=v]", form);
const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);

form.addEventListener("change", (event) => {
  if (event.target.name !== "v") return;
  if (chosen().length > spec.most) {
    event.target.checked = false;
    complain(say(words.tooMany, { most: spec.most }));
    return;
  }
  complain("");
  const address = new URL(location.href);
  address.searchParams.delete("v");
  for (const number of chosen()) address.searchParams.append("v", number);
  history.replaceState(null, "", address);
  if (!last.rows) last.versions = chosen();
  showCode();
});
form.addEventListener("submit", (event) => event.preventDefault());

function complain(text) {
  $("#trouble").textContent = text;
}

// --- One call

const key = { value: "", until: 0 };

async function authorization(signal) {
  if (!spec.private) return {};
  if (Date.now() > key.until) {
    const headers = { "X-CSRFToken": $("[name=csrfmiddlewaretoken]", form).value };
    const answer = await fetch(form.dataset.key, { method: "POST", headers, signal });
    // Whoever was signed out meanwhile is led to another page.
    if (!answer.ok || answer.redirected) throw new Error(say(words.noKey, { detail: answer.statusText || answer.status }));
    const lent = await answer.json();
    key.value = lent.key;
    key.until = Date.now() + (lent.seconds - 60) * 1000;
  }
  return { authorization: `Bearer ${key.value}` };
}

async function post(version, rows, signal) {
  const headers = { "content-type": "application/json", ...(await authorization(signal)) };
  const body = JSON.stringify(rows.length === 1 ? rows[0] : rows);
  const address = `${spec.infer}/predict/${spec.endpoint}/versions/${version}`;
  const started = performance.now();
  let answer;
  let said;
  try {
    answer = await fetch(address, { method: "POST", headers, body, signal });
    said = await answer.json();
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error(say(words.lost, { address: spec.infer }));
  }
  return { answer, said, elapsed: performance.now() - started };
}

function countDown(seconds, signal, tick) {
  return new Promise((done, fail) => {
    let left = Math.max(1, Math.ceil(seconds));
    tick(left);
    const timer = setInterval(() => {
      left -= 1;
      if (left > 0) return tick(left);
      clearInterval(timer);
      return done();
    }, 1000);
    signal.addEventListener(
      "abort",
      () => {
        clearInterval(timer);
        fail(new DOMException("stopped", "AbortError"));
      },
      { once: true },
    );
  });
}

// Calls until there is an answer: a version that sleeps or loads says when to come again.
async function ask(version, rows, signal, waits) {
  let renewed = false;
  const since = performance.now();
  for (;;) {
    const { answer, said, elapsed } = await post(version, rows, signal);
    if (answer.ok) {
      const predictions = said.predictions ?? [said.prediction];
      return { version, predictions, elapsed, parameters: said.parameters, served: said.version };
    }
    const detail = said.error ?? `${answer.status}`;
    const seconds = Number(answer.headers.get("retry-after"));
    if (answer.status === 401 && spec.private && !renewed) {
      renewed = true;
      key.until = 0;
    } else if (seconds && [429, 503].includes(answer.status) && performance.now() - since < PATIENCE_SECONDS * 1000) {
      await countDown(seconds, signal, (left) => waits(detail, left));
    } else throw new Error(detail);
  }
}

// What a version takes as tensors, which the serving process knows best.
const ports = new Map();

async function learn(version, signal) {
  if (ports.has(version)) return;
  const address = `${spec.infer}/v2/models/${spec.endpoint}/versions/${version}`;
  const answer = await fetch(address, { headers: await authorization(signal), signal });
  if (answer.ok) ports.set(version, (await answer.json()).inputs);
}

// --- All of them

const last = { rows: null, versions: chosen() };
let running = null;

async function run(rows) {
  const versions = chosen();
  complain(versions.length ? "" : words.noVersion);
  if (!versions.length) return;
  running?.abort();
  const mine = (running = new AbortController());
  Object.assign(last, { rows, versions });
  $("#stop").hidden = false;
  $("#said").textContent = words.running;
  const cards = new Map(versions.map((version) => [version, makeCard(version)]));
  $("#answers").replaceChildren(...[...cards.values()].map((card) => card.root));
  showCode();
  const entry = remember(rows);
  const results = [];
  const unfinished = [];
  for (const version of versions) {
    // One after another, so that no version's time is spent on another; who sleeps is not waited for.
    await new Promise((next) => {
      const call = ask(version, rows, mine.signal, (detail, seconds) => {
        cards.get(version).wait(say(words.asleep, { detail, seconds }));
        next();
      })
        .then((result) => {
          results.push(result);
          cards.get(version).answer(result);
        })
        .catch((error) => cards.get(version).refuse(mine.signal.aborted ? words.stopped : error.message))
        .finally(next);
      unfinished.push(call);
    });
    if (mine.signal.aborted) break;
  }
  await Promise.all(unfinished);
  if (running !== mine) return;
  const answered = versions.filter((version) => results.some((one) => one.version === version));
  const base = results.find((one) => one.version === (answered.includes(spec.answers) ? spec.answers : answered[0]));
  for (const one of results) if (one !== base) cards.get(one.version).beside(compare(base, one), base.version);
  if (results.length > 1) cards.get(base.version).stands();
  await Promise.all(results.map((one) => learn(one.version, mine.signal).catch(() => {})));
  showCode();
  entry.finish(results.sort((a, b) => versions.indexOf(a.version) - versions.indexOf(b.version)));
  $("#stop").hidden = true;
  $("#said").textContent = `${words.answered}: ${results.length} / ${versions.length}`;
}

function begin() {
  let rows;
  try {
    rows = readRows();
  } catch (error) {
    complain(error.message);
    return;
  }
  run(rows);
}

$("#run").addEventListener("click", begin);
$("#stop").addEventListener("click", () => {
  running?.abort();
  $("#stop").hidden = true;
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) begin();
});

// --- One answer

function makeCard(version) {
  const root = $("#answer").content.firstElementChild.cloneNode(true);
  const title = $("h3", root);
  const state = $(".tag", root);
  const trouble = $(".errors", root);
  root.dataset.version = version;
  title.textContent = `v${version}`;
  title.id = `answer-${version}`;
  root.setAttribute("aria-labelledby", title.id);
  const become = (text, tone) => {
    state.textContent = text;
    state.className = `tag ${tone}`;
  };
  become(words.waiting, "now");
  return {
    root,
    wait(text) {
      trouble.hidden = false;
      trouble.textContent = text;
    },
    refuse(text) {
      become(words.failed, "bad");
      trouble.hidden = false;
      trouble.textContent = text;
    },
    answer(result) {
      become(words.answered, "good");
      trouble.hidden = true;
      $(".out", root).replaceChildren(...draw(result.predictions, words, say));
      $(".kv", root).replaceChildren(...facts(result));
    },
    stands() {
      $(".beside", root).textContent = words.first;
    },
    beside(found, other) {
      const parts = [];
      if (found.count) {
        if (found.count === 1) parts.push(say(found.same ? words.sameLabel : words.otherLabel, { other }));
        else parts.push(say(words.sameLabels, { same: found.same, count: found.count, other }));
      }
      if (!found.comparable) parts.push(say(words.incomparable, { other }));
      else if (found.cosine !== null) {
        parts.push(say(words.closest, { difference: found.difference.toPrecision(2) }));
        parts.push(say(words.cosine, { cosine: found.cosine.toFixed(5) }));
      }
      $(".beside", root).textContent = parts.join(" · ");
      become(found.differs ? words.differs : words.agrees, found.differs ? "warn" : "good");
    },
  };
}

function facts({ elapsed, parameters }) {
  const ms = (microseconds) => `${(microseconds / 1000).toFixed(2)} ms`;
  const listed = [
    [words.roundTrip, `${elapsed.toFixed(1)} ms`],
    [words.queue, ms(parameters.modelyard_queue_us)],
    [words.compute, ms(parameters.modelyard_compute_us)],
    [words.batch, parameters.modelyard_batch_size],
    [words.runtime, parameters.modelyard_runtime],
    [words.digest, parameters.modelyard_weights_digest.slice(0, 12)],
  ];
  return listed.flatMap(([term, value]) => {
    const dd = Object.assign(document.createElement("dd"), { textContent: value });
    if (term === words.digest) dd.title = parameters.modelyard_weights_digest;
    return [Object.assign(document.createElement("dt"), { textContent: term }), dd];
  });
}

// --- The code for the call just made

const select = $("#code-version");

function showCode() {
  const versions = last.versions.length ? last.versions : boxes.slice(0, 1).map((box) => box.value);
  const kept = versions.includes(select.value) ? select.value : versions[0];
  select.replaceChildren(...versions.map((v) => new Option(`v${v}`, v, false, v === kept)));
  const rows = last.rows ?? [spec.takes.example];
  const large = JSON.stringify(rows).length > LARGE;
  const about = [large && words.fileNeeded, spec.private && words.needsToken].filter(Boolean);
  $("#code-about").textContent = about.join(" ");
  $("#code-about").hidden = !about.length;
  $("#save-input").hidden = !large;
  const list = $("#code [role=tablist]");
  const before = $("[aria-selected=true]", list)?.dataset.key;
  const found = clientCode(spec, kept, rows, ports.get(kept) ?? spec.takes.ports);
  const shown = found.some((one) => one.key === before) ? before : found[0].key;
  list.replaceChildren(
    ...found.map((one) => {
      const tab = Object.assign(document.createElement("button"), { type: "button", textContent: one.title });
      tab.id = `call-tab-${one.key}`;
      tab.dataset.key = one.key;
      tab.tabIndex = one.key === shown ? 0 : -1;
      for (const [name, value] of [
        ["role", "tab"],
        ["aria-controls", `call-${one.key}`],
        ["aria-selected", one.key === shown],
      ]) {
        tab.setAttribute(name, value);
      }
      return tab;
    }),
  );
  for (const old of $$("#code pre")) old.remove();
  for (const one of found) {
    const pre = document.createElement("pre");
    pre.id = `call-${one.key}`;
    pre.tabIndex = 0;
    pre.hidden = one.key !== shown;
    pre.setAttribute("role", "tabpanel");
    pre.setAttribute("aria-labelledby", `call-tab-${one.key}`);
    pre.append(Object.assign(document.createElement("code"), { textContent: one.code }));
    $("#code .snip").append(pre);
  }
}

select.addEventListener("change", showCode);
$("#save-input").addEventListener("click", () => {
  const body = JSON.stringify(last.rows);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([body], { type: "application/json" }));
  link.download = "input.json";
  link.click();
  URL.revokeObjectURL(link.href);
});

// --- Calls of this visit, to be made again on other versions

function remember(rows) {
  const item = $("#call").content.firstElementChild.cloneNode(true);
  const about = input.describe(rows);
  $("h3", item).append(...about.nodes, about.text);
  $("button", item).setAttribute("aria-label", `${words.again}: ${about.text}`);
  $("button", item).addEventListener("click", () => {
    show(rows);
    run(rows);
    $("#run").scrollIntoView({ block: "center" });
  });
  const list = $("#history ol");
  list.prepend(item);
  while (list.children.length > REMEMBERED) list.lastElementChild.remove();
  $("#history").hidden = false;
  const time = new Date().toLocaleTimeString(document.documentElement.lang);
  $(".meta", item).textContent = time;
  return {
    finish(results) {
      const said = results.map((one) => `v${one.version}: ${one.predictions[0]?.label ?? `${one.elapsed.toFixed(1)} ms`}`);
      $(".meta", item).textContent = [time, ...said].join(" · ");
    },
  };
}

if (asJson) json.value = JSON.stringify(spec.takes.example, null, 1);
showCode();
