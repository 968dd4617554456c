// What pages are nicer with. Every page does its whole job without it.

const zone = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "short"});

/** Show times in the reader's zone; their title keeps UTC. */
function localTimes(within) {
  for (const one of within.querySelectorAll("time[datetime]")) {
    const at = new Date(one.dateTime);
    if (!Number.isNaN(at.getTime())) one.textContent = zone.format(at);
  }
}

/** Copy what the button names: <button data-copy="ID">. */
function copyButtons() {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }
}

/** Keep a button off until a name is typed: <input data-typed="NAME"> in its form. */
function typedNames() {
  for (const input of document.querySelectorAll("input[data-typed]")) {
    const button = input.form.querySelector("button");
    const look = () => { button.disabled = input.value.trim() !== input.dataset.typed.trim(); };
    input.addEventListener("input", look);
    look();
  }
}

/** Send a form again whose answer is not there yet, unless somebody changes it: <form data-again>. */
function sentAgain() {
  const form = document.querySelector("form[data-again]");
  if (!form) return;
  const wait = setTimeout(() => form.requestSubmit(), 2000);
  document.addEventListener("input", () => clearTimeout(wait));
}

localTimes(document);
document.addEventListener("added", (event) => localTimes(event.target));  // told by other scripts
copyButtons();
typedNames();
sentAgain();
