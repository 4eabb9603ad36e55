// Forms that speak JSON: <form data-json-form data-next="/where/to">, its fields by name, "a.b" as an object in an object.

import { call, t } from "./api.js";

for (const form of document.querySelectorAll("form[data-json-form]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
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
  error.hidden = true;
  button.setAttribute("aria-busy", "true");
  button.textContent = form.dataset.working;
  try {
    const reply = await call(new URL(form.action).pathname, { method: "POST", json: values(form) });
    const answer = reply.status === 204 ? {} : await reply.json();
    location.assign(form.dataset.next.replace("{id}", encodeURIComponent(answer.id ?? "")));
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    button.removeAttribute("aria-busy");
    button.textContent = label;
  }
}

/** The form as an object; fields left empty are left out, check boxes are true or false. */
export function values(form) {
  const result = {};
  for (const field of form.elements) {
    if (!field.name || field.name === "csrf_token") continue;
    const value = "boolean" in field.dataset ? field.checked : field.value;
    if (value === "") continue;
    const path = field.name.split(".");
    const last = path.pop();
    const target = path.reduce((object, key) => (object[key] ??= {}), result);
    target[last] = value;
  }
  return result;
}
