// The documents of a project: uploading with progress, retry, delete. htmx keeps the list itself up to date.

import { call, failure, t, toast, unsafeHeaders } from "./api.js";

const PARALLEL_UPLOADS = 2;
const SHOWN_SECONDS = 4;

const drop = document.getElementById("drop");
const dialog = document.getElementById("delete-dialog");
const waiting = [];
let running = 0;

if (drop) acceptFiles();

document.addEventListener("click", (event) => {
  const remove = event.target.closest("[data-delete]");
  const retry = event.target.closest("[data-retry]");
  if (remove) confirmDelete(remove.dataset.delete, remove.dataset.name);
  if (retry) retryDocument(retry.dataset.retry, retry.dataset.name);
});

function acceptFiles() {
  const input = document.getElementById("files");
  const take = () => {
    enqueue([...input.files]);
    input.value = "";
  };
  input.addEventListener("change", take);
  take(); // what was chosen before this script was there
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  // The whole window takes a drop: a file that misses the field must not replace the page.
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.classList.add("drop--over");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("drop--over");
  });
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.classList.remove("drop--over");
    dropped(event.dataTransfer);
  });
  window.addEventListener("beforeunload", (event) => {
    if (running) event.preventDefault();
  });
  document.querySelector("[data-clear-uploads]").addEventListener("click", clearFinished);
}

function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const folders = items.map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
  for (const folder of folders) finish(addRow(folder.name), t("documents.upload_folder"), { failed: true });
  const names = new Set(folders.map((folder) => folder.name));
  enqueue([...transfer.files].filter((file) => !names.has(file.name)));
}

function enqueue(files) {
  for (const file of files) waiting.push({ file, row: addRow(file.name) });
  startNext();
}

function startNext() {
  while (running < PARALLEL_UPLOADS && waiting.length) {
    const { file, row } = waiting.shift();
    running += 1;
    upload(file, row).finally(() => {
      running -= 1;
      if (!running && !waiting.length) {
        document.getElementById("upload-status").textContent = t("documents.upload_all_done");
      }
      startNext();
    });
  }
}

async function upload(file, row) {
  const limit = Number(drop.dataset.maxBytes);
  if (file.size > limit) {
    finish(row, t("documents.upload_too_large", { size: megabytes(limit) }), { failed: true });
    return;
  }
  try {
    const reply = await send(file, row);
    if (reply.status >= 300) throw failure(reply.status, reply.responseText);
    finish(row, t("documents.upload_done"), {});
    listChanged();
  } catch (error) {
    const duplicate = error.code === "duplicate_document";
    finish(row, duplicate ? t("documents.upload_duplicate") : error.message, { failed: !duplicate });
  }
}

// XMLHttpRequest, since fetch() tells nothing about the progress of a request's body.
function send(file, row) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", new URL(drop.action).pathname);
    request.setRequestHeader("Accept", "application/json");
    for (const [name, value] of Object.entries(unsafeHeaders)) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      const percent = Math.floor((100 * event.loaded) / event.total);
      row.querySelector("progress").value = percent;
      say(row, percent < 100 ? t("documents.upload_running", { percent }) : t("documents.upload_storing"));
    });
    request.addEventListener("load", () => resolve(request));
    request.addEventListener("error", () => reject(new Error(t("app.network"))));
    const body = new FormData();
    body.append("file", file, file.name);
    request.send(body);
  });
}

function addRow(name) {
  const box = document.getElementById("uploads");
  const row = document.createElement("li");
  row.className = "upload";
  const label = document.createElement("span");
  label.className = "upload__name";
  label.dir = "auto";
  label.textContent = name;
  const state = document.createElement("span");
  state.className = "upload__state";
  state.textContent = t("documents.upload_waiting");
  const bar = document.createElement("progress");
  bar.max = 100;
  bar.value = 0;
  bar.setAttribute("aria-label", name);
  row.append(label, state, bar);
  box.hidden = false;
  box.querySelector("ul").append(row);
  return row;
}

function finish(row, message, { failed = false }) {
  row.querySelector("progress").remove();
  row.classList.toggle("upload--failed", failed);
  row.dataset.finished = "yes";
  say(row, message);
  if (failed) document.querySelector("[data-clear-uploads]").hidden = false;
  else setTimeout(() => removeRow(row), SHOWN_SECONDS * 1000);
}

function say(row, message) {
  row.querySelector(".upload__state").textContent = message;
}

function removeRow(row) {
  row.remove();
  const box = document.getElementById("uploads");
  box.hidden = box.querySelector("li") === null;
}

function clearFinished(event) {
  for (const row of document.querySelectorAll(".upload[data-finished]")) removeRow(row);
  event.target.hidden = true;
}

async function confirmDelete(id, name) {
  dialog.querySelector("[data-lead]").textContent = t("documents.delete_lead", { name });
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "delete") return;
  await act(`/documents/${id}`, "DELETE", t("documents.deleted", { name }));
}

async function retryDocument(id, name) {
  await act(`/documents/${id}/retry`, "POST", t("documents.retried", { name }));
}

async function act(path, method, message) {
  try {
    await call(path, { method });
    toast(message);
  } catch (error) {
    toast(error.message, { bad: true });
  }
  listChanged();
}

function listChanged() {
  document.body.dispatchEvent(new Event("documents-changed"));
}

function megabytes(bytes) {
  return `${Math.floor(bytes / 1048576)} MB`;
}
