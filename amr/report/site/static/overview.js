// The run as a whole.
"use strict";

(() => {
  const { h } = AMR;

  AMR.overview = (main) => {
    const { runs } = AMR.site, run = runs[0], who = decides(runs);
    const several = runs.length > 1;
    main.append(
      h("div.head", h("h1", several ? runs.map((r) => r.name).join(" against ") : run.name)),
      h("p.lead", `${run.dataset}, ${run.split} split: ${AMR.plural(run.clips, "clip")} that ${run.clips === 1 ? "has" : "have"} every modality (${run.modalities.join(", ")}), ${AMR.plural(run.labels.length, run.task === "labels" ? "label" : "class")}. `
        + `${AMR.plural(run.explained, "clip")} ${run.explained === 1 ? "is" : "are"} explained by maps.`),
      ...[beside(runs)].filter(Boolean),
      h("div.grid",
        h("section.card.w12", h("h2.hidden", "Scores"), h("div.runs", runs.map((one) => tiles(one, several)))),
        h("div.column.w6", dominance(runs, who), histogram(runs), confusion(runs), errors(runs), who, robust(runs)),
        h("div.column.w6", epochs(runs), byClass(runs), calibration(runs), sparse(runs), selection(runs)),
        faithfulness(runs), simulation(runs), notes(runs)));
  };

  // The report and the models' cards, where they lie beside the site.
  function beside(runs) {
    const links = [AMR.site.report && ["Report of all runs", AMR.site.report], ...runs.map((run) => run.card && [runs.length > 1 ? `Card of ${run.name}` : "Model card", run.card])].filter(Boolean);
    return links.length ? h("p.small.beside", links.map(([text, href], i) => [i ? " · " : "", h("a", { href }, text)])) : null;
  }

  // A modality's decision share in the first epoch with the highest accuracy, of which best.ckpt is unless another metric
  // chose it.
  function share(run, m) {
    const best = (run.history || []).reduce((first, row) => ((row["val/acc"] ?? -1) > (first?.["val/acc"] ?? -1) ? row : first), null);
    return best?.[`val/decision_share/${m}`] ?? NaN;
  }

  function tiles(run, several) {
    const right = Math.round(run.accuracy * run.clips);
    const [low, high] = AMR.wilson(right, run.clips);
    const tile = (label, value, under) => h("div.tile", h("span.label", label), h("div.value", value), h("div.under", under));
    return h("div", several ? h("h3", h("i.swatch", { style: { background: `var(--r${AMR.site.runs.indexOf(run)})` } }), run.name) : null, h("div.tiles",
      tile("Accuracy", AMR.percent(run.accuracy), run.task === "labels" ? "over all labels, at one half" : `95 % interval ${AMR.percent(low)} to ${AMR.percent(high)}`),
      tile("mAP", AMR.percent(run.mAP), run.task === "labels" ? "mean over labels" : "mean over classes"),
      tile("Calibration error", AMR.percent(run.ECE), "ECE, 15 bins; 0 is calibrated"),
      run.modalities.map((m) => tile(`Dominance of ${m}`, AMR.percent(run.dominance[m]), Number.isFinite(share(run, m)) ? `of the attribution; of the decisions ${AMR.percent(share(run, m))} (validation)` : "mean share of the attribution")),
      run.emap && run.emap.clips >= 50 ? tile("Without interaction", AMR.percent(run.emap.additive_accuracy), `EMAP; with it ${AMR.percent(run.emap.accuracy)}, on ${AMR.plural(run.emap.clips, "clip")}`) : null));
  }

  const each = (runs, draw) => runs.map((run, i) => h("div", runs.length > 1 ? h("h3", h("i.swatch", { style: { background: `var(--r${i})` } }), run.name) : null, draw(run, i)));

  function dominance(runs, who) {
    if (runs[0].modalities.length < 2) return null;
    const places = [runs.some((run) => run.modalities.some((m) => Number.isFinite(share(run, m)))) && "under each dominance above", who && "in Who decides"].filter(Boolean);
    const where = places.length ? `stands ${places.join(" and ")}` : "the run's files do not have";
    return AMR.card("", "Dominance", `Each modality's mean share of the attribution: how steeply the predicted class depends on its encoding. What the decisions owe to it is another number, which ${where}.`,
      h("div.runs", each(runs, (run) => AMR.shares(run.modalities, run.modalities.map((m) => run.dominance[m])))),
      AMR.key(runs[0].modalities.map((m, i) => [m, `--m${i}`])));
  }

  function epochs(runs) {
    const known = runs.filter((run) => (run.history || []).length > 1);
    if (!known.length) return null;
    const all = [...new Set(known.flatMap((run) => run.history.map((row) => row.epoch)))].sort((a, b) => a - b);
    const values = (run, key) => { const by = new Map(run.history.map((row) => [row.epoch, row[key]])); return all.map((e) => by.get(e) ?? null); };
    const first = runs[0].modalities[0];
    const several = runs.length > 1, series = [];
    for (const run of known) {
      const r = runs.indexOf(run);
      const shown = several ? [first] : run.modalities;
      shown.forEach((m, i) => {
        const v = values(run, `val/dominance/${m}`);
        if (v.some((x) => x !== null)) series.push({ name: several ? `${run.name}: ${m}` : m, values: v, colour: several ? `--r${r}` : `--m${i}` });
        const decides = i ? [] : values(run, `val/decision_share/${m}`); // of the first: the others' is what is left
        if (decides.some((x) => x !== null)) series.push({ name: several ? `${run.name}: ${m} decides` : `${m} decides`, values: decides, colour: several ? `--r${r}` : `--m${i}`, dash: [1, 4] });
      });
      const v = values(run, "val/acc");
      if (v.some((x) => x !== null)) series.push({ name: several ? `${run.name}: accuracy` : "accuracy", values: v, colour: several ? `--r${r}` : "--soft", dash: [5, 4] });
    }
    if (!series.length) return null;
    return AMR.card("", "Over epochs", `On the validation split: dominance${several ? ` of ${first}` : ""}, the decision share of ${first} (dotted), and accuracy (dashed).`,
      AMR.plot({ title: "Dominance and accuracy over epochs", x: all, series, xLabel: "epoch", yLabel: "share", yRange: [0, 1], format: (v) => AMR.percent(v, 0) }));
  }

  function histogram(runs) {
    const m = runs[0].modalities[0];
    if (runs[0].modalities.length < 2) return null;
    const bins = 20, x = Array.from({ length: bins }, (_, i) => (i + 0.5) / bins);
    const series = runs.map((run, r) => {
      const counts = new Array(bins).fill(0), shares = AMR.site.clips.runs[r].shares, step = run.modalities.length;
      for (let i = 0; i < shares.length; i += step) if (Number.isFinite(shares[i])) counts[Math.min(bins - 1, Math.floor(shares[i] * bins))]++;
      return { name: run.name, values: counts, colour: runs.length > 1 ? `--r${r}` : "--m0", bars: runs.length === 1 };
    });
    return AMR.card("", `Share of ${m}, clip by clip`, "How many clips lean on it how much: a mean of one half may be clips that lean either way.",
      AMR.plot({ title: `Clips by their share of ${m}`, x, series, xLabel: `share of ${m}`, yLabel: "clips", format: (v) => AMR.number(v, 0), xFormat: (v) => AMR.percent(v, 0) }));
  }

  function byClass(runs) {
    if (runs[0].modalities.length < 2) return null;
    const draw = (run, r) => {
      const rows = run.labels.filter((label) => run.dominance_by_class[label]?.clips).map((label) => ({ label, ...run.dominance_by_class[label] }));
      const m = run.modalities[0];
      rows.sort((a, b) => b[m] - a[m]);
      const saved = AMR.saveTable(`Dominance by class ${run.name}`, ["class", "clips", "accuracy", ...run.modalities], rows.map((row) => [row.label, row.clips, row.accuracy ?? "", ...run.modalities.map((one) => row[one])]));
      return h("div", h("div.tall", { tabindex: "0", role: "region", "aria-label": "Dominance by class" }, h("div.bars", rows.map((row) => [
        h("span.name", { title: row.label }, h("a", { href: AMR.address.make(["clips"], { class: row.label, run: r || null }) }, row.label)),
        AMR.shares(run.modalities, run.modalities.map((one) => row[one]), { thin: true }),
        h("span.tab.small", AMR.percent(row[m], 0))]))), h("div.saves", saved));
    };
    const lead = runs[0].task === "labels" ? "A clip counts for its likeliest label. " : "";
    return AMR.card("", "Dominance by class", `${lead}Classes by the share of ${runs[0].modalities[0]}, of which the number is.`, h("div.runs", each(runs, draw)));
  }

  function calibration(runs) {
    const of = (run) => run.calibration || [];
    const enough = (bin) => bin.clips >= 10;
    if (!runs.some((run) => of(run).filter(enough).length > 1)) return null; // a clip or two are no frequency
    const x = of(runs[0]).map((bin) => (bin.low + bin.high) / 2);
    return AMR.card("", "Calibration", "Accuracy of clips by the model's confidence, in bins of at least 10 clips. On the dotted line confidence is what it says.",
      AMR.plot({ title: "Accuracy by confidence", x, xLabel: "confidence", yLabel: "accuracy", yRange: [0, 1], guide: [[0, 0], [1, 1]], format: (v) => AMR.percent(v, 0), xFormat: (v) => AMR.percent(v, 0),
        series: runs.map((run, r) => ({ name: run.name, values: of(run).map((bin) => (enough(bin) ? bin.accuracy : null)), colour: runs.length > 1 ? `--r${r}` : "--accent", points: true })) }));
  }

  function confusion(runs) {
    if (!runs.every((run) => run.confusion)) return null; // of several labels per clip there is none
    const draw = (run, r) => {
      const n = run.labels.length, counts = run.confusion, canvas = h("canvas", { width: n, height: n });
      const context = canvas.getContext("2d"), image = context.createImageData(n, n);
      const totals = Array.from({ length: n }, (_, i) => AMR.row(counts, i).reduce((a, b) => a + b, 0));
      for (let i = 0; i < n * n; i++) image.data.set([...AMR.cividis(counts[i] / (totals[Math.floor(i / n)] || 1)), 255], 4 * i);
      context.putImageData(image, 0, 0);
      const told = h("p.readout", { "aria-live": "polite" }), cross = h("div.cross", { hidden: true });
      let at = [0, 0];
      const show = () => {
        const [i, j] = at;
        cross.hidden = false;
        Object.assign(cross.style, { left: `${(100 * j) / n}%`, top: `${(100 * i) / n}%`, width: `${100 / n}%`, height: `${100 / n}%` });
        told.textContent = `${run.labels[i]}, taken for ${run.labels[j]}: ${counts[i * n + j]} of ${totals[i]}`;
      };
      const open = () => { location.hash = AMR.address.make(["clips"], { class: run.labels[at[0]], as: run.labels[at[1]], run: r || null }); };
      const place = (event) => {
        const box = canvas.getBoundingClientRect();
        at = [event.clientY - box.top, event.clientX - box.left].map((v) => Math.max(0, Math.min(n - 1, Math.floor((v / box.width) * n))));
        show();
      };
      const pad = h("div.confusion", { tabindex: "0", role: "application", "aria-label": `Confusion matrix of ${n} classes: arrows move, Enter lists the clips`,
        onpointermove: place, onclick: (event) => { place(event); open(); },
        onkeydown: (event) => {
          const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
          if (step) { at = at.map((v, k) => Math.max(0, Math.min(n - 1, v + step[k]))); show(); event.preventDefault(); }
          if (event.key === "Enter") open();
        } }, canvas, n <= 12 ? h("div.counts", { "aria-hidden": "true", style: { "grid-template-columns": `repeat(${n}, 1fr)` } },
          Array.from({ length: n * n }, (_, i) => h("span", { class: counts[i] > 0.5 * totals[Math.floor(i / n)] ? "dark" : "" }, counts[i] ? String(counts[i]) : ""))) : null, cross);
      const pairs = [];
      for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) if (i !== j && counts[i * n + j]) pairs.push([counts[i * n + j], i, j]);
      pairs.sort((a, b) => b[0] - a[0]);
      const named = n <= 30, short = run.labels.every((label) => label.length <= 2), mark = (label) => h("li", { title: label }, h("span", label));
      const names = (where) => (named ? h(`ol.${where}`, { "aria-hidden": "true" }, run.labels.map(mark)) : null);
      return h("div", h("div.matrix", named ? [names("down"), pad, names(short ? "across.flat" : "across")] : pad), told, h("p.small.quiet", "Rows: true class; columns: predicted. Brightness: share of the row, from dark blue 0 % to yellow 100 %."),
        pairs.length ? h("details", h("summary", "Most frequent confusions"), AMR.table("Most frequent confusions", ["true", "taken for", "clips", "of"],
          pairs.slice(0, 12).map(([count, i, j]) => [run.labels[i], run.labels[j], count, totals[i]]), { numeric: [2, 3], hidden: true, saved: [["true", "taken for", "clips", "of"], () => pairs.map(([count, i, j]) => [run.labels[i], run.labels[j], count, totals[i]])] })) : null,
        h("div.saves", AMR.saveTable(`Confusion matrix ${run.name}`, ["true / predicted", ...run.labels], () => run.labels.map((label, i) => [label, ...AMR.row(counts, i)]))));
    };
    return AMR.card("", "Confusion", null, h("div.runs", each(runs, draw)));
  }

  function errors(runs) {
    if (!runs.some((run) => run.errors && Object.keys(run.errors).length)) return null;
    const draw = (run, r) => {
      const rows = Object.entries(run.errors || {}).sort((a, b) => b[1] - a[1]), total = rows.reduce((a, [, n]) => a + n, 0);
      return AMR.bars(rows.map(([kind, n]) => [kind, n / total, AMR.plural(n, "clip"), "var(--accent)", AMR.address.make(["clips"], { error: kind, run: r || null })]));
    };
    const kinds = [...new Set(runs.flatMap((run) => Object.keys(run.errors || {}).map((kind) => kind.split(" ")[0])))];
    return AMR.card("", "Errors by what is to blame", "Each wrong prediction, sorted by what repairs it.", h("div.runs", each(runs, draw)),
      h("ul.small.quiet", kinds.map((kind) => h("li", h("b", kind), `: ${AMR.TEXT.errors[kind] || ""}`))));
  }

  function sparse(runs) {
    const known = runs.filter((run) => (run.path || []).length);
    if (!known.length) return null;
    const x = [...new Set(known.flatMap((run) => run.path.map((row) => row.units)))].filter((u) => u > 0).sort((a, b) => a - b);
    const series = known.map((run) => {
      const best = new Map();
      for (const row of run.path) best.set(row.units, Math.max(row.accuracy, best.get(row.units) ?? 0));
      return { name: run.name, values: x.map((u) => best.get(u) ?? null), colour: runs.length > 1 ? `--r${runs.indexOf(run)}` : "--accent", points: true };
    });
    return AMR.card("", "Sparse classifier", "A linear classifier that may use few of the units before the output: accuracy against how many it uses.",
      AMR.plot({ title: "Accuracy against number of units", x, series, xLabel: "units in use", yLabel: "accuracy", log: true, format: (v) => AMR.percent(v, 0) }),
      known.map((run) => run.sparse ? h("p.note", `${runs.length > 1 ? `${run.name}: ` : ""}the one shown in the clips' graphs uses ${run.sparse.units} units, is right on ${AMR.percent(run.sparse.accuracy)}, and says what the model says on ${AMR.percent(run.sparse.agreement)} of the clips. `,
        h("a", { href: AMR.address.make(["units"], { run: runs.indexOf(run) || null }) }, "Its units")) : null));
  }

  function faithfulness(runs) {
    const known = runs.filter((run) => (run.trust || []).length).map((run) => ({ ...run, pairs: run.trust, trust: run.trust.filter((row) => row.score_name || row.warnings.length) }));
    if (!known.length) return null;
    const titles = new Map([["D dime", "DIME, both parts"], ...known.flatMap((run) => run.methods.map((one) => [`${one.stage} ${one.method}`, one.title]))]);
    const title = (row) => titles.get(`${row.stage} ${row.method}`) || row.method;
    const where = (row) => row.modality || (row.first ? `${row.first} × ${row.second}` : "all");
    const key = (row) => `${row.stage} ${row.method} ${where(row)}`;
    const all = new Map(known.flatMap((run) => run.trust.map((row) => [key(row), row])));
    const single = known.length === 1;
    const rows = [...all].map(([name, one]) => {
      const found = known.map((run) => run.trust.find((row) => key(row) === name));
      const warned = Math.max(...found.map((row) => row?.warnings.length || 0));
      return [title(one), AMR.TEXT.stages[one.stage] || one.stage, where(one),
        ...found.flatMap((row) => (row ? [AMR.value(row.score), AMR.interval(row.score, row.low, row.high, -1, 1)] : ["–", ""])),
        ...(single ? [AMR.value(one.insertion_gain ?? NaN), AMR.value(one.stability ?? NaN)] : []),
        warned ? h("span.chip.warned", AMR.plural(warned, "warning")) : ""];
    });
    const head = ["method", "of", "modality", ...known.flatMap((run) => [single ? "score" : run.name, "95 % interval, −1 to 1"]), ...(single ? ["insertion gain", "stability"] : []), "warnings"];
    const numeric = [...known.map((_, i) => 3 + 2 * i), ...(single ? [5, 6] : [])];
    const warnings = known.flatMap((run) => run.trust.flatMap((row) => row.warnings.map((text) => [`${single ? "" : `${run.name}: `}${title(row)}, ${where(row)}: `, text])));
    const names = [...new Set(known.flatMap((run) => run.trust.map((row) => row.score_name)))].filter(Boolean);
    return AMR.card("w12", "How far the maps can be believed", "Measured on a few clips: whether a map foretells what happens to the score when parts of the input are replaced.",
      AMR.table("Faithfulness of each kind of map", head, rows, { numeric, hidden: true }),
      h("p.note", `Score: ${names.join("; ")}.${single ? " Insertion gain: how much more of the score is there, on average, when parts are put in by importance rather than at random, in logits. Stability: rank correlation between seeds." : ""}`),
      synergy(known, title, where, key, single),
      warnings.length ? h("details", h("summary", "Warnings"), h("ul.small", warnings.map(([who, text]) => h("li", h("b", who), text)))) : null);
  }

  // What the atoms that a method picks in two modalities bring together, beyond what each brings alone.
  function synergy(known, title, where, key, single) {
    const measured = (run) => run.pairs.filter((row) => Number.isFinite(row.synergy));
    const all = new Map(known.flatMap((run) => measured(run).map((row) => [key(row), row])));
    if (!all.size) return null;
    const most = Math.max(...known.flatMap((run) => measured(run).flatMap((row) => [row.synergy, row.synergy_low ?? 0, row.synergy_high ?? 0].map(Math.abs)))) || 1;
    const rows = [...all].map(([name, one]) => [title(one), AMR.TEXT.stages[one.stage] || one.stage, where(one),
      ...(single ? [AMR.value(one.synergy_top, AMR.signed(one.synergy_top)), AMR.value(one.synergy_random, AMR.signed(one.synergy_random))] : []),
      ...known.flatMap((run) => {
        const row = measured(run).find((found) => key(found) === name);
        return row ? [AMR.value(row.synergy, AMR.signed(row.synergy)), AMR.interval(row.synergy, row.synergy_low ?? NaN, row.synergy_high ?? NaN, -most, most)] : ["–", ""];
      })]);
    const bar = `95 % interval, ±${AMR.number(most)}`;
    const head = ["method", "of", "modalities", ...(single ? ["top blocks", "random blocks", "difference", bar] : known.flatMap((run) => [run.name, bar]))];
    const numeric = single ? [3, 4, 5] : known.map((_, i) => 3 + 2 * i), clips = Math.max(...[...all.values()].map((row) => row.synergy_clips));
    return [h("h3", { style: { margin: "26px 0 4px" } }, "Synergy of what the maps pick"),
      h("p.small", { style: { margin: "0 0 10px" } }, "Keep a map's top blocks of both modalities, then of each alone: what do both bring beyond the two alone? The difference to random blocks is above 0 where the top blocks count only together, below 0 where they say the same thing, and 0 in an additive model. Scores of one modality at a time, as above, cannot tell these apart."),
      AMR.table("Synergy of the top blocks of each kind of map", head, rows, { numeric, hidden: true }),
      h("p.note", `In logits (units: activation), mean over how many blocks are kept, ${AMR.plural(clips, "clip")}.${single ? "" : " Difference of top and random blocks."}`)];
  }

  function simulation(runs) {
    if (!runs.some((run) => (run.simulation || []).length)) return null;
    const draw = (run) => AMR.table("Simulated user", ["sees", "accuracy", "95 % interval, 0 to 1", "gain over shuffled", "interval of the gain", "alpha"],
      run.simulation.map((row) => [AMR.TEXT.simulation[row.stage] || row.stage, AMR.value(row.mean, AMR.percent(row.mean)), AMR.interval(row.mean, row.low, row.high, 0, 1),
        AMR.value(row.gain, AMR.signed(100 * row.gain, 1)), AMR.interval(row.gain, row.gain_low, row.gain_high, -1, 1), AMR.value(row.alpha ?? NaN)]), { numeric: [1, 3, 5], hidden: true });
    const row = runs.find((run) => (run.simulation || []).length).simulation[0];
    return AMR.card("w12", "Simulated user", `A student that sees only these explanations learns to name the model's output on other clips (${AMR.plural(row.clips, "clip")}, ${row.classes} outputs). It gains where it beats one whose explanations were dealt to other clips. No person took part.`, h("div.runs", each(runs.filter((run) => (run.simulation || []).length), draw)));
  }

  function decides(runs) {
    const of = (run, key) => run.robust?.[`test/robust/${key}`] ?? NaN;
    const cells = (run) => {
      const names = Object.keys(run.robust || {}).filter((key) => key.startsWith("test/robust/outcome_")).map((key) => key.slice("test/robust/".length));
      return names.filter((name) => name.includes("/") || !names.some((other) => other.startsWith(`${name}/`))) // no sums
        .map((name) => [...name.slice("outcome_".length).split("/"), of(run, name)]).map((parts) => (parts.length < 3 ? [parts[0], "", parts[1]] : parts))
        .sort((a, b) => Object.keys(AMR.TEXT.outcomes).indexOf(a[0]) - Object.keys(AMR.TEXT.outcomes).indexOf(b[0]));
    };
    if (!runs.some((run) => cells(run).length || Number.isFinite(of(run, "conflict_neither")))) return null;
    const all = (run) => run.modalities.join(", ");
    const draw = (run) => h("div.column",
      Number.isFinite(of(run, "conflict_neither")) ? AMR.table("A modality of one clip, the rest of a clip of another class: whose class is the output?", ["modality", "its class", "the rest's", "neither"],
        run.modalities.map((m) => [m, ...["conflict", "conflict_rest", "conflict_neither"].map((kind) => AMR.value(of(run, `${kind}/${m}`), AMR.percent(of(run, `${kind}/${m}`))))]), { numeric: [1, 2, 3] }) : null,
      cells(run).length ? AMR.table("Clips by which modality is right alone", ["alone", "together", "outcome", "clips"],
        cells(run).map(([kind, which, part]) => [which.replaceAll("+", ", ") || (kind === "redundant" ? all(run) : "none"), AMR.TEXT.outcomes[kind] || "", kind, AMR.value(part, AMR.percent(part))]), { numeric: [3] }) : null);
    return AMR.card("", "Who decides", "What the run's test says of conflicts between modalities, and of what each can do alone.", h("div.runs", each(runs, draw)));
  }

  function robust(runs) {
    const keys = [...new Set(runs.flatMap((run) => Object.keys(run.robust || {})))].sort();
    if (!keys.length) return null;
    return AMR.card("", "Use of the modalities", "What the run measured on its test split: accuracy without a modality, under corruption, and how both are used.",
      h("div.tall", { tabindex: "0", role: "region", "aria-label": "Use of the modalities" }, AMR.table("Use of the modalities", ["measure", ...runs.map((run) => run.name)],
        keys.map((key) => [key.replace(/^test\/(robust\/)?/, "").replaceAll("_", " ").replaceAll("/", " · "), ...runs.map((run) => AMR.value(run.robust?.[key] ?? NaN, AMR.number(run.robust?.[key] ?? NaN, 3)))]), { numeric: runs.map((_, i) => i + 1), hidden: true })));
  }

  function selection(runs) {
    if (!runs.some((run) => (run.selection || []).length)) return null;
    const draw = (run) => {
      const by = new Map();
      for (const row of run.selection) { const key = `${row.by}|${row.budget}`; if (!by.has(key)) by.set(key, []); by.get(key).push(row); }
      const mean = (rows, key) => { const known = rows.map((row) => row[key]).filter((v) => v !== null && Number.isFinite(v)); return known.length ? known.reduce((a, b) => a + b, 0) / known.length : NaN; };
      return AMR.table("Selection of clips", ["new clips chosen by", "budget", "accuracy after", "errors among them", "seeds"], [...by.values()].map((rows) =>
        [rows[0].by, rows[0].budget, ...["accuracy", "errors_found"].map((key) => AMR.value(mean(rows, key), AMR.percent(mean(rows, key)))), rows.length]), { numeric: [1, 2, 3, 4], hidden: true });
    };
    return AMR.card("", "What to label next", "Accuracy after the head is refitted with more clips, chosen in different ways; means over seeds.", h("div.runs", each(runs, draw)));
  }

  function notes(runs) {
    const all = runs.flatMap((run) => (run.notes || []).map((note) => (runs.length > 1 ? `${run.name}: ${note}` : note)));
    return all.length ? AMR.card("w12", "Left out", null, h("ul.small", all.map((note) => h("li", note)))) : null;
  }
})();
