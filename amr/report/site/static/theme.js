// Before anything is drawn: the theme that was chosen here, or the system's.
(() => {
  "use strict";
  let chosen = null;
  try { chosen = localStorage.getItem("amr.theme"); } catch { /* storage may be shut off */ }
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => { document.documentElement.dataset.theme = chosen || (system.matches ? "dark" : "light"); };
  apply();
  system.addEventListener("change", () => { apply(); dispatchEvent(new Event("amr:theme")); });
  window.amrTheme = {
    toggle() {
      chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("amr.theme", chosen); } catch { /* it holds for this page, then */ }
      apply();
      dispatchEvent(new Event("amr:theme"));
    },
  };
})();
