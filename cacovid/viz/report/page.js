"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [steps, rows, columns] = data.grid;
  const perStep = rows * columns;
  const state = { retention: 0, frame: 0, heat: true, sheet: 0 };
  const byId = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const percent = (share) => `${Number((100 * share).toPrecision(4))}%`;
  const time = (seconds) => seconds >= 1 ? `${seconds.toFixed(2)} s` : `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const plain = (text) => text.trim().split(/\s+/).join(" ").replace(/\.$/, "").toLowerCase();
  const firstToken = (seconds) => Object.entries(seconds)
    .reduce((sum, [stage, value]) => stage === "decode" ? sum : sum + value, 0);
  const decode = (condition) => {
    const bits = bytes(condition.kept);
    condition.mask = Uint8Array.from({ length: steps * perStep }, (_, i) => (bits[i >> 3] >> (i & 7)) & 1);
    condition.counts = Array.from({ length: steps }, (_, t) =>
      condition.mask.subarray(t * perStep, (t + 1) * perStep).reduce((a, b) => a + b, 0));
  };
  decode(data.uncompressed);
  for (const method of data.methods) {
    method.conditions.forEach(decode);
    method.heat = method.scores === null ? null : bytes(method.scores);
  }
  const label = (frame) => data.times === null ? `${frame + 1}` : `${data.times[frame].toFixed(2)} s`;

  // Pixels of the pictures: even cells, sharp on screens with many pixels.
  const width = Math.max(columns * 4, Math.min(720, Math.round(Math.max(data.size[0], 360) / columns) * columns));
  const height = Math.max(rows, Math.round(width * data.size[1] / data.size[0] / rows) * rows);

  function paint(canvas, image, frame, mask, heat) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    if (mask === null) return;
    const first = data.step[frame] * perStep;
    const [w, h] = [width / columns, height / rows];
    const kept = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && mask[first + r * columns + c];
    // What is dropped: without colour, dark, tinted by its score.
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "multiply";
    context.fillStyle = heat ? "#9a9a9a" : "#5c5c5c";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    const colour = (r, c) => data.colours[heat[first + r * columns + c] >> 2];
    if (heat) {
      context.globalAlpha = 0.4;
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
        context.fillStyle = colour(r, c);
        context.fillRect(c * w, r * h, w, h);
      }
      context.globalAlpha = 1;
    }
    const [sx, sy] = [image.naturalWidth / columns, image.naturalHeight / rows];
    const line = Math.max(2, Math.round(w * 0.06));
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) if (kept(r, c)) {
      context.drawImage(image, c * sx, r * sy, sx, sy, c * w, r * h, w, h);
      if (heat && w >= 16) {
        context.lineWidth = line;
        context.strokeStyle = colour(r, c);
        context.strokeRect(c * w + line, r * h + line, w - 2 * line, h - 2 * line);
      }
    }
    const edges = new Path2D();
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) if (kept(r, c)) {
      const sides = [
        [r - 1, c, c, r, c + 1, r], [r + 1, c, c, r + 1, c + 1, r + 1],
        [r, c - 1, c, r, c, r + 1], [r, c + 1, c + 1, r, c + 1, r + 1],
      ];
      for (const [nr, nc, x0, y0, x1, y1] of sides) if (!kept(nr, nc)) {
        edges.moveTo(x0 * w, y0 * h);
        edges.lineTo(x1 * w, y1 * h);
      }
    }
    context.lineCap = "square";
    context.lineWidth = line + 2;
    context.strokeStyle = "#08080a";
    context.stroke(edges);
    context.lineWidth = line;
    context.strokeStyle = "#ffffff";
    context.stroke(edges);
  }

  function timeline(canvas, counts) {
    const scale = window.devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.round(34 * scale);
    const context = canvas.getContext("2d");
    const slot = canvas.width / counts.length;
    const most = Math.max(1, ...counts);
    counts.forEach((count, step) => {
      const now = step === data.step[state.frame];
      context.fillStyle = style.getPropertyValue("--track");
      context.fillRect(step * slot, 0, Math.max(1, slot - scale), canvas.height);
      const tall = Math.max(count ? 2 * scale : 0, canvas.height * count / most);
      context.fillStyle = style.getPropertyValue(now ? "--s2" : "--muted");
      context.fillRect(step * slot, canvas.height - tall, Math.max(1, slot - scale), tall);
    });
  }

  const longest = Math.max(...[data.uncompressed, ...data.methods.flatMap((m) => m.conditions)]
    .map((c) => Object.values(c.seconds).reduce((a, b) => a + b, 0)));

  function newCard(name) {
    const card = make("article", "card");
    const head = make("div", "head");
    const parts = {
      card, kept: make("span", "kept"), picture: make("canvas", "picture"), line: make("canvas", "line"),
      said: make("b"), chip: make("span", "chip"), bar: make("div", "bar"), first: make("span", "first"),
    };
    card.dataset.method = name;
    head.append(make("h3", "", name), parts.kept);
    const answer = make("div", "answer");
    answer.append(parts.said, parts.chip);
    card.append(head, parts.picture, parts.line, answer, parts.bar, parts.first);
    parts.line.title = "kept tokens of each frame";
    parts.line.addEventListener("click", (event) => {
      const place = event.offsetX / parts.line.clientWidth;
      const step = Math.min(steps - 1, Math.floor(place * steps));
      update({ frame: data.step.indexOf(step) });
    });
    byId("cards").append(card);
    return parts;
  }

  function fill(parts, condition, heat, reference) {
    const image = images[state.frame];
    paint(parts.picture, image, state.frame, reference ? null : condition.mask, state.heat ? heat : null);
    timeline(parts.line, condition.counts);
    parts.kept.textContent = `${condition.count.toLocaleString("en")} of ${(steps * perStep).toLocaleString("en")} tokens`;
    parts.picture.setAttribute("role", "img");
    parts.picture.setAttribute("aria-label",
      `frame ${state.frame + 1}: ${condition.counts[data.step[state.frame]]} of ${perStep} tokens kept`);
    parts.said.textContent = condition.answer || "(said nothing)";
    const same = plain(condition.answer) === plain(data.uncompressed.answer);
    parts.chip.className = reference ? "chip" : `chip ${same ? "same" : "other"}`;
    parts.chip.textContent = reference ? "" : same ? "same answer" : "other answer";
    parts.bar.replaceChildren(...data.stages.map(([stage, words], number) => {
      const piece = make("i");
      const seconds = condition.seconds[stage] || 0;
      piece.style.width = `${100 * seconds / longest}%`;
      piece.style.background = `var(--s${number % 5})`;
      piece.title = `${words}: ${time(seconds)}`;
      return piece;
    }));
    parts.first.textContent =
      `first token ${time(firstToken(condition.seconds))} · prompt ${condition.entering.toLocaleString("en")}`;
  }

  let images = [], reference = null, cards = [], figures = [], timer = null;

  function show() {
    byId("retention").value = state.retention;
    byId("frame").value = state.frame;
    byId("heat").checked = state.heat;
    const share = data.retentions[state.retention];
    const count = data.methods[0].conditions[state.retention].count;
    byId("retention-text").textContent = `${percent(share)} – ${count.toLocaleString("en")} tokens`;
    byId("frame-text").textContent = `${state.frame + 1} of ${images.length}` +
      (data.times === null ? "" : ` – ${label(state.frame)}`);
    fill(reference, data.uncompressed, null, true);
    data.methods.forEach((method, n) => fill(cards[n], method.conditions[state.retention], method.heat, false));
    const method = data.methods[state.sheet];
    const condition = method.conditions[state.retention];
    figures.forEach(({ figure, canvas, kept }, frame) => {
      paint(canvas, images[frame], frame, condition.mask, state.heat ? method.heat : null);
      kept.textContent = `${condition.counts[data.step[frame]]} / ${perStep}`;
      figure.classList.toggle("now", frame === state.frame);
    });
    document.body.dataset.state = JSON.stringify(state);
  }

  function update(change) {
    Object.assign(state, change);
    show();
  }

  function play() {
    if (timer !== null) {
      clearInterval(timer);
      timer = null;
    } else {
      timer = setInterval(() => update({ frame: (state.frame + 1) % images.length }), 450);
    }
    byId("play").textContent = timer === null ? "play" : "stop";
  }

  /** `#retention=0.1&frame=3&method=uniform&heat=0` opens the page in that state; frames from 1. */
  function fromAddress() {
    const wish = new URLSearchParams(location.hash.slice(1));
    const near = Number(wish.get("retention"));
    if (wish.has("retention") && near > 0) {
      const far = data.retentions.map((r) => Math.abs(Math.log(r / near)));
      state.retention = far.indexOf(Math.min(...far));
    }
    const frame = Number(wish.get("frame"));
    if (frame >= 1 && frame <= images.length) state.frame = Math.floor(frame) - 1;
    const method = data.methods.findIndex((m) => m.name === wish.get("method"));
    if (method >= 0) state.sheet = method;
    if (wish.has("heat")) state.heat = wish.get("heat") !== "0";
  }

  function begin(loaded) {
    images = loaded;
    reference = newCard("uncompressed");
    cards = data.methods.map((method) => newCard(method.name));
    const legend = make("div", "legend");
    data.stages.forEach(([, words], number) => {
      const entry = make("span", "", words);
      entry.style.setProperty("--colour", `var(--s${number % 5})`);
      legend.append(entry);
    });
    byId("cards").append(legend);
    figures = images.map((_, frame) => {
      const figure = make("figure"), canvas = make("canvas"), caption = make("figcaption");
      const kept = make("span");
      caption.append(make("span", "", label(frame)), kept);
      figure.append(canvas, caption);
      figure.addEventListener("click", () => update({ frame }));
      byId("sheet").append(figure);
      return { figure, canvas, kept };
    });
    data.methods.forEach((method, n) => byId("sheet-method").append(new Option(method.name, n)));
    byId("retention").max = data.retentions.length - 1;
    byId("frame").max = images.length - 1;
    byId("ramp").style.background = `linear-gradient(90deg, ${data.colours.join(",")})`;
    // The frame where the first method keeps most says more than the first frame.
    const counts = data.methods[0].conditions[0].counts;
    state.frame = data.step.indexOf(counts.indexOf(Math.max(...counts)));
    fromAddress();
    byId("sheet-method").value = state.sheet;
    byId("controls").hidden = byId("sheet-section").hidden = false;
    byId("retention").addEventListener("input", (e) => update({ retention: Number(e.target.value) }));
    byId("frame").addEventListener("input", (e) => update({ frame: Number(e.target.value) }));
    byId("heat").addEventListener("change", (e) => update({ heat: e.target.checked }));
    byId("sheet-method").addEventListener("change", (e) => update({ sheet: Number(e.target.value) }));
    byId("play").addEventListener("click", play);
    window.addEventListener("resize", show);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    show();
  }

  Promise.all(data.frames.map((source) => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = source;
  }))).then(begin);
})();
