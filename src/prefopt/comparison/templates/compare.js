"use strict";
(() => {
  const names = JSON.parse(document.getElementById("names").textContent);
  const tip = document.getElementById("tip");
  const byRow = new Map();
  for (const element of document.querySelectorAll("[data-g]")) {
    const row = element.dataset.g;
    if (!byRow.has(row)) byRow.set(row, []);
    byRow.get(row).push(element);
  }

  let hot = null;
  function heat(row) {
    if (row === hot) return;
    for (const element of byRow.get(hot) || []) element.classList.remove("hot");
    for (const element of byRow.get(row) || []) element.classList.add("hot");
    hot = row;
  }
  document.addEventListener("mouseover", (event) => {
    const element = event.target.closest("[data-g]");
    heat(element ? element.dataset.g : null);
    tip.hidden = !(element && element.closest("figure"));
    if (!tip.hidden) tip.textContent = names[Number(element.dataset.g)];
  });
  document.addEventListener("mousemove", (event) => {
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 16 + "px";
  });

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      if (button.id === "others") document.body.classList.toggle("no-others", !isShown);
      else for (const element of byRow.get(button.dataset.g)) if (element.closest("figure")) element.classList.toggle("off", !isShown);
    });
  }

  const numbers = (text) => (text.match(/-?\d+/g) || []).map(Number);
  function move(path, axis) {
    const first = path.dataset.d || (path.dataset.d = path.getAttribute("d"));
    if (axis === "steps") { path.setAttribute("d", first); path.style.display = ""; return; }
    const places = path.dataset[axis];
    path.style.display = places ? "" : "none";
    if (!places) return;
    const xs = numbers(places), all = numbers(first);
    let d = "M" + xs[0] + " " + all[1] + "l";
    if (xs.length === 1) d += "0 0";
    for (let i = 1; i < xs.length; i++) d += xs[i] + " " + all[2 * i + 1] + " ";
    path.setAttribute("d", d);
  }
  const switches = document.querySelectorAll(".switch button");
  for (const button of switches) {
    button.addEventListener("click", () => {
      const axis = button.dataset.axis;
      for (const other of switches) other.setAttribute("aria-pressed", String(other === button));
      for (const group of document.querySelectorAll("g.axis")) group.style.display = group.dataset.axis === axis ? "" : "none";
      for (const path of document.querySelectorAll(".curves path[data-g]")) move(path, axis);
    });
  }
  for (const shown of document.querySelectorAll(".switch")) shown.hidden = false;
})();
