// Which view is shown, and what holds for all of them.
"use strict";

(() => {
  const { h } = AMR, main = document.getElementById("main");
  const VIEWS = { "": ["overview", "Overview"], clips: ["clips", "Clips"], clip: ["clip", "Clip"], units: ["units", "Units"], unit: ["unit", "Unit"], compare: ["compare", "Compare"] };
  AMR.cleanup = [];
  AMR.keys = {};
  let turn = 0;

  async function route(first = false) {
    const mine = ++turn, { view, rest, query } = AMR.address.read(), [name, title] = VIEWS[view] || ["", "Not found"];
    for (const end of AMR.cleanup.splice(0)) end();
    AMR.live.clear();
    AMR.keys = {};
    const page = document.createElement("div"), holder = h("div");
    for (const link of document.querySelectorAll("#nav a")) {
      const here = link.dataset.view.split(" ").includes(view);
      if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    document.title = `${rest[0] ? `${title} ${view === "clip" || view === "compare" ? AMR.site.clips.id[AMR.site.clips.slug.indexOf(rest[0])] || rest[0] : rest[0]}` : title} · ${AMR.site.runs.map((run) => run.name).join(", ")}`;
    main.replaceChildren(holder);
    if (!first) scrollTo(0, 0);
    main.setAttribute("aria-busy", "true");
    try {
      holder.append(page);
      if (!name) throw new Error(`there is no view ${view}`);
      await AMR[name](page, rest, query);
    } catch (error) {
      if (mine === turn) page.append(h("section.card", h("h1", "This cannot be shown"), h("p.lead", error.message), h("p", h("a", { href: "#/" }, "Overview"))));
    }
    if (mine !== turn) return;
    main.removeAttribute("aria-busy");
    if (!first) main.focus({ preventScroll: true });
  }

  function bar() {
    const { runs } = AMR.site;
    const views = [["", "#/", "Overview"], ["clips clip", "#/clips", "Clips"], ["units unit", "#/units", "Units"], ...(runs.length > 1 ? [["compare", "#/compare", "Compare"]] : [])];
    document.getElementById("nav").replaceChildren(...views.map(([view, href, text]) => h("a", { href, "data-view": view }, text)));
    const theme = h("button.btn.bare", { type: "button", "aria-label": "Dark or light", title: "Dark or light (T)", onclick: () => window.amrTheme.toggle() });
    const paint = () => theme.replaceChildren(AMR.icon(document.documentElement.dataset.theme === "dark" ? "sun" : "moon"));
    paint();
    addEventListener("amr:theme", () => { paint(); route(true); });
    const help = h("dialog", { "aria-label": "Keys" }, h("h2", "Keys"), h("div.keys", AMR.TEXT.keys.map(([keys, text]) => [h("span", keys.split(" ").map((key) => [h("kbd", key), " "])), h("span", text)])), h("form", { method: "dialog" }, h("button.btn.main", "Close")));
    document.body.append(help);
    const keys = h("button.btn.bare.keyboard", { type: "button", "aria-label": "Keys", title: "Keys (?)", onclick: () => help.showModal() }, AMR.icon("keys"));
    document.getElementById("bar-end").replaceChildren(keys, theme);
    document.getElementById("foot").replaceChildren("Made by amr analyze. Nothing on this page is loaded from elsewhere or sent anywhere. A map says what the model answers to, not what is so.");
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
      const typing = event.target.closest?.("input, select, textarea"), on = event.target.closest?.("button, a, summary, [role=slider], [role=application], video, audio");
      if (typing && typing.type !== "checkbox" && typing.type !== "range") return;
      if (event.key === " " && (on || typing)) return;
      const go = { j: "next", k: "previous" }[event.key.toLowerCase()];
      const act = go ? () => { const link = document.querySelector(`[data-go="${go}"]`); if (link) location.hash = link.getAttribute("href"); }
        : event.key === "t" ? () => window.amrTheme.toggle() : event.key === "?" ? () => help.showModal()
          : event.key === "/" ? () => { const box = document.querySelector("[data-search]"); if (box) box.focus(); else { location.hash = "#/clips"; setTimeout(() => document.querySelector("[data-search]")?.focus(), 50); } }
            : AMR.keys[event.key];
      if (act) { event.preventDefault(); act(); }
    });
    let wait = 0;
    addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(() => AMR.live.forEach((draw) => draw()), 100); });
  }

  AMR.load("index").then((site) => {
    AMR.site = site;
    const { clips, runs } = site;
    AMR.texts = clips.id.map((id, i) => [id, AMR.truly(i), ...clips.runs.map((column, r) => runs[r].labels[column.predicted[i]] || "")].join("\n").toLowerCase());
    bar();
    addEventListener("hashchange", () => route());
    return route(true);
  }).catch((error) => {
    main.replaceChildren(h("section.card", h("h1", "There is nothing to show"), h("p.lead", error.message)));
  });
})();
