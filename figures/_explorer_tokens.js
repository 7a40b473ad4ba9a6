// Hover a point of a plane: its patch, its picture, and the same patch in the other models' planes.

const PLANE_MARGIN = 10;
const REACH_PIXELS = 24;
const PATCH_PIXELS = 160;

/** A marker as in the figures: circle, square, triangles, diamond. */
const traceMarker = (context, marker, x, y, size) => {
  const corners = {
    s: [
      [-1, -1],
      [1, -1],
      [1, 1],
      [-1, 1],
    ],
    "^": [
      [0, -1.2],
      [1.1, 0.9],
      [-1.1, 0.9],
    ],
    v: [
      [0, 1.2],
      [1.1, -0.9],
      [-1.1, -0.9],
    ],
    D: [
      [0, -1.4],
      [1.1, 0],
      [0, 1.4],
      [-1.1, 0],
    ],
  }[marker];
  if (!corners) {
    context.moveTo(x + size, y);
    context.arc(x, y, size, 0, 2 * Math.PI);
    return;
  }
  corners.forEach(([right, down], i) => context[i ? "lineTo" : "moveTo"](x + right * size, y + down * size));
  context.closePath();
};

class TokenExplorer {
  constructor(root, data, pictures) {
    this.root = root;
    this.pictures = pictures;
    this.models = data.tokens.models;
    this.titles = [...new Set(this.models.flatMap((model) => model.planes.map((plane) => plane.title)))];
    // arrow keys start from the middle of the first picture
    const [rows, columns] = this.models[0].grid;
    const middle = (rows >> 1) * columns + (columns >> 1);
    this.state = { title: this.titles[0], model: 0, image: 0, patch: middle, chosen: false };
    this.redraw = soon(() => this.draw());
  }

  /** Unpacks all planes, as coordinates from 0 to 1 with y upwards. */
  async load() {
    await Promise.all(
      this.models.map(async (model) => {
        const bytes = await bytesOf(model.block);
        let at = 0;
        for (const plane of model.planes) {
          const count = plane.images * plane.tokens * 2;
          plane.points = Float32Array.from(
            { length: count },
            (_, i) => (bytes[at + 2 * i] | (bytes[at + 2 * i + 1] << 8)) / 65535,
          );
          at += 2 * count;
        }
      }),
    );
    const wanted = new Set(this.models.flatMap((model) => model.pictures.map(({ picture }) => picture)));
    await Promise.all([...wanted].map((number) => this.pictures.load(number)));
  }

  // ---- the page ----

  build() {
    const planes = this.titles.map((title) => option(title, title));
    this.chooser = chooser("Plane", planes, (title) => this.choosePlane(title));
    this.picture = create("canvas", { class: "query", onpointerdown: (event) => this.pointPicture(event) });
    this.patch = create("canvas", { class: "patch", width: PATCH_PIXELS, height: PATCH_PIXELS, role: "img" });
    this.facts = create("p", { class: "token-facts", role: "status" });
    this.legend = create("ul", { class: "legend" });
    this.panels = create("div", { class: "planes" }, ...this.models.map((model, m) => this.panel(model, m)));
    this.missing = create(
      "p",
      { class: "soft", hidden: true },
      "The pictures were not kept with these results; analyse again to see them here.",
    );
    this.root.replaceChildren(
      create("div", { class: "plane-controls" }, this.chooser.field, this.legend),
      create(
        "div",
        { class: "tokens" },
        create(
          "div",
          { class: "detail" },
          this.facts,
          create("div", { class: "detail-pictures" }, this.picture, this.patch),
          this.missing,
        ),
        this.panels,
      ),
    );
  }

  panel(model, m) {
    const canvas = create("canvas", {
      tabindex: 0,
      role: "application",
      "aria-roledescription": "plane of tokens",
      "aria-label": `${model.label}: arrow keys go from patch to patch of the picture, Page Up and Page Down to another picture`,
      onpointermove: (event) => event.pointerType === "mouse" && this.pointPlane(event, m),
      onpointerdown: (event) => this.pointPlane(event, m),
      onkeydown: (event) => this.key(event, m),
      onfocus: () => this.set(this.turnedTo(m)),
    });
    return create("figure", { class: "plane" }, create("figcaption", {}, modelName(model), create("small")), canvas);
  }

  // ---- what people do ----

  set(change) {
    Object.assign(this.state, change);
    this.redraw();
  }

  /** The same place of the picture on another model's grid. */
  turnedTo(m) {
    return { model: m, patch: this.patchIn(this.models[m]) };
  }

  choosePlane(title) {
    this.state.title = title;
    const plane = this.models.map((model) => this.planeOf(model)).find(Boolean);
    this.set({ image: Math.min(this.state.image, plane.images - 1) });
  }

  /** The nearest point to the pointer, if one is near. */
  pointPlane(event, m) {
    const plane = this.planeOf(this.models[m]);
    if (!plane) return;
    const box = event.currentTarget.getBoundingClientRect();
    const side = box.width - 2 * PLANE_MARGIN;
    const x = (event.clientX - box.left - PLANE_MARGIN) / side;
    const y = 1 - (event.clientY - box.top - PLANE_MARGIN) / side;
    let nearest = -1;
    let least = (REACH_PIXELS / side) ** 2;
    for (let i = 0; i < plane.points.length / 2; i++) {
      const squared = (plane.points[2 * i] - x) ** 2 + (plane.points[2 * i + 1] - y) ** 2;
      if (squared < least) [nearest, least] = [i, squared];
    }
    if (nearest >= 0)
      this.set({ model: m, image: Math.floor(nearest / plane.tokens), patch: nearest % plane.tokens, chosen: true });
  }

  pointPicture(event) {
    const { x, y } = pointerShare(event, this.picture);
    const [rows, columns] = this.models[this.state.model].grid;
    this.set({ patch: Math.floor(y * rows) * columns + Math.floor(x * columns), chosen: true });
  }

  key(event, m) {
    Object.assign(this.state, this.turnedTo(m));
    const plane = this.planeOf(this.models[m]);
    const step = arrowStep(event);
    if (!plane || !(step || event.key === "PageDown" || event.key === "PageUp")) return;
    const [rows, columns] = this.models[m].grid;
    let { image, patch } = this.state;
    if (step) {
      const row = clamp(Math.floor(patch / columns) + step[0], 0, rows - 1);
      patch = row * columns + clamp((patch % columns) + step[1], 0, columns - 1);
    } else {
      image = (image + (event.key === "PageDown" ? 1 : plane.images - 1)) % plane.images;
    }
    this.set({ image, patch, chosen: true });
    event.preventDefault();
  }

  // ---- drawing ----

  planeOf(model) {
    return model.planes.find((plane) => plane.title === this.state.title);
  }

  /** The chosen patch on another model's grid. */
  patchIn(model) {
    const [rows, columns] = this.models[this.state.model].grid;
    const [otherRows, otherColumns] = model.grid;
    const row = Math.floor(((Math.floor(this.state.patch / columns) + 0.5) / rows) * otherRows);
    const column = Math.floor((((this.state.patch % columns) + 0.5) / columns) * otherColumns);
    return row * otherColumns + column;
  }

  draw() {
    this.models.forEach((model, m) => this.drawPlane(model, this.panels.children[m]));
    this.drawLegend();
    this.drawDetail();
  }

  drawPlane(model, panel) {
    const plane = this.planeOf(model);
    const [caption, canvas] = panel.children;
    panel.hidden = !plane;
    if (!plane) return;
    caption.lastChild.textContent = `layer ${plane.layer} of ${model.depth}, ${plane.images} ${plane.images === 1 ? "picture" : "pictures"}`;
    const ratio = Math.max(devicePixelRatio, 1);
    const side = Math.round(canvas.clientWidth);
    canvas.width = canvas.height = Math.round(side * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const at = (i) => [
      PLANE_MARGIN + plane.points[2 * i] * (side - 2 * PLANE_MARGIN),
      PLANE_MARGIN + (1 - plane.points[2 * i + 1]) * (side - 2 * PLANE_MARGIN),
    ];
    const order = [...Array(plane.images).keys()].filter((image) => image !== this.state.image);
    for (const image of [...order, this.state.image]) this.drawPoints(context, model, plane, image, at);
    this.drawChosen(context, model, plane, at);
  }

  drawPoints(context, model, plane, image, at) {
    const { colour, marker } = model.pictures[image];
    const faded = this.state.chosen && image !== this.state.image;
    context.fillStyle = onPage(colour);
    context.globalAlpha = faded ? 0.25 : 0.75;
    context.beginPath();
    for (let patch = 0; patch < plane.tokens; patch++) {
      traceMarker(context, marker, ...at(image * plane.tokens + patch), 2.4);
    }
    context.fill();
    context.globalAlpha = 1;
  }

  drawChosen(context, model, plane, at) {
    const patch = this.patchIn(model);
    if (!this.state.chosen || this.state.image >= plane.images || patch >= plane.tokens) return;
    const [x, y] = at(this.state.image * plane.tokens + patch);
    const { colour, marker } = model.pictures[this.state.image];
    for (const [size, fill] of [
      [9, themeColour("--ink")],
      [7, themeColour("--paper")],
      [5, onPage(colour)],
    ]) {
      context.fillStyle = fill;
      context.beginPath();
      traceMarker(context, size > 5 ? "o" : marker, x, y, size);
      context.fill();
    }
  }

  drawLegend() {
    const model = this.models[this.state.model];
    const images = this.planeOf(model)?.images ?? 0;
    const classes = new Map(model.pictures.slice(0, images).map((picture) => [picture.name, picture]));
    const shown = [isDark(), ...classes.keys()].join("\n");
    if (this.legend.dataset.shown === shown) return;
    this.legend.dataset.shown = shown;
    const mark = ({ colour, marker }) => {
      const canvas = create("canvas", { width: 24, height: 24, "aria-hidden": "true" });
      const context = canvas.getContext("2d");
      context.fillStyle = onPage(colour);
      context.beginPath();
      traceMarker(context, marker, 12, 12, 7);
      context.fill();
      return canvas;
    };
    this.legend.replaceChildren(
      ...[...classes.values()].map((picture) => create("li", {}, mark(picture), picture.name)),
    );
  }

  drawDetail() {
    const { model: m, image, patch, chosen } = this.state;
    const model = this.models[m];
    const { picture: number, name } = model.pictures[image];
    const [rows, columns] = model.grid;
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    this.facts.textContent = chosen
      ? `${name} · picture ${image + 1}, row ${row + 1}, column ${column + 1} of ${rows} × ${columns}`
      : "Point at a dot, or give a plane the focus and use the arrow keys.";
    const picture = this.pictures.image(number);
    this.missing.hidden = Boolean(picture);
    this.picture.hidden = this.patch.hidden = !picture;
    if (!picture) return;
    const { context, area } = canvasFor(this.picture, [picture.naturalHeight, picture.naturalWidth], 480);
    context.imageSmoothingEnabled = picture.naturalWidth >= 200;
    context.drawImage(picture, 0, 0, area.width, area.height);
    const box = { top: row / rows, left: column / columns, height: 1 / rows, width: 1 / columns };
    if (chosen) outline(context, boxIn(area, box), 4, true);
    this.patch.style.visibility = chosen ? "visible" : "hidden";
    const enlarged = this.patch.getContext("2d");
    enlarged.imageSmoothingEnabled = false;
    const [width, height] = [picture.naturalWidth, picture.naturalHeight];
    enlarged.drawImage(
      picture,
      box.left * width,
      box.top * height,
      box.width * width,
      box.height * height,
      0,
      0,
      PATCH_PIXELS,
      PATCH_PIXELS,
    );
    this.patch.setAttribute("aria-label", `The patch, enlarged: ${this.facts.textContent}`);
  }
}

const startTokens = async (root, data, pictures) => {
  const explorer = new TokenExplorer(root, data, pictures);
  await explorer.load();
  explorer.build();
  explorer.draw();
  document.addEventListener("themechange", explorer.redraw);
  addEventListener("resize", explorer.redraw);
  root.dataset.ready = "true";
};
