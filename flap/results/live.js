// The served page asks every two seconds whether there is news, and takes it over; the view stays as it is.
(() => {
  "use strict";
  const parts = [
    "title", "h1", ".counts", "#commands", ".notices", "#choices", "#more", "#results", "#warnings", "#pictures", "#made", "#records",
  ];
  const state = document.getElementById("live");
  const alive = state.textContent;
  let seen = state.dataset.version;

  function say(text) {
    if (state.textContent !== text) state.textContent = text; // a screen reader would read it again
  }

  const mark = (element) => element.id || element.name || element.closest("[data-name]")?.dataset.name;

  function take(fresh) {
    const focused = mark(document.activeElement);
    for (const part of parts) {
      const [old, other] = [document.querySelector(part), fresh.querySelector(part)];
      old.hidden = other.hidden;
      if (old.innerHTML !== other.innerHTML) old.innerHTML = other.innerHTML;
    }
    document.dispatchEvent(new Event("fresh"));
    const again = focused && [...document.querySelectorAll("select, input, button, #more")].find((one) => mark(one) === focused);
    if (again && again !== document.activeElement) again.focus();
  }

  async function ask(address) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(answer.statusText);
    return answer.text();
  }

  async function look() {
    try {
      const version = await ask("version");
      if (version !== seen) {
        take(new DOMParser().parseFromString(await ask("."), "text/html"));
        seen = version;
      }
      say(alive);
    } catch {
      say("No answer from the server: the page stays as it is. Started again, it prints another address.");
    }
    setTimeout(look, 2000);
  }
  setTimeout(look, 2000);
})();
