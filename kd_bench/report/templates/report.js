"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";

  // textContent, never innerHTML, because names and reasons come from files
  function element(tag, text, ...children) {
    const node = document.createElement(tag);
    if (text !== null && text !== undefined) node.textContent = text;
    node.append(...children);
    return node;
  }

  // --- filter ---

  const form = $("filter"), pair = $("pair"), family = $("family");
  const chips = [...document.querySelectorAll("[data-chip]")];
  const filtered = [...document.querySelectorAll("main [data-pair], main [data-method], main [data-family]")];
  const rows = [...document.querySelectorAll("tr.line")];

  function filter() {
    const pressed = (chip) => chip.getAttribute("aria-pressed") === "true";
    const hidden = new Set(chips.filter((chip) => !pressed(chip)).map((chip) => chip.dataset.chip));
    for (const node of filtered) {
      const { pair: nodePair, method, family: nodeFamily } = node.dataset;
      const off = (nodePair !== undefined && pair.value !== "" && nodePair !== pair.value)
        || (method !== undefined && hidden.has(method))
        || (nodeFamily && family.value !== "" && nodeFamily !== family.value);
      node.classList.toggle("off", Boolean(off));
    }
    const shown = rows.filter((row) => !row.classList.contains("off")).length;
    $("shown").textContent = `${shown} of ${rows.length} rows shown`;
  }

  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") === "false"));
      filter();
    });
  }
  for (const select of [pair, family]) select.addEventListener("change", filter);
  form.addEventListener("reset", () => {
    for (const chip of chips) chip.setAttribute("aria-pressed", "true");
    setTimeout(filter);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  // --- sort: ascending, descending, and the order of the recipe ---

  function value(row, column, kind) {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim().toLowerCase();
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text === "" || Number.isNaN(Number(text)) ? null : Number(text);
  }

  function sort(button) {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const order = { none: "ascending", ascending: "descending", descending: "none" };
    const next = order[head.getAttribute("aria-sort") || "none"];
    for (const sorted of table.querySelectorAll("[aria-sort]")) sorted.removeAttribute("aria-sort");
    if (next !== "none") head.setAttribute("aria-sort", next);
    const rows = [...body.rows];
    rows.forEach((row, index) => { row.dataset.order ??= index; });
    const column = head.cellIndex, sign = next === "descending" ? -1 : 1;
    rows.sort((a, b) => {
      if (next === "none") return a.dataset.order - b.dataset.order;
      const x = value(a, column, button.dataset.kind), y = value(b, column, button.dataset.kind);
      if (x === null || y === null) return (x === null) - (y === null); // missing values come last in both orders
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
    body.append(...rows);
  }

  for (const button of document.querySelectorAll("button.sort")) button.addEventListener("click", () => sort(button));

  // --- the trials behind a number ---

  function flat(settings, path = "") {
    if (settings === null || typeof settings !== "object") return [[path, String(settings)]];
    const entries = Object.entries(settings);
    return entries.length ? entries.flatMap(([key, value]) => flat(value, path ? `${path}.${key}` : key)) : [[path, "none"]];
  }

  function definitions(settings) {
    const list = element("dl", null);
    for (const [key, text] of flat(settings)) list.append(element("dt", key), element("dd", text === "null" ? "none" : text));
    return list;
  }

  function details(title, ...content) {
    return element("details", null, element("summary", title), ...content);
  }

  function svgElement(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [key, text] of Object.entries(attributes)) node.setAttribute(key, text);
    node.append(...children);
    return node;
  }

  function short(number) {
    return String(Number(number.toPrecision(4)));
  }

  function curve(name, values) {
    const known = values.filter((value) => value !== null);
    if (known.length < 2) return null;
    const lowest = Math.min(...known), highest = Math.max(...known);
    // a range that is never so small that differences without meaning fill it
    const least = name.endsWith("top1") ? 1 : 0.1 * Math.abs(highest) || 1;
    const span = Math.max(highest - lowest, least), low = (lowest + highest - span) / 2, high = low + span;
    const x = (index) => 56 + (index / (values.length - 1)) * 490, y = (value) => 128 - ((value - low) / span) * 114;
    let path = "", command = "M";
    values.forEach((value, index) => {
      if (value !== null) path += `${command}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
      command = value === null ? "M" : "L";
    });
    const label = (height, text) => svgElement("text", { x: 50, y: height, "text-anchor": "end" }, text);
    const grid = (height) => svgElement("line", { class: "grid", x1: 56, x2: 546, y1: height, y2: height });
    const plot = svgElement("svg", { viewBox: "0 0 560 140", role: "img", "aria-label": `${name} by epoch`, class: "s0" },
      grid(128), grid(14), label(18, short(high)), label(132, short(low)), svgElement("path", { class: "line", d: path }));
    return element("figure", null, element("figcaption", `${name} by epoch; last ${values[values.length - 1] ?? "none"}`), plot);
  }

  function trialDetails(id, open) {
    const trial = data.trials[id];
    const top1 = trial.result.top1_last === undefined ? trial.status : `${trial.result.top1_last.toFixed(2)} %`;
    const box = details(`${trial.name}: ${top1} (${trial.folder})`);
    box.open = open;
    if (trial.reason) box.append(element("p", `${trial.status}: ${trial.reason}`));
    for (const problem of trial.problems) box.append(element("p", problem));
    if (trial.again) box.append(element("div", "Train this trial again, in a folder of its own:"), element("pre", trial.again));
    if (trial.command) {
      const resumed = trial.resumed ? `, resumed ${trial.resumed} times since` : "";
      box.append(element("div", `Started ${trial.started ?? ""}${resumed} by:`), element("pre", trial.command));
    }
    box.append(...Object.entries(trial.curves).map(([name, values]) => curve(name, values)).filter(Boolean));
    box.append(details("result", definitions(trial.result)));
    const settings = { ...data.shared[trial.settings], seed: trial.seed ?? null };
    if (trial.taught) settings.teacher = `the trial ${trial.taught}`;
    box.append(details("settings", definitions(settings)));
    if (trial.environment !== null) box.append(details("environment", definitions(data.shared[trial.environment])));
    return box;
  }

  const dialog = $("behind");

  function showCell(number) {
    const cell = data.cells[number];
    if (!cell) return;
    $("behind-title").textContent = cell.title;
    const sentences = element("ul", null, ...cell.says.map((sentence) => element("li", sentence)));
    const trials = cell.trials.map((id) => trialDetails(id, cell.trials.length === 1));
    const thinned = data.step > 1 ? [element("p", `Curves show one of every ${data.step} epochs, and always the last one.`)] : [];
    $("behind-body").replaceChildren(sentences, ...thinned, ...trials);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-cell]");
    if (button) showCell(Number(button.dataset.cell));
    else if (event.target === dialog) dialog.close();
  });

  // --- theme ---

  const theme = $("theme"), themes = ["auto", "light", "dark"];
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    theme.textContent = `theme: ${next}`;
  });
})();
