"""Cuts the classes out of the wheels of kserve and kubernetes that an InferenceService is made of.

They are generated, each with the names and types of its attributes as literals, so they are read
without being imported: kserve itself would bring Kubernetes' client, Ray and more.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

FILE = Path(__file__).with_name("classes.json")
CLASSES = (
    "V1beta1InferenceService",
    "V1beta1InferenceServiceSpec",
    "V1beta1PredictorSpec",
    "V1beta1ModelSpec",
    "V1beta1ModelFormat",
    "V1ObjectMeta",
    "V1ResourceRequirements",
)
_REQUIRED = re.compile(r"Invalid value for `(\w+)`, must not be `None`")


def cut(wheels):
    """Map classes to their attributes: the name in YAML, its type, whether it is required."""
    found = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "/models/" in name and name.endswith(".py"):
                    found |= _classes_in(archive.read(name).decode())
    return {name: found[name] for name in CLASSES}


def _classes_in(source):
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            literals = {
                one.targets[0].id: ast.literal_eval(one.value)
                for one in node.body
                if isinstance(one, ast.Assign) and isinstance(one.value, ast.Dict)
            }
            required = set(_REQUIRED.findall(source))
            found[node.name] = {
                literals["attribute_map"][attribute]: {
                    "type": said,
                    "required": attribute in required,
                }
                for attribute, said in sorted(literals["openapi_types"].items())
            }
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(cut(sys.argv[1:]), indent=1) + "\n")
