// What every view needs: the data, elements, the address, numbers, names of units.
// Data come as scripts, because a page that was opened from disk may not fetch: data/<key>.js calls AMR.take(key, text)
// with base64 of a gzip stream of [uint32 n, n bytes of JSON, arrays], which is unpacked here.
// Elements are made by AMR.h, which only ever sets text, so that no label or file name can become markup.
"use strict";

const AMR = (window.AMR = {});

// ---------------------------------------------------------------------------------------------------------------- data

(() => {
  const waiting = new Map(); // key -> [resolve, reject]
  const kept = new Map(); // key -> promise; the latest used last
  const KEEP = 40;
  const TYPES = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };

  AMR.take = (key, text) => {
    const one = waiting.get(key);
    if (!one) return;
    waiting.delete(key);
    unpack(text).then(...one);
  };

  AMR.load = (key) => {
    let promise = kept.get(key);
    if (promise) {
      kept.delete(key);
    } else {
      promise = new Promise((resolve, reject) => {
        waiting.set(key, [resolve, reject]);
        const script = document.createElement("script");
        script.src = `data/${key.split("/").map(encodeURIComponent).join("/")}.js`;
        script.onload = () => script.remove();
        script.onerror = () => {
          script.remove();
          waiting.delete(key);
          kept.delete(key);
          reject(new Error(`data/${key}.js is not there: the site was moved without it, or is still being written`));
        };
        document.head.append(script);
      });
    }
    kept.set(key, promise);
    if (kept.size > KEEP) kept.delete(kept.keys().next().value);
    return promise;
  };

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const size = new DataView(buffer).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
    return revive(head, buffer, (4 + size + 7) & ~7);
  }

  // {"$": [type, offset, shape, scale]} becomes a typed array with a shape; a scale turns integers into numbers.
  function revive(node, buffer, base) {
    if (Array.isArray(node)) return node.map((child) => revive(child, buffer, base));
    if (node === null || typeof node !== "object") return node;
    if (!node.$) {
      return Object.fromEntries(Object.entries(node).map(([key, child]) => [key, revive(child, buffer, base)]));
    }
    const [type, offset, shape, scale] = node.$;
    const count = shape.reduce((a, b) => a * b, 1);
    let array = new TYPES[type](buffer, base + offset, count);
    if (scale !== undefined) array = Float32Array.from(array, (v) => v * scale);
    array.shape = shape;
    return array;
  }

  AMR.row = (array, ...index) => { // the part of an array at the first indices
    let size = array.length, start = 0;
    index.forEach((i, axis) => { size /= array.shape[axis]; start += i * size; });
    const part = array.subarray(start, start + size);
    part.shape = array.shape.slice(index.length);
    return part;
  };
})();

// ------------------------------------------------------------------------------------------------------------ elements

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SVG_TAGS = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "polyline"]);

  // h("p.quiet", {title: "x"}, "text", child): strings become text, null and false nothing.
  AMR.h = (spec, ...rest) => {
    const [tag, ...classes] = spec.split(".");
    const svg = SVG_TAGS.has(tag);
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag || "div");
    if (classes.length) element.setAttribute("class", classes.join(" "));
    for (const one of rest) {
      if (one && one.constructor === Object) set(element, one);
      else append(element, one);
    }
    return element;
  };

  function set(element, properties) {
    for (const [key, value] of Object.entries(properties)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (key === "style") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
      else if (key === "value") element.value = value;
      else if (key === "checked" || key === "disabled" || key === "selected") element[key] = value;
      else element.setAttribute(key, value === true ? "" : String(value));
    }
  }

  function append(element, child) {
    if (Array.isArray(child)) child.forEach((one) => append(element, one));
    else if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(String(child));
  }

  const PATHS = {
    check: "M3 8.5l3.2 3.2L13 4.8", cross: "M4 4l8 8M12 4l-8 8", left: "M10 3L5 8l5 5", right: "M6 3l5 5-5 5",
    sun: "M8 5a3 3 0 100 6 3 3 0 000-6M8 1v1.6M8 13.4V15M1 8h1.6M13.4 8H15M3 3l1.1 1.1M11.9 11.9L13 13M13 3l-1.1 1.1M4.1 11.9L3 13",
    moon: "M13.2 9.9A5.8 5.8 0 016.1 2.8a5.8 5.8 0 107.1 7.1z", keys: "M1.5 4.5h13v7h-13zM4 7h.01M6.7 7h.01M9.3 7h.01M12 7h.01M5 9.3h6",
    play: "M5 3.2v9.6L12.6 8z", pause: "M5 3v10M11 3v10", link: "M6.5 9.5l3-3M7.5 4.5l1-1a2.8 2.8 0 014 4l-1 1M8.5 11.5l-1 1a2.8 2.8 0 01-4-4l1-1",
    search: "M7 2.5a4.5 4.5 0 100 9 4.5 4.5 0 000-9zM10.3 10.3L14 14",
  };
  AMR.icon = (name) => AMR.h("svg.icon", { viewBox: "0 0 16 16", "aria-hidden": "true" }, AMR.h("path", { d: PATHS[name] }));

  AMR.say = (text) => { document.getElementById("live").textContent = text; };

  // A table from plain values, with a button that saves it; numbers to the right. saved: [head, rows()] of the file, where
  // it has more than is shown.
  AMR.table = (caption, head, rows, { numeric = [], hidden = false, saved = null } = {}) => {
    const { h } = AMR;
    return h("div.tabled", h("div.scroll", { tabindex: "0", role: "region", "aria-label": caption }, h("table",
      h(hidden ? "caption.hidden" : "caption", caption),
      h("thead", h("tr", head.map((text, i) => h(numeric.includes(i) ? "th.num" : "th", { scope: "col" }, text)))),
      h("tbody", rows.map((row) => h("tr", row.map((cell, i) =>
        i ? h(numeric.includes(i) ? "td.num" : "td", cell) : h("th", { scope: "row" }, cell))))))),
    h("div.saves", AMR.saveTable(caption, ...(saved || [head, rows]))));
  };

  let ids = 0;
  AMR.id = (prefix) => `${prefix}-${++ids}`;

  AMR.select = (label, options, value, change, { wide = false } = {}) => { // options: [value, text, disabled?]
    const { h } = AMR, id = AMR.id("s");
    const box = h("select", { id, onchange: () => change(box.value), onpointerenter: () => { box.title = box.selectedOptions[0]?.text || ""; } }, // a narrow one cuts its text
      options.map(([v, text, off]) => h("option", { value: v, selected: String(v) === String(value), disabled: !!off }, text)));
    return h(wide ? "div.field.wide" : "div.field", h("label", { for: id }, label), box);
  };
})();

// ------------------------------------------------------------------------------------------------------------- numbers

AMR.percent = (x, digits = 1) => (Number.isFinite(x) ? `${(100 * x).toFixed(digits)} %` : "–");
AMR.number = (x, digits = 2) => {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  const text = size !== 0 && (size < 0.001 || size >= 1e5) ? x.toExponential(1) : size !== 0 && size < 0.1 && digits === 2 ? x.toPrecision(2) : x.toFixed(size >= 100 ? 0 : digits);
  return text.replace("-", "−");
};
AMR.signed = (x, digits = 2) => (x > 0 ? "+" : "") + AMR.number(x, digits);
const GROUPED = new Intl.NumberFormat("en");
AMR.plural = (n, word) => `${GROUPED.format(n)} ${word}${n === 1 ? "" : word.endsWith("s") ? "es" : "s"}`;
AMR.seconds = (t) => (Number.isFinite(t) ? `${t.toFixed(2)} s` : "–");
AMR.hertz = (f) => (f >= 1000 ? `${(f / 1000).toFixed(f >= 10000 ? 0 : 1)} kHz` : `${Math.round(f)} Hz`);

// 95 % interval of a share k/n (Wilson 1927), which stays within 0 and 1.
AMR.wilson = (k, n) => {
  const z = 1.959964, p = k / n, d = 1 + (z * z) / n;
  const middle = (p + (z * z) / (2 * n)) / d, half = (z / d) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
};

// --------------------------------------------------------------------------------------------------------- the address

AMR.address = {
  written: -Infinity,
  read() {
    const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
    const parts = path.split("/").filter(Boolean).map((part) => {
      try { return decodeURIComponent(part); } catch { return part; }
    });
    return { view: parts[0] || "", rest: parts.slice(1), query: Object.fromEntries(new URLSearchParams(query)) };
  },
  make(parts, query = {}) {
    const text = new URLSearchParams(Object.entries(query).filter(([, v]) => v !== undefined && v !== null && v !== "")).toString();
    return `#/${parts.map((part) => encodeURIComponent(part)).join("/")}${text ? `?${text}` : ""}`;
  },
  // Change what the address says of this view without leaving it; not more often than a browser lets a page do so.
  note(query) {
    const { view, rest } = AMR.address.read(), path = location.hash.split("?")[0];
    clearTimeout(AMR.address.timer);
    AMR.address.pending = () => {
      AMR.address.pending = null;
      AMR.address.written = performance.now();
      if (location.hash.split("?")[0] === path) history.replaceState(null, "", AMR.address.make(view ? [view, ...rest] : [], query));
    };
    if (performance.now() - AMR.address.written > 150) AMR.address.pending();
    else AMR.address.timer = setTimeout(() => AMR.address.pending?.(), 150);
  },
};
addEventListener("pagehide", () => AMR.address.pending?.());

// -------------------------------------------------------------------------------------------- what is true of a clip

AMR.truth = (i) => (AMR.site.clips.labels ? AMR.site.clips.labels[i] : [AMR.site.clips.label[i]]); // classes, the likeliest first
AMR.truly = (i) => AMR.truth(i).map((c) => AMR.site.runs[0].labels[c]).join(", ") || "none";
AMR.isRight = (r, i) => AMR.truth(i).includes(AMR.site.clips.runs[r].predicted[i]);
AMR.said = (run) => (run.task === "labels" ? "likeliest" : "predicted");

// ------------------------------------------------------------------------------------------------- names given to units

AMR.names = {
  FORMAT: "amr-concepts-1",
  key: (run) => `amr.names.${run.checkpoint}`,
  memory: new Map(), // where storage is shut off, names last as long as the page
  all(run) {
    try {
      return JSON.parse(localStorage.getItem(this.key(run)) || "{}");
    } catch {
      return this.memory.get(this.key(run)) || {};
    }
  },
  set(run, unit, name) {
    const all = this.all(run);
    if (name.trim()) all[unit] = name.trim(); else delete all[unit];
    this.put(run, all);
  },
  put(run, all) {
    this.memory.set(this.key(run), all);
    try { localStorage.setItem(this.key(run), JSON.stringify(all)); return true; } catch { return false; }
  },
  download(run) {
    const all = this.all(run);
    const content = { format: this.FORMAT, checkpoint: run.checkpoint, run: run.name, names: all };
    const link = AMR.h("a", { href: URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" })),
      download: `concepts-${run.name.replace(/[^\w-]+/g, "_")}.json` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },
  // Names of a file, put over those that are there; returns how many.
  take(run, text) {
    let content;
    try { content = JSON.parse(text); } catch { throw new Error("the file is not JSON"); }
    if (!content || content.format !== this.FORMAT || typeof content.names !== "object" || content.names === null) {
      throw new Error(`the file is no export of this page ("format": "${this.FORMAT}" is missing)`);
    }
    if (content.checkpoint !== run.checkpoint) throw new Error("the file names the units of another checkpoint");
    const good = Object.entries(content.names).filter(([unit, name]) => /^\d+$/.test(unit) && typeof name === "string" && name.trim());
    this.put(run, { ...this.all(run), ...Object.fromEntries(good.map(([unit, name]) => [unit, name.trim().slice(0, 200)])) });
    return good.length;
  },
};
