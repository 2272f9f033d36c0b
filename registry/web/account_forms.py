"""The forms by which people come in and look after how they come in."""

import json
import struct
from typing import Any

from allauth.account.forms import LoginForm, ReauthenticateForm
from allauth.mfa.adapter import get_adapter
from allauth.mfa.base.forms import AuthenticateForm
from allauth.mfa.base.forms import ReauthenticateForm as FactorAgainForm
from allauth.mfa.totp.forms import ActivateTOTPForm
from allauth.mfa.webauthn.forms import (
    AddWebAuthnForm,
    AuthenticateWebAuthnForm,
    LoginWebAuthnForm,
    ReauthenticateWebAuthnForm,
)
from cryptography.exceptions import UnsupportedAlgorithm
from django import forms
from django.core.validators import MaxLengthValidator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from registry.web.sessions import name_for_passkey


def _bare(field: forms.Field, label: Any, hint: Any = "") -> None:
    """Give a field of allauth's our words; a placeholder would say the label twice."""
    field.label, field.help_text = label, hint
    field.widget.attrs.pop("placeholder", None)


def _password(label: Any, *, new: bool, hint: Any = "") -> forms.CharField:
    attributes = {"autocomplete": "new-password" if new else "current-password"}
    return forms.CharField(
        label=label,
        strip=False,
        max_length=1000,
        widget=forms.PasswordInput(attrs=attributes),
        help_text=hint,
    )


class SignInForm(LoginForm):
    """Name and password."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _bare(self.fields["login"], pgettext_lazy("of an account", "Name"))
        self.fields["login"].widget.attrs.update({"autofocus": True, "spellcheck": "false"})
        _bare(self.fields["password"], _("Password"))

    def add_prefix(self, field_name: str) -> str:
        """Call the name what password managers and scripts have always found it under."""
        return str(super().add_prefix("username" if field_name == "login" else field_name))


class SignUpForm(forms.Form):
    """An account for a stranger."""

    username = forms.CharField(
        label=pgettext_lazy("of an account", "Name"),
        max_length=64,
        help_text=_("Letters, digits, '-' and '_'. It becomes your namespace too."),
        widget=forms.TextInput(attrs={"autocomplete": "username", "spellcheck": "false"}),
    )
    password = _password(_("Password"), new=True, hint=_("At least 8 characters."))


class AgainForm(ReauthenticateForm):
    """The password, once more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _bare(self.fields["password"], _("Password"))


def _code(form: forms.Form) -> None:
    _bare(form.fields["code"], _("Code"), _("From your authenticator app, or a recovery code."))
    form.fields["code"].widget.attrs.update({"inputmode": "numeric", "autofocus": True})


class SecondFactorForm(AuthenticateForm):
    """A code of the authenticator app, or a recovery code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _code(self)


class SecondFactorAgainForm(FactorAgainForm):
    """A code, once more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _code(self)


class ActivateAppForm(ActivateTOTPForm):
    """The first code of an authenticator app."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _bare(self.fields["code"], _("Code"), _("The six digits that the app shows now."))
        self.fields["code"].widget.attrs["inputmode"] = "numeric"


# What the readers of CBOR, keys and signatures raise over bytes that are none.
_UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    struct.error,
    UnsupportedAlgorithm,
)
MAX_CREDENTIAL_CHARACTERS = 64 * 1024


class CredentialField(forms.CharField):
    """What the browser says of a passkey, as JSON: bounded, and of the shape that is read."""

    widget = forms.HiddenInput

    def __init__(self) -> None:
        super().__init__(max_length=MAX_CREDENTIAL_CHARACTERS)

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        if not text or len(text) > MAX_CREDENTIAL_CHARACTERS:
            return text
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        response = said.get("response") if isinstance(said, dict) else None
        if not isinstance(said, dict) or not isinstance(response, dict):
            raise get_adapter().validation_error("incorrect_code")
        return said

    def run_validators(self, value: Any) -> None:
        if isinstance(value, str):
            super().run_validators(value)


class _PasskeyAnswer:
    """Take a passkey's answer; whatever is wrong with its bytes, it is a wrong passkey."""

    fields: dict[str, forms.Field]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["credential"] = CredentialField()

    def clean_credential(self) -> Any:
        try:
            return super().clean_credential()  # type: ignore[misc]
        except _UNREADABLE as error:
            raise get_adapter().validation_error("incorrect_code") from error


class PasskeySignInForm(_PasskeyAnswer, LoginWebAuthnForm):
    """A passkey alone."""


class PasskeyFactorForm(_PasskeyAnswer, AuthenticateWebAuthnForm):
    """A passkey after the password."""


class PasskeyAgainForm(_PasskeyAnswer, ReauthenticateWebAuthnForm):
    """A passkey, once more."""


class AddPasskeyForm(AddWebAuthnForm):
    """A new passkey, and what to call it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("initial", {}).setdefault("name", name_for_passkey())
        super().__init__(*args, **kwargs)
        self.fields["credential"] = CredentialField()
        name = self.fields["name"]
        _bare(name, _("What to call it"))
        name.validators.append(MaxLengthValidator(100))
        name.widget.attrs["maxlength"] = "100"
        _bare(
            self.fields["passwordless"],
            _("Sign in with it alone"),
            _("It then asks for your finger, face or PIN, and takes the place of the password."),
        )
        self.fields["passwordless"].initial = True

    def clean(self) -> dict[str, Any]:
        try:
            cleaned: dict[str, Any] = super().clean()
        except _UNREADABLE as error:
            raise get_adapter().validation_error("incorrect_code") from error
        return cleaned


class PasswordForm(forms.Form):
    """A new password, and the present one where there is one."""

    current = _password(_("Present password"), new=False)
    password = _password(_("New password"), new=True, hint=_("At least 8 characters."))

    def __init__(self, *args: Any, has_password: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not has_password:
            del self.fields["current"]


class PersonForm(forms.Form):
    """An account that an administrator makes."""

    username = forms.CharField(
        label=pgettext_lazy("of an account", "Name"),
        max_length=64,
        help_text=_("Letters, digits, '-' and '_'. It becomes their namespace too."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    email = forms.EmailField(label=_("E-mail"), required=False, max_length=254)
    password = _password(
        _("Password"), new=True, hint=_("At least 8 characters; they can change it.")
    )
    is_admin = forms.BooleanField(
        label=_("Administrator"),
        required=False,
        help_text=_("May do everything, everywhere in this installation."),
    )


class NewPasswordForm(forms.Form):
    """A password that an administrator gives."""

    password = _password(_("New password"), new=True, hint=_("At least 8 characters."))
