// The form that adds a provider: what is chosen from the list fills in the other fields, until somebody writes there.

const presets = JSON.parse(document.getElementById("presets").textContent);
const form = document.querySelector("[data-new-provider]");

const FIELDS = {
  name: (preset) => preset.name,
  kind: (preset) => preset.kind,
  baseUrl: (preset) => preset.base_url,
  models: (preset) => preset.models.join("\n"),
  requestsPerMinute: (preset) => preset.requests_per_minute ?? "",
  statusPage: (preset) => preset.status_page ?? "",
};

function fill() {
  const preset = presets[form.elements.preset.value];
  if (!preset) return;
  for (const [name, value] of Object.entries(FIELDS)) form.elements[name].value = value(preset);
  form.elements.key.required = preset.needs_key;
  const page = form.querySelector("[data-keys-page]");
  page.hidden = !preset.keys_page;
  page.href = preset.keys_page ?? "";
  page.textContent = preset.keys_page ?? "";
}

form.elements.preset.addEventListener("change", fill);
