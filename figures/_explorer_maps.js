// Attention maps: unpacked, their numbers, their geometry, and how they are painted over a picture.

const MEAN = -1;
const LARGE_PIXELS = 640;

/** The maps of one model and picture. Attention is in multiples of uniform attention, where 1 is no preference. */
class Maps {
  constructor(model, attention, bytes) {
    this.bytes = bytes;
    this.twoInOne = attention.steps <= 16;
    this.value = Float64Array.from({ length: attention.steps }, (_, code) => (code / (attention.steps - 1)) ** 2);
    this.octave = attention.octave;
    let at = 0;
    this.layers = model.layers.map((layer) => {
      const entries = layer.heads * layer.cells ** 2;
      const codes = at;
      at += this.twoInOne ? Math.ceil(entries / 2) : entries;
      return { ...layer, codes };
    });
    const count = (bytes.length - at) / 2;
    this.numbers = Uint16Array.from({ length: count }, (_, i) => bytes[at + i] | (bytes[at + count + i] << 8));
    let first = 0;
    for (const layer of this.layers) {
      layer.largest = first;
      layer.entropy = first + layer.heads * layer.cells;
      layer.distance = layer.entropy + (layer.heads + 1) * layer.cells;
      first = layer.distance + layer.heads * layer.cells;
    }
  }

  code(layer, entry) {
    if (!this.twoInOne) return this.bytes[layer.codes + entry];
    const byte = this.bytes[layer.codes + (entry >> 1)];
    return entry & 1 ? byte & 15 : byte >> 4;
  }

  /** Adds a head's row, times `share`. */
  addRow(sum, layer, head, query, share) {
    const row = head * layer.cells + query;
    const largest = 2 ** (-this.numbers[layer.largest + row] / this.octave) * layer.patches * share;
    for (let key = 0; key < layer.cells; key++)
      sum[key] += largest * this.value[this.code(layer, row * layer.cells + key)];
  }

  /** Attention of a query, by key. */
  row(layer, head, query) {
    const sum = new Float64Array(layer.cells);
    const heads = head === MEAN ? [...Array(layer.heads).keys()] : [head];
    for (const one of heads) this.addRow(sum, layer, one, query, 1 / heads.length);
    return sum;
  }

  /** Entropy over that of uniform attention. */
  entropy(layer, head, query) {
    const row = head === MEAN ? layer.heads : head;
    return this.numbers[layer.entropy + row * layer.cells + query] / 10000;
  }

  /** Pixels; the mean over heads has the mean of their distances. */
  distance(layer, head, query) {
    const heads = head === MEAN ? [...Array(layer.heads).keys()] : [head];
    const total = heads.reduce((sum, one) => sum + this.numbers[layer.distance + one * layer.cells + query], 0);
    return total / heads.length / 10;
  }
}

/** What follows from a layer's grid of patches and the side of its cells. */
const describeLayer = (layer) => {
  const [height, width] = layer.grid;
  const rows = Math.ceil(height / layer.cell);
  const columns = Math.ceil(width / layer.cell);
  return { ...layer, rows, columns, cells: rows * columns, patches: height * width };
};

/** The cell that holds a point of the picture, and its place as shares of the picture. */
const cellAt = (layer, point) => {
  const [height, width] = layer.grid;
  const row = Math.floor(Math.floor(point.y * height) / layer.cell);
  const column = Math.floor(Math.floor(point.x * width) / layer.cell);
  return { row, column, query: row * layer.columns + column, ...cellBox(layer, row, column) };
};

const cellBox = (layer, row, column) => {
  const [height, width] = layer.grid;
  const top = (row * layer.cell) / height;
  const left = (column * layer.cell) / width;
  return {
    top,
    left,
    height: Math.min(((row + 1) * layer.cell) / height, 1) - top,
    width: Math.min(((column + 1) * layer.cell) / width, 1) - left,
  };
};

/** A map over its gray picture, in a rectangle of a canvas. */
const paintMap = (context, area, layer, map, gray, colours, opacity) => {
  const small = paintMap.scratch ?? (paintMap.scratch = create("canvas"));
  [small.width, small.height] = [layer.columns, layer.rows];
  const pixels = new ImageData(layer.columns, layer.rows);
  map.values.forEach((value, i) => {
    const share = map.high > map.low ? (value - map.low) / (map.high - map.low) : 0;
    pixels.data.set(colours[Math.round(clamp(share, 0, 1) * 255)], 4 * i);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const [height, width] = layer.grid;
  context.save();
  context.beginPath();
  context.rect(area.x, area.y, area.width, area.height);
  context.clip();
  context.imageSmoothingEnabled = true;
  context.globalAlpha = 1;
  if (gray) context.drawImage(gray, area.x, area.y, area.width, area.height);
  context.globalAlpha = gray ? opacity : 1;
  context.imageSmoothingEnabled = false;
  // the cells at the lower and right edge may reach beyond the picture
  const across = (area.width * layer.columns * layer.cell) / width;
  const down = (area.height * layer.rows * layer.cell) / height;
  context.drawImage(small, area.x, area.y, across, down);
  context.restore();
};

const boxIn = (area, cell) => [
  area.x + cell.left * area.width,
  area.y + cell.top * area.height,
  cell.width * area.width,
  cell.height * area.height,
];

const headName = (head) => (head === MEAN ? "mean over heads" : `head ${head}`);

const placeOf = (layer, cell) => `at row ${Math.floor(cell / layer.columns) + 1}, column ${(cell % layer.columns) + 1}`;

/** A canvas as wide as told, in the picture's proportions. */
const canvasFor = (canvas, [height, width], across) => {
  const down = Math.round((across * height) / width);
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const context = canvas.getContext("2d");
  return { context, area: { x: 0, y: 0, width: across, height: down } };
};

const drawGrid = (context, area, layer) => {
  context.strokeStyle = "rgb(128 128 128 / 25%)";
  context.lineWidth = 1;
  context.beginPath();
  for (let column = 1; column < layer.columns; column++) {
    const { left } = cellBox(layer, 0, column);
    context.moveTo(left * area.width, 0);
    context.lineTo(left * area.width, area.height);
  }
  for (let row = 1; row < layer.rows; row++) {
    const { top } = cellBox(layer, row, 0);
    context.moveTo(0, top * area.height);
    context.lineTo(area.width, top * area.height);
  }
  context.stroke();
};
