// The tip beside a point of a chart; the numbers in it are on the page already.
export function charts() {
  for (const event of ["pointerover", "focusin"]) {
    document.addEventListener(event, ({ target }) => {
      const point = target.closest?.(".pt");
      const chart = target.closest?.(".chart");
      if (point) show(chart, point);
      else for (const tip of document.querySelectorAll(".tip.on")) tip.classList.remove("on");
    });
  }
}

function show(chart, point) {
  const tip = chart.querySelector(".tip");
  if (!tip) return;
  const name = document.createElement("b");
  name.textContent = point.dataset.name;
  const list = document.createElement("dl");
  for (const [key, value] of JSON.parse(point.dataset.facts)) {
    for (const [tag, text] of [["dt", key], ["dd", value]]) {
      list.append(Object.assign(document.createElement(tag), { textContent: text }));
    }
  }
  tip.replaceChildren(name, list);
  const frame = chart.getBoundingClientRect();
  const at = point.getBoundingClientRect();
  let left = at.left - frame.left + at.width / 2 + 14;
  if (left + tip.offsetWidth > frame.width) left -= tip.offsetWidth + 28;
  left += chart.scrollLeft;
  tip.style.left = `${Math.max(0, left)}px`;
  const top = Math.min(at.top - frame.top - 12, frame.height - tip.offsetHeight - 4);
  tip.style.top = `${Math.max(0, top)}px`;
  tip.classList.add("on");
}
