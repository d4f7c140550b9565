// Draws the charts of report.html from the JSON block in it, where every number has its text.
// No library, nothing is fetched.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const column = Object.fromEntries(data.columns.map((name, i) => [name, i]));
  const head = Object.fromEntries(data.heads.map(([name], i) => [name, i]));
  const METRICS = data.metrics;
  const state = { format: "", direction: "", metric: "nats", precision: "", scale: "shared" };

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

  /** What stands in a table's cell: an interval on a line of its own. */
  function cellText(text) {
    const [value, ends] = text.split(" [");
    return ends ? [value, " ", element("span", { class: "ci" }, `[${ends}`)] : [text];
  }

  const get = (row, name) => row[column[name]];
  const text = (row, name) => get(row, "texts")[head[name]] ?? "";
  const blockName = (b) => (data.layer_types[b] ? `block ${b} (${data.layer_types[b].replaceAll("_", " ")})` : `block ${b}`);
  const where = (row) => `${blockName(get(row, "block"))}, ${get(row, "projection")}`;
  const formatClass = (name) => `f${data.formats.indexOf(name) < 0 ? 5 : data.formats.indexOf(name) % 6}`;
  const kinds = Object.fromEntries(data.projections.map((c) => [c.name, c.kind]));
  // What works on each token alone has one colour, and each kind a mark of its own.
  const kindClasses = { MLP: "mlp", attention: "attention", "routed experts": "mlp", "shared expert": "mlp" };
  const kindOrder = unique([...Object.keys(kindClasses), ...Object.values(kinds).filter(Boolean), null]);
  const kindClass = (kind) => kindClasses[kind] || "other";

  /** The chosen direction, or where a level was measured in another one alone, that. */
  const directionOf = (level) => {
    const there = unique(data.units[level].map((f) => f.direction));
    return there.length === 1 ? there[0] : state.direction;
  };

  /** The families of a level that the controls choose. */
  const chosen = (level) =>
    data.units[level].filter(
      (f) => f.direction === directionOf(level) && f.precision === state.precision && (!state.format || f.format === state.format),
    );

  /** What a metric says quantizing costs, as colours show it. */
  const cost = (row, metric) => get(row, metric === "ppl" ? "delta_ppl" : metric);

  /** What the controls choose, as Python has described it; `format`: of one format alone. */
  const view = (level, format = state.format) =>
    data.views[level][[directionOf(level), state.precision, format].join("|")]?.[state.metric];

  /** Tested by the chosen metric's own test, and not significant. */
  const isMuted = (row) => get(row, state.metric === "kl" ? "muted_kl" : "muted");

  function certainty(row) {
    if (!text(row, state.metric === "kl" ? "p_holm_kl" : "p_holm")) return "";
    return isMuted(row) ? "not significant" : "significant";
  }

  /** A value as a tooltip has it, with its unit; beside the loss the difference of KL. */
  function told(row) {
    const own = get(row, "texts")[head[state.metric]] || text(row, "gradient");
    const beside = state.metric === "kl" ? "nats" : "kl";
    const other = text(row, beside) && `; ${text(row, beside)} ${METRICS[beside].unit}`;
    return `${own} ${METRICS[state.metric].unit}${other}`;
  }

  /** Linear near zero, logarithmic beyond `threshold`, odd. */
  const symlog = (threshold) => (x) => Math.sign(x) * Math.log10(1 + Math.abs(x) / threshold);

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
  byId("layer").addEventListener("close", () => requestAnimationFrame(hideTip));
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
  function dots(title, rows, { label, zero, axis }) {
    const left = Math.min(200, 18 + 7 * Math.max(...rows.map((r) => r.label.length)));
    const width = 360;
    const step = 24;
    const height = step * rows.length + 40;
    const { low, high } = axis;
    const x = (v) => left + ((v - low) / (high - low || 1)) * (width - left - 14);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${rows.map((r) => r.text).join("; ")}` });
    for (const [tick, said] of axis.ticks) {
      svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: 4, y2: height - 34, class: "grid" }));
      svg.append(shape("text", { x: x(tick), y: height - 20, "text-anchor": "middle" }, said));
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

  // ---------------------------------------------------------------- curves over depth

  /**
   * A panel whose pointer and arrow keys move over the blocks, or over what `names` names instead.
   * `series`: {name, cls, index, points: [{block, y, low, high, muted, text}]}.
   */
  function curves(title, series, { axis, map, zero, label, width = 350, height = 190, choose, names, across = "block" }) {
    const left = 46;
    const bottom = height - 32;
    const blocks = unique(series.flatMap((s) => s.points.map((p) => p.block))).sort((a, b) => a - b);
    const [first, last] = [blocks[0], blocks[blocks.length - 1]];
    const [low, high] = [map(axis.low), map(axis.high)];
    const x = (b) => (first === last ? (left + width) / 2 : left + 6 + ((b - first) / (last - first)) * (width - left - 16));
    const y = (v) => bottom - ((map(v) - low) / (high - low || 1)) * (bottom - 8);
    const svg = shape("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "slider", tabindex: "0", "aria-label": `${title} over ${names ? across : "depth"}, ${label}; ${across}`,
      "aria-valuemin": first, "aria-valuemax": last, "aria-valuenow": first,
    });
    let above = Infinity;
    for (const [tick, said] of axis.ticks) {
      svg.append(shape("line", { x1: left, x2: width, y1: y(tick), y2: y(tick), class: "grid" }));
      if (above - y(tick) < 13) continue;
      above = y(tick);
      svg.append(shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, said));
    }
    if (zero !== null && axis.low <= zero && zero <= axis.high) {
      svg.append(shape("line", { x1: left, x2: width, y1: y(zero), y2: y(zero), class: "axis" }));
    }
    const room = names ? 6 + 7 * Math.max(...names.map((name) => name.length)) : 26;
    const every = Math.ceil((blocks.length * room) / (width - left));
    blocks.forEach((b, i) => i % every || svg.append(shape("text", { x: x(b), y: bottom + 15, "text-anchor": names && b === last ? "end" : "middle" }, names ? names[b] : String(b))));
    svg.append(shape("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, across));
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
      const text = [`${title}, ${names ? `${across} ${names[block]}` : blockName(block)}`, ...lines].join("\n");
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

  /** Above a chart: what it shows, or what there is instead; what belongs to an empty one is hidden. */
  function caption(level, charts) {
    const there = unique(data.units[level].map((f) => [f.direction, f.precision].join(", ")));
    const other = directionOf(level) !== state.direction;
    const alone = other ? `Of ${level} there is ${directionOf(level)} alone. ` : "";
    byId(`said-${level}`).textContent = charts.length ? alone + view(level).said
      : `No ${level} were measured for ${state.direction}, ${state.precision}${state.format && `, ${state.format}`}; there is ${there.join("; ")}.`;
    byId(`drawn-${level}`).hidden = !charts.length;
  }

  const precisionClass = (name, of) => `f${of.indexOf(name) % 6}`;

  /** A line for each format or recipe, on it a mark for each precision. */
  function drawAllQuantized() {
    const whole = data.all_quantized;
    if (!whole) return;
    const place = byId("chart-all-quantized");
    const width = Math.max(300, place.clientWidth || 720);
    const left = Math.min(0.4 * width, 18 + 7 * Math.max(...whole.rows.map((r) => r.format.length)));
    const step = 26;
    const height = step * whole.rows.length + 40;
    const { low, high, ticks } = whole.axis;
    const x = (v) => left + ((v - low) / (high - low || 1)) * (width - left - 14);
    const every = whole.rows.flatMap((r) => r.marks.map((m) => m.text));
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${whole.title}: ${every.join("; ")}` });
    for (const [tick, said] of ticks) {
      svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: 4, y2: height - 34, class: tick ? "grid" : "axis" }));
      svg.append(shape("text", { x: x(tick), y: height - 20, "text-anchor": "middle" }, said));
    }
    svg.append(shape("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, METRICS.nats.label));
    whole.rows.forEach((row, i) => {
      const y = step * i + 16;
      const [first, last] = [Math.min(...row.marks.map((m) => m.value)), Math.max(...row.marks.map((m) => m.value))];
      svg.append(shape("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: "name" }, row.format));
      svg.append(shape("line", { x1: x(first), x2: x(last), y1: y, y2: y, class: "grid" }));
      for (const m of row.marks) {
        const group = shape("g", { class: precisionClass(m.precision, whole.precisions), "data-tip": m.text });
        if (m.low !== null) group.append(shape("path", { d: `M${x(m.low)},${y}H${x(m.high)}M${x(m.low)},${y - 4}v8M${x(m.high)},${y - 4}v8`, class: "whisker" }));
        group.append(shape("rect", { x: x(m.value) - 9, y: y - 9, width: 18, height: 18, fill: "transparent" }));
        group.append(mark(x(m.value), y, whole.precisions.indexOf(m.precision), "mark"));
        svg.append(group);
      }
    });
    const entries = whole.precisions.map((name, index) => ({ name, index, cls: precisionClass(name, whole.precisions) }));
    place.replaceChildren(element("h4", {}, whole.title), ...(entries.length > 1 ? [key(entries)] : []), svg);
  }

  /** Bits of the model against KL on a logarithmic axis. */
  function drawPareto() {
    if (!data.pareto) return;
    const { points, x: across, y: up } = data.pareto;
    const [width, height, left] = [440, 270, 46];
    const bottom = height - 38;
    const log = Math.log10;
    const x = (v) => left + ((v - across.low) / (across.high - across.low || 1)) * (width - left - 16);
    const y = (v) => bottom - ((log(v) - log(up.low)) / (log(up.high) - log(up.low) || 1)) * (bottom - 8);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Bits against KL: ${points.map((p) => p.text).join("; ")}` });
    for (const [tick, said] of across.ticks) svg.append(shape("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, said));
    for (const [tick, said] of up.ticks) {
      svg.append(shape("line", { x1: left, x2: width, y1: y(tick), y2: y(tick), class: "grid" }));
      svg.append(shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, said));
    }
    svg.append(shape("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "bits of the model"));
    const front = points.filter((p) => p.kind === "predicted").sort((a, b) => a.x - b.x);
    if (front.length > 1) svg.append(shape("polyline", { points: front.map((p) => `${x(p.x)},${y(p.y)}`).join(" "), class: "curve other" }));
    const kindNames = unique(points.map((p) => p.kind));
    const looks = { format: ["f0", 0], recipe: ["f1", 1], predicted: ["other", 2] };
    for (const p of points) {
      const [cls, index] = looks[p.kind];
      const group = shape("g", { class: cls, "data-tip": p.text });
      group.append(mark(x(p.x), y(p.y), index, `mark${p.kind === "predicted" ? " muted" : ""}`));
      svg.append(group);
    }
    const entries = kindNames.map((name) => ({ name: name === "predicted" ? "recipe, predicted" : `${name}, measured`, cls: looks[name][0], index: looks[name][1] }));
    byId("chart-pareto").replaceChildren(element("h4", {}, "Bits against damage: KL, millinats per token"), key(entries), svg);
  }

  function drawProjections() {
    const families = chosen("projections");
    const charts = projectionCharts(families);
    caption("projections", charts);
    byId("chart-projections").replaceChildren(...charts);
  }

  function projectionCharts(families) {
    const metric = METRICS[state.metric];
    const charts = families.filter(() => view("projections")).map((f) => {
      const rows = f.rows.slice().sort((a, b) => (cost(b, state.metric) ?? 0) - (cost(a, state.metric) ?? 0)).map((row) => {
        const name = get(row, "projection");
        return {
          label: name, cls: kindClass(kinds[name]), index: kindOrder.indexOf(kinds[name]), muted: isMuted(row),
          value: get(row, state.metric), low: get(row, `${state.metric}_low`), high: get(row, `${state.metric}_high`),
          text: `${name}, ${f.format}: ${told(row)}`,
        };
      });
      const { axis, zero } = view("projections", metric.signed ? state.format : f.format);
      const label = metric.signed ? metric.label : `${metric.label} (line: ${f.control.name})`;
      return dots(f.format, rows, { label, zero, axis });
    });
    const shownKinds = unique(families.flatMap((f) => f.rows.map((row) => kinds[get(row, "projection")])));
    const entries = kindOrder.filter((kind) => shownKinds.includes(kind))
      .map((kind) => ({ name: kind || "other", cls: kindClass(kind), index: kindOrder.indexOf(kind) }));
    return charts.length ? [key(entries), panels(charts)] : [];
  }

  function drawHeat() {
    const target = byId("chart-heat");
    const maps = heatMaps(chosen("layers"));
    caption("layers", maps);
    const focused = document.activeElement?.dataset?.layer;
    target.replaceChildren(...maps);
    if (focused) target.querySelector(`[data-layer="${CSS.escape(focused)}"]`)?.focus();
  }

  function heatMaps(families) {
    const scaleOf = (format) => {
      const colours = view("layers", format)?.colours;
      if (!colours) return null;
      const map = symlog(colours.linear);
      // What is significant is never as pale as nothing.
      const size = (value) => (value ? 0.12 + 0.88 * Math.min(1, Math.abs(map(value)) / map(colours.peak)) : 0);
      return { ticks: colours.ticks, size };
    };
    if (state.scale === "own") {
      return families.map((f) => [f, scaleOf(f.format)]).filter(([, s]) => s).flatMap(([f, s]) => [heat(f, s.size), legend(s.ticks, s.size)]);
    }
    const shared = scaleOf(state.format);
    return shared ? [legend(shared.ticks, shared.size), ...families.map((f) => heat(f, shared.size))] : [];
  }

  function legend(ticks, size) {
    const { what, unit } = METRICS[state.metric];
    const list = element("ol");
    for (const [value, said] of ticks) {
      const swatch = element("i", { class: value < 0 ? "down" : "up" });
      swatch.style.setProperty("--size", size(value));
      list.append(element("li", {}, swatch, element("span", {}, said)));
    }
    return element("div", { class: "scale" }, `${what} falls`, list, `${what} rises when this is quantized (${unit})`,
      element("i", { class: "muted" }), "not significant");
  }

  function heat(f, size) {
    const blocks = unique(f.rows.map((row) => get(row, "block"))).sort((a, b) => a - b);
    const names = unique(f.rows.map((row) => get(row, "projection")));
    const at = Object.fromEntries(f.rows.map((row) => [`${get(row, "block")}.${get(row, "projection")}`, row]));
    const table = element("table", {}, element("caption", { class: "hidden" }, `Every layer of ${f.format}, ${f.direction}: projections down, blocks across`));
    table.style.setProperty("--blocks", blocks.length);
    table.style.setProperty("--names", `max(94px, ${Math.max(...names.map((name) => name.length))}ch)`);
    const head = element("tr", {}, element("th", { scope: "col" }, "block"), ...blocks.map((b) => element("th", { scope: "col" }, String(b))));
    const body = element("tbody");
    for (const name of names) {
      const line = element("tr", {}, element("th", { scope: "row" }, name));
      for (const b of blocks) {
        const row = at[`${b}.${name}`];
        const place = element("td");
        const value = row ? cost(row, state.metric) : null;
        if (value !== null) {
          const said = `${where(row)}: ${told(row)}`;
          const more = [f.format, certainty(row)].filter(Boolean).join(", ");
          const button = element("button", {
            type: "button", class: `${value < 0 ? "down" : "up"}${isMuted(row) ? " muted" : ""}`, tabindex: "-1",
            "aria-label": `${said}, ${more}`, "data-tip": `${said}\n${more}`, "data-layer": `${f.format}|${b}|${name}`,
          });
          button.style.setProperty("--size", size(value).toFixed(3));
          button.addEventListener("click", () => openLayer(name, b));
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
    const families = chosen("layers");
    const metric = METRICS[state.metric];
    byId("chart-curves").replaceChildren(...depthCurves(families));
    byId("said-curves").textContent = `${metric.label[0].toUpperCase()}${metric.label.slice(1)}, one panel for each projection${metric.signed ? "" : " and format"}, all on one scale${metric.signed ? "" : " within a format"}.`;
    byId("note-curves").textContent = [
      metric.log ? "The axis is linear near zero and logarithmic beyond." : "The axis is linear.",
      metric.signed ? "" : `The dark line is the ${families[0]?.control.name}.`,
      `Bands are 95% intervals; hollow marks: the difference of the ${metric.what} is not significant.`,
      "Pointer or arrow keys read the values; press for the layer's numbers.",
    ].filter(Boolean).join(" ");
  }

  function depthCurves(families) {
    const metric = METRICS[state.metric];
    // Differences of several formats go on one axis; raw values have a panel for each format.
    const groups = metric.signed ? [families] : families.map((f) => [f]);
    const names = unique(families.flatMap((f) => f.rows.map((row) => get(row, "projection"))));
    const charts = [];
    for (const group of groups) {
      const shown = group.length && view("layers", metric.signed ? state.format : group[0].format);
      if (!shown) continue;
      const { depth: axis, zero } = shown;
      const map = axis.linear ? symlog(axis.linear) : (v) => v;
      for (const name of names) {
        const series = group.map((f) => ({
          name: f.format, cls: formatClass(f.format), index: data.formats.indexOf(f.format),
          points: f.rows.filter((row) => get(row, "projection") === name).map((row) => ({
            block: get(row, "block"), y: get(row, state.metric), low: get(row, `${state.metric}_low`), high: get(row, `${state.metric}_high`),
            muted: isMuted(row), text: `${f.format}: ${told(row)}`,
          })).sort((a, b) => a.block - b.block),
        })).filter((s) => s.points.length);
        if (!series.length) continue;
        const title = metric.signed ? name : `${name}, ${group[0].format}`;
        charts.push(curves(title, series, { axis, map, zero, label: metric.label, choose: (block) => openLayer(name, block) }));
      }
    }
    return charts.length ? [key(families.map((f) => ({ name: f.format, cls: formatClass(f.format), index: data.formats.indexOf(f.format) }))), panels(charts)] : [];
  }

  // ---------------------------------------------------------------- tables of layers

  /** A table of rows [names, texts], with the columns that have anything in them. */
  function layerTable(table, names, rows) {
    const kept = data.heads.map((_, i) => i).filter((i) => rows.some(([, texts]) => texts[i]));
    const heads = [...names, ...kept.map((i) => data.heads[i][1])];
    const lines = rows.map(([first, texts]) => element("tr", {}, ...[...first, ...kept.map((i) => texts[i])].map((said, i) =>
      element(i ? "td" : "th", { scope: i ? null : "row" }, ...cellText(String(said))))));
    table.replaceChildren(element("thead", {}, element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)))), element("tbody", {}, ...lines));
    return table;
  }

  /** The layers that the controls and the filter choose, the most costly first. */
  function listedLayers() {
    const words = byId("layer-filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const rows = chosen("layers").flatMap((f) => f.rows.map((row) => [f, row]));
    return rows.filter(([f, row]) => {
      const name = `${get(row, "block")}.${get(row, "projection")} ${pathOf(row)} ${f.format}`.toLowerCase();
      return words.every((word) => name.includes(word));
    }).sort((a, b) => (cost(b[1], state.metric) ?? 0) - (cost(a[1], state.metric) ?? 0));
  }

  const pathOf = (row) => data.paths[`${get(row, "block")}|${get(row, "projection")}`] ?? "";

  function drawLayerTable() {
    const table = byId("layer-table");
    if (!byId("all-layers").open) return table.replaceChildren();
    const rows = listedLayers();
    const named = rows.some(([, row]) => pathOf(row));
    const names = ["block", "projection", ...(named ? ["module"] : []), "format", "direction"];
    sortable(layerTable(table, names, rows.map(([f, row]) => [
      [get(row, "block"), get(row, "projection"), ...(named ? [pathOf(row)] : []), f.format, f.direction], get(row, "texts"),
    ])));
    byId("layer-count").textContent = `${rows.length} layers`;
  }

  /** A field of CSV; no name is a formula. */
  function field(value) {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^\s*[=+\-@]/.test(text) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function layersAsCsv() {
    const numbers = data.columns.filter((name) => !["projection", "block", "muted", "muted_kl", "texts"].includes(name));
    const head = ["module", "block", "projection", "format", "precision", "direction", "significant", ...numbers];
    const lines = listedLayers().map(([f, row]) => [
      pathOf(row), get(row, "block"), get(row, "projection"), f.format, f.precision, f.direction, !get(row, "muted"), ...numbers.map((name) => get(row, name)),
    ]);
    return [head, ...lines].map((line) => line.map(field).join(",")).join("\n") + "\n";
  }

  async function copyLayers() {
    const text = layersAsCsv();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", { class: "hidden" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    byId("layer-count").textContent = `${text.split("\n").length - 2} layers copied`;
  }

  function openLayer(name, block) {
    const rows = data.units.layers
      .filter((f) => f.precision === state.precision)
      .flatMap((f) => f.rows.filter((row) => get(row, "projection") === name && get(row, "block") === block).map((row) => [[f.direction, f.format], get(row, "texts")]));
    const input = data.activations.said[`${block}|${name}`];
    byId("layer-title").textContent = `Block ${block}, ${name}`;
    byId("layer-path").textContent = data.paths[`${block}|${name}`] ?? "";
    byId("layer-body").replaceChildren(
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of this layer" }, layerTable(element("table"), ["direction", "format"], rows)),
      element("p", {}, input ? `What enters it, in full precision: ${input}.` : "Its activations were not measured."),
      element("p", { class: "note" }, "Differences are from the all-quantized model (keep) or the full-precision model (only), with 95% intervals; positive means that quantizing this costs. P is adjusted for all layers of the format and direction (Holm)."),
    );
    hideTip();
    byId("layer").showModal();
  }
  byId("layer").addEventListener("click", (event) => event.target === byId("layer") && byId("layer").close());

  // ---------------------------------------------------------------- activations

  function drawActivations() {
    const target = byId("chart-activations");
    const { curves: inputs, axis } = data.activations;
    if (!target || !inputs.length) return;
    const series = inputs.map(([name, points], i) => ({
      name, cls: `f${i % 6}`, index: i,
      points: points.map(([block, y, said]) => ({ block, y, low: null, high: null, text: `${name}: ${said}` })),
    }));
    target.replaceChildren(key(series), curves("max / P99.9 of the input", series, { axis, map: Math.log10, zero: null, label: "logarithmic axis", width: Math.max(330, target.clientWidth), height: 280 }));
  }

  // ---------------------------------------------------------------- positions

  function drawPositions() {
    const target = byId("chart-positions");
    if (!target) return;
    const { names, lines, axis } = data.positions;
    const series = lines.map(([name, points], i) => ({
      name, cls: `f${i % 6}`, index: i,
      points: points.map(([y, low, high, said], block) => ({ block, y, low, high, text: `${name}: ${said}` })),
    }));
    const options = { names, across: "tokens in front of the target", axis, map: Math.log10, zero: null, label: "logarithmic axis" };
    target.replaceChildren(key(series), curves("KL along the window, millinats per token", series, { ...options, width: Math.max(330, target.clientWidth), height: 280 }));
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
        const value = (row) => row.cells[i].dataset.v ?? plain(row.cells[i].textContent);
        const rows = [...body.rows].sort((a, b) => compare(value(a), value(b), ascending ? 1 : -1));
        body.append(...rows);
        byId("live").textContent = `Sorted by ${button.textContent}, ${ascending ? "ascending" : "descending"}.`;
      });
    });
  }

  /** What a cell without a value of its own sorts by: its number, without interval and unit. */
  const plain = (text) => text.replace("−", "-").replace(/^[<+]|( \[.*| \(no interval\)|%)+$/g, "");

  /** Numbers as numbers, the rest as text; what is empty always last. */
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
  }

  // ---------------------------------------------------------------- controls

  const families = [...data.units.projections, ...data.units.layers];
  const AXES = ["direction", "precision", "format", "metric"];

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
      remember();
      draw();
    });
  }

  /** What the controls show stands in the address, so that a view can be sent. */
  function remember() {
    const shown = new URLSearchParams([...AXES, "scale"].filter((name) => state[name]).map((name) => [name, state[name]]));
    try {
      history.replaceState(null, "", `#${shown}`);
    } catch {
      // An address that may not change: the view is lost with the page.
    }
  }

  /** The view that the address names, as far as there is such a one. */
  function restore() {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const select = [...AXES, "scale"].includes(name) ? byId(name) : null;
      if (select && [...select.options].some((option) => option.value === value)) state[name] = value;
    }
    byId("scale").value = state.scale;
  }

  /** A link to what is folded opens it. */
  function unfold() {
    const target = location.hash.includes("=") ? null : byId(decodeURIComponent(location.hash.slice(1)));
    const folded = target?.closest("details");
    if (!folded || folded.open) return;
    folded.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", () => {
    unfold();
    if (families.length && location.hash.includes("=")) {
      restore();
      settle();
      draw();
    }
  });

  function draw() {
    hideTip();
    if (byId("chart-projections")) drawProjections();
    if (byId("chart-heat")) {
      drawHeat();
      drawCurves();
      drawLayerTable();
    }
  }

  /** The direction and precision to begin with: those for which most levels have data, layers before projections. */
  function first() {
    const has = (level, f) => data.units[level].some((g) => g.direction === f.direction && g.precision === f.precision);
    const score = (f) => 2 * has("layers", f) + has("projections", f);
    return families.reduce((best, f) => (score(f) > score(best) ? f : best));
  }

  if (families.length) {
    const formats = unique(families.map((f) => f.format));
    const { direction, precision } = first();
    Object.assign(state, { direction, precision, format: formats.length > 1 ? "" : formats[0] });
    fill("format", formats.length > 1 ? ["", ...formats] : formats, { "": "all" });
    fill("direction", ["keep", "only"]);
    fill("precision", unique(families.map((f) => f.precision)));
    fill("metric", Object.keys(METRICS), Object.fromEntries(Object.keys(METRICS).map((m) => [m, METRICS[m].short])));
    fill("scale", ["shared", "own"], { shared: "one scale", own: "each format's own" });
    byId("scale-label").hidden = formats.length < 2;
    restore();
    settle();
    byId("precision-label").hidden = unique(families.map((f) => f.precision)).length < 2;
    byId("controls").hidden = false;
  }

  // ---------------------------------------------------------------- paper

  /** On paper nothing can be chosen: every direction is drawn, under its name. */
  function drawAll(id, level, charts) {
    const { direction } = state;
    const parts = unique(data.units[level].map((f) => f.direction)).flatMap((name) => {
      state.direction = name;
      const found = chosen(level);
      return found.length ? [element("div", { class: "printed" }, element("h4", {}, `${name[0].toUpperCase()}${name.slice(1)}`), element("p", {}, view(level)?.said ?? ""), ...charts(found))] : [];
    });
    state.direction = direction;
    byId(id)?.replaceChildren(...parts);
  }

  let unfolded = [];
  window.addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details.folded:not([open])")];
    for (const folded of unfolded) folded.open = true;
    for (const level of ["projections", "layers"]) if (byId(`drawn-${level}`)) byId(`drawn-${level}`).hidden = !data.units[level].length;
    drawAll("chart-projections", "projections", projectionCharts);
    drawAll("chart-heat", "layers", heatMaps);
    drawAll("chart-curves", "layers", depthCurves);
  });
  window.addEventListener("afterprint", () => {
    for (const folded of unfolded) folded.open = false;
    draw();
  });

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("all-layers")?.addEventListener("toggle", drawLayerTable);
  byId("layer-filter")?.addEventListener("input", drawLayerTable);
  byId("layer-copy")?.addEventListener("click", copyLayers);
  document.querySelectorAll("table.sortable").forEach((table) => table.tHead && sortable(table));
  drawAllQuantized();
  drawPareto();
  drawActivations();
  drawPositions();
  draw();
  unfold();
})();
