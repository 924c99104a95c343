"""URLs of servers: the options that are allowed, and that no part of a password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamflow.errors import UsageError
from streamflow.server_url import check_url, cluster_of, has_password, masked, redacted, sentinels_of

SECRET = "hunt@er2:/?#[secret"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%40ss@localhost:6379/3",
        "redis://[::1]:6379/0?db=1",
        "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///run/redis.sock?db=1&username=me&password=p@ss",
        "redis+sentinel://a:26379,[::1]:26380,c/jobs?db=1&sentinel_username=me&sentinel_password=pass",
        "redis+cluster://user:p%40ss@a:6379,[::1]:6380,c",
        "redis+cluster://a/0?db=0&username=me&password=pass",
    ],
)
def test_a_url_with_allowed_options_is_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("decode_responses=true", "the option decode_responses is not allowed"),
        ("socket_timeout=1", "the option socket_timeout is not allowed"),
        ("retry_on_timeout=1", "the option retry_on_timeout is not allowed"),
        ("protocol=3", "the option protocol is not allowed"),
        ("db=one", "the option db must be a number"),
        ("db=1&db=2", "the option db is given twice"),
        ("password=", "the option password must be a value"),
        ("ssl_cert_reqs=none", "the option ssl_cert_reqs needs TLS: use rediss://"),
        ("sentinel_password=x", "the option sentinel_password needs Sentinels: use redis+sentinel://"),
    ],
)
def test_another_option_is_refused_by_its_name(options: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(f"redis://:hunter2@localhost:6379/0?{options}")
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path"])
def test_a_file_of_an_option_must_exist(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{option} must be a .* that exists"):
        check_url(f"rediss://localhost?{option}={tmp_path}/no-such-file")


def test_a_database_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(UsageError, match="the database, a number"):
        check_url("redis://localhost/jobs")


@pytest.mark.parametrize("cut", range(1, len(SECRET) + 1))
@pytest.mark.parametrize(
    "shape",
    [
        "redis://me:{}@host:6379/0",
        "redis://:{}@host",
        "redis://h?password={}",
        "unix:///s?password={}",
        "redis+cluster://me:{}@a:1,b:2",
        "redis+cluster://a:1,b?password={}",
        "x:{}@h",
    ],
)
def test_no_part_of_a_password_is_shown_however_it_is_written(shape: str, cut: int) -> None:
    url = shape.format(SECRET[:cut])
    texts = [redacted(url)]
    if "://" in url:
        texts.append(masked(f"could not connect to {url}, will retry"))
    try:
        check_url(url)
    except UsageError as error:
        texts.append(str(error))
    for text in texts:
        for part in ("hun", "er2", "sec"):
            assert part not in text


@pytest.mark.parametrize("url", ["redis://:secret", "redis://me:secret", "redis://host/secret", "redis://:secret@[::1"])
def test_what_may_be_a_password_in_the_wrong_place_is_left_out(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


def test_texts_keep_what_is_not_secret() -> None:
    text = "see https://example.org/@me (redis://localhost:6379/0), 'redis://:secret@localhost:6379/1'; a@b"
    assert masked(text) == text.replace(":secret@", "***@")


@pytest.mark.parametrize(
    ("text", "found"),
    [("redis://:a@b", True), ("redis://b", False), ("unix:///s?db=1&password=p", True), ("a@b", False)],
)
def test_a_url_with_a_password_is_recognised(text: str, found: bool) -> None:
    assert has_password(text) is found


def test_a_url_with_sentinels_is_taken_apart() -> None:
    url = sentinels_of("redis+sentinel://me:p%40ss@a:1,[::1]:2,c/jobs?db=3&sentinel_password=of-them")
    assert url is not None
    assert url.addresses == (("a", 1), ("::1", 2), ("c", 26379))
    assert (url.service, url.server) == ("jobs", "redis://me:p%40ss@a:1?db=3")
    assert (url.username, url.password, url.is_secure) == ("", "of-them", False)
    assert sentinels_of("redis://me@a:1/3") is None


def test_sentinels_with_tls_lead_to_a_server_with_tls() -> None:
    url = sentinels_of("rediss+sentinel://me:p@a:1,b:2/jobs?ssl_cert_reqs=none")
    assert url is not None
    assert (url.server, url.is_secure) == ("rediss://me:p@a:1?ssl_cert_reqs=none", True)


@pytest.mark.parametrize(
    "rest", ["a:1,b:2", "a:1,,b:2/jobs", "a:99999/jobs", "a:1/jo:bs", "hunt/er2@a:1/jobs", "hunt,er2/@a:1/jobs"]
)
def test_sentinels_without_a_service_or_with_odd_addresses_are_refused(rest: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(f"redis+sentinel://{rest}")
    assert "host:26379/service" in str(caught.value)
    assert "er2" not in str(caught.value)


def test_the_password_of_sentinels_is_never_shown() -> None:
    url = "redis+sentinel://me:hunter2@a:1,b:2/jobs?sentinel_password=hunter2"
    assert redacted(url) == "redis+sentinel://***@a:1,b:2/jobs"
    assert masked(f"no answer from {url}.") == "no answer from redis+sentinel://***@a:1,b:2/jobs."
    assert has_password("redis+sentinel://a:1/jobs?sentinel_password=x")


def test_a_url_with_nodes_of_a_cluster_is_taken_apart() -> None:
    url = cluster_of("redis+cluster://me:p%40ss@a:1,[::1]:2,c/0?db=0")
    assert url is not None
    assert url.addresses == (("a", 1), ("::1", 2), ("c", 6379))
    assert not url.is_secure
    assert url.node("10.0.0.1", 7000) == "redis://me:p%40ss@10.0.0.1:7000"
    assert url.node("::1", 7000) == "redis://me:p%40ss@[::1]:7000"
    for other in ("redis://me@a:1/0", "redis+sentinel://a:1/jobs", "unix:///run/redis.sock"):
        assert cluster_of(other) is None


def test_each_node_of_a_cluster_gets_the_options_of_the_url() -> None:
    url = cluster_of("rediss+cluster://a:1,b:2?username=me&password=p%26ss&db=0&ssl_cert_reqs=none")
    assert url is not None
    assert url.is_secure
    node = url.node("c", 3)
    assert node == "rediss://c:3?username=me&password=p%26ss&ssl_cert_reqs=none"
    check_url(node)


@pytest.mark.parametrize("rest", ["a:1,,b:2", "a:1,", "a:99999", "a:1/jobs", "hunt/er2@a:1", "a:1,hunt er2", ""])
def test_a_cluster_with_odd_addresses_is_refused(rest: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(f"redis+cluster://{rest}")
    assert "redis+cluster://user:password@host:6379,host:6379" in str(caught.value)
    assert "er2" not in str(caught.value)


@pytest.mark.parametrize("rest", ["a:1,b:2/3", "a:1?db=3"])
def test_a_cluster_has_no_database_but_the_first(rest: str) -> None:
    with pytest.raises(UsageError, match="a cluster has only the database 0"):
        check_url(f"redis+cluster://{rest}")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("protocol=3", "the option protocol is not allowed"),
        ("ssl_cert_reqs=none", "the option ssl_cert_reqs needs TLS: use rediss+cluster://"),
        ("sentinel_password=x", "the option sentinel_password needs Sentinels: use redis+sentinel://"),
    ],
)
def test_an_option_that_is_none_of_a_cluster_is_refused(options: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(f"redis+cluster://me:hunter2@a:1,b:2?{options}")
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_password_of_a_cluster_is_never_shown() -> None:
    url = "rediss+cluster://me:hunter2@a:1,b:2?password=hunter2"
    assert redacted(url) == "rediss+cluster://***@a:1,b:2"
    assert masked(f"no answer from {url}.") == "no answer from rediss+cluster://***@a:1,b:2."
    assert has_password(url)
