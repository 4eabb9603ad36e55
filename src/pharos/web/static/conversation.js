// Asking: the question goes out by POST, the answer streams in as text, and its rendered form replaces it at the end.

import { ApiError, call, t, toast } from "./api.js";
import { follow, stop } from "./turns.js";

const form = document.getElementById("ask-form");
const question = document.getElementById("question");
const button = document.getElementById("ask-button");
const turns = document.getElementById("turns");
const TYPED = "pharos.typed";
const CUTS = { stopped: "ask.cut_stopped", time: "ask.cut_time" };
const status = document.getElementById("ask-status");
let running = null;
let following = true;

// What somebody typed while the page loaded anew.
question.value ||= sessionStorage.getItem(TYPED) ?? "";
sessionStorage.removeItem(TYPED);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) ask(question.value.trim());
});

// Not by the form: it cannot be sent while the field for the question is empty.
button.addEventListener("click", (event) => {
  if (!running) return;
  event.preventDefault();
  button.textContent = t("ask.stopping");
  stop(running, form.dataset.turns).catch((error) => {
    button.textContent = t("ask.stop");
    toast(error.message, { bad: true });
  });
});

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) form.requestSubmit();
});

document.addEventListener("click", (event) => {
  const suggestion = event.target.closest("[data-suggestion]");
  if (suggestion && !running) ask(suggestion.textContent.trim());
  const again = event.target.closest("[data-regenerate]");
  if (again && !running) answerAnew(again.closest("[data-turn]"));
  const rating = event.target.closest("[data-rate]");
  if (rating) rate(rating);
});

document.addEventListener("submit", (event) => {
  const comment = event.target.closest("[data-comment]");
  if (!comment) return;
  event.preventDefault();
  rate(comment.closest("[data-turn]").querySelector('[data-rate][aria-pressed="true"]'));
});

for (const moved of ["wheel", "touchmove"]) {
  window.addEventListener(moved, () => { following = false; }, { passive: true });
}

// An answer that was in the making when the page was loaded goes on here.
const unfinished = turns.querySelector("[data-running]");
if (unfinished) goOn(unfinished);

async function ask(text) {
  if (!text) return;
  document.getElementById("talk-empty")?.remove();
  const answer = addAnswer(addQuestion(text));
  question.value = "";
  const request = { question: text };
  if (form.dataset.conversation) request.conversation_id = form.dataset.conversation;
  const asked = await hear(answer, () => open(form.getAttribute("action"), request));
  if (!asked && !answer.turn.id) offerAgain(answer, text);
}

async function answerAnew(old) {
  const answer = addAnswer(turns.lastElementChild);
  const isMade = await hear(answer, () => open(`${form.dataset.turns}/${old.dataset.turn}/regenerate`));
  if (isMade || !old.querySelector("[data-answer]").textContent.trim()) old.remove();
}

function goOn(card) {
  const answer = answerIn(card, card.previousElementSibling);
  answer.turn.id = card.dataset.turn;
  return hear(answer);
}

function open(path, json) {
  return call(path, { method: "POST", json, headers: { Accept: "text/event-stream" } });
}

/** Show an answer as it comes, over as many lines as it takes; whether it came to its end. */
async function hear(answer, begin) {
  running = answer.turn;
  following = true;
  button.textContent = t("ask.stop");
  status.textContent = t("ask.searching");
  try {
    await follow(answer.turn, {
      path: form.dataset.turns,
      begin,
      tell: (event, data) => handlers[event]?.(answer, data),
      waits: () => { status.textContent = t("ask.reconnecting"); answer.line.hidden = false; },
    });
    status.textContent = t(answer.turn.stops ? "ask.stopped" : "ask.ready");
    return true;
  } catch (error) {
    status.textContent = "";
    showProblem(answer, error);
    return false;
  } finally {
    answer.line.hidden = true;
    answer.body.removeAttribute("aria-busy");
    turns.removeAttribute("aria-busy");
    button.textContent = t("ask.submit");
    running = null;
    showActs(answer);
  }
}

const handlers = {
  meta(answer, data) {
    form.dataset.conversation = data.conversation_id;
    // The address now names the conversation, so that Back from a passage, or a reload, returns to it.
    history.replaceState(null, "", `${location.pathname}?conversation=${encodeURIComponent(data.conversation_id)}`);
    const share = document.getElementById("share");
    if (share) {
      share.querySelector("form").setAttribute("action", `/conversations/${encodeURIComponent(data.conversation_id)}/share-requests`);
      share.hidden = false;
    }
    answer.mode = data.mode;
    answer.card.querySelector("[data-degraded]").hidden = !data.degraded;
  },
  sources(answer, data) {
    answer.sources = data.sources;
    if (data.made_by) showMaker(answer, data.made_by);
  },
  text(answer, data) {
    answer.line.hidden = true;
    stopWaiting(answer);
    answer.body.textContent += data.delta;
    keepInView(answer);
  },
  done(answer, data) {
    if (form.dataset.reload) {
      sessionStorage.setItem(TYPED, question.value);
      location.assign(`${form.dataset.reload}?conversation=${encodeURIComponent(form.dataset.conversation)}`);
      return;
    }
    stopWaiting(answer);
    // `html` comes from the server's one renderer and sanitiser; nothing else is ever set as HTML here.
    if (typeof data.html === "string") answer.body.innerHTML = data.html;
    if (data.stopped && !data.text) return showProblem(answer, new ApiError(t("ask.state_stopped")));
    answer.isWhole = true;
    // With passages the reader decides: sentences that these do not support are marked in the text.
    const isUnfounded = data.grounded === false && !answer.sources.length && !data.stopped;
    answer.card.classList.toggle("turn--unfounded", isUnfounded);
    answer.card.querySelector("[data-unfounded]").hidden = !isUnfounded;
    answer.card.querySelector("[data-unsupported]").hidden = !data.unsupported?.length;
    showSources(answer);
    keepInView(answer);
  },
};

function stopWaiting(answer) {
  if (!answer.body.dataset.waiting) return;
  delete answer.body.dataset.waiting;
  answer.body.textContent = "";
}

function addQuestion(text) {
  const turn = copyOf("question-template");
  turn.querySelector("p").textContent = text;
  turns.append(turn);
  return turn;
}

function addAnswer(asked) {
  const card = copyOf("answer-template");
  turns.append(card);
  const answer = answerIn(card, asked);
  keepInView(answer);
  return answer;
}

function answerIn(card, asked) {
  const body = card.querySelector("[data-answer]");
  body.setAttribute("aria-busy", "true");
  body.dataset.waiting = "yes";
  body.textContent = t("ask.searching");
  turns.setAttribute("aria-busy", "true");
  const line = document.createElement("p");
  line.className = "notice notice--warning";
  line.textContent = t("ask.reconnecting");
  line.hidden = true;
  body.after(line);
  return { asked, card, body, line, sources: [], mode: null, turn: {}, isWhole: false };
}

/** What can be done with an answer once its turn has ended. */
function showActs({ card, turn, isWhole }) {
  const acts = card.querySelector("[data-acts]");
  if (!acts || !turn.id) return;
  card.dataset.turn = turn.id;
  const comment = card.querySelector("[data-comment]");
  comment.querySelector("label").htmlFor = comment.elements.comment.id = `comment-${turn.id}`;
  delete card.dataset.running;
  acts.hidden = false;
  for (const rating of acts.querySelectorAll("[data-rate]")) rating.hidden = !isWhole;
  acts.querySelector("[data-regenerate]").textContent = t(isWhole ? "ask.regenerate" : "ask.again");
}

async function rate(chosen) {
  const card = chosen.closest("[data-turn]");
  const comment = card.querySelector("[data-comment]");
  const said = comment.elements.comment.value.trim();
  const json = { message_id: card.dataset.turn, rating: chosen.dataset.rate, comment: said };
  try {
    const reply = await call("/feedback", { method: "POST", json });
    for (const each of card.querySelectorAll("[data-rate]")) each.setAttribute("aria-pressed", String(each === chosen));
    comment.hidden = said !== "";
    toast(t(reply.status === 202 ? "ask.rated_later" : "ask.rated"));
  } catch (error) {
    toast(error.message, { bad: true });
  }
}

function showMaker({ card }, { provider, model, failed_over_from, cut }) {
  const notice = card.querySelector("[data-cut]");
  notice.hidden = !cut;
  notice.textContent = cut ? t(CUTS[cut] ?? "ask.limit_cut") : "";
  const line = card.querySelector("[data-made-by]");
  const others = failed_over_from.join(", ");
  line.textContent = others ? t("ask.made_by_spare", { model, provider, others }) : t("ask.made_by", { model, provider });
  line.hidden = false;
}

function showSources({ card, sources, mode }) {
  const box = card.querySelector("[data-sources]");
  box.hidden = sources.length === 0;
  if (!sources.length) return;
  card.querySelector("[data-mode]").textContent = t(mode === "model" ? "ask.model" : "ask.extractive");
  box.querySelector("[data-sources-count]").textContent = t("ask.sources", { count: sources.length });
  box.querySelector("ol").replaceChildren(...sources.map(sourceItem));
}

function sourceItem(source) {
  const item = copyOf("source-template");
  item.querySelector("a").href = source.href ?? passageAddress(source);
  item.querySelector("[data-index]").textContent = source.index;
  item.querySelector("[data-name]").textContent = source.document;
  item.querySelector("[data-page]").textContent = source.page ? t("ask.page", { page: source.page }) : "";
  item.querySelector("[data-text]").textContent = source.text;
  return item;
}

function passageAddress(source) {
  const span = new URLSearchParams({ start: source.start, end: source.end });
  if (source.page) span.set("page", source.page);
  return `/projects/${form.dataset.project}/documents/${encodeURIComponent(source.document_id)}?${span}#passage`;
}

function showProblem(answer, error) {
  stopWaiting(answer);
  const note = document.createElement("p");
  note.className = "notice notice--warning";
  note.setAttribute("role", "alert");
  note.textContent = error.message;
  answer.line.after(note);
  keepInView(answer);
}

/** A question that no turn was begun for can only be asked as a new one. */
function offerAgain({ asked, card }, text) {
  const again = document.createElement("button");
  again.type = "button";
  again.className = "button button--quiet button--small turn__again";
  again.textContent = t("ask.again");
  again.addEventListener("click", () => {
    if (running) return;
    asked.remove();
    card.remove();
    ask(text);
  });
  card.append(again);
}

/** Follow the answer as it grows, the question at the top at most, until the reader scrolls for themselves. */
function keepInView({ asked, card }) {
  if (!following) return;
  const hidden = card.getBoundingClientRect().bottom + 16 - form.getBoundingClientRect().top;
  const above = asked.getBoundingClientRect().top - 16;
  const move = Math.min(hidden, above);
  if (move > 0) window.scrollBy({ top: move, behavior: "instant" });
}

function copyOf(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}
