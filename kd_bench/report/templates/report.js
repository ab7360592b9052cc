"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";

  // Text always goes in as text: names and reasons come from files.
  function element(tag, text, ...children) {
    const one = document.createElement(tag);
    if (text !== null && text !== undefined) one.textContent = text;
    one.append(...children);
    return one;
  }

  // --- filter ---

  const form = $("filter"), pair = $("pair"), family = $("family");
  const chips = [...document.querySelectorAll("[data-chip]")];
  const filtered = [...document.querySelectorAll("main [data-pair], main [data-method], main [data-family]")];
  const lines = [...document.querySelectorAll("tr.line")];

  function filter() {
    const hidden = new Set(chips.filter((one) => one.getAttribute("aria-pressed") === "false").map((one) => one.dataset.chip));
    for (const one of filtered) {
      const { pair: of, method, family: kind } = one.dataset;
      const off = (of !== undefined && pair.value !== "" && of !== pair.value)
        || (method !== undefined && hidden.has(method))
        || (kind !== undefined && kind !== "" && family.value !== "" && kind !== family.value);
      one.classList.toggle("off", off);
    }
    const left = lines.filter((one) => !one.classList.contains("off")).length;
    $("shown").textContent = `${left} of ${lines.length} lines shown`;
  }

  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") === "false"));
      filter();
    });
  }
  for (const one of [pair, family]) one.addEventListener("change", filter);
  form.addEventListener("reset", () => {
    for (const chip of chips) chip.setAttribute("aria-pressed", "true");
    setTimeout(filter);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  // --- sort: up, down, and back to the order of the recipe ---

  function value(row, column, kind) {
    const cell = row.cells[column];
    if (kind === "text") return cell.textContent.trim().toLowerCase();
    const text = cell.dataset.value;
    return text === undefined || text === "" ? null : Number(text);
  }

  function sort(button) {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const order = { none: "ascending", ascending: "descending", descending: "none" };
    const next = order[head.getAttribute("aria-sort") || "none"];
    for (const one of table.querySelectorAll("[aria-sort]")) one.removeAttribute("aria-sort");
    if (next !== "none") head.setAttribute("aria-sort", next);
    const rows = [...body.rows];
    rows.forEach((row, at) => { row.dataset.order ??= at; });
    const column = head.cellIndex, sign = next === "descending" ? -1 : 1;
    rows.sort((a, b) => {
      if (next === "none") return a.dataset.order - b.dataset.order;
      const x = value(a, column, button.dataset.kind), y = value(b, column, button.dataset.kind);
      if (x === null || y === null) return (x === null) - (y === null); // what is not there comes last either way
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
    body.append(...rows);
  }

  for (const button of document.querySelectorAll("button.sort")) button.addEventListener("click", () => sort(button));

  // --- the trials behind a number ---

  function flat(settings, path = "") {
    if (settings === null || typeof settings !== "object") return [[path, String(settings)]];
    const entries = Object.entries(settings);
    return entries.length ? entries.flatMap(([key, one]) => flat(one, path ? `${path}.${key}` : key)) : [[path, "none"]];
  }

  function listed(settings) {
    const list = element("dl", null);
    for (const [key, text] of flat(settings)) list.append(element("dt", key), element("dd", text === "null" ? "none" : text));
    return list;
  }

  function folded(title, ...content) {
    return element("details", null, element("summary", title), ...content);
  }

  function draw(tag, attributes, ...children) {
    const one = document.createElementNS(SVG, tag);
    for (const [key, text] of Object.entries(attributes)) one.setAttribute(key, text);
    one.append(...children);
    return one;
  }

  function curve(name, values) {
    const known = values.filter((one) => one !== null);
    if (known.length < 2) return null;
    const low = Math.min(...known), high = Math.max(...known), span = high - low || 1;
    const x = (at) => 56 + (at / (values.length - 1)) * 490, y = (one) => 128 - ((one - low) / span) * 114;
    let path = "", pen = "M";
    values.forEach((one, at) => {
      if (one === null) { pen = "M"; return; }
      path += `${pen}${x(at).toFixed(1)} ${y(one).toFixed(1)}`;
      pen = "L";
    });
    const text = (at, say) => draw("text", { x: 50, y: at, "text-anchor": "end" }, say);
    const picture = draw("svg", { viewBox: "0 0 560 140", role: "img", "aria-label": `${name} by epoch`, class: "s0" },
      draw("line", { class: "grid", x1: 56, x2: 546, y1: 128, y2: 128 }), draw("line", { class: "grid", x1: 56, x2: 546, y1: 14, y2: 14 }),
      text(18, String(high)), text(132, String(low)), draw("path", { class: "line", d: path }));
    return element("figure", null, element("figcaption", `${name} by epoch; last ${values[values.length - 1] ?? "none"}`), picture);
  }

  function trial(id, only) {
    const one = data.trials[id];
    const top1 = one.result.top1_last === undefined ? one.status : `${one.result.top1_last.toFixed(2)} %`;
    const box = folded(`${one.name}: ${top1} (${one.folder})`);
    box.open = only;
    if (one.reason) box.append(element("p", `${one.status}: ${one.reason}`));
    for (const problem of one.problems) box.append(element("p", problem));
    if (one.again) box.append(element("div", "Train this trial again, in a folder of its own:"), element("pre", one.again));
    if (one.command) {
      const resumed = one.resumed ? `, taken up again ${one.resumed} times since` : "";
      box.append(element("div", `Was begun ${one.started ?? ""}${resumed} by:`), element("pre", one.command));
    }
    for (const [name, values] of Object.entries(one.curves)) {
      const picture = curve(name, values);
      if (picture) box.append(picture);
    }
    box.append(folded("result", listed(one.result)));
    const settings = { ...data.shared[one.settings], seed: one.seed ?? null };
    if (one.taught) settings.teacher = `the trial ${one.taught}`;
    box.append(folded("settings", listed(settings)));
    if (one.environment !== null) box.append(folded("environment", listed(data.shared[one.environment])));
    return box;
  }

  const dialog = $("behind");

  function show(number) {
    const cell = data.cells[number];
    if (!cell) return;
    $("behind-title").textContent = cell.title;
    const says = element("ul", null, ...cell.says.map((one) => element("li", one)));
    const trials = cell.trials.map((id) => trial(id, cell.trials.length === 1));
    const thinned = data.step > 1 ? [element("p", `Curves have every ${data.step}th epoch.`)] : [];
    $("behind-body").replaceChildren(says, ...thinned, ...trials);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-cell]");
    if (button) show(Number(button.dataset.cell));
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
