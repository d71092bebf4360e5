// What a page saves: tables as CSV with their unrounded numbers, maps as PNG. Nothing leaves the browser.
"use strict";

(() => {
  const { h } = AMR;

  // A cell that shows a text and saves a number; shares and differences of shares are fractions.
  AMR.value = (number, text = AMR.number(number)) => h("span", { "data-value": Number.isFinite(number) ? String(number) : "" }, text);

  AMR.save = (name, blob) => {
    const link = h("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  AMR.fileName = (...parts) => parts.join(" ").normalize("NFKD").replace(/[^\w]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 100) || "table";

  AMR.saver = (kind, about, act) => h("button.save", { type: "button", "aria-label": `${kind}: ${about}`, title: `Save as ${kind}`, onclick: act }, kind);

  // rows: of numbers, texts and what AMR.table shows. An interval takes two columns, which are named after the one before.
  AMR.csv = (head, rows) => {
    const cells = rows.map((row) => row.map(content)), wide = head.map((_, i) => cells.some((row) => Array.isArray(row[i])));
    const names = head.flatMap((name, i) => (wide[i] ? [`${head[i - 1] ?? name} low`, `${head[i - 1] ?? name} high`] : [name]));
    const lines = cells.map((row) => head.flatMap((_, i) => (wide[i] ? (Array.isArray(row[i]) ? row[i] : ["", ""]) : [row[i] ?? ""])));
    return [names, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
  };

  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${String(text).replaceAll('"', '""')}"` : String(text));

  function content(cell) {
    if (cell === null || cell === undefined || cell === false) return "";
    if (typeof cell === "number") return Number.isFinite(cell) ? String(cell) : "";
    if (Array.isArray(cell)) return cell.map(content).flat().join("");
    if (!(cell instanceof Element)) return cell instanceof Node ? cell.textContent : String(cell) === "–" ? "" : String(cell);
    if (cell.hasAttribute("data-low")) return [cell.getAttribute("data-low"), cell.getAttribute("data-high")];
    if (cell.hasAttribute("data-value")) return cell.getAttribute("data-value");
    return cell.textContent.trim();
  }

  AMR.saveTable = (caption, head, rows) => AMR.saver("CSV", caption, () => AMR.save(`${AMR.fileName(caption)}.csv`, new Blob([AMR.csv(head, typeof rows === "function" ? rows() : rows)], { type: "text/csv" })));

  // ---- maps

  const WIDTH = 720; // pixels of a picture at least: an input may have 30

  // Canvases side by side, every pixel a square.
  AMR.joined = (canvases) => {
    const [first] = canvases, gap = canvases.length > 1 ? 4 : 0, scale = Math.max(1, Math.ceil(WIDTH / (first.width * canvases.length)));
    const out = h("canvas", { width: canvases.length * first.width * scale + gap * (canvases.length - 1), height: first.height * scale }), context = out.getContext("2d");
    context.imageSmoothingEnabled = false;
    canvases.forEach((canvas, i) => context.drawImage(canvas, i * (first.width * scale + gap), 0, first.width * scale, first.height * scale));
    return out;
  };

  // A drawing of elements that stand for a map: their backgrounds, words and curves, as they are laid out.
  AMR.drawn = (element) => {
    const scale = 2, frame = element.getBoundingClientRect();
    const out = h("canvas", { width: Math.ceil(frame.width * scale), height: Math.ceil(frame.height * scale) }), context = out.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = AMR.css("--card");
    context.fillRect(0, 0, frame.width, frame.height);
    const place = (box) => [box.left - frame.left, box.top - frame.top, box.width, box.height];
    const words = (node, style) => {
      context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
      context.fillStyle = style.color;
      context.textBaseline = "middle";
      for (const match of node.data.matchAll(/\S+/g)) {
        const range = document.createRange();
        range.setStart(node, match.index);
        range.setEnd(node, match.index + match[0].length);
        const [x, y, , height] = place(range.getBoundingClientRect());
        context.fillText(match[0], x, y + height / 2);
      }
    };
    const visit = (one) => {
      if (one.nodeType === Node.TEXT_NODE) return words(one, getComputedStyle(one.parentNode));
      if (!(one instanceof Element)) return undefined;
      const style = getComputedStyle(one);
      if (style.display === "none") return undefined;
      if (one.tagName === "path") {
        const [x, y, width, height] = place(one.ownerSVGElement.getBoundingClientRect()), { width: w, height: v } = one.ownerSVGElement.viewBox.baseVal, path = new Path2D();
        path.addPath(new Path2D(one.getAttribute("d")), new DOMMatrix([width / w, 0, 0, height / v, x, y]));
        context.strokeStyle = style.color;
        context.lineWidth = 1.2;
        return context.stroke(path);
      }
      context.fillStyle = style.backgroundColor;
      context.beginPath();
      context.roundRect(...place(one.getBoundingClientRect()), Number.parseFloat(style.borderTopLeftRadius) || 0);
      context.fill();
      return one.childNodes.forEach(visit);
    };
    visit(element);
    return out;
  };

  // draw() gives a canvas when the button is pressed.
  AMR.savePicture = (about, name, draw) => AMR.saver("PNG", about, () => draw().toBlob((blob) => AMR.save(`${name()}.png`, blob), "image/png"));
})();
