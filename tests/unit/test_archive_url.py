"""URLs of archives: which are taken, and that no password is in one, or in an error."""

from __future__ import annotations

import pytest

from streamflow.archive_url import check_archive_url, shown_archive
from streamflow.errors import UsageError
from streamflow.settings import Settings


@pytest.mark.parametrize("url", ["", "none", "file:///var/a", "s3://bucket/x", "memory://a", "sftp://kim@host/a"])
def test_these_are_taken(url: str) -> None:
    assert check_archive_url(url) == url
    assert Settings(archive=url).archive == url


def test_a_slash_at_the_end_means_nothing() -> None:
    assert check_archive_url("s3://bucket/x/") == "s3://bucket/x"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("/var/archive", "is not the URL"),
        ("s3://", "is not the URL"),
        ("file://relative/a", "whole path"),
        ("simplecache::s3://bucket/x", "several parts"),
        ("s3://bucket/x?key=s3cret", "no options"),
        ("s3://bucket/a b", "spaces"),
        ("sftp://kim:s3cret@host/a", "has a password"),
        ("s3://key:s3cret@bucket/x", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_others_are_refused_without_showing_a_secret(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        check_archive_url(url)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in shown_archive(url)
    with pytest.raises(UsageError):
        Settings(archive=url)
