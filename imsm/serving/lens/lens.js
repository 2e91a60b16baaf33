"use strict";

// Texts of models, prompts and runs enter the page as text nodes alone, never as markup.

const $ = (id) => document.getElementById(id);
const SYMBOLS = { lambda: "λ", alpha: "α", g: "gate" };
const CHANGES = { kept: "kept", forgotten: "forgotten", learned: "learned", never_known: "never known" };
const WINNERS = ["original", "tuned", "both", "neither"];
const WINNER_TEXTS = {
  original: "favorite of the original alone",
  tuned: "favorite of the tuned model alone",
  both: "favorite of both streams",
  neither: "favorite of neither stream",
};
const PAGE_SIZE = 25;
const DEBOUNCE_MS = 350;

const state = {
  key: stored(sessionStorage, "imsm-key") ?? "",
  cards: [],
  models: new Map(), // what the server lists, by id
  columns: [],
  prompt: null, // that of the answers on the page
};

/** Return a new element; a property is an attribute, a listener (`onclick`), or one of `text` and `class`. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (!given(value) || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(given));
  return node;
}

const span = (name, text) => el("span", { class: name, text });
const option = (value, text = value) => el("option", { value, text });
const given = (value) => value !== null && value !== undefined;

function stored(storage, name, value) {
  try {
    if (value === undefined) return storage.getItem(name);
    storage.setItem(name, value);
  } catch {
    // storage may be disabled: the choice then lasts as long as the page
  }
  return null;
}

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
const points = (value) => (!given(value) ? "–" : value.toFixed(1).replace("-", "−"));
const signed = (value) => (value > 0 ? "+" : "") + points(value);
const short = (fingerprint) => fingerprint.slice(0, 8);
const announce = (text) => { $("live").textContent = text; };

function debounce(action, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/* ---- API ---- */

class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Fetch a path of this server; throw an ApiError with the server's message. */
async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? response.statusText;
  if (response.status === 401) $("key-form").hidden = false;
  throw new ApiError(response.status, `${response.status}: ${message}`);
}

const getJson = async (path, options) => (await request(path, options)).json();

/** Yield the JSON values of a stream of server-sent events, up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, "The connection ended before the answer was complete.");
    buffer += value;
    const parts = buffer.split(/\r?\n\r?\n/);
    buffer = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

/* ---- details of a token ---- */

const details = {
  node: null,
  pinned: false,

  show(token, data) {
    this.hide();
    this.node = token;
    token.classList.add("active");
    token.setAttribute("aria-describedby", "details");
    const panel = $("details");
    const divergence = given(data.kl) ? data.kl.toFixed(3) : "–";
    panel.replaceChildren(
      el("h4", {},
        el("code", { text: visible(data.text).trim() || "end" }), span("", WINNER_TEXTS[data.winner] ?? "")),
      gateLine(data),
      el("p", { class: "kl", text: `KL(original ‖ tuned) ${divergence} nats` }),
      el("div", { class: "streams" }, candidates("original", data), candidates("tuned", data)),
    );
    panel.hidden = false;
    this.place(token, panel);
  },

  place(token, panel) {
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const left = Math.min(Math.max(12, box.left - 16), innerWidth - panel.offsetWidth - 12);
    const below = box.bottom + 10 + panel.offsetHeight < innerHeight;
    panel.style.left = `${left}px`;
    panel.style.top = `${below ? box.bottom + 10 : Math.max(8, box.top - panel.offsetHeight - 10)}px`;
  },

  hide() {
    $("details").hidden = true;
    this.node?.classList.remove("active");
    this.node?.removeAttribute("aria-describedby");
    this.node = null;
    this.pinned = false;
  },
};

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");

function gateLine(data) {
  if (!given(data.gate)) return el("p", { class: "kl", text: "One stream: no gate." });
  const [spread, mean] = [span("spread"), span("mean")];
  const std = data.gate_std ?? 0;
  const low = Math.max(0, data.gate - std);
  spread.style.left = `${100 * low}%`;
  spread.style.width = `${100 * (Math.min(1, data.gate + std) - low)}%`;
  mean.style.left = `${100 * data.gate}%`;
  const text = data.gate.toFixed(2) + (given(data.gate_std) ? ` ± ${std.toFixed(2)}` : "");
  const track = el("span", { class: "track" }, spread, mean);
  return el("div", { class: "gate-line" }, span("", "Gate"), track, span("", text));
}

function candidates(stream, data) {
  const rows = (data[stream] ?? []).map((candidate) => {
    const probability = Math.exp(candidate.logprob);
    const fill = span("fill");
    fill.style.width = `${100 * probability}%`;
    const chosen = candidate.id === data.id ? " chosen" : "";
    const text = el("code", { text: visible(candidate.text).trim() || "space" });
    return el("div", { class: `candidate${chosen}` }, fill, text, span("", percent(probability)));
  });
  return el("div", { class: stream }, el("h5", { text: stream }), ...rows);
}

/* ---- one column: a model's answer ---- */

class Column {
  constructor(kind, card) {
    this.kind = kind;
    this.card = card;
    this.tokens = [];
    this.abort = null;
    this.state = span("state");
    this.title = span("", kind);
    this.identity = el("p", { class: "identity" });
    this.warning = el("p", { class: "mismatch", role: "alert", hidden: true });
    this.answer = el("div", { class: "answer", role: "listbox", tabindex: "0", "aria-orientation": "horizontal" });
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
    this.summary = el("div", { class: "summary", hidden: true });
    this.head = el("header", { class: "column-head" }, el("h3", {}, this.title, this.state), this.identity);
    const parts = [this.head, this.answer, this.problem, this.summary];
    this.node = el("article", { class: "column", "data-kind": kind }, ...parts);
    if (kind === "mix") this.addMixControls();
    this.head.append(this.warning);
    this.answer.setAttribute("aria-label", `Answer of ${kind}`);
    this.listen();
    this.clear();
  }

  /** The model's id: RUN:STREAM, or RUN:BASELINE:VALUE. */
  get model() {
    const name = this.kind === "mix" ? `${this.baseline.name}:${Number(this.slider.value)}` : this.kind;
    return `${this.card.run}:${name}`;
  }

  addMixControls() {
    const baselines = this.card.imsm.baselines;
    const names = baselines.map(({ name }) => option(name, name.replaceAll("_", " ")));
    const choice = el("select", { "aria-label": "Baseline" }, ...names);
    this.slider = el("input", { type: "range", step: "0.01", "aria-label": "Value of the baseline" });
    const output = el("output");
    const show = () => {
      const symbol = SYMBOLS[this.baseline.symbol] ?? this.baseline.symbol;
      output.textContent = `${symbol} = ${Number(this.slider.value).toFixed(2)}`;
    };
    const choose = () => {
      this.baseline = baselines.find(({ name }) => name === choice.value);
      this.slider.min = this.baseline.low;
      this.slider.max = this.baseline.high;
      const { grid, low, high } = this.baseline;
      this.slider.value = grid?.length ? grid[Math.floor(grid.length / 2)] : (low + high) / 2;
      this.slider.title = this.baseline.meaning;
      show();
    };
    const again = debounce(() => {
      if (state.prompt !== null && this.node.isConnected) this.ask(state.prompt);
    }, DEBOUNCE_MS);
    choice.addEventListener("change", () => { choose(); again(); });
    this.slider.addEventListener("input", () => { show(); again(); });
    if (baselines.some(({ name }) => name === "logit_mix")) choice.value = "logit_mix";
    this.title.replaceChildren(choice);
    this.head.append(el("div", { class: "mix-controls" }, output, this.slider));
    choose();
  }

  clear(text = "not asked yet") {
    this.tokens = [];
    this.text = "";
    this.answer.replaceChildren(span("empty", "–"));
    this.summary.hidden = this.problem.hidden = this.warning.hidden = true;
    this.identity.replaceChildren(span("", this.card.run), span("", text));
    this.state.textContent = "";
    this.node.classList.remove("waiting", "streaming");
  }

  /** Ask the model and show its answer as it arrives. */
  async ask(prompt) {
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    if (details.node && this.answer.contains(details.node)) details.hide();
    this.clear("no answer yet");
    const model = this.model;
    this.setState("waiting", "waiting …");
    try {
      const options = { method: "POST", signal: abort.signal, ...body(model, prompt) };
      const response = await request("/v1/chat/completions", options);
      for await (const chunk of events(response)) this.take(chunk, model);
      this.setState("", "done");
      announce(`${this.kind} answered: ${this.text}`);
    } catch (error) {
      if (error.name === "AbortError") {
        if (this.abort === abort) this.setState("", "stopped");
        return;
      }
      this.setState("", "failed");
      this.problem.textContent = error.message;
      this.problem.hidden = false;
    } finally {
      if (this.abort === abort) this.abort = null;
      updateButtons();
    }
  }

  setState(name, text) {
    this.node.classList.remove("waiting", "streaming");
    if (name) this.node.classList.add(name);
    this.answer.setAttribute("aria-busy", name ? "true" : "false");
    this.state.textContent = text;
    updateButtons();
  }

  take(chunk, asked) {
    if (chunk.error) throw new ApiError(0, chunk.error.message);
    if (this.tokens.length === 0 && !this.text) {
      this.answer.replaceChildren();
      this.setState("streaming", "answering …");
      this.identify(chunk, asked);
    }
    const choice = chunk.choices?.[0];
    const found = choice?.imsm?.tokens ?? [];
    for (const token of found) this.add(token);
    const text = choice?.delta?.content ?? choice?.text ?? "";
    if (!found.length && text) {
      this.text += text;
      this.answer.append(text);
    }
    if (found.length) this.summarize();
  }

  /** Name the model as the server did in its response, and warn if it is not the one that was asked. */
  identify(chunk, asked) {
    const listed = state.models.get(chunk.model);
    const fingerprint = chunk.system_fingerprint ?? listed?.imsm?.fingerprint;
    const code = el("code", { text: fingerprint ? short(fingerprint) : "no fingerprint", title: fingerprint ?? "" });
    const run = chunk.model.startsWith(`${this.card.run}:`) ? this.card.run : "";
    const name = run ? chunk.model.slice(run.length + 1) : chunk.model;
    this.identity.replaceChildren(span("", run), el("span", {}, el("b", { text: name }), " · ", code));
    const problems = [];
    if (chunk.model !== asked) problems.push(`Asked for ${asked}; the server answered as ${chunk.model}.`);
    const expected = state.models.get(asked)?.imsm?.fingerprint;
    if (expected && fingerprint && fingerprint !== expected) {
      problems.push(`Its fingerprint is ${short(fingerprint)}; /v1/models has ${short(expected)}.`);
    }
    this.warning.textContent = problems.join(" ");
    this.warning.hidden = problems.length === 0;
  }

  add(token) {
    const gated = given(token.gate);
    const text = token.text.trim() || (token.text ? "space" : "end");
    const label = [text, WINNER_TEXTS[token.winner], gated ? `gate ${token.gate.toFixed(2)}` : null].filter(given);
    const node = el("span", {
      class: gated ? "token gated" : "token",
      role: "option",
      tabindex: "-1",
      "aria-selected": "false",
      "aria-label": label.join(", "),
      "data-winner": token.winner,
      "data-index": this.tokens.length,
    });
    if (gated) node.style.setProperty("--gate", token.gate);
    // a line break has no width, and could be neither seen nor pointed at
    for (const part of token.text.split(/(\n)/)) {
      if (part === "\n") node.append(span("glyph", "↵"));
      if (part) node.append(part);
    }
    if (!token.text) node.append(span("glyph", "∎"));
    this.tokens.push(token);
    this.text += token.text;
    this.answer.append(node);
  }

  summarize() {
    const total = this.tokens.length;
    const counts = WINNERS.map((winner) => [winner, this.tokens.filter((token) => token.winner === winner).length]);
    const parts = counts.map(([winner, count]) => {
      const part = span(winner);
      part.style.width = `${(100 * count) / total}%`;
      return part;
    });
    const texts = [`${total} token${total === 1 ? "" : "s"}`];
    texts.push(...counts.filter(([, count]) => count).map(([winner, count]) => `${winner} ${percent(count / total)}`));
    const gates = this.tokens.map((token) => token.gate).filter(given);
    const sum = gates.reduce((part, gate) => part + gate, 0);
    if (gates.length) texts.push(`mean gate ${(sum / gates.length).toFixed(2)}`);
    const bar = el("div", { class: "shares", "aria-hidden": "true" }, ...parts);
    this.summary.replaceChildren(bar, texts.join(" · "));
    this.summary.hidden = false;
  }

  listen() {
    const tokenOf = (event) => event.target.closest(".answer .token");
    const show = (node) => details.show(node, this.tokens[node.dataset.index]);
    this.answer.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && !details.pinned && tokenOf(event)) show(tokenOf(event));
    });
    this.answer.addEventListener("pointerleave", () => {
      if (!details.pinned && !this.answer.contains(document.activeElement)) details.hide();
    });
    this.answer.addEventListener("click", (event) => {
      const node = tokenOf(event);
      if (!node) return;
      event.stopPropagation();
      show(node);
      details.pinned = true;
    });
    this.answer.addEventListener("focusin", (event) => { if (event.target !== this.answer) show(event.target); });
    this.answer.addEventListener("focusout", () => details.hide());
    this.answer.addEventListener("keydown", (event) => this.move(event));
  }

  /** Arrow keys, Home and End move through the tokens. */
  move(event) {
    const nodes = this.answer.querySelectorAll(".token");
    const at = [...nodes].indexOf(document.activeElement);
    const last = nodes.length - 1;
    const [before, after] = [Math.max(at - 1, 0), Math.min(at + 1, last)];
    const targets = { ArrowLeft: before, ArrowUp: before, ArrowRight: after, ArrowDown: after, Home: 0, End: last };
    const target = targets[event.key];
    if (target === undefined || last < 0) return;
    event.preventDefault();
    nodes[at]?.setAttribute("aria-selected", "false");
    nodes[target].setAttribute("aria-selected", "true");
    nodes[target].focus();
  }
}

/** Return headers and body of a request; the server puts the message into the run's own format. */
function body(model, prompt) {
  const content = {
    model,
    messages: [{ role: "user", content: prompt }],
    stream: true,
    temperature: Number($("temperature").value) || 0,
    max_tokens: Number($("max-tokens").value) || 128,
    imsm: { details: true, top: 5 },
  };
  return { headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
}

/* ---- tab 1: ask ---- */

const selectedCard = () => state.cards.find((card) => card.run === $("run").value);

function buildColumns() {
  for (const column of state.columns) column.abort?.abort();
  details.hide();
  const card = selectedCard();
  const kinds = card ? [...card.streams, ...(card.imsm.baselines.length ? ["mix"] : [])] : [];
  state.columns = kinds.map((kind) => new Column(kind, card));
  $("columns").replaceChildren(...state.columns.map((column) => column.node));
  $("columns").style.setProperty("--count", state.columns.length);
  state.prompt = null;
  updateButtons();
}

function selectRun(run) {
  $("run").value = run;
  buildColumns();
  $("examples").hidden = false;
  // those of the other run must not be clicked while these load
  $("examples").replaceChildren();
  showExamples();
}

function ask() {
  const prompt = $("prompt").value;
  if (!prompt.trim()) {
    $("prompt").focus();
    return;
  }
  state.prompt = prompt;
  $("examples").hidden = true;
  announce(`Asking ${state.columns.length} models`);
  for (const column of state.columns) column.ask(prompt);
}

function stop() {
  for (const column of state.columns) column.abort?.abort();
}

function updateButtons() {
  const busy = state.columns.some((column) => column.abort);
  const hadFocus = document.activeElement === $("stop");
  $("stop").hidden = !busy;
  if (hadFocus && !busy) $("ask").focus();
}

/** Put an evaluated item into the first tab and ask it. */
function askItem(run, item) {
  if ($("run").value !== run) selectRun(run);
  $("prompt").value = item.prompt;
  const gold = el("b", { text: item.references.join(" | ") });
  $("asked-item").replaceChildren(`${item.id} · gold `, gold, item.change ? ` · ${CHANGES[item.change]}` : "");
  $("asked-item").hidden = false;
  selectTab("ask");
  $("prompt").focus();
  scrollTo(0, 0);
  ask();
}

/** Offer the first question of some of the run's tasks. */
async function showExamples() {
  const card = selectedCard();
  if (!card) return;
  // two of each: what they share are the task's instructions
  const paths = card.scores.slice(0, 3).map(({ task }) => itemsPath({ run: card.run, task, limit: 2 }));
  const views = await Promise.all(paths.map((path) => getJson(path).catch(() => ({ items: [] }))));
  if (card !== selectedCard()) return;
  $("examples").replaceChildren(...views.filter(({ items }) => items.length).map(({ items: [item, ...others] }) => {
    const text = withoutLines(item.prompt, sharedLines([item, ...others])[item.task]).replaceAll("\n", " ");
    const onclick = () => askItem(card.run, item);
    return el("button", { type: "button", title: item.prompt, onclick }, el("b", { text: item.task }), text);
  }));
}

/* ---- tab 2: runs ---- */

function cardNode(card) {
  return el("article", { class: "card" },
    el("h3", { text: card.title }),
    el("p", { class: "subtitle", text: card.subtitle }),
    el("p", { class: "headline", text: card.headline.join(" ") }),
    el("div", { class: "score heads", "aria-hidden": "true" },
      span("task", "task"), span("rail-head", "○ original   ● this run"), span("number", "points"),
      span("number", "change"), span("number", card.gate ? "gate" : "")),
    ...card.scores.map((score) => scoreRow(score, score.role === "target" ? `${score.task} (target)` : score.task)),
    card.forgetting ? scoreRow(card.forgetting, "other tests", true) : null,
    facts(identityOf(card)),
    el("details", {},
      el("summary", { text: "Settings and outcomes" }), facts([...card.settings, ...outcomesOf(card)])),
    el("div", { class: "actions" },
      el("button", { type: "button", text: "Ask this run", onclick: () => openRun(card.run) }),
      el("button", { type: "button", text: "Its items", onclick: () => openItems(card.run) })),
  );
}

/** Return a list of names and values, without those that have none. */
function facts(rows) {
  const known = rows.filter(([, value]) => value);
  return el("dl", {}, ...known.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]));
}

function identityOf(card) {
  const listed = card.streams.map((stream) => [stream, state.models.get(`${card.run}:${stream}`)?.imsm.fingerprint]);
  const prints = listed.filter(([, value]) => value).map(([stream, value]) => `${stream} ${short(value)}`);
  const gate = card.gate ? card.gate.name + (card.gate.rank ? `, rank ${card.gate.rank}` : "") : null;
  return [["run", card.run], ["fingerprint", prints.join(" · ")], ["gate", gate]];
}

function outcomesOf(card) {
  const text = (changes) => Object.entries(changes).map(([name, count]) => `${CHANGES[name]} ${count}`).join(" · ");
  return card.scores.filter((score) => score.changes).map((score) => [score.task, text(score.changes)]);
}

function openRun(run) {
  selectRun(run);
  selectTab("ask");
  $("prompt").focus();
}

function openItems(run) {
  $("items-run").value = run;
  fillTasks();
  items.offset = 0;
  selectTab("items");
  $("items-search").focus();
}

/** Return a row with the scores of the original and the run on a rail from 0 to 100 points. */
function scoreRow(score, name, total = false) {
  const known = given(score.original) && given(score.score);
  const rail = el("span", { class: "rail", "aria-hidden": "true" });
  const at = (value) => `${Math.min(100, Math.max(0, value))}%`;
  if (known) {
    const change = span("change");
    change.style.left = at(Math.min(score.original, score.score));
    change.style.width = at(Math.abs(score.score - score.original));
    rail.append(change);
  }
  for (const [value, kind] of [[score.original, "dot"], [score.score, "dot after"]]) {
    if (!given(value)) continue;
    const dot = span(kind);
    dot.style.left = at(value);
    rail.append(dot);
  }
  const difference = known ? score.score - score.original : null;
  const direction = difference > 0.05 ? " up" : difference < -0.05 ? " down" : "";
  const chip = given(score.gate) ? span("gate-chip", score.gate.toFixed(2)) : span("");
  chip.title = given(score.gate) ? "mean gate: weight of the original" : "";
  chip.style.setProperty("--gate", score.gate ?? 0.5);
  return el("div", { class: total ? "score total" : "score" },
    el("span", { class: "task", text: name, title: score.metric ?? (score.tests ?? []).join(", ") }),
    rail,
    span("number", `${points(score.original)} → ${points(score.score)}`),
    span(`number${direction}`, difference === null ? "–" : signed(difference)),
    chip,
  );
}

/* ---- tab 3: items ---- */

const items = { offset: 0, total: 0, change: "", abort: null };

function itemsPath(filters) {
  return `/api/items?${new URLSearchParams(Object.entries(filters).filter(([, value]) => value !== ""))}`;
}

async function loadItems() {
  items.abort?.abort();
  const abort = (items.abort = new AbortController());
  const run = $("items-run").value;
  if (!run) return;
  const [task, search] = [$("items-task").value, $("items-search").value.trim()];
  const filters = { run, task, change: items.change, search, offset: items.offset, limit: PAGE_SIZE };
  try {
    const view = await getJson(itemsPath(filters), { signal: abort.signal });
    showItems(run, view);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("items-table").replaceChildren(el("p", { class: "message error", role: "alert", text: error.message }));
  }
}

function showItems(run, view) {
  items.total = view.total;
  showChanges(view.changes);
  const last = Math.min(view.offset + view.items.length, view.total);
  const [first, end, total] = [view.offset + 1, last, view.total].map((count) => count.toLocaleString("en"));
  $("range").textContent = view.total ? `${first}–${end} of ${total}` : "none";
  $("previous").disabled = view.offset === 0;
  $("next").disabled = last >= view.total;
  announce(`${view.total} items`);
  if (!view.items.length) {
    $("items-table").replaceChildren(el("p", { class: "message", text: "No item matches." }));
    return;
  }
  const skipped = sharedLines(view.items);
  const heads = [["item", "Item"], ["prompt", "Prompt"], ["gold", "Gold"], ["answers", "Answers"]];
  $("items-table").replaceChildren(el("table", {},
    el("caption", { class: "sr-only", text: `Evaluated items of ${run}` }),
    el("thead", {}, el("tr", {}, ...heads.map(([name, text]) => el("th", { class: name, scope: "col", text })))),
    el("tbody", {}, ...view.items.map((item) => itemRow(run, item, skipped[item.task]))),
  ));
}

/** Return how many lines at the start of each task's prompts are the same on this page: its instructions. */
function sharedLines(found) {
  const counts = {};
  for (const [task, group] of Map.groupBy(found, (item) => item.task)) {
    const prompts = group.map((item) => item.prompt.split("\n"));
    // at least one line remains, and all of a single prompt
    const most = prompts.length > 1 ? Math.min(...prompts.map((lines) => lines.length)) - 1 : 0;
    counts[task] = 0;
    while (counts[task] < most && prompts.every((lines) => lines[counts[task]] === prompts[0][counts[task]])) {
      counts[task] += 1;
    }
  }
  return counts;
}

const withoutLines = (text, count) => text.split("\n").slice(count).join("\n");

/** Return the different responses, each with the labels of the runs that gave it. */
function replies(answers) {
  const groups = Map.groupBy(answers, (answer) => JSON.stringify([answer.response, answer.score]));
  return [...groups.values()].map((group) => {
    const [{ response, score }] = group;
    const [mark, label, direction] = score >= 0.5 ? ["✓", "right", "up"] : ["✗", "wrong", "down"];
    const labels = group.map((each) => each.label + (given(each.gate) ? `, gate ${each.gate.toFixed(2)}` : ""));
    return el("div", { class: "reply" },
      el("span", { class: `verdict ${direction}`, role: "img", "aria-label": label, text: mark }),
      el("span", { class: "text clamp short", text: response.trim() || "(empty)", title: response }),
      span("label", labels.join(" · ")));
  });
}

function itemRow(run, item, skipped) {
  const open = (event) => {
    event.stopPropagation();
    askItem(run, item);
  };
  const prompt = el("button", { type: "button", class: "plain clamp", title: item.prompt, onclick: open },
    skipped ? span("skipped", "… ") : null, withoutLines(item.prompt, skipped));
  const gold = item.references.join(" | ");
  const badge = item.change ? span(`badge ${item.change}`, CHANGES[item.change]) : null;
  return el("tr", { onclick: open },
    el("td", {}, span("", item.task), span("id", item.id), badge),
    el("td", { class: "prompt", "data-label": "Prompt" }, prompt),
    el("td", { "data-label": "Gold" }, el("span", { class: "clamp", text: gold, title: gold })),
    el("td", { "data-label": "Answers" }, ...replies(item.answers)));
}

function changeChip(value, text) {
  const onchange = () => {
    items.change = value;
    firstPage();
  };
  return el("label", { "data-value": value },
    el("input", { type: "radio", name: "change", value, checked: value === items.change, onchange }),
    span("", text), span("count"));
}

function showChanges(counts) {
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const outcomes = Object.entries(CHANGES).map(([value, text]) => [value, text, counts[value] ?? 0]);
  const chips = [["", "all", total], ...outcomes];
  // kept when the counts change, so that the focus stays where it is
  if (!$("changes").querySelector("label")) {
    $("changes").append(...chips.map(([value, text]) => changeChip(value, text)));
  }
  for (const [value, , count] of chips) {
    $("changes").querySelector(`[data-value="${value}"] .count`).textContent = count.toLocaleString("en");
  }
}

function firstPage() {
  items.offset = 0;
  loadItems();
}

function turnPage(step) {
  items.offset = Math.max(0, items.offset + step);
  loadItems();
}

function fillTasks() {
  const card = state.cards.find(({ run }) => run === $("items-run").value);
  $("items-task").replaceChildren(option("", "all"), ...(card?.scores ?? []).map(({ task }) => option(task)));
}

/* ---- frame ---- */

const TABS = ["ask", "runs", "items"];

function selectTab(name, focus = false) {
  for (const tab of TABS) {
    const selected = tab === name;
    $(`tab-${tab}`).setAttribute("aria-selected", selected);
    $(`tab-${tab}`).tabIndex = selected ? 0 : -1;
    $(`panel-${tab}`).hidden = !selected;
  }
  if (focus) $(`tab-${name}`).focus();
  details.hide();
  // not #ask: the browser would focus the element of that id
  history.replaceState(null, "", `#/${name}`);
  if (name === "items") loadItems();
}

function moveTab(event) {
  const at = TABS.findIndex((tab) => $(`tab-${tab}`) === document.activeElement);
  const target = { ArrowRight: at + 1, ArrowLeft: at - 1 + TABS.length, Home: 0, End: TABS.length - 1 }[event.key];
  if (target === undefined || at < 0) return;
  event.preventDefault();
  selectTab(TABS[target % TABS.length], true);
}

function setTheme(theme) {
  const [icon, label] = { light: ["☀", "light"], dark: ["☾", "dark"] }[theme] ?? ["◐", "automatic"];
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = icon;
  $("theme").setAttribute("aria-label", `Color theme: ${label}`);
  $("theme").title = `Color theme: ${label}`;
  stored(localStorage, "imsm-theme", theme);
}

async function load() {
  $("page-error").hidden = true;
  try {
    const [models, cards] = await Promise.all([getJson("/v1/models"), getJson("/api/runs")]);
    state.models = new Map(models.data.map((model) => [model.id, model]));
    state.cards = cards;
  } catch (error) {
    $("page-error").textContent = error.message;
    $("page-error").hidden = error.status === 401 && !state.key;
    return;
  }
  $("key-form").hidden = true;
  for (const select of ["run", "items-run"]) $(select).replaceChildren(...state.cards.map(({ run }) => option(run)));
  $("cards").replaceChildren(...state.cards.map(cardNode));
  buildColumns();
  fillTasks();
  showChanges({});
  if (!$("panel-items").hidden) loadItems();
  await showExamples();
}

function listen() {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); }
  });
  $("prompt").addEventListener("input", () => { $("asked-item").hidden = true; });
  $("stop").addEventListener("click", stop);
  $("run").addEventListener("change", () => selectRun($("run").value));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = $("key").value;
    stored(sessionStorage, "imsm-key", state.key);
    load();
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("items-run").addEventListener("change", () => { fillTasks(); firstPage(); });
  $("items-task").addEventListener("change", firstPage);
  $("items-search").addEventListener("input", debounce(firstPage, 250));
  $("previous").addEventListener("click", () => turnPage(-PAGE_SIZE));
  $("next").addEventListener("click", () => turnPage(PAGE_SIZE));
  for (const tab of TABS) $(`tab-${tab}`).addEventListener("click", () => selectTab(tab));
  document.querySelector("[role=tablist]").addEventListener("keydown", moveTab);
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "";
    setTheme({ "": "dark", dark: "light", light: "" }[now]);
  });
  document.addEventListener("click", () => details.hide());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") details.hide(); });
  addEventListener("scroll", () => details.node && details.place(details.node, $("details")), { passive: true });
}

setTheme(stored(localStorage, "imsm-theme") ?? "");
listen();
selectTab(TABS.includes(location.hash.slice(2)) ? location.hash.slice(2) : "ask");
load();
