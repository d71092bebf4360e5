// Plots: uPlot on a canvas, with the numbers in words for who cannot see it, and small ones of plain elements.
"use strict";

(() => {
  const { h } = AMR;
  AMR.live = new Set(); // plots on show, to be sized anew with the window

  // series: [{name, values, colour, dash, points, bars}] over x; numbers: rows for the table below the plot.
  AMR.plot = ({ title, x, series, xLabel, yLabel, height = 230, yRange, log, format = (v) => AMR.number(v), xFormat = (v) => AMR.number(v, 0), guide }) => {
    const box = h("div.plot", { role: "img", "aria-label": `${title}. The numbers follow in a table.` });
    const readout = h("p.readout", { "aria-hidden": "true" });
    const colours = series.map((one) => AMR.css(one.colour) || one.colour);
    const soft = AMR.css("--soft"), line = AMR.css("--line");
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: soft, font, labelFont: font, labelSize: 18, grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const options = {
      width: 300, height, legend: { show: true },
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
      scales: { x: { time: false, ...(log ? { distr: 3 } : {}) }, y: yRange ? { range: () => yRange } : {} },
      axes: [{ ...axis, label: xLabel, size: 32, values: (u, ticks) => ticks.map((v) => (v === null ? "" : xFormat(v))) },
        { ...axis, label: yLabel, size: 48, values: (u, ticks) => ticks.map((v) => format(v)) }],
      series: [{}, ...series.map((one, i) => ({
        label: one.name, stroke: colours[i], width: one.bars ? 0 : 2, dash: one.dash, spanGaps: true,
        fill: one.bars ? colours[i] : undefined,
        paths: one.bars ? uPlot.paths.bars({ size: [0.86, 60], radius: 0.12 }) : undefined,
        points: { show: !!one.points, size: 6, fill: colours[i] },
      }))],
      hooks: {
        setCursor: [(u) => {
          const i = u.cursor.idx;
          readout.textContent = i === null || i === undefined ? "" : [`${xLabel} ${xFormat(x[i])}`,
            ...series.filter((one) => one.values[i] !== null && one.values[i] !== undefined).map((one) => `${one.name} ${format(one.values[i])}`)].join(" · ");
        }],
        draw: guide ? [(u) => {
          const [from, to] = guide, c = u.ctx;
          c.save();
          c.strokeStyle = soft; c.setLineDash([3, 4]); c.lineWidth = devicePixelRatio;
          c.beginPath();
          c.moveTo(u.valToPos(from[0], "x", true), u.valToPos(from[1], "y", true));
          c.lineTo(u.valToPos(to[0], "x", true), u.valToPos(to[1], "y", true));
          c.stroke();
          c.restore();
        }] : [],
      },
    };
    let plot = null;
    const size = () => {
      const width = box.clientWidth;
      if (!width) return;
      if (plot) plot.setSize({ width, height });
      else plot = new uPlot({ ...options, width }, [x, ...series.map((one) => one.values)], box);
    };
    AMR.live.add(size);
    requestAnimationFrame(size);
    const head = [xLabel, ...series.map((one) => one.name)];
    const rows = x.map((v, i) => [AMR.value(v, xFormat(v)), ...series.map((one) => (one.values[i] === null || one.values[i] === undefined ? "–" : AMR.value(one.values[i], format(one.values[i]))))]);
    return h("figure", series.length > 1 ? AMR.key(series.map((one) => [one.name, one.colour, !one.bars, one.dash])) : null, box, readout,
      h("details", h("summary", "Numbers"), AMR.table(title, head, rows, { numeric: head.map((_, i) => i).slice(1) })));
  };

  AMR.key = (entries) => h("div.key", entries.map(([name, colour, line, dash]) => {
    const mark = h(line ? "i.line" : "i"), ink = colour.startsWith("--") ? `var(${colour})` : colour;
    mark.style.background = dash ? `repeating-linear-gradient(90deg, ${ink} 0 ${dash[0] + 1}px, transparent 0 ${dash[0] + dash[1]}px)` : ink; // as the line
    return h("span", mark, name);
  }));

  // Shares of modalities as one bar.
  AMR.shares = (modalities, shares, { thin = false } = {}) => {
    const told = modalities.map((m, i) => `${m} ${AMR.percent(shares[i], 0)}`).join(", ");
    if (!Array.from(shares).every(Number.isFinite)) return h("span.quiet", "–");
    return h(thin ? "div.shares.thin" : "div.shares", { role: "img", "aria-label": told, title: told }, modalities.map((m, i) =>
      h("span", { style: { width: `${100 * shares[i]}%`, background: AMR.modalityColour(i) } }, thin || shares[i] < 0.1 ? null : shares[i] < 0.3 ? AMR.percent(shares[i], 0) : `${m} ${AMR.percent(shares[i], 0)}`)));
  };

  // rows: [name, value in 0..1 of the whole track, text, colour?, address?]
  AMR.bars = (rows) => h("div.bars", rows.map(([name, part, text, colour, address]) => [
    h("span.name", { title: name }, address ? h("a", { href: address }, name) : name),
    h("span.track", h("span.fill", { style: { width: `${100 * Math.max(0, Math.min(1, part))}%`, display: "block", ...(colour ? { background: colour } : {}) } })),
    h("span.tab.small", text)]));

  // A value with its interval on a scale.
  AMR.interval = (value, low, high, from = -1, to = 1) => {
    const at = (v) => 6 + 138 * ((Math.max(from, Math.min(to, v)) - from) / (to - from));
    const end = (v) => (Number.isFinite(v) ? String(v) : "");
    return h("svg.interval", { "data-low": end(low), "data-high": end(high), viewBox: "0 0 150 16", role: "img", "aria-label": `${AMR.number(value)}, interval ${AMR.number(low)} to ${AMR.number(high)}` },
      h("line", { x1: 6, x2: 144, y1: 8, y2: 8 }),
      from < 0 && to > 0 ? h("line.zero", { x1: at(0), x2: at(0), y1: 1, y2: 15 }) : null,
      Number.isFinite(low) && Number.isFinite(high) ? h("line.span", { x1: at(low), x2: at(high), y1: 8, y2: 8 }) : null,
      Number.isFinite(value) ? h("circle", { cx: at(value), cy: 8, r: 4 }) : null);
  };

  AMR.card = (size, title, about, ...content) => h(size ? `section.card.${size}` : "section.card", h("header", h("h2", title), about ? h("p", about) : null), ...content);
})();
