// A modality's input with a map over it; what a map says of itself; the player that moves their cursors.
"use strict";

(() => {
  const { h } = AMR, NONE = 65535; // a place in no atom

  AMR.top = (values) => { let top = 0; for (const v of values) top = Math.max(top, Math.abs(v)); return top; };

  // Where an atom is, in words.
  AMR.where = (run, modality, atoms, index, data = null) => {
    const all = run.atoms[modality][atoms], at = all.coordinates[index], words = [];
    const text = data?.modalities[modality][`text_${atoms}`]?.[index];
    if (text) return `“${text}”`;
    if (all.names && "column" in at) return all.names[index];
    if ("column" in at) words.push(span("column", at.column, at.end_column));
    if ("channel" in at) words.push(all.names ? all.names[index] : span("channel", at.channel, at.end_channel));
    if ("step" in at && !("start_s" in at)) words.push(span("step", at.step, at.end_step));
    if ("bin" in at) words.push(span("bin", at.bin, at.end_bin));
    if ("word" in at) words.push(`word ${at.word}`);
    if ("part" in at) words.push(`part ${at.part}`);
    if ("segment" in at) words.push(`segment ${at.segment}`);
    if ("start_s" in at) words.push(`${at.start_s.toFixed(2)}–${at.end_s.toFixed(2)} s`);
    if ("low_hz" in at) words.push(`${AMR.hertz(at.low_hz)}–${AMR.hertz(at.high_hz)}`);
    if ("frame" in at) words.push(at.end_frame - at.frame > 1 ? `frames ${at.frame}–${at.end_frame - 1}` : `frame ${at.frame}`);
    if ("top" in at) words.push(`rows ${Math.round(at.top)}–${Math.round(at.bottom)}, columns ${Math.round(at.left)}–${Math.round(at.right)}`);
    if ("token" in at) words.push(`token ${at.token}`);
    if ("dimension" in at) words.push(span("dimension", at.dimension, at.end_dimension));
    return words.join(", ") || `atom ${index}`;
  };

  const span = (name, start, end) => (end - start > 1 ? `${name}s ${start}–${end - 1}` : `${name} ${start}`);

  // One input. options: run, modality, data (of a clip), atoms, pick(index) to make its atoms buttons, seek(seconds).
  AMR.mapView = ({ run, modality, data, atoms = "fine", pick = null, seek = null, title = null, tall = null, start = 0 }) => {
    if (AMR.CELLS.has(run.kinds[modality])) return AMR.cellView({ run, modality, data, atoms, pick, title, tall });
    const input = data.modalities[modality], kind = run.kinds[modality];
    const [height, width] = input.picture.shape, grid = run.atoms[modality].fine.grid;
    const parts = kind === "frames" ? grid[0] : 1, w = Math.floor(width / parts);
    const colour = AMR.modalityColour(run.modalities.indexOf(modality));
    const window = input.window ? input.window.map((t) => t - start) : null; // seconds of the media
    const channels = input.picture.shape.length === 3 ? 3 : 1;
    const views = Array.from({ length: parts }, (_, part) => {
      const canvas = h("canvas", { "aria-hidden": "true" });
      const plain = cut(input.picture, channels, width, part * w, w, height);
      return { part, canvas, plain, grey: AMR.grey(plain, w * height), labels: {}, box: null };
    });
    const labels = (view, which) => (view.labels[which] ??= cut(input[which], 1, width, view.part * w, w, height));
    const readout = h("span.readout", { "aria-hidden": "true" });
    let shown = { values: null, atoms, top: 1, strength: 0.7, unit: "", named: "" }, cursor = null;

    for (const view of views) {
      const events = {
        onpointermove: (event) => {
          const box = view.canvas.getBoundingClientRect();
          const x = Math.floor(((event.clientX - box.left) / box.width) * w), y = Math.floor(((event.clientY - box.top) / box.height) * height);
          if (x < 0 || y < 0 || x >= w || y >= height || !shown.values) return;
          const atom = labels(view, shown.atoms)[y * w + x];
          if (atom === NONE) return;
          const error = shown.errors ? ` ± ${AMR.number(shown.errors[atom])}` : "";
          readout.textContent = `${AMR.where(run, modality, shown.atoms, atom, data)}: ${AMR.signed(shown.values[atom], 3)}${error} ${shown.unit}`;
        },
        onpointerleave: () => { readout.textContent = ""; },
      };
      if (kind === "frames") {
        const at = run.atoms[modality].fine.coordinates[view.part * (grid.slice(1).reduce((a, b) => a * b, 1))];
        view.box = h("div.frame", events, view.canvas, h("small", tall === 84 ? String((at.frame + at.end_frame) >> 1) : `frame ${(at.frame + at.end_frame) >> 1}`));
      } else {
        view.box = h(`div.canvas.${kind}`, events, view.canvas);
        if (tall) view.box.style.setProperty("--tall", `${tall}px`);
        if (kind === "spectrogram") for (const mark of frequencies(run, modality, labels(view, "fine"), w, height)) view.box.append(h("span.hz", { style: { top: `${mark.y}%` }, "aria-hidden": "true" }, mark.text));
        if (window && !pick) {
          cursor = h("div.cursor", { hidden: true });
          view.box.append(cursor);
        }
      }
    }

    const body = kind === "frames" ? h("div.frames", views.map((view) => view.box)) : views[0].box;
    const seconds = lasts(run, modality);
    if (seek && window && kind !== "frames") {
      const move = (event) => { const box = body.getBoundingClientRect(); seek(window[0] + ((window[1] - window[0]) * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)))); };
      body.classList.add("seek");
      Object.entries({ role: "slider", tabindex: "0", "aria-label": `Time in the ${modality}`, "aria-valuemin": window[0].toFixed(2), "aria-valuemax": window[1].toFixed(2), "aria-valuenow": window[0].toFixed(2) })
        .forEach(([key, value]) => body.setAttribute(key, value));
      body.addEventListener("pointerdown", (event) => { body.setPointerCapture(event.pointerId); move(event); });
      body.addEventListener("pointermove", (event) => { if (event.buttons & 1) move(event); });
      body.addEventListener("keydown", (event) => {
        const span = window[1] - window[0], now = Number(body.getAttribute("aria-valuenow"));
        const to = { ArrowLeft: now - span / 50, ArrowRight: now + span / 50, ArrowDown: now - span / 50, ArrowUp: now + span / 50, PageDown: now - span / 10, PageUp: now + span / 10, Home: window[0], End: window[1] - 0.001 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        seek(Math.max(window[0], Math.min(window[1], to)));
      });
    }
    const save = AMR.savePicture(`map over ${modality}, ${data.id}`, () => AMR.fileName(data.id, modality, shown.named), () => AMR.joined(views.map((view) => view.canvas)));
    const element = h("div.map", title === null ? null : h("h3", h("i", { style: { background: colour } }), title || modality, h("span.quiet.small", input.unit), readout),
      body, kind === "spectrogram" || kind === "wave" ? timeAxis(seconds) : null, h("div.saves", save)); // below: a readout may not move the map under a pointer

    let buttons = [];
    function picker() { // every atom a button, over the part of each canvas that it covers
      buttons.forEach((one) => one.button.remove());
      buttons = [];
      for (const view of views) {
        const boxes = bounds(labels(view, shown.atoms), w, height);
        const layer = h("div.picker", { role: "group", "aria-label": `${modality}: pick ${kind === "frames" ? "a patch" : "a block"}` });
        view.box.querySelector(".picker")?.remove();
        view.box.append(layer);
        for (const [atom, [x0, y0, x1, y1]] of boxes) {
          const button = h("button", { type: "button", tabindex: "-1", "aria-pressed": "false", onclick: () => pick(atom), onkeydown: (event) => arrow(event, atom, button),
            style: { position: "absolute", left: `${(100 * x0) / w}%`, top: `${(100 * y0) / height}%`, width: `${(100 * (x1 - x0)) / w}%`, height: `${(100 * (y1 - y0)) / height}%` } });
          layer.append(button);
          buttons.push({ atom, button });
        }
      }
      if (buttons.length) buttons[0].button.tabIndex = 0;
    }
    function arrow(event, atom, from) { // the nearest button that way
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault();
      const centre = (element) => { const b = element.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; };
      const [x, y] = centre(from);
      let best = null, least = Infinity;
      for (const { button } of buttons) {
        const [u, v] = centre(button), along = (u - x) * way[0] + (v - y) * way[1], across = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
        if (along > 1 && along + 3 * across < least) { least = along + 3 * across; best = button; }
      }
      if (!best) return;
      buttons.forEach(({ button }) => { button.tabIndex = button === best ? 0 : -1; });
      best.focus();
    }

    return {
      element, window, kind,
      // values: of each atom, or null for the plain input
      // named: what the map is of, for the name of its file
      show({ values, errors = null, atoms: which = "fine", top = null, strength = 0.7, unit = "", picked = null, named = "" }) {
        const anew = pick && (which !== shown.atoms || !buttons.length);
        shown = { values, errors, atoms: which, top: top ?? (values ? AMR.top(values) || 1 : 1), strength, unit, named };
        for (const view of views) {
          if (values && strength > 0) AMR.paint(view.canvas, view.grey, labels(view, which), values, { width: w, height, top: shown.top, strength });
          else AMR.paintPlain(view.canvas, view.plain, w, height);
        }
        if (anew) picker();
        for (const { atom, button } of buttons) {
          const told = AMR.where(run, modality, which, atom, data);
          button.setAttribute("aria-label", values ? `${told}: ${AMR.signed(values[atom], 3)}` : told);
          button.setAttribute("aria-pressed", String(atom === picked));
        }
        if (picked !== null && buttons.length && !element.contains(document.activeElement)) {
          buttons.forEach(({ atom, button }) => { button.tabIndex = -1; if (atom === picked) button.tabIndex = -1; });
          buttons.find(({ atom }) => atom === picked).button.tabIndex = 0;
        } else if (buttons.length && !buttons.some(({ button }) => button.tabIndex === 0)) buttons[0].button.tabIndex = 0;
      },
      time(t) { // seconds of the media
        if (!window) return;
        const part = (t - window[0]) / (window[1] - window[0]), inside = part >= 0 && part <= 1.0001;
        if (kind === "frames") views.forEach((view) => view.box.classList.toggle("now", inside && Math.min(parts - 1, Math.floor(part * parts)) === view.part));
        else if (cursor) {
          cursor.hidden = !inside;
          cursor.style.transform = `translateX(${part * (cursor.parentNode.clientWidth - 2)}px)`;
          const slider = cursor.parentNode;
          if (slider.hasAttribute("role")) {
            slider.setAttribute("aria-valuenow", Math.max(window[0], Math.min(window[1], t)).toFixed(2));
            slider.setAttribute("aria-valuetext", AMR.seconds(t));
          }
        }
      },
    };
  };

  function cut(pixels, channels, width, x, w, height) {
    const out = new pixels.constructor(w * height * channels);
    for (let y = 0; y < height; y++) out.set(pixels.subarray((y * width + x) * channels, (y * width + x + w) * channels), y * w * channels);
    return out;
  }

  function bounds(labels, w, height) { // atom -> [x0, y0, x1, y1]
    const found = new Map();
    for (let y = 0; y < height; y++) for (let x = 0; x < w; x++) {
      const atom = labels[y * w + x], box = found.get(atom);
      if (atom === NONE) continue;
      if (!box) found.set(atom, [x, y, x + 1, y + 1]);
      else { if (x < box[0]) box[0] = x; if (x >= box[2]) box[2] = x + 1; if (y >= box[3]) box[3] = y + 1; }
    }
    return found;
  }

  function lasts(run, modality) { // seconds of the input
    return Math.max(0, ...run.atoms[modality].fine.coordinates.map((at) => at.end_s ?? 0));
  }

  function timeAxis(seconds) {
    const marks = 4;
    return h("div.axis", { "aria-hidden": "true" }, Array.from({ length: marks + 1 }, (_, i) => h("span", { style: { left: `${(100 * i) / marks}%` } }, `${((seconds * i) / marks).toFixed(2)}${i === marks ? " s" : ""}`)));
  }

  function frequencies(run, modality, labels, w, height) { // some edges of the blocks
    const edges = new Map();
    for (const [atom, [, y0]] of bounds(labels, w, height)) edges.set(y0, run.atoms[modality].fine.coordinates[atom].high_hz);
    return [...edges].filter(([y]) => y > 0).sort((a, b) => a[0] - b[0]).filter((_, i) => i % 2 === 1).map(([y, hz]) => ({ y: (100 * y) / height, text: AMR.hertz(hz) }));
  }

  // What a map says of itself: what it is, its unit, how faithful it is, and when not to trust it.
  AMR.says = (run, { stage, method, modality = null, pair = null, of, top = null, reason = null }) => {
    const known = run.methods.find((one) => one.method === method && one.stage === (stage === "RC" ? "R" : stage)) || { title: method, about: "", caution: "", unit: "" };
    const scored = stage === "D" ? "dime" : method;
    const trust = (run.trust || []).find((row) => row.stage === stage && row.method === scored && (pair ? row.first === pair[0] && row.second === pair[1] : row.modality === modality));
    return h("div.says",
      top === null ? null : top === 0 ? h("p", "Every value of this map is 0.") : AMR.legend(top, known.unit, known.signed !== false),
      h("p", h("b", known.title), `, ${of}. ${known.about}`, known.atoms === "coarse" ? " It speaks of coarse pieces." : "", stage === "P" ? "" : gone(run, pair || [modality])),
      reason ? h("p.flag", reason) : null,
      h("p", h("b", "Faithfulness "), trust && !Number.isFinite(trust.score) ? `could not be measured on ${AMR.plural(trust.clips, "clip")}.` : trust ? [AMR.number(trust.score), Number.isFinite(trust.low) ? ` [${AMR.number(trust.low)}, ${AMR.number(trust.high)}]` : "", ` on ${AMR.plural(trust.clips, "clip")}`] : "was not measured for this kind of map."),
      trust ? trust.warnings.map((text) => h("p.flag", text)) : null,
      known.caution || trust ? h("details", h("summary", "When not to trust it"), known.caution ? h("p", known.caution) : null, trust ? h("p", `The score is ${trust.score_name}; 95 % interval over clips.`) : null) : null);
  };

  const gone = (run, modalities) => { // what a piece becomes that is taken away
    const told = modalities.filter((m) => run.baselines?.[m]).map((m) => `${modalities.length > 1 ? `of ${m} ` : ""}${run.baselines[m]}`);
    return told.length ? ` In place of a piece: ${told.join(", ")}.` : "";
  };

  // The media of a clip, or why there is none. follow(view) makes a map's cursor move with it.
  AMR.player = (i) => {
    const media = AMR.site.clips.media[i], views = new Set();
    const tick = () => { const t = element ? element.currentTime : 0; views.forEach((view) => view.time(t)); clock.textContent = `${t.toFixed(2)} / ${media?.seconds ? media.seconds.toFixed(2) : "–"} s`; };
    const clock = h("span.time", { "aria-hidden": "true" });
    let element = null, frame = 0;
    const none = { element: h("div.gone", { role: "note" }, h("b", "No media. "), (media && media.why) || "This clip is not among those whose media were copied.", h("p.small", "The maps come from the store, and are the same without it.")),
      follow: () => {}, seek: null, toggle: () => {}, start: media?.start || 0, aspect: null };
    if (media?.none) return { ...none, element: null };
    if (!media || !media.file) return none;
    const source = media.file.split("/").map(encodeURIComponent).join("/");
    element = h(media.picture ? "video" : "audio", { preload: "auto", playsinline: true, loop: true, "aria-label": `Clip ${AMR.site.clips.id[i]}` });
    const failed = h("p.note.warn", { hidden: true }, "The browser cannot play this file; the maps are the same without it.");
    element.addEventListener("error", () => { failed.hidden = false; });
    let whole = null;
    if (location.protocol === "file:") element.src = source;
    else { // at once and whole, because a browser cannot seek in what a server without ranges sends
      fetch(source).then((answer) => (answer.ok ? answer.arrayBuffer() : Promise.reject(new Error(answer.statusText)))).then((bytes) => {
        whole = URL.createObjectURL(new Blob([bytes], { type: media.picture ? "video/mp4" : "audio/mp4" }));
        element.src = whole;
      }).catch(() => { failed.hidden = false; });
    }
    const button = h("button.btn.main", { type: "button", "aria-label": "Play", onclick: () => toggle() }, AMR.icon("play"), "Play");
    const toggle = () => { if (element.paused) element.play().catch(() => { failed.hidden = false; }); else element.pause(); };
    const sync = () => {
      button.replaceChildren(AMR.icon(element.paused ? "play" : "pause"), element.paused ? "Play" : "Pause");
      button.setAttribute("aria-label", element.paused ? "Play" : "Pause");
      cancelAnimationFrame(frame);
      if (!element.paused) { const step = () => { tick(); frame = requestAnimationFrame(step); }; step(); } else tick();
    };
    for (const name of ["play", "pause", "seeked", "loadedmetadata", "ended"]) element.addEventListener(name, sync);
    element.addEventListener("loadedmetadata", () => { if (element.videoWidth) element.style.setProperty("--aspect", `${element.videoWidth} / ${element.videoHeight}`); });
    AMR.cleanup.push(() => { cancelAnimationFrame(frame); element.pause(); element.removeAttribute("src"); element.load(); if (whole) URL.revokeObjectURL(whole); });
    const loop = h("input", { type: "checkbox", checked: true, onchange: () => { element.loop = loop.checked; } });
    const quiet = h("input", { type: "checkbox", onchange: () => { element.muted = quiet.checked; } });
    const speed = h("select", { "aria-label": "Speed", onchange: () => { element.playbackRate = Number(speed.value); } }, [0.1, 0.25, 0.5, 1].map((v) => h("option", { value: v, selected: v === 1 }, `${v}×`)));
    speed.classList.add("speed");
    tick();
    return {
      element: h("div.stage", element, h("div.transport", button, clock, speed, h("label.small", loop, " loop"), media.sound ? h("label.small", quiet, " mute") : h("span.small.quiet", "no sound")), failed),
      media: element, start: media.start || 0, toggle,
      seek: (t) => { element.currentTime = t; tick(); },
      follow(view) { views.add(view); tick(); },
    };
  };
})();
