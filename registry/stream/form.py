"""Reads a multipart form whose parts are files of any size, straight into the storage."""

from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from registry.errors import Denied, FieldError, Invalid, TooLarge
from registry.formats import check_path, inspect
from registry.storage import Sink, Storage, Stored

MAX_PARTS = 10_000
MAX_TEXT_BYTES = 1024 * 1024
# A part of this name takes its path from the file's own name: `curl -F file=@config.json`.
NAMELESS = frozenset({"file", "files", "file[]", "files[]"})


class VersionForm:
    """The parts of a form as they arrive: files go to the storage, short texts are kept.

    Its calls come one by one, from whichever thread.
    """

    def __init__(self, content_type: str, storage: Storage, *, fields: frozenset[str]) -> None:
        self.files: dict[str, Stored] = {}
        self.texts: dict[str, str] = {}
        self._storage = storage
        self._known_fields = fields
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._sink: Sink | None = None
        self._text: bytearray | None = None
        self._text_bytes = 0
        self._parts = 0
        self._ended = False
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_field,
                "on_header_value": self._header_text,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, block: list[bytes]) -> None:
        try:
            for chunk in block:
                self._parser.write(chunk)
        except FormParserError as error:
            raise Invalid("The form is malformed: {problem}.", problem=str(error)[:200]) from None

    def finish(self) -> None:
        """Require that the last part was closed: a form that breaks off registers nothing."""
        if not self._ended:
            raise Invalid("The form ends before its closing boundary.", code="truncated_body")

    def close(self) -> None:
        if self._sink is not None:
            self._storage.drop_sink(self._sink)
            self._sink = None

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge("The form has more than {limit} parts.", limit=MAX_PARTS)
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_text(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _begin_content(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise Invalid("A part of the form has no Content-Disposition with a name.")
        if b"content-transfer-encoding" in self._headers:
            raise Invalid(
                "Content-Transfer-Encoding is not understood; send the bytes as they are."
            )
        name, filename = _text(options[b"name"]), options.get(b"filename")
        if filename is None:
            self._begin_text(name)
        else:
            self._begin_file(name, _text(filename))

    def _begin_file(self, name: str, filename: str) -> None:
        path = check_path(filename if name in NAMELESS else name)
        if path in self.files:
            raise _wrong(path, "repeated", "The form has the file {path!r} twice.", path=path)
        self._name = path
        self._sink = self._storage.open_sink()

    def _begin_text(self, name: str) -> None:
        if name not in self._known_fields:
            known = ", ".join(sorted(self._known_fields))
            raise _wrong(
                name,
                "unknown_field",
                "There is no field {name!r}; there are {known}. A file needs a filename.",
                name=name[:80],
                known=known,
            )
        if name in self.texts:
            raise _wrong(name, "repeated", "The form has the field {name!r} twice.", name=name)
        self._name = name
        self._text = bytearray()

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(memoryview(data)[start:end])
            if self._sink.offset > settings.MAX_UPLOAD_BYTES:
                raise TooLarge(
                    "The file {name!r} is larger than {limit} bytes.",
                    name=self._name,
                    limit=settings.MAX_UPLOAD_BYTES,
                )
        elif self._text is not None:
            self._text_bytes += end - start
            if self._text_bytes > MAX_TEXT_BYTES:
                raise TooLarge(
                    "The texts of the form have more than {limit} bytes.", limit=MAX_TEXT_BYTES
                )
            self._text += data[start:end]

    def _end_part(self) -> None:
        if self._sink is not None:
            self._inspect(self._sink)
            self.files[self._name] = self._storage.keep_sink(self._sink)
            self.close()
        elif self._text is not None:
            self._keep_text(self._name, _text(bytes(self._text)))
            self._text = None

    def _inspect(self, sink: Sink) -> None:
        """Refuse a malformed file before it is kept: nothing of it stays."""
        inspect(self._name, sink.offset, sink.read)

    def _keep_text(self, name: str, text: str) -> None:
        self.texts[name] = text

    def _end(self) -> None:
        self._ended = True


class PageForm(VersionForm):
    """The form of a page as a browser without scripts sends it.

    Nothing is stored before the token, which comes first, has shown that a page of ours asks.
    """

    TOKEN = "csrfmiddlewaretoken"  # noqa: S105 - the name of a field
    # An upload that is finished already, and its path, stand side by side as often as needed.
    PAIRED = ("upload", "path")

    def __init__(
        self,
        content_type: str,
        storage: Storage,
        *,
        fields: frozenset[str],
        is_ours: Callable[[str], bool],
    ) -> None:
        super().__init__(content_type, storage, fields=fields | {self.TOKEN, *self.PAIRED})
        self.trusted = False
        self.pairs: dict[str, list[str]] = {name: [] for name in self.PAIRED}
        self._is_ours = is_ours

    def _begin_file(self, name: str, filename: str) -> None:
        if not self.trusted:
            self.trusted = self._is_ours(self.texts.get(self.TOKEN, ""))
            if not self.trusted:
                raise Denied("The form does not come from a page of this site.", code="csrf_failed")
        # An input where nothing was chosen is sent as a file without a name.
        if filename:
            super()._begin_file(name, filename)

    def _inspect(self, sink: Sink) -> None:
        """Take any file: the page that says what is wrong with it still has all that arrived."""

    def _keep_text(self, name: str, text: str) -> None:
        if name in self.pairs:
            self.pairs[name].append(text)
        else:
            super()._keep_text(name, text)


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Invalid("multipart/form-data needs a boundary of 1 to 70 characters.")
    return boundary


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("A name or a text in the form is not UTF-8.") from None


def _wrong(field: str, code: str, template: str, /, **values: Any) -> Invalid:
    problem = FieldError(field[:200], code, template, **values)
    return Invalid(template, code=code, errors=[problem], **values)


def described(form: VersionForm) -> Mapping[str, Any]:
    """Say what a form held, for the digest of an Idempotency-Key."""
    return {
        "files": {path: stored.sha256 for path, stored in sorted(form.files.items())},
        "texts": dict(sorted(form.texts.items())),
    }
