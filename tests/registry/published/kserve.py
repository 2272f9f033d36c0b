"""Holds a resource against the classes of KServe and Kubernetes that it is read into."""

import json
import re
from pathlib import Path

CLASSES = json.loads(Path(__file__).with_name("classes.json").read_text())
_PLAIN = {"str": str, "bool": bool, "int": int, "float": float}


def problems(value, kind="V1beta1InferenceService", at=""):
    """Give what does not fit: an attribute that the class lacks, one that it needs, a type."""
    if kind in _PLAIN:
        # A bool is an int to Python, and nothing but a bool here.
        right = isinstance(value, _PLAIN[kind]) and isinstance(value, bool) == (kind == "bool")
        return [] if right else [f"{at}: {value!r} is no {kind}"]
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        inner = [(f"[{number}]", one) for number, one in enumerate(value)]
    elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        inner = [(f".{name}", one) for name, one in value.items()]
    else:
        return _problems_of_class(value, kind, at)
    return [said for name, one in inner for said in problems(one, match[1], f"{at}{name}")]


def _problems_of_class(value, kind, at):
    known = CLASSES[kind]
    found = [f"{at}.{name}: not in {kind}" for name in value.keys() - known.keys()]
    found += [
        f"{at}.{name}: required" for name, one in known.items() if one["required"] > (name in value)
    ]
    for name in value.keys() & known.keys():
        found += problems(value[name], known[name]["type"], f"{at}.{name}")
    return found
