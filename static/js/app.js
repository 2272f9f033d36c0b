// What every page does with scripts on: shortcuts, theme, copying, tabs of snippets, chart tips.
import { charts } from "./charts.js";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const words = document.body.dataset;

let fading;
export function toast(message) {
  const box = $("#toast");
  box.textContent = message;
  box.classList.add("on");
  clearTimeout(fading);
  fading = setTimeout(() => box.classList.remove("on"), 1800);
}

function focusSearch(event) {
  event.preventDefault();
  const field = $("#q");
  field.focus();
  field.select();
}

let pending = "";
document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey)) return focusSearch(event);
  if (event.key === "Escape") {
    const menu = $(".menu[open]");
    if (menu) {
      menu.open = false;
      $("summary", menu).focus();
    } else if (event.target.matches("input, textarea, select")) event.target.blur();
    return;
  }
  if (event.target.closest("input, textarea, select, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") return focusSearch(event);
  if (event.key === "?") return $("#shortcuts").showModal();
  const place = { m: 0, d: 1, j: 2 }[event.key];
  if (pending === "g" && place !== undefined) $$(".nav a")[place].click();
  pending = event.key;
});

function nextTheme() {
  const order = ["", "light", "dark"];
  const root = document.documentElement;
  const next = order[(order.indexOf(root.dataset.theme ?? "") + 1) % order.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  try {
    if (next) localStorage.setItem("theme", next);
    else localStorage.removeItem("theme");
  } catch {
    // The choice then lasts for this page.
  }
  toast({ "": words.themeAuto, light: words.themeLight, dark: words.themeDark }[next]);
}

async function copy(button) {
  const text = button.dataset.copy || $("pre:not([hidden])", button.closest(".snip")).textContent;
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {
    // Plain http elsewhere than on localhost has no clipboard object.
    const box = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    button.focus();
  }
  toast(words.copied);
}

function choose(tab) {
  for (const other of $$("[role=tab]", tab.closest("[role=tablist]"))) {
    const on = other === tab;
    other.setAttribute("aria-selected", on);
    other.tabIndex = on ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !on;
  }
}

document.addEventListener("click", (event) => {
  const menu = $(".menu[open]");
  if (menu && !menu.contains(event.target)) menu.open = false;
  const button = event.target.closest("button");
  if (!button) return;
  if (button.id === "theme") nextTheme();
  else if (button.dataset.copy !== undefined) copy(button);
  else if (button.dataset.open) document.getElementById(button.dataset.open).showModal();
  else if (button.role === "tab") choose(button);
});

document.addEventListener("keydown", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (!tab || !["ArrowRight", "ArrowLeft"].includes(event.key)) return;
  const tabs = $$("[role=tab]", tab.closest("[role=tablist]"));
  const step = event.key === "ArrowRight" ? 1 : -1;
  const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
  next.focus();
  choose(next);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});

// Filters stand open beside the list, and folded above it in a narrow window.
if (matchMedia("(max-width: 940px)").matches) for (const fold of $$(".facet-fold")) fold.open = false;

charts();
