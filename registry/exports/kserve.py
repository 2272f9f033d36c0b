"""An InferenceService of KServe, which fetches the model repository of Triton from here."""

import hashlib
import re

import yaml

from registry.exports.package import Package, Source, onnx_files, require_tensors

MEDIA_TYPE = "application/yaml"
_MAX_NAME = 63 - len("-predictor")


def kserve_file(source: Source) -> Package:
    """Describe a version as a resource for `kubectl apply`."""
    # Refuses what its runtime could not load.
    require_tensors(source)
    gib = -(-sum(file.size_bytes for _, file in onnx_files(source)) // (1 << 30))
    cores = str(source.served.threads)
    measured = source.served.device_class
    resource = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": resource_name(source),
            "annotations": {
                "modelyard/version": source.reference,
                **({"modelyard/measured-on": measured} if measured else {}),
            },
        },
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "onnx", "version": "1"},
                    "protocolVersion": "v2",
                    "runtime": "kserve-tritonserver",
                    "storageUri": f"{source.address}/triton.tar",
                    "resources": {
                        # As many as compute a batch, which config.pbtxt says too.
                        # Weights are there twice while they are loaded.
                        "requests": {"cpu": cores, "memory": f"{1 + gib}Gi"},
                        "limits": {"cpu": cores, "memory": f"{2 + 2 * gib}Gi"},
                    },
                }
            }
        },
    }
    written = yaml.safe_dump(resource, sort_keys=False)
    return Package("kserve.yaml", MEDIA_TYPE, (("kserve.yaml", (_ABOVE + written).encode()),))


def resource_name(source: Source) -> str:
    """Make a name as KServe allows them: small letters, digits and hyphens, a letter first.

    It makes a Service of the name with `-predictor` behind it, which has 63 characters at most.
    What gets lost of the version's own name comes back as a digest: applied, two versions of one
    name would take each other's place.
    """
    full = f"{source.namespace}-{source.name}"
    plain = re.sub(r"[^a-z0-9]+", "-", full.lower()).strip("-") or "model"
    if plain[0].isdigit():
        plain = f"m-{plain}"
    ending = f"-v{source.number}"
    if plain != full or "-" in source.namespace or len(plain) + len(ending) > _MAX_NAME:
        ending = f"-{hashlib.sha256(source.reference.encode()).hexdigest()[:6]}{ending}"
    return f"{plain[: _MAX_NAME - len(ending)].rstrip('-')}{ending}"


_ABOVE = """\
# kubectl apply -f kserve.yaml
# The model is fetched from the registry. One that is not public takes a token: keep it in a Secret
# with the keys https-host and headers ({"Authorization": "Bearer my_…"}), as KServe's page on
# storage by URI says, and name the ServiceAccount that holds it in spec.predictor.
"""
