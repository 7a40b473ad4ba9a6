// Every layer and head of a model on one canvas: rows are layers, columns the mean and the heads.

const FEWEST_PIXELS = 14;

/** Where the maps of a matrix lie, in CSS pixels. */
const matrixShape = (room, heads, model) => {
  const [left, top, gap] = [26, 18, 2];
  const side = clamp(Math.floor((room - left) / heads), FEWEST_PIXELS, 72);
  const tall = Math.round(((side - gap) * model.image[0]) / model.image[1]) + gap;
  return {
    left,
    top,
    side,
    tall,
    width: left + heads * side,
    height: top + model.layers.length * tall,
    area: (layer, head) => ({
      x: left + (head + 1) * side,
      y: top + (layer - 1) * tall,
      width: side - gap,
      height: tall - gap,
    }),
  };
};

class HeadMatrix {
  constructor(explorer, m) {
    this.explorer = explorer;
    this.m = m;
    this.model = explorer.models[m];
    this.columns = Math.max(...this.model.layers.map((layer) => layer.heads)) + 1;
    this.line = create("p", { class: "matrix-now", "aria-live": "polite" });
    this.canvas = create("canvas", {
      tabindex: 0,
      role: "application",
      "aria-roledescription": "layers and heads",
      "aria-label": `${this.model.label}: layers by heads; choose with the arrow keys`,
      onpointerdown: (event) => {
        const there = this.place(event);
        if (there) explorer.choose(m, ...there);
      },
      onpointermove: (event) => this.tell(this.place(event)),
      onpointerleave: () => this.tell(null),
      onkeydown: (event) => this.key(event),
    });
  }

  get shape() {
    return matrixShape(this.canvas.parentNode.clientWidth, this.columns, this.model);
  }

  /** The chosen layer and head, if they are this model's. */
  get chosen() {
    const { model, layer, head } = this.explorer.state;
    return model === this.m ? [layer, head] : null;
  }

  draw(holder, cells, found) {
    if (holder.className !== "matrix") {
      holder.className = "matrix";
      holder.replaceChildren(this.canvas);
    }
    const { shape, canvas, explorer } = this;
    const ratio = Math.max(devicePixelRatio, 1);
    canvas.width = Math.round(shape.width * ratio);
    canvas.height = Math.round(shape.height * ratio);
    canvas.style.width = `${shape.width}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    this.name(context, shape);
    const gray = explorer.grayOf(this.model);
    const [chosenLayer, chosenHead] = this.chosen ?? [0, 0];
    cells.forEach(([layer, head], i) => {
      const area = shape.area(layer, head);
      paintMap(context, area, found[i].layer, found[i].map, gray, explorer.colours, explorer.state.opacity);
      if (layer === chosenLayer && head === chosenHead) outline(context, [area.x, area.y, area.width, area.height], 2);
    });
  }

  name(context, shape) {
    context.fillStyle = themeColour("--soft");
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    const mean = shape.side < 30 ? "m" : "mean";
    for (let head = MEAN; head < this.columns - 1; head++) {
      const area = shape.area(1, head);
      context.fillText(head === MEAN ? mean : head, area.x + area.width / 2, shape.top - 4);
    }
    context.textAlign = "right";
    context.textBaseline = "middle";
    this.model.layers.forEach((_, i) => {
      const area = shape.area(i + 1, MEAN);
      context.fillText(i + 1, shape.left - 6, area.y + area.height / 2);
    });
  }

  /** Layer and head under the pointer, or null. */
  place(event) {
    const { layers } = this.model;
    const { left, top, side, tall } = this.shape;
    const box = this.canvas.getBoundingClientRect();
    const layer = Math.floor((event.clientY - box.top - top) / tall) + 1;
    const head = Math.floor((event.clientX - box.left - left) / side) - 1;
    const inside = layer >= 1 && layer <= layers.length && head >= MEAN && head < layers[layer - 1].heads;
    return inside ? [layer, head] : null;
  }

  /** The numbers of a map: the one pointed at, else the chosen one. */
  tell(pointed) {
    const { explorer, m } = this;
    const there = pointed ?? this.chosen;
    this.line.hidden = explorer.state.view !== "all";
    const shown = !this.line.hidden && there ? explorer.find(m, ...there) : null;
    this.line.textContent = shown
      ? `layer ${there[0]}, ${headName(there[1])}: H ${shown.entropy.toFixed(4)}, ${shown.distance.toFixed(1)} px`
      : "Rows are layers, columns heads: point at one.";
  }

  key(event) {
    const step = arrowStep(event);
    if (!step) return;
    const { layers } = this.model;
    const [fromLayer, fromHead] = this.chosen ?? [1, MEAN];
    const layer = clamp(fromLayer + step[0], 1, layers.length);
    const head = clamp(fromHead + step[1], MEAN, layers[layer - 1].heads - 1);
    this.explorer.choose(this.m, layer, head);
    event.preventDefault();
  }
}
