// Forms that speak JSON: <form data-json-form data-next="/where/to/{id}">, its fields by name, "a.b" as an object in an
// object.
// data-method: another method than POST. data-next=".": look at the same page anew. data-shows: instead of going
// anywhere, show this field of the answer, which is never seen again. data-confirm: ask first. data-said: what to say on
// the page that comes then, where nothing else shows that it is done; {field} there is one of the answer. data-needs-one on a set of check boxes: what to say
// while none is ticked. data-enter-sends on a field of several lines: Enter sends, Shift and Enter begins a line.

import { call, t, toast } from "./api.js";

const SAID = "pharos.said";
const said = sessionStorage.getItem(SAID);
if (said) {
  sessionStorage.removeItem(SAID);
  toast(said);
}
[...document.querySelectorAll("[data-read-on] .turn--question")].at(-1)?.scrollIntoView({ block: "start" });
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

for (const form of document.querySelectorAll("form[data-json-form]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!form.dataset.confirm || confirm(form.dataset.confirm)) send(form);
  });
}

for (const field of document.querySelectorAll("[data-enter-sends]")) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    field.form.requestSubmit();
  });
}

for (const button of document.querySelectorAll("[data-reveal]")) {
  const input = document.getElementById(button.dataset.reveal);
  button.addEventListener("click", () => {
    const shown = input.type === "text";
    input.type = shown ? "password" : "text";
    button.textContent = shown ? t("setup.show") : t("setup.hide");
    button.setAttribute("aria-pressed", String(!shown));
  });
}

async function send(form) {
  const button = form.querySelector("button:not([type=button])");
  if (button.getAttribute("aria-busy") === "true") return;
  const label = button.textContent;
  const error = form.querySelector(".form-error");
  const unticked = [...form.querySelectorAll("[data-needs-one]")].find((set) => !set.querySelector(":checked"));
  error.textContent = unticked?.dataset.needsOne ?? "";
  error.hidden = !unticked;
  if (unticked) return;
  button.setAttribute("aria-busy", "true");
  button.style.minWidth = `${button.offsetWidth}px`; // its shorter words must not move what stands beside it
  button.textContent = form.dataset.working;
  try {
    const method = form.dataset.method ?? "POST";
    const json = method === "DELETE" ? undefined : values(form);
    const reply = await call(address(form), { method, json });
    const answer = reply.status === 204 ? {} : await reply.json();
    if (form.dataset.shows) return show(form, answer[form.dataset.shows]);
    const filled = (words, shaped) => words.replace(/{(\w+)}/g, (_, name) => shaped(answer[name] ?? ""));
    if (form.dataset.said) sessionStorage.setItem(SAID, filled(form.dataset.said, String));
    if (form.dataset.next === ".") location.reload();
    else location.assign(filled(form.dataset.next, encodeURIComponent));
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    button.removeAttribute("aria-busy");
    button.textContent = label;
  }
}

/** Where a form goes; a place {field} in its address is filled with that field's value. */
function address(form) {
  return form.getAttribute("action").replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(form.elements[name].value.trim()));
}

/** Show `text` in place of the form, of what else could be done with its record, and of words that nothing is there. */
function show(form, text) {
  const box = form.parentElement.querySelector("[data-shown]");
  box.querySelector("output").textContent = text;
  box.hidden = false;
  for (const other of form.closest(".record")?.querySelectorAll(".act") ?? []) other.hidden = true;
  for (const nothing of form.closest(".panel")?.querySelectorAll(".empty") ?? []) nothing.hidden = true;
  form.hidden = true;
  box.focus();
}

function valueOf(field) {
  if ("boolean" in field.dataset) return field.checked;
  if ("lines" in field.dataset) return field.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if ("nothing" in field.dataset && field.value === "") return null;
  if ("micro" in field.dataset && field.value !== "") return Math.round(Number(field.value) * 1e6);
  if ("none" in field.dataset && field.value === "") return Number(field.dataset.none);
  if ("number" in field.dataset && field.value !== "") return Number(field.value);
  if (field.type === "date" && field.value !== "") return `${field.value}T23:59:59Z`;
  return field.value;
}

/**
 * The form as an object. Fields left empty are left out (null with data-nothing, the number of data-none, kept with data-empty), a check box with data-boolean is true
 * or false, those with data-list are gathered by name, data-number is a number, data-micro an amount in millionths,
 * data-lines a list of its lines, and a date means the end of that day.
 */
export function values(form) {
  const result = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.name === "csrf_token" || "inAddress" in field.dataset) continue;
    if ("list" in field.dataset) {
      result[field.name] ??= [];
      if (field.checked) result[field.name].push(field.value);
      continue;
    }
    const value = valueOf(field);
    if (value === "" && !("empty" in field.dataset)) continue;
    const path = field.name.split(".");
    const last = path.pop();
    const target = path.reduce((object, key) => (object[key] ??= {}), result);
    target[last] = value;
  }
  return result;
}
