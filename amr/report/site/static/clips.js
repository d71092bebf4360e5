// The list of clips: filtered and sorted in memory, and only the rows on show are elements.
"use strict";

(() => {
  const { h } = AMR, HEIGHT = 64, SPARE = 4;
  AMR.stats = { scanned: 0, matched: 0, rows: 0, milliseconds: 0 }; // of the last filtering, for tests and benchmarks
  AMR.order = []; // positions of the clips of the last list, for next and previous

  AMR.explainedHref = (i, query = {}) => AMR.address.make(["clip", AMR.site.clips.slug[i]], query);

  // Positions of the clips that a query lets through, in its order.
  AMR.filter = (query) => {
    const { clips, runs } = AMR.site, r = Number(query.run) || 0, column = clips.runs[r], run = runs[r];
    const words = (query.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    const label = query.class ? run.labels.indexOf(query.class) : -1, as = query.as ? run.labels.indexOf(query.as) : -1;
    const low = query.low === undefined ? 0 : Number(query.low) / 100, high = query.high === undefined ? 1 : Number(query.high) / 100;
    const step = run.modalities.length, error = query.error ? column.errors.indexOf(query.error) : -1;
    const out = [];
    for (let i = 0; i < clips.id.length; i++) {
      if (column.predicted[i] < 0) continue;
      if (words.length && !words.every((word) => AMR.texts[i].includes(word))) continue;
      if (label >= 0 && !AMR.truth(i).includes(label)) continue;
      if (as >= 0 && column.predicted[i] !== as) continue;
      const right = AMR.isRight(r, i);
      if (query.outcome === "right" ? !right : query.outcome === "wrong" && right) continue;
      if (query.error && column.error[i] !== error) continue;
      if (query.split && clips.split[i] !== query.split) continue;
      if (query.maps === "yes" && !column.explained[i]) continue;
      const share = column.shares[i * step];
      if ((low > 0 || high < 1) && !(share >= low && share <= high)) continue;
      if (query.versus) {
        const other = AMR.isRight(1 - r, i);
        if (query.versus === "only" ? !(right && !other) : query.versus === "other" ? !(other && !right) : clips.runs[1 - r].predicted[i] === column.predicted[i]) continue;
      }
      out.push(i);
    }
    const by = { id: (a, b) => (clips.id[a] < clips.id[b] ? -1 : 1), label: (a, b) => clips.label[a] - clips.label[b], confidence: (a, b) => column.confidence[b] - column.confidence[a],
      unsure: (a, b) => column.confidence[a] - column.confidence[b], share: (a, b) => column.shares[b * step] - column.shares[a * step], least: (a, b) => column.shares[a * step] - column.shares[b * step] }[query.sort];
    if (by) out.sort((a, b) => by(a, b) || a - b);
    else out.sort((a, b) => column.explained[b] - column.explained[a] || a - b);
    return out;
  };

  AMR.clips = (main, rest, query) => {
    const { clips, runs } = AMR.site;
    let r = Number(query.run) || 0;
    const state = { ...query };
    const modality = runs[0].modalities[0];
    const count = h("p.quiet", { role: "status" });
    const space = h("div.space", { role: "list", "aria-label": "Clips" });
    const heads = h("div.rowheads", { "aria-hidden": "true" }), saving = h("span");
    const list = h("div.list", { tabindex: "0", role: "region", "aria-label": "List of clips; arrows move, Enter opens", onscroll: () => draw() }, space);
    let found = [], drawn = new Map();

    const search = h("input", { type: "search", id: AMR.id("q"), value: state.q || "", autocomplete: "off", spellcheck: "false", placeholder: "id, class, prediction",
      oninput: () => change({ q: search.value }) });
    search.dataset.search = "";
    const range = (key, label, fallback) => {
      const box = h("input", { type: "text", inputmode: "numeric", id: AMR.id("n"), value: state[key] ?? "", placeholder: fallback, "aria-label": label,
        oninput: () => { const v = Number(box.value); change({ [key]: box.value === "" || !Number.isFinite(v) ? undefined : String(v) }); } });
      return box;
    };
    const form = h("div.card", h("h2.hidden", "Filter"), h("div.filters"));
    const fields = form.lastChild;
    const fill = () => {
      const run = runs[r], errors = clips.runs[r].errors, splits = [...new Set(clips.split)];
      fields.replaceChildren(
        h("div.field.wide", h("label", { for: search.id }, "Search"), search),
        ...[runs.length > 1 && AMR.select("Model", runs.map((one, i) => [i, one.name]), r, (v) => { r = Number(v); change({ run: r || undefined, error: undefined }); fill(); }),
          AMR.select("Class", [["", "all"], ...run.labels.map((label) => [label, label])], state.class || "", (v) => change({ class: v })),
          AMR.select("Outcome", [["", "all"], ["right", "right"], ["wrong", "wrong"]], state.outcome || "", (v) => change({ outcome: v })),
          errors.length > 0 && AMR.select("Error", [["", "all"], ...errors.map((kind) => [kind, kind])], state.error || "", (v) => change({ error: v })),
          splits.length > 1 && AMR.select("Split", [["", "all"], ...splits.map((one) => [one, one])], state.split || "", (v) => change({ split: v })),
          AMR.select("Maps", [["", "all clips"], ["yes", "explained ones"]], state.maps || "", (v) => change({ maps: v })),
          runs.length > 1 && AMR.select("Against the other", [["", "all"], ["differ", "predictions differ"], ["only", `only ${run.name} right`], ["other", `only ${runs[1 - r].name} right`]], state.versus || "", (v) => change({ versus: v })),
          run.modalities.length > 1 && h("div.field", { role: "group", "aria-label": `Share of ${modality}` }, h("span.label", `Share of ${modality}, %`), h("div.two", range("low", "from, %", "0"), range("high", "to, %", "100"))),
          AMR.select("Sort by", [["", "explained first"], ["id", "id"], ["label", "class"], ["confidence", "confidence, high first"], ["unsure", "confidence, low first"], ["share", `share of ${modality}, high first`], ["least", `share of ${modality}, low first`]], state.sort || "", (v) => change({ sort: v })),
        ].filter(Boolean));
    };
    const reset = h("button.btn.bare", { type: "button", onclick: () => { for (const key of Object.keys(state)) delete state[key]; search.value = ""; r = 0; fill(); update(); } }, "Show all");
    const predictedAs = h("span");

    // The list as it is filtered and sorted.
    const saved = () => {
      const run = runs[r], column = clips.runs[r], step = run.modalities.length;
      const rows = found.map((i) => [clips.id[i], AMR.truly(i), run.labels[column.predicted[i]], Number(AMR.isRight(r, i)), column.confidence[i],
        ...column.shares.subarray(i * step, (i + 1) * step), column.error[i] >= 0 ? column.errors[column.error[i]] : "", clips.split[i], Number(column.explained[i])]);
      AMR.save("clips.csv", new Blob([AMR.csv(["id", "class", "predicted", "right", "confidence", ...run.modalities.map((m) => `share of ${m}`), "error", "split", "explained"], rows)], { type: "text/csv" }));
    };
    saving.append(AMR.saver("CSV", "clips of this list", saved));

    function change(part) {
      Object.assign(state, part);
      update();
    }

    function update() {
      const started = performance.now();
      found = AMR.filter(state);
      AMR.order = found;
      for (const row of drawn.values()) row.remove();
      drawn = new Map();
      list.scrollTop = 0;
      space.style.height = `${found.length * HEIGHT}px`;
      count.textContent = `${AMR.plural(found.length, "clip")} of ${AMR.plural(clips.id.length, "clip").replace(" clips", "")}`;
      predictedAs.replaceChildren(...(state.as ? [h("button.chip", { type: "button", onclick: () => change({ as: undefined }), "aria-label": `taken for ${state.as}: lift this filter` }, `taken for ${state.as}`, AMR.icon("cross"))] : []));
      draw();
      void list.offsetHeight; // layout counts, too
      AMR.stats = { scanned: clips.id.length, matched: found.length, rows: space.childElementCount, milliseconds: performance.now() - started };
      AMR.address.note(state);
    }

    function draw() {
      const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - SPARE);
      const last = Math.min(found.length, Math.ceil((list.scrollTop + (list.clientHeight || 800)) / HEIGHT) + SPARE);
      for (const [n, row] of drawn) if (n < first || n >= last) { row.remove(); drawn.delete(n); }
      for (let n = first; n < last; n++) if (!drawn.has(n)) { const row = entry(n); drawn.set(n, row); space.append(row); }
    }

    function entry(n) {
      const i = found[n], run = runs[r], column = clips.runs[r], right = AMR.isRight(r, i);
      const step = run.modalities.length, shares = column.shares.subarray(i * step, (i + 1) * step);
      const label = AMR.truly(i), predicted = run.labels[column.predicted[i]], told = right ? label : `${label} → ${predicted}`;
      const picture = clips.thumb[i] ? h("img", { src: `thumbs/${encodeURIComponent(clips.slug[i])}.jpg`, alt: "", loading: "lazy", width: 84, height: 48 }) : clips.snippet[i] ? h("span.blank.words", { title: clips.snippet[i] }, clips.snippet[i]) : h("span.blank", "no picture");
      const link = h("a.row", { href: AMR.explainedHref(i, { run: r || undefined }), "aria-label": `${clips.id[i]}: ${label}, ${right ? "predicted right" : `taken for ${predicted}`}, confidence ${AMR.percent(column.confidence[i], 0)}`,
        onkeydown: (event) => {
          const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
          if (!step) return;
          event.preventDefault();
          focus(n + step);
        } },
      picture, h("span.id", { title: clips.id[i] }, clips.id[i]),
      h("span.told", { title: told }, h(right ? "span.right" : "span.wrong", AMR.icon(right ? "check" : "cross")), h("span.names", right ? h("span", label) : [h("span", label), " ", h("span", `→ ${predicted}`)])),
      h("span.tab.small.quiet", AMR.percent(column.confidence[i], 0)), AMR.shares(run.modalities, shares, { thin: true }),
      h("span.small.quiet", column.error[i] >= 0 ? column.errors[column.error[i]] : ""));
      return h("div", { role: "listitem", "aria-setsize": found.length, "aria-posinset": n + 1, style: { position: "absolute", left: 0, right: 0, top: `${n * HEIGHT}px`, height: `${HEIGHT}px` } }, link);
    }

    function focus(n) {
      if (n < 0 || n >= found.length) return;
      const top = n * HEIGHT;
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
      draw();
      drawn.get(n).firstChild.focus();
    }
    list.addEventListener("keydown", (event) => { if (event.target === list && event.key === "ArrowDown") { event.preventDefault(); focus(Math.floor(list.scrollTop / HEIGHT)); } });

    heads.append(...["", "Clip", "Class → prediction", "Confidence", runs[0].modalities.length > 1 ? "Shares" : "", "Error"].map((text) => h("span", text)));
    fill();
    main.append(h("div.head", h("h1", "Clips")), h("div.grid", h("div.w12", form)),
      h("div.count", count, predictedAs, reset, saving, h("span.key.end", AMR.key(runs[0].modalities.map((m, i) => [m, `--m${i}`])))), heads, list);
    update();
    requestAnimationFrame(draw);
    AMR.live.add(draw);
  };
})();
