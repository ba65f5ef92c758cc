"""The SDKs for JavaScript, by the two programs beside this file."""
import pytest
from conftest import node


@pytest.mark.parametrize("part", ["checksums", "names", "multipart", "conditions", "presigned", "owners", "encryption", "versions"])
def test_s3(door, tmp_path, bucket, part):
    assert node("s3.cjs", part, bucket, door.kek, env=door.env(tmp_path)).stdout == "done\n"


@pytest.mark.parametrize("part", ["listings", "wrapping", "properties"])
def test_key_vault(dev, part):
    assert node("keyvault.cjs", part, env=dev.env | {"NODE_EXTRA_CA_CERTS": dev.ca_file}).stdout == "done\n"
