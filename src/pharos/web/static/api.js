// Calls to this server: every one carries the token against forged requests, every failure becomes one sentence.

const words = JSON.parse(document.getElementById("words").textContent);
const csrfToken = document.querySelector('meta[name="csrf-token"]').content;

/** The sentence for `key`, with `{name}` places filled; a `count` chooses between its two forms. */
export function t(key, values = {}) {
  const form = "count" in values ? `${key}.${values.count === 1 ? "one" : "other"}` : key;
  return words[form].replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}

/** A failure with a sentence for the person; `code` is the stable one of the API. */
export class ApiError extends Error {
  constructor(message, { code = "", status = 0, details = {} } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.details = details;
  }
}

export const unsafeHeaders = { "X-CSRF-Token": csrfToken };

/** fetch() that throws ApiError unless the answer is 2xx. A session that ended leads to the sign-in page. */
export async function call(path, { method = "GET", json, headers = {}, signal } = {}) {
  const body = json === undefined ? undefined : JSON.stringify(json);
  const type = json === undefined ? {} : { "Content-Type": "application/json" };
  let reply;
  try {
    reply = await fetch(path, {
      method, body, signal, credentials: "same-origin",
      headers: { Accept: "application/json", ...unsafeHeaders, ...type, ...headers },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("app.network"), { code: "network" });
  }
  if (!reply.ok) throw failure(reply.status, await reply.text());
  return reply;
}

/** The ApiError that an answer's status and body stand for. */
export function failure(status, text) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // A proxy in between answers with a page of its own; the status still says what kind it is.
  }
  if (body.error === "not_signed_in" && location.pathname !== "/sign-in") {
    location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  return new ApiError(typeof body.message === "string" ? body.message : t("app.unexpected"), {
    code: body.error, status, details: body,
  });
}

/** Say something at the foot of the page; screen readers hear it too. */
export function toast(message, { bad = false } = {}) {
  const box = document.createElement("div");
  box.className = bad ? "toast toast--bad" : "toast";
  box.textContent = message;
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), bad ? 12000 : 5000);
}
