"use strict";
// The values under the pointer, or under the cursor keys. Everything else works without a script.
const create = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
for (const chart of document.querySelectorAll("svg[data-plot]")) {
  const [left, right, top, bottom] = chart.dataset.plot.split(" ").map(Number);
  const curves = [...chart.querySelectorAll(".curve")].map(curve => ({curve, points: JSON.parse(curve.dataset.points)}));
  const cursor = create("path", {class: "cursor", visibility: "hidden"});
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  chart.append(cursor);
  chart.after(tip);
  chart.tabIndex = 0;
  let at = left;
  const hide = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
  const show = x => {
    const here = curves.filter(one => one.points.length && getComputedStyle(one.curve).display !== "none").map(one =>
      [one.curve, one.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)]);
    if (!here.length) return hide();
    at = here.reduce((a, b) => Math.abs(b[1][0] - x) < Math.abs(a[1][0] - x) ? b : a)[1][0];
    cursor.setAttribute("d", `M${at} ${top}V${bottom}`);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(...here.sort((a, b) => a[1][1] - b[1][1]).map(([curve, point]) => {
      const line = document.createElement("span");
      const legend = document.querySelector(`.methods .swatch.${curve.classList[1]}`);
      if (legend) line.append(legend.cloneNode(true));
      line.append(`${curve.dataset.name}: ${point[3]} at ${point[2]}`);
      return line;
    }));
    tip.hidden = false;
    const box = chart.getBoundingClientRect(), scale = box.width / chart.viewBox.baseVal.width;
    const beside = at * scale + 12;
    const fits = beside + tip.offsetWidth <= box.width;
    tip.style.left = `${fits ? beside : Math.max(0, at * scale - 12 - tip.offsetWidth)}px`;
    tip.style.top = `${chart.offsetTop + bottom * scale - tip.offsetHeight - 8}px`;
  };
  chart.addEventListener("pointermove", event => {
    const box = chart.getBoundingClientRect();
    show((event.clientX - box.left) * chart.viewBox.baseVal.width / box.width);
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", event => {
    if (event.key === "Escape") return hide();
    const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!way) return;
    event.preventDefault();
    const places = [...new Set(curves.filter(one => getComputedStyle(one.curve).display !== "none")
      .flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
    const next = way > 0 ? places.find(x => x > at) : places.findLast(x => x < at);
    show(tip.hidden ? at : next ?? at);
  });
}
// The chosen theme outlives a reload, where the browser lets a local file remember.
try {
  document.getElementById(localStorage.getItem("theme") ?? "auto")?.click();
  for (const choice of document.querySelectorAll(".theme input"))
    choice.addEventListener("change", () => localStorage.setItem("theme", choice.id));
} catch { /* private window */ }
