// Who is near a limit or over it, live: rows that the server has drawn.

const place = document.getElementById("near-rows");

setInterval(async () => {
  if (document.hidden || place.contains(document.activeElement)) return;
  const answer = await fetch(place.dataset.part, {redirect: "error"}).catch(() => null);
  if (!answer?.ok) return;
  place.innerHTML = await answer.text();
  place.dispatchEvent(new CustomEvent("added", {bubbles: true}));
}, 5000);
