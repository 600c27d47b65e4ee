// Where data come from: a server (HTTP) or this file and the shards beside it (static). Both answer get(path) with the
// same objects. An error has a `status` where the server gave one, and a message to be shown as it is.

export class Trouble extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

/** {dtype, shape, data} with base64 of little-endian numbers as a typed array; anything else as it is. */
export function array(value) {
  if (!value || typeof value.data !== "string") return value ?? null;
  const bytes = Uint8Array.from(atob(value.data), (letter) => letter.charCodeAt(0));
  return new ARRAYS[value.dtype](bytes.buffer);
}

const SILENT = "The server does not answer. Is “saeforest explore” still running in its terminal?";

class Http {
  writes = true;
  constructor(base) {
    this.base = base;
  }

  async send(method, path, body) {
    let answer;
    try {
      answer = await fetch(this.base + path, {
        method,
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new Trouble(SILENT);
    }
    let value = null;
    try {
      value = await answer.json();
    } catch {
      // told below
    }
    if (!answer.ok) throw new Trouble(value?.error ?? `The server answered ${answer.status}.`, answer.status);
    if (value === null) throw new Trouble("The server's answer is not JSON.", answer.status);
    return value;
  }

  get(path) {
    return this.send("GET", path);
  }

  /** {name, blob} of an answer that is a file. */
  async file(path) {
    let answer;
    try {
      answer = await fetch(this.base + path);
    } catch {
      throw new Trouble(SILENT);
    }
    if (!answer.ok) throw new Trouble((await answer.json().catch(() => null))?.error ?? `The server answered ${answer.status}.`, answer.status);
    const name = answer.headers.get("Content-Disposition")?.match(/filename="([^"]+)"/)?.[1] ?? "saeforest.html";
    return { name, blob: await answer.blob() };
  }
}

async function unzip(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class Static {
  writes = false;
  loaded = new Map();
  waiting = new Map();

  constructor(config) {
    this.config = config;
    window.saeforest = { shard: (name, data) => this.waiting.get(name)?.take(data) };
    this.ready = this.readBlocks();
  }

  async readBlocks() {
    for (const block of document.querySelectorAll("script[data-path]")) {
      const text = block.textContent;
      const value = block.dataset.encoding === "gzip" ? await unzip(text) : JSON.parse(text);
      if (block.dataset.path === "*") for (const [path, part] of Object.entries(value)) this.loaded.set(path, part);
      else this.loaded.set(block.dataset.path, value);
    }
  }

  shardOf(path) {
    const { shards } = this.config;
    const [kind, id] = path.split("/");
    if (shards.kinds.includes(kind)) return `${kind}-${Math.floor(Number(id) / shards.size)}`;
    return path.replaceAll("/", "-");
  }

  loadShard(name) {
    if (!this.waiting.has(name)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => {
        const script = document.createElement("script");
        entry.take = (data) =>
          unzip(data).then((parts) => {
            for (const [path, part] of Object.entries(parts)) this.loaded.set(path, part);
            resolve();
          }, reject);
        script.onerror = () => reject(new Trouble("absent"));
        script.src = `${this.config.shards.folder}/${name}.js`;
        document.head.append(script);
      });
      this.waiting.set(name, entry);
    }
    return this.waiting.get(name).promise;
  }

  async get(path) {
    await this.ready;
    if (!this.loaded.has(path) && this.config.shards && !path.includes("?")) {
      await this.loadShard(this.shardOf(path)).catch(() => {});
    }
    if (!this.loaded.has(path)) {
      throw new Trouble(
        `This export does not hold “${path}”. ${this.config.note ?? ""} “saeforest explore RUN” shows everything.`,
        404,
      );
    }
    return this.loaded.get(path);
  }

  async send() {
    throw new Trouble("An export cannot be changed, and runs no model. “saeforest explore RUN” can.");
  }
}

function makeTransport() {
  const block = document.getElementById("saeforest");
  const config = block ? JSON.parse(block.textContent) : (window.SAEFOREST ?? { transport: "http" });
  return config.transport === "static" ? new Static(config) : new Http(config.base ?? "api/v1/");
}

export const transport = makeTransport();
export const isStatic = transport instanceof Static;
