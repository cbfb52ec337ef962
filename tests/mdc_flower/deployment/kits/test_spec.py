"""``federation.toml``: what it may say, and what a person is told otherwise."""

from pathlib import Path

import pytest

from mdc_flower.deployment.kits.spec import ALL_METRICS, FederationSpec, read_federation
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import TRAIN_METRICS
from tests.mdc_flower.deployment.federations import BERLIN, CONTRACT, HEAD, LISBON, TWO_SITES


def read(folder: Path, text: str) -> FederationSpec:
    file = folder / "federation.toml"
    file.write_text(text, encoding="utf-8")
    return read_federation(file)


def refusal(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    assert caught.value.where.startswith(str(folder / "federation.toml"))
    return caught.value


def test_a_short_file_gets_the_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, TWO_SITES)
    assert (spec.port, spec.listen, spec.ca_days, spec.certificate_days) == (
        8443,
        "0.0.0.0",
        3650,
        365,
    )
    assert [site.name for site in spec.site] == ["berlin", "lisbon"]
    lisbon = spec.site[1]
    assert (lisbon.contact, lisbon.data, lisbon.min_examples) == ("", "", 1)
    assert (lisbon.partition_id, lisbon.num_partitions) == (-1, 0)
    assert (spec.coordinator.data, spec.coordinator.data_root) == ("", "")


def test_every_key_is_read(tmp_path: Path) -> None:
    spec = read(
        tmp_path,
        """
        name = "lungs"
        host = "2001:db8::1"
        port = 443
        hosts = ["b.example.org"]
        listen = "127.0.0.1"
        ca-days = 100
        certificate-days = 10
        [contract]
        name = "x-rays"
        type = "float32"
        shape = [3]
        classes = ["a", "b"]
        mean = [0.5]
        std = [2.0]
        [coordinator]
        data = "digits"
        data-root = "/data"
        [[site]]
        name = "Site_1.b-2"
        contact = "Zoé"
        data = "my_lab:load"
        data-root = "/d"
        vocabulary = "/v"
        input-column = "review"
        label-column = "sentiment"
        group-column = "author"
        hf-subset = "en"
        hf-test-split = "dev"
        device = "cuda:1"
        threads = 6
        micro-batch-size = 4
        min-examples = 50
        max-examples = 5000
        metrics = ["train-loss", "num-examples"]
        modules = ["lab.scans"]
        partition-id = 1
        num-partitions = 3
        [site.launch]
        ranks = "auto"
        nodes = 2
        rendezvous = "gpu-1:29400"
        shard = true
        """,
    )
    assert (spec.host, spec.port, spec.hosts) == ("2001:db8::1", 443, ("b.example.org",))
    assert (spec.listen, spec.ca_days, spec.certificate_days) == ("127.0.0.1", 100, 10)
    assert spec.contract is not None
    assert (spec.contract.name, spec.contract.mean) == ("x-rays", (0.5,))
    assert (spec.coordinator.data, spec.coordinator.data_root) == ("digits", "/data")
    assert spec.site[0].model_dump() == {
        "name": "Site_1.b-2",
        "contact": "Zoé",
        "command": "",
        "data": "my_lab:load",
        "data_root": "/d",
        "vocabulary": "/v",
        "input_column": "review",
        "label_column": "sentiment",
        "group_column": "author",
        "hf_subset": "en",
        "hf_test_split": "dev",
        "device": "cuda:1",
        "threads": 6,
        "micro_batch_size": 4,
        "min_examples": 50,
        "max_examples": 5000,
        "metrics": ("train-loss", "num-examples"),
        "modules": ("lab.scans",),
        "launch": {"ranks": "auto", "nodes": 2, "rendezvous": "gpu-1:29400", "shard": True},
        "partition_id": 1,
        "num_partitions": 3,
    }


def contract_name(spec: FederationSpec) -> str:
    assert spec.contract is not None
    return spec.contract.name


def test_the_contract_is_called_as_the_federation_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert contract_name(read(tmp_path, TWO_SITES)) == "lungs"
    named = TWO_SITES.replace("[contract]", '[contract]\nname = "x-rays"')
    assert contract_name(read(tmp_path, named)) == "x-rays"


def test_a_site_shares_every_metric_unless_it_says_otherwise(tmp_path: Path) -> None:
    spec = read(tmp_path, TWO_SITES + 'metrics = ["num-examples"]\n')
    assert spec.site[0].metrics == ALL_METRICS == tuple(sorted(TRAIN_METRICS))
    assert spec.site[1].metrics == ("num-examples",)


def test_the_certificate_is_for_every_name_and_for_the_machine_itself(tmp_path: Path) -> None:
    assert set(read(tmp_path, TWO_SITES).certificate_names) == {
        "coordinator.example.org",
        "10.0.0.5",
        "localhost",
        "127.0.0.1",
        "::1",
    }


def test_a_missing_file_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_federation(tmp_path / "missing.toml")
    assert "not TOML" in str(refusal(tmp_path, "name = \n"))


@pytest.mark.parametrize(
    ("text", "where", "near"),
    [
        (HEAD + "prot = 1\n" + CONTRACT + BERLIN, ", prot", "port"),
        (HEAD + CONTRACT + "shap = 1\n" + BERLIN, ", [contract], shap", "shape"),
        (TWO_SITES + "min-exmples = 5\n", ", site 2, min-exmples", "min-examples"),
        (TWO_SITES + "[coordinator]\ndat = 1\n", ", [coordinator], dat", "data"),
    ],
)
def test_an_unknown_key_is_named_with_its_table_and_the_nearest(
    tmp_path: Path, text: str, where: str, near: str
) -> None:
    error = refusal(tmp_path, text)
    assert error.where == f"{tmp_path / 'federation.toml'}{where}"
    assert error.hint == f"Did you mean {near!r}?"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (TWO_SITES.replace('name = "lungs"', ""), ", name"),
        (TWO_SITES.replace('name = "lungs"', "name = 3"), ", name"),
        (HEAD.replace("host =", "listen =") + CONTRACT + LISBON, ", host"),
        (HEAD + LISBON, ""),
        (HEAD + "contract = 3\n" + LISBON, ", contract"),
        (HEAD + CONTRACT, ", site"),
        ("site = []\n" + HEAD + CONTRACT, ", site"),
        (HEAD + CONTRACT + "[[site]]\n", ", site 1, name"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, where: str) -> None:
    assert refusal(tmp_path, text).where == f"{tmp_path / 'federation.toml'}{where}"


@pytest.mark.parametrize("site", ['site = "berlin"\n', 'site = ["berlin"]\n'])
def test_sites_that_are_no_tables_are_refused(tmp_path: Path, site: str) -> None:
    assert refusal(tmp_path, site + HEAD + CONTRACT).expected == "[[site]]"


def test_one_table_of_sites_is_refused_with_the_brackets_it_needs(tmp_path: Path) -> None:
    text = HEAD + CONTRACT + LISBON.replace("[[site]]", "[site]")
    assert refusal(tmp_path, text).expected == "[[site]]"


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "-option", "a/b", "a b", "é", "a\\n", "x" * 65),
        *("coordinator", "Authority", "berlin.zip", "berlin.zip.SHA256"),
    ],
)
def test_a_site_name_that_is_no_safe_folder_is_refused(tmp_path: Path, name: str) -> None:
    text = HEAD + CONTRACT + f'[[site]]\nname = "{name}"\n'
    assert refusal(tmp_path, text).where.endswith(", site 1, name")


def test_names_of_sites_differ_in_more_than_capitals(tmp_path: Path) -> None:
    message = str(refusal(tmp_path, TWO_SITES.replace("lisbon", "Berlin")))
    assert "two sites have the same name: 'berlin' and 'Berlin'" in message
    assert "same name" in str(refusal(tmp_path, TWO_SITES.replace("lisbon", "berlin")))


@pytest.mark.parametrize("name", ["", "x" * 33, "a b", "a_b", "a/b", "a\\n"])
def test_a_federation_name_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    text = TWO_SITES.replace('"lungs"', f'"{name}"')
    assert "1 to 32 letters" in str(refusal(tmp_path, text))


@pytest.mark.parametrize(
    "host",
    [
        *("", "a b", "host:8443", "https://host", "10.0.0.256", "-a.org", "a..org", "*.org"),
        *("é.org", "fe80::1%eth0", "x" * 64, ".".join(["abc"] * 65)),
    ],
)
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    for key in ('host = "coordinator.example.org"', 'hosts = ["10.0.0.5"]'):
        text = TWO_SITES.replace(key.split('"')[1], host, 1)
        assert key.split()[0] in refusal(tmp_path, text).where


@pytest.mark.parametrize("key", ["port = 0", "port = 65536", "ca-days = 0", "certificate-days = 0"])
def test_numbers_outside_their_range_are_refused(tmp_path: Path, key: str) -> None:
    assert refusal(tmp_path, f"{key}\n" + TWO_SITES).where.endswith(key.split()[0])


@pytest.mark.parametrize("module", ["", "lab scans", "lab:load", "../lab", "*"])
def test_what_is_no_module_is_refused(tmp_path: Path, module: str) -> None:
    error = refusal(tmp_path, TWO_SITES + f"modules = [{module!r}]\n")
    assert ", site 2, modules" in error.where


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('["num-examples", "train-los"]', "'train-los' is not a metric of a site. Did you mean"),
        ('["num-examples", "zzz"]', "'zzz' is not a metric of a site. Known: num-examples"),
        ('["train-loss"]', "must contain 'num-examples'"),
        ("[]", "must contain 'num-examples'"),
        ('["num-examples", "validation-loss"]', "must contain 'num-validation-examples'"),
        ('["num-examples", "num-examples"]', "must not contain a metric twice"),
    ],
)
def test_metrics_that_no_site_can_share_are_refused(
    tmp_path: Path, metrics: str, message: str
) -> None:
    error = refusal(tmp_path, TWO_SITES + f"metrics = {metrics}\n")
    assert message in str(error)
    assert error.where.endswith(", site 2, metrics")


@pytest.mark.parametrize(
    "keys",
    [
        *("partition-id = 0", "num-partitions = 2", "partition-id = 2\nnum-partitions = 2"),
        *(
            "min-examples = 0",
            "min-examples = 9\nmax-examples = 8",
            'contact = "two\\nlines"',
            'data = "a\\u0000b"',
        ),
    ],
)
def test_other_settings_that_make_no_sense_are_refused(tmp_path: Path, keys: str) -> None:
    assert ", site 2" in refusal(tmp_path, f"{TWO_SITES}\n{keys}\n").where


JOB = 'name = "lungs"\nhost = "c.example.org"\njob = "my_lab.jobs:job"\n'


def test_a_federation_may_have_a_job_in_place_of_a_contract(tmp_path: Path) -> None:
    spec = read(tmp_path, JOB + '[[site]]\nname = "a"\nmetrics = ["num-examples", "train-rmse"]\n')
    assert (spec.contract, spec.job) == (None, "my_lab.jobs:job")
    assert spec.site[0].metrics == ("num-examples", "train-rmse")


@pytest.mark.parametrize(
    "text",
    [JOB.replace("job =", "# job ="), TWO_SITES.replace("[contract]", 'job = "a:b"\n[contract]')],
    ids=["neither", "both"],
)
def test_a_federation_has_a_contract_or_a_job(tmp_path: Path, text: str) -> None:
    text = text if "[[site]]" in text else text + '[[site]]\nname = "a"\n'
    assert "has either a table [contract]" in str(refusal(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TWO_SITES.replace("[contract]", 'exchange = "trainable"\n[contract]'), "needs a job"),
        (TWO_SITES.replace("[contract]", 'keep = "head.*"\n[contract]'), "keep needs a job"),
        (JOB + f'base = "{"0f" * 32}"\n[[site]]\nname = "a"\n', "base needs an exchange"),
        (JOB + 'exchange = " "\n[[site]]\nname = "a"\n', "exchange is empty"),
        (JOB + 'exchange = "a"\nbase = "0F"\n[[site]]\nname = "a"\n', "pattern"),
    ],
)
def test_a_part_of_the_model_belongs_to_a_job(tmp_path: Path, text: str, told: str) -> None:
    assert told in str(refusal(tmp_path, text))


def test_a_job_is_a_module_and_a_function(tmp_path: Path) -> None:
    error = refusal(tmp_path, JOB.replace("my_lab.jobs:job", "job.py") + '[[site]]\nname = "a"\n')
    assert error.where.endswith(", job")


@pytest.mark.parametrize(
    ("launch", "where", "named"),
    [
        ("ranks = 0", "launch.ranks", "must be a number above 0, or 'auto' (got 0)"),
        ('ranks = "many"', "launch.ranks", "'many'"),
        ("nodes = 2", "launch", "nodes above 1 need rendezvous"),
        ('rendezvous = "gpu-1"', "launch.rendezvous", "'gpu-1'"),
        ("rank = 2", "launch.rank", "rank"),
    ],
)
def test_an_odd_launch_is_refused(tmp_path: Path, launch: str, where: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, TWO_SITES + f"[site.launch]\n{launch}\n")
    assert f"site 2, {where}" in caught.value.where
    assert named in str(caught.value)
