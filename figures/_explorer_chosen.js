// The chosen map, large, with its scale of colours and its numbers.

class ChosenMap {
  constructor(explorer) {
    this.explorer = explorer;
    this.canvas = create("canvas", {
      class: "selected",
      onpointermove: (event) => this.probe(event),
      onpointerleave: () => this.probe(null),
    });
    this.bar = create("canvas", { class: "bar", width: 256, height: 8, "aria-hidden": "true" });
    this.low = create("span");
    this.high = create("span");
    this.probed = create("p", { class: "soft probe" }, "\u00a0");
    this.title = create("h3", { class: "selected-title" });
    this.numbers = create("dl", { class: "facts" });
    const scale = create("div", { class: "scale" }, this.bar, create("div", { class: "ends" }, this.low, this.high));
    this.pane = create("div", { class: "pane" }, this.canvas, scale, this.probed);
  }

  /** Attention at the patch under the pointer. */
  probe(event) {
    const shown = this.explorer.current;
    if (!event || !shown) {
      this.probed.textContent = "\u00a0";
      return;
    }
    const cell = cellAt(shown.layer, pointerShare(event, this.canvas));
    const value = three(shown.map.values[cell.query]);
    this.probed.textContent = `${value} × uniform at row ${cell.row + 1}, column ${cell.column + 1}`;
  }

  draw() {
    const { state, models, current } = this.explorer;
    const model = models[state.model];
    this.title.replaceChildren(modelName(model), `, layer ${state.layer}, ${headName(state.head)}`);
    this.probe(null);
    this.bar.hidden = !current;
    if (current) this.drawMap(model, current);
    else this.drawNothing(model, state.layer);
  }

  /** The model has no such layer, or the layer no such head. */
  drawNothing(model, layer) {
    const { context, area } = canvasFor(this.canvas, model.image, LARGE_PIXELS);
    const [what, count] =
      layer > model.layers.length ? ["layers", model.layers.length] : ["heads", model.layers[layer - 1].heads];
    context.clearRect(0, 0, area.width, area.height);
    this.numbers.replaceChildren(create("dt", {}, "Not there"), create("dd", {}, `it has ${count} ${what}`));
    this.canvas.setAttribute("aria-hidden", "true");
    this.low.textContent = this.high.textContent = "";
  }

  drawMap(model, current) {
    const { explorer } = this;
    const { context, area } = canvasFor(this.canvas, model.image, LARGE_PIXELS);
    paintMap(
      context,
      area,
      current.layer,
      current.map,
      explorer.grayOf(model),
      explorer.colours,
      explorer.state.opacity,
    );
    outline(context, boxIn(area, current.cell), 4, true);
    this.canvas.setAttribute("role", "img");
    this.canvas.removeAttribute("aria-hidden");
    this.canvas.setAttribute("aria-label", `Attention of the chosen patch: ${this.title.textContent}`);
    this.drawBar(current.map);
    this.drawNumbers(current);
  }

  drawBar(map) {
    const context = this.bar.getContext("2d");
    this.explorer.colours.forEach(([red, green, blue], i) => {
      context.fillStyle = `rgb(${red} ${green} ${blue})`;
      context.fillRect(i, 0, 1, 8);
    });
    this.low.textContent = three(Math.max(map.low, 0));
    this.high.textContent = `${three(map.high)} × uniform`;
  }

  drawNumbers({ map, layer, entropy, distance, cell }) {
    const most = Math.log2(layer.patches);
    const facts = {
      entropy: [`${entropy.toFixed(4)} of uniform`, `${(entropy * most).toFixed(2)} of ${most.toFixed(2)} bits`],
      distance: [`${distance.toFixed(1)} px`, "mean, weighted by attention"],
      largest: [`${three(map.largest)} × uniform`, placeOf(layer, map.values.indexOf(map.largest))],
      "own patch": [`${three(map.values[cell.query])} × uniform`, ""],
    };
    this.numbers.replaceChildren(
      ...Object.entries(facts).flatMap(([name, [value, more]]) => [
        create("dt", {}, name),
        create("dd", { "data-fact": name }, create("b", {}, value), " ", create("small", {}, more)),
      ]),
    );
  }
}
