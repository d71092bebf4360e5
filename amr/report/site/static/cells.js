// Inputs whose atoms are words, columns or stretches of a curve: every atom is an element of the page, not of a canvas.
"use strict";

(() => {
  const { h } = AMR;

  AMR.CELLS = new Set(["text", "table", "series"]);

  // The same view as AMR.mapView, with the same options and methods.
  AMR.cellView = ({ run, modality, data, atoms = "fine", pick = null, title = null, tall = null }) => {
    const input = data.modalities[modality], kind = run.kinds[modality];
    const colour = AMR.modalityColour(run.modalities.indexOf(modality));
    const readout = h("span.readout", { "aria-hidden": "true" }), body = h(`div.cells.${kind}${tall === 84 ? ".tight" : ""}`);
    const save = AMR.savePicture(`map over ${modality}, ${data.id}`, () => AMR.fileName(data.id, modality, shown.named), () => AMR.drawn(body));
    const element = h("div.map", title === null ? null : h("h3", h("i", { style: { background: colour } }), title || modality, kind === "series" ? h("span.quiet.small", "each channel on its own scale") : null, readout), body, h("div.saves", save));
    let cells = [], built = null, shown = { values: null, unit: "", named: "" };

    const told = (atom) => {
      const { values, errors, unit } = shown;
      return values ? `${AMR.where(run, modality, shown.atoms, atom, data)}: ${AMR.signed(values[atom], 3)}${errors ? ` ± ${AMR.number(errors[atom])}` : ""} ${unit}` : AMR.where(run, modality, shown.atoms, atom, data);
    };
    const cell = (atom, classes, ...inside) => {
      const events = { onpointerenter: () => { readout.textContent = told(atom); }, onpointerleave: () => { readout.textContent = ""; } };
      const one = pick ? h(`button.cell${classes}`, { type: "button", tabindex: "-1", "aria-pressed": "false", onclick: () => pick(atom), onkeydown: (event) => arrow(event, one), ...events }, ...inside)
        : h(`span.cell${classes}`, events, ...inside);
      cells.push({ atom, one });
      return one;
    };
    const arrow = (event, from) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      const to = step && cells[cells.findIndex(({ one }) => one === from) + step];
      if (!to) return;
      event.preventDefault();
      cells.forEach(({ one }) => { one.tabIndex = one === to.one ? 0 : -1; });
      to.one.focus();
    };

    const build = { text, table, series };
    function text(which) { // atoms without text are none of this clip's
      body.replaceChildren(...input[`text_${which}`].flatMap((words, atom) => (words ? [cell(atom, ".word", words), " "] : [])));
    }
    function table(which) {
      const places = run.atoms[modality][which].coordinates;
      body.replaceChildren(...places.map((_, atom) => cell(atom, ".column", h("span.name", AMR.where(run, modality, which, atom, data)),
        h("span.value", which === "fine" && input.value ? input.value[atom] : ""), h("span.track", { "aria-hidden": "true" }, h("span.fill")), h("span.worth.tab"))));
    }
    function series(which) {
      const [steps, channels] = input.series.shape, places = run.atoms[modality][which].coordinates, fine = run.atoms[modality].fine;
      const length = Math.max(...places.map((at) => at.end_step)), names = channelNames(fine, channels);
      const layer = h("div.layer", places.map((at, atom) => Object.assign(cell(atom, ".stretch"), {})));
      places.forEach((at, atom) => {
        const box = { left: at.step / length, top: at.channel / channels, width: (at.end_step - at.step) / length, height: (at.end_channel - at.channel) / channels };
        for (const [key, value] of Object.entries(box)) cells[atom].one.style.setProperty(key, `${100 * value}%`);
      });
      const curves = Array.from({ length: channels }, (_, c) => {
        const values = Array.from({ length: steps }, (_, t) => input.series[t * channels + c]), low = Math.min(...values), span = Math.max(...values) - low || 1;
        const points = values.map((v, t) => `${((100 * (t + 0.5)) / steps).toFixed(2)} ${(36 - (32 * (v - low)) / span).toFixed(2)}`);
        return h("div.curve", h("svg.line", { viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" }, h("path", { d: `M${points.join("L")}`, fill: "none", stroke: "currentColor", "vector-effect": "non-scaling-stroke" })),
          h("span.name", names[c], h("span.quiet", ` ${AMR.number(low)} to ${AMR.number(low + span)}`)));
      });
      body.style.setProperty("--channels", channels);
      body.replaceChildren(layer, ...curves);
    }

    return {
      element, kind, window: null,
      show({ values, errors = null, atoms: which = "fine", top = null, strength = 0.7, unit = "", picked = null, named = "" }) {
        shown = { values, errors, atoms: which, unit, named };
        if (built !== which) {
          cells = [];
          build[kind](which);
          built = which;
        }
        const most = top ?? (values ? AMR.top(values) || 1 : 1);
        for (const { atom, one } of cells) {
          const value = values ? values[atom] / most : 0, share = Math.min(1, Math.abs(value));
          const paint = AMR.signedColour(Math.sign(value));
          one.style.setProperty("--paint", paint);
          one.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
          one.style.setProperty("--part", `${(75 * share * strength).toFixed(1)}%`);
          one.classList.toggle("against", value < 0);
          const worth = one.querySelector(".worth");
          if (worth) worth.textContent = values ? AMR.signed(values[atom], 3) : "";
          one.setAttribute("aria-pressed", String(atom === picked));
          if (!pick) one.removeAttribute("aria-pressed"); else { one.setAttribute("aria-label", told(atom)); one.tabIndex = -1; }
        }
        if (pick && cells.length) (cells.find(({ atom }) => atom === picked) || cells[0]).one.tabIndex = 0;
      },
      time() {},
    };
  };

  function channelNames(fine, channels) {
    const names = Array.from({ length: channels }, (_, c) => `channel ${c}`);
    fine.coordinates.forEach((at, atom) => { if (at.end_channel - at.channel === 1 && fine.names) names[at.channel] = fine.names[atom]; });
    return names;
  }
})();
