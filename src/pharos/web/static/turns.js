// One answer over lines that may be cut: each event has a number, and who comes back asks for what follows the last.

import { ApiError, call, t } from "./api.js";
import { readEvents } from "./events.js";

const MOST_TRIES = 40;
const LONGEST_PAUSE_MS = 5000;

/**
 * Follow a turn to its end, over as many lines as it takes. `turn` keeps its id and the number of its last event.
 * `begin` opens the first line, and is left out where the turn runs already; `tell` gets each event, `waits` is called
 * when the line is lost. Throws ApiError when there is no more to come.
 */
export async function follow(turn, { path, begin, tell, waits }) {
  // A line that stands on a net that is gone tells nothing for seconds.
  window.addEventListener("offline", waits);
  try {
    await followOn(turn, { path, begin, tell, waits });
  } finally {
    window.removeEventListener("offline", waits);
  }
}

async function followOn(turn, { path, begin, tell, waits }) {
  let tries = 0;
  for (;;) {
    try {
      const reply = turn.id ? await resume(turn, path) : await begin();
      turn.id ||= reply.headers.get("X-Turn-Id");
      if (turn.stops) stop(turn, path);
      for await (const { event, data, id } of readEvents(reply)) {
        tries = 0;
        if (id) turn.last = id;
        if (event === "error") throw Object.assign(new ApiError(data.message ?? t("app.unexpected"), { code: data.error }), { isTold: true });
        tell(event, data);
        if (event === "done") return;
      }
    } catch (error) {
      if (!turn.id || !isLost(error)) throw error;
    }
    tries += 1;
    if (tries > MOST_TRIES) throw new ApiError(t("ask.cut"));
    if (tries > 1) waits();
    await pause(Math.min(LONGEST_PAUSE_MS, 100 * 2 ** tries));
  }
}

/** Read the model no further, whether or not the line stands. */
export async function stop(turn, path) {
  turn.stops = true;
  if (turn.id) await call(`${path}/${turn.id}/stop`, { method: "POST" });
}

function resume(turn, path) {
  const headers = { Accept: "text/event-stream", ...(turn.last ? { "Last-Event-ID": turn.last } : {}) };
  return call(`${path}/${turn.id}/events`, { headers });
}

/** Whether the line failed, or a server that is just coming back; what was told is no failure of the line. */
function isLost(error) {
  if (error.isTold) return false;
  return !(error instanceof ApiError) || error.code === "network" || error.status === 429 || error.status >= 500;
}

/** Wait, or until the browser is on the net again. */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      resolve();
    }
    window.addEventListener("online", done);
  });
}
