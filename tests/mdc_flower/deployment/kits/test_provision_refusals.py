"""What provisioning refuses, changing nothing, and what it warns of."""

import shutil
from pathlib import Path

import pytest

from mdc_flower.deployment.kits.certificates import (
    new_node_key,
)
from strategies.common.errors import ConfigError
from tests.mdc_flower.deployment.federations import (
    BERLIN,
    CONTRACT,
    HEAD,
    OSLO,
    TWO_SITES,
    Federation,
    refusal,
)


def test_a_site_to_revoke_must_have_left_the_file(federation: Federation) -> None:
    error = refusal(lambda: federation.provision(revoke=["berlin"]), federation)
    assert "still in the file" in str(error)
    assert (error.where, error.got) == ("--revoke", "berlin")


def test_a_site_that_left_the_file_must_be_revoked(federation: Federation) -> None:
    one_site = HEAD + CONTRACT + BERLIN
    error = refusal(lambda: federation.provision(one_site), federation)
    assert "site 'lisbon' has a kit, but is no longer in the file" in str(error)
    assert "--revoke lisbon" in error.hint
    shutil.rmtree(federation.kits / "lisbon")  # its public key would still let it in
    assert "--revoke lisbon" in refusal(lambda: federation.provision(), federation).hint


@pytest.mark.parametrize("name", ["oslo", "coordinator", "authority", "../kits/berlin", "."])
def test_an_unknown_site_cannot_be_revoked(federation: Federation, name: str) -> None:
    error = refusal(lambda: federation.provision(revoke=[name]), federation)
    assert "no such site to revoke" in str(error)
    assert error.got == name


def test_an_unknown_site_cannot_be_renewed(federation: Federation) -> None:
    error = refusal(lambda: federation.provision(renew=["berlin", "oslo"]), federation)
    assert (error.where, error.got) == ("--renew", "oslo")
    assert error.expected == "one of: berlin, coordinator, lisbon"


def test_the_folder_of_another_federation_is_refused(federation: Federation) -> None:
    other = TWO_SITES.replace('"lungs"', '"hearts"')
    error = refusal(lambda: federation.provision(other), federation)
    assert "another federation than 'hearts'" in str(error)
    assert error.got == "lungs"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.kits.mkdir()
    (federation.kits / "thesis.tex").write_text("years of work")
    error = refusal(lambda: federation.provision(TWO_SITES), federation)
    assert "holds other files" in str(error)
    assert error.got == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.kits.write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        federation.provision(TWO_SITES)


def test_kits_without_the_coordinators_are_refused(federation: Federation) -> None:
    shutil.move(federation.kits / "coordinator", federation.kits.parent / "moved")
    error = refusal(lambda: federation.provision(), federation)
    assert "the coordinator's kit is missing" in str(error)


def test_an_invalid_file_changes_nothing(federation: Federation) -> None:
    error = refusal(lambda: federation.provision(TWO_SITES + "min-examples = 0\n"), federation)
    assert error.where.endswith(", site 2, min-examples")


def test_a_damaged_key_of_a_site_is_named(federation: Federation) -> None:
    (federation.kits / "berlin" / "site.key").write_bytes(new_node_key()[:100])
    error = refusal(lambda: federation.provision(TWO_SITES + OSLO), federation)
    assert error.where == "berlin"
    assert "cannot be read" in str(error)


def test_an_authority_is_warned_of_before_it_ends_and_refused_after(
    federation: Federation,
) -> None:
    assert not any("warning" in line for line in federation.provision(days_later=3619))
    lines = federation.provision(days_later=3625)
    assert "the authority's certificate expires on 2040-04-28 and cannot be renewed" in lines[0]
    error = refusal(lambda: federation.provision(days_later=3651), federation)
    assert "expired on 2040-04-28" in str(error)
    assert "new folder" in error.hint


def test_kits_inside_a_git_work_tree_are_warned_of(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    (tmp_path / ".git").mkdir()
    lines = federation.provision(TWO_SITES)
    assert "inside a git work tree; never commit" in lines[0]
    (tmp_path / ".git").rmdir()
    assert not any("git" in line for line in federation.provision())
