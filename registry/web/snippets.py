"""How to use a version from outside: snippets that run as they stand against this server."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from registry.models import Kind, Repository, Signature, Version, Visibility
from registry.pages import MAX_LIMIT
from registry.signing import plain_pem

_WORDS: Final = re.compile(
    r"(?P<c>(?:(?<=\s)|^)#[^\n]*)|(?P<s>f?\"[^\"\n]*\"|'[^'\n]*')"
    r"|\b(?P<k>import|from|for|in|with|as|def|return)\b",
    re.MULTILINE,
)


_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/-]*")


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """One way to use a version."""

    key: str
    title: str
    code: str

    @property
    def html(self) -> SafeString:
        return highlight(self.code)


def highlight(code: str) -> SafeString:
    """Mark comments, strings and keywords; everything is escaped."""
    parts: list[str] = []
    at = 0
    for found in _WORDS.finditer(code):
        parts.append(escape(code[at : found.start()]))
        parts.append(f'<span class="{found.lastgroup}">{escape(found.group())}</span>')
        at = found.end()
    parts.append(escape(code[at:]))
    return mark_safe("".join(parts))  # noqa: S308 - every piece is escaped above


def snippets(
    address: str,
    repository: Repository,
    version: Version,
    paths: Sequence[str],
    alias: str = "",
    converted: Sequence[str] = (),
) -> list[Snippet]:
    """Write the snippets for one version of a repository; private ones send a token.

    Where the sandbox `converted` files, those are what there is to use.
    """
    reference = f"@{alias}" if alias else str(version.number)
    base = f"{address}/api/v1/{repository.kind}s/{repository.full_name}"
    private = repository.visibility != Visibility.PUBLIC
    part = "derivatives" if converted else "files"
    path = _most_useful(converted or paths)
    place = f"{part}/{path}" if path else ""
    return [
        Snippet(key="curl", title="curl", code=_curl(base, reference, place, private=private)),
        Snippet(
            key="python",
            title="Python",
            code=_python(base, reference, repository.name, part=part, private=private),
        ),
        Snippet(
            key="requests",
            title="requests",
            code=_requests(base, reference, place, private=private),
        ),
    ]


def _most_useful(paths: Sequence[str]) -> str:
    """Choose the file to show; a name that a shell or Python could act upon is never shown."""
    plain = [path for path in paths if _PLAIN_PATH.fullmatch(path)]
    for ending in (".safetensors", ".onnx", ".myz", ".csv", ".jsonl", ".json"):
        for path in plain:
            if path.endswith(ending):
                return path
    return plain[0] if plain else ""


def verification(
    address: str, version: Version, signature: Signature, *, is_present: bool
) -> Snippet:
    """Write how to check a signature with the stock tool: files, bundle and key, then the check."""
    repository = version.repository
    private = repository.visibility != Visibility.PUBLIC
    token = ' -H "Authorization: Bearer $MODELYARD_TOKEN"' if private else ""
    folder = f"{repository.name}-v{version.number}"
    base = f"{address}/api/v1/{repository.kind}s/{repository.full_name}/versions/{version.number}"
    lines = [
        "pip install model-signing pyopenssl",
        f"url={base}",
        f'get() {{ curl -fsS{token} "$@"; }}',
        "",
        "# the files",
        *_fetching(address, version, folder),
        "",
        "# the signature",
        f'get -o {folder}.sig "$url/signatures/{signature.pk}"',
        *_checking(address, signature, folder, is_present=is_present),
    ]
    return Snippet(key=f"check-{signature.pk}", title="", code="\n".join(lines))


def _fetching(address: str, version: Version, folder: str) -> list[str]:
    if version.files_count > MAX_LIMIT:
        dataset = " --dataset" if version.repository.kind == Kind.DATASET else ""
        return [f"modelyard pull {version.ref}{dataset} --to {folder} --url {address}"]
    return [
        f'get "$url/files?limit={MAX_LIMIT}" | python3 -c \'',
        "import json, sys, urllib.parse",
        'for file in json.load(sys.stdin)["items"]:',
        '    print(urllib.parse.quote(file["path"]), file["path"], sep="\\t")\' |',
        "while IFS=\"$(printf '\\t')\" read -r place path; do",
        f'  get --create-dirs -o "{folder}/$path" "$url/files/$place"',
        "done",
    ]


def _checking(address: str, signature: Signature, folder: str, *, is_present: bool) -> list[str]:
    """Write the check itself; what a signer chose is quoted, and a key is written anew."""
    check = f"{folder} --signature {folder}.sig"
    if signature.method == Signature.Method.SIGSTORE:
        who = shlex.quote(signature.identity)
        return [
            f"model_signing verify sigstore {check} \\",
            f'  --identity {who} --identity_provider "$PROVIDER"',
        ]
    if signature.method == Signature.Method.CERTIFICATE:
        return [f"model_signing verify certificate {check} \\", "  --certificate_chain root.pem"]
    key = plain_pem(signature.public_key)
    if signature.own and is_present:
        fetching = ["", "# the key", f"curl -fsS -o signer.pem {address}/api/v1/signing-key"]
    else:
        fetching = ["", "# the key", "cat > signer.pem <<'END'", *key.splitlines(), "END"]
    return [
        *fetching,
        f"model_signing verify key {check} \\",
        "  --public_key signer.pem",
    ]


def _curl(base: str, reference: str, place: str, *, private: bool) -> str:
    token = ' \\\n  -H "Authorization: Bearer $MODELYARD_TOKEN"' if private else ""
    lines = [
        f"url={base}",
        "",
        "# what is known about it",
        f"curl -s $url{token}",
        "",
        "# this version and its files",
        f"curl -s $url/versions/{reference}{token}",
    ]
    if place:
        target = f"$url/versions/{reference}/{place}"
        lines += ["", "# one file", f"curl -sLO \\\n  {target}{token}"]
    return "\n".join(lines)


def _python(base: str, reference: str, name: str, *, part: str, private: bool) -> str:
    token = (
        '\ntoken = os.environ["MODELYARD_TOKEN"]\nheaders = {"Authorization": f"Bearer {token}"}'
        if private
        else ""
    )
    client = "httpx.Client(headers=headers)" if private else "httpx.Client()"
    imports = "import os\nfrom pathlib import Path" if private else "from pathlib import Path"
    imports += "\nfrom urllib.parse import quote"
    listed, rows = ("/derivatives", "items") if part == "derivatives" else ("", "files")
    return f"""{imports}

import httpx

url = "{base}/versions/{reference}"{token}
with {client} as client:
    found = client.get(f"{{url}}{listed}").raise_for_status().json()
    for file in found["{rows}"]:
        target = Path("{name}", file["path"])
        target.parent.mkdir(parents=True, exist_ok=True)
        with client.stream("GET", f"{{url}}/{part}/{{quote(file['path'])}}") as answer:
            answer.raise_for_status()
            with target.open("wb") as out:
                for block in answer.iter_bytes():
                    out.write(block)"""


def _requests(base: str, reference: str, place: str, *, private: bool) -> str:
    head = "import os\n" if private else ""
    head += "from pathlib import Path\n\nimport requests\n"
    token = (
        ', headers={\n    "Authorization": f"Bearer {os.environ[\'MODELYARD_TOKEN\']}"}'
        if private
        else ""
    )
    lines = [
        head,
        f'url = "{base}/versions/{reference}"',
        f"version = requests.get(url, timeout=30{token}).json()",
        'print(version["number"], version["size_bytes"], "bytes")',
    ]
    if place:
        lines += [
            "",
            f'answer = requests.get(url + "/{place}", timeout=600{token})',
            f'Path("{place.rpartition("/")[2]}").write_bytes(answer.content)',
        ]
    return "\n".join(lines)
