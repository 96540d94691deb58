(() => {
  "use strict";
  const root = document.documentElement;
  const all = (query, within = document) => [...within.querySelectorAll(query)];

  // Light and dark.
  const toggle = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const tell = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  try {
    const kept = localStorage.getItem("denseloss-theme");
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch { /* no storage for this page */ }
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("denseloss-theme", root.dataset.theme); } catch { /* as above */ }
    tell();
  });
  prefersDark.addEventListener("change", tell);
  tell();

  // One metric and one pooling at a time.
  for (const box of all("[data-switch]")) {
    const panels = all(".panel", box);
    const select = box.querySelector("select");
    const radios = all("input[type=radio]", box);
    const has = (metric, pooling) =>
      panels.some((p) => p.dataset.metric === metric && p.dataset.pooling === pooling);
    const show = () => {
      for (const radio of radios) radio.disabled = !has(select.value, radio.value);
      let chosen = radios.find((r) => r.checked);
      if (!chosen || chosen.disabled) {
        chosen = radios.find((r) => !r.disabled);
        chosen.checked = true;
      }
      for (const p of panels) {
        p.hidden = p.dataset.metric !== select.value || p.dataset.pooling !== chosen.value;
      }
    };
    select.addEventListener("change", show);
    for (const radio of radios) radio.addEventListener("change", show);
    show();
  }

  // Tables sorted by a column; what has no value comes last.
  for (const button of all("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const column = head.cellIndex;
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => parseFloat(row.cells[column].dataset.order);
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a), y = value(b);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return x === y ? 0 : (x < y) === up ? -1 : 1;
      });
      body.append(...rows);
    });
  }

  // Pictures, enlarged. The dialog closes with Escape by itself.
  const viewer = document.getElementById("viewer");
  const image = viewer.querySelector("img");
  const caption = viewer.querySelector("p");
  let shown = [], at = 0;
  const look = (to) => {
    at = (to + shown.length) % shown.length;
    const from = shown[at].querySelector("img");
    image.src = from.src;
    image.alt = from.alt;
    caption.textContent = from.alt;
  };
  for (const thumb of all(".thumb")) {
    thumb.addEventListener("click", () => {
      shown = all(".thumb", thumb.closest(".gallery"));
      look(shown.indexOf(thumb));
      viewer.showModal();
    });
  }
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer || event.target === image) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") look(at + 1);
    if (event.key === "ArrowLeft") look(at - 1);
  });
  viewer.querySelector("[data-before]").addEventListener("click", () => look(at - 1));
  viewer.querySelector("[data-after]").addEventListener("click", () => look(at + 1));
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());

  // Commands to the clipboard; a page from a file may only select them.
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
