"""Chips: the presets against the areas and times of their sources, files that are wrong, other sizes of crossbars."""

import json
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given
from hypothesis import strategies as st

from sparing.errors import ArgumentError, ConfigError, FormatError, VersionError
from sparing.pim import hardware as hardware_module
from sparing.pim.area import table_area, tile_area
from sparing.pim.crossbar import CrossbarSize
from sparing.pim.hardware import PRESETS, load_hardware
from sparing.pim.parts import Memory, MemoryClass, Switch, SwitchLane

MNSIM = Path(hardware_module.__file__).parent / "presets" / "mnsim.toml"


@pytest.fixture
def mnsim():
    return load_hardware("mnsim")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_each_table_of_numbers_names_its_source(name):
    hardware = load_hardware(name)
    assert hardware.name == name
    hash(hardware)

    def tables(value):
        if isinstance(value, dict):
            numbers = any(isinstance(x, int | float) and not isinstance(x, bool) for x in value.values())
            yield from [value] if numbers else []
            for part in value.values():
                yield from tables(part)

    exempt = {"register", "shift", "adder"}  # in the table of the digital circuits, which has a source
    document = tomllib.loads((MNSIM.parent / f"{name}.toml").read_text())
    assert document.pop("version") == 1
    for part in exempt:
        document["digital"].pop(part)
    found = list(tables(document))
    assert len(found) >= 11
    assert all(len(table["source"]) > 10 for table in found)


def test_areas_are_those_of_the_reference(mnsim):
    small = mnsim.tile.pe.input_buffer.holding(100)
    area = {name: value * 1e6 for name, value in tile_area(mnsim, small, small).items()}
    assert area["crossbar"] / 4 == pytest.approx(0.7775, abs=1e-3)
    assert area["adc"] / 4 == pytest.approx(0.2112, abs=1e-6)
    assert area["buffers"] == pytest.approx(5 * 0.04058, rel=1e-4)
    assert sum(area.values()) == pytest.approx(4.317801, rel=1e-6)
    assert table_area(mnsim, 0) == 0
    assert table_area(mnsim, 1) == small.area_m2


def test_times_are_those_of_the_reference(mnsim):
    pe = mnsim.tile.pe
    assert pe.dac.conversion_s + pe.crossbar.read_s + pe.adc.conversion_s == pytest.approx(14.16e-9)
    assert pe.demux.switch_s(pe.row_turns) == pytest.approx(0.55866e-9)
    assert pe.mux.switch_s(pe.col_turns) == pytest.approx(0.065488e-9)
    assert pe.crossbar.cell_power_w == pytest.approx(0.1 * 0.15**2 * (0.67 / 1e6 + 0.33 / 1e4))
    assert pe.adc.energy_j == pytest.approx(1.26e-3 * 8e-9)


def test_a_copy_of_a_preset_is_a_chip_of_ones_own(mnsim, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MNSIM.read_text().replace("conversion_s = 8e-9", "conversion_s = 4e-9"))
    found = load_hardware(path)
    assert found.tile.pe.adc.conversion_s == 4e-9
    assert found.tile.pe.dac == mnsim.tile.pe.dac


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("read_s = 3.16e-9\n", "", "tile.pe.crossbar.read_s"),
        ("read_s = 3.16e-9", 'read_s = "3.16e-9"', "tile.pe.crossbar.read_s"),
        ("read_s = 3.16e-9", "read_s = true", "tile.pe.crossbar.read_s"),
        ("read_s = 3.16e-9", "read_s = nan", "tile.pe.crossbar.read_s"),
        ("read_s = 3.16e-9", "read_s = inf", "tile.pe.crossbar.read_s"),
        ("read_s = 3.16e-9", "read_s = 2020-01-01", "tile.pe.crossbar.read_s"),
        ("read_s = 3.16e-9", "read_ns = 3.16", "tile.pe.crossbar.read_ns"),
        ("area_m2 = 1.65e-9", "area_m2 = -1.65e-9", "tile.pe.adc.area_m2"),
        ("num_adcs = 128", "num_adcs = 0", "tile.pe.num_adcs"),
        ("num_adcs = 128", "num_adcs = 1.5", "tile.pe.num_adcs"),
        ('source = "MNSIM 2.0: 6 bits', '# source = "MNSIM 2.0: 6 bits', "tile.pe.adc.source"),
        ("word_bits = 64", "word_bits = -1", "tile.output_buffer.word_bits"),
        ('name = "mnsim"', 'name = ""', "name"),
        ("rows = 256", "rows = 65537", "tile.pe.crossbar.rows"),
        ("{ capacity_bytes = 2048,", "{ capacity_bytes = 1e9,", "tile.output_buffer.classes"),
        ("{ ratio = 8,", "{ ratio = 4,", "tile.pe.mux.lanes"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(old, new, field, tmp_path):
    text = MNSIM.read_text()
    assert old in text
    path = tmp_path / "chip.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(FormatError, match=rf"chip.toml: not a chip: (.*; )?{field.replace('.', '[.]')}: "):
        load_hardware(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "chip.toml"
    for content in (b"this is = = not", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="not TOML"):
            load_hardware(path)
    path.write_text('schema_name = "another"\nversion = 1\n')
    with pytest.raises(FormatError, match="schema_name"):
        load_hardware(path)
    path.write_text(MNSIM.read_text().replace("version = 1", "version = 2"))
    with pytest.raises(VersionError, match="version 2"):
        load_hardware(path)


@pytest.mark.parametrize("name", ["mnsim2", "", "no/such.toml"])
def test_an_unknown_chip_is_answered_with_those_that_are_known(name):
    with pytest.raises(ConfigError, match="isaac, mnsim") as caught:
        load_hardware(name)
    assert repr(name) in str(caught.value) or not name


def test_a_smaller_crossbar_has_fewer_converters(mnsim):
    small = mnsim.with_crossbar(CrossbarSize(64, 32))
    pe = small.tile.pe
    assert (pe.crossbar.rows, pe.crossbar.cols, pe.num_dacs, pe.num_adcs) == (64, 32, 32, 16)
    assert (pe.row_turns, pe.col_turns) == (2, 2)
    assert pe.crossbar.area_m2 == pytest.approx(64 * 32 * 1.44e-12 + 64 * 1.15e-9)
    assert mnsim.tile.pe.crossbar.rows == 256
    assert mnsim.with_crossbar(mnsim.crossbar) == mnsim
    one = mnsim.with_crossbar(CrossbarSize(1, 1)).tile.pe
    assert (one.num_dacs, one.num_adcs) == (1, 1)


def test_converters_are_within_the_lines(mnsim):
    more = mnsim.with_crossbar(CrossbarSize(), num_dacs=256, num_adcs=1).tile.pe
    assert (more.row_turns, more.col_turns) == (1, 256)
    for wrong in ({"num_dacs": 0}, {"num_dacs": 65}, {"num_adcs": 65}, {"num_adcs": -1}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}: expected 1 to 64"):
            mnsim.with_crossbar(CrossbarSize(64, 64), **wrong)


@given(st.integers(1, 10**6), st.integers(1, 512), st.floats(1e-10, 1e-6))
def test_a_memory_moves_whole_words(bits, word, seconds):
    memory = Memory(word_bits=word, word_s=seconds, classes=(SMALL,), source="test")
    words = memory.access_s(bits) / seconds
    assert words == pytest.approx(round(words))
    assert (round(words) - 1) * word < bits <= round(words) * word
    assert memory.access_s(0) == 0


SMALL = MemoryClass(capacity_bytes=100, area_m2=2.0, leakage_w=3.0, read_j=5.0, write_j=7.0)
LARGE = MemoryClass(capacity_bytes=200, area_m2=11.0, leakage_w=13.0, read_j=17.0, write_j=19.0)


def test_buffers_come_in_classes_and_then_in_banks():
    memory = Memory(word_bits=8, word_s=0.5, classes=(SMALL, LARGE), source="test")
    assert memory.holding(0) == memory.holding(100) == SMALL
    assert memory.holding(100.5) == memory.holding(200) == LARGE
    banks = memory.holding(401)
    assert (banks.capacity_bytes, banks.area_m2, banks.leakage_w) == (600, 33, 39)
    assert (banks.read_j, banks.write_j) == (17, 19)
    assert memory.read_w(SMALL) == 3 + 5 / 0.5
    assert memory.write_w(LARGE) == 13 + 19 / 0.5


def test_switches_need_a_stage_for_each_digit_and_one_more():
    lanes = (SwitchLane(ratio=2, power_w=1.0, area_m2=2.0), SwitchLane(ratio=8, power_w=9.0, area_m2=12.0))
    switch = Switch(fan_in=8, stage_s=1.0, lanes=lanes, source="test")
    assert [switch.switch_s(n) for n in (1, 2, 7, 8, 63, 64)] == [2, 2, 2, 3, 3, 4]
    assert switch.lane(1) == switch.lane(2) == lanes[0]
    assert switch.lane(3) == lanes[1]
    assert switch.lane(16) == SwitchLane(ratio=16, power_w=18.0, area_m2=24.0)


def test_a_chip_prints_as_json(mnsim):
    assert json.loads(mnsim.model_dump_json(by_alias=True))["tile"]["pe"]["adc"]["bits"] == 6
