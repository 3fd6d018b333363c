import pickle
from pathlib import Path

import pytest

from benchmarks import config
from benchmarks.config.bench import BenchConfig
from benchmarks.config.certify import CertifyConfig
from benchmarks.config.sections import ConfigError
from benchmarks.config.sweep import load_compare, load_sweep
from benchmarks.experiments.train import TrainConfig
from purify.purifiers import PURIFIERS

GOOD = """
data: {name: fashion-mnist-embedded, images: 4}
classifier: fashion-mnist
score: fashion-mnist
purifier: {t_star: 0.1, steps: 5}
attacks:
  - {kind: pgd, threat: {norm: Linf, epsilon: 8/255}, steps: 3}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text(GOOD)
    return path


def test_defaults_overrides_and_fractions(file):
    settings = config.load(BenchConfig, str(file), ["purifier.t_star=0.2", "attacks.0.eot=7", "seed=3"])
    assert settings.purifier.t_star == 0.2
    assert settings.attacks[0].eot == 7
    assert settings.attacks[0].threat.epsilon == 8 / 255
    assert (settings.seed, settings.draws) == (3, 8)


def test_dump_reads_back(file, tmp_path):
    settings = config.load(BenchConfig, str(file))
    config.dump(settings, tmp_path / "dumped.yaml")
    assert config.load(BenchConfig, str(tmp_path / "dumped.yaml")) == settings


def test_extends_a_packaged_one_by_name(tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: fashion-mnist/bench\nseed: 7\n")
    packaged = config.load(BenchConfig, "fashion-mnist/bench")
    assert config.load(BenchConfig, str(child)) == packaged.model_copy(update={"seed": 7})
    child.write_text("extends: fashion-mnist/bnch\n")
    with pytest.raises(ConfigError, match="there is no file .*; did you mean the packaged 'fashion-mnist/bench'?"):
        config.load(BenchConfig, str(child))


def test_extends(file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: bench.yaml\npurifier: {steps: 9}\n")
    settings = config.load(BenchConfig, str(child))
    assert (settings.purifier.steps, settings.purifier.t_star) == (9, 0.1)


@pytest.mark.parametrize("path", sorted(str(p) for p in config.configs_folder().rglob("*.yaml")))
def test_every_packaged_configuration_is_valid(path):
    match Path(path).stem.split("_")[0]:
        case "train":
            config.load(TrainConfig, path)
        case "certify":
            config.load(CertifyConfig, path)
        case "sweep":
            assert all(point.settings for point in load_sweep(path).points)
        case "compare":
            assert all(point.settings for point in load_compare(path).points)
        case _:
            config.load(BenchConfig, path)


def test_another_scheme_has_keys_of_its_own(file, tmp_path):
    """By --set, and in a file that extends another, naming a scheme replaces the section of the old one."""
    settings = config.load(BenchConfig, str(file), ["purifier.scheme=gdmp", "purifier.passes=2"])
    assert (settings.purifier.scheme, settings.purifier.passes, settings.purifier.steps) == ("gdmp", 2, 36)
    child = tmp_path / "child.yaml"
    child.write_text("extends: bench.yaml\npurifier: {scheme: one_shot}\n")
    assert config.load(BenchConfig, str(child)).purifier.options == {"t_star": 0.1, "gradient": "exact", "time": "own"}
    assert config.load(BenchConfig, str(file), ["purifier.scheme=diffpure"]).purifier.steps == 5


@pytest.mark.parametrize("scheme", PURIFIERS)
def test_sections_of_all_schemes_travel_to_other_processes(file, scheme):
    settings = config.load(BenchConfig, str(file), [f"purifier={{scheme: {scheme}}}"])
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_packaged_names():
    assert config.find("fashion-mnist/bench").name == "bench.yaml"
    assert config.find("configs/fashion-mnist/bench.yaml").name == "bench.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("purifier.t_stra=0.1", "unknown key 'purifier.t_stra'; did you mean 't_star'?"),
        ("sead=0", "unknown key 'sead'; did you mean 'seed'?"),
        ("attacks.0.stepz=4", "unknown key 'attacks.0.pgd.stepz'; did you mean 'steps'?"),
        ("draws=0", "draws: Input should be greater than 0, got 0"),
        (
            "purifier.gradient=full",
            "purifier.gradient: Input should be 'exact', 'backprop', 'adjoint' or 'bpda', got 'full'",
        ),
        ("attacks.0.threat.epsilon=eight", "epsilon: Input should be a valid number"),
        ("attacks.0.threat.epsilon=1/0", "epsilon: Input should be a valid number"),
        ("attacks.0.kind=fgsm", "attacks.0.kind: expected one of 'pgd', 'apgd', .*, got 'fgsm'"),
        ("purifier.scheme=none", "purifier.scheme: expected one of 'diffpure', 'langevin', .*, got 'none'"),
        ("attacks.5.steps=1", "--set attacks.5.steps: there is nothing at this key"),
        ("draws", "--set takes key=value, got 'draws'"),
        ("seed.x=1", "--set seed.x: there is nothing at this key"),
        ("draws=[", "--set draws: '\\[' is not YAML"),
    ],
)
def test_mistakes_are_named(file, override, message):
    file.write_text("seed: 1\n" + GOOD)
    with pytest.raises(ConfigError, match=message):
        config.load(BenchConfig, str(file), [override])


def test_missing_key(file):
    file.write_text(GOOD.replace("score: fashion-mnist\n", ""))
    with pytest.raises(ConfigError, match="missing key 'score'"):
        config.load(BenchConfig, str(file))


def test_repeated_attack_names(file):
    file.write_text(GOOD + GOOD.splitlines()[-1] + "\n")
    with pytest.raises(ConfigError, match="every attack needs a name of its own, repeated or reserved: pgd"):
        config.load(BenchConfig, str(file))


def test_not_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="no configuration 'fashion-mnist/bensh'.*did you mean 'fashion-mnist/bench'"):
        config.load(BenchConfig, "fashion-mnist/bensh")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        config.load(BenchConfig, str(broken))
    broken.write_text("- 1")
    with pytest.raises(ConfigError, match="must hold a mapping of sections, got list"):
        config.load(BenchConfig, str(broken))
    broken.write_text("extends: broken.yaml")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        config.load(BenchConfig, str(broken))
