"""The OpenAPI document says what the server does: every field it names is known, and nothing it allows is a fault of ours."""

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from cdiff_rt.jobs.rows import KEYS
from cdiff_rt.serve.asked import OF, OF_ALL
from cdiff_rt.serve.document import openapi, page
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


def put_to_the_test(address, cases):
    """Every operation, with requests that the document allows and such that it does not."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    asked = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @schemathesis.hypothesis.given_case(operation) if hasattr(schemathesis, "hypothesis") else (lambda f: f)
        def check(case):
            asked.append(case.call(base_url=address).status_code)

        check()
    return asked


@pytest.fixture
def quick_address(service):
    with servers.listening(service) as address:
        yield address
