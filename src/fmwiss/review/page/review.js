"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const $ = (id) => document.getElementById(id);
  const token = document.querySelector("meta[name=fmwiss-token]").content;
  const BATCH = 48, COLOUR = [230, 25, 110], FILL = 112;
  const SAYINGS = [["accept", "accept", "a", "accepted"], ["reject", "reject", "r", "rejected"], ["absent", "not there", "n", "not there"]];

  // ------------------------------------------------------------------ asking the server
  async function ask(path, options = {}) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer; is fmwiss review still running?");
    }
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({}));
      throw new Error(told.error || `The server refused (${answer.status}).`);
    }
    return answer;
  }
  const get = async (path, options) => (await ask(path, options)).json();
  const post = async (path, body) => (await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Fmwiss-Token": token },
    body: JSON.stringify(body),
  })).json();
  const sentence = (error) => { const text = error.message; return /[.!?]$/.test(text) ? text : text + "."; };
  const tell = (where, error) => { where.textContent = error ? sentence(error) : ""; where.hidden = !error; };
  const trying = (work) => async (...words) => {
    try { tell($("alert"), null); return await work(...words); } catch (error) { tell($("alert"), error); }
  };
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  // ------------------------------------------------------------------ theme
  const themes = { "": ["◐", "as the system has it"], light: ["☀", "light"], dark: ["☾", "dark"] };
  const showTheme = (theme) => {
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    $("theme").firstElementChild.textContent = themes[theme][0];
    $("theme").title = "Theme: " + themes[theme][1];
    $("theme").setAttribute("aria-label", $("theme").title);
  };
  let theme = "";
  try { theme = localStorage.getItem("fmwiss-theme") || ""; } catch { /* nothing may be kept */ }
  showTheme(theme in themes ? theme : "");
  $("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(root.dataset.theme || "") + 1) % names.length];
    showTheme(next);
    try { localStorage.setItem("fmwiss-theme", next); } catch { /* likewise */ }
  });

  // ------------------------------------------------------------------ state
  let session = null;          // what the server said at first
  let cut = 0;                 // the slider's threshold
  let numbers = [], shown = 0; // the list, and how much of it has cards
  let current = null;          // the card that keys are about
  let loading = false, list = 0;
  const cards = new Map();     // number -> card
  const visible = new Set();   // cards near the window

  // ------------------------------------------------------------------ masks
  // A place is in the mask where its level is at least this; the same arithmetic as on the server, in 32 bits.
  function lowest() {
    if (session.threshold.kind === "percentile") return Math.floor(2 * cut) + 1;
    const wanted = Math.fround(cut);
    for (let level = 0; level < 256; level++) if (Math.fround(level / 255) > wanted) return level;
    return 256;
  }

  // Draws levels cut at the threshold, enlarged by whole places so that the contour is fine; returns the mask's share.
  function draw(canvas, levels, side) {
    const { width, height, values } = levels, limit = lowest(), view = $("view").value;
    const scale = Math.max(1, Math.round(side / Math.max(width, height)));
    const [w, h] = [width * scale, height * scale];
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const context = canvas.getContext("2d");
    let covered = 0;
    for (let i = 0; i < values.length; i++) if (values[i] >= limit) covered++;
    if (view === "none") { context.clearRect(0, 0, w, h); return covered / values.length; }
    const picture = context.createImageData(w, h), data = new Uint32Array(picture.data.buffer);
    const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
    const colour = (r, g, b, a) => (little ? (a << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | a) >>> 0;
    const fill = view === "tint" ? colour(...COLOUR, FILL) : 0;
    const line = view === "outline" ? colour(...COLOUR, 255) : colour(255, 255, 255, 235);
    if (view === "spot") data.fill(colour(12, 14, 18, 178));
    const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && values[y * width + x] >= limit;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (values[y * width + x] < limit) continue;
        for (let dy = 0; dy < scale; dy++) data.fill(fill, (y * scale + dy) * w + x * scale, (y * scale + dy) * w + (x + 1) * scale);
        if (!at(x, y - 1)) data.fill(line, y * scale * w + x * scale, y * scale * w + (x + 1) * scale);
        if (!at(x, y + 1)) { const row = ((y + 1) * scale - 1) * w; data.fill(line, row + x * scale, row + (x + 1) * scale); }
        for (let dy = 0; dy < scale; dy++) {
          const row = (y * scale + dy) * w;
          if (!at(x - 1, y)) data[row + x * scale] = line;
          if (!at(x + 1, y)) data[row + (x + 1) * scale - 1] = line;
        }
      }
    }
    context.putImageData(picture, 0, 0);
    return covered / values.length;
  }

  async function levelsOf(item) {
    const content = await (await ask(`/api/levels/${item.number}`)).arrayBuffer();
    const head = new DataView(content);
    return { height: head.getUint16(0, true), width: head.getUint16(2, true), values: new Uint8Array(content, 4) };
  }

  const sideFor = (node) => Math.ceil(Math.max(node.clientWidth, node.clientHeight, 120) * Math.min(devicePixelRatio || 1, 2));

  function paint(card) {
    if (!card.levels) return;
    const share = draw(card.canvas, card.levels, sideFor(card.frame));
    card.share.textContent = (100 * share).toFixed(share < 0.0995 ? 1 : 0) + " %";
    card.node.dataset.share = share;
    card.stale = false;
  }
  let frame = 0;
  function repaint() {
    for (const card of cards.values()) card.stale = true;
    if (frame) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      for (const card of visible) paint(card);
      if ($("large").open) paintLarge();
    });
  }

  // What is far from the window is let go of and fetched again when it comes back.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = cards.get(Number(entry.target.dataset.number));
      if (!card || card.node !== entry.target) continue;
      if (entry.isIntersecting) { visible.add(card); fetchCard(card); } else {
        visible.delete(card);
        card.levels = null;
        card.canvas.width = card.canvas.height = 0;
      }
    }
  }, { rootMargin: "600px 0px" });

  async function fetchCard(card) {
    if (!card.image.src) card.image.src = `/api/photographs/${card.item.photograph}?side=${sideFor(card.frame)}`;
    if (card.levels || card.asked) { if (card.stale) paint(card); return; }
    card.asked = true;
    try {
      const levels = await levelsOf(card.item);
      if (visible.has(card)) { card.levels = levels; paint(card); }
    } catch (error) {
      card.shot.classList.add("lost");
      card.shot.dataset.why = sentence(error);
    } finally {
      card.asked = false;
    }
  }

  // ------------------------------------------------------------------ cards
  function buttons(number, onto) {
    for (const [decision, text, key] of SAYINGS) {
      const button = make("button", { type: "button", className: `say ${decision}` }, text + " ", make("kbd", { textContent: key }));
      button.dataset.say = decision;
      button.addEventListener("click", (event) => {
        event.stopPropagation();
        decide(number(), decision, false);
        if (!event.detail) return; // by key: the focus stays on the button
        if ($("large").open) $("large-frame").focus(); else select(cards.get(number()));
      });
      onto.append(button);
    }
  }

  function newCard(item) {
    const node = make("article", { className: "mask", tabIndex: -1 });
    node.dataset.number = item.number;
    const image = make("img", { alt: `${item.image}, tagged ${item.tags.join(", ")}`, decoding: "async" }), canvas = make("canvas");
    const shot = make("div", { className: "shot" }, image, canvas), stamp = make("span", { className: "stamp" });
    shot.style.setProperty("--ratio", item.width / item.height);
    const box = make("div", { className: "frame" }, shot, stamp), share = make("span", { className: "share", title: "share of the photograph in the mask" });
    const worry = make("span");
    worry.style.width = 100 * item.disagreement + "%";
    const terms = Object.entries(item.terms).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ");
    const told = make("div", { className: "told" },
      make("b", { textContent: item.class }), share,
      make("span", { className: "id", textContent: item.image, title: item.image }),
      make("div", { className: "worry", title: `disagreement ${item.disagreement.toFixed(2)} (${terms})` }, worry));
    const says = make("div", { className: "says" });
    buttons(() => item.number, says);
    node.append(box, told, says);
    const card = { item, node, image, canvas, shot, frame: box, stamp, share, says, levels: null, asked: false, stale: true };
    image.addEventListener("error", () => { shot.classList.add("lost"); shot.dataset.why = "the photograph cannot be read"; });
    box.addEventListener("click", () => { select(card, false); enlarge(); });
    node.addEventListener("focus", () => select(card, false));
    mark(card);
    return card;
  }

  function mark(card) {
    const { item, node } = card, said = SAYINGS.find(([decision]) => decision === item.decision);
    node.dataset.decision = item.decision || "";
    card.stamp.textContent = said ? said[3] : "";
    node.setAttribute("aria-label", `${item.class} in ${item.image}, ${said ? said[3] : "not decided"}`);
    for (const button of card.says.children) button.setAttribute("aria-pressed", String(button.dataset.say === item.decision));
    if (current === card && $("large").open) describeLarge();
  }

  function select(card, scroll = true) {
    if (current && current !== card) { current.node.classList.remove("current"); current.node.tabIndex = -1; }
    current = card;
    if (!card) return;
    card.node.classList.add("current");
    card.node.tabIndex = 0;
    if (scroll) {
      if (!$("large").open) card.node.focus({ preventScroll: true });
      card.node.scrollIntoView({ block: "nearest" });
    }
    if ($("large").open) describeLarge();
  }

  async function more() {
    if (loading || shown >= numbers.length) return;
    loading = true;
    const mine = list, wanted = numbers.slice(shown, shown + BATCH);
    try {
      const { items } = await get(`/api/items?numbers=${wanted.join(",")}`);
      if (mine !== list) return;
      for (const item of items) {
        const card = newCard(item);
        cards.set(item.number, card);
        $("cards").append(card.node);
        watcher.observe(card.node);
      }
      shown += items.length;
      if (!current && items.length) select(cards.get(items[0].number), false);
    } catch (error) {
      tell($("alert"), error);
    } finally {
      if (mine === list) loading = false;
    }
    if (mine === list && shown < numbers.length && nearEnd()) more();
  }
  const nearEnd = () => $("sentinel").getBoundingClientRect().top < innerHeight + 900;
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "900px 0px" }).observe($("sentinel"));

  const refresh = trying(async () => {
    const mine = ++list, query = new URLSearchParams({ show: $("show").value, order: $("order").value });
    if ($("class").value) query.set("class", $("class").value);
    const found = await get(`/api/numbers?${query}`);
    if (mine !== list) return;
    numbers = found.numbers;
    shown = 0;
    loading = false;
    for (const card of cards.values()) watcher.unobserve(card.node);
    cards.clear();
    visible.clear();
    current = null;
    $("cards").replaceChildren();
    const about = $("class").value || "any class";
    $("end").hidden = false;
    $("end").textContent = numbers.length ? `${numbers.length} masks in this list.` :
      $("show").value === "open" ? `Nothing is left to do for ${about}.` : `No mask of ${about} is in this list.`;
    await more();
  });

  // ------------------------------------------------------------------ decisions
  function take(state) {
    session.counts = state.counts;
    session.threshold = state.threshold;
    $("undo").disabled = !state.undoable;
    const sums = { accept: 0, reject: 0, absent: 0, open: 0 };
    for (const counts of Object.values(session.counts)) for (const key of Object.keys(sums)) sums[key] += counts[key];
    const all = Object.values(sums).reduce((a, b) => a + b), done = all - sums.open;
    $("done").textContent = done;
    $("all").textContent = all;
    for (const span of $("meter").children) span.style.width = 100 * sums[span.className] / Math.max(1, all) + "%";
    $("tally").replaceChildren(...SAYINGS.map(([decision, , , word]) =>
      make("li", {}, make("span", { className: `swatch ${decision}` }), `${sums[decision]} ${word}`)));
    for (const option of $("class").options) {
      const rows = option.value ? [session.counts[option.value]] : Object.values(session.counts);
      const total = rows.reduce((sum, row) => sum + row.open + row.accept + row.reject + row.absent, 0);
      const open = rows.reduce((sum, row) => sum + row.open, 0);
      option.textContent = `${option.value || "all classes"} (${total - open} of ${total})`;
    }
    showThreshold();
  }

  let queue = Promise.resolve(); // decisions reach the file in the order in which they are made
  const inTurn = (work) => (queue = queue.then(trying(work)));

  function decide(number, decision, advance) {
    const card = cards.get(number), before = card.item.decision;
    const next = before === decision ? null : decision;
    card.item.decision = next;
    mark(card);
    if (advance && next) step(1);
    return inTurn(async () => {
      try {
        const answer = await post("/api/decide", { numbers: [number], decision: next });
        for (const item of answer.items) settle(item);
        take(answer);
      } catch (error) {
        card.item.decision = before;
        mark(card);
        throw error;
      }
    });
  }

  function settle(item) {
    const card = cards.get(item.number);
    if (card) { card.item = item; mark(card); }
    return card;
  }

  const undo = () => inTurn(async () => {
    const answer = await post("/api/undo", {});
    take(answer);
    for (const item of answer.items) { const card = settle(item); if (card) select(card); }
  });
  $("undo").addEventListener("click", undo);

  // ------------------------------------------------------------------ threshold
  const shownCut = (value) => session.threshold.kind === "percentile" ? String(value) : value.toFixed(2);

  function showThreshold() {
    const { key, value, kept, kind, moves } = session.threshold;
    $("cut-name").textContent = kind === "percentile" ? "K" : "threshold";
    $("cut-value").textContent = shownCut(cut);
    $("cut").disabled = !moves;
    $("keep").disabled = !moves || cut === (kept ?? value);
    $("forget").hidden = kept === null;
    const more = kind === "percentile" ? "higher keeps less" : "higher keeps less of it";
    $("cut-note").textContent = !moves ? "These masks are the initial ones alone, which have no threshold to try." :
      kept === null ? `The experiment cuts its masks at ${shownCut(value)}; ${more}. The slider shows what another ${kind === "percentile" ? "K" : "threshold"} would give and changes nothing until it is kept.` :
      `Kept: step ${session.step} is trained with ${key} = ${shownCut(kept)}, in place of the experiment's ${shownCut(value)}.`;
  }
  function setCut(value) {
    const { lowest: low, highest: high, stride } = session.threshold;
    cut = Math.min(high, Math.max(low, Math.round(value / stride) * stride));
    cut = Number(cut.toFixed(4));
    $("cut").value = cut;
    showThreshold();
    repaint();
  }
  $("cut").addEventListener("input", () => setCut(Number($("cut").value)));
  $("keep").addEventListener("click", () => inTurn(async () => take(await post("/api/threshold", { value: cut }))));
  $("forget").addEventListener("click", () => inTurn(async () => take(await post("/api/threshold", { value: null }))));
  $("view").addEventListener("change", repaint);
  for (const id of ["class", "show", "order"]) $(id).addEventListener("change", refresh);
  $("class").addEventListener("change", () => { if ($("class").value) $("word-class").value = $("class").value; });

  // ------------------------------------------------------------------ one mask, enlarged
  const large = { levels: null, number: null, canvas: null };
  buttons(() => current.item.number, $("large-says"));
  function enlarge() {
    if (!current) return;
    if (!$("large").open) $("large").showModal();
    describeLarge();
  }
  async function describeLarge() {
    const { item } = current;
    $("large-name").textContent = item.class;
    $("large-id").textContent = `${item.image} · tagged ${item.tags.join(", ")}`;
    const pairs = [["disagreement", item.disagreement], ...Object.entries(item.terms)];
    $("large-terms").replaceChildren(...pairs.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value.toFixed(2) })]));
    for (const button of $("large-says").children) button.setAttribute("aria-pressed", String(button.dataset.say === item.decision));
    if (large.number === item.number) return;
    large.number = item.number;
    large.levels = null;
    large.canvas = make("canvas");
    const image = make("img", { alt: item.image, src: `/api/photographs/${item.photograph}?side=1080` });
    const shot = make("div", { className: "shot" }, image, large.canvas);
    shot.style.setProperty("--ratio", item.width / item.height);
    $("large-frame").replaceChildren(shot);
    try {
      const levels = await levelsOf(item);
      if (large.number === item.number) { large.levels = levels; paintLarge(); }
    } catch (error) {
      shot.classList.add("lost");
      shot.dataset.why = sentence(error);
    }
  }
  function paintLarge() { if (large.levels) draw(large.canvas, large.levels, 900); }
  $("large").addEventListener("close", () => { large.number = null; if (current) select(current); });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  $("help-button").addEventListener("click", () => $("help").showModal());

  // ------------------------------------------------------------------ keys
  async function step(by) {
    if (!current) return;
    const order = [...$("cards").children], place = order.indexOf(current.node) + by;
    if (place >= order.length && shown < numbers.length) await more();
    const node = $("cards").children[Math.min(Math.max(0, place), $("cards").children.length - 1)];
    if (node) select(cards.get(Number(node.dataset.number)));
  }
  const columns = () => getComputedStyle($("cards")).gridTemplateColumns.split(" ").length;
  const turnView = () => {
    const options = [...$("view").options].map((option) => option.value);
    $("view").value = options[(options.indexOf($("view").value) + 1) % options.length];
    repaint();
  };
  const keys = {
    a: () => decide(current.item.number, "accept", true),
    r: () => decide(current.item.number, "reject", true),
    n: () => decide(current.item.number, "absent", true),
    u: undo,
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    ArrowUp: () => step(-columns()), ArrowDown: () => step(columns()),
    " ": () => { if ($("large").open) $("large").close(); else enlarge(); },
    "[": () => setCut(cut - session.threshold.stride), "]": () => setCut(cut + session.threshold.stride),
    m: turnView,
    "/": () => { $("word").focus(); $("word").select(); },
    "?": () => $("help").showModal(),
  };
  const needsCard = new Set(["a", "r", "n", " ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !session || $("help").open) return;
    const target = event.target, typing = target.matches("input[type=text], select, textarea");
    if (typing) { if (event.key === "Escape") target.blur(); return; }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (target.matches("input[type=range]") && key.startsWith("Arrow")) return;
    if (key === " " && target.matches("button, a, summary")) return;
    if (!keys[key] || (needsCard.has(key) && !current)) return;
    event.preventDefault();
    keys[key]();
  });

  // ------------------------------------------------------------------ words
  const rows = [];             // kept ones: { answer, node }
  let live = null, asking = null, timer = 0;

  function heat(canvas, picture) {
    const values = Uint8Array.from(atob(picture.heat), (letter) => letter.charCodeAt(0));
    const small = make("canvas", { width: picture.width, height: picture.height });
    const context = small.getContext("2d"), image = context.createImageData(picture.width, picture.height);
    values.forEach((value, place) => {
      const ramp = 3 * value / 255, part = (channel) => Math.round(255 * Math.min(1, Math.max(0, ramp - channel)));
      image.data.set([part(0), part(1), part(2), 70 + Math.round(110 * value / 255)], 4 * place);
    });
    context.putImageData(image, 0, 0);
    canvas.width = 192;
    canvas.height = Math.max(1, Math.round(192 * picture.height / picture.width));
    const large = canvas.getContext("2d");
    large.imageSmoothingQuality = "high";
    large.drawImage(small, 0, 0, canvas.width, canvas.height);
  }

  function wordRow(answer, kept) {
    const close = make("button", { type: "button", className: "plain-button quiet drop", textContent: "remove" });
    const means = answer.rows.map((row) => row.means).join("; ");
    const count = answer.row_count === 1 ? "" : `${answer.row_count} rows: `;
    const apart = answer.separation === null ? "" : `tells ${Math.round(100 * answer.separation)} % of ${answer.pairs} pairs apart`;
    const header = make("header", {}, make("h3", { textContent: answer.word }),
      make("span", { className: "why", textContent: apart, title: "how often a photograph with the tag scores higher, at its best place, than one without" }),
      make("span", { className: "why", textContent: count + means.slice(0, 160) }));
    if (kept) header.append(close);
    const strip = make("div", { className: "strip" });
    let other = false;
    for (const picture of answer.pictures) {
      const image = make("img", { alt: picture.image, src: `/api/photographs/${picture.photograph}?side=320` });
      const canvas = make("canvas"), shot = make("div", { className: "shot" }, image, canvas);
      shot.style.setProperty("--ratio", picture.ratio);
      const figure = make("figure", { title: picture.image }, make("div", { className: "frame" }, shot),
        make("figcaption", { textContent: picture.highest.toPrecision(2) }));
      if (!picture.tagged && !other) { figure.className = "first-other"; other = true; }
      heat(canvas, picture);
      strip.append(figure);
    }
    const sides = make("div", { className: "sides" }, make("span", { textContent: `tagged ${answer.class}` }), make("span", { textContent: other ? "not tagged so" : "" }));
    const node = make("div", { className: "word-row" }, header, sides, strip);
    node.dataset.word = answer.word;
    close.addEventListener("click", () => { rows.splice(rows.findIndex((row) => row.node === node), 1); node.remove(); hint(); });
    return node;
  }

  async function look(keep) {
    clearTimeout(timer);
    if (asking) asking.abort();
    const word = $("word").value.trim();
    if (!word) { if (live) live.node.remove(); live = null; tell($("word-alert"), null); return; }
    const mine = asking = new AbortController(), name = $("word-class").value;
    if (keep) { asking = null; $("word").value = ""; } // what is to be kept is not given up for the next word
    const known = live && live.answer.asked === word && live.answer.class === name ? live.answer : null;
    if (live) live.node.classList.add("waiting");
    try {
      const answer = known || await get(`/api/words?${new URLSearchParams({ word, class: name })}`, { signal: mine.signal });
      answer.asked = word;
      tell($("word-alert"), null);
      if (live && (!keep || live.answer.asked === word)) { live.node.remove(); live = null; }
      const entry = { answer, node: wordRow(answer, keep) };
      if (keep && live) live.node.after(entry.node); else $("rows").prepend(entry.node);
      if (keep) { rows.unshift(entry); hint(); } else live = entry;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (live) live.node.remove();
      live = null;
      if (keep && !$("word").value) $("word").value = word;
      tell($("word-alert"), error);
    }
  }

  function hint() {
    const name = $("word-class").value, stands = [...new Set(rows.filter((row) => row.answer.class === name).flatMap((row) => row.answer.stands))];
    $("word-hint").hidden = !stands.length;
    const quoted = (text) => JSON.stringify(text).replaceAll("'", "'\\''");  // YAML's, inside a shell's single quotes
    $("word-hint").replaceChildren("To train with the words kept: ",
      make("code", { textContent: `--set 'cosegmentation.vision_language.rows={${quoted(name)}: [${stands.map(quoted).join(", ")}]}'` }),
      ". Other words are other scores: the masks are made anew.");
  }
  $("word").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => look(false), 250); });
  $("word").addEventListener("focus", () => { if (!$("word").value && !rows.length && !live) { $("word").value = $("word-class").value; $("word").select(); look(false); } });
  $("word-class").addEventListener("change", () => { hint(); if ($("word").value.trim()) look(false); });
  $("word-form").addEventListener("submit", (event) => { event.preventDefault(); look(true); });

  // ------------------------------------------------------------------ begin
  (async () => {
    try {
      session = await get("/api/session");
    } catch (error) {
      tell($("alert"), error);
      return;
    }
    document.title = `${session.title} · fmwiss review`;
    $("title").textContent = session.title;
    $("file").textContent = session.file;
    if (session.status !== "open") {
      $("status").textContent = `Step ${session.step} is ${session.status === "begun" ? "begun" : "trained"} already: it goes by the review that it was begun with, if any. What is decided here counts for a run that takes this file with --review.`;
      $("status").hidden = false;
    }
    $("class").append(make("option", { value: "" }), ...session.classes.map((entry) => make("option", { value: entry.name })));
    $("word-class").append(...session.classes.map((entry) => make("option", { value: entry.name, textContent: entry.name })));
    Object.assign($("cut"), { min: session.threshold.lowest, max: session.threshold.highest, step: session.threshold.stride });
    cut = session.threshold.kept ?? session.threshold.value;
    $("cut").value = cut;
    take(session);
    await refresh();
  })();
})();
