"""Endpoints and deployments: where models are served, by which versions, in which parts."""

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import Deployment, Endpoint, Kind
from registry.pages import Page, check_limit, newest_first
from registry.services import catalog, deployments, namespaces, replicas


def _body(endpoint: Endpoint) -> wire.Row:
    return wire.endpoint_body(endpoint, deployments.deployments_of(endpoint))


def _answer(endpoint: Endpoint) -> Response:
    return Response(_body(endpoint), headers={"ETag": endpoint.etag})


class EndpointList(Resource):
    @operation(
        "list_endpoints",
        "List where models are served, newest first.",
        {200: schemas.EndpointPage},
        query=schemas.EndpointQuery,
        gives=("Link",),
        public=True,
    )
    def get(self, request: Request) -> Response:
        asked = self.query(schemas.EndpointQuery)
        rows = Endpoint.objects.visible_to(self.actor).with_names()
        if asked.namespace:
            rows = rows.filter(namespace=namespaces.find_namespace(self.actor, asked.namespace))
        if asked.model:
            slug, _, name = asked.model.partition("/")
            rows = rows.filter(
                repository=catalog.find_repository(self.actor, Kind.MODEL, slug, name)
            )
        found, after = newest_first(rows, "endpoints", check_limit(asked.limit), asked.cursor)
        present = deployments.deployments_of_each(found)
        bodies = [wire.endpoint_body(row, present[row.pk]) for row in found]
        return page_response(request, Page(bodies, after))

    @operation(
        "create_endpoint",
        "Make an address for a model; deploying makes one too where there is none.",
        {201: schemas.Endpoint},
        body=schemas.NewEndpoint,
        headers=("Idempotency-Key",),
        gives=("ETag",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewEndpoint)
        slug, _, name = new.model.partition("/")
        repository = catalog.find_repository(self.actor, Kind.MODEL, slug, name)
        endpoint = deployments.create_endpoint(
            actor=self.actor, repository=repository, name=new.name, sticky=new.sticky
        )
        address = reverse("api:endpoint", args=[endpoint.namespace.slug, endpoint.name])
        response = created(_body(endpoint), address)
        response["ETag"] = endpoint.etag
        return response


class EndpointResource(Resource):
    """An address below one endpoint."""

    def endpoint(self) -> Endpoint:
        return deployments.find_endpoint(self.actor, self.kwargs["namespace"], self.kwargs["name"])

    def deployment(self) -> Deployment:
        return deployments.find_deployment(self.endpoint(), self.kwargs["deployment"])


class EndpointOne(EndpointResource):
    @operation(
        "get_endpoint",
        "Get an endpoint with what is deployed there.",
        {200: schemas.Endpoint},
        gives=("ETag",),
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        return _answer(self.endpoint())

    @operation(
        "change_endpoint",
        "Say whether callers keep to the deployment that answered them first.",
        {200: schemas.Endpoint},
        body=schemas.EndpointChanges,
        headers=("If-Match",),
        gives=("ETag",),
    )
    def patch(self, request: Request, **_: str) -> Response:
        wanted = self.body(schemas.EndpointChanges)
        return _answer(
            deployments.describe_endpoint(
                actor=self.actor,
                endpoint=self.endpoint(),
                sticky=wanted.sticky,
                expected_etag=self.if_match(),
            )
        )

    @operation(
        "delete_endpoint",
        "Delete an endpoint and what is deployed there.",
        {204: None},
        headers=("If-Match",),
    )
    def delete(self, request: Request, **_: str) -> HttpResponseBase:
        deployments.delete_endpoint(
            actor=self.actor, endpoint=self.endpoint(), expected_etag=self.if_match()
        )
        return no_content()


class EndpointTraffic(EndpointResource):
    @operation(
        "split_traffic",
        "Say how many percent of the requests each deployment answers.",
        {200: schemas.Endpoint},
        body=schemas.Traffic,
        headers=("If-Match",),
        gives=("ETag",),
    )
    def put(self, request: Request, **_: str) -> Response:
        wanted = self.body(schemas.Traffic)
        return _answer(
            deployments.split_traffic(
                actor=self.actor,
                endpoint=self.endpoint(),
                weights={int(number): weight for number, weight in wanted.weights.items()},
                reason=wanted.reason,
                expected_etag=self.if_match(),
            )
        )


class EndpointRollBack(EndpointResource):
    @operation(
        "roll_back_endpoint",
        "Split the traffic as it was before it last changed.",
        {200: schemas.Endpoint},
        body=schemas.RollBack,
        gives=("ETag",),
    )
    def post(self, request: Request, **_: str) -> Response:
        reason = self.body(schemas.RollBack).reason
        return _answer(
            deployments.roll_back(actor=self.actor, endpoint=self.endpoint(), reason=reason)
        )


class EndpointStanding(EndpointResource):
    @operation(
        "get_endpoint_standing",
        "See how each deployment is at each serving process.",
        {200: schemas.Standing},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        said = replicas.standing_of(self.endpoint())
        return Response({"replicas": [wire.replica_body(one) for one in said]})


class DeploymentList(Resource):
    @operation(
        "deploy",
        "Let a version serve at an endpoint of its model.",
        {201: schemas.Deployment},
        body=schemas.NewDeployment,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewDeployment)
        made = deployments.deploy(
            actor=self.actor, **{name: getattr(new, name) for name in type(new).model_fields}
        )
        endpoint = made.endpoint
        address = reverse("api:deployment", args=[endpoint.namespace.slug, endpoint.name, made.pk])
        return created(wire.deployment_body(made), address)


class DeploymentOne(EndpointResource):
    @operation("get_deployment", "Get one deployment.", {200: schemas.Deployment}, public=True)
    def get(self, request: Request, **_: str) -> Response:
        return Response(wire.deployment_body(self.deployment()))

    @operation(
        "change_deployment",
        "Serve a deployment with other options.",
        {200: schemas.Deployment},
        body=schemas.DeploymentChanges,
    )
    def patch(self, request: Request, **_: str) -> Response:
        changed = deployments.change_deployment(
            actor=self.actor,
            deployment=self.deployment(),
            options=self.body(schemas.DeploymentChanges).options,
        )
        return Response(wire.deployment_body(changed))

    @operation("undeploy", "Take a deployment down.", {204: None})
    def delete(self, request: Request, **_: str) -> HttpResponseBase:
        deployments.undeploy(actor=self.actor, deployment=self.deployment())
        return no_content()


class DeploymentPromote(EndpointResource):
    @operation(
        "promote_deployment",
        "Let a deployment answer all requests; the others stay, for a roll-back.",
        {200: schemas.Endpoint},
        body=schemas.Promotion,
        gives=("ETag",),
    )
    def post(self, request: Request, **_: str) -> Response:
        reason = self.body(schemas.Promotion).reason
        return _answer(
            deployments.promote(actor=self.actor, deployment=self.deployment(), reason=reason)
        )
