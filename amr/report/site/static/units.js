// Units before the output: what they speak for, what moves them, which clips they answer to, and what people call them.
"use strict";

(() => {
  const { h } = AMR;
  const which = (query) => Math.min(AMR.site.runs.length - 1, Number(query.run) || 0);

  AMR.units = async (main, rest, query) => {
    const r = which(query), { runs } = AMR.site, run = runs[r], { units } = await AMR.load(`${r}/units`);
    const list = h("div.unitlist");
    const draw = () => {
      const names = AMR.names.all(run);
      list.replaceChildren(...units.map((one) => {
        const best = [...one.coefficients].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3);
        return h("a.card.unit", { href: AMR.address.make(["unit", String(one.unit)], { run: r || undefined }) },
          h("span.quiet.small", `unit ${one.unit}`), h("span.name", names[one.unit] || h("span.quiet", "no name yet")),
          h("span.small", best.map(([c, v], n) => [n ? " · " : "", h("span", { style: { color: "inherit" } }, `${run.labels[c]} ${AMR.signed(v)}`)])));
      }));
    };
    main.append(h("div.head", h("h1", "Units"), h("div.end", AMR.exchange(run, draw))),
      h("p.lead", units.length ? `${AMR.plural(units.length, "unit")} that the sparse classifier uses, by their largest coefficient (logits per standard deviation). Look at the clips that a unit answers to, and say what it stands for: names stay in this browser until you export them.` : "The analysis has no units: amr analyze --stages representation prediction finds them."));
    if (runs.length > 1) main.append(h("div.tools", AMR.select("Model", runs.map((one, n) => [n, one.name]), r, (v) => { location.hash = AMR.address.make(["units"], { run: v === "0" ? undefined : v }); })));
    main.append(h("div.grid", h("div.w12", list)));
    draw();
  };

  // Export and import of names.
  AMR.exchange = (run, changed) => {
    const said = (text) => AMR.say(text), problem = h("p.note.warn", { hidden: true, role: "alert" });
    const file = h("input.hidden", { type: "file", accept: ".json,application/json", tabindex: "-1", "aria-label": "File with names of units", onchange: async () => {
      problem.hidden = true;
      try { said(`${AMR.plural(AMR.names.take(run, await file.files[0].text()), "name")} imported`); changed(); } catch (error) { problem.textContent = error.message; problem.hidden = false; }
      file.value = "";
    } });
    return [h("button.btn", { type: "button", onclick: () => AMR.names.download(run) }, "Export names"), h("button.btn", { type: "button", onclick: () => file.click() }, "Import names"), file, problem];
  };

  AMR.unit = async (main, [number], query) => {
    const r = which(query), { runs, clips } = AMR.site, run = runs[r], { units, mapped } = await AMR.load(`${r}/units`);
    const at = units.findIndex((one) => String(one.unit) === number);
    if (at < 0) throw new Error(`the sparse classifier has no unit ${number}`);
    const one = units[at], go = (n) => units[n] && AMR.address.make(["unit", String(units[n].unit)], query);
    const arrow = (name, text, href) => h("a.btn", href ? { href, "data-go": name } : { "aria-disabled": "true", role: "link" }, text);
    const kept = h("p.small.quiet", { role: "status" });
    const name = h("input", { type: "text", id: AMR.id("name"), maxlength: 200, value: AMR.names.all(run)[one.unit] || "", autocomplete: "off", placeholder: "what does it stand for?",
      oninput: () => { AMR.names.set(run, one.unit, name.value); kept.textContent = name.value.trim() ? "Kept in this browser." : "It has no name."; } });
    main.append(h("p.crumb", h("a", { href: AMR.address.make(["units"], { run: r || undefined }) }, "Units"), ` · ${at + 1} of ${units.length}`, query.clip ? [" · ", h("a", { href: AMR.address.make(["clip", query.clip], { run: r || undefined }) }, "back to the clip")] : null),
      h("div.head", h("h1", `Unit ${one.unit}`), runs.length > 1 ? h("span.chip", run.name) : null, (run.error_units || []).some((e) => e.unit === one.unit) ? h("span.chip.warned", { title: "A classifier of errors uses it" }, "active on errors") : null, h("div.end", arrow("previous", "Previous", go(at - 1)), arrow("next", "Next", go(at + 1)))));

    const largest = Math.max(1e-9, ...one.coefficients.map(([, v]) => Math.abs(v)));
    const coefficients = [...one.coefficients].sort((a, b) => b[1] - a[1]);
    main.append(h("div.grid",
      h("section.card.w6.stretch", h("header", h("h2", "Its name"), h("p", "In your words. Two people who name units alone can be compared: amr agreement A.json B.json")), h("div.field", h("label", { for: name.id }, "Concept"), name), kept, h("div.head", { style: { "margin-top": "12px" } }, AMR.exchange(run, () => { name.value = AMR.names.all(run)[one.unit] || ""; }))),
      AMR.card("w6.stretch", "Classes it speaks for and against", "Coefficient of the sparse classifier, in logits per standard deviation of the unit.",
        coefficients.length ? AMR.bars(coefficients.map(([c, v]) => [run.labels[c], Math.abs(v) / largest, AMR.signed(v), AMR.signedColour(Math.sign(v))])) : h("p.quiet", "None."))));

    if (query.clip && clips.slug.includes(query.clip) && clips.runs[r].explained[AMR.position(query.clip)]) main.append(await local(run, r, one.unit, query));
    for (const [end, text] of [["most", "Clips that activate it most"], ["least", "Clips that activate it least"]]) {
      const holder = h("div.ends");
      main.append(h("div.grid", AMR.card("w12", text, end === "most" ? "Over the whole split, with maps of what in them moves the unit where there are some." : null, holder)));
      const known = one[end] || [], shown = ([id], n) => n < 4 && mapped.includes(clips.slug[clips.id.indexOf(id)]);
      await Promise.all(known.filter(shown).map(async ([id, value]) => {
        const cell = h("div.end-clip");
        holder.append(cell);
        await extreme(cell, run, r, one.unit, id, value);
      }));
      const method = localMethod(run);
      if (holder.childElementCount && method) holder.after(h("div.sides", run.modalities.map((m) => h("div", h("p.label", { style: { "margin-top": "12px" } }, `Maps over ${m}; each has its own scale`), AMR.says(run, { stage: "R", method: method.method, modality: m, of: `for unit ${one.unit}` })))));
      const others = known.filter((clip, n) => !shown(clip, n));
      if (others.length) holder.after(h("p.small.others", h("span.quiet", holder.childElementCount ? "then " : ""), others.map(([id, value], n) => [n ? ", " : "", named(run, r, id), h("span.quiet", ` ${AMR.number(value)}`)])));
    }
  };

  const localMethod = (run) => run.methods.find((one) => one.stage === "R" && one.atoms !== "coarse");

  // R, local: what in this clip moves the unit.
  async function local(run, r, unit, query) {
    const data = await AMR.load(`${r}/clips/${query.clip}`), u = data.units.indexOf(unit), i = AMR.position(query.clip);
    if (u < 0) return h("div.grid", AMR.card("w12", `In clip ${data.id}`, null, h("p.quiet", "There are no maps of this unit for this clip: it is not among the units that count most there.")));
    const player = AMR.player(i), methods = run.methods.filter((one) => one.stage === "R" && run.modalities.some((m) => data.R[m]?.[one.method]));
    if (!methods.length) return h("div");
    let method = methods.some((one) => one.method === query.method) ? query.method : methods[0].method;
    const views = run.modalities.map((m) => ({ m, view: AMR.mapView({ run, modality: m, data, title: m, seek: player.seek, start: player.start }), says: h("div") }));
    const draw = () => views.forEach(({ m, view, says }) => {
      const map = data.R[m]?.[method], known = methods.find((one) => one.method === method);
      const values = map ? AMR.row(map.v, u) : null;
      view.show({ values, atoms: known.atoms || "fine", unit: known.unit, named: `unit ${unit} ${method}` });
      says.replaceChildren(map ? AMR.says(run, { stage: "R", method, modality: m, of: `for unit ${unit}`, top: AMR.top(values) }) : h("p.note", "No map of this modality."));
    });
    views.forEach(({ view }) => player.follow(view));
    AMR.keys = { ...AMR.keys, " ": () => player.toggle() };
    draw();
    const later = [], state = { ...query };
    const together = AMR.interactions(run, data, state, () => AMR.address.note(state), later, () => [u, 0.75, `unit ${unit}`], "RC");
    later.forEach((one) => one());
    return h("div.grid", h("section.card.w12", h("header", h("h2", `In clip ${data.id}`), h("span.chip", `activation ${AMR.number(data.activations[u])}`),
      h("span.end", AMR.select("Method", methods.map((one) => [one.method, one.title]), method, (v) => { method = v; state.method = method; AMR.address.note(state); draw(); })), h("p", "What in this clip moves the unit up or down.")),
      h(player.element ? "div.watch" : "div.stage", player.element, h("div.stage", views.map(({ view, says }) => h("div", view.element, says))))), together);
  }

  // R, global: one of the clips at the ends.
  function named(run, r, id) {
    const { clips } = AMR.site, i = clips.id.indexOf(id);
    return i >= 0 && clips.runs[r].explained[i] ? h("a", { href: AMR.address.make(["clip", clips.slug[i]], { run: r || undefined }) }, id) : h("span", id);
  }

  async function extreme(cell, run, r, unit, id, value) {
    const { clips } = AMR.site, i = clips.id.indexOf(id), slug = clips.slug[i], media = clips.media[i];
    const title = h("div.small", h("b", named(run, r, id)), h("div.quiet", `${AMR.truly(i)} · activation ${AMR.number(value)}`));
    const player = media?.file ? AMR.player(i) : null, data = await AMR.load(`${r}/extremes/${slug}`), u = data.units.indexOf(unit);
    if (player?.media) { player.media.controls = true; player.media.loop = false; player.media.preload = "metadata"; cell.append(player.media); } else if (!media?.none) cell.append(h("div.gone", h("b", "No media. "), (media && media.why) || ""));
    cell.append(title);
    const method = localMethod(run);
    for (const m of run.modalities) {
      const map = method && u >= 0 ? data.R[m]?.[method.method] : null, view = AMR.mapView({ run, modality: m, data, tall: 84, start: player ? player.start : 0 });
      view.show({ values: map ? AMR.row(map.v, u) : null, atoms: method?.atoms || "fine", unit: method?.unit || "", named: `unit ${unit}` });
      if (player) player.follow(view);
      cell.append(view.element);
    }
  }
})();
