// Colours of maps and plots.
// A map over a picture: brightness is the picture's, colour the map's. Chroma grows linearly with |value| at two fixed
// hues of OKLab (Ottosson 2020), so that equal steps look equal, and orange and purple stay apart without red or green.
// Sizes without a sign take cividis (Nuñez, Anderton, Renslow 2018), which colour-blind people see as others do.
"use strict";

(() => {
  const { h } = AMR;
  const FOR = (58 * Math.PI) / 180, AGAINST = (300 * Math.PI) / 180, CHROMA = 0.17, LOW = 0.5, HIGH = 0.88;

  function rgb(lightness, a, b) { // OKLab to sRGB, 0..255
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s]
      .map((x) => Math.round(255 * Math.min(1, Math.max(0, x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055))));
  }

  // For 64 greys and 129 values in -1..1: the colour at a strength in 0..1.
  const tables = new Map();
  function table(strength) {
    const key = Math.round(strength * 100);
    if (tables.has(key)) return tables.get(key);
    const out = new Uint8Array(64 * 129 * 3);
    for (let grey = 0; grey < 64; grey++) {
      const plain = grey / 63, pressed = LOW + (HIGH - LOW) * plain;
      const press = Math.min(1, 1.6 * strength);
      const lightness = plain + (pressed - plain) * press;
      for (let v = 0; v < 129; v++) {
        const value = (v - 64) / 64, hue = value > 0 ? FOR : AGAINST;
        const chroma = CHROMA * Math.abs(value) * strength;
        out.set(rgb(lightness, chroma * Math.cos(hue), chroma * Math.sin(hue)), 3 * (grey * 129 + v));
      }
    }
    if (tables.size > 24) tables.clear();
    tables.set(key, out);
    return out;
  }

  // grey: bytes of a picture; label: the atom at each place; values: of each atom; top: |value| of full colour.
  AMR.paint = (canvas, grey, label, values, { width, height, top, strength }) => {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height), data = image.data, lut = table(values ? strength : 0);
    for (let i = 0; i < grey.length; i++) {
      const value = values ? values[label[i]] / top : 0;
      const v = Math.round(64 + 64 * Math.max(-1, Math.min(1, value || 0)));
      const at = 3 * ((grey[i] >> 2) * 129 + v);
      data[4 * i] = lut[at]; data[4 * i + 1] = lut[at + 1]; data[4 * i + 2] = lut[at + 2]; data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };

  // A picture as it is: grey (h, w) or colours (h, w, 3), bytes.
  AMR.paintPlain = (canvas, pixels, width, height) => {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d"), image = context.createImageData(width, height), data = image.data;
    const three = pixels.length === 3 * width * height;
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) data[4 * i + c] = pixels[three ? 3 * i + c : i];
      data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };

  AMR.grey = (pixels, count) => { // bytes of brightness
    if (pixels.length === count) return pixels;
    const out = new Uint8Array(count);
    for (let i = 0; i < count; i++) out[i] = 0.2126 * pixels[3 * i] + 0.7152 * pixels[3 * i + 1] + 0.0722 * pixels[3 * i + 2];
    return out;
  };

  AMR.signedColour = (value, lightness = 0.66) => { // CSS colour of a value in -1..1
    const hue = value > 0 ? FOR : AGAINST, chroma = CHROMA * Math.min(1, Math.abs(value));
    return `rgb(${rgb(lightness, chroma * Math.cos(hue), chroma * Math.sin(hue)).join(" ")})`;
  };

  // The scale of a signed map.
  AMR.legend = (top, unit, signed = true) => {
    const canvas = h("canvas.ramp", { width: 129, height: 1, "aria-hidden": "true" });
    const context = canvas.getContext("2d"), image = context.createImageData(129, 1);
    for (let v = 0; v < 129; v++) {
      const value = signed ? (v - 64) / 64 : v / 128, hue = value > 0 ? FOR : AGAINST, chroma = CHROMA * Math.abs(value);
      image.data.set([...rgb(0.68, chroma * Math.cos(hue), chroma * Math.sin(hue)), 255], 4 * v);
    }
    context.putImageData(image, 0, 0);
    return h("div.legend", h("span", signed ? `against −${AMR.number(top)}` : "0"), canvas, h("span", signed ? `+${AMR.number(top)} for` : AMR.number(top)), h("span.quiet", unit));
  };

  const CIVIDIS = "00224e00255400285b002b62002e6a0030700533711235701a386f213b6e273e6e2d416d32436d36466c3b496c3f4c6c444f6c48526c4c556c50576c545a6d575d6d5b606e5e636f62656f656870696b716c6e727071737374757777767a7a787e7d788280798683798a86788e8978928c78958f779992779d9576a19975a59c74a99f73ada272b1a570b6a96fbaac6dbfb06bc3b369c7b767ccba64d0be62d4c15fd9c55cddc858e1cc55e6d051ead34cefd748f3db42f8df3cfde334fee838";
  AMR.cividis = (x) => {
    const i = 6 * Math.round((CIVIDIS.length / 6 - 1) * Math.max(0, Math.min(1, x || 0)));
    return [0, 2, 4].map((o) => parseInt(CIVIDIS.slice(i + o, i + o + 2), 16));
  };

  // A modality's own colour, the same in every view (after Okabe, Ito 2008).
  AMR.modalityColour = (index) => `var(--m${index % 6})`;
  AMR.css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
})();
