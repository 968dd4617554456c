// The live view of decisions: rows that the server has drawn, the newest first.

const MOST_ROWS = 200;
const button = document.getElementById("live");
const said = document.getElementById("live-said");
const rows = document.getElementById("decisions");
let source = null;

function stop(why) {
  source?.close();
  source = null;
  button.setAttribute("aria-pressed", "false");
  button.textContent = "Watch live";
  said.textContent = why;
}

function show(event, words) {
  if (said.textContent !== words) said.textContent = words;
  if (!event.data) return;
  const found = document.createElement("template");
  found.innerHTML = event.data;
  rows.prepend(found.content);
  rows.dispatchEvent(new CustomEvent("added", {bubbles: true}));
  while (rows.rows.length > MOST_ROWS) rows.deleteRow(-1);
  rows.closest(".table").hidden = false;
  const none = document.getElementById("none");
  if (none) none.hidden = true;
}

function start() {
  source = new EventSource(button.dataset.url);
  source.addEventListener("all", (event) => show(event, "Live"));
  source.addEventListener("sample", (event) => show(event, "Live: more than can be read, so this is a sample"));
  source.addEventListener("error", () => {
    if (source?.readyState === EventSource.CLOSED) stop("The live view has ended; load the page again");
  });
  button.setAttribute("aria-pressed", "true");
  button.textContent = "Stop";
  said.textContent = "Live";
}

button.hidden = false;
button.addEventListener("click", () => (source ? stop("") : start()));
document.addEventListener("visibilitychange", () => {
  if (document.hidden && source) stop("Stopped while the page was hidden");
});
