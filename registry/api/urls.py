"""The doors for machines, and what operators look at."""

from django.urls import include, path, re_path

from registry.api.docs import api_docs
from registry.api.probes import healthz, metrics, readyz
from registry.api.problem import unknown_address

urlpatterns = [
    path("api/v1/", include(("registry.api.v1.urls", "api"))),
    path("api/docs", api_docs, name="api-docs"),
    path("healthz", healthz),
    path("readyz", readyz),
    path("metrics", metrics),
    re_path(r"^api(?:/[\s\S]*)?$", unknown_address),
]
