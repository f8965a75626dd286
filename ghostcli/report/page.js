"use strict";
(() => {
  const tip = document.getElementById("tip");

  function show(text, x, y) {
    tip.textContent = text;
    tip.style.visibility = "visible";
    const left = Math.min(x + 14, innerWidth - tip.offsetWidth - 6);
    const top = y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 18;
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  function hide() {
    tip.style.visibility = "hidden";
    for (const ruler of document.querySelectorAll(".ruler")) ruler.style.visibility = "hidden";
  }

  // The values of a chart of lines at the epoch that is nearest to the pointer.
  function read(chart, event) {
    const matrix = chart.getScreenCTM();
    if (!matrix) return;
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse()).x;
    let best = null;
    const lines = [...chart.querySelectorAll("[data-epochs]")].map((line) => {
      line.read ||= {
        epochs: line.dataset.epochs.split(" ").map(Number),
        values: line.dataset.values.split(" "),
        xs: line.points ? [...line.points].map((point) => point.x) : [Number(line.getAttribute("cx"))],
      };
      line.read.xs.forEach((at, i) => {
        const far = Math.abs(at - x);
        if (!best || far < best.far) best = { far, at, epoch: line.read.epochs[i] };
      });
      return line;
    });
    if (!best) return;
    const said = lines.map((line) => {
      const i = line.read.epochs.indexOf(best.epoch);
      return i < 0 ? null : `${line.dataset.name}: ${line.read.values[i]}`;
    });
    const ruler = chart.querySelector(".ruler");
    ruler.setAttribute("x1", best.at);
    ruler.setAttribute("x2", best.at);
    ruler.style.visibility = "visible";
    show([`epoch ${best.epoch}`, ...said.filter(Boolean)].join("\n"), event.clientX, event.clientY);
  }

  addEventListener("pointermove", (event) => {
    const at = event.target instanceof Element ? event.target : null;
    const marked = at && at.closest("[data-tip]");
    const chart = at && at.closest("svg.lines");
    hide();
    if (marked) show(marked.dataset.tip, event.clientX, event.clientY);
    else if (chart) read(chart, event);
  });
  document.addEventListener("pointerleave", hide);
  addEventListener("scroll", hide, { passive: true });

  // A link to a closed part opens it, and all that it lies in.
  function reveal() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    if (target) target.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", reveal);
  reveal();

  // Paper shows everything.
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });

  if ("live" in document.body.dataset) {
    let shown = null;
    const ask = async () => {
      let answer = null;
      let text = shown;
      try {
        answer = await fetch("", { cache: "no-store" });
        if (answer.ok) text = await answer.text();
      } catch {
        answer = null; // the command was stopped: the page stays as it is
      }
      document.body.classList.toggle("gone", !answer);
      document.body.classList.toggle("unread", Boolean(answer) && !answer.ok);
      if (text !== shown) {
        const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("main");
        const open = new Set([...document.querySelectorAll("details[open][id]")].map((part) => part.id));
        for (const part of fresh.querySelectorAll("details[id]")) part.open = open.has(part.id);
        document.querySelector("main").replaceWith(fresh);
        shown = text;
      }
      setTimeout(ask, 2000);
    };
    ask();
  }
})();
