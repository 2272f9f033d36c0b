"""The addresses of the native API; models and datasets share theirs but for the first word."""

from collections.abc import Iterator

from django.urls import URLPattern, path

from registry.api.v1.views import (
    deployments,
    document,
    evidence,
    jobs,
    people,
    proposals,
    repositories,
    searches,
    sharing,
    uploads,
    users,
    versions,
    webhooks,
)


def _repository_paths(kind: str) -> Iterator[URLPattern]:
    one = f"{kind}s/<str:namespace>/<str:name>"
    version = f"{one}/versions/<str:version>"
    addresses = {
        f"{kind}s": (f"{kind}s", repositories.RepositoryList),
        one: (kind, repositories.RepositoryOne),
        f"{one}/tags/<str:key>": (f"{kind}-tag", repositories.RepositoryTag),
        f"{one}/aliases": (f"{kind}-aliases", repositories.AliasList),
        f"{one}/aliases/<str:alias>": (f"{kind}-alias", repositories.AliasOne),
        f"{one}/access": (f"{kind}-access", sharing.AccessList),
        f"{one}/grants": (f"{kind}-grants", sharing.GrantList),
        f"{one}/grants/<str:username>": (f"{kind}-grant", sharing.GrantOne),
        f"{one}/transfer": (f"{kind}-transfer", sharing.Transfer),
        f"{one}/protection": (f"{kind}-protection", proposals.Protection),
        f"{one}/proposals": (f"{kind}-proposals", proposals.ProposalList),
        f"{one}/proposals/<int:number>": (f"{kind}-proposal", proposals.ProposalOne),
        f"{one}/proposals/<int:number>/approve": (
            f"{kind}-proposal-approve",
            proposals.ProposalApprove,
        ),
        f"{one}/proposals/<int:number>/decline": (
            f"{kind}-proposal-decline",
            proposals.ProposalDecline,
        ),
        f"{one}/proposals/<int:number>/withdraw": (
            f"{kind}-proposal-withdraw",
            proposals.ProposalWithdraw,
        ),
        f"{one}/lineage": (f"{kind}-lineage", versions.LineageOne),
        f"{one}/compare": (f"{kind}-compare", versions.SideBySide),
        f"{one}/similar": (f"{kind}-similar", repositories.SimilarList),
        f"{one}/restore": (f"{kind}-restore", repositories.RepositoryRestore),
        f"{one}/versions": (f"{kind}-versions", versions.VersionList),
        version: (f"{kind}-version", versions.VersionOne),
        f"{version}/files": (f"{kind}-files", versions.FileList),
        f"{version}/derivatives": (f"{kind}-derivatives", versions.DerivativeList),
        f"{version}/storage": (f"{kind}-version-storage", versions.VersionStorage),
        f"{version}/tags/<str:key>": (f"{kind}-version-tag", versions.VersionTag),
        f"{version}/lineage": (f"{kind}-version-lineage", versions.VersionLineage),
        f"{version}/lineage/graph": (f"{kind}-lineage-graph", versions.LineageGraph),
        f"{version}/restore": (f"{kind}-version-restore", versions.VersionRestore),
        f"{version}/restore-as-new": (f"{kind}-version-again", versions.VersionAgain),
        f"{version}/diff/<str:other>": (f"{kind}-diff", versions.VersionDiff),
        f"{version}/diff/<str:other>/weights": (f"{kind}-weights-diff", versions.WeightsDiff),
        f"{version}/evaluations": (f"{kind}-evaluations", evidence.EvaluationList),
        f"{version}/signatures": (f"{kind}-signatures", evidence.SignatureList),
        f"{version}/signatures/<int:signature>": (f"{kind}-signature", evidence.SignatureOne),
    }
    for address, (name, view) in addresses.items():
        yield path(address, view.as_view(kind=kind), name=name)


urlpatterns = [
    *_repository_paths("model"),
    *_repository_paths("dataset"),
    path(
        "models/<str:namespace>/<str:name>/versions/<str:version>/tunings",
        evidence.TuningList.as_view(kind="model"),
        name="model-tunings",
    ),
    path(
        "models/<str:namespace>/<str:name>/versions/<str:version>/exports",
        versions.ExportList.as_view(kind="model"),
        name="model-exports",
    ),
    path(
        "models/<str:namespace>/<str:name>/versions/<str:version>/exports/<str:file>",
        versions.ExportOne.as_view(kind="model"),
        name="model-export",
    ),
    path("jobs", jobs.JobList.as_view(), name="jobs"),
    path("jobs/estimate", jobs.JobEstimate.as_view(), name="job-estimate"),
    path("jobs/<str:job>", jobs.JobOne.as_view(), name="job"),
    path("jobs/<str:job>/log", jobs.JobLog.as_view(), name="job-log"),
    path("jobs/<str:job>/cancel", jobs.JobCancel.as_view(), name="job-cancel"),
    path("jobs/<str:job>/resume", jobs.JobResume.as_view(), name="job-resume"),
    path("jobs/<str:job>/reproduce", jobs.JobReproduce.as_view(), name="job-reproduce"),
    path("recipes", jobs.RecipeList.as_view(), name="recipes"),
    path("recipes/<str:kind>", jobs.RecipeOne.as_view(), name="recipe"),
    path("workers", jobs.WorkerList.as_view(), name="workers"),
    path("whoami", people.Whoami.as_view(), name="whoami"),
    path("searches", searches.SearchList.as_view(), name="searches"),
    path("searches/<int:search>", searches.SearchOne.as_view(), name="search"),
    path("tokens", people.TokenList.as_view(), name="tokens"),
    path("tokens/<int:token>", people.TokenOne.as_view(), name="token"),
    path("namespaces", people.NamespaceList.as_view(), name="namespaces"),
    path("namespaces/<str:namespace>", people.NamespaceOne.as_view(), name="namespace"),
    path("namespaces/<str:namespace>/deleted", people.DeletedList.as_view(), name="deleted"),
    path("namespaces/<str:namespace>/quota", people.NamespaceQuota.as_view(), name="quota"),
    path("namespaces/<str:namespace>/storage", people.NamespaceStorage.as_view(), name="storage"),
    path("namespaces/<str:namespace>/members", people.MemberList.as_view(), name="members"),
    path(
        "namespaces/<str:namespace>/members/<str:username>",
        people.MemberOne.as_view(),
        name="member",
    ),
    path("uploads/direct", uploads.DirectUploadList.as_view(), name="direct-uploads"),
    path("uploads/direct/<str:direct>", uploads.DirectUploadOne.as_view(), name="direct-upload"),
    path(
        "uploads/direct/<str:direct>/parts",
        uploads.DirectUploadParts.as_view(),
        name="direct-upload-parts",
    ),
    path(
        "uploads/direct/<str:direct>/complete",
        uploads.DirectUploadComplete.as_view(),
        name="direct-upload-complete",
    ),
    path("webhooks", webhooks.WebhookList.as_view(), name="webhooks"),
    path("webhooks/<int:webhook>", webhooks.WebhookOne.as_view(), name="webhook"),
    path("webhooks/<int:webhook>/secret", webhooks.WebhookSecret.as_view(), name="webhook-secret"),
    path("webhooks/<int:webhook>/test", webhooks.WebhookTest.as_view(), name="webhook-test"),
    path(
        "webhooks/<int:webhook>/deliveries",
        webhooks.DeliveryList.as_view(),
        name="webhook-deliveries",
    ),
    path(
        "webhooks/<int:webhook>/deliveries/<int:delivery>/redeliver",
        webhooks.DeliveryAgain.as_view(),
        name="webhook-redeliver",
    ),
    path("endpoints", deployments.EndpointList.as_view(), name="endpoints"),
    path(
        "endpoints/<str:namespace>/<str:name>", deployments.EndpointOne.as_view(), name="endpoint"
    ),
    path(
        "endpoints/<str:namespace>/<str:name>/traffic",
        deployments.EndpointTraffic.as_view(),
        name="endpoint-traffic",
    ),
    path(
        "endpoints/<str:namespace>/<str:name>/roll-back",
        deployments.EndpointRollBack.as_view(),
        name="endpoint-roll-back",
    ),
    path(
        "endpoints/<str:namespace>/<str:name>/standing",
        deployments.EndpointStanding.as_view(),
        name="endpoint-standing",
    ),
    path(
        "endpoints/<str:namespace>/<str:name>/deployments/<int:deployment>",
        deployments.DeploymentOne.as_view(),
        name="deployment",
    ),
    path(
        "endpoints/<str:namespace>/<str:name>/deployments/<int:deployment>/promote",
        deployments.DeploymentPromote.as_view(),
        name="deployment-promote",
    ),
    path("deployments", deployments.DeploymentList.as_view(), name="deployments"),
    path("signing-key", evidence.SigningKey.as_view(), name="signing-key"),
    path("users", users.UserList.as_view(), name="users"),
    path("users/<str:username>", users.UserOne.as_view(), name="user"),
    path("users/<str:username>/password", users.UserPassword.as_view(), name="user-password"),
    path("users/<str:username>/factors", users.UserFactors.as_view(), name="user-factors"),
    path("events/export", people.EventExport.as_view(), name="events-export"),
    path("requests", sharing.RequestList.as_view(), name="requests"),
    path("requests/<int:number>", sharing.RequestOne.as_view(), name="request"),
    path("requests/<int:number>/approve", sharing.RequestApprove.as_view(), name="request-approve"),
    path("requests/<int:number>/decline", sharing.RequestDecline.as_view(), name="request-decline"),
    path("requests/<int:number>/ignore", sharing.RequestIgnore.as_view(), name="request-ignore"),
    path(
        "requests/<int:number>/withdraw",
        sharing.RequestWithdraw.as_view(),
        name="request-withdraw",
    ),
    path("events", people.EventList.as_view(), name="events"),
    path("openapi.json", document.OpenAPI.as_view(), name="openapi"),
]
