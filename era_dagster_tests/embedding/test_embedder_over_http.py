"""The embedder over real loopback HTTP: connections that break, servers that are killed, proxies that are not asked."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from era_dagster.domain.errors import ConfigurationError, EndpointRefused, EndpointUnavailable
from era_dagster.embedding.config import EmbedderConfig
from era_dagster.embedding.embed_texts import embed_texts
from era_dagster.embedding.embedder import Embedder
from era_dagster.embedding.provider import HttpEndpoint
from era_dagster.embedding.responses import Asked, unreachable
from era_dagster_tests.fakes.embedding_server import FakeEmbeddingServer, Fault, serving, vector_of

TEXTS = [f"text number {number}" for number in range(100)]


@pytest.mark.parametrize("provider", ["ollama", "openai"])
@pytest.mark.parametrize("suffix", ["", "/"])
def test_vectors_come_over_http_in_order(provider: str, suffix: str) -> None:
    with serving(FakeEmbeddingServer()) as url:
        report = asyncio.run(embed_texts(TEXTS, urls=url + suffix, model="test-model", provider=provider))
    for vector, text in zip(report.vectors, TEXTS, strict=True):
        assert vector is not None
        np.testing.assert_allclose(vector, vector_of(text), atol=1e-5)


def test_an_openai_url_may_end_in_v1() -> None:
    with serving(FakeEmbeddingServer()) as url:
        report = asyncio.run(embed_texts(TEXTS[:2], urls=f"{url}/v1", model="test-model", provider="openai"))
    assert report.failures == ()


def test_broken_connections_and_refusals_lose_nothing() -> None:
    server = FakeEmbeddingServer()
    server.faults.extend([None, Fault(reset=True), None, Fault(status=429, headers={"retry-after-ms": "50"})] * 3)
    server.poison = {"number 42"}
    with serving(server) as url:
        report = asyncio.run(embed_texts(TEXTS, urls=url, model="test-model"))
    assert [failure.position for failure in report.failures] == [42]
    assert report.refusals > 0


def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EndpointUnavailable, match=url):
            asyncio.run(embed_texts(TEXTS, urls=url, model="test-model", retry_budget_seconds=1.0))


def test_a_proxy_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeEmbeddingServer()) as url:
        report = asyncio.run(embed_texts(TEXTS[:4], urls=url, model="test-model", retry_budget_seconds=2.0))
    assert report.failures == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP_PROXY", "ftp://user:secret@proxy:1"),
        ("HTTP_PROXY", "http://user:secret@[::1"),
        ("ALL_PROXY", "socks5://user:secret@127.0.0.1:1080"),
        ("SSL_CERT_FILE", "missing.pem"),
        ("SSL_CERT_FILE", __file__),
    ],
)
def test_a_proxy_or_certificate_of_the_environment_that_cannot_be_used_is_named_without_its_password(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match="cannot be") as caught:
        asyncio.run(embed_texts(["a text"], urls="http://example.invalid", model="m"))
    assert variable in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("there", [True, False])
def test_the_proxy_of_the_environment_is_named_without_its_password_where_it_fails(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeEmbeddingServer()) as url:
        proxy = url if there else "http://127.0.0.1:9"
        monkeypatch.setenv("http_proxy", proxy.replace("://", "://user:secret@"))
        with pytest.raises((EndpointRefused, EndpointUnavailable), match=f"through the proxy {proxy}\\)") as caught:
            asyncio.run(embed_texts(["a text"], urls="http://gpu-box", model="test-model", retry_budget_seconds=1.0))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("port", "proxy"), [(8080, ""), (81, "http://squid:3128")])
def test_a_proxy_that_is_passed_by_for_the_servers_port_is_not_named(
    port: int, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://squid:3128")
    monkeypatch.setenv("no_proxy", "gpu-box:8080")
    url = f"http://gpu-box:{port}"
    assert HttpEndpoint(Asked(url=url, model="m"), url, transport=None).asked.proxy == proxy


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_certificates_of_the_environment_count_on_loopback_too(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "missing.pem")
    with pytest.raises(ConfigurationError, match=f"certificates for https://{host}:9 cannot be read"):
        asyncio.run(embed_texts(["a text"], urls=f"https://{host}:9", model="m", retry_budget_seconds=1.0))


def test_a_certificate_that_nobody_trusts_is_told_with_what_makes_it_trusted() -> None:
    reason = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"
    assert "SSL_CERT_FILE" in unreachable(Asked(url="https://host", model="m"), reason).error.hint
    # What a server without TLS makes of it, which does run.
    reason = "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"
    assert "http:// in ERA_EMBEDDING_URLS" in unreachable(Asked(url="https://host", model="m"), reason).error.hint


def test_a_missing_model_is_refused_over_http() -> None:
    with serving(FakeEmbeddingServer()) as url, pytest.raises(EndpointRefused, match="ollama pull other"):
        asyncio.run(embed_texts(TEXTS, urls=url, model="other"))


def start_process(port: int) -> tuple[subprocess.Popen[str], int]:
    module = "era_dagster_tests.fakes.embedding_server"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", module, "--port", str(port), "--seconds-per-text", "0.002"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, int(json.loads(line)["url"].rpartition(":")[2])


def test_a_server_killed_in_the_middle_and_started_again_loses_nothing() -> None:
    processes: list[subprocess.Popen[str]] = []

    async def main() -> None:
        first, port = await asyncio.to_thread(start_process, 0)
        processes.append(first)
        config = EmbedderConfig(urls=(f"http://127.0.0.1:{port}",), model="test-model", retry_budget_seconds=60.0)
        async with Embedder(config) as embedder:
            wanted = [f"text number {number}" for number in range(1000)]
            call = asyncio.create_task(embedder.embed(wanted))
            while embedder.stats().embedded < 200:
                await asyncio.sleep(0.01)
            first.kill()
            while embedder.stats().endpoints[0].mode != "down":
                await asyncio.sleep(0.01)
            second, _ = await asyncio.to_thread(start_process, port)
            processes.append(second)
            report = await call
        assert report.failures == ()
        for vector, text in zip(report.vectors, wanted, strict=True):
            assert vector is not None
            np.testing.assert_allclose(vector, vector_of(text), atol=1e-5)

    try:
        asyncio.run(main())
    finally:
        for process in processes:
            process.kill()
            process.communicate()
