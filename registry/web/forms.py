"""The forms that people fill in; what a value may be is decided by the services."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from registry import signing
from registry.errors import Invalid, RegistryError
from registry.models import Namespace, Repository, Version, VersionState, Visibility
from registry.services import lifecycle, quotas
from registry.serving_options import ServingOptions
from registry.web import wording
from registry.web.refusals import words_of
from registry.web.tunings import RUNTIMES
from registry.web.wording import LIBRARIES, LICENSES, TASKS, VISIBILITIES, WEBHOOK_EVENTS

_GIGABYTE = 10**9
_VISIBILITY_HINTS = {
    Visibility.PUBLIC: _("Everybody finds it, signed in or not."),
    Visibility.INTERNAL: _("Everybody who signed in finds it."),
    Visibility.PRIVATE: _("Only members of the namespace find it."),
}


def _option(name: str, label: Any, help_text: Any = "") -> forms.IntegerField:
    """Make the field of a number that serving is told."""
    field = ServingOptions.model_fields[name]
    bounds = {type(one).__name__: one for one in field.metadata}
    return forms.IntegerField(
        label=label,
        min_value=bounds["Ge"].ge,
        max_value=bounds["Le"].le,
        initial=field.default,
        required=field.default is not None,
        help_text=help_text,
    )


def show_refusal(form: forms.BaseForm, error: RegistryError) -> None:
    """Put a service's refusal beside the fields it names, else above the form."""
    for item in error.errors:
        name = item.field if item.field in form.fields else None
        form.add_error(name, words_of(item))
    if not error.errors:
        form.add_error(None, words_of(error))


def _carry_what_was_shown(form: forms.Form) -> None:
    """Send what each field showed along with it: what somebody else changes meanwhile stays."""
    for field in form.fields.values():
        field.show_hidden_initial = True


def _changes(form: forms.Form, present: Mapping[str, Any]) -> dict[str, Any]:
    given = {field: form.cleaned_data[field] for field in form.changed_data}
    return {field: value for field, value in given.items() if value != present[field]}


class _FactsForm(forms.Form):
    """What is said about a repository."""

    summary = forms.CharField(
        label=_("Summary"),
        required=False,
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text=_("One or two sentences: what it does, on what, how well."),
    )
    task = forms.CharField(
        label=_("Task"),
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"list": "tasks", "autocomplete": "off"}),
    )
    library = forms.CharField(
        label=_("Library"),
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"list": "libraries", "autocomplete": "off"}),
    )
    license = forms.CharField(
        label=_("License"),
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"list": "licenses", "autocomplete": "off"}),
    )
    visibility = forms.ChoiceField(label=_("Visibility"), choices=list(VISIBILITIES.items()))

    suggestions = {"tasks": TASKS, "libraries": LIBRARIES, "licenses": LICENSES}
    visibility_hints = _VISIBILITY_HINTS


class RegisterForm(_FactsForm):
    """A new model or dataset."""

    namespace = forms.ChoiceField(label=_("Namespace"))
    name = forms.CharField(
        label=_("Name"),
        max_length=96,
        help_text=_("Letters, digits, '-', '_' and '.'; for example resnet18-cifar10."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    field_order = ["namespace", "name", "summary", "task", "library", "license", "visibility"]

    def __init__(self, namespaces: list[Namespace], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        chosen = self.fields["namespace"]
        assert isinstance(chosen, forms.ChoiceField)
        chosen.choices = [(space.slug, space.slug) for space in namespaces]
        self.fields["visibility"].initial = Visibility.PUBLIC


class DescribeForm(_FactsForm):
    """What is said about a repository that exists."""

    name = forms.CharField(
        label=_("Name"),
        max_length=96,
        help_text=_("The old name goes on leading here."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    base_model = forms.CharField(label=_("Base model"), required=False, max_length=200)
    field_order = ["name", "summary", "task", "library", "license", "base_model", "visibility"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _carry_what_was_shown(self)

    @classmethod
    def of(cls, repository: Repository) -> "DescribeForm":
        return cls(initial={field: getattr(repository, field) for field in cls.base_fields})

    def changes(self, repository: Repository) -> dict[str, Any]:
        """Give what whoever sent the form changed on it."""
        return _changes(self, {field: getattr(repository, field) for field in self.fields})


class TagForm(forms.Form):
    """A key and a value."""

    key = forms.CharField(label=pgettext_lazy("of a tag", "Key"), max_length=250)
    value = forms.CharField(
        label=pgettext_lazy("of a tag", "Value"), required=False, max_length=100_000
    )
    version = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)


class AliasForm(forms.Form):
    """A movable name for one version."""

    alias = forms.CharField(
        label=_("Alias"),
        max_length=255,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    version = forms.IntegerField(label=_("Version"), min_value=1)
    reason = forms.CharField(
        label=_("Reason"),
        required=False,
        max_length=2000,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        help_text=_(
            "Needed where a deployment follows the alias or it is protected, and the version does "
            "not fit its callers, or its shadow has not shown that it may answer them."
        ),
    )


class NewVersionForm(forms.Form):
    """What a new version says about itself; its files come beside the form or as uploads."""

    message = forms.CharField(
        label=_("What changed"),
        required=False,
        max_length=10_000,
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    variant = forms.CharField(
        label=_("Variant"),
        required=False,
        max_length=64,
        help_text=_("Empty for the main line. A variant, such as int8, stands beside it."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )


class EditVersionForm(forms.Form):
    """What is said about a version that exists."""

    message = forms.CharField(
        label=_("What changed"),
        required=False,
        max_length=10_000,
        widget=forms.Textarea(attrs={"rows": 3}),
    )
    state = forms.ChoiceField(label=pgettext_lazy("of a version", "State"), required=False)
    state_reason = forms.CharField(
        label=_("Why"),
        required=False,
        max_length=2000,
        help_text=_("Everybody who pulls the version reads it; to be deprecated it needs one."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    @staticmethod
    def shown_of(version: Version) -> dict[str, str]:
        """Give what the form of a version shows before anybody changes it."""
        return {
            "message": version.message,
            "state": version.state,
            "state_reason": version.typed_reason,
        }

    @classmethod
    def of(
        cls, version: Version, *, may_archive: bool, sent: Mapping[str, Any] | None = None
    ) -> "EditVersionForm":
        """Make the form of a version, with the states it can go to from where it stands."""
        form = cls(sent, initial=cls.shown_of(version))
        _carry_what_was_shown(form)
        open_to = lifecycle.BY_HAND.get(version.state, frozenset())
        if not may_archive:
            open_to -= {VersionState.ARCHIVED}
            open_to = frozenset() if version.state == VersionState.ARCHIVED else open_to
        state = form.fields["state"]
        assert isinstance(state, forms.ChoiceField)
        state.choices = [
            (one, wording.STATES[one])
            for one in (version.state, *lifecycle.CHOICES)
            if one == version.state or one in open_to
        ]
        state.choices = list(dict(state.choices).items())
        if not open_to:
            del form.fields["state"], form.fields["state_reason"]
        return form

    def changes(self, version: Version) -> dict[str, Any]:
        """Give what whoever sent the form changed on it."""
        return _changes(self, self.shown_of(version))


class SignatureForm(forms.Form):
    """A signature that somebody made over the files of a version."""

    bundle = forms.FileField(
        label=_("Bundle"),
        help_text=_("What model_signing sign wrote over the files exactly as they are here."),
    )
    public_key = forms.CharField(
        label=_("Public key"),
        required=False,
        max_length=10_000,
        help_text=_("In PEM; needed when you signed with a bare key."),
        widget=forms.Textarea(attrs={"rows": 4, "class": "mono", "spellcheck": "false"}),
    )

    def signature(self) -> dict[str, Any]:
        given = self.cleaned_data
        return {
            "bundle": given["bundle"].read(signing.MAX_BUNDLE_BYTES + 1),
            "public_key": given["public_key"].replace("\r\n", "\n"),
        }


class ProposalForm(forms.Form):
    """Where an alias is to point."""

    alias = forms.CharField(
        label=_("Alias"),
        max_length=255,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    version = forms.IntegerField(label=_("Version"), min_value=1, max_value=999_999_999)
    message = forms.CharField(
        label=_("Why"),
        required=False,
        max_length=10_000,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    @classmethod
    def of(cls, repository: Repository) -> "ProposalForm":
        names = [one for one in repository.protected_aliases if "*" not in one]
        return cls(
            initial={"alias": names[0] if names else "", "version": repository.latest_number}
        )

    def clean_alias(self) -> str:
        return str(self.cleaned_data["alias"]).removeprefix("@")


class NewNamespaceForm(forms.Form):
    """An organisation."""

    slug = forms.CharField(
        label=pgettext_lazy("of an account", "Name"),
        max_length=64,
        help_text=_("Letters, digits, '-' and '_'; the first half of the names in it."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    display_name = forms.CharField(label=_("Name in full"), required=False, max_length=200)


class TokenForm(forms.Form):
    """A token for a program."""

    name = forms.CharField(
        label=_("What it is for"),
        max_length=100,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    scopes = forms.MultipleChoiceField(
        label=_("What it may do"),
        choices=[
            ("read", _("Read: find and download")),
            ("write", _("Write: register, upload, tag")),
            ("jobs", _("Jobs: submit and cancel")),
            ("admin", _("Administer: members, tokens, deletion")),
        ],
        initial=["read", "write", "jobs"],
        widget=forms.CheckboxSelectMultiple,
    )
    days = forms.TypedChoiceField(
        label=_("Valid for"),
        coerce=int,
        choices=[
            (30, _("30 days")),
            (90, _("90 days")),
            (365, _("1 year")),
            (0, _("Until revoked")),
        ],
        initial=90,
    )

    place = forms.CharField(
        label=_("Only in"),
        required=False,
        max_length=200,
        help_text=_("A namespace, or one model or dataset as namespace/name. Empty: everywhere."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )

    def expires_at(self) -> Any:
        days = self.cleaned_data["days"]
        return timezone.now() + timedelta(days=days) if days else None


class WebhookForm(forms.Form):
    """Where a webhook goes and what it hears."""

    url = forms.CharField(
        label=_("Address"),
        max_length=2000,
        widget=forms.URLInput(attrs={"autocomplete": "off", "placeholder": "https://"}),
        help_text=_("Gets a POST with JSON for each event; any 2xx answer will do."),
    )
    events = forms.MultipleChoiceField(
        label=_("Events"),
        choices=list(WEBHOOK_EVENTS.items()),
        widget=forms.CheckboxSelectMultiple,
    )


class NewWebhookForm(WebhookForm):
    """A webhook for a namespace, or for one repository of it."""

    place = forms.CharField(
        label=_("About"),
        max_length=200,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text=_("A namespace that you own, or namespace/name of what you maintain."),
    )
    kind = forms.ChoiceField(
        label=_("Kind"), choices=[("model", _("Model")), ("dataset", _("Dataset"))]
    )
    field_order = ["place", "kind", "url", "events"]


class QuotaForm(forms.Form):
    """What a namespace may hold and run; an empty field is the installation's default."""

    gigabytes = forms.DecimalField(
        label=_("Gigabytes"), required=False, min_value=0, max_digits=20, decimal_places=9
    )
    versions = forms.IntegerField(label=_("Versions"), required=False, min_value=0)
    jobs = forms.IntegerField(label=_("Jobs at once"), required=False, min_value=0)
    deployments = forms.IntegerField(label=_("Deployments"), required=False, min_value=0)

    @classmethod
    def showing(cls, present: Mapping[str, quotas.Quota]) -> "QuotaForm":
        """Show what is set for a namespace."""
        own = {what: present[what].own for what in quotas.QUOTAS}
        size = own.pop(quotas.BYTES)
        gigabytes = None if size is None else (Decimal(size) / _GIGABYTE).normalize()
        shown = "" if gigabytes is None else f"{gigabytes:f}"
        return cls(initial={**own, "gigabytes": shown}, auto_id="quota-%s")

    def changes(self) -> dict[str, int | None]:
        """Give what was asked for, in the words of the service.

        Raises:
            Invalid: a field holds no number.

        """
        if not self.is_valid():
            raise Invalid("A quota is a number that is not negative, or nothing.")
        given = self.cleaned_data
        size = given["gigabytes"]
        return {
            quotas.BYTES: None if size is None else int(size * _GIGABYTE),
            quotas.VERSIONS: given["versions"],
            quotas.JOBS: given["jobs"],
            quotas.DEPLOYMENTS: given["deployments"],
        }


class DeployForm(forms.Form):
    """One version that is to serve; an empty field leaves the choice to the registry."""

    model = forms.CharField(
        label=_("Model"),
        max_length=200,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    version = forms.CharField(
        label=_("Version"),
        max_length=256,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text=_("A number, latest, or an @alias, which the deployment then follows."),
    )
    role = forms.ChoiceField(
        label=_("Role"),
        choices=[
            ("live", _("Live: it answers its part of the requests")),
            ("canary", _("Canary: it answers a small part, on trial")),
            ("shadow", _("Shadow: it gets copies of requests and answers nobody")),
        ],
        initial="live",
        widget=forms.RadioSelect,
    )
    weight = forms.IntegerField(
        label=_("Percent of the requests"),
        required=False,
        min_value=0,
        max_value=100,
        help_text=_("Unless told: all for the first, 1 for a canary, 0 for others."),
    )
    widens = forms.BooleanField(
        label=_("Let a canary widen by itself"),
        required=False,
        help_text=_(
            "1, 5, 25, 50, 100 percent while it does as well as the others; back to 0 when not."
        ),
    )
    endpoint = forms.CharField(
        label=_("Endpoint"),
        required=False,
        max_length=96,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        help_text=_("Unless told, the one with the model's name."),
    )
    max_batch_size = _option(
        "max_batch_size", _("Rows in a batch"), _("Empty: as measured by a tuning, else 32.")
    )
    deadline_ms = _option("deadline_ms", _("Deadline, milliseconds"))
    idle_seconds = _option("idle_seconds", _("Asleep after seconds, 0 never"))
    queue_size = _option("queue_size", _("Places in the queue"))
    threads = _option("threads", _("Threads"), _("Empty: as measured by a tuning, else 1."))
    runtime = forms.ChoiceField(
        label=_("Runtime"),
        choices=[("auto", "auto"), *RUNTIMES.items()],
        initial="auto",
    )
    sibling_meanwhile = forms.BooleanField(
        label=_("A smaller variant answers meanwhile"),
        required=False,
        help_text=_("While the version is loaded; each answer names the version that gave it."),
    )
    shadow_time_percent = _option(
        "shadow_time_percent",
        _("Time of a shadow, percent"),
        _("It is promoted if it computes in at most so much of the live version's time."),
    )
    reason = forms.CharField(
        label=_("Reason"),
        required=False,
        max_length=2000,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_("Deploys a version that does not take what callers send; the log keeps it."),
    )

    @property
    def option_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in ServingOptions.model_fields]

    @property
    def changes_options(self) -> bool:
        """Say whether an option is wrong or set, so that the form shows them."""
        changed = self.changed_data if self.is_bound else []
        return any(field.errors or field.name in changed for field in self.option_fields)

    def asked(self) -> dict[str, Any]:
        """Give what was asked for, in the words of the service."""
        given = dict(self.cleaned_data)
        options = {name: given.pop(name) for name in ServingOptions.model_fields}
        return {**given, "options": ServingOptions(**options)}
