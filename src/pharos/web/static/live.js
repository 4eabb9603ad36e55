// What happens, as it happens, over /ws. The documents list asks by itself every two seconds while nothing comes this
// way (htmx does that), so a proxy that lets no WebSocket through costs some requests and nothing else.

import { unsafeHeaders } from "./api.js";

const PAUSES_SECONDS = [1, 2, 5, 15, 60];
const SETTLE_MILLISECONDS = 300;

const project = document.querySelector("[data-project]")?.dataset.project;
let at = null;
let tries = 0;
let isLive = false;
let settling = null;

if (project && "WebSocket" in window) open();

function open() {
  const address = new URL("/ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  if (at !== null) address.searchParams.set("after", at);
  const socket = new WebSocket(address, ["pharos", `csrf.${unsafeHeaders["X-CSRF-Token"]}`]);
  socket.addEventListener("message", (event) => heard(JSON.parse(event.data)));
  socket.addEventListener("close", (event) => {
    isLive = false;
    // 1008: signed out. The next click leads to the sign-in page; until then nothing is asked again.
    if (event.code === 1008) return;
    setTimeout(open, PAUSES_SECONDS[Math.min(tries, PAUSES_SECONDS.length - 1)] * 1000);
    tries += 1;
  });
}

function heard(message) {
  const missed = message.name === "hello" && at === null;
  at = message.seq;
  isLive = true;
  tries = 0;
  if (missed || message.name === "reset" || (message.name === "document.changed" && message.project_id === project)) {
    // Many documents change at once when a folder is taken in: the list is asked for once.
    settling ??= setTimeout(listChanged, SETTLE_MILLISECONDS);
  }
}

function listChanged() {
  settling = null;
  document.body.dispatchEvent(new Event("documents-changed"));
}

// While news comes by itself the list need not ask.
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const isPoll = event.target.id === "document-list" && !event.detail.requestConfig.triggeringEvent;
  if (isLive && isPoll) event.preventDefault();
});
