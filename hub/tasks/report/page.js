"use strict";
// Zoom, values under the pointer and keys for the charts, which are whole without this. All charts share the steps of a zoom.
(() => {
  const LEFT = 48, TOP = 8, WIDTH = 344, HEIGHT = 190, SIZE = 1000, LEAST = 12;
  const charts = [];

  const make = (owner, name, attributes) => {
    const element = document.createElementNS(owner.namespaceURI, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return element;
  };

  // As in drawing.py.
  const ticks = (start, end, count) => {
    let step = 10 ** Math.floor(Math.log10((end - start) / count));
    step *= [1, 2, 5, 10].find((factor) => (end - start) / (step * factor) <= count) || 10;
    const found = [];
    for (let place = Math.ceil(start / step - 1e-9); place <= Math.floor(end / step + 1e-9); place++) found.push(place * step);
    return found;
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (size < 1e-300) return "0";
    if (size < 1e-3 || size >= 1e12) return value.toExponential(1).replace(/\.0e/, "e").replace("e+", "e");
    for (const [limit, unit] of [[1e9, "G"], [1e6, "M"]]) if (size >= limit) return +(value / limit).toPrecision(3) + unit;
    if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
    return String(+value.toPrecision(4));
  };

  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
  };

  class Chart {
    constructor(box) {
      const { ends, zero, series } = JSON.parse(box.querySelector(".points").textContent);
      Object.assign(this, { box, ends, zero, series, from: ends[0], to: ends[1] });
      this.svg = box.querySelector(".chart");
      this.plot = box.querySelector(".plot");
      this.axes = box.querySelector(".axes");
      this.pointer = box.querySelector(".pointer");
      this.values = box.querySelector(".values");
      this.back = document.createElement("button");
      Object.assign(this.back, { type: "button", className: "back", textContent: "whole run", hidden: true });
      this.back.addEventListener("click", () => zoom(null));
      box.append(this.back);
      this.svg.setAttribute("tabindex", "0");
      this.hidden = this.series.map(() => false);
      box.querySelectorAll(".legend-item").forEach((button, place) => {
        button.setAttribute("aria-pressed", "true");
        button.addEventListener("click", () => this.toggle(button, place));
      });
      this.listen();
    }

    listen() {
      this.svg.addEventListener("pointermove", (event) => this.move(this.step(event)));
      this.svg.addEventListener("pointerleave", () => { if (this.begun === undefined) this.leave(); });
      this.svg.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        this.begun = this.step(event);
        this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener("pointerup", (event) => this.release(this.step(event)));
      this.svg.addEventListener("pointercancel", () => { this.begun = undefined; this.leave(); });
      this.svg.addEventListener("dblclick", () => zoom(null));
      this.svg.addEventListener("keydown", (event) => this.key(event));
      this.svg.addEventListener("blur", () => this.leave());
    }

    // The step under the pointer.
    step(event) {
      const place = this.svg.getBoundingClientRect();
      const x = (event.clientX - place.left) / place.width * 400;
      return this.from + Math.min(1, Math.max(0, (x - LEFT) / WIDTH)) * (this.to - this.from);
    }

    // Show or hide a curve. The axis fits those that are shown.
    toggle(button, place) {
      this.hidden[place] = !this.hidden[place];
      button.setAttribute("aria-pressed", String(!this.hidden[place]));
      this.box.querySelectorAll(".series")[place].classList.toggle("hidden", this.hidden[place]);
      this.show([this.from, this.to]);
    }

    seen() { return this.series.filter((_, place) => !this.hidden[place]); }

    x(step) { return LEFT + (step - this.from) / (this.to - this.from) * WIDTH; }

    move(step) {
      this.at = step;
      const parts = this.seen().map(({ label, x, y }) => {
        const inside = nearest(x, step);
        return { label, step: x[inside], value: y[inside] };
      });
      if (!parts.length) return this.leave();
      const close = parts.reduce((a, b) => Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a);
      const line = make(this.svg, "line", { x1: this.x(close.step), x2: this.x(close.step), y1: TOP, y2: TOP + HEIGHT });
      this.pointer.replaceChildren(line);
      if (this.begun !== undefined) {
        const [a, b] = [this.x(this.begun), this.x(step)].sort((one, other) => one - other);
        this.pointer.append(make(this.svg, "rect", { x: a, y: TOP, width: b - a, height: HEIGHT }));
      }
      this.values.textContent = `step ${close.step}: ` + parts.map(({ label, value }) => `${label} ${value}`).join(", ");
    }

    leave() {
      this.pointer.replaceChildren();
      this.values.textContent = "";
    }

    release(step) {
      const begun = this.begun;
      this.begun = undefined;
      if (begun === undefined) return;
      if (Math.abs(this.x(step) - this.x(begun)) >= LEAST) zoom([Math.min(begun, step), Math.max(begun, step)]);
      this.move(step);
    }

    key(event) {
      const width = this.to - this.from, at = this.at === undefined ? (this.from + this.to) / 2 : this.at;
      const moves = { ArrowLeft: -width / 50, ArrowRight: width / 50, Home: this.from - at, End: this.to - at };
      if (event.key in moves) this.move(Math.min(this.to, Math.max(this.from, at + moves[event.key])));
      else if (event.key === "+" || event.key === "=") zoom([at - width / 4, at + width / 4]);
      else if (event.key === "-") zoom([at - width, at + width]);
      else if (event.key === "Escape") { zoom(null); this.leave(); }
      else return;
      event.preventDefault();
    }

    // Show these steps, with the values that lie in them.
    show(range) {
      const [first, last, low, high] = this.ends;
      [this.from, this.to] = range ? [Math.max(first, range[0]), Math.min(last, range[1])] : [first, last];
      if (!(this.to > this.from)) [this.from, this.to] = [first, last];
      let [bottom, top] = [low, high];
      const whole = this.from === first && this.to === last;
      const all = whole && !this.hidden.includes(true);
      if (!all) {
        const seen = this.seen().flatMap(({ x, y }) => y.filter((_, place) => x[place] >= this.from && x[place] <= this.to));
        if (seen.length > 1) {
          bottom = seen.reduce((a, b) => Math.min(a, b));
          top = seen.reduce((a, b) => Math.max(a, b));
          const margin = 0.05 * (top - bottom) || 0.05 * Math.abs(top) || 1;
          bottom = this.zero && bottom >= 0 ? 0 : bottom - margin;
          top += margin;
        }
      }
      const scale = (value, start, end) => SIZE * (value - start) / (end - start);
      const x = scale(this.from, first, last), y = SIZE - scale(top, low, high);
      const width = Math.max(1e-3, scale(this.to, first, last) - x), height = Math.max(1e-3, SIZE * (top - bottom) / (high - low));
      this.plot.setAttribute("viewBox", all ? `0 0 ${SIZE} ${SIZE}` : `${x} ${y} ${width} ${height}`);
      this.draw_axes(bottom, top);
      this.back.hidden = whole;
      this.box.classList.toggle("zoomed", !all);
    }

    draw_axes(bottom, top) {
      const parts = [], text = (content, attributes) => {
        const element = make(this.svg, "text", attributes);
        element.textContent = content;
        parts.push(element);
      };
      text("step", { x: LEFT - 12, y: TOP + HEIGHT + 15, "text-anchor": "end" });
      for (const value of ticks(this.from, this.to, 5)) {
        const x = this.x(value);
        parts.push(make(this.svg, "line", { x1: x, x2: x, y1: TOP, y2: TOP + HEIGHT, class: "grid" }));
        text(short(value), { x, y: TOP + HEIGHT + 15, "text-anchor": x > LEFT + WIDTH - 12 ? "end" : "middle" });
      }
      for (const value of ticks(bottom, top, 4)) {
        const y = TOP + HEIGHT - (value - bottom) / (top - bottom) * HEIGHT;
        parts.push(make(this.svg, "line", { x1: LEFT, x2: LEFT + WIDTH, y1: y, y2: y, class: "grid" }));
        text(short(value), { x: LEFT - 5, y: y + 4, "text-anchor": "end" });
      }
      this.axes.replaceChildren(...parts);
    }
  }

  const zoom = (range) => charts.forEach((chart) => chart.show(range));

  document.querySelectorAll(".chart-box").forEach((box) => charts.push(new Chart(box)));
  document.documentElement.classList.add("interactive");
  document.querySelectorAll(".hint").forEach((hint) => { hint.hidden = false; });
})();
