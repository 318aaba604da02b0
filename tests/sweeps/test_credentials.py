from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.credentials import has_credentials, safe_uri, without_credentials


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:hush@bucket/f?region=eu-west-1", "s3://bucket/f?region=eu-west-1"),
        ("s3://AKIA:hush:token@bucket/f", "s3://bucket/f"),
        ("s3://AKIA@bucket/f", "s3://bucket/f"),
        ("S3://AKIA:hush@bucket/f", "S3://bucket/f"),
        ("s3:/AKIA:hush@bucket/f", "s3:/bucket/f"),
        ("s3:AKIA:hush@bucket/f", "s3:bucket/f"),
        ("s3//AKIA:hush@bucket/f", "s3//bucket/f"),
        ("gs:\\\\AKIA:hush@bucket/f", "gs:\\\\bucket/f"),
        ("\u00e93://AKIA:hush@bucket/f", "\u00e93://bucket/f"),
        ("s3://AKIA:hu/sh@bucket/f", "s3://bucket/f"),
        ("s3://AKIA:hu sh@bucket/f", "s3://bucket/f"),
        ("s3://AKIA%3Ahush@bucket/f", "s3://bucket/f"),
        ("s3://AKIA:hush", "s3://AKIA:***"),
        ("s3://bucket/f?access_key=AKIA&secret_key=hush&region=x",
         "s3://bucket/f?access_key=***&secret_key=***&region=x"),
        ("s3://bucket/f?session_token=hush#hush", "s3://bucket/f?session_token=***"),
        ("s3://bucket/f?hush", "s3://bucket/f?***"),
        ("s3://bucket/f?region=x;secret_key=hush", "s3://bucket/f?region=x&secret_key=***"),
        ("s3://b/f?scheme=http&endpoint_override=u%40hush", "s3://b/f?scheme=http&endpoint_override=***"),
        ("abfs://name:hush@c.dfs.core.windows.net/f?client_secret=hush",
         "abfs://c.dfs.core.windows.net/f?client_secret=***"),
        ("gs://user:hush@bucket/f", "gs://bucket/f"),
        ("https://ghp_hush@host/f", "https://host/f"),
        ("anything://user:hush@host:80/f", "anything://host:80/f"),
    ],
)  # fmt: skip
def test_credentials_of_a_uri_are_not_shown(uri, shown):
    assert safe_uri(uri) == shown
    assert "hush" not in safe_uri(uri)
    assert has_credentials(uri)
    assert "hush" not in without_credentials(f"error: cannot use '{uri}'")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/folder?region=eu-west-1&endpoint_override=127.0.0.1:9000&scheme=http",
        "s3://bucket/folder@2/x",
        "gs://anonymous@bucket/folder",
        "gs://bucket/folder",
        "abfs://container@account.dfs.core.windows.net/folder",
        "hdfs://user@host:8020/folder?replication=1",
        "file:///home/me/runs",
        "http://[::1]:8265/x",
        "ray://head:10001",
        "/home/me/a:b@c/runs",
        "/home/me/s3/a:b@c/runs",
        "logs:a@b",
        "s3/runs",
        "runs",
    ],
)
def test_what_holds_no_credentials_is_shown_as_it_is(uri):
    assert safe_uri(uri) == uri
    assert not has_credentials(uri)
    assert without_credentials(f"next: --storage '{uri}'") == f"next: --storage '{uri}'"


SECRETS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=", min_size=12)


@given(SECRETS, st.sampled_from(["s3", "gs", "abfs", "ftp", "https"]), st.booleans())
def test_no_secret_is_shown_however_it_is_written(secret, scheme, escaped):
    secret = f"Q{secret}"  # a port would be shown
    written = quote(secret, safe="") if escaped else secret
    for uri in (
        f"{scheme}://KEY:{written}@bucket/folder?region=x",
        f"{scheme}://KEY:{written}:{written}@bucket/folder",
        f"{scheme}://bucket/folder?secret_key={written}",
        f"{scheme}://bucket/folder?region=x&session_token={written}",
    ):
        for shown in (safe_uri(uri), without_credentials(f"cannot use '{uri}': {uri}")):
            assert secret not in shown
            assert written not in shown
