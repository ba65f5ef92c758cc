"""A Managed HSM that is moved or renamed: data that names its KEKs by the old URL is read as before, and one line of configuration says where they are."""
from test_keks import own_pair, refused, rewrap, uses


def test_old_kek_urls_lead_to_the_hsm_under_its_new_name(tmp_path):
    hsm, storage, _ = own_pair(tmp_path, dek_cache_ttl_secs=0)
    client, old, new = storage.client(), hsm.url, f"https://localhost:{hsm.port}"
    client.create_bucket(Bucket="moved")
    client.put_object(Bucket="moved", Key="by-default", Body=b"one")
    named = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": f"{old.removeprefix('https://')}/keys/kek"}
    client.put_object(Bucket="moved", Key="by-name", Body=b"two", **named)
    hsm.stop()
    storage.stop()
    config = hsm.directory / "hsm.toml"
    config.write_text(config.read_text().replace(f'host_names = ["127.0.0.1:{hsm.port}"]', 
                                                 f'host_names = ["localhost:{hsm.port}", "127.0.0.1:{hsm.port}"]'))
    hsm.start()
    config = storage.directory / "storage.toml"
    text = config.read_text().replace(f'hsm_urls = ["{old}"]', f'hsm_urls = ["{new}"]')
    config.write_text(text)
    # Control: without the line the old URLs are of an HSM that nobody knows.
    try:
        storage.start()
    except AssertionError as error:
        assert "default_kek" in str(error)
    else:
        for key in ("by-default", "by-name"):
            refused("KMS.NotFoundException", 400, client.get_object, Bucket="moved", Key=key)
        storage.stop()
    config.write_text(text.replace(f'hsm_urls = ["{new}"]', f'hsm_urls = ["{new}"]\nmoved = {{ "{old}" = "{new}" }}'))
    storage.start()
    for key, body in (("by-default", b"one"), ("by-name", b"two")):
        assert client.get_object(Bucket="moved", Key=key)["Body"].read() == body
    # Requests that name it by the old URL, too; the version that wrapped is of the new one.
    client.put_object(Bucket="moved", Key="later", Body=b"three", **named)
    assert client.get_object(Bucket="moved", Key="later")["Body"].read() == b"three"
    rewrap(storage, "--bucket", "moved")
    assert all(kek.startswith(f"{new}/keys/kek/") for kek in uses(storage)), uses(storage)
    for key, body in (("by-default", b"one"), ("by-name", b"two"), ("later", b"three")):
        assert client.get_object(Bucket="moved", Key=key)["Body"].read() == body
    storage.stop()
    hsm.stop()
