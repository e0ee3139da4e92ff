"""Laws of reading the settings: precedence, origins, and every problem at once with its place."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError
from config import tree
from config.environment import variable
from config.load import Loaded, effective, fingerprint, load, origins
from config.settings import Settings


def written(folder: Path, text: str, name: str = "h.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def problems(file: Path | None = None, *flags: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(file, environ=environ, flags=flags)
    return caught.value.problems


def loaded(file: Path | None = None, *flags: str, environ: Mapping[str, str] | None = None) -> Loaded:
    return load(file, environ=environ or {}, flags=flags)


def test_without_any_source_the_defaults_are_in_force() -> None:
    assert loaded().settings == Settings()
    assert set(origins(loaded()).values()) == {"default"}


def test_flags_win_over_environment_over_secrets_over_file_over_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka:\n  client_id: file\n  sasl_username: file\n  sasl_password: file\n")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    written(secrets, "folder\n", "kafka__sasl_password")
    written(secrets, "not ours", "tls.crt")
    environ = {"HEADRACE_KAFKA__SASL_USERNAME": "env", "HEADRACE_SECRETS_DIR": str(secrets)}
    read = load(file, environ={**environ, "HEADRACE_KAFKA__CLIENT_ID": "env"}, flags=["kafka.client_id=flag"])
    kafka = read.settings.kafka
    assert (kafka.client_id, kafka.sasl_username) == ("flag", "env")
    assert kafka.sasl_password is not None
    assert kafka.sasl_password.get_secret_value() == "folder"
    shown = origins(read)
    assert shown["kafka.client_id"] == "--set kafka.client_id"
    assert shown["kafka.sasl_username"] == "HEADRACE_KAFKA__SASL_USERNAME"
    assert shown["kafka.sasl_password"] == str(secrets / "kafka__sasl_password")
    assert shown["kafka.partitions"] == "default"
    assert loaded(file).origin(("kafka", "client_id")) == f"{file}:2"


def test_values_of_a_command_win_and_none_means_not_given() -> None:
    read = load(environ={"HEADRACE_DEVICE__COUNT": "5"}, values={"device.count": 7, "device.seed": None})
    assert (read.settings.device.count, read.settings.device.seed) == (7, 1)


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path, "device: {count: 3}\n")
    assert loaded(environ={"HEADRACE_CONFIG": str(file)}).settings.device.count == 3


def test_kafka_bootstrap_servers_is_an_alias_weaker_than_our_own_name() -> None:
    alias = {"KAFKA_BOOTSTRAP_SERVERS": "a:1"}
    assert loaded(environ=alias).settings.kafka.bootstrap_servers == "a:1"
    both = {**alias, "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": "b:2"}
    assert loaded(environ=both).settings.kafka.bootstrap_servers == "b:2"
    assert loaded(environ={"KAFKA_BOOTSTRAP_SERVERS": ""}).settings == Settings()


def test_every_problem_is_told_at_once_with_file_line_and_key(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "producer:\n  flush_interval_ms: 500 ms\n  batch_size: -5\n  bach_size: 10\n  acks: most\n"
        "  idempotence: perhaps\n  worker_count: true\nlog:\n  sample_rate: .nan\nprodcer: {}\nhealth: 5\n",
    )
    assert problems(file, "log.levl=DEBUG", HEADRACE_DEVICE__COUNT="many") == (
        "--set log.levl: no setting has this name; did you mean 'log.level'?",
        f"{file}:2: producer.flush_interval_ms: expected a whole number of milliseconds, not '500 ms'",
        f"{file}:3: producer.batch_size: must be at least 1 records, not -5",
        f"{file}:4: producer.bach_size: unknown key; did you mean 'batch_size'?",
        f"{file}:5: producer.acks: expected one of 'all', '1' or '0', not 'most'",
        f"{file}:6: producer.idempotence: expected true or false, not 'perhaps'",
        f"{file}:7: producer.worker_count: expected a number of partitions, not True",
        f"{file}:9: log.sample_rate: expected a number, not nan",
        f"{file}:10: prodcer: unknown key; did you mean 'producer'?",
        f"{file}:11: health: expected keys with values",
        "HEADRACE_DEVICE__COUNT: device.count: expected a whole number of devices, not 'many'",
    )


def test_every_unknown_variable_of_ours_is_told_at_once() -> None:
    told = problems(HEADRACE_PRODUCER_BATCH_SIZE="1", HEADRACE_NOPE="1", HEADRACE_DEVICE__CONT="1", OTHER="x")
    assert told == (
        "HEADRACE_DEVICE__CONT: no setting has this name; did you mean 'HEADRACE_DEVICE__COUNT'?",
        "HEADRACE_NOPE: no setting has this name",
        "HEADRACE_PRODUCER_BATCH_SIZE: no setting has this name; did you mean 'HEADRACE_PRODUCER__BATCH_SIZE'?",
    )


def test_service_links_of_kubernetes_are_not_ours() -> None:
    links = {
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT": "8080",
        "HEADRACE_SERVICE_PORT_HTTP": "8080",
        "HEADRACE_PORT": "tcp://10.0.0.1:8080",
        "HEADRACE_PORT_8080_TCP_ADDR": "10.0.0.1",
        "HEADRACE_CANARY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    }
    assert loaded(environ=links).settings == Settings()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("producer:\n  acks: all\n  acks: all\n", 3, "producer.acks: is given twice, first in line 2"),
        ("producer:\n\tacks: all\n", 2, "is not YAML"),
        ("producer: [\n", 2, "is not YAML"),
        ("- producer\n", 1, "expected sections"),
        ("a: 1\n---\nb: 2\n", 2, "is not YAML: holds more than one document"),
        ("producer: !!python/object:os.system {}\n", 1, "is not YAML: could not determine a constructor"),
        ("producer: &p\n  acks: *p\n", 1, "refers to itself"),
        ("log:\n  levels:\n    1: DEBUG\n", 3, 'a key must be text; write "1" in quotes'),
        ("producer:\n  yes: 1\n", 2, "a key must be text"),
        ("? [a]\n: 1\n", 1, "a key must be text"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_by_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    file = written(tmp_path, text)
    (told, *_) = problems(file)
    assert told.startswith(f"{file}:{line}: ")
    assert words in told


def test_a_file_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    levels = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 12))
    (told, *_) = problems(written(tmp_path, f"x0: &x0 [a]\n{levels}\n"))
    assert "unfolds to more than" in told


def test_a_missing_file_a_folder_and_other_bytes_are_one_sentence_each(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == (f"{tmp_path / 'none.yaml'}: there is no such file",)
    assert problems(tmp_path) == (f"{tmp_path}: cannot be read: Is a directory",)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"log:\n  service: \xff\xfe\n")
    assert problems(binary) == (f"{binary}:2: is not UTF-8 text",)


def test_empty_files_and_sections_set_nothing(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "---\n", "producer:\nlog: {}\n"):
        assert loaded(written(tmp_path, text)).settings == Settings()


def test_merge_keys_keep_the_lines_of_what_they_merge(tmp_path: Path) -> None:
    file = written(tmp_path, "producer: &p\n  batch_size: 5\ntables:\n  <<: *p\n  max_open_files: 20\n")
    assert problems(file) == (f"{file}:2: tables.batch_size: unknown key; did you mean 'producer.batch_size'?",)


def test_items_of_lists_are_named_by_their_place(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "sinks:\n  targets:\n    - name: a\n      kind: jsonl\n      path: x\n"
        "    - name: b\n      kind: jsonl\n      path: x\n      batch_size: 0\n"
        "signals:\n  rules:\n    - {id: r, kind: threshold, above: hot, abve: 1}\n",
    )
    assert problems(file) == (
        f"{file}:9: sinks.targets[1].batch_size: must be at least 1 records, not 0",
        f"{file}:12: signals.rules[0].above: expected a number, not 'hot'",
        f"{file}:12: signals.rules[0].abve: unknown key; did you mean 'above'?",
    )


def test_a_secret_can_be_a_file_also_inside_of_lists(tmp_path: Path) -> None:
    password = written(tmp_path, "p w\n", "password")
    url = written(tmp_path, "sqlite:///x.db\n", "url")
    file = written(
        tmp_path,
        f"kafka: {{sasl_password_file: {password}}}\nsinks: {{targets: [{{name: a, kind: sql, url_file: {url}}}]}}\n",
    )
    read = loaded(file)
    assert read.settings.kafka.sasl_password is not None
    assert read.settings.kafka.sasl_password.get_secret_value() == "p w"
    target = read.settings.sinks.targets[0].url
    assert target is not None
    assert target.get_secret_value() == "sqlite:///x.db"
    assert read.origin(("kafka", "sasl_password")) == f"{file}:1 ({password})"
    assert set(read.files) == {file, password, url}
    by_variable = loaded(environ={"HEADRACE_KAFKA__SASL_PASSWORD_FILE": str(password)})
    assert by_variable.settings.kafka.sasl_password == read.settings.kafka.sasl_password


def test_a_secret_file_that_is_absent_or_not_alone_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    file = written(tmp_path, f"kafka:\n  sasl_password_file: {absent}\n")
    assert problems(file) == (
        f"{file}:2: kafka.sasl_password_file: the secret file {absent} cannot be read: No such file or directory",
    )
    file = written(tmp_path, f"kafka:\n  sasl_password: x\n  sasl_password_file: {absent}\n")
    assert problems(file) == (
        f"{file}:3: kafka.sasl_password_file: sasl_password is given as well; keep one of the two",
    )


def test_no_problem_quotes_a_secret(tmp_path: Path) -> None:
    file = written(tmp_path, "kafka:\n  sasl_password: [hunter2]\n  client_id: {password: hunter2}\n")
    told = " ".join(problems(file))
    assert "sasl_password" in told
    assert "hunter2" not in told


def test_shown_settings_and_their_hash_hold_no_secret(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "kafka: {sasl_password: hunter2, client_id: 'http://me:hunter2@host/'}\n"
        "sinks: {targets: [{name: w, kind: http, url: 'http://u:hunter2@h/', http_headers: {X-Key: hunter2}}]}\n",
    )
    settings = loaded(file).settings
    text = json.dumps(effective(settings))
    assert "hunter2" not in text
    assert text.count("[REDACTED]") == 4
    other = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"sasl_password": None})})
    assert fingerprint(settings) != fingerprint(other)
    assert "hunter2" not in repr(loaded(file).settings.kafka.sasl_password)


def test_the_hash_depends_on_values_not_on_their_source(tmp_path: Path) -> None:
    file = written(tmp_path, "device: {count: 3}\n")
    by_file, by_flag = loaded(file).settings, loaded(None, "device.count=3").settings
    assert fingerprint(by_file) == fingerprint(by_flag) != fingerprint(Settings())


def test_lists_and_mappings_come_from_variables_too() -> None:
    read = loaded(
        environ={
            "HEADRACE_DEVICE__SITES": "north, south",
            "HEADRACE_DEVICE__MIX": '{"pump": 1}',
            "HEADRACE_LOG__LEVELS__AIOKAFKA": "ERROR",
            "HEADRACE_SINKS__TARGETS": '[{"name": "a", "kind": "jsonl", "path": "x"}]',
            "HEADRACE_KAFKA__REPLICATION_FACTOR": "",
        }
    )
    assert read.settings.device.sites == ["north", "south"]
    assert read.settings.device.mix == {"pump": 1.0}
    assert read.settings.log.levels == {"aiokafka": "ERROR"}
    assert [target.name for target in read.settings.sinks.targets] == ["a"]
    assert read.settings.kafka.replication_factor is None
    assert problems(HEADRACE_DEVICE__MIX="pump") == (
        "HEADRACE_DEVICE__MIX: device.mix: expected JSON, as in '[1, 2]' or '{\"a\": 1}'",
    )


def test_keys_that_do_not_fit_together_are_refused_with_their_section(tmp_path: Path) -> None:
    file = written(tmp_path, "log: {level: DEBUG}\nproducer:\n  acks: '1'\n")
    assert problems(file) == (
        f"{file}:2: producer: idempotence needs acks 'all'; set idempotence to false or acks to 'all'",
    )


def test_ports_of_one_process_differ() -> None:
    (told,) = problems(None, "health.port=8080")
    assert "http.port and health.port are both 8080" in told


def test_every_key_has_a_meaning_and_numbers_with_a_dimension_have_its_unit_in_the_name() -> None:
    units = {"ms": "_ms", "s": "_s", "bytes": "_bytes", "days": "_days"}
    for leaf in tree.leaves(Settings):
        assert leaf.field.description, leaf.dotted
        assert tree.mark(leaf.field, "reload") in ("hot", "restart"), leaf.dotted
        if leaf.unit in units:
            name = leaf.path[-1]
            assert name.endswith(units[leaf.unit]) or units[leaf.unit].strip("_") in name, leaf.dotted


def test_every_key_has_a_variable_that_sets_it() -> None:
    for leaf in tree.leaves(Settings):
        value = tree.value_at(Settings(), leaf.path)
        if isinstance(value, str | int | float):
            environ = {variable(leaf.path): str(value).lower() if isinstance(value, bool) else str(value)}
            assert loaded(environ=environ).settings == Settings(), leaf.dotted


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["producer", "kafka", "sinks", "targets", "signals", "rules", "acks", "log", "levels", "x"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_is_settings_or_problems(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    file = tmp_path_factory.mktemp("any") / "h.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    try:
        told = [type(loaded(file).settings).__name__]
    except ConfigError as error:
        told = [problem if str(file) in problem else "" for problem in error.problems]
    assert told
    assert all(told)


def test_a_text_of_the_wrong_form_is_told_the_form_in_words() -> None:
    (problem,) = problems(KAFKA_BOOTSTRAP_SERVERS="nohost")
    assert problem == (
        "KAFKA_BOOTSTRAP_SERVERS: kafka.bootstrap_servers: "
        "expected host:port, several of them with commas, not 'nohost'"
    )


def test_a_refused_item_is_the_only_problem_of_its_list(tmp_path: Path) -> None:
    file = written(tmp_path, "rollup:\n  ladder:\n  - {size_ms: 7}\n")
    assert problems(file) == (f"{file}:3: rollup.ladder[0].size_ms: must be at least 10 ms, not 7",)
    empty = written(tmp_path, "rollup:\n  ladder: []\n", "empty.yaml")
    assert len(problems(empty)) == 1
