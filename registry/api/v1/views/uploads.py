"""Uploads that go straight to the bucket: begin, sign parts, complete, ask how it went."""

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, no_content
from registry.models import DirectUpload
from registry.services import direct as services
from registry.services import uploads


class _Direct(Resource):
    """An address below one upload of the caller's own."""

    def upload(self) -> DirectUpload:
        return services.find_direct_upload(self.actor, self.kwargs["direct"])


class DirectUploadList(Resource):
    @operation(
        "begin_direct_upload",
        "Begin an upload whose parts you send straight to the bucket.",
        {201: schemas.DirectUpload},
        body=schemas.NewDirectUpload,
    )
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewDirectUpload)
        begun = services.begin_direct_upload(
            actor=self.actor,
            length=new.length,
            filename=new.filename,
            sha256=new.sha256,
            namespace=new.namespace,
        )
        address = reverse("api:direct-upload", args=[begun.pk])
        return created(wire.direct_upload_body(begun), address)


class DirectUploadOne(_Direct):
    @operation("get_direct_upload", "Say how far an upload is.", {200: schemas.DirectUpload})
    def get(self, request: Request, direct: str) -> Response:
        return Response(wire.direct_upload_body(self.upload()))

    @operation(
        "delete_direct_upload",
        "Give an upload up; what arrived is deleted (a complete one only forgets its id).",
        {204: None},
    )
    def delete(self, request: Request, direct: str) -> HttpResponseBase:
        uploads.cancel_upload(actor=self.actor, upload=self.upload().upload)
        return no_content()


class DirectUploadParts(_Direct):
    @operation(
        "sign_direct_upload_parts",
        "Get the addresses of some parts; each takes one PUT, for fifteen minutes.",
        {200: schemas.SignedParts},
        body=schemas.PartNumbers,
    )
    def post(self, request: Request, direct: str) -> Response:
        asked = self.body(schemas.PartNumbers)
        signed = services.sign_parts(actor=self.actor, direct=self.upload(), numbers=asked.numbers)
        answer = Response({"parts": [part._asdict() for part in signed]})
        answer["Cache-Control"] = "no-store"
        return answer


class DirectUploadComplete(_Direct):
    @operation(
        "complete_direct_upload",
        "Put the parts together; a worker then hashes and inspects the whole.",
        {202: schemas.DirectUpload},
        body=schemas.SentParts,
    )
    def post(self, request: Request, direct: str) -> Response:
        sent = self.body(schemas.SentParts)
        done = services.finish_direct_upload(
            actor=self.actor,
            direct=self.upload(),
            tags=[(part.number, part.etag) for part in sent.parts],
        )
        address = reverse("api:direct-upload", args=[done.pk])
        return created(wire.direct_upload_body(done), address, status=202)
