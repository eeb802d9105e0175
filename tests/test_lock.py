"""requirements-ci.txt has the versions of constraints.txt, each with hashes."""

import re

from helpers import ROOT


def test_every_version_but_torchs_has_hashes():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    text = (ROOT / "requirements-ci.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    locked = {name: version for name, version, _ in entries}

    def plain(names: dict[str, str]) -> dict[str, str]:
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in names.items()}

    assert "torch" in pinned
    assert plain(locked) == plain({name: v for name, v in pinned.items() if name != "torch"}), "make lock renews it"
    rest = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    for name, version, hashes in entries:
        rest = rest.replace(f"{name}=={version}{hashes}", "")
    assert not rest.strip()  # no address, no option, nothing without a hash
