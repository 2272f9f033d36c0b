"""The addresses of the pages; every one exists in both languages."""

from django.urls import path, register_converter

from registry.models import Kind
from registry.web.views import (
    account,
    audit,
    browse,
    comparisons,
    deletion,
    deployments,
    diffs,
    home,
    jobs,
    people,
    playground,
    repositories,
    security,
    sharing,
    sign_in,
    signatures,
    versions,
    webhooks,
)


class KindConverter:
    """`models` and `datasets` in an address, the kind of a repository in a view."""

    regex = "models|datasets"

    def to_python(self, value: str) -> str:
        return Kind.MODEL.value if value == "models" else Kind.DATASET.value

    def to_url(self, value: str) -> str:
        return value if value.endswith("s") else f"{value}s"


register_converter(KindConverter, "kind")

app_name = "web"
_ONE = "<kind:kind>/<str:namespace>/<str:name>"
_VERSION = f"{_ONE}/versions/<int:number>"
urlpatterns = [
    path("", home.home, name="home"),
    path("login", sign_in.sign_in, name="sign-in"),
    path("logout", sign_in.sign_out, name="sign-out"),
    path("login/again/provider", sign_in.again_through_provider, name="again-through-provider"),
    path("settings", security.overview, name="settings"),
    path("settings/sessions/others", security.end_other_sessions, name="end-other-sessions"),
    path("settings/sessions/<int:session_id>/end", security.end_session, name="end-session"),
    path("settings/searches/<kind:kind>", browse.save, name="save-search"),
    path(
        "settings/searches/<kind:kind>/<int:search_id>/forget",
        browse.forget,
        name="forget-search",
    ),
    path("settings/tokens", account.tokens, name="tokens"),
    path("settings/tokens/<int:token_id>/revoke", account.revoke, name="revoke-token"),
    path("users", people.accounts, name="users"),
    path("users/<str:username>", people.account, name="user"),
    path("users/<str:username>/change", people.change, name="change-user"),
    path("users/<str:username>/factors", people.reset_factors, name="reset-factors"),
    path("settings/audit", audit.audit_page, name="audit"),
    path("settings/audit/export", audit.export, name="audit-export"),
    path("settings/webhooks", webhooks.webhook_list, name="webhooks"),
    path("settings/webhooks/<int:webhook_id>", webhooks.webhook_page, name="webhook"),
    path("settings/webhooks/<int:webhook_id>/change", webhooks.change, name="change-webhook"),
    path("settings/webhooks/<int:webhook_id>/switch", webhooks.switch, name="switch-webhook"),
    path("settings/webhooks/<int:webhook_id>/test", webhooks.test, name="test-webhook"),
    path("settings/webhooks/<int:webhook_id>/secret", webhooks.secret, name="webhook-secret"),
    path("settings/webhooks/<int:webhook_id>/delete", webhooks.delete, name="delete-webhook"),
    path(
        "settings/webhooks/<int:webhook_id>/deliveries/<int:delivery_id>/redeliver",
        webhooks.redeliver,
        name="redeliver",
    ),
    path("jobs", jobs.job_list, name="jobs"),
    path("jobs/new", jobs.new_job, name="new-job"),
    path("jobs/<uuid:job_id>", jobs.job_page, name="job"),
    path("jobs/<uuid:job_id>/compare", comparisons.compare, name="compare-job"),
    path("jobs/<uuid:job_id>/cancel", jobs.cancel, name="cancel-job"),
    path("jobs/<uuid:job_id>/resume", jobs.resume, name="resume-job"),
    path("jobs/<uuid:job_id>/reproduce", jobs.reproduce, name="reproduce-job"),
    path("endpoints/new", deployments.new_deployment, name="new-deployment"),
    path("endpoints/<str:namespace>/<str:name>", deployments.endpoint_page, name="endpoint"),
    path(
        "endpoints/<str:namespace>/<str:name>/change",
        deployments.change_endpoint,
        name="change-endpoint",
    ),
    path("namespaces/<str:namespace>/deleted", deletion.deleted, name="deleted"),
    path("namespaces/<str:namespace>/deleted/restore", deletion.restore, name="restore"),
    path("namespaces/new", sharing.new_namespace, name="new-namespace"),
    path("namespaces/<str:namespace>", sharing.namespace_page, name="namespace-page"),
    path("namespaces/<str:namespace>/change", sharing.change_namespace, name="change-namespace"),
    path("requests", sharing.request_list, name="requests"),
    path("requests/<int:number>/decide", sharing.decide_request, name="decide-request"),
    path("<kind:kind>", browse.repositories, name="repositories"),
    path("<kind:kind>/new", repositories.register, name="register"),
    path("<kind:kind>/<str:namespace>", browse.of_namespace, name="namespace"),
    path(_ONE, repositories.repository_page, name="repository"),
    path("models/<str:namespace>/<str:name>/playground", playground.page, name="playground"),
    path("models/<str:namespace>/<str:name>/playground/key", playground.key, name="playground-key"),
    path(f"{_ONE}/settings", repositories.settings_page, name="repository-settings"),
    path(f"{_ONE}/access", sharing.access_page, name="access"),
    path(f"{_ONE}/access/change", sharing.change_access, name="change-access"),
    path(f"{_ONE}/proposals", sharing.proposal_list, name="proposals"),
    path(f"{_ONE}/proposals/new", sharing.propose, name="propose"),
    path(f"{_ONE}/proposals/<int:number>", sharing.proposal_page, name="proposal"),
    path(f"{_ONE}/proposals/<int:number>/decide", sharing.decide_proposal, name="decide-proposal"),
    path(f"{_ONE}/delete", repositories.delete, name="delete-repository"),
    path(f"{_ONE}/tags", repositories.set_tag, name="set-tag"),
    path(f"{_ONE}/tags/delete", repositories.delete_tag, name="delete-tag"),
    path(f"{_ONE}/aliases", repositories.set_alias, name="set-alias"),
    path(f"{_ONE}/aliases/delete", repositories.delete_alias, name="delete-alias"),
    path(f"{_ONE}/compare", diffs.compare_page, name="compare"),
    path(f"{_ONE}/versions/new", versions.new_version, name="new-version"),
    path(_VERSION, versions.version_page, name="version"),
    path(f"{_VERSION}/diff/<int:other>", diffs.diff_page, name="diff"),
    path(f"{_VERSION}/diff/<int:other>/weights", diffs.compare_weights, name="compare-weights"),
    path(f"{_VERSION}/edit", versions.edit, name="edit-version"),
    path(f"{_VERSION}/signatures", signatures.add, name="signatures"),
    path(f"{_VERSION}/signatures/<int:signature_id>", signatures.bundle, name="signature"),
    path(
        f"{_VERSION}/signatures/<int:signature_id>/delete",
        signatures.delete,
        name="delete-signature",
    ),
    path(f"{_VERSION}/exports", versions.request_export, name="request-export"),
    path(f"{_VERSION}/exports/delete", versions.delete_export, name="delete-export"),
    path(f"{_VERSION}/restore-as-new", versions.restore_again, name="restore-as-new"),
    path(f"{_VERSION}/delete", versions.delete, name="delete-version"),
]
