"""A model with very many versions: its pages ask about as many rows as they show."""

import re
from html import unescape

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry.models import LineageEdge, Version
from registry.services.versions import ParentSpec
from registry.web import history
from tests.factories import make_model, make_version

pytestmark = pytest.mark.django_db
MANY = 30_000


def fill(repository, *, variants, many=MANY):
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
            [variants, many, first.pk],
        )
        if variants:
            cursor.execute(
                "INSERT INTO registry_lineageedge (child_id, parent_id, role, created_at)"
                " SELECT id, %s, 'weights', created_at FROM registry_version"
                " WHERE repository_id = %s AND id <> %s",
                [first.pk, repository.pk, first.pk],
            )
        cursor.execute("ANALYZE registry_version, registry_lineageedge")
    repository.last_number = many + 1
    repository.latest_number = 1 if variants else many + 1
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
    addresses += ["?tab=versions&below=1", "?tab=versions&below=1&before=15000"]
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


def numbers_on(page):
    table = page.partition('<table class="data">')[2].partition("</table>")[0]
    return [int(number) for number in re.findall(r'<a class="v"[^>]*>v(\d+)</a>', table)]


def walk(client, address):
    """Read the pages from an address on, one after the other; give the numbers on each."""
    pages = []
    while address:
        page = client.get(address).content.decode()
        pages.append(numbers_on(page))
        link = re.search(r'<a[^>]*href="(\?[^"]*)"[^>]*rel="next"', page) or re.search(
            r'rel="next"[^>]*href="(\?[^"]*)"', page
        )
        address = "/models/olga/deep" + unescape(link[1]) if link else ""
    return pages


def more_links(page):
    found = re.findall(r'href="(\?[^"]*below=[^"]*)">\s*(\S+) more variant', page)
    return [(unescape(address), count) for address, count in found]


@pytest.mark.parametrize("steps", [6, 30])
def test_a_variant_far_below_its_main_version_is_found(as_owner, owner, steps):
    repository = make_model(owner, "deep")
    last = make_version(owner, repository)
    for n in range(steps):
        origin = [ParentSpec(version=last, role="weights")]
        last = make_version(owner, repository, {}, variant=f"step{n}", parents=origin)
    address, seen = "/models/olga/deep?tab=versions", []
    while address:
        page = as_owner.get(address).content.decode()
        found = numbers_on(page)
        assert len(found) == len(set(found)), "each once"
        # A page that goes on from a version shows it again, for its variants to stand under.
        assert found[:1] == seen[-1:] or not seen
        seen += found[1:] if seen else found
        links = more_links(page)
        assert all(count == "1" for _link, count in links)
        address = "/models/olga/deep" + links[0][0] if links else ""
    assert seen == list(range(1, steps + 2))


def test_the_variants_past_a_limit_are_counted_and_shown(as_owner, owner):
    repository = make_model(owner, "deep")
    first = make_version(owner, repository)
    fill(repository, variants=True, many=450)
    child = Version.objects.get(repository=repository, number=2)
    below = make_version(
        owner,
        repository,
        {},
        variant="grandchild",
        parents=[ParentSpec(version=child, role="weights")],
    )
    page = as_owner.get("/models/olga/deep?tab=versions").content.decode()
    assert len(numbers_on(page)) == 1 + 200
    ((link, count),) = more_links(page)
    assert count == "100+"
    assert page.count("Older") == 0, "the main line ends here"
    pages = walk(as_owner, "/models/olga/deep" + link)
    assert all(page[0] == first.number for page in pages)
    everything = [number for page in pages for number in page[1:]]
    assert len(everything) == len(set(everything))
    assert set(everything) == {*range(2, 452), below.number}
    assert as_owner.get("/models/olga/deep?tab=versions&below=9999").status_code == 404
    assert as_owner.get("/models/olga/deep?tab=versions&below=1&before=x").status_code == 200


def test_archived_variants_are_not_counted_as_more(as_owner, owner):
    repository = make_model(owner, "deep")
    make_version(owner, repository)
    fill(repository, variants=True, many=205)
    Version.objects.filter(repository=repository, number__in=(2, 3)).update(state="archived")
    page = as_owner.get("/models/olga/deep?tab=versions").content.decode()
    assert [count for _link, count in more_links(page)] == ["3"]
    page = as_owner.get("/models/olga/deep?tab=versions&archived=1").content.decode()
    ((link, count),) = more_links(page)
    assert (count, "archived=1" in link) == ("5", True)


def test_a_long_history_is_counted_as_far_as_anybody_reads(as_owner, long):
    page = as_owner.get("/models/olga/long?tab=versions").content.decode()
    assert "10,000+" in page
    assert history.count(long) == history.COUNTED + 1


def test_variants_without_an_origin_here_are_found_among_many(as_owner, owner, long):
    LineageEdge.objects.filter(child__number=MANY).delete()
    Version.objects.filter(repository=long, number=MANY).update(variant="astray", message="Lost")
    page = as_owner.get("/models/olga/long?tab=versions").content.decode()
    assert "Lost" in page
