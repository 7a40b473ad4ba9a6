// Click a patch: its attention in every model, layer and head, with entropy and distance of that very row.

const TILE_PIXELS = 160;
const PLAY_MILLISECONDS = 700;
const SCALES = {
  zero: "own scale, from 0",
  contrast: "own scale, stretched",
  shared: "one scale for all",
};

class AttentionExplorer {
  constructor(root, data, pictures) {
    this.root = root;
    this.pictures = pictures;
    this.attention = data.attention;
    this.models = data.attention.models.map((model) => ({ ...model, layers: model.layers.map(describeLayer) }));
    this.colours = data.viridis.map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)).concat(255));
    this.deepest = Math.max(...this.models.map((model) => model.layers.length));
    this.mostHeads = Math.max(...this.models.flatMap((model) => model.layers.map((layer) => layer.heads)));
    // the finest grid: arrow keys go from cell to cell of it
    const layers = this.models.flatMap((model) => model.layers);
    this.finest = layers.reduce((one, other) => (other.cells > one.cells ? other : one));
    // the sharpest of the models' pictures is the one to click
    this.sharpest = this.models.reduce((one, other) => (other.image[0] > one.image[0] ? other : one));
    this.state = {
      picture: 0,
      row: this.finest.rows >> 1,
      column: this.finest.columns >> 1,
      view: "layers",
      model: 0,
      layer: this.models[0].layers.length,
      head: MEAN,
      scale: "zero",
      opacity: 0.8,
    };
    this.unpacked = new Map();
    this.matrices = this.models.map((_, m) => new HeadMatrix(this, m));
    this.redraw = soon(() => this.draw());
    this.build();
  }

  // ---- the page ----

  build() {
    this.picture = create("canvas", {
      class: "query",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "picture of patches",
      "aria-label": "Picture: click a patch, or move with the arrow keys",
      "aria-describedby": "attention-status",
      onpointerdown: (event) => this.point(event),
      onpointermove: (event) => event.buttons && event.pointerType === "mouse" && this.point(event),
      onkeydown: (event) => this.key(event),
    });
    this.chosen = new ChosenMap(this);
    this.status = create("p", { class: "soft", id: "attention-status", role: "status" });
    this.rows = create("div", { class: "rows" });
    this.root.replaceChildren(
      create("div", { class: "thumbs", role: "group", "aria-label": "Pictures" }, ...this.thumbs()),
      create(
        "div",
        { class: "stage" },
        create("div", { class: "pane" }, this.picture, this.status),
        this.chosen.pane,
        create("div", { class: "pane panel" }, this.chosen.title, this.chosen.numbers, ...this.controls()),
      ),
      this.rows,
      create("p", { class: "soft" }, this.remark()),
    );
  }

  remark() {
    const { steps, kept } = this.attention;
    const shown = this.models[0].pictures.length;
    const pooled = this.models.some((model) => model.layers.some((layer) => layer.cell > 1));
    return [
      `Maps are kept in ${steps} steps (of the square root of attention over the largest of its row); entropy and ` +
        "distance are those of the unrounded row.",
      pooled
        ? "Grids above 16 × 16 patches are shown in square cells: means over the cell's queries and keys, and over its " +
          "patches' entropies and distances."
        : "",
      new Set(this.models.map((model) => model.pictures[0].picture)).size > 1
        ? "The models were given pictures of different sizes or crops: the chosen point lies at the same share of each."
        : "",
      shown < kept ? `${shown} of ${kept} pictures are here, to keep the page below 40 MB.` : "",
    ].join(" ");
  }

  thumbs() {
    this.thumbButtons = this.sharpest.pictures.map(({ picture, name }, i) =>
      create(
        "button",
        { type: "button", class: "thumb", "aria-pressed": "false", title: name, onclick: () => this.choosePicture(i) },
        create("img", { src: this.pictures.urls[picture], alt: `picture ${i + 1}, ${name}`, width: 56, height: 56 }),
      ),
    );
    return this.thumbButtons;
  }

  controls() {
    const set = (name, value) => {
      this.state[name] = value;
      this.redraw();
    };
    this.layerInput = create("input", {
      type: "range",
      id: "attention-layer",
      min: 1,
      max: this.deepest,
      step: 1,
      oninput: () => set("layer", Number(this.layerInput.value)),
    });
    this.layerText = create("output", { for: "attention-layer" });
    this.play = create("button", { type: "button", "aria-pressed": "false", onclick: () => this.togglePlay() }, "Play");
    const heads = [
      option(MEAN, "mean over heads"),
      ...Array.from({ length: this.mostHeads }, (_, h) => option(h, `head ${h}`)),
    ];
    this.headChooser = chooser("Head", heads, (value) => set("head", Number(value)));
    const scales = Object.entries(SCALES).map(([value, text]) => option(value, text));
    const scale = chooser("Colours", scales, (value) => set("scale", value));
    const opacity = create("input", {
      type: "range",
      min: 0,
      max: 100,
      value: 100 * this.state.opacity,
      oninput: () => set("opacity", Number(opacity.value) / 100),
    });
    return [
      this.views(),
      create(
        "div",
        { class: "field" },
        create("label", { for: "attention-layer" }, "Layer"),
        create("div", { class: "slider" }, this.layerInput, this.layerText, this.play),
      ),
      create("div", { class: "pair" }, this.headChooser.field, scale.field),
      create("label", { class: "field" }, create("span", {}, "Map over picture"), opacity),
    ];
  }

  views() {
    const names = { layers: "All layers", heads: "All heads", all: "Layers × heads" };
    return create(
      "fieldset",
      { class: "segments" },
      create("legend", {}, "Side by side"),
      ...Object.entries(names).map(([value, text]) =>
        create(
          "label",
          {},
          create("input", {
            type: "radio",
            name: "attention-view",
            value,
            checked: value === this.state.view,
            onchange: () => this.chooseView(value),
          }),
          create("span", {}, text),
        ),
      ),
    );
  }

  // ---- what people do ----

  point(event) {
    const cell = cellAt(this.finest, pointerShare(event, this.picture));
    this.moveTo(cell.row, cell.column);
  }

  key(event) {
    const step = arrowStep(event);
    if (step) {
      this.moveTo(this.state.row + step[0], this.state.column + step[1]);
    } else if (event.key === "PageDown" || event.key === "PageUp") {
      const count = this.models[0].pictures.length;
      this.choosePicture((this.state.picture + (event.key === "PageDown" ? 1 : count - 1)) % count);
    } else {
      return;
    }
    event.preventDefault();
  }

  moveTo(row, column) {
    this.state.row = clamp(row, 0, this.finest.rows - 1);
    this.state.column = clamp(column, 0, this.finest.columns - 1);
    this.redraw();
  }

  async choosePicture(number) {
    this.state.picture = number;
    await this.unpack(number);
    this.redraw();
  }

  chooseView(view) {
    this.state.view = view;
    this.redraw();
  }

  choose(model, layer, head) {
    Object.assign(this.state, { model, layer, head });
    this.redraw();
  }

  togglePlay() {
    if (this.playing) {
      clearInterval(this.playing);
      this.playing = null;
    } else {
      this.playing = setInterval(() => {
        this.state.layer = (this.state.layer % this.deepest) + 1;
        this.redraw();
      }, PLAY_MILLISECONDS);
    }
    this.play.textContent = this.playing ? "Stop" : "Play";
    this.play.setAttribute("aria-pressed", String(Boolean(this.playing)));
  }

  // ---- data ----

  /** Unpacks the maps of a picture; those of one picture are kept, a few megabytes a model. */
  async unpack(number) {
    const wanted = this.models.map((_, m) => `maps-${m}-${number}`);
    await Promise.all([
      ...this.models.map((model) => this.pictures.load(model.pictures[number]?.picture ?? null)),
      ...this.models.map(async (model, m) => {
        if (this.unpacked.has(wanted[m]) || !model.pictures[number]) return;
        this.unpacked.set(wanted[m], new Maps(model, this.attention, await bytesOf(wanted[m])));
      }),
    ]);
    // another picture may have been chosen meanwhile
    for (const key of this.unpacked.keys()) if (!key.endsWith(`-${this.state.picture}`)) this.unpacked.delete(key);
  }

  grayOf(model) {
    return this.pictures.gray(model.pictures[this.state.picture].picture);
  }

  maps(model) {
    return this.unpacked.get(`maps-${model}-${this.state.picture}`);
  }

  get queryPoint() {
    const box = cellBox(this.finest, this.state.row, this.state.column);
    return { y: box.top + box.height / 2, x: box.left + box.width / 2 };
  }

  /** One map, or null where the model has no such layer or head. */
  find(m, layerNumber, head) {
    const maps = this.maps(m);
    const layer = maps?.layers[layerNumber - 1];
    if (!layer || head >= layer.heads) return null;
    const cell = cellAt(layer, this.queryPoint);
    const values = maps.row(layer, head, cell.query);
    return {
      layer,
      cell,
      map: { values, least: Math.min(...values), largest: Math.max(...values) },
      entropy: maps.entropy(layer, head, cell.query),
      distance: maps.distance(layer, head, cell.query),
    };
  }

  /** Which (layer, head) of a model stand side by side. */
  cells(model) {
    const { view, layer, head } = this.state;
    if (view === "layers") return model.layers.map((_, i) => [i + 1, head]);
    const heads = (number) => [MEAN, ...Array(model.layers[number - 1].heads).keys()];
    if (view === "heads") return layer > model.layers.length ? [] : heads(layer).map((one) => [layer, one]);
    return model.layers.flatMap((_, i) => heads(i + 1).map((one) => [i + 1, one]));
  }

  // ---- drawing ----

  draw() {
    if (!this.maps(0)) return;
    const found = this.models.map((model, m) => this.cells(model).map(([layer, head]) => this.find(m, layer, head)));
    this.current = this.find(this.state.model, this.state.layer, this.state.head);
    const all = [...found.flat(), this.current].filter(Boolean);
    this.scaleMaps(all);
    this.drawControls();
    this.drawPicture();
    this.chosen.draw();
    this.models.forEach((model, m) => this.drawModel(model, m, found[m]));
  }

  scaleMaps(all) {
    const top = Math.max(...all.map(({ map }) => map.largest));
    for (const { map } of all) {
      map.low = this.state.scale === "contrast" ? map.least : 0;
      map.high = this.state.scale === "shared" ? top : map.largest;
      // uniform attention, to what a map tells: flat, not its rounding
      if (map.high - map.low < 1e-3) [map.low, map.high] = [map.low - 0.01, map.high + 0.01];
    }
  }

  drawControls() {
    const { picture, layer, head, view, row, column } = this.state;
    this.thumbButtons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === picture)));
    this.layerInput.value = layer;
    this.layerText.value = `${layer} of ${this.deepest}`;
    this.headChooser.select.value = head;
    this.root.dataset.view = view;
    const name = this.models[0].pictures[picture].name;
    const grid = `${this.finest.rows} × ${this.finest.columns}`;
    this.status.textContent = `Row ${row + 1}, column ${column + 1} of ${grid} · picture ${picture + 1}, ${name}`;
  }

  drawPicture() {
    const model = this.sharpest;
    const image = this.pictures.image(model.pictures[this.state.picture].picture);
    const { context, area } = canvasFor(this.picture, model.image, LARGE_PIXELS);
    context.imageSmoothingEnabled = image.naturalWidth >= 200;
    context.drawImage(image, 0, 0, area.width, area.height);
    drawGrid(context, area, this.finest);
    const box = boxIn(area, cellBox(this.finest, this.state.row, this.state.column));
    outline(context, box, 4, true);
  }

  drawModel(model, m, found) {
    const row = this.rows.children[m] ?? this.rows.appendChild(this.modelRow(model, m));
    const shown = row.lastChild;
    const cells = this.cells(model);
    this.matrices[m].tell(null);
    if (this.state.view === "all") this.matrices[m].draw(shown, cells, found);
    else this.drawTiles(shown, m, cells, found);
  }

  modelRow(model, m) {
    const heads = [...new Set(model.layers.map((layer) => layer.heads))].join(", ");
    const last = model.layers.at(-1);
    const about = `${model.layers.length} layers of ${heads} heads, ${last.grid.join(" × ")} patches at the last`;
    return create(
      "div",
      { class: "row", role: "group", "aria-label": model.label },
      create("p", { class: "row-title" }, modelName(model), " ", create("small", {}, about)),
      this.matrices[m].line,
      create("div", { class: "tiles" }),
    );
  }

  drawTiles(holder, m, cells, found) {
    if (holder.className !== "tiles" || holder.dataset.count !== String(cells.length)) {
      holder.className = "tiles";
      holder.dataset.count = cells.length;
      holder.replaceChildren(...cells.map(() => this.tile(holder, m)));
      if (!cells.length)
        holder.append(create("p", { class: "soft" }, `This model has ${this.models[m].layers.length} layers.`));
    }
    cells.forEach((cell, i) => this.drawTile(holder.children[i], m, cell, found[i]));
  }

  tile(holder, m) {
    const button = create(
      "button",
      { type: "button", class: "tile", onclick: () => this.choose(m, ...button.cell) },
      create("canvas"),
      create("b"),
      create("span", { class: "number", "data-fact": "entropy" }),
      create("span", { class: "number", "data-fact": "distance" }),
    );
    return button;
  }

  drawTile(button, m, [layer, head], shown) {
    const model = this.models[m];
    button.cell = [layer, head];
    const [canvas, name, entropy, distance] = button.children;
    const { context, area } = canvasFor(canvas, model.image, TILE_PIXELS);
    const isCurrent = m === this.state.model && layer === this.state.layer && head === this.state.head;
    button.setAttribute("aria-pressed", String(isCurrent));
    button.disabled = !shown;
    name.textContent = this.state.view === "layers" ? `layer ${layer}` : head === MEAN ? "mean" : headName(head);
    if (!shown) {
      context.clearRect(0, 0, area.width, area.height);
      entropy.textContent = `no head ${head}`;
      distance.textContent = "";
      return;
    }
    const gray = this.grayOf(model);
    paintMap(context, area, shown.layer, shown.map, gray, this.colours, this.state.opacity);
    outline(context, boxIn(area, shown.cell), 2);
    entropy.textContent = `H ${shown.entropy.toFixed(4)}`;
    distance.textContent = `${shown.distance.toFixed(1)} px`;
    const words = `${model.label}, layer ${layer}, ${headName(head)}: entropy ${shown.entropy.toFixed(4)}, distance ${shown.distance.toFixed(1)} pixels`;
    button.setAttribute("aria-label", words);
  }
}

const startAttention = async (root, data, pictures) => {
  const explorer = new AttentionExplorer(root, data, pictures);
  await explorer.choosePicture(0);
  document.addEventListener("themechange", explorer.redraw);
  addEventListener("resize", explorer.redraw);
  root.dataset.ready = "true";
};
