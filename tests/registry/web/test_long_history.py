"""A model with very many versions: its pages ask about as many rows as they show."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry.models import LineageEdge, Version
from registry.web import history
from tests.factories import make_model, make_version

pytestmark = pytest.mark.django_db
MANY = 30_000


def fill(repository, *, variants):
    """Add rows as a bulk load would: all of one revision, variants all of the first version."""
    first = repository.versions.get()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO registry_version (repository_id, number, revision_id, variant, state,"
            " state_reason, stage, source, message, formats, signature, config, size_bytes,"
            " files_count, created_at, updated_at)"
            " SELECT repository_id, number + n, revision_id, CASE WHEN %s THEN 'v' ELSE '' END,"
            " state, '', stage, '', 'step ' || n, formats, '{}', '{}', 1000 + n, 1, created_at,"
            " updated_at FROM registry_version, generate_series(1, %s) AS n WHERE id = %s",
            [variants, MANY, first.pk],
        )
        if variants:
            cursor.execute(
                "INSERT INTO registry_lineageedge (child_id, parent_id, role, created_at)"
                " SELECT id, %s, 'weights', created_at FROM registry_version"
                " WHERE repository_id = %s AND id <> %s",
                [first.pk, repository.pk, first.pk],
            )
        cursor.execute("ANALYZE registry_version, registry_lineageedge")
    repository.last_number = MANY + 1
    repository.latest_number = 1 if variants else MANY + 1
    repository.save()


@pytest.fixture(params=[False, True], ids=["main line", "variants"])
def long(owner, request):
    repository = make_model(owner, "long")
    make_version(owner, repository)
    fill(repository, variants=request.param)
    return repository


def rows_read(plan):
    """Add up what the nodes of a plan that touch tables have read, thrown away included."""
    own = 0
    if "Scan" in plan["Node Type"] and "Relation Name" in plan:
        thrown = plan.get("Rows Removed by Filter", 0)
        own = (plan["Actual Rows"] + thrown) * plan["Actual Loops"]
    return own + sum(rows_read(one) for one in plan.get("Plans", []))


def rows_of(sql, without):
    with connection.cursor() as cursor:
        for way in without:
            cursor.execute(f"SET LOCAL enable_{way} = off")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        ((plan,),) = cursor.fetchall()
        for way in without:
            cursor.execute(f"SET LOCAL enable_{way} = on")
    return rows_read(plan[0]["Plan"])


def test_pages_of_a_long_history_read_few_rows(as_owner, long):
    addresses = ["", "?tab=versions", "?tab=versions&before=15000", "?tab=metrics"]
    joins = ("seqscan", "hashjoin", "mergejoin")
    for address in addresses:
        with CaptureQueriesContext(
            connection,
        ) as asked:
            assert as_owner.get(f"/models/olga/long{address}").status_code == 200
        for query in asked.captured_queries:
            if not query["sql"].startswith("SELECT"):
                continue
            # Which way is cheapest lies near by on so small a table, and turns with the sample that
            # ANALYZE drew; the question is whether there is one that reads little.
            read = min(
                rows_of(query["sql"], without)
                for without in ((), ("seqscan",), joins, (*joins, "sort"))
            )
            assert read < MANY, (address, read, query["sql"][:500])


def test_a_long_history_is_counted_as_far_as_anybody_reads(as_owner, long):
    page = as_owner.get("/models/olga/long?tab=versions").content.decode()
    assert "10,000+" in page
    assert history.count(long) == history.COUNTED + 1


def test_variants_without_an_origin_here_are_found_among_many(as_owner, owner, long):
    LineageEdge.objects.filter(child__number=MANY).delete()
    Version.objects.filter(repository=long, number=MANY).update(variant="astray", message="Lost")
    page = as_owner.get("/models/olga/long?tab=versions").content.decode()
    assert "Lost" in page
