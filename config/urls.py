"""One include for each protocol; every path of the web UI exists in both languages."""

from django.conf.urls.i18n import i18n_patterns
from django.urls import include, path

urlpatterns = [
    path("", include("registry.api.urls")),
    *i18n_patterns(path("", include("registry.web.urls")), prefix_default_language=False),
]

handler400 = "registry.web.views.errors.bad_request"
handler403 = "registry.web.views.errors.permission_denied"
handler404 = "registry.web.views.errors.page_not_found"
handler500 = "registry.web.views.errors.server_error"
