"""The lab that an attack asks for, before it is started: its settings can be written and are read as they were meant."""

from pathlib import Path

import pytest

from chaos.attack.run import RESTART_AFTER_SECONDS, SCRUB_SECONDS, Attack
from chaos.lab import render
from chaos.lab.layout import Wires, check, port_names, settings_of
from cluster import settings


@pytest.mark.parametrize("network", Wires)
def test_the_lab_of_an_attack_has_the_settings_that_it_relies_on(tmp_path: Path, network: Wires) -> None:
    request = Attack(tmp_path, print, seed=1, minutes=1.0, network=network).request
    check(request)
    ports = {name: 20_000 + number for number, name in enumerate(port_names(request))}
    file = tmp_path / "cluster.toml"
    file.write_text(render.toml(settings_of(request, ports)), encoding="utf-8")
    found = settings.load(file)

    assert found.rejoin.restart_after_seconds == RESTART_AFTER_SECONDS
    assert found.archive.scrub_every_hours * 3_600 == pytest.approx(SCRUB_SECONDS, rel=0.01)
