"""One include for each protocol; every path of the web UI exists in both languages."""

from django.conf.urls.i18n import i18n_patterns
from django.urls import include, path

from registry.web.views import identities

urlpatterns = [
    path("", include("registry.api.urls")),
    # One address in any language, as the identity provider knows it.
    path("login/provider/callback", identities.come_back, name="openid_connect_callback"),
    *i18n_patterns(
        path("", include("registry.web.account_urls")),
        path("", include("registry.web.urls")),
        prefix_default_language=False,
    ),
]

handler400 = "registry.web.views.errors.bad_request"
handler403 = "registry.web.views.errors.permission_denied"
handler404 = "registry.web.views.errors.page_not_found"
handler500 = "registry.web.views.errors.server_error"
handler429 = "registry.web.views.sign_in.too_many_requests"
