"""Fill a registry with many models that look like real ones, past the services, in bulk.

python -m benchmarks.load 20000      (with DATABASE_URL naming the registry)
"""

import hashlib
import os
import random
import sys
from datetime import timedelta

import django
from django.utils import timezone

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.db import connection, transaction  # noqa: E402 - needs the settings

from registry.models import (  # noqa: E402
    Alias,
    Artifact,
    Blob,
    Namespace,
    Ref,
    Repository,
    Revision,
    Tag,
    Version,
)

PER_NAMESPACE = 25
BATCH = 2000


def words(text: str) -> list[str]:
    return text.split()


FAMILIES = words(
    "bert roberta deberta electra albert distilbert minilm mpnet bge e5 gte llama mistral qwen "
    "gemma phi falcon bloom opt gpt2 t5 flan bart pegasus whisper wav2vec hubert clip siglip vit "
    "swin convnext resnet efficientnet mobilenet yolo detr unet segformer sam"
)
SIZES = words("tiny mini small base medium large xl 7b 13b 70b")
SUBJECTS = words(
    "sentiment news legal medical finance code chat retrieval rerank toxicity intent emotion "
    "ner summary translation captions digits plants satellites speech music invoices reviews"
)
LANGUAGES = words("en zh de fr es it pt ja ko ar hi multilingual")
TASKS = words(
    "text-classification token-classification sentence-similarity text-generation summarization "
    "translation image-classification object-detection automatic-speech-recognition"
)
LIBRARIES = words("pytorch transformers onnx sentence-transformers timm")
LICENSES = words("apache-2.0 mit bsd-3-clause cc-by-4.0 other")
PROSE = words(
    "this model was trained on data that we collected and cleaned for the team it reads inputs of "
    "moderate length and answers with one label for each row accuracy is measured on held out rows "
    "limits apply results may be worse for older sources use with care the license allows changes "
    "weights are stored as plain tensors load them with the library named above and see examples"
)
SEARCHED = ("summary", "task", "library", "license", "language", "subject")


def describe(number: int, chance: random.Random) -> dict[str, str]:
    """Make up the facts of model `number`; its name is unique in its namespace."""
    family, size = chance.choice(FAMILIES), chance.choice(SIZES)
    subject, language = chance.choice(SUBJECTS), chance.choice(LANGUAGES)
    return {
        "name": f"{family}-{size}-{subject}-{language}-v{number % PER_NAMESPACE + 1}",
        "summary": f"{family.capitalize()} {size}, fine-tuned for {subject} in {language}.",
        "task": chance.choice(TASKS),
        "library": chance.choice(LIBRARIES),
        "license": chance.choice(LICENSES),
        "subject": subject,
        "language": language,
        "card": (
            f"{family} {size} for {subject} in {language}. " + " ".join(chance.choices(PROSE, k=80))
        ),
    }


def name_namespaces(count: int) -> list[Namespace]:
    slugs = [f"team-{number:04d}" for number in range(-(-count // PER_NAMESPACE))]
    Namespace.objects.bulk_create([Namespace(slug=slug) for slug in slugs], ignore_conflicts=True)
    known = {row.slug: row for row in Namespace.objects.filter(slug__in=slugs)}
    return [known[slug] for slug in slugs]


def sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def load(count: int, *, seed: int = 1) -> None:
    """Make `count` models: two versions each, an alias, tags, one file a version."""
    chance = random.Random(seed)
    namespaces = name_namespaces(count)
    numbers = iter(range(count))
    while batch := [number for _, number in zip(range(BATCH), numbers, strict=False)]:
        with transaction.atomic():
            _load_batch(batch, namespaces, chance)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def _load_batch(numbers: list[int], namespaces: list[Namespace], chance: random.Random) -> None:
    now = timezone.now()
    facts = [describe(number, chance) for number in numbers]
    repositories = Repository.objects.bulk_create(
        Repository(
            kind="model",
            namespace=(space := namespaces[number // PER_NAMESPACE]),
            name=fact["name"],
            summary=fact["summary"],
            task=fact["task"],
            library=fact["library"],
            license=fact["license"],
            labels=[fact["language"], fact["subject"]],
            formats=["safetensors"],
            latest_number=2,
            last_number=2,
            parameters_count=chance.randrange(10**6, 7 * 10**10),
            size_bytes=chance.randrange(10**6, 10**11),
            downloads_count=int(chance.paretovariate(0.7)),
            updated_at=now - timedelta(seconds=chance.randrange(10**7)),
            search_text=" ".join(
                (
                    f"{space.slug}/{fact['name']}",
                    *(fact[name] for name in SEARCHED),
                    f"team {space.slug}",
                )
            ).lower(),
            card_text=fact["card"],
        )
        for number, fact in zip(numbers, facts, strict=True)
    )
    blobs = Blob.objects.bulk_create(
        Blob(
            sha256=hashlib.sha256(f"benchmark {row.pk} {number}".encode()).hexdigest(),
            size_bytes=1 << 20,
        )
        for row in repositories
        for number in (1, 2)
    )
    pairs = [(row, number) for row in repositories for number in (1, 2)]
    revisions = Revision.objects.bulk_create(
        Revision(repository=row, commit=sha1(f"{row.pk} {number}"), message=f"version {number}")
        for row, number in pairs
    )
    versions = Version.objects.bulk_create(
        Version(
            repository=row,
            number=number,
            revision=revision,
            formats=["safetensors"],
            size_bytes=1 << 20,
            files_count=1,
        )
        for (row, number), revision in zip(pairs, revisions, strict=True)
    )
    Artifact.objects.bulk_create(
        Artifact(revision=revision, path="model.safetensors", blob=blob)
        for revision, blob in zip(revisions, blobs, strict=True)
    )
    last = list(zip(repositories, revisions[1::2], versions[1::2], strict=True))
    Ref.objects.bulk_create(
        Ref(repository=row, name="main", revision=revision) for row, revision, _ in last
    )
    Alias.objects.bulk_create(
        Alias(repository=row, name="champion", version=version) for row, _, version in last
    )
    Tag.objects.bulk_create(
        Tag(repository=row, key="team", value=row.namespace.slug) for row in repositories
    )


if __name__ == "__main__":
    load(int(sys.argv[1]))
