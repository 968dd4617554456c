// What the allowlist in the editor would mean, while it is typed; and how long a trial lasts.

const editor = document.getElementById("editor");
const place = document.getElementById("preview");
let wait = null;
let asked = null;

async function look() {
  asked?.abort();
  const own = (asked = new AbortController());
  try {
    const answer = await fetch(editor.dataset.part, {
      method: "POST", body: new URLSearchParams(new FormData(editor)), signal: own.signal,
    });
    if (answer.ok) {
      place.innerHTML = await answer.text();
      if (place.querySelector("[data-again]")) wait = setTimeout(look, 1000);
    } else place.textContent = "The list could not be checked; save it, and the answer says why.";
  } catch (error) {
    if (error.name !== "AbortError") place.textContent = "The list could not be checked: the sidecar does not answer.";
  }
}

editor.addEventListener("input", () => {
  clearTimeout(wait);
  wait = setTimeout(look, 400);
});

for (const one of document.querySelectorAll("[data-countdown]")) {
  const until = Date.parse(one.dataset.countdown);
  const over = until < Date.now();
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    if (left < -2) return over || location.assign(location.pathname);
    one.textContent = ` (in ${Math.max(0, Math.floor(left / 60))}:${String(Math.max(0, left % 60)).padStart(2, "0")})`;
    setTimeout(tick, 1000);
  };
  tick();
}
