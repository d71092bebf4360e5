// One clip: what was heard and seen, what was decided, and on what it rests.
"use strict";

(() => {
  const { h } = AMR;

  AMR.position = (slug) => { const i = AMR.site.clips.slug.indexOf(slug); if (i < 0) throw new Error(`no clip has the address ${slug}`); return i; };

  // Chips and neighbours at the top of a clip's page.
  AMR.clipHead = (i, r, view, query) => {
    const { clips, runs } = AMR.site, run = runs[r], column = clips.runs[r];
    const order = (AMR.order.length && AMR.order.includes(i) ? AMR.order : clips.id.map((_, n) => n)).filter((n) => column.explained[n]);
    const at = order.indexOf(i);
    const go = (n) => (order[n] === undefined || at < 0 ? null : AMR.address.make([view, clips.slug[order[n]]], query));
    const arrow = (name, text, href) => h("a.btn", href ? { href, "data-go": name } : { "aria-disabled": "true", role: "link" }, name === "previous" ? AMR.icon("left") : null, text, name === "next" ? AMR.icon("right") : null);
    const right = AMR.isRight(r, i);
    return [h("p.crumb", h("a", { href: "#/clips" }, "Clips"), at >= 0 ? ` · ${at + 1} of ${order.length} explained` : ""),
      h("div.head", h("h1", clips.id[i]),
        column.predicted[i] < 0 ? h("span.chip", "not in this analysis") : [h("span.chip", `true: ${AMR.truly(i)}`),
          h(right ? "span.chip.good" : "span.chip.bad", AMR.icon(right ? "check" : "cross"), `${AMR.said(run)}: ${run.labels[column.predicted[i]]}`),
          column.error[i] >= 0 ? h("span.chip.warned", `error: ${column.errors[column.error[i]]}`) : null],
        h("div.end", arrow("previous", "Previous", go(at - 1)), arrow("next", "Next", go(at + 1))))];
  };

  AMR.unexplained = (main, i, r) => {
    const { clips, runs } = AMR.site, column = clips.runs[r], run = runs[r];
    main.append(h("div.grid",
      AMR.card("w6", "Decision", null, AMR.bars(column.top[i].map((c, n) => [run.labels[c], column.top_p[i][n], AMR.percent(column.top_p[i][n])])),
        h("p.label", "Shares of the attribution"), AMR.shares(run.modalities, column.shares.subarray(i * run.modalities.length, (i + 1) * run.modalities.length))),
      AMR.card("w6", "No maps", null, h("p", `This clip is not among the ${run.explained} that were explained. amr analyze explains more with --clips.`),
        h("p", h("a", { href: "#/clips?maps=yes" }, "Explained clips")))));
  };

  // Methods of a modality's maps in a clip: [value, text, disabled, stage].
  AMR.methodsOf = (run, data) => run.methods.filter((one) => ["U", "D"].includes(one.stage) && run.modalities.some((m) => data[one.stage][m]?.[one.method]));

  AMR.valuesOf = (run, data, modality, method, k) => {
    const known = run.methods.find((one) => ["U", "D"].includes(one.stage) && one.method === method);
    const map = known && data[known.stage][modality]?.[method];
    const spread = map && (map.h || map.e); // half a 95 % interval or, where it is not known, a standard error
    return map ? { values: AMR.row(map.v, k), errors: spread ? AMR.row(spread, k) : null, sure: Boolean(map.h), atoms: known.atoms || "fine", unit: known.unit, stage: known.stage } : null;
  };

  AMR.clip = async (main, [slug], query) => {
    const { clips, runs } = AMR.site;
    const i = AMR.position(slug), r = Math.min(runs.length - 1, Number(query.run) || 0), run = runs[r];
    main.append(...AMR.clipHead(i, r, "clip", { ...query, atom: undefined }));
    const runSelect = runs.length > 1 ? AMR.select("Model", runs.map((one, n) => [n, one.name]), r, (v) => { location.hash = AMR.address.make(["clip", slug], { ...query, run: v === "0" ? undefined : v }); }) : null;
    if (!clips.runs[r].explained[i]) {
      if (runSelect) main.append(h("div.tools", runSelect));
      AMR.unexplained(main, i, r);
      return;
    }
    const data = await AMR.load(`${r}/clips/${slug}`);
    const methods = AMR.methodsOf(run, data);
    const state = { ...query };
    const named = data.classes.findIndex((c) => run.labels[c] === query.class);
    let k = Math.max(0, named), method = methods.some((one) => one.method === query.method) ? query.method : preferred(run, methods);
    let strength = query.strength === undefined ? 0.75 : Number(query.strength) / 100;
    const player = AMR.player(i), truth = data.labels || [data.label], odds = probabilities(run, data.logits);
    const redraw = []; // what follows the class
    const note = () => AMR.address.note(state);

    const aim = (index) => {
      k = index;
      state.class = k === 0 ? undefined : run.labels[data.classes[k]];
      note();
      classes.querySelector("select").value = String(k);
      redraw.forEach((one) => one());
      AMR.say(`Maps are of ${run.labels[data.classes[k]]}`);
    };
    const classes = AMR.select("Maps explain the class", data.classes.map((c, n) => [n, `${run.labels[c]}${c === data.predicted ? ` (${AMR.said(run)})` : truth.includes(c) ? " (true)" : ""}`]), k, (v) => aim(Number(v)));
    const chooser = AMR.select("Method", methods.map((one) => [one.method, one.title]), method, (v) => { method = v; state.method = v; note(); redraw.forEach((one) => one()); });
    const slider = h("input", { type: "range", min: 0, max: 100, value: Math.round(100 * strength), id: AMR.id("o"), oninput: () => { strength = Number(slider.value) / 100; state.strength = slider.value; note(); redraw.forEach((one) => one()); } });
    main.append(h("div.tools", { role: "group", "aria-label": "What the maps show" }, runSelect, classes, chooser, h("div.field", h("label", { for: slider.id }, "Strength of the map"), slider)));
    AMR.keys = { ...AMR.keys, " ": () => player.toggle(), m: () => cycle(chooser), c: () => cycle(classes) };

    // ---- watch
    const maps = run.modalities.map((m) => {
      const view = AMR.mapView({ run, modality: m, data, title: m, seek: player.seek, start: player.start });
      const says = h("div");
      player.follow(view);
      redraw.push(() => {
        const one = AMR.valuesOf(run, data, m, method, k);
        if (one) view.show({ ...one, strength, named: `${method} ${run.labels[data.classes[k]]}` }); else view.show({ values: null });
        says.replaceChildren(one ? AMR.says(run, { stage: one.stage, method, modality: m, of: `for ${run.labels[data.classes[k]]}`, top: AMR.top(one.values) }) : h("p.note", "This method has no map of this modality."), one ? AMR.strongest(run, m, one, data) : "");
      });
      return h("div", view.element, says);
    });
    const watch = h("section.card.w8", h("h2.hidden", "The clip, with maps"), h("div.stage", h(player.element ? "div.watch" : "div.stage", player.element, h("div.stage", maps.slice(0, 1))), maps.slice(1)));

    // ---- decision
    const order = Array.from(data.logits.keys()).sort((a, b) => data.logits[b] - data.logits[a]).slice(0, 6);
    for (const c of truth) if (!order.includes(c)) order.push(c);
    const rows = order.map((c) => {
      const index = data.classes.indexOf(c);
      const fill = h("span.fill", { style: { width: `${100 * odds[c]}%`, display: "block" } });
      const button = h("button.aim", { type: "button", disabled: index < 0, title: index < 0 ? "no maps of this class" : `aim the maps at ${run.labels[c]}`, onclick: () => aim(index) },
        h("span.name", run.labels[c], truth.includes(c) ? h("span.quiet.small", " true") : null), h("span.track", fill), h("span.tab.small", AMR.percent(odds[c])));
      redraw.push(() => button.setAttribute("aria-pressed", String(index === k)));
      return button;
    });
    const shares = clips.runs[r].shares.subarray(i * run.modalities.length, (i + 1) * run.modalities.length), facts = h("dl.facts");
    redraw.push(() => {
      const rows = [], fixed = (x) => AMR.signed(Math.round(100 * x) / 100), known = [];
      if (data.shapley) run.modalities.forEach((m, n) => known.push([`Shapley value of ${m}`, AMR.row(data.shapley, k)[n], data.shapley_half ? AMR.row(data.shapley_half, k)[n] : NaN]));
      if (data.pairs) for (let a = 0; a < run.modalities.length; a++) for (let b = a + 1; b < run.modalities.length; b++) known.push([`Interaction of ${run.modalities[a]} and ${run.modalities[b]}`, AMR.row(data.pairs, k, a)[b], data.pairs_half ? AMR.row(data.pairs_half, k, a)[b] : NaN]);
      const most = Math.max(...known.map(([, value, half]) => Math.abs(value) + (half || 0)), 1e-9);
      for (const [name, value, half] of known) rows.push([name, Number.isFinite(half) ? [fixed(value), h("span.quiet", ` ± ${AMR.number(half)}`), AMR.interval(value, value - half, value + half, -most, most)] : fixed(value)]);
      if (data.intershap && Number.isFinite(data.intershap[k])) rows.push(["InterSHAP: part that is interaction", AMR.percent(data.intershap[k])]);
      if (data.additive) rows.push(["Additive part (EMAP)", fixed(data.additive[k])], ["Rest: what both do together", fixed(data.interaction[k])]);
      facts.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", name), h("dd", value)]));
    });
    const decision = h("section.card.w4.stay", h("header", h("h2", "Decision"), h("p", "A click on a class aims every map at it.")), h("div", rows),
      run.modalities.length > 1 ? [h("p.label", { style: { margin: "14px 0 5px" } }, "Shares of the attribution"), AMR.shares(run.modalities, shares), h("p.label", { style: { margin: "16px 0 5px" } }, "Whole modalities, in logits of the class"), facts,
        data.shapley_half ? h("p.note", "± and bars: 95 % interval, had other clips made up the mean encoding that stands for an absent modality.") : null] : null,
      runs.length > 1 ? h("p.note", h("a", { href: AMR.address.make(["compare", slug], {}) }, "This clip in both models")) : null);

    // A sticky card may not leave its own grid, or it would cover the cards below.
    main.append(h("div.grid", watch, decision), h("div.grid", interactions(run, data, state, note, redraw, () => [k, strength, run.labels[data.classes[k]]]), graph(run, r, data, slug, redraw, () => k, aim)));
    redraw.forEach((one) => one());
  };

  function preferred(run, methods) { // the most faithful one, on average over modalities
    const score = (one) => {
      const rows = (run.trust || []).filter((row) => row.stage === one.stage && row.method === (one.stage === "D" ? "dime" : one.method) && Number.isFinite(row.score));
      return rows.length && one.stage === "U" ? rows.reduce((a, row) => a + row.score, 0) / rows.length : -1;
    };
    return methods.reduce((best, one) => (score(one) > score(best) ? one : best), methods[0])?.method;
  }
  AMR.preferred = preferred;

  function probabilities(run, logits) { // of each class, or of each label by itself
    if (run.task === "labels") return Array.from(logits, (v) => 1 / (1 + Math.exp(-v)));
    const top = Math.max(...logits), e = Array.from(logits, (v) => Math.exp(v - top)), sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  }

  function cycle(field) { const box = field.querySelector("select"); box.selectedIndex = (box.selectedIndex + 1) % box.options.length; box.dispatchEvent(new Event("change")); }

  // Whether a clip has an atom: a text that is shorter than others lacks some.
  const there = (data, modality, atoms, a) => data.modalities[modality][`text_${atoms}`]?.[a] !== "";

  // The map's largest values in words, for who cannot see it.
  AMR.strongest = (run, modality, { values, errors, sure, atoms, unit }, data) => {
    const order = Array.from(values.keys()).filter((a) => there(data, modality, atoms, a)).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 8);
    const most = Math.abs(values[order[0]]) * 1.5 || 1;
    const spread = (a) => (sure ? AMR.interval(values[a], values[a] - errors[a], values[a] + errors[a], -most, most) : AMR.value(errors[a], AMR.number(errors[a], 3)));
    const value = (a) => AMR.value(values[a], AMR.signed(values[a], 3) + (sure ? ` ± ${AMR.number(errors[a], 3)}` : ""));
    return h("details", h("summary", "Strongest pieces"), AMR.table(`Strongest pieces, ${modality}`, ["where", unit, ...(errors ? [sure ? "95 %" : "± error"] : [])],
      order.map((a) => [AMR.where(run, modality, atoms, a, data), value(a), ...(errors ? [spread(a)] : [])]), { numeric: [1, 2], hidden: true }),
    sure ? h("p.note", "The interval covers what the method drew at random: where infinitely many draws would end. It does not say how well the method fits the model.") : null);
  };

  // ---- C: what an atom of one modality interacts with in another, for a class or, with stage RC, for a unit
  AMR.interactions = interactions;
  function interactions(run, data, state, note, redraw, now, stage = "C") {
    const maps = data[stage] || {}, pairs = Object.keys(maps), listed = stage === "RC" ? "R" : stage;
    if (!pairs.length && stage === "RC") return null;
    if (!pairs.length) return run.modalities.length > 1 ? null : AMR.card("w12", "Interaction", null, h("p.quiet", "The model has one modality, which has nothing to interact with."));
    let pair = pairs.includes(state.pair) ? state.pair : pairs[0];
    const methods = () => run.methods.filter((one) => one.stage === listed && maps[pair][one.method]);
    let method = methods().some((one) => one.method === state.cross) ? state.cross : (methods().find((one) => !maps[pair][one.method].why) || methods()[0]).method;
    let picked = null; // [side, atom]
    const about = h("p.small.quiet", { role: "status" }), says = h("div"), sides = h("div.sides"), list = h("div.pairs");
    let views = [], shownFor = "";

    const parse = () => {
      const [side, atom] = (state.atom || "").split(":");
      const n = pair.split("/").indexOf(side), map = maps[pair][method].v;
      return n >= 0 && Number(atom) < map.shape[n + 1] ? [n, Number(atom)] : null;
    };
    const strongestPairs = (values, columns) => Array.from(values.keys()).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 6).map((at) => [Math.floor(at / columns), at % columns, values[at]]);
    const pick = (side, atom) => {
      picked = [side, atom];
      state.atom = `${pair.split("/")[side]}:${atom}`;
      note();
      draw();
    };
    function draw() {
      const [k, strength, whose] = now();
      const names = pair.split("/"), map = maps[pair][method], known = run.methods.find((one) => one.stage === listed && one.method === method);
      const values = AMR.row(map.v, k), columns = map.v.shape[2], size = stage === "RC" ? Math.abs(data.activations[k]) : AMR.top(data.logits), least = Math.max(1e-3 * size, 1e-9), faint = AMR.top(values) < least && ["logit", "activation"].includes(known.unit), top = faint ? least : AMR.top(values) || 1, atoms = known.atoms || "fine";
      if (shownFor !== pair) {
        views = names.map((m, side) => AMR.mapView({ run, modality: m, data, title: m, atoms, pick: (atom) => pick(side, atom), tall: 170 }));
        sides.replaceChildren(h("div", views[0].element, says), h("div", views[1].element, h("h3", { style: { margin: "14px 0 4px" } }, "Strongest pairs"), list));
        shownFor = pair;
      }
      const best = strongestPairs(values, columns);
      const [side, atom] = picked || parse() || [0, best[0][0]]; // until one is picked, the strongest pair's
      const across = side === 0 ? values.subarray(atom * columns, (atom + 1) * columns) : Float32Array.from({ length: map.v.shape[1] }, (_, a) => values[a * columns + atom]);
      views[side].show({ values: null, atoms, picked: atom });
      views[1 - side].show({ values: across, atoms, top, strength, unit: known.unit });
      about.replaceChildren(h("b", `${names[side]}, ${AMR.where(run, names[side], atoms, atom, data)}`), ` is picked; the map over ${names[1 - side]} is what it interacts with there. Pick another piece in either.`);
      const part = (m, atom) => `${m} ${AMR.where(run, m, atoms, atom, data)}`;
      list.replaceChildren(...(faint ? [h("p.small.quiet", "None that is more than rounding.")] : best.map(([a, b, v]) =>
        h("button", { type: "button", onclick: () => pick(0, a) }, h("b.tab", AMR.signed(v, 3)), h("span", `${part(names[0], a)} × ${part(names[1], b)}`)))));
      says.replaceChildren(AMR.says(run, { stage, method, pair: names, of: `for ${whose}`, top, reason: map.why || (faint ? `No pair reaches a thousandth of the ${known.unit} (the largest has ${AMR.number(AMR.top(values))}): what there is may be rounding, and is not drawn larger.` : null) }));
    }
    const chooser = h("div.field");
    const fill = () => chooser.replaceChildren(...AMR.select("Method", methods().map((one) => [one.method, one.title]), method, (v) => { method = v; state.cross = v; state.atom = undefined; picked = null; note(); draw(); }).childNodes);
    fill();
    redraw.push(draw);
    return h("section.card.w12", h("header", h("h2", "Interaction"), h("span.end.head", pairs.length > 1 ? AMR.select("Of", pairs.map((p) => [p, p.replace("/", " × ")]), pair, (v) => { pair = v; state.pair = v; state.atom = undefined; picked = null; method = methods()[0].method; fill(); note(); draw(); }) : null, chooser),
      h("p", `What two modalities do together that neither does alone: positive where the pair speaks for ${stage === "RC" ? "the unit" : "the class"} more than its parts.`)), about, h("div", { style: { height: "10px" } }), sides);
  }

  // ---- P: classes and units of the sparse classifier
  function graph(run, r, data, slug, redraw, now, aim) {
    if (!data.P || !data.P.units.length) return AMR.card("w12", "Classes and units", null, h("p.quiet", "The sparse classifier was not fitted: amr analyze --stages prediction does it."));
    const { units, contributions } = data.P, K = data.classes.length, names = AMR.names.all(run);
    const strength = units.map((_, u) => Math.max(...Array.from({ length: K }, (_, c) => Math.abs(contributions[c * units.length + u]))));
    const shown = strength.map((s, u) => [s, u]).filter(([s]) => s > 0).sort((a, b) => b[0] - a[0]).slice(0, 12).map(([, u]) => u);
    const holder = h("div"), told = h("p.readout", { role: "status" });
    if (!shown.length) return AMR.card("w12", "Classes and units", null, h("p.quiet", "No unit of the sparse classifier speaks for or against these classes."));
    const top = Math.max(...strength) || 1;
    const open = (unit) => { location.hash = AMR.address.make(["unit", String(unit)], { clip: slug, run: r || undefined }); };

    function draw() {
      const width = Math.max(300, holder.clientWidth || 900), narrow = width < 560, rowHeight = 34;
      const left = narrow ? 118 : 210, right = narrow ? 92 : 190, height = Math.max(shown.length, K) * rowHeight + 28;
      const y = (n, count) => 28 + ((n + 0.5) * (height - 28)) / count;
      const svg = h("svg.graph", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Units that speak for or against each class, on this clip" });
      const edges = [];
      svg.append(h("text.soft", { x: left - 4, y: 12, "text-anchor": "end" }, "units"), h("text.soft", { x: width - right + 4, y: 12 }, "classes"));
      shown.forEach((u, n) => data.classes.forEach((c, m) => {
        const value = contributions[m * units.length + u];
        if (!value) return;
        const x0 = left + 4, x1 = width - right - 4, y0 = y(n, shown.length), y1 = y(m, K), mid = (x0 + x1) / 2;
        const edge = h("path.edge", { d: `M${x0} ${y0}C${mid} ${y0} ${mid} ${y1} ${x1} ${y1}`, stroke: AMR.signedColour(Math.sign(value)), "stroke-width": (0.8 + 7 * Math.abs(value) / top).toFixed(2) });
        edges.push({ edge, u, m, value });
        svg.append(edge);
      }));
      const hot = (test, text) => { svg.classList.add("hot"); for (const one of edges) one.edge.classList.toggle("on", test(one)); told.textContent = text; };
      const cold = () => { svg.classList.remove("hot"); told.textContent = ""; };
      const fit = (text, room) => (text.length * 7 > room ? `${text.slice(0, Math.max(3, Math.floor(room / 7) - 1))}…` : text);
      const node = (x, y, w, text, label, role, over, act, extra = "") => {
        const one = h("g.node", { tabindex: "0", role, "aria-label": label, onpointerenter: over, onpointerleave: cold, onfocus: over, onblur: cold, onclick: act, onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); act(); } } },
          h("title", text), h("rect.box", { x, y: y - 13, width: w, height: 26, rx: 7 }), h("text", { x: x + 10, y: y + 4.5 }, fit(text, w - (extra ? 62 : 18))), extra ? h("text.soft", { x: x + w - 9, y: y + 4, "text-anchor": "end" }, extra) : null);
        svg.append(one);
        return one;
      };
      const list = (ones, name) => ones.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 4).map((one) => `${name(one)} ${AMR.signed(one.value)}`).join(", ");
      shown.forEach((u, n) => {
        const unit = units[u], mine = edges.filter((one) => one.u === u), text = names[unit] ? names[unit] : `unit ${unit}`;
        const says = `unit ${unit}${names[unit] ? `, “${names[unit]}”` : ""}: ${list(mine, (one) => run.labels[data.classes[one.m]])}`;
        node(2, y(n, shown.length), left - 2, text, `${says}. Open`, "link", () => hot((one) => one.u === u, says), () => open(unit), names[unit] && !narrow ? `unit ${unit}` : "");
      });
      data.classes.forEach((c, m) => {
        const mine = edges.filter((one) => one.m === m), says = `${run.labels[c]}: ${list(mine, (one) => `unit ${units[one.u]}`) || "no unit"}`;
        const one = node(width - right, y(m, K), right - 2, run.labels[c], `${says}. Aim the maps at this class`, "button", () => hot((e) => e.m === m, says), () => aim(m));
        one.setAttribute("aria-pressed", String(m === now()));
        one.classList.toggle("aimed", m === now());
      });
      holder.replaceChildren(svg);
    }
    redraw.push(() => requestAnimationFrame(() => {
      const focused = document.activeElement?.closest?.(".graph .node"), label = focused?.getAttribute("aria-label");
      draw();
      if (label) [...holder.querySelectorAll(".node")].find((one) => one.getAttribute("aria-label") === label)?.focus();
    }));
    AMR.live.add(draw);
    return h("section.card.w12", h("header", h("h2", "Classes and units"), h("p", "Units before the output that a sparse classifier uses, and what each adds to a class on this clip: coefficient × standardised activation, in logits. A click on a class aims the maps at it; on a unit, opens it.")),
      holder, told, AMR.says(run, { stage: "P", method: "sparse", of: "which is another classifier than the model", top }));
  }
})();
