"""The settings of the tests: servers and a data folder of their own, a fast password hasher."""

import os

from config.local import for_tests

SLOT = for_tests.fill_environment()
os.environ.setdefault("MODELYARD_SECRET_KEY", "only-for-tests-" * 4)

from config.settings import *  # noqa: E402, F403 - the environment above has to come first
from config.settings import DATABASES  # noqa: E402

DATABASES["default"]["TEST"] = {"NAME": f"test_modelyard_{SLOT}"}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
JOB_LEASE_SECONDS = 3
