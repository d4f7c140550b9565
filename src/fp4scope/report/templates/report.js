// Draws the charts of report.html from the JSON block in it. No library, nothing is fetched.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const column = Object.fromEntries(data.columns.map((name, i) => [name, i]));
  const METRICS = {
    nats: { label: "millinats per token", short: "millinats", unit: "millinats", what: "loss", signed: true, log: true },
    percent: { label: "% of PPL", short: "percent of PPL", unit: "% of PPL", what: "loss", signed: true },
    kl: { label: "KL, millinats per token", short: "KL", unit: "millinats of KL", what: "KL", signed: true, log: true },
    ppl: { label: "PPL", short: "PPL", unit: "PPL", what: "loss", signed: false },
  };
  const state = { format: "", direction: "", metric: "nats", operands: "" };

  // ---------------------------------------------------------------- small tools

  const byId = (id) => document.getElementById(id);
  const unique = (list) => [...new Set(list)];

  /** An HTML element; `text` is never read as markup. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function shape(tag, attributes = {}, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  /** As `words.number` has it. */
  function number(value, signed = false) {
    if (value === null || value === undefined) return "";
    const exact = Math.abs(value);
    const size = Number(exact.toPrecision(4)); // 99.996 is shown as 100.0
    let text;
    if (size === 0 || (signed && size < 1e-5)) return "0";
    if (size < 1e-5) text = "<0.00001";
    else if (size < 0.1) text = String(Number(exact.toPrecision(2)));
    else text = exact.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3);
    return (value < 0 ? "−" : signed && value > 0 ? "+" : "") + text;
  }

  /** A number on an axis: no more digits than it has. */
  const tickText = (value, signed) => {
    const size = Number(Math.abs(value).toPrecision(3));
    return (value < 0 ? "−" : signed && value > 0 ? "+" : "") + size;
  };

  function interval(value, low, high, signed) {
    if (value === null) return "";
    const ends = low === null ? "(no interval)" : `[${number(low, signed)}, ${number(high, signed)}]`;
    return `${number(value, signed)} ${ends}`;
  }

  /** What stands in a table's cell: an interval on a line of its own. */
  function cellText(text) {
    const [value, ends] = text.split(" [");
    return ends ? [value, " ", element("span", { class: "ci" }, `[${ends}`)] : [text];
  }

  const get = (row, name) => row[column[name]];
  const shown = (row, metric) =>
    interval(get(row, metric), get(row, `${metric}_low`), get(row, `${metric}_high`), METRICS[metric].signed);
  const where = (row) => `block ${get(row, "block")}, ${get(row, "component")}`;
  const formatClass = (name) => `f${data.formats.indexOf(name) < 0 ? 5 : data.formats.indexOf(name) % 6}`;
  const kinds = Object.fromEntries(data.components.map((c) => [c.name, c.kind]));
  const kindClass = (name) => (kinds[name] || "other").toLowerCase();

  /** The families of a level that the controls choose. */
  const chosen = (level) =>
    data.units[level].filter(
      (f) => f.direction === state.direction && f.operands === state.operands && (!state.format || f.format === state.format),
    );

  /** What a metric says quantizing costs, as colours show it. */
  const cost = (row, metric) => get(row, metric === "ppl" ? "delta_ppl" : metric);

  /** The p-value that the chosen metric's own test gives among the family (Holm). */
  const pValue = (row, metric = state.metric) => get(row, metric === "kl" ? "p_holm_kl" : "p_holm");

  /** Tested, and not told from zero. */
  const isMuted = (row) => pValue(row) > 0.05;

  function certainty(row) {
    if (pValue(row) === null) return "";
    return isMuted(row) ? "not told from zero" : "told from zero";
  }

  /** A value as a tooltip has it, with its unit; beside the loss the difference of KL. */
  function told(row) {
    const own = `${shown(row, state.metric)} ${METRICS[state.metric].unit}`;
    const beside = state.metric === "kl" ? "nats" : "kl";
    const other = get(row, beside) === null ? "" : `; ${shown(row, beside)} ${METRICS[beside].unit}`;
    return own + other;
  }

  // ---------------------------------------------------------------- scales

  /** Linear near zero, logarithmic beyond `threshold`, odd. */
  const symlog = (threshold) => (x) => Math.sign(x) * Math.log10(1 + Math.abs(x) / threshold);

  /** The power of ten above the median size: where small becomes large. */
  function threshold(values) {
    const sizes = values.map(Math.abs).sort((a, b) => a - b);
    return 10 ** Math.ceil(Math.log10(Math.max(sizes[Math.floor(sizes.length / 2)] || 0, 1e-3)));
  }

  /** The smallest of 1, 2 and 5 times a power of ten that is at least this (`down`: the largest below it). */
  function round(value, down = false) {
    const scale = 10 ** Math.floor(Math.log10(value));
    const steps = [0.5, 1, 2, 5, 10].map((k) => Number((k * scale).toPrecision(1)));
    return down ? steps.filter((s) => s < value * 0.999).pop() : steps.find((s) => s >= value * 0.999);
  }

  function linearTicks(low, high, count = 5) {
    const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
    const size = [1, 2, 5, 10].map((k) => k * step).find((s) => (high - low) / s <= count + 1);
    const ticks = [];
    for (let t = Math.ceil(low / size) * size; t <= high + size * 1e-6; t += size) ticks.push(Number(t.toPrecision(12)));
    return ticks;
  }

  function logTicks(low, high, from) {
    const ticks = [0];
    const peak = Math.max(-low, high);
    if (peak < 3 * from) ticks.push(0.3 * from, -0.3 * from);
    for (let t = from; t <= peak; t *= 10) ticks.push(t, -t, 3 * t, -3 * t);
    return ticks.filter((t) => t >= low && t <= high);
  }

  // ---------------------------------------------------------------- the tooltip

  const tip = byId("tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const room = { width: document.documentElement.clientWidth, height: window.innerHeight };
    tip.style.left = `${Math.max(6, Math.min(x + 14, room.width - box.width - 6))}px`;
    tip.style.top = `${y + 18 + box.height > room.height ? y - box.height - 12 : y + 18}px`;
  }
  const hideTip = () => (tip.hidden = true);
  document.addEventListener("pointermove", (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (target) showTip(target.dataset.tip, event.clientX, event.clientY);
    else if (!event.target.closest?.("[role=slider]")) hideTip();
  });
  document.addEventListener("focusin", (event) => {
    const text = event.target.dataset?.tip;
    if (!text || !event.target.matches(":focus-visible")) return hideTip();
    const box = event.target.getBoundingClientRect();
    showTip(text, box.left, box.bottom - 12);
  });
  document.addEventListener("scroll", hideTip, { passive: true, capture: true });
  byId("cell").addEventListener("close", () => requestAnimationFrame(hideTip));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

  // ---------------------------------------------------------------- marks

  /** A mark of its own shape for each format, so that colour is not needed. */
  function mark(x, y, index, classes) {
    const r = 3.4;
    const path = [
      `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
      `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
      `M${x},${y - r - 1}L${x + r + 1},${y}L${x},${y + r + 1}L${x - r - 1},${y}z`,
      `M${x},${y - r - 1}L${x + r + 1},${y + r}L${x - r - 1},${y + r}z`,
      `M${x},${y + r + 1}L${x + r + 1},${y - r}L${x - r - 1},${y - r}z`,
    ][index % 5];
    return shape("path", { d: path, class: classes });
  }

  function key(entries) {
    const made = element("div", { class: "key" });
    for (const { name, cls, index } of entries) {
      const icon = shape("svg", { viewBox: "0 0 16 14", "aria-hidden": "true", class: cls });
      icon.append(shape("path", { d: "M0,7H16", class: "curve" }), mark(8, 7, index, "mark"));
      made.append(element("span", {}, icon, name));
    }
    return made;
  }

  const panels = (charts) => element("div", { class: "panels" }, ...charts);

  // ---------------------------------------------------------------- dots with whiskers

  /** Rows of a value with its interval. `rows`: {label, cls, index, value, low, high, muted, text}. */
  function dots(title, rows, { label, zero, domain }) {
    const left = Math.min(200, 18 + 7 * Math.max(...rows.map((r) => r.label.length)));
    const width = 360;
    const step = 24;
    const height = step * rows.length + 40;
    const [low, high] = domain;
    const x = (v) => left + ((v - low) / (high - low || 1)) * (width - left - 14);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${rows.map((r) => r.text).join("; ")}` });
    for (const tick of linearTicks(low, high)) {
      svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: 4, y2: height - 34, class: "grid" }));
      svg.append(shape("text", { x: x(tick), y: height - 20, "text-anchor": "middle" }, tickText(tick)));
    }
    if (zero !== null && zero >= low && zero <= high) {
      svg.append(shape("line", { x1: x(zero), x2: x(zero), y1: 2, y2: height - 34, class: "axis" }));
    }
    svg.append(shape("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, label));
    rows.forEach((row, i) => {
      const y = step * i + 16;
      const group = shape("g", { class: row.cls, "data-tip": row.text });
      group.append(shape("rect", { x: 0, y: y - step / 2, width, height: step, fill: "transparent" }));
      group.append(shape("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: "name" }, row.label));
      if (row.value !== null) {
        if (row.low !== null) {
          group.append(shape("path", { d: `M${x(row.low)},${y}H${x(row.high)}M${x(row.low)},${y - 4}v8M${x(row.high)},${y - 4}v8`, class: "whisker" }));
        }
        group.append(mark(x(row.value), y, row.index, `mark${row.muted ? " muted" : ""}`));
      }
      svg.append(group);
    });
    return element("div", {}, element("h4", {}, title), svg);
  }

  /** The smallest and the largest, with a margin, except at zero. */
  function extent(values, more = [], margin = 0.05) {
    const known = [...values, ...more].filter((v) => v !== null && v !== undefined);
    const low = Math.min(...known);
    const high = Math.max(...known);
    const pad = margin * (high - low || Math.abs(high) || 1);
    return [low === 0 ? 0 : low - pad, high === 0 ? 0 : high + pad];
  }

  // ---------------------------------------------------------------- curves over depth

  /**
   * A panel whose pointer and arrow keys move over the blocks.
   * `series`: {name, cls, index, points: [{block, y, low, high, muted, text}]}.
   */
  function curves(title, series, { scale, ticks, zero, label, width = 350, height = 190, choose }) {
    const left = 46;
    const bottom = height - 32;
    const blocks = unique(series.flatMap((s) => s.points.map((p) => p.block))).sort((a, b) => a - b);
    const [first, last] = [blocks[0], blocks[blocks.length - 1]];
    const [low, high] = [scale.map(scale.low), scale.map(scale.high)];
    const x = (b) => (first === last ? (left + width) / 2 : left + 6 + ((b - first) / (last - first)) * (width - left - 16));
    const y = (v) => bottom - ((scale.map(v) - low) / (high - low || 1)) * (bottom - 8);
    const svg = shape("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "slider", tabindex: "0", "aria-label": `${title} over depth, ${label}; block`,
      "aria-valuemin": first, "aria-valuemax": last, "aria-valuenow": first,
    });
    let above = Infinity;
    for (const tick of ticks.slice().sort((a, b) => a - b)) {
      svg.append(shape("line", { x1: left, x2: width, y1: y(tick), y2: y(tick), class: "grid" }));
      if (above - y(tick) < 13) continue;
      above = y(tick);
      svg.append(shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)));
    }
    if (zero !== null && scale.low <= zero && zero <= scale.high) {
      svg.append(shape("line", { x1: left, x2: width, y1: y(zero), y2: y(zero), class: "axis" }));
    }
    const every = Math.ceil((blocks.length * 26) / (width - left));
    blocks.forEach((b, i) => i % every || svg.append(shape("text", { x: x(b), y: bottom + 15, "text-anchor": "middle" }, String(b))));
    svg.append(shape("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, "block"));
    for (const s of series) {
      const group = shape("g", { class: s.cls });
      const known = s.points.filter((p) => p.y !== null);
      const banded = known.filter((p) => p.low !== null);
      if (banded.length) {
        const edge = [...banded.map((p) => `${x(p.block)},${y(p.high)}`), ...banded.reverse().map((p) => `${x(p.block)},${y(p.low)}`)];
        group.append(shape("polygon", { points: edge.join(" "), class: "band" }));
      }
      group.append(shape("polyline", { points: known.map((p) => `${x(p.block)},${y(p.y)}`).join(" "), class: "curve" }));
      for (const p of known) group.append(mark(x(p.block), y(p.y), s.index, `mark${p.muted ? " muted" : ""}`));
      svg.append(group);
    }
    const cursor = shape("line", { y1: 4, y2: bottom, class: "cursor", visibility: "hidden" });
    svg.append(cursor);

    let at = first;
    function move(block) {
      at = block;
      cursor.setAttribute("x1", x(block));
      cursor.setAttribute("x2", x(block));
      cursor.setAttribute("visibility", "visible");
      const lines = series.flatMap((s) => s.points.filter((p) => p.block === block).map((p) => p.text));
      const text = [`${title}, block ${block}`, ...lines].join("\n");
      svg.setAttribute("aria-valuenow", block);
      svg.setAttribute("aria-valuetext", text.replaceAll("\n", "; "));
      return text;
    }
    function leave() {
      cursor.setAttribute("visibility", "hidden");
      hideTip();
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * width;
      const nearest = blocks.reduce((a, b) => (Math.abs(x(b) - place) < Math.abs(x(a) - place) ? b : a));
      showTip(move(nearest), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    function reveal(block) {
      const text = move(block);
      const box = svg.getBoundingClientRect();
      showTip(text, box.left + (x(block) / width) * box.width, box.top + 12);
    }
    svg.addEventListener("focus", () => svg.matches(":focus-visible") && reveal(at));
    svg.addEventListener("click", () => choose && choose(at));
    svg.addEventListener("keydown", (event) => {
      const i = blocks.indexOf(at);
      const to = { ArrowLeft: i - 1, ArrowDown: i - 1, ArrowRight: i + 1, ArrowUp: i + 1, Home: 0, End: blocks.length - 1 }[event.key];
      if (to !== undefined) {
        event.preventDefault();
        reveal(blocks[Math.max(0, Math.min(blocks.length - 1, to))]);
      } else if (event.key === "Enter" && choose) {
        event.preventDefault(); // or the same key would press the button of the dialog that opens
        choose(at);
      }
    });
    move(first);
    cursor.setAttribute("visibility", "hidden");
    return element("div", {}, element("h4", {}, title), svg);
  }

  // ---------------------------------------------------------------- sections

  /** What the numbers of the chosen direction and metric mean, in a sentence. */
  function meaning(families) {
    const restored = state.direction === "restore";
    const unit = restored ? "Everything is quantized but this one unit" : "Only this one unit is quantized";
    const control = restored ? "baseline" : "reference";
    const sign = restored ? "Positive: keeping the unit in full precision saves that much." : "Positive: quantizing the unit costs that much.";
    const text = {
      nats: (restored ? "the baseline's loss less this one's. " : "this loss less the reference's. ") + sign,
      percent: `the same in percent of the ${control}'s perplexity. ${sign}`,
      ppl: `perplexity itself, with the interval of its paired difference from the ${control} around it.`,
      kl: `how much ${restored ? "farther the baseline's predictions are from the reference's than these" : "farther these predictions are from the reference's"} (KL). ${sign}`,
    }[state.metric];
    const estimated = families.some((f) => f.estimated) ? " These are first-order estimates, not measured." : "";
    return `${unit}; shown is ${text}${estimated}`;
  }

  /** Above a chart: what it shows, or what there is instead; what belongs to an empty one is hidden. */
  function caption(level, families, charts) {
    const there = unique(data.units[level].map((f) => [f.direction, f.operands].join(", ")));
    byId(`said-${level}`).textContent = charts.length ? meaning(families)
      : `No ${level} were measured for ${state.direction}, ${state.operands}${state.format && `, ${state.format}`}; there is ${there.join("; ")}.`;
    byId(`drawn-${level}`).hidden = !charts.length;
  }

  function drawBaselines() {
    const usual = "weights+activations";
    const several = unique(data.baselines.map((b) => b.operands)).length > 1;
    const rows = data.baselines.map((b) => {
      const label = !several || b.operands === usual ? b.format : `${b.format}, ${b.operands}`;
      return {
        label, cls: formatClass(b.format), index: data.formats.indexOf(b.format), value: b.nats, low: b.nats_low, high: b.nats_high,
        muted: false, text: `${b.format}, ${b.operands}: ${interval(b.nats, b.nats_low, b.nats_high, true)} millinats`,
      };
    });
    if (!rows.length) return;
    rows.sort((a, b) => a.value - b.value);
    const domain = extent(rows.flatMap((r) => [r.value, r.low, r.high]), [0]);
    byId("chart-baselines").replaceChildren(panels([dots(`What quantizing everything costs${several ? `: ${usual}, where nothing is said` : `, ${data.baselines[0]?.operands}`}`, rows, { label: "millinats per token", zero: 0, domain })]));
  }

  function drawComponents() {
    const families = chosen("components");
    const charts = componentCharts(families);
    caption("components", families, charts);
    byId("chart-components").replaceChildren(...charts);
  }

  function componentCharts(families) {
    const metric = METRICS[state.metric];
    const ends = (f) => f.rows.flatMap((row) => ["", "_low", "_high"].map((end) => get(row, state.metric + end)));
    const zero = (f) => (metric.signed ? 0 : f.control[state.metric]);
    const charts = families.map((f) => {
      const rows = f.rows.slice().sort((a, b) => (cost(b, state.metric) ?? 0) - (cost(a, state.metric) ?? 0)).map((row) => {
        const name = get(row, "component");
        return {
          label: name, cls: kindClass(name), index: kinds[name] === "attention" ? 1 : 0, muted: isMuted(row),
          value: get(row, state.metric), low: get(row, `${state.metric}_low`), high: get(row, `${state.metric}_high`),
          text: `${name}, ${f.format}: ${told(row)}`,
        };
      });
      const domain = metric.signed ? extent(families.flatMap(ends), [0]) : extent(ends(f), [zero(f)]);
      const label = metric.signed ? metric.label : `${metric.label} (line: ${f.control.name})`;
      return dots(f.format, rows, { label, zero: zero(f), domain });
    });
    const shownKinds = unique(families.flatMap((f) => f.rows.map((row) => kinds[get(row, "component")])));
    const entries = [["MLP", "mlp", 0], ["attention", "attention", 1], [null, "other", 0]]
      .filter(([kind]) => shownKinds.includes(kind))
      .map(([kind, cls, index]) => ({ name: kind || "other", cls, index }));
    return families.length ? [key(entries), panels(charts)] : [];
  }

  function drawHeat() {
    const target = byId("chart-heat");
    const families = chosen("cells");
    const maps = heatMaps(families);
    caption("cells", families, maps);
    const focused = document.activeElement?.dataset?.cell;
    target.replaceChildren(...maps);
    if (focused) target.querySelector(`[data-cell="${CSS.escape(focused)}"]`)?.focus();
  }

  function heatMaps(families) {
    const costs = families.flatMap((f) => f.rows.map((row) => cost(row, state.metric))).filter((v) => v !== null);
    if (!costs.length) return [];
    const from = threshold(costs);
    const map = symlog(from);
    const peak = round(Math.max(...costs.map(Math.abs)) || 1);
    const size = (value) => Math.min(1, Math.abs(map(value)) / map(peak));
    return [legend(from, peak, size), ...families.map((f) => heat(f, size))];
  }

  function legend(from, peak, size) {
    const { what, unit } = METRICS[state.metric];
    const steps = [peak];
    for (let t = 10 ** Math.floor(Math.log10(peak)); t >= from * 0.99; t /= 10) if (t < 0.75 * peak) steps.push(Number(t.toPrecision(1)));
    if (steps.length === 1) steps.push(round(peak, true));
    const list = element("ol");
    for (const value of [...steps.map((s) => -s), 0, ...steps.slice().reverse()]) {
      const swatch = element("i", { class: value < 0 ? "down" : "up" });
      swatch.style.setProperty("--size", size(value));
      list.append(element("li", {}, swatch, element("span", {}, tickText(value, true))));
    }
    return element("div", { class: "scale" }, `${what} falls`, list, `${what} rises when this is quantized (${unit})`,
      element("i", { class: "muted" }), "not told from zero");
  }

  function heat(f, size) {
    const blocks = unique(f.rows.map((row) => get(row, "block"))).sort((a, b) => a - b);
    const names = unique(f.rows.map((row) => get(row, "component")));
    const at = Object.fromEntries(f.rows.map((row) => [`${get(row, "block")}.${get(row, "component")}`, row]));
    const table = element("table", {}, element("caption", { class: "hidden" }, `Every cell of ${f.format}, ${f.direction}: components down, blocks across`));
    table.style.setProperty("--blocks", blocks.length);
    const head = element("tr", {}, element("th", { scope: "col" }, "block"), ...blocks.map((b) => element("th", { scope: "col" }, String(b))));
    const body = element("tbody");
    for (const name of names) {
      const line = element("tr", {}, element("th", { scope: "row" }, name));
      for (const b of blocks) {
        const row = at[`${b}.${name}`];
        const place = element("td");
        const value = row ? cost(row, state.metric) : null;
        if (value !== null) {
          const text = `${where(row)}: ${told(row)}`;
          const more = [f.format, certainty(row)].filter(Boolean).join(", ");
          const button = element("button", {
            type: "button", class: `${value < 0 ? "down" : "up"}${isMuted(row) ? " muted" : ""}`, tabindex: "-1",
            "aria-label": `${text}, ${more}`, "data-tip": `${text}\n${more}`, "data-cell": `${f.format}|${b}|${name}`,
          });
          button.style.setProperty("--size", size(value).toFixed(3));
          button.addEventListener("click", () => openCell(name, b));
          place.append(button);
        }
        line.append(place);
      }
      body.append(line);
    }
    body.querySelector("button")?.setAttribute("tabindex", "0");
    table.append(element("thead", {}, head), body);
    table.addEventListener("keydown", (event) => walk(event, body));
    return element("div", { class: "heat" }, element("h4", {}, f.format), element("div", { class: "scroll" }, table));
  }

  /** Arrow keys move over a heat map, which is one stop of the tab key. */
  function walk(event, body) {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
    const place = event.target.closest("td");
    if (!place || !(down || right)) return;
    event.preventDefault();
    let [i, j] = [place.parentNode.rowIndex - 1, place.cellIndex];
    for (;;) {
      [i, j] = [i + down, j + right];
      const button = body.rows[i]?.cells[j]?.querySelector("button");
      if (!body.rows[i]?.cells[j] || j < 1) return;
      if (!button) continue;
      event.target.setAttribute("tabindex", "-1");
      button.setAttribute("tabindex", "0");
      return button.focus();
    }
  }

  function drawCurves() {
    const families = chosen("cells");
    const metric = METRICS[state.metric];
    byId("chart-curves").replaceChildren(...depthCurves(families));
    byId("said-curves").textContent = `${metric.label[0].toUpperCase()}${metric.label.slice(1)}, one panel for each component${metric.signed ? "" : " and format"}, all on one scale${metric.signed ? "" : " within a format"}.`;
    byId("note-curves").textContent = [
      metric.log ? "The axis is linear near zero and logarithmic beyond." : "The axis is linear.",
      metric.signed ? "" : `The dark line is the ${families[0]?.control.name}.`,
      `Bands are 95% intervals; hollow marks: the difference of the ${metric.what} is not told from zero (Holm at 5%).`,
      "Pointer or arrow keys read the values; press for the cell's numbers.",
    ].filter(Boolean).join(" ");
  }

  function depthCurves(families) {
    const metric = METRICS[state.metric];
    // Differences of several formats go on one axis; raw values have a panel for each format.
    const groups = metric.signed ? [families] : families.map((f) => [f]);
    const names = unique(families.flatMap((f) => f.rows.map((row) => get(row, "component"))));
    const charts = [];
    for (const group of groups) {
      if (!group.length) continue;
      const zero = metric.signed ? 0 : group[0].control[state.metric];
      const ends = group.flatMap((f) => f.rows.flatMap((row) => ["", "_low", "_high"].map((end) => get(row, state.metric + end))));
      const known = ends.filter((v) => v !== null);
      if (!known.length) continue;
      const { log } = metric;
      const [low, high] = extent(known, [zero], log ? 0 : 0.05);
      const from = threshold(group.flatMap((f) => f.rows.map((row) => get(row, state.metric) ?? 0)));
      const scale = { low, high, map: log ? symlog(from) : (v) => v };
      const ticks = log ? logTicks(low, high, from) : linearTicks(low, high, 4);
      for (const name of names) {
        const series = group.map((f) => ({
          name: f.format, cls: formatClass(f.format), index: data.formats.indexOf(f.format),
          points: f.rows.filter((row) => get(row, "component") === name).map((row) => ({
            block: get(row, "block"), y: get(row, state.metric), low: get(row, `${state.metric}_low`), high: get(row, `${state.metric}_high`),
            muted: isMuted(row), text: `${f.format}: ${told(row)}`,
          })).sort((a, b) => a.block - b.block),
        })).filter((s) => s.points.length);
        if (!series.length) continue;
        const title = metric.signed ? name : `${name}, ${group[0].format}`;
        charts.push(curves(title, series, { scale, ticks, zero, label: metric.label, choose: (block) => openCell(name, block) }));
      }
    }
    return charts.length ? [key(families.map((f) => ({ name: f.format, cls: formatClass(f.format), index: data.formats.indexOf(f.format) }))), panels(charts)] : [];
  }

  const CELL_COLUMNS = [
    ["block", (f, row) => [get(row, "block"), String(get(row, "block"))]],
    ["component", (f, row) => [get(row, "component"), get(row, "component")]],
    ["format", (f) => [f.format, f.format]],
    ["PPL", (f, row) => [get(row, "ppl"), number(get(row, "ppl"))]],
    ["millinats per token", (f, row) => [get(row, "nats"), shown(row, "nats")]],
    ["difference of PPL", (f, row) => [get(row, "delta_ppl"), interval(get(row, "delta_ppl"), get(row, "delta_ppl_low"), get(row, "delta_ppl_high"), true)]],
    ["% of PPL", (f, row) => [get(row, "percent"), shown(row, "percent")]],
    ["p (Holm)", (f, row) => [get(row, "p_holm"), number(get(row, "p_holm"))]],
    ["KL, millinats", (f, row) => [get(row, "kl"), shown(row, "kl")]],
    ["p of KL (Holm)", (f, row) => [get(row, "p_holm_kl"), number(get(row, "p_holm_kl"))]],
    ["among the most costly", (f, row) => [get(row, "p_top"), get(row, "p_top") === null ? "" : `${(100 * get(row, "p_top")).toFixed(1)}%`]],
    ["windows", (f, row) => [get(row, "windows"), String(get(row, "windows"))]],
  ];
  const ESTIMATE_COLUMN = ["estimate (first order), millinats", (f, row) => [get(row, "gradient"), interval(get(row, "gradient"), get(row, "gradient_low"), get(row, "gradient_high"), true)]];

  function drawCellTable() {
    const table = byId("cell-table");
    if (!byId("all-cells").open) return table.replaceChildren();
    const families = chosen("cells");
    const estimates = families.some((f) => f.rows.some((row) => get(row, "gradient") !== null));
    const columns = estimates ? [...CELL_COLUMNS, ESTIMATE_COLUMN] : CELL_COLUMNS;
    const rows = families.flatMap((f) => f.rows.map((row) => [f, row])).sort((a, b) => (cost(b[1], state.metric) ?? 0) - (cost(a[1], state.metric) ?? 0));
    const body = element("tbody");
    for (const [f, row] of rows) {
      body.append(element("tr", {}, ...columns.map(([, show], i) => {
        const [value, text] = show(f, row);
        return element(i ? "td" : "th", { "data-v": value ?? "", scope: i ? null : "row" }, ...cellText(text));
      })));
    }
    table.replaceChildren(element("thead", {}, element("tr", {}, ...columns.map(([name]) => element("th", { scope: "col" }, name)))), body);
    sortable(table);
  }

  // ---------------------------------------------------------------- one cell

  function openCell(name, block) {
    const rows = data.units.cells
      .filter((f) => f.operands === state.operands)
      .flatMap((f) => f.rows.filter((row) => get(row, "component") === name && get(row, "block") === block).map((row) => [f, row]));
    const heads = ["direction", "format", "millinats per token", "% of PPL", "told from zero", "KL, millinats", "KL told from zero", "PPL", "KL from the reference, nats", "top-1"];
    const test = (row, metric) => (pValue(row, metric) === null ? "not tested" : `${pValue(row, metric) <= 0.05 ? "yes" : "no"}, p ${number(pValue(row, metric))}`);
    const beside = (row, f, name) => {
      const value = get(row, name === "kl" ? "kl_nats" : name);
      return value === null ? "" : `${number(value)} [${f.control.name} ${number(f.control[name])}]`;
    };
    const estimates = rows.some(([, row]) => get(row, "gradient") !== null);
    const body = element("tbody", {}, ...rows.map(([f, row]) => element("tr", {},
      element("th", { scope: "row" }, f.direction),
      ...[f.format, f.estimated ? "not measured" : shown(row, "nats"), shown(row, "percent"), test(row, "nats"), shown(row, "kl"), test(row, "kl"),
        beside(row, f, "ppl"), beside(row, f, "kl"),
        get(row, "top1") === null ? "" : `${(100 * get(row, "top1")).toFixed(1)}%`,
        ...(estimates ? [interval(get(row, "gradient"), get(row, "gradient_low"), get(row, "gradient_high"), true)] : []),
      ].map((text) => element("td", {}, ...cellText(text))))));
    const head = element("tr", {}, ...[...heads, ...(estimates ? ["estimate (first order), millinats"] : [])].map((text) => element("th", { scope: "col" }, text)));
    const parts = [element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of this cell" }, element("table", {}, element("thead", {}, head), body))];
    const input = data.activations.find((a) => a[0] === name && a[1] === block);
    if (input) {
      const ratios = data.activations.map((a) => a[4]).filter((v) => v !== null);
      const rank = 1 + ratios.filter((v) => v > input[4]).length;
      parts.push(element("p", {}, `What enters it, in full precision: max |x| ${number(input[2])}, P99.9 ${number(input[3])}, max / P99.9 ${number(input[4])}`
        + (input[4] === null ? "." : ` (number ${rank} of ${ratios.length} cells, the largest first).`)));
    } else parts.push(element("p", {}, "Its activations were not measured."));
    parts.push(element("p", { class: "note" }, "Differences are from the baseline (restore) or the reference (isolate), with 95% intervals; positive means that quantizing this costs. P is adjusted for all cells of the format and direction (Holm)."));
    byId("cell-title").textContent = `Block ${block}, ${name}`;
    byId("cell-body").replaceChildren(...parts);
    hideTip();
    byId("cell").showModal();
  }
  byId("cell").addEventListener("click", (event) => event.target === byId("cell") && byId("cell").close());

  // ---------------------------------------------------------------- activations

  function drawActivations() {
    const target = byId("chart-activations");
    if (!target) return;
    const lines = {};
    for (const [name, block, , , ratio] of data.activations) (lines[name] ??= []).push([block, ratio]);
    const inputs = {};
    for (const [name, points] of Object.entries(lines)) (inputs[JSON.stringify(points)] ??= []).push(name);
    const series = Object.entries(inputs).map(([points, names], i) => ({
      name: names.join(", "), cls: `f${i % 6}`, index: i,
      points: JSON.parse(points).filter(([, ratio]) => ratio > 0).map(([block, ratio]) => ({ block, y: ratio, low: null, high: null, text: `${names.join(", ")}: ${number(ratio)}` })),
    })).filter((s) => s.points.length);
    const values = series.flatMap((s) => s.points.map((p) => p.y));
    if (!values.length) return;
    const [low, high] = [Math.min(1, ...values), 1.2 * Math.max(...values)];
    const ticks = [];
    for (let t = 1; t <= high; t *= 10) ticks.push(t);
    target.replaceChildren(key(series), curves("max / P99.9 of the input", series, { scale: { low, high, map: Math.log10 }, ticks, zero: null, label: "logarithmic axis", width: Math.max(330, target.clientWidth), height: 280 }));
  }

  // ---------------------------------------------------------------- sorting

  function sortable(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, i) => {
      if (!head.textContent.trim()) return;
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") === "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const body = table.tBodies[table.tBodies.length - 1];
        const value = (row) => row.cells[i].dataset.v ?? row.cells[i].textContent;
        const rows = [...body.rows].sort((a, b) => compare(value(a), value(b), ascending ? 1 : -1));
        body.append(...rows);
        byId("live").textContent = `Sorted by ${button.textContent}, ${ascending ? "ascending" : "descending"}.`;
      });
    });
  }

  /** Numbers as numbers, the rest as text; what is empty always last. */
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
  }

  // ---------------------------------------------------------------- controls

  const families = [...data.units.components, ...data.units.cells];
  const AXES = ["direction", "operands", "format", "metric"];

  /** Whether there is data for a value of a control, given the controls before it. */
  function available(name, value) {
    const at = AXES.indexOf(name);
    const wanted = { ...state, [name]: value };
    const left = families.filter((f) => AXES.slice(0, Math.min(at + 1, 3)).every((axis) => !wanted[axis] || f[axis] === wanted[axis]));
    return name === "metric" ? left.some((f) => value === "nats" || !f.estimated) : left.length > 0;
  }

  /** Greys out what has no data, and moves controls that stand there to what has. */
  function settle() {
    for (const name of AXES) {
      const select = byId(name);
      for (const option of select.options) option.disabled = !available(name, option.value);
      if (!available(name, state[name])) state[name] = [...select.options].find((option) => !option.disabled).value;
      select.value = state[name];
    }
  }

  function fill(name, values, labels = {}) {
    const select = byId(name);
    select.replaceChildren(...values.map((value) => element("option", { value }, labels[value] ?? value)));
    select.addEventListener("change", () => {
      state[name] = select.value;
      settle();
      draw();
    });
  }

  function draw() {
    hideTip();
    if (byId("chart-components")) drawComponents();
    if (byId("chart-heat")) {
      drawHeat();
      drawCurves();
      drawCellTable();
    }
  }

  /** The direction and operands to begin with: those for which most levels have data, cells before components. */
  function first() {
    const has = (level, f) => data.units[level].some((g) => g.direction === f.direction && g.operands === f.operands);
    const score = (f) => 2 * has("cells", f) + has("components", f);
    return families.reduce((best, f) => (score(f) > score(best) ? f : best));
  }

  if (families.length) {
    const formats = unique(families.map((f) => f.format));
    const { direction, operands } = first();
    Object.assign(state, { direction, operands, format: formats.length > 1 ? "" : formats[0] });
    fill("format", formats.length > 1 ? ["", ...formats] : formats, { "": "all" });
    fill("direction", ["restore", "isolate"]);
    fill("operands", unique(families.map((f) => f.operands)));
    fill("metric", Object.keys(METRICS), Object.fromEntries(Object.keys(METRICS).map((m) => [m, METRICS[m].short])));
    settle();
    byId("operands-label").hidden = unique(families.map((f) => f.operands)).length < 2;
    byId("controls").hidden = false;
  }

  // ---------------------------------------------------------------- paper

  /** On paper nothing can be chosen: every direction is drawn, under its name. */
  function drawAll(id, level, charts) {
    const { direction } = state;
    const parts = unique(data.units[level].map((f) => f.direction)).flatMap((name) => {
      state.direction = name;
      const found = chosen(level);
      return found.length ? [element("div", { class: "printed" }, element("h4", {}, `${name[0].toUpperCase()}${name.slice(1)}`), element("p", {}, meaning(found)), ...charts(found))] : [];
    });
    state.direction = direction;
    byId(id)?.replaceChildren(...parts);
  }

  window.addEventListener("beforeprint", () => {
    for (const level of ["components", "cells"]) if (byId(`drawn-${level}`)) byId(`drawn-${level}`).hidden = !data.units[level].length;
    drawAll("chart-components", "components", componentCharts);
    drawAll("chart-heat", "cells", heatMaps);
    drawAll("chart-curves", "cells", depthCurves);
  });
  window.addEventListener("afterprint", draw);

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("all-cells")?.addEventListener("toggle", drawCellTable);
  document.querySelectorAll("table.sortable").forEach((table) => table.tHead && sortable(table));
  drawBaselines();
  drawActivations();
  draw();
})();
