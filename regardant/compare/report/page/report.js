// Tabs, the sortable table, the theme, and the figures: coloured and labelled here, in the theme of the moment.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("data");
  const looks = read("looks");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;
  const NARROW = 560; // Pixels of a figure: below it there is no room for labels in the margin.
  const picked = new Set();

  // ---- The theme: as the system has it, until the reader chooses.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const themes = ["auto", "light", "dark"];
  let theme = "auto";
  try { theme = localStorage.getItem("regardant-theme") || "auto"; } catch { /* A page may not be allowed to remember. */ }
  let ink = {};

  function applyTheme() {
    root.dataset.theme = theme === "auto" ? (system.matches ? "dark" : "light") : theme;
    document.getElementById("theme").textContent = `Theme: ${theme}`;
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    ink = Object.fromEntries(["paper", "ink", "soft", "rule", "tint", "best", "grid", "map-low", "map-middle",
      "map-high", "map-negative"].map((name) => [name, colour(name)]));
    ink.slots = Array.from({ length: 9 }, (_, slot) => colour(`s${slot}`));
    ink.font = getComputedStyle(document.body).fontFamily;
  }
  document.getElementById("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("regardant-theme", theme); } catch { /* Then only for this visit. */ }
    applyTheme();
    redraw();
  });
  system.addEventListener("change", () => { applyTheme(); redraw(); });

  // ---- Figures.
  const colourOf = (name) => ink.slots[looks[name].slot];
  const fade = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");
  const shown = (name) => picked.size === 0 || picked.has(name);

  function paint(trace) {
    const { system: name, role, faint } = trace.meta ?? {};
    const made = structuredClone(trace);
    if (role === "rule") made.line.color = ink.soft;
    if (role === "weights") {
      made.colorscale = [[0, ink["map-low"]], [0.25, ink["map-middle"]], [1, ink["map-high"]]];
    }
    if (role === "diverging") {
      made.colorscale = [[0, ink["map-negative"]], [0.5, ink["map-low"]], [0.625, ink["map-middle"]], [1, ink["map-high"]]];
    }
    if (!name) return made;
    const colour = colourOf(name);
    if (made.line) made.line.color = colour;
    if (made.marker) {
      made.marker.color = colour;
      if (!String(made.marker.symbol).endsWith("-open")) made.marker.line = { width: 1, color: ink.paper };
      else made.marker.line = { width: 2, color: colour };
    }
    for (const bar of ["error_x", "error_y"]) if (made[bar]) made[bar].color = fade(colour, 0.6);
    if (made.opacity === undefined && faint) made.opacity = 0.4;
    if (!shown(name)) {
      made.opacity = 0.09;
      made.hoverinfo = "skip";
      delete made.hovertemplate;
    }
    return made;
  }

  const pen = document.createElement("canvas").getContext("2d");
  function widthOf(text, size) {
    pen.font = `${size}px ${ink.font}`;
    return pen.measureText(text.replace(/<[^>]*>/g, "")).width;
  }

  function axis(given, extra) {
    const title = given.title ? { ...given.title, standoff: 10, font: { size: 12, color: ink.soft } } : undefined;
    return { gridcolor: ink.grid, linecolor: ink.rule, tickcolor: ink.rule, zeroline: false, automargin: true,
      tickfont: { size: 12, color: ink.soft }, ...given, title, ...extra };
  }

  // Labels that would overlap are pushed apart, as little as can be.
  function spread(wanted, gap, low, high) {
    const groups = wanted.map((at, index) => ({ at, index })).sort((a, b) => a.at - b.at)
      .map(({ at, index }) => ({ centre: at, members: [index], sum: at }));
    for (let k = 1; k < groups.length; k++) {
      while (k > 0) {
        const [a, b] = [groups[k - 1], groups[k]];
        if (b.centre - a.centre >= gap * (a.members.length + b.members.length) / 2) break;
        a.members.push(...b.members);
        a.sum += b.sum;
        a.centre = a.sum / a.members.length;
        groups.splice(k, 1);
        k -= 1;
      }
    }
    const placed = [];
    for (const { centre, members } of groups) {
      const half = gap * (members.length - 1) / 2;
      const middle = Math.min(Math.max(centre, low + half), high - half);
      members.forEach((index, place) => { placed[index] = middle - half + gap * place; });
    }
    return placed;
  }

  const position = (value, { type, range }) =>
    ((type === "log" ? Math.log10(value) : value) - range[0]) / (range[1] - range[0]);

  function endLabels(figure, height) {
    const { yaxis } = figure.layout;
    const wanted = figure.labels.map(({ y }) => (1 - position(y, yaxis)) * height);
    const placed = spread(wanted, 16, 0, height);
    return figure.labels.map(({ system: name, text }, index) => ({
      xref: "paper", yref: "paper", x: 1, y: 1 - placed[index] / height, xanchor: "left", yanchor: "middle", xshift: 8,
      showarrow: false, text, opacity: shown(name) ? 1 : 0.15, font: { size: 12, color: colourOf(name) },
    }));
  }

  // Beside its point, on the first side where a label covers neither a marker nor another label.
  function besideLabels(figure, width, height) {
    const { xaxis, yaxis } = figure.layout;
    const points = figure.labels.map(({ x, y }) => ({ x: position(x, xaxis) * width, y: (1 - position(y, yaxis)) * height }));
    const taken = points.map(({ x, y }) => [x - 9, y - 9, x + 9, y + 9]);
    const free = (box) => box[0] >= -4 && box[2] <= width + 4 && box[1] >= -4 && box[3] <= height + 4
      && taken.every((other) => box[2] <= other[0] || box[0] >= other[2] || box[3] <= other[1] || box[1] >= other[3]);
    for (const { x, y } of figure.data.filter(({ meta }) => meta.role === "rule")) {
      for (let k = 1; k < x.length; k++) {
        const [left, right] = [x[k - 1], x[k]].map((at) => position(at, xaxis) * width);
        const [from, to] = [y[k - 1], y[k]].map((at) => (1 - position(at, yaxis)) * height);
        taken.push([left, from - 1, right, from + 1], [right - 1, Math.min(from, to), right + 1, Math.max(from, to)]);
      }
    }
    const labels = [];
    figure.labels.forEach(({ system: name, text }, index) => {
      const [{ x, y }, wide, high] = [points[index], widthOf(text, 12) + 2, 15];
      const sides = [[11, -high / 2], [-11 - wide, -high / 2], [-wide / 2, -11 - high], [-wide / 2, 11],
        [9, -9 - high], [-9 - wide, -9 - high], [9, 9], [-9 - wide, 9]];
      for (const [dx, dy] of sides) {
        const box = [x + dx, y + dy, x + dx + wide, y + dy + high];
        if (!free(box)) continue;
        taken.push(box);
        labels.push({ xref: "paper", yref: "paper", x: box[0] / width, y: 1 - (box[1] + high / 2) / height,
          xanchor: "left", yanchor: "middle", showarrow: false, text, opacity: shown(name) ? 1 : 0.15,
          font: { size: 12, color: colourOf(name) } });
        return;
      }
    });
    return labels;
  }

  function shape(given) {
    if (given.name === "band") return { ...given, fillcolor: ink.best, line: { width: 0 }, layer: "below" };
    const label = given.label ? { font: { size: 11, color: ink.soft }, ...given.label } : undefined;
    return { ...given, line: { color: ink.soft, width: 1, dash: "dot" }, layer: "below", label };
  }

  // Long names of a category axis stand on two lines where it is narrow, broken nearest to their middle.
  function shortened(name) {
    const breaks = [...name.matchAll(/[+-]/g)].map(({ index }) => index + 1);
    if (name.length < 17 || breaks.length === 0) return name;
    const at = breaks.reduce((best, each) => Math.abs(each - name.length / 2) < Math.abs(best - name.length / 2) ? each : best);
    return `${name.slice(0, at)}<br>${name.slice(at)}`;
  }

  function draw(element) {
    const figure = figures[element.dataset.figure];
    const width = element.clientWidth;
    if (!figure || width === 0) return;
    const square = element.classList.contains("square");
    const narrow = width < NARROW;
    const names = figure.layout.yaxis.categoryarray;
    const height = square ? width : names ? figure.height * (narrow ? 1.15 : 1) : narrow ? 0.85 * figure.height : figure.height;
    if (!square) element.style.minHeight = `${height}px`;
    const room = figure.placing === "end" && figure.labels.length && !narrow
      ? Math.min(0.36 * width, 18 + Math.max(...figure.labels.map(({ text }) => widthOf(text, 12)))) : 14;
    const margin = square ? figure.layout.margin : { l: 62, r: room, t: narrow ? 12 : 34, b: 52 };
    const layout = {
      ...figure.layout, width, height, margin, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: ink.font, size: 12, color: ink.soft }, showlegend: false, hovermode: "closest",
      dragmode: narrow ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink.rule, activecolor: ink.soft },
      hoverlabel: { bgcolor: ink.paper, bordercolor: ink.soft, align: "left", font: { family: ink.font, size: 12.5, color: ink.ink } },
      shapes: (figure.layout.shapes ?? []).map(shape),
    };
    const labelled = !names ? {} : { tickvals: names, ticktext: narrow ? names.map(shortened) : names,
      tickfont: { size: narrow ? 11 : 12.5, color: ink.ink } };
    layout.xaxis = axis(figure.layout.xaxis, { fixedrange: narrow || square, automargin: !square });
    layout.yaxis = axis(figure.layout.yaxis, { fixedrange: narrow || square, automargin: !square, ...labelled });
    if (figure.labels.length && !(narrow && figure.placing === "end")) {
      const [w, h] = [width - margin.l - margin.r, height - margin.t - margin.b];
      layout.annotations = figure.placing === "end" ? endLabels(figure, h) : besideLabels(figure, w, h);
    }
    const config = { displaylogo: false, displayModeBar: narrow || square ? false : "hover", responsive: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"],
      toImageButtonOptions: { filename: `regardant-${element.dataset.figure}`, scale: 2 } };
    Plotly.react(element, figure.data.map(paint), layout, config);
    element.dataset.drawn = width;
  }

  // A figure is drawn when it comes into sight of its tab, and again when the theme, the picks or its width change.
  const visible = () => all(".plot").filter((element) => element.clientWidth > 0);
  const redraw = () => visible().forEach(draw);
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => visible().filter((each) => Number(each.dataset.drawn) !== each.clientWidth).forEach(draw));
  });

  // ---- Systems that are picked in the legend, or pointed at, stand out everywhere.
  const legend = document.querySelector(".legend");
  function markPicked() {
    root.classList.toggle("picking", picked.size > 0);
    all(".chip[data-system]").forEach((chip) => chip.setAttribute("aria-pressed", picked.has(chip.dataset.system)));
    document.querySelector(".chip.all").hidden = picked.size === 0;
    all("tr[data-system], .maps figure").forEach((each) => each.classList.toggle("picked", picked.has(each.dataset.system)));
    redraw();
  }
  legend.addEventListener("click", ({ target }) => {
    const chip = target.closest(".chip");
    if (!chip) return;
    const name = chip.dataset.system;
    if (name === undefined) picked.clear();
    else if (!picked.delete(name)) picked.add(name);
    markPicked();
  });

  // ---- Figures that are shown one at a time.
  all(".choices").forEach((group) => {
    const panes = all(":scope > [data-choice]", group.nextElementSibling);
    group.addEventListener("click", ({ target }) => {
      const chosen = target.dataset.choice;
      if (chosen === undefined) return;
      all("button", group).forEach((button) => button.setAttribute("aria-pressed", button === target));
      panes.forEach((pane) => { pane.hidden = pane.dataset.choice !== chosen; });
      redraw();
    });
  });

  // ---- Tabs, by the address's fragment; a card's fragment opens the tab that it stands in.
  const tabs = all("[role=tab]");
  const sections = all("main > section");
  function open(fragment) {
    // Parts have other names than their fragments, or the browser would scroll to them.
    const target = document.getElementById(`part-${fragment}`) ?? (fragment ? document.getElementById(fragment) : null);
    const section = target?.closest("main > section") ?? sections[0];
    sections.forEach((each) => { each.hidden = each !== section; });
    tabs.forEach((tab) => {
      const chosen = tab.getAttribute("aria-controls") === section.id;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    legend.hidden = !section.querySelector(".plot") && section !== sections[0];
    redraw();
    if (target && target !== section) target.scrollIntoView();
  }
  tabs.forEach((tab) => tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  }));
  const bar = document.querySelector(".bar");
  const above = bar.offsetTop;
  tabs.forEach((tab) => tab.addEventListener("click", (event) => {
    event.preventDefault();
    const name = tab.hash.slice(1);
    history.replaceState(null, "", `#${name}`);
    open(name);
    if (scrollY > above) scrollTo(0, above);
  }));
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  all("[data-card]").forEach((link) => {
    const card = all("article").find((each) => each.dataset.system === link.dataset.card);
    if (card) link.href = `#${card.id}`;
  });

  // ---- Sorting: a second click turns the order; what has no figure stays below.
  all("table.sortable").forEach((table) => {
    const headings = all("thead tr:last-child th", table);
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", ({ target }) => {
      const better = target.dataset.better;
      const first = better === "high" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((each) => each.setAttribute("aria-sort", each === heading ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => {
        const cell = row.children[column];
        if (column === 0) return row.dataset.system;
        return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
      };
      const rows = all("tbody tr", table).sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
      });
      table.tBodies[0].append(...rows);
    }));
  });

  addEventListener("beforeprint", () => {
    sections.forEach((each) => { each.hidden = false; });
    redraw();
  });
  addEventListener("afterprint", () => open(location.hash.slice(1)));

  applyTheme();
  open(location.hash.slice(1));
  root.classList.add("ready");
})();
