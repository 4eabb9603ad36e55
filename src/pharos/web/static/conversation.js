// Asking: the question goes out by POST, the answer streams in as text, and its rendered form replaces it at the end.

import { ApiError, call, t } from "./api.js";
import { readEvents } from "./events.js";

const form = document.getElementById("ask-form");
const question = document.getElementById("question");
const button = document.getElementById("ask-button");
const turns = document.getElementById("turns");
const status = document.getElementById("ask-status");
let running = null;
let following = true;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else ask(question.value.trim());
});

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) form.requestSubmit();
});

document.addEventListener("click", (event) => {
  const suggestion = event.target.closest("[data-suggestion]");
  if (suggestion && !running) ask(suggestion.textContent.trim());
});

for (const moved of ["wheel", "touchmove"]) {
  window.addEventListener(moved, () => { following = false; }, { passive: true });
}

async function ask(text) {
  if (!text) return;
  running = new AbortController();
  following = true;
  document.getElementById("talk-empty")?.remove();
  const answer = addAnswer(addQuestion(text));
  question.value = "";
  button.textContent = t("ask.stop");
  status.textContent = t("ask.searching");
  try {
    await stream(text, answer);
    status.textContent = t("ask.ready");
  } catch (error) {
    status.textContent = error.name === "AbortError" ? t("ask.stopped") : "";
    showProblem(answer, text, error);
  } finally {
    answer.body.removeAttribute("aria-busy");
    turns.removeAttribute("aria-busy");
    button.textContent = t("ask.submit");
    running = null;
  }
}

async function stream(text, answer) {
  const request = { question: text };
  if (form.dataset.conversation) request.conversation_id = form.dataset.conversation;
  const reply = await call(`/chat/projects/${form.dataset.project}`, {
    method: "POST", json: request, signal: running.signal, headers: { Accept: "text/event-stream" },
  });
  let complete = false;
  for await (const { event, data } of readEvents(reply)) {
    if (event === "error") throw new ApiError(data.message ?? t("app.unexpected"), { code: data.error });
    handlers[event]?.(answer, data);
    complete ||= event === "done";
  }
  if (!complete) throw new ApiError(t("ask.cut"));
}

const handlers = {
  meta(answer, data) {
    form.dataset.conversation = data.conversation_id;
    // The address now names the conversation, so that Back from a passage returns to it.
    history.replaceState(null, "", `${location.pathname}?conversation=${encodeURIComponent(data.conversation_id)}`);
    const share = document.getElementById("share");
    share.querySelector("form").setAttribute("action", `/conversations/${encodeURIComponent(data.conversation_id)}/share-requests`);
    share.hidden = false;
    answer.mode = data.mode;
    answer.card.querySelector("[data-degraded]").hidden = !data.degraded;
  },
  sources(answer, data) {
    answer.sources = data.sources;
  },
  text(answer, data) {
    if (answer.body.dataset.waiting) {
      delete answer.body.dataset.waiting;
      answer.body.textContent = "";
    }
    answer.body.textContent += data.delta;
    keepInView(answer);
  },
  done(answer, data) {
    // `html` comes from the server's one renderer and sanitiser; nothing else is ever set as HTML here.
    if (typeof data.html === "string") answer.body.innerHTML = data.html;
    answer.card.classList.toggle("turn--unfounded", data.grounded === false);
    answer.card.querySelector("[data-unfounded]").hidden = data.grounded !== false;
    if (data.grounded !== false) showSources(answer);
    keepInView(answer);
  },
};

function addQuestion(text) {
  const turn = copyOf("question-template");
  turn.querySelector("p").textContent = text;
  turns.append(turn);
  return turn;
}

function addAnswer(asked) {
  const card = copyOf("answer-template");
  const body = card.querySelector("[data-answer]");
  body.setAttribute("aria-busy", "true");
  body.dataset.waiting = "yes";
  body.textContent = t("ask.searching");
  turns.setAttribute("aria-busy", "true");
  turns.append(card);
  const answer = { asked, card, body, sources: [], mode: null };
  keepInView(answer);
  return answer;
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

function showProblem(answer, text, error) {
  if (answer.body.dataset.waiting) answer.body.textContent = "";
  const note = document.createElement("p");
  note.className = "notice notice--warning";
  note.setAttribute("role", "alert");
  note.textContent = error.name === "AbortError" ? t("ask.stopped") : error.message;
  const again = document.createElement("button");
  again.type = "button";
  again.className = "button button--quiet button--small turn__again";
  again.textContent = t("ask.again");
  again.addEventListener("click", () => running || ask(text));
  answer.card.append(note, again);
  keepInView(answer);
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
