"use strict";
(() => {
  const root = document.documentElement;

  // theme: the system's, light, dark
  const button = document.getElementById("theme");
  const themes = { "": ["◐", "as the system has it"], light: ["☀", "light"], dark: ["☾", "dark"] };
  const show = (theme) => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    button.firstElementChild.textContent = themes[theme][0];
    button.setAttribute("aria-label", "Theme: " + themes[theme][1]);
    button.title = "Theme: " + themes[theme][1];
  };
  const store = (theme) => { try { localStorage.setItem("fmwiss-theme", theme); } catch { /* a page from a file may keep nothing */ } };
  let theme = "";
  try { theme = localStorage.getItem("fmwiss-theme") || ""; } catch { /* likewise */ }
  show(theme in themes ? theme : "");
  button.addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(root.dataset.theme || "") + 1) % names.length];
    show(next);
    store(next);
  });

  // strength of the masks
  const opacity = document.getElementById("opacity");
  if (opacity) opacity.addEventListener("input", () => root.style.setProperty("--opacity", opacity.value / 100));

  // order of a gallery
  for (const select of document.querySelectorAll(".order")) {
    select.addEventListener("change", () => {
      const cards = document.getElementById(select.dataset.target);
      const key = (card) => {
        if (select.value === "place") return Number(card.dataset.place);
        if (card.dataset.score === "") return Infinity;
        return select.value === "worst" ? Number(card.dataset.score) : -Number(card.dataset.score);
      };
      cards.append(...[...cards.children].sort((a, b) => key(a) - key(b)));
    });
  }

  // values of curves under the pointer
  const short = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
  for (const plot of document.querySelectorAll(".plot-area")) {
    const lines = [...plot.querySelectorAll(".data")].map((data) => ({
      label: data.dataset.label, colour: data.dataset.colour, points: JSON.parse(data.dataset.points),
    }));
    const [x0, x1] = [Number(plot.dataset.x0), Number(plot.dataset.x1)];
    const cross = document.createElement("span"), tip = document.createElement("div");
    cross.className = "cross";
    tip.className = "tip";
    const leave = () => { cross.remove(); tip.remove(); };
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const wanted = x0 + (x1 - x0) * (event.clientX - box.left) / box.width;
      const nearest = (points) => points.reduce((a, b) => Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a);
      const found = lines.map((line) => ({ ...line, point: nearest(line.points) }));
      const x = nearest(found.map((line) => line.point))[0];
      const place = (x - x0) / (x1 - x0);
      cross.style.left = 100 * place + "%";
      tip.replaceChildren("epoch " + short(x));
      for (const line of found) {
        const row = document.createElement("div"), swatch = document.createElement("span");
        swatch.className = "swatch " + line.colour;
        row.append(swatch, (lines.length > 1 ? line.label + " " : "") + short(line.point[1]));
        tip.append(row);
      }
      tip.style.left = place < 0.5 ? `calc(${100 * place}% + .6rem)` : "auto";
      tip.style.right = place < 0.5 ? "auto" : `calc(${100 - 100 * place}% + .6rem)`;
      plot.append(cross, tip);
    });
  }

  // cells of a confusion matrix, by pointer and by arrow keys
  for (const cells of document.querySelectorAll(".heat-cells")) {
    const n = Number(cells.dataset.n), names = JSON.parse(cells.dataset.names);
    const readout = cells.closest(".confusion").querySelector(".readout"), cursor = cells.querySelector(".cursor");
    const values = new Map();
    for (const rect of cells.querySelectorAll("rect[data-share]")) {
      values.set(rect.getAttribute("y") + "," + rect.getAttribute("x"), rect.dataset);
    }
    let [row, column] = [0, 0];
    const tell = (y, x) => {
      [row, column] = [y, x];
      const cell = values.get(y + "," + x) || { share: "0.00", pixels: "0" };
      cursor.setAttribute("x", x);
      cursor.setAttribute("y", y);
      cursor.setAttribute("visibility", "visible");
      const strong = document.createElement("strong");
      strong.textContent = cell.share + " %";
      const pixels = Number(cell.pixels).toLocaleString("en");
      readout.replaceChildren(strong, ` of ${names[y]} is predicted as ${names[x]} (${pixels} pixels)`);
    };
    cells.addEventListener("pointermove", (event) => {
      const box = cells.getBoundingClientRect();
      const at = (value) => Math.min(n - 1, Math.max(0, Math.floor(n * value)));
      tell(at((event.clientY - box.top) / box.height), at((event.clientX - box.left) / box.width));
    });
    cells.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      const kept = (value) => Math.min(n - 1, Math.max(0, value));
      tell(kept(row + move[0]), kept(column + move[1]));
    });
  }
})();
