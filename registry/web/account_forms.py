"""The forms by which people come in and look after how they come in."""

from typing import Any

from allauth.account.forms import LoginForm, ReauthenticateForm
from allauth.mfa.base.forms import AuthenticateForm
from allauth.mfa.base.forms import ReauthenticateForm as FactorAgainForm
from allauth.mfa.totp.forms import ActivateTOTPForm
from allauth.mfa.webauthn.forms import AddWebAuthnForm
from django import forms
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


class AddPasskeyForm(AddWebAuthnForm):
    """A new passkey, and what to call it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("initial", {}).setdefault("name", name_for_passkey())
        super().__init__(*args, **kwargs)
        _bare(self.fields["name"], _("What to call it"))
        self.fields["name"].max_length = 100
        _bare(
            self.fields["passwordless"],
            _("Sign in with it alone"),
            _("It then asks for your finger, face or PIN, and takes the place of the password."),
        )
        self.fields["passwordless"].initial = True


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
