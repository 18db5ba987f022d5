"use strict";
// Runs before the page is painted. The theme is the ?theme= of the address, else the reader's last choice, else the system's.
const theme = (() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const valid = (name) => (name === "light" || name === "dark" ? name : null);
  const remembered = () => {
    try { return localStorage.getItem("torchstone-theme"); } catch { return null; } // storage can be forbidden for files
  };
  let chosen = valid(new URLSearchParams(location.search).get("theme")) || valid(remembered());
  const listeners = [];
  const current = () => chosen || (system.matches ? "dark" : "light");
  const apply = () => {
    document.documentElement.dataset.theme = current();
    listeners.forEach((listener) => listener());
  };
  system.addEventListener("change", apply);
  apply();
  return {
    onChange: (listener) => listeners.push(listener),
    toggle() {
      chosen = current() === "dark" ? "light" : "dark";
      try { localStorage.setItem("torchstone-theme", chosen); } catch { /* the choice then lasts as long as the page */ }
      apply();
    },
    print(on) {
      document.documentElement.dataset.theme = on ? "light" : current();
      listeners.forEach((listener) => listener());
    },
  };
})();
