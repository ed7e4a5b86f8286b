"use strict";
(() => {
  const byID = (id) => document.getElementById(id);
  const live = byID("live");

  // Light or dark. Without a choice the system decides.
  const theme = {
    get: () => { try { return localStorage.getItem("pgjet-theme"); } catch { return null; } },
    set: (name) => { try { localStorage.setItem("pgjet-theme", name); } catch { /* it lasts for this page */ } },
    now: () => document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"),
  };
  if (theme.get()) document.documentElement.dataset.theme = theme.get();
  const toggleTheme = () => {
    const next = theme.now() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    theme.set(next);
    drawChart();
  };
  byID("theme")?.addEventListener("click", toggleTheme);

  // Copying also works where the page is not on HTTPS.
  const copy = (button) => {
    const text = byID(button.dataset.copy).textContent;
    const said = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    if (navigator.clipboard) { navigator.clipboard.writeText(text).then(said, () => {}); return; }
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    if (document.execCommand("copy")) said();
    area.remove();
  };
  document.addEventListener("click", (e) => {
    const button = e.target.closest?.("[data-copy]");
    if (button) copy(button);
  });

  // A hidden page has no connection: a browser keeps six to a server, and without one for the next page that would not load. htmx closes it
  // when a page becomes hidden; a page that is opened in a hidden tab begins when it is seen.
  const source = "hx-sse:connect", from = live.getAttribute(source);
  if (from && document.hidden) {
    live.removeAttribute(source);
    document.addEventListener("visibilitychange", () => { live.setAttribute(source, from); htmx.process(live); }, { once: true });
  }

  // Live updates wait while they are paused, while a list is under the pointer, and while something is typed or ticked.
  const pause = byID("pause");
  let paused = false, waiting = [], lost = false, mouse = false;
  for (const type of ["pointermove", "pointerdown"]) document.addEventListener(type, (e) => { mouse = e.pointerType === "mouse"; }); // a finger does not stay
  const busy = () => paused || document.querySelector("dialog[open]") ||
    (mouse && live.querySelector("[data-still]:hover")) ||
    live.querySelector("form:focus-within input:focus, form:focus-within select:focus, tbody input:checked, tr.at");
  const label = () => {
    if (!pause) return;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "⏸ paused" : lost ? "○ reconnecting" : waiting.length ? "◐ new facts wait" : "● live";
  };
  const release = () => {
    if (busy()) return;
    for (const go of waiting.splice(0)) go();
    label();
  };
  const togglePause = () => { paused = !paused; label(); release(); };
  pause?.addEventListener("click", togglePause);
  document.addEventListener("htmx:sse:before:message", (e) => {
    lost = false;
    if (busy()) e.detail.waitUntil(new Promise((go) => waiting.push(go)));
    label();
  });
  document.addEventListener("htmx:sse:error", () => { lost = true; label(); });
  // A screen reader hears when the heading says something else, not each number, and not more often than every ten seconds.
  let heading = document.querySelector("h1")?.innerText, spoke = 0;
  const speak = () => {
    const now = document.querySelector("h1")?.innerText;
    if (now === heading || Date.now() - spoke < 10000) return;
    heading = now;
    spoke = Date.now();
    byID("said").textContent = now;
  };
  document.addEventListener("htmx:sse:after:message", () => { place(at); drawChart(); speak(); });
  setInterval(release, 250);

  // The chart is drawn from what the page holds.
  let chart = null;
  const drawChart = () => {
    const room = byID("chart"), source = byID("points");
    if (!room || !source || !window.uPlot) return;
    const points = JSON.parse(source.textContent) || [];
    if (points.length < 2) return;
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const data = [points.map((p) => p.at), points.map((p) => p.appended), points.map((p) => p.stored)];
    const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    const key = theme.now() + room.clientWidth;
    if (chart && chart.key === key) { chart.setData(data); return; }
    chart?.destroy();
    chart = new uPlot({
      width: Math.max(280, room.clientWidth), height: 180, cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, Math.max(1, high)] } },
      axes: [{ ...axis, values: (_, all) => all.map((s) => new Date(s * 1000).toTimeString().slice(0, 8)), space: 80 }, { ...axis, size: 48 }],
      series: [{ value: (_, s) => s ? new Date(s * 1000).toTimeString().slice(0, 8) : "–" }, { label: "appended each second", stroke: color("--accent"), width: 2 }, { label: "stored each second", stroke: color("--good"), width: 2, dash: [6, 4] }],
    }, data, room);
    chart.key = key;
  };
  window.addEventListener("resize", drawChart);
  drawChart();

  // Keys. They are off while somebody types, and none changes anything by itself.
  let at = -1, go = 0;
  const rows = () => [...document.querySelectorAll("main tbody tr")].filter((tr) => tr.querySelector("a, input"));
  const place = (n) => {
    const all = rows();
    all.forEach((tr, i) => tr.classList.toggle("at", i === n));
    if (n >= 0 && all[n]) return all[n];
    return null;
  };
  const move = (by) => {
    const all = rows();
    if (!all.length) return;
    at = Math.max(0, Math.min(all.length - 1, at + by));
    const row = place(at);
    row.scrollIntoView({ block: "nearest" });
    row.querySelector("a, input").focus();
  };
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.matches("input:not([type=checkbox]), select, textarea")) return;
    if (document.querySelector("dialog[open]")) return;
    if (go && Date.now() - go < 1500) {
      go = 0;
      const link = document.querySelector(`nav a[data-key="${CSS.escape(e.key)}"]`);
      if (link) { e.preventDefault(); link.click(); }
      return;
    }
    switch (e.key) {
    case "/": e.preventDefault(); byID("find").focus(); break;
    case "?": byID("keys").showModal(); break;
    case "g": go = Date.now(); break;
    case "j": move(1); break;
    case "k": move(-1); break;
    case "x": place(at)?.querySelector("input[type=checkbox]")?.click(); break;
    case "t": toggleTheme(); break;
    case "y": document.querySelector("[data-copy=command]")?.click(); break;
    case " ": if (pause && !e.target.matches("button, a, summary, input")) { e.preventDefault(); togglePause(); } break;
    case "Escape": at = -1; place(-1); break;
    }
  });
  byID("help")?.addEventListener("click", () => byID("keys").showModal());
})();
