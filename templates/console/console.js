// The console's script. Every page works without it: it makes searches and figures live, and adds keys.
"use strict";

(() => {
  const LIVE = "live", RECONNECTING = "reconnecting", PAUSED = "paused";
  // The server sends at most one event a second. A search waits for the end of a word.
  const TYPING_MS = 200;
  // confgen answers 503 while 32 others follow. Then the page asks again after this.
  const RETRY_MS = 15_000;

  const stateLine = document.querySelector("[data-live-state]");
  const pause = document.getElementById("pause");
  const form = document.getElementById("filter");
  // Each part's and each row's text as the server sent it. A reader may have opened or selected something in it since.
  const sent = new WeakMap();
  // A part's text without its rows.
  const shells = new WeakMap();
  const partsOf = (root) => [...root.querySelectorAll("[data-live]")];
  const bodiesOf = (part) => [...part.querySelectorAll("tbody")];

  let events = null, isPaused = false, retry = 0, typing = 0;

  function showState(state) {
    if (stateLine.textContent === state) return;
    stateLine.textContent = state;
    stateLine.className = `live-state is-${state}`;
  }

  // ---- Parts that change ----

  // A name by which the element is found again after its part was replaced.
  function nameOf(element) {
    if (element.id) return `#${CSS.escape(element.id)}`;
    const row = element.closest("[data-key]");
    const within = row ? `[data-key="${CSS.escape(row.dataset.key)}"]` : "";
    if (element === row) return within;
    const href = element.getAttribute("href");
    if (href) return `${within} ${element.localName}[href="${CSS.escape(href)}"]`;
    return within && `${within} ${element.localName}`;
  }

  function record(part) {
    sent.set(part, part.outerHTML);
    const shell = part.cloneNode(true);
    bodiesOf(shell).forEach((body) => body.replaceChildren());
    shells.set(part, shell.outerHTML);
    part.querySelectorAll("tr[data-key]").forEach((row) => sent.set(row, row.outerHTML));
  }

  // Puts `fresh` in the place of `old`, with the reader's focus, open details and scroll positions.
  function replace(old, fresh) {
    const focus = old.contains(document.activeElement) ? nameOf(document.activeElement) : "";
    const open = [...old.querySelectorAll("details[open][data-key]")].map((it) => it.dataset.key);
    const boxes = (root) => [root, ...root.querySelectorAll(".scroll, pre")];
    const scrolls = boxes(old).map((it) => [it.scrollLeft, it.scrollTop]);
    old.replaceWith(fresh);
    fresh.querySelectorAll("details[data-key]").forEach((it) => { it.open = open.includes(it.dataset.key); });
    boxes(fresh).forEach((it, at) => { if (scrolls[at]) [it.scrollLeft, it.scrollTop] = scrolls[at]; });
    if (focus) (fresh.matches(focus) ? fresh : fresh.querySelector(focus))?.focus({ preventScroll: true });
  }

  // Changes only the rows that differ, so that a selection elsewhere stays.
  function patchRows(body, fresh) {
    const wanted = new Set([...fresh.rows].map((row) => row.dataset.key));
    [...body.rows].filter((row) => !wanted.has(row.dataset.key)).forEach((row) => row.remove());
    const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
    let at = body.firstElementChild;
    for (const row of [...fresh.rows]) {
      const text = row.outerHTML, old = known.get(row.dataset.key);
      let here = old;
      if (!old || sent.get(old) !== text) {
        here = document.adoptNode(row);
        sent.set(here, text);
        if (old) replace(old, here);
        if (at === old) at = here;
      }
      if (here === at) at = at.nextElementSibling; else body.insertBefore(here, at);
    }
  }

  function takePart(old, fresh) {
    const before = shells.get(old), bodies = bodiesOf(old);
    record(fresh);
    if (before !== shells.get(fresh)) { replace(old, document.adoptNode(fresh)); return; }
    bodiesOf(fresh).forEach((body, at) => patchRows(bodies[at], body));
    sent.set(old, sent.get(fresh));
  }

  function takeIn(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    if (page.body.dataset.page !== document.body.dataset.page) return;
    document.title = page.title;
    const icon = document.querySelector("link[rel=icon]"), freshIcon = page.querySelector("link[rel=icon]");
    if (freshIcon && icon.href !== freshIcon.href) icon.href = freshIcon.href;
    const known = new Map(partsOf(document).map((part) => [part.dataset.live, part]));
    let last = null;
    for (const fresh of partsOf(page)) {
      const name = fresh.dataset.live, old = known.get(name), text = fresh.outerHTML;
      known.delete(name);
      if (!old) {
        record(fresh);
        last?.after(document.adoptNode(fresh));
      } else if (sent.get(old) !== text) {
        takePart(old, fresh);
      }
      last = document.querySelector(`[data-live="${CSS.escape(name)}"]`);
    }
    known.forEach((part) => part.remove());
    addButtons();
  }

  async function refresh() {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok) takeIn(await answer.text());
    } catch {
      // The event source says whether confgen is away.
    }
  }

  // A refresh in progress may have read an older state, so one more follows it.
  let isRefreshing = false, isDue = false;
  async function follow() {
    if (isRefreshing) { isDue = true; return; }
    isRefreshing = true;
    do {
      isDue = false;
      await refresh();
    } while (isDue && !isPaused);
    isRefreshing = false;
  }

  // ---- Events ----

  function connect() {
    clearTimeout(retry);
    if (isPaused || document.hidden) { showState(PAUSED); return; }
    events?.close();
    events = new EventSource("/events");
    // What changed before the connection stood is told by no event.
    events.addEventListener("open", () => { showState(LIVE); follow(); });
    events.addEventListener("changed", follow);
    events.addEventListener("error", () => {
      if (isPaused || document.hidden) return;
      const isGivenUp = events.readyState === EventSource.CLOSED;
      showState(RECONNECTING);
      if (isGivenUp) retry = setTimeout(connect, RETRY_MS);
    });
  }

  function disconnect() {
    clearTimeout(retry);
    events?.close();
    events = null;
    showState(PAUSED);
  }

  function setPaused(wanted) {
    isPaused = wanted;
    pause.setAttribute("aria-pressed", String(wanted));
    pause.textContent = wanted ? "Go on" : "Pause";
    if (wanted) disconnect(); else { showState(RECONNECTING); connect(); }
  }

  document.addEventListener("visibilitychange", () => {
    if (isPaused) return;
    if (document.hidden) disconnect(); else { showState(RECONNECTING); connect(); }
  });

  // ---- Search ----

  function search() {
    const fields = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...fields]) if (!value.trim() || (name === "sort" && value === "harm")) fields.delete(name);
    const query = fields.toString();
    history.replaceState(null, "", query ? `/?${query}` : "/");
    follow();
  }

  if (form) {
    form.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(search, TYPING_MS);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(typing);
      search();
    });
  }

  // ---- Buttons and keys ----

  function addButtons() {
    if (!navigator.clipboard) return;
    document.querySelectorAll("button.copy[hidden]").forEach((button) => { button.hidden = false; });
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1_500);
  });

  const rows = () => [...document.querySelectorAll("main tbody tr")].filter((row) => row.offsetParent);
  const targetOf = (row) => row.querySelector("a.row") ?? row;

  function move(step) {
    const all = rows();
    if (!all.length) return;
    const at = all.findIndex((row) => row.contains(document.activeElement));
    const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1);
    const target = targetOf(all[next]);
    if (target === all[next]) target.tabIndex = -1;
    target.focus();
    target.scrollIntoView({ block: "nearest" });
  }

  const PAGES = { s: "/", c: "/certificates", t: "/store", h: "/haproxy" };
  const help = document.getElementById("help");
  let isGoing = false;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest("input, select, textarea");
    if (field) {
      if (event.key === "Escape") field.blur();
      if (event.key === "ArrowDown" && field.type === "search") { event.preventDefault(); move(1); }
      return;
    }
    if (help.open) return;
    if (isGoing) {
      isGoing = false;
      if (PAGES[event.key]) { event.preventDefault(); location.assign(PAGES[event.key]); return; }
    }
    const acts = {
      "/": () => {
        const field = form?.elements.q;
        if (field) { field.focus(); field.select(); } else location.assign("/");
      },
      "?": () => help.showModal(),
      j: () => move(1),
      k: () => move(-1),
      p: () => setPaused(!isPaused),
      g: () => { isGoing = true; },
    };
    // Arrows move rows only where one has the focus. Elsewhere they scroll.
    if (document.activeElement?.closest("main tbody tr")) {
      acts.ArrowDown = acts.j;
      acts.ArrowUp = acts.k;
    }
    const act = acts[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  partsOf(document).forEach(record);
  pause.hidden = false;
  pause.addEventListener("click", () => setPaused(!isPaused));
  addButtons();
  showState(RECONNECTING);
  connect();
})();
