"""Configurations, tokenizers and cards as people have them."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, GenerationConfig, GPT2Config, LlamaConfig, ViTConfig

from tests.attacks.corpus import good


def configuration(path, value, *, called, **facts):
    @good("json", path, called=called, **facts)
    def make():
        return value if isinstance(value, bytes) else json.dumps(value).encode()


configuration("config.json", BertConfig().to_dict(), called="BERT")
configuration("config.json", GPT2Config().to_dict(), called="GPT-2")
configuration("config.json", LlamaConfig().to_dict(), called="Llama")
configuration("config.json", ViTConfig().to_dict(), called="a vision transformer")
configuration("generation_config.json", GenerationConfig().to_dict(), called="generation")
configuration("config.json", {}, called="nothing", metadata={})
configuration("merges.json", [["a", "b"], ["c", "d"]], called="a list")
configuration("value.json", 7, called="a number")
configuration(
    "config.json",
    {"名字": "模型", "emoji": "🧠"},
    called="other scripts",
    metadata={"keys": ["emoji", "名字"]},
)
configuration("config.json", b'\xef\xbb\xbf{"a": 1}', called="a byte order mark")
configuration(
    "config.json", b'{"a": "\\ud83e\\udde0", "b": "\\u00e9"}', called="whole pairs of surrogates"
)
configuration("config.json", {"eps": 1e-12, "big": 1.7e308, "small": -5e-324}, called="odd numbers")
configuration("config.json", b"[" * 60 + b"]" * 60, called="sixty levels")
configuration("config.json", b'{\r\n\t"a"  :\t1\r\n}\r\n\r\n', called="much space")
configuration("vocab.json", {f"token{n}": n for n in range(50_000)}, called="a vocabulary")
configuration(
    "tokenizer.json",
    {"vocab": {f"词{n}": n for n in range(300_000)}},
    called="five megabytes",
    finds="Too large",
)
configuration(
    "model.safetensors.index.json",
    {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors"}},
    called="an index of shards",
)
configuration(
    "preprocessor_config.json", {"size": {"height": 224}, "do_resize": True}, called="pictures"
)
configuration(
    "special_tokens_map.json",
    {"cls_token": "[CLS]", "mask": {"content": "[MASK]"}},
    called="special tokens",
)
configuration(
    "tokenizer_config.json", {"auto": True, "trust": "nobody"}, called="words that only look alike"
)


@good("json", "tokenizer.json")
def a_tokenizer():
    one = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    return one.to_str(pretty=True).encode()


# --- Cards ---------------------------------------------------------------------------------------


def card(called, head, body="A model.\n", **said):
    @good("card", "README.md", called=called, said=said)
    def make():
        return f"---\n{head}\n---\n{body}".encode()


def words(called, text, **said):
    @good("card", "README.md", called=called, said=said)
    def make():
        return text.encode() if isinstance(text, str) else text


card("a licence", "license: mit", license="mit")
card(
    "all fields",
    "license: apache-2.0\npipeline_tag: text-classification\nlibrary_name: pytorch",
    license="apache-2.0",
    task="text-classification",
    library="pytorch",
)
card("quotes", "license: 'mit'\npipeline_tag: \"fill-mask\"", license="mit", task="fill-mask")
card("comments", "# Ours\nlicense: mit # for now", license="mit")
card("lists on lines", "license: mit\ntags:\n- a\n- b\nlanguage:\n  - en\n  - zh", license="mit")
card("lists in brackets", "license: mit\ntags: [a, 2024, true]", license="mit")
card(
    "a block of text",
    "license: mit\nsummary: >\n  Some words\n  on two lines.",
    summary="Some words on two lines.",
)
card("a parent", "base_model: org/parent", base_model="org/parent")
card("several parents", "base_model:\n- org/one\n- org/two", base_model="org/one")
card(
    "results",
    "license: mit\nmodel-index:\n- name: x\n  results:\n  - task: {type: a}\n"
    "    metrics:\n    - {type: acc, value: 0.9}",
    license="mit",
)
card(
    "widgets",
    'license: mit\nwidget:\n- text: "Hello: {name}"\n  output: {url: a.png}',
    license="mit",
)
card(
    "another script",
    "license: mit\ntags: [中文, 模型]",
    "这是一个模型。\n",
    summary="这是一个模型。",
)
card("lines of Windows", "license: mit\r\npipeline_tag: x\r", license="mit")
card("an empty head", "", summary="A model.")
words("no head", "# A title\n\nJust words.\n", summary="Just words.")
words("a byte order mark", "\ufeff---\nlicense: mit\n---\n# A\n", license="mit")
words("nothing", b"")
words(
    "a table and code",
    "# A\n\nReal words.\n\n|a|b|\n|-|-|\n|1|2|\n\n```python\nimport os\n```\n",
    summary="Real words.",
)
words("a formula and HTML", "# A\n\nWords with <b>HTML</b> and $x^2$.\n\n<details>more</details>\n")
words("half a megabyte", "# A\n\n" + "Words. " * 70_000)
