"""Who did what, when, from where, through which door; append-only."""

from enum import StrEnum
from typing import Self

from django.db import models
from django.utils import timezone

from registry.models.access import Actor, Namespace, Role, User


class AuditAction(StrEnum):
    """What the audit log can say that somebody did: a family, a dot, and a verb."""

    ACCESS_REQUEST = "access.request"
    ACCESS_WITHDRAW = "access.withdraw"
    ACCESS_APPROVE = "access.approve"
    ACCESS_DECLINE = "access.decline"
    ACCESS_IGNORE = "access.ignore"
    ALIAS_SET = "alias.set"
    ALIAS_DELETE = "alias.delete"
    ALIAS_PROTECT = "alias.protect"
    ALIAS_PROPOSE = "alias.propose"
    ALIAS_APPROVE = "alias.approve"
    ALIAS_DECLINE = "alias.decline"
    ALIAS_WITHDRAW = "alias.withdraw"
    CANARY_WIDEN = "canary.widen"
    CANARY_ROLL_BACK = "canary.roll_back"
    DATASET_REGISTER = "dataset.register"
    DATASET_DESCRIBE = "dataset.describe"
    DATASET_DELETE = "dataset.delete"
    DATASET_RESTORE = "dataset.restore"
    DATASET_PURGE = "dataset.purge"
    DATASET_TRANSFER = "dataset.transfer"
    DEPLOYMENT_CREATE = "deployment.create"
    DEPLOYMENT_CHANGE = "deployment.change"
    DEPLOYMENT_PROMOTE = "deployment.promote"
    DEPLOYMENT_DELETE = "deployment.delete"
    ENDPOINT_CREATE = "endpoint.create"
    ENDPOINT_DESCRIBE = "endpoint.describe"
    ENDPOINT_SPLIT = "endpoint.split"
    ENDPOINT_ROLL_BACK = "endpoint.roll_back"
    ENDPOINT_DELETE = "endpoint.delete"
    EXPORT_DELETE = "export.delete"
    FACTOR_ADD = "factor.add"
    FACTOR_REMOVE = "factor.remove"
    FACTOR_CODES = "factor.codes"
    GRANT_SET = "grant.set"
    GRANT_REMOVE = "grant.remove"
    IDENTITY_LINK = "identity.link"
    IDENTITY_UNLINK = "identity.unlink"
    JOB_SUBMIT = "job.submit"
    JOB_CANCEL = "job.cancel"
    JOB_RESUME = "job.resume"
    JOB_SUCCEED = "job.succeed"
    JOB_FAIL = "job.fail"
    MEMBER_SET = "member.set"
    MEMBER_REMOVE = "member.remove"
    MODEL_REGISTER = "model.register"
    MODEL_DESCRIBE = "model.describe"
    MODEL_DELETE = "model.delete"
    MODEL_RESTORE = "model.restore"
    MODEL_PURGE = "model.purge"
    MODEL_TRANSFER = "model.transfer"
    NAMESPACE_CREATE = "namespace.create"
    NAMESPACE_DESCRIBE = "namespace.describe"
    NAMESPACE_DELETE = "namespace.delete"
    NAMESPACE_QUOTA = "namespace.quota"
    NAMESPACE_STORAGE = "namespace.storage"
    PASSKEY_ADD = "passkey.add"
    PASSKEY_REMOVE = "passkey.remove"
    PASSWORD_CHANGE = "password.change"
    SESSION_OPEN = "session.open"
    SESSION_CLOSE = "session.close"
    SESSION_REFUSE = "session.refuse"
    SESSION_REVOKE = "session.revoke"
    SIGNATURE_ADD = "signature.add"
    SIGNATURE_DELETE = "signature.delete"
    TAG_SET = "tag.set"
    TAG_DELETE = "tag.delete"
    TOKEN_CREATE = "token.create"
    TOKEN_REVOKE = "token.revoke"
    UPLOAD_COMPLETE = "upload.complete"
    UPLOAD_CANCEL = "upload.cancel"
    UPLOAD_EXPIRE = "upload.expire"
    UPLOAD_REFUSE = "upload.refuse"
    USER_CREATE = "user.create"
    USER_SIGN_UP = "user.sign_up"
    USER_ACTIVATE = "user.activate"
    USER_DEACTIVATE = "user.deactivate"
    USER_ADMINISTRATOR = "user.administrator"
    USER_PASSWORD = "user.password"
    USER_FACTORS = "user.factors"
    VERSION_CREATE = "version.create"
    VERSION_DESCRIBE = "version.describe"
    VERSION_DELETE = "version.delete"
    VERSION_RESTORE = "version.restore"
    VERSION_PURGE = "version.purge"
    VERSION_EVALUATE = "version.evaluate"
    VERSION_SCREEN = "version.screen"
    VERSION_REINSPECT = "version.reinspect"
    WEBHOOK_CREATE = "webhook.create"
    WEBHOOK_CHANGE = "webhook.change"
    WEBHOOK_SECRET = "webhook.secret"
    WEBHOOK_DELETE = "webhook.delete"
    WEBHOOK_STOP = "webhook.stop"

    @property
    def family(self) -> str:
        """What it happened to: the part before the dot."""
        return self.value.partition(".")[0]

    @classmethod
    def of_kind(cls, kind: str, verb: str) -> "AuditAction":
        """Give the action on a model or a dataset."""
        return cls(f"{kind}.{verb}")


class EventQuerySet(models.QuerySet["Event"]):
    def audited_by(self, actor: Actor) -> Self:
        """Keep the events of namespaces that the actor maintains; administrators see all."""
        if actor.is_admin and not actor.is_limited:
            return self
        held = actor.namespaces_as(Role.MAINTAINER)
        if actor.limited_repository_id is not None:
            return self.filter(namespace__in=held, repository_id=actor.limited_repository_id)
        if actor.limited_namespace_id is not None:
            held = [space for space in held if space == actor.limited_namespace_id]
        return self.filter(namespace__in=held)


class Event(models.Model):
    """One line of the audit log, written in the transaction of what it tells.

    The database refuses to change or delete one (migration `event_append_only`).
    """

    at = models.DateTimeField(default=timezone.now)
    action = models.CharField(max_length=64)
    user = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # Names are kept as text too: the log outlives what it speaks of.
    actor = models.CharField(max_length=150, blank=True)
    token_id = models.BigIntegerField(null=True, blank=True)
    door = models.CharField(max_length=16, blank=True)
    ip = models.GenericIPAddressField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    namespace = models.ForeignKey(
        Namespace, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    repository_id = models.BigIntegerField(null=True, blank=True)
    target = models.CharField(max_length=300, blank=True)
    data = models.JSONField(default=dict, blank=True)

    objects = EventQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["-at", "-id"], name="event_recent"),
            models.Index(fields=["repository_id", "-at"], name="event_of_repository"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"
