"use strict";
const el = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const uploads = new Map(); // what history entries refer to; a reload forgets it
let about = { max_upload: Infinity, columns: {}, images: 0 };
let now = { query: null, hits: [], shownSize: null, box: null, asking: null };

// --- asking -------------------------------------------------------------------------------

class Refused extends Error {}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("whiten-token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    await askToken(Boolean(token) && token === sessionStorage.getItem("whiten-token"));
    return ask(path, options);
  }
  if (answer.ok) return answer;
  let why = `The service answered ${answer.status}.`;
  // Without our JSON, as of a proxy, the status has to do.
  try { why = (await answer.json()).detail ?? why; } catch { /* no JSON */ }
  throw new Refused(why.charAt(0).toUpperCase() + why.slice(1) + (/[.!?]$/.test(why) ? "" : "."));
}

let asking = null; // all requests that were refused wait for one answer
function askToken(isWrong) {
  if (!asking) {
    el.wrong.hidden = !isWrong;
    el.ask.showModal();
    asking = new Promise((done) => el.ask.addEventListener("close", () => {
      sessionStorage.setItem("whiten-token", el.token.value);
      el.token.value = "";
      asking = null;
      done();
    }, { once: true }));
  }
  return asking;
}
el.ask.addEventListener("cancel", (event) => event.preventDefault());

// --- searching ----------------------------------------------------------------------------

function search(query, { push = true, focus = true } = {}) {
  const isSameBox = query?.box && now.query?.box && keyOf(query) === keyOf(now.query);
  if (push && isSameBox) history.replaceState(query, "", address(query));
  else if (push) history.pushState(query, "", address(query));
  now.query = query;
  showQuery(query);
  run(focus);
}

function address(query) {
  const fields = new URLSearchParams();
  if (query && query.id) fields.set("id", query.id);
  if (query && query.id && query.box) fields.set("box", query.box.map((v) => v.toFixed(4)).join());
  const text = fields.toString();
  return text ? `?${text}` : location.pathname;
}

async function run(focus = false) {
  now.asking?.abort();
  const mine = now.asking = new AbortController();
  const query = now.query;
  el.error.hidden = true;
  el.status.textContent = "Searching…";
  el.title.textContent = query ? "Similar images" : "Images";
  el.others.hidden = Boolean(query) || about.images <= 24;
  blanks();
  try {
    const hits = query ? await hitsOf(query, mine.signal) : await someImages(mine.signal);
    if (mine.signal.aborted) return;
    now.hits = hits;
    draw();
    if (focus) el.title.focus({ preventScroll: true });
    if (focus) scrollTo({ top: 0 });
  } catch (error) {
    if (error.name === "AbortError") return;
    fail(error);
  }
}

async function hitsOf(query, signal) {
  const form = new FormData();
  if (query.id) form.set("id", query.id);
  else if (uploads.has(query.upload)) form.set("image", uploads.get(query.upload));
  else throw new Refused("This image was forgotten when the page was loaded again: choose it anew.");
  const size = form.get("image")?.size ?? 0;
  if (size > about.max_upload) {
    const most = (about.max_upload / 1e6).toFixed(0);
    throw new Refused(`This file has ${(size / 1e6).toFixed(1)} MB, at most ${most} MB can be sent.`);
  }
  if (query.box) {
    const [width, height] = await sizeOf(query);
    const scale = [width, height, width, height];
    // Not as text, which is 1e-14 at an edge: no number of pixels.
    form.set("box", query.box.map((v, i) => (v * scale[i]).toFixed(3)).join());
  }
  form.set("k", el.k.value || "24");
  form.set("where", el.where.value);
  const answer = await ask("search", { method: "POST", body: form, signal });
  return (await answer.json()).hits;
}

async function someImages(signal) {
  const offset = Math.floor(Math.random() * Math.max(0, about.images - 23));
  const answer = await ask(`items?limit=24&offset=${offset}`, { signal });
  return (await answer.json()).items;
}

function fail(error) {
  now.hits = [];
  draw();
  el.status.textContent = "";
  el.error.querySelector("p").textContent = error instanceof Refused ? error.message
    : `Something went wrong in this page: ${error.message}`;
  el.error.hidden = false;
  el.error.scrollIntoView({ block: "nearest" });
}

// --- the hits -----------------------------------------------------------------------------

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    picture(target.dataset.id, 320).then(({ url }) => {
      const image = new Image();
      image.addEventListener("load", () => URL.revokeObjectURL(url));
      Object.assign(image, { src: url, alt: "", draggable: false });
      target.replaceWith(image);
    }, () => { target.textContent = "cannot be shown"; });
  }
}, { rootMargin: "300px" });

async function picture(id, size) {
  const answer = await ask(`image?id=${encodeURIComponent(id)}&size=${size}`);
  const url = URL.createObjectURL(await answer.blob());
  const sides = ["X-Image-Width", "X-Image-Height"].map((name) => Number(answer.headers.get(name)));
  return { url, sides };
}

function blanks() {
  el.hits.classList.add("busy");
  el.hits.setAttribute("aria-busy", "true");
  if (el.hits.children.length) return; // what is there stays until there is something better
  for (let i = 0; i < 12; i += 1) el.hits.append(make("li", {}, make("span", { className: "blank" })));
}

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function draw() {
  const least = Number(el.least.value);
  el.at.textContent = least > 0 ? least.toFixed(2) : "any";
  const hits = now.hits.filter((hit) => !now.query || least === 0 || hit.score >= least);
  seen.disconnect();
  const old = new Map([...el.hits.querySelectorAll("button")].map((b) => [b.dataset.id, b]));
  el.hits.replaceChildren(...hits.map((hit) => make("li", {}, tile(hit, old.get(hit.id)))));
  el.hits.classList.remove("busy");
  el.hits.removeAttribute("aria-busy");
  for (const blank of el.hits.querySelectorAll(".blank")) seen.observe(blank);
  say(hits.length);
}

function tile(hit, old) {
  const image = old?.querySelector("img") ?? make("span", { className: "blank" });
  if (!image.src) image.dataset.id = hit.id;
  const more = Object.entries(hit.metadata ?? {}).map(([name, value]) => `${name}: ${value}`);
  const parts = [image];
  if (hit.score !== undefined) {
    const bar = make("i", {});
    bar.style.width = `${Math.max(0, Math.min(1, hit.score)) * 100}%`;
    parts.push(make("span", { className: "score", textContent: hit.score.toFixed(3) }));
    parts.push(make("span", { className: "bar", ariaHidden: "true" }, bar));
  }
  parts.push(make("span", { className: "name", textContent: shortened(hit.id) }));
  if (more.length) parts.push(make("span", { className: "name facts", textContent: more.join(" · ") }));
  const button = make("button", { type: "button" }, ...parts);
  button.dataset.id = hit.id;
  button.title = [`Search by ${hit.id}`, ...more].join("\n");
  button.addEventListener("click", () => search({ id: hit.id }));
  return button;
}

// One long path would make its whole row tall. Its end is the file's name.
function shortened(id) {
  const letters = [...id];
  return letters.length > 80 ? [...letters.slice(0, 24), "…", ...letters.slice(-50)].join("") : id;
}

function say(count) {
  if (!now.query) {
    el.status.textContent = count ? `${count} of ${about.images.toLocaleString("en")}; ` +
      "choose one to see what is like it" : "The index is empty.";
  } else if (count) {
    el.status.textContent = `${count} ${count === 1 ? "hit" : "hits"}`;
  } else if (now.hits.length) {
    const best = now.hits[0].score.toFixed(2);
    el.status.textContent = `No hit: the most similar image has ${best}. Lower the threshold.`;
  } else {
    el.status.textContent = el.where.value.trim() ? "No hit: no image passes the filter." : "No hit.";
  }
}

el.hits.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() }[event.key];
  const all = [...el.hits.querySelectorAll("button")];
  const next = step && all[all.indexOf(document.activeElement) + step];
  if (next) { event.preventDefault(); next.focus(); }
});
const columns = () => getComputedStyle(el.hits).gridTemplateColumns.split(" ").length;

// --- the query and its box ----------------------------------------------------------------

let sized = { key: null, sides: null }; // pixels of the upright image, once they are known

function keyOf(query) { return query.id ? `id ${query.id}` : `upload ${query.upload}`; }

async function showQuery(query) {
  const key = query && keyOf(query);
  el.named.hidden = el.tools.hidden = !query;
  placeBox(query?.box ?? null);
  if (!query || !(query.id || uploads.has(query.upload))) {
    el.stage.hidden = el.tools.hidden = el.named.hidden = true;
    sized = { key: null, sides: null };
    return;
  }
  el.named.textContent = query.id ?? uploads.get(query.upload)?.name ?? "";
  if (sized.key === key) return;
  el.stage.hidden = true;
  sized = { key, sides: load(query) };
  try {
    await sized.sides;
    if (sized.key === key) el.stage.hidden = el.tools.hidden = false;
  } catch {
    if (sized.key === key) {
      el.tools.hidden = true;
      el.named.textContent += " (this browser cannot show it)";
    }
  }
}

async function load(query) {
  let url, sides;
  if (query.id) ({ url, sides } = await picture(query.id, 1024));
  else url = URL.createObjectURL(uploads.get(query.upload));
  el.shown.src = url;
  el.shown.alt = query.id ? `The query, ${query.id}` : "The query";
  await el.shown.decode().finally(() => URL.revokeObjectURL(url));
  const [width, height] = sides ?? [el.shown.naturalWidth, el.shown.naturalHeight];
  // As large as there is room, so that a box can be drawn on a small image, too.
  el.stage.style.width = `min(100%, calc(min(18rem, 36vh) * ${width / height}))`;
  return [width, height];
}

function sizeOf(query) {
  if (sized.key !== keyOf(query)) showQuery(query);
  return sized.sides;
}

function placeBox(box) {
  now.box = box;
  el.box.hidden = el.whole.hidden = !box;
  el.draw.hidden = Boolean(box);
  if (!box) return;
  const [left, top, width, height] = box.map((v) => `${v * 100}%`);
  Object.assign(el.box.style, { left, top, width, height });
}

function fit([x, y, w, h]) {
  const [width, height] = [Math.min(1, Math.max(0.02, w)), Math.min(1, Math.max(0.02, h))];
  return [Math.min(Math.max(0, x), 1 - width), Math.min(Math.max(0, y), 1 - height), width, height];
}

let later = 0;
function searchBox(box, wait = 0) {
  placeBox(box);
  clearTimeout(later);
  const query = { ...now.query, box };
  later = setTimeout(() => search(query, { focus: false }), wait);
}

el.stage.addEventListener("pointerdown", (down) => {
  const isOnBox = el.box.contains(down.target);
  if (down.button !== 0 || (down.pointerType === "touch" && !isOnBox)) return;
  down.preventDefault();
  if (isOnBox) el.box.focus();
  const area = el.shown.getBoundingClientRect();
  const at = (e) => [(e.clientX - area.left) / area.width, (e.clientY - area.top) / area.height];
  const [x0, y0] = at(down);
  const before = now.box;
  const onMove = (move) => {
    const [x, y] = at(move).map((v) => Math.min(1, Math.max(0, v)));
    if (down.target === el.corner) {
      placeBox(fit([before[0], before[1], x - before[0], y - before[1]]));
    } else if (isOnBox) {
      placeBox(fit([before[0] + x - x0, before[1] + y - y0, before[2], before[3]]));
    } else if (Math.hypot((x - x0) * area.width, (y - y0) * area.height) > 6) {
      placeBox(fit([Math.min(x0, x), Math.min(y0, y), Math.abs(x - x0), Math.abs(y - y0)]));
    }
  };
  el.stage.setPointerCapture(down.pointerId);
  el.stage.addEventListener("pointermove", onMove);
  const onEnd = () => {
    el.stage.removeEventListener("pointermove", onMove);
    el.stage.removeEventListener("pointerup", onEnd);
    el.stage.removeEventListener("pointercancel", onEnd);
    if (now.box !== before) searchBox(now.box);
  };
  el.stage.addEventListener("pointerup", onEnd);
  el.stage.addEventListener("pointercancel", onEnd);
});

el.box.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02],
    ArrowDown: [0, 0.02] }[event.key];
  const [x, y, w, h] = now.box;
  if (step && event.shiftKey) searchBox(fit([x, y, w + step[0], h + step[1]]), 400);
  else if (step) searchBox(fit([x + step[0], y + step[1], w, h]), 400);
  else if (["Delete", "Backspace", "Escape"].includes(event.key)) { searchBox(null); el.draw.focus(); }
  else return;
  event.preventDefault();
});
el.draw.addEventListener("click", () => { searchBox([0.25, 0.25, 0.5, 0.5]); el.box.focus(); });
el.whole.addEventListener("click", () => { searchBox(null); el.draw.focus(); });

// --- where images come from ---------------------------------------------------------------

function upload(file) {
  const number = uploads.size + 1;
  uploads.set(number, file);
  search({ upload: number });
}

function firstFile(list) {
  const files = [...(list?.files ?? [])];
  return files.find((file) => file.type.startsWith("image/")) ?? files[0];
}

el.file.addEventListener("change", () => {
  if (el.file.files[0]) upload(el.file.files[0]);
  el.file.value = ""; // the same file may be chosen again
});
el.file.addEventListener("focus", () => el.file.previousElementSibling.classList.add("focus"));
el.file.addEventListener("blur", () => el.file.previousElementSibling.classList.remove("focus"));
document.addEventListener("paste", (event) => {
  const file = firstFile(event.clipboardData);
  if (file) { event.preventDefault(); upload(file); }
});
for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (event) => {
  event.preventDefault();
  if (kind === "drop" || !event.relatedTarget) document.body.classList.remove("over");
  const file = kind === "drop" && firstFile(event.dataTransfer);
  if (file) upload(file);
});

// --- the rest -----------------------------------------------------------------------------

async function apply() {
  await run();
  // On a narrow screen the form is above the hits: what it changed would not be seen.
  if (el.head.getBoundingClientRect().bottom > innerHeight) el.head.scrollIntoView();
}

el.least.addEventListener("input", draw);
el.more.addEventListener("submit", (event) => { event.preventDefault(); if (now.query) apply(); });
el.again.addEventListener("click", () => start(false));
el.others.addEventListener("click", () => run());
addEventListener("popstate", (event) => search(event.state ?? fromAddress(), { push: false }));

function fromAddress() {
  const fields = new URLSearchParams(location.search);
  if (!fields.get("id")) return null;
  const box = fields.get("box")?.split(",").map(Number);
  const isBox = box?.length === 4 && box.every(Number.isFinite);
  return { id: fields.get("id"), box: isBox ? fit(box) : null };
}

async function start(isFirst = true) {
  el.status.textContent = "Loading…";
  blanks();
  try {
    about = await (await ask("index")).json();
    el.about.textContent = `${about.images.toLocaleString("en")} ` +
      `${about.images === 1 ? "image" : "images"}, model ${about.model}`;
    el.k.max = about.max_hits;
    const own = Object.entries(about.columns).map(([name, kind]) => `${name} (${kind})`);
    el.columns.textContent = `As in group == "shoes". Columns: ${["id", "group", ...own].join(", ")}.`;
  } catch (error) {
    fail(error);
    return;
  }
  search(isFirst ? history.state ?? fromAddress() : now.query, { push: false, focus: false });
}
start();
