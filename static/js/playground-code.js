// The code that makes a call again elsewhere: the same input, the same version, nothing else needed.

// Beyond so many characters an input is read from input.json.
export const LARGE = 6000;

const text = (value) => JSON.stringify(value);
const sh = (value) => `'${value.replaceAll("'", "'\\''")}'`;

// JSON as Python writes it.
function py(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(py).join(", ")}]`;
  if (typeof value === "object") {
    const fields = Object.entries(value).map(([name, one]) => `${text(name)}: ${py(one)}`);
    return `{${fields.join(", ")}}`;
  }
  return text(value);
}

// What the protocol calls a type, as numpy does.
const NUMPY = {
  BOOL: "bool",
  BYTES: "object",
  FP16: "np.float16",
  FP32: "np.float32",
  FP64: "np.float64",
  ...Object.fromEntries([8, 16, 32, 64].flatMap((bits) => [[`INT${bits}`, `np.int${bits}`], [`UINT${bits}`, `np.uint${bits}`]])),
};

class Writer {
  constructor(spec, version, rows, ports) {
    Object.assign(this, { spec, version, rows, ports });
    this.large = text(rows).length > LARGE;
    this.sent = rows.length === 1 ? rows[0] : rows;
    this.address = `${spec.infer}/predict/${spec.endpoint}/versions/${version}`;
  }

  // Lines at the head of a Python program, with what it imports of the standard library.
  head(imports, ...libraries) {
    const standard = [...imports];
    if (this.spec.private) standard.push("import os");
    if (this.large) standard.push("import json");
    const sorted = [...new Set(standard)].sort();
    return [...sorted, ...(sorted.length ? [""] : []), ...libraries, ""];
  }

  get pyRows() {
    return this.large ? 'rows = json.load(open("input.json"))' : `rows = ${py(this.rows)}`;
  }

  get pyHeaders() {
    return this.spec.private ? ['headers = {"Authorization": f"Bearer {os.environ[\'MODELYARD_TOKEN\']}"}'] : [];
  }

  curl() {
    const lines = [`curl ${sh(this.address)}`];
    if (this.spec.private) lines.push('  -H "Authorization: Bearer $MODELYARD_TOKEN"');
    lines.push(this.large ? "  --json @input.json" : `  --json ${sh(text(this.sent))}`);
    return lines.join(" \\\n");
  }

  python() {
    return [
      ...this.head([], "import requests"),
      this.pyRows,
      ...this.pyHeaders,
      "answer = requests.post(",
      `    ${text(this.address)}, json=rows, timeout=60${this.spec.private ? ", headers=headers" : ""}`,
      ")",
      "print(answer.json())",
    ].join("\n");
  }

  javascript() {
    const headers = ['"content-type": "application/json"'];
    if (this.spec.private) headers.push("authorization: `Bearer ${process.env.MODELYARD_TOKEN}`");
    const lines = this.large ? ['import { readFile } from "node:fs/promises";', ""] : [];
    lines.push(
      `const answer = await fetch(${text(this.address)}, {`,
      '  method: "POST",',
      `  headers: { ${headers.join(", ")} },`,
      `  body: ${this.large ? 'await readFile("input.json", "utf8")' : `JSON.stringify(${text(this.sent)})`},`,
      "});",
      "console.log(await answer.json());",
    );
    return lines.join("\n");
  }

  embeddings() {
    const texts = this.rows.map((row) => row[this.spec.takes.column]);
    const key = this.spec.private ? 'os.environ["MODELYARD_TOKEN"]' : '"none"';
    const name = this.spec.private ? "from openai import OpenAI" : "from openai import Omit, OpenAI";
    return [
      ...(this.spec.private ? ["import os", ""] : []),
      name,
      "",
      `client = OpenAI(base_url=${text(`${this.spec.infer}/v1`)}, api_key=${key})`,
      "answer = client.embeddings.create(",
      `    model=${text(`${this.spec.endpoint}@${this.version}`)}, input=${py(texts)},`,
      // The client sends a key in any case, and an unknown one is refused.
      ...(this.spec.private ? [] : ['    extra_headers={"Authorization": Omit()},']),
      ")",
      "print(answer.data[0].embedding)",
    ].join("\n");
  }

  // What turns rows into tensors of the protocol, under the names of the model's inputs.
  tensors() {
    const { takes } = this.spec;
    const [port] = this.ports;
    if (takes.kind === "text") return takes.tokens === "words" ? this.words(port) : this.pieces();
    if (takes.kind === "digit") {
      const shape = this.rows.map((row) => row[takes.column]).every((value) => typeof value === "string");
      const field = `row[${text(takes.column)}]`;
      const one = shape
        ? `np.frombuffer(base64.b64decode(${field}), np.uint8).reshape(28, 28)`
        : `np.array(${field}, np.uint8)`;
      const plain = port.shape.length === 3 ? "" : ".reshape(-1, 1, 28, 28)";
      const type = port.datatype === "UINT8" ? "" : `.astype(${NUMPY[port.datatype]})`;
      return {
        imports: shape ? ["import base64"] : [],
        libraries: [],
        lines: [`tensors = {${text(port.name)}: np.stack([${one} for row in rows])${plain}${type}}`],
      };
    }
    const lines = this.ports.map(
      ({ name, datatype }) => `    ${text(name)}: np.array([row[${text(name)}] for row in rows], ${NUMPY[datatype]}),`,
    );
    return { imports: [], libraries: [], lines: ["tensors = {", ...lines, "}"] };
  }

  file(name) {
    const { registry, model } = this.spec;
    const headers = this.spec.private ? ", headers=headers" : "";
    return `requests.get(${text(`${registry}/api/v1/models/${model}/versions/${this.version}/files/${name}`)}${headers})`;
  }

  words(port) {
    const { column, max_length } = this.spec.takes;
    return {
      imports: ["import re", "import unicodedata"],
      libraries: ["import requests"],
      lines: [
        "# The words that the model knows, in the order of their numbers",
        `known = ${this.file("vocabulary.json")}.json()`,
        "number = {word: at for at, word in enumerate(known)}",
        "tokens = []",
        "for row in rows:",
        `    plain = unicodedata.normalize("NFKC", row[${text(column)}]).lower()`,
        '    words = re.findall(r"[^\\W\\d_]+|\\d|[^\\w\\s]|_", plain)',
        `    tokens.append([number.get(word[:40], 1) for word in words[:${max_length}]] or [1])`,
        "longest = max(map(len, tokens))",
        `padded = np.array([one + [0] * (longest - len(one)) for one in tokens], ${NUMPY[port.datatype]})`,
        `tensors = {${text(port.name)}: padded}`,
      ],
    };
  }

  pieces() {
    const { column, pad, length_file: hasLength } = this.spec.takes;
    const known = { input_ids: "ids", attention_mask: "attention_mask", token_type_ids: "type_ids" };
    const lines = this.ports.map(
      ({ name, datatype }) => `    ${text(name)}: np.array([one.${known[name]} for one in encoded], ${NUMPY[datatype]}),`,
    );
    const length = hasLength ? `${this.file("sentence_bert_config.json")}.json()["max_seq_length"]` : `${this.spec.takes.max_length}`;
    return {
      imports: [],
      libraries: ["import requests", "from tokenizers import Tokenizer"],
      lines: [
        `tokenizer = Tokenizer.from_str(${this.file("tokenizer.json")}.text)`,
        `tokenizer.enable_truncation(${length})`,
        `tokenizer.enable_padding(pad_id=${pad})`,
        `encoded = tokenizer.encode_batch([row[${text(column)}] for row in rows])`,
        "tensors = {",
        ...lines,
        "}",
      ],
    };
  }

  triton(kind) {
    const found = this.tensors();
    const { spec } = this;
    const web = new URL(spec.infer);
    const secure = (kind === "http" ? web.protocol === "https:" : spec.grpc_is_secure) ? ", ssl=True" : "";
    const at = kind === "http" ? web.host + web.pathname.replace(/\/$/, "") : spec.grpc;
    const headers = spec.private ? ["headers = {\"authorization\": f\"Bearer {os.environ['MODELYARD_TOKEN']}\"}"] : [];
    const listed = kind === "http" ? 'get_response()["outputs"]' : "get_response().outputs";
    const name = kind === "http" ? 'output["name"]' : "output.name";
    const libraries = [...found.libraries, `import tritonclient.${kind} as triton`, "from tritonclient.utils import np_to_triton_dtype"];
    const plain = libraries.filter((line) => line.startsWith("import "));
    const rest = libraries.filter((line) => line.startsWith("from "));
    return [
      ...this.head(found.imports, "import numpy as np", ...plain, ...rest),
      this.pyRows,
      ...headers,
      ...found.lines,
      "",
      `client = triton.InferenceServerClient(${text(at)}${secure})`,
      "inputs = []",
      "for name, tensor in tensors.items():",
      "    inputs.append(triton.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype)))",
      "    inputs[-1].set_data_from_numpy(tensor)",
      `answer = client.infer(${text(spec.endpoint)}, inputs, model_version=${text(this.version)}${spec.private ? ", headers=headers" : ""})`,
      `for output in answer.${listed}:`,
      `    print(${name}, answer.as_numpy(${name}))`,
    ].join("\n");
  }
}

export function clientCode(spec, version, rows, ports) {
  const writer = new Writer(spec, version, rows, ports);
  const found = [
    { key: "curl", title: "curl", code: writer.curl() },
    { key: "python", title: "Python", code: writer.python() },
    { key: "javascript", title: "JavaScript", code: writer.javascript() },
  ];
  if (ports.length && ports.every((port) => NUMPY[port.datatype])) {
    found.push(
      { key: "triton-http", title: "tritonclient", code: writer.triton("http") },
      { key: "triton-grpc", title: "gRPC", code: writer.triton("grpc") },
    );
  }
  if (spec.takes.encoder) found.push({ key: "embeddings", title: "OpenAI", code: writer.embeddings() });
  return found;
}
