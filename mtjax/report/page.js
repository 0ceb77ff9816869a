for (const button of document.querySelectorAll(".legend button")) {
  const own = () => document.querySelectorAll(".m" + button.dataset.m);
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const part of own()) part.classList.toggle("off", !on);
  });
  button.addEventListener("mouseenter", () => {
    if (button.getAttribute("aria-pressed") !== "true") return;
    const mine = new Set(own());
    for (const part of document.querySelectorAll("g.m, figure.m")) part.classList.toggle("dim", !mine.has(part));
  });
  button.addEventListener("mouseleave", () => {
    for (const part of document.querySelectorAll(".dim")) part.classList.remove("dim");
  });
}
