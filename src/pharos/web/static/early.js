// A form that is sent before the modules run waits for them: sent by the browser alone it would go without what they
// add to it, and be refused. Runs before the page's body; the modules have run when the document's content is loaded.

const waiting = new Map();

function hold(event) {
  event.preventDefault();
  event.stopImmediatePropagation();
  waiting.set(event.target, event.submitter);
}

document.addEventListener("submit", hold, { capture: true });
document.addEventListener("DOMContentLoaded", () => {
  document.removeEventListener("submit", hold, { capture: true });
  for (const [form, submitter] of waiting) form.requestSubmit(submitter);
});
