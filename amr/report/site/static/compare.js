// Two checkpoints, side by side.
"use strict";

(() => {
  const { h } = AMR;

  AMR.compare = async (main, [slug], query) => {
    const { runs, clips } = AMR.site;
    if (runs.length < 2) throw new Error("this site is of one model; amr site DIR DIR2 --out SITE compares two");
    if (!slug) return summary(main);
    const i = AMR.position(slug), both = runs.every((_, r) => clips.runs[r].explained[i]);
    main.append(h("p.crumb", h("a", { href: "#/compare" }, "Compare")), h("div.head", h("h1", clips.id[i]), h("span.chip", `true: ${AMR.truly(i)}`),
      h("div.end", neighbour(i, -1, query), neighbour(i, 1, query))));
    if (!both) { main.append(h("p.note", "Only clips that both analyses explained can be laid side by side.")); return; }
    const data = await Promise.all(runs.map((_, r) => AMR.load(`${r}/clips/${slug}`)));
    const shared = data[0].classes.filter((c) => data[1].classes.includes(c));
    const methods = AMR.methodsOf(runs[0], data[0]).filter((one) => AMR.methodsOf(runs[1], data[1]).some((other) => other.method === one.method));
    const state = { ...query };
    let target = shared.find((c) => runs[0].labels[c] === query.class) ?? shared[0], method = methods.some((one) => one.method === query.method) ? query.method : AMR.preferred(runs[0], methods), strength = 0.75, common = query.scale === "common";
    const note = () => AMR.address.note(state), redraw = [], update = () => redraw.forEach((one) => one());
    const player = AMR.player(i);
    AMR.keys = { ...AMR.keys, " ": () => player.toggle() };
    const classes = AMR.select("Maps explain the class", shared.map((c) => [c, runs[0].labels[c]]), target, (v) => { target = Number(v); state.class = runs[0].labels[target]; note(); update(); });
    main.append(h("div.tools", { role: "group", "aria-label": "What the maps show" }, shared.length ? classes : null,
      AMR.select("Method", methods.map((one) => [one.method, one.title]), method, (v) => { method = v; state.method = v; note(); update(); }),
      AMR.select("Colours", [["own", "each map its own scale"], ["common", "one scale for both models"]], common ? "common" : "own", (v) => { common = v === "common"; state.scale = common ? v : undefined; note(); update(); })));
    const told = [];
    const columns = runs.map((run, r) => {
      const column = clips.runs[r], right = AMR.isRight(r, i), step = run.modalities.length;
      const views = run.modalities.map((m) => ({ m, view: AMR.mapView({ run, modality: m, data: data[r], title: m, seek: player.seek, start: player.start, tall: 150 }), says: h("div") }));
      views.forEach(({ view }) => player.follow(view));
      redraw.push(() => views.forEach(({ m, view, says }) => {
        const values = runs.map((one, n) => shared.length ? AMR.valuesOf(one, data[n], m, method, data[n].classes.indexOf(target)) : null);
        const top = Math.max(...values.map((one) => (one ? AMR.top(one.values) : 0))), own = values[r] ? AMR.top(values[r].values) : 1;
        if (values[r]) view.show({ ...values[r], strength, top: (common ? top : own) || 1, named: `${method} ${run.labels[target]} ${run.name}` }); else view.show({ values: null });
        says.replaceChildren(values[r] ? AMR.says(run, { stage: values[r].stage, method, modality: m, of: `for ${run.labels[target]}`, top: common ? top : own }) : "");
      }));
      const swatch = h("i.swatch", { style: { background: `var(--r${r})` } });
      told.push(h("b", swatch.cloneNode(), run.name), h("div", h("div.told", h(right ? "span.chip.good" : "span.chip.bad", AMR.icon(right ? "check" : "cross"), `${AMR.said(run)}: ${run.labels[column.predicted[i]]}`), h("span.quiet.tab", `confidence ${AMR.percent(column.confidence[i])}`)),
        run.modalities.length > 1 ? h("div", { style: { "margin-top": "8px" } }, AMR.shares(run.modalities, column.shares.subarray(i * step, (i + 1) * step))) : null));
      return h("section.card", h("div.head", h("h2", swatch, run.name)),
        views.map(({ view, says }) => h("div", view.element, says)), h("p.small", h("a", { href: AMR.address.make(["clip", slug], { run: r || undefined }) }, "This clip in this model")));
    });
    main.append(h("div.grid", h("section.card.w12", h("h2.hidden", "Watch and listen"), h(player.element ? "div.watch" : "div.stage", player.element, h("div.stage", h("div.twice", told), h("p.quiet.small", "One clip, two models: the same sound and picture, and what each model rests its decision on. The cursor moves in all maps."),
      shared.length ? null : h("p.note", "The two analyses explain no common class of this clip."))))), h("div.vs", { style: { "margin-top": "16px" } }, columns));
    update();
  };

  function neighbour(i, step, query) {
    const { clips } = AMR.site, all = clips.id.map((_, n) => n).filter((n) => clips.runs.every((column) => column.explained[n])), to = all[all.indexOf(i) + step];
    const known = all.includes(i) && to !== undefined;
    return h("a.btn", known ? { href: AMR.address.make(["compare", clips.slug[to]], query), "data-go": step < 0 ? "previous" : "next" } : { "aria-disabled": "true", role: "link" }, step < 0 ? "Previous" : "Next");
  }

  function summary(main) {
    const { runs, clips } = AMR.site, [a, b] = clips.runs, step = runs[0].modalities.length;
    const counts = { both: 0, a: 0, b: 0, none: 0 }, shift = [];
    for (let i = 0; i < clips.id.length; i++) {
      if (a.predicted[i] < 0 || b.predicted[i] < 0) continue;
      const x = AMR.isRight(0, i), y = AMR.isRight(1, i);
      counts[x && y ? "both" : x ? "a" : y ? "b" : "none"]++;
      if (a.explained[i] && b.explained[i]) shift.push([i, b.shares[i * step] - a.shares[i * step]]);
    }
    const total = counts.both + counts.a + counts.b + counts.none;
    shift.sort((p, q) => Math.abs(q[1]) - Math.abs(p[1]));
    main.append(h("div.head", h("h1", `${runs[0].name} against ${runs[1].name}`)), h("p.lead", `${AMR.plural(total, "clip")} of both analyses. ${AMR.plural(shift.length, "clip")} can be looked at side by side.`), h("div.grid",
      AMR.card("w6", "Who is right", null, AMR.bars([["both", counts.both / total, AMR.plural(counts.both, "clip"), "var(--accent)"],
        [`only ${runs[0].name}`, counts.a / total, AMR.plural(counts.a, "clip"), "var(--r0)", AMR.address.make(["clips"], { versus: "only" })],
        [`only ${runs[1].name}`, counts.b / total, AMR.plural(counts.b, "clip"), "var(--r1)", AMR.address.make(["clips"], { versus: "other" })], ["neither", counts.none / total, AMR.plural(counts.none, "clip"), "var(--soft)"]])),
      AMR.card("w6", "Dominance", "Mean share of the attribution: gradient times encoding.", h("div.runs", runs.map((run, r) => h("div", h("h3", h("i.swatch", { style: { background: `var(--r${r})` } }), run.name), AMR.shares(run.modalities, run.modalities.map((m) => run.dominance[m])))))),
      AMR.card("w12", "Side by side", `By how far the share of ${runs[0].modalities[0]} moved.`, AMR.table("Clips of both", ["clip", "true", runs[0].name, runs[1].name, `share of ${runs[0].modalities[0]}`, "shift"],
        shift.slice(0, 200).map(([i, d]) => [h("a", { href: AMR.address.make(["compare", clips.slug[i]]) }, clips.id[i]), AMR.truly(i), verdict(0, i), verdict(1, i), `${AMR.percent(a.shares[i * step], 0)} → ${AMR.percent(b.shares[i * step], 0)}`, AMR.signed(100 * d, 0)]), { numeric: [4, 5], hidden: true,
          saved: [["clip", "true", ...runs.map((run) => `predicted by ${run.name}`), ...runs.map((run) => `share of ${run.modalities[0]}, ${run.name}`), "shift"],
            () => shift.map(([i, d]) => [clips.id[i], AMR.truly(i), ...[a, b].map((one, r) => runs[r].labels[one.predicted[i]]), a.shares[i * step], b.shares[i * step], d])] }))));
  }

  function verdict(r, i) {
    const { runs, clips } = AMR.site, p = clips.runs[r].predicted[i], right = AMR.isRight(r, i);
    return h(right ? "span.right" : "span.wrong", AMR.icon(right ? "check" : "cross"), " ", runs[r].labels[p]);
  }
})();
