"""The doors for machines, and what operators look at."""

from django.urls import include, path, re_path

from registry.api.problem import unknown_address

urlpatterns = [
    path("api/v1/", include(("registry.api.v1.urls", "api"))),
    re_path(r"^api(?:/.*)?$", unknown_address),
]
