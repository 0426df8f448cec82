"""The OpenAPI document says what the server does: every field it names is known, and nothing it allows is a fault of ours."""

import collections
import re

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from cdiff_rt.jobs.rows import KEYS
from cdiff_rt.serve.asked import OF, OF_ALL
from cdiff_rt.serve.document import openapi, page
from cdiff_rt.serve.limits import Limits
from tests.serve import servers


def test_every_field_that_is_read_is_in_the_document_and_no_other(bundle):
    schemas = openapi(bundle.manifest)["components"]["schemas"]
    for op in ("generate", "edit"):
        read = {"mask", "text", *KEYS, *OF_ALL, *OF[op]} | ({"source_mask", "source_text"} if op == "edit" else set())
        assert schemas[op]["properties"].keys() == read - ({"first"} if op == "edit" else set())


def test_the_page_needs_no_other_site(client):
    told = client.get("/docs")
    assert "default-src 'none'" in told.headers["content-security-policy"]
    assert not re.search(r"https?://|<script", told.text) and "/v1/images/generations" in told.text


def test_the_document_of_a_server_is_that_of_its_model(client, bundle):
    assert client.get("/openapi.json").json() == openapi(bundle.manifest)
    assert page(openapi(bundle.manifest)) == client.get("/docs").text


def ask_all(address, cases):
    """Every operation, with requests that the document allows and, if it takes any, with such that it does not; the statuses."""
    statuses = collections.Counter()
    for result in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
        operation = result.ok()
        takes = bool(operation.body) or "{id}" in operation.path
        for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:

            @settings(max_examples=cases if takes else 1, deadline=None, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(mode))
            def ask(case):
                answer = case.call(base_url=address)
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, f"{case.as_curl_command()}: {answer.text}"
                if answer.status_code >= 400 and "/v1/" in case.path:
                    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}

            ask()
    return statuses


@pytest.mark.slow
def test_no_request_that_the_document_allows_or_forbids_is_a_fault_of_the_server():
    with servers.service(limits=Limits(queue=10_000)) as service, servers.listening(service) as address:
        assert ask_all(address, 3).keys() >= {200, 400, 404}


@pytest.mark.long
def test_nor_is_one_of_five_thousand():
    with servers.service(limits=Limits(queue=10_000)) as service, servers.listening(service) as address:
        statuses = ask_all(address, 1000)
        assert statuses.total() >= 5000 and statuses.keys() >= {200, 202, 400, 404, 415, 422}
