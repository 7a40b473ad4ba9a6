// The table of every number: sorted by its heads, filtered by words and choices, drawn as far as it is scrolled.

const COLUMNS = ["model", "analysis", "layer", "head", "statistic", "value", "ci_low", "ci_high", "images",
    "protocol"];
const NAMED = new Set(["model", "analysis", "statistic", "protocol"]);
const ROWS_AT_ONCE = 150;

class NumberTable {
  constructor(root, { rows, columns }) {
    this.root = root;
    this.count = rows;
    this.columns = columns;
    // names compare by their place in the alphabet
    this.ranks = {};
    for (const name of NAMED) {
      const { names } = columns[name];
      const sorted = [...names].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
      this.ranks[name] = names.map((text) => sorted.indexOf(text));
    }
    this.words = Array.from({ length: rows }, (_, i) => this.wordsOf(i));
    this.filters = { text: "", model: "", analysis: "", heads: "means" };
    this.sorted = { column: null, descending: false };
    this.build();
    this.refresh();
  }

  name(column, row) {
    return this.columns[column].names[this.columns[column].codes[row]];
  }

  wordsOf(row) {
    const [layer, head] = [this.columns.layer[row], this.columns.head[row]];
    const parts = [this.name("model", row), this.name("analysis", row), this.name("statistic", row)];
    if (layer !== null) parts.push(`layer${layer}`);
    if (head !== null) parts.push(`head${head}`);
    return ` ${parts.join(" ").toLowerCase()} `;
  }

  // ---- the page ----

  build() {
    const refresh = soon(() => this.refresh());
    const set = (name, value) => {
      this.filters[name] = value;
      refresh();
    };
    const names = (column) => [
      option("", "all"),
      ...[...this.columns[column].names].sort().map((name) => option(name, name)),
    ];
    this.search = create("input", {
      type: "search",
      id: "number-search",
      placeholder: "distance layer 12",
      oninput: () => set("text", this.search.value.toLowerCase()),
    });
    const heads = [option("means", "means over heads"), option("single", "single heads"), option("", "all rows")];
    this.told = create("p", { class: "soft", role: "status" });
    this.body = create("tbody");
    this.headers = COLUMNS.map((column) =>
      create(
        "th",
        { scope: "col", "data-column": column },
        create("button", { type: "button", onclick: () => this.sortBy(column) }, column.replace("_", " ")),
      ),
    );
    this.holder = create(
      "div",
      { class: "scroll long", tabindex: 0, role: "region", "aria-label": "All numbers", onscroll: () => this.fill() },
      create("table", { class: "numbers" }, create("thead", {}, create("tr", {}, ...this.headers)), this.body),
    );
    this.root.replaceChildren(
      create(
        "div",
        { class: "filters", role: "search", "aria-label": "Numbers" },
        create("label", { class: "field" }, create("span", {}, "Words"), this.search),
        chooser("Model", names("model"), (value) => set("model", value)).field,
        chooser("Analysis", names("analysis"), (value) => set("analysis", value)).field,
        chooser("Heads", heads, (value) => set("heads", value)).field,
      ),
      this.told,
      this.holder,
    );
  }

  // ---- what people do ----

  sortBy(column) {
    const again = this.sorted.column === column;
    this.sorted = { column, descending: again && !this.sorted.descending };
    for (const header of this.headers) {
      const here = header.dataset.column === column;
      if (here) header.setAttribute("aria-sort", this.sorted.descending ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    }
    this.refresh();
  }

  keeps(row, words) {
    const { model, analysis, heads } = this.filters;
    const single = this.columns.head[row] !== null;
    return (
      (!model || this.name("model", row) === model) &&
      (!analysis || this.name("analysis", row) === analysis) &&
      (!heads || single === (heads === "single")) &&
      words.every((word) => this.words[row].includes(word))
    );
  }

  /** What a row is sorted by; null, a missing number, goes last in either direction. */
  key(column) {
    return NAMED.has(column)
      ? (row) => this.ranks[column][this.columns[column].codes[row]]
      : (row) => this.columns[column][row];
  }

  refresh() {
    // layer 1 is not layer 12: the number makes one word with what it counts
    const joined = this.filters.text.replace(/\b(layer|head)\s+(\d+)/g, "$1$2");
    const words = joined
      .split(/\s+/)
      .filter(Boolean)
      .map((word) => (/^(layer|head)\d+$/.test(word) ? ` ${word} ` : word));
    this.shown = [...Array(this.count).keys()].filter((row) => this.keeps(row, words));
    if (this.sorted.column) {
      const key = this.key(this.sorted.column);
      const sign = this.sorted.descending ? -1 : 1;
      const missing = (row) => (key(row) === null ? 1 : 0);
      this.shown.sort((one, other) => missing(one) - missing(other) || sign * (key(one) - key(other)) || one - other);
    }
    this.told.textContent = `${this.shown.length} of ${this.count} numbers, to five digits`;
    this.body.replaceChildren();
    this.holder.scrollTop = 0;
    this.fill();
  }

  // ---- drawing ----

  /** Adds rows while the end is near. */
  fill() {
    const { holder, body } = this;
    while (
      body.childElementCount < this.shown.length &&
      holder.scrollTop + holder.clientHeight > holder.scrollHeight - 800
    ) {
      const start = body.childElementCount;
      body.append(...this.shown.slice(start, start + ROWS_AT_ONCE).map((row) => this.row(row)));
    }
  }

  row(number) {
    return create("tr", {}, ...COLUMNS.map((column) => create("td", {}, this.text(column, number))));
  }

  text(column, row) {
    if (NAMED.has(column)) return this.name(column, row);
    const value = this.columns[column][row];
    if (value === null) return "";
    return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(5)));
  }
}

const startTable = async (root, data) => {
  new NumberTable(root, jsonOf("number-data"));
  document.getElementById("numbers-static")?.remove();
  root.dataset.ready = "true";
};
