"""What a plan says: which settings fit and why, how long messages take, what is refused before any work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from egmf_dist.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig
from egmf_dist.config.check import check_config
from egmf_dist.errors import EgmfError
from egmf_dist.ledger import Count, Ledger
from egmf_dist.scale.advice import Machines, Work, advise, judge
from egmf_dist.scale.hardware import HARDWARE, at, find_hardware, in_fp32
from egmf_dist.scale.loader import Loader
from egmf_dist.scale.memory import Sizes, Way
from egmf_dist.scale.options import PlanOptions
from egmf_dist.scale.plan import check_options
from egmf_dist.scale.rehearsal import Rehearsal, deeper
from egmf_dist.scale.subject import read_subject
from egmf_dist.scale.sweep import draw, sweep
from egmf_dist.scale.table import WORLDS, markdown, table
from egmf_dist.scale.timing import for_ranks, message_seconds, step_time
from egmf_shards import Sample, ShardWriter
from egmf_shards.importers.meld import TASK

LORA = {"trained": 200_000_000, "width": 2, "largest": 900_000_000, "activations": 8e9, "checkpointed": 1e9}
QUICK = Loader(1e-4, 30e3, 1_000_000)
SLOW = Loader(5e-3, 2e6, 1_000_000, given_bandwidth=1e8)


def work(flops: float = 1e14, lora: bool = True) -> Work:
    return Work(Count(work=Counter({(int(flops / 1000), 10**9): 1000})), 2, 64, lora)


def base(numbers: float) -> Sizes:
    return Sizes(frozen=int(numbers), quantisable=int(0.97 * numbers), **LORA)


def full(numbers: float) -> Sizes:
    return replace(base(0), frozen=0, trained=int(numbers))


ONE, EIGHT, MANY = (Machines(HARDWARE["h200"], hosts, ranks) for hosts, ranks in ((1, 1), (1, 8), (4, 8)))


@pytest.mark.parametrize(
    ("sizes", "machines", "loader", "way", "reason"),
    [
        (base(7e9), EIGHT, QUICK, Way(1), "stage 1 moves the trained weights alone"),
        (base(72e9), EIGHT, QUICK, Way(3), "the base fits only when it is sharded"),
        (base(72e9), ONE, QUICK, Way(1, quantised=True), "four bits round the frozen weights"),
        (full(9e9), ONE, QUICK, Way(1, True, "optimizer"), "without offloading nothing fits"),
        (base(2000e9), ONE, QUICK, None, "nothing fits"),
        (base(0.3e9), EIGHT, SLOW, Way(1), "the run is bound by the loader: the store's bandwidth"),
    ],
    ids=["one GPU", "sharded", "four bits", "offload", "nowhere", "loader"],
)
def test_the_advice_is_right_and_says_why(sizes, machines, loader, way, reason):
    advice = advise(sizes, work(lora=sizes.frozen > 0), machines, loader)
    assert (None if advice.best is None else advice.best.way) == way
    assert any(reason in line for line in advice.words), advice.words
    assert any("bound by the loader" in line for line in advice.words) == (loader is SLOW)


def test_what_does_not_fit_is_named_with_what_fills_it():
    advice = advise(base(72e9), work(), EIGHT)
    (line,) = (line for line in advice.words if line.startswith("stage 1 as it is does not fit"))
    assert "most of it frozen (134.1 GiB)" in line  # 72e9 weights of 2 bytes


def test_between_hosts_a_copy_a_host_is_taken_where_it_fits():
    assert advise(base(100e9), work(), MANY).best.way == Way(3, hpz=8)
    # 500e9 weights: an eighth of them is 116 GiB and leaves no room for a copy.
    assert advise(base(500e9), work(), MANY).best.way.hpz == 1


def test_a_stage_moves_what_its_algorithm_moves():
    sizes, machines = base(72e9), EIGHT
    first, second, third = (judge(Way(stage), sizes, work(), machines).sent for stage in (1, 2, 3))
    trained = 2 * sizes.trained
    assert first == {"all-gather": trained, "all-reduce": 2 * trained}  # gradients in fp32, once
    assert second == {"all-gather": trained, "all-reduce": 2 * trained}  # in bf16, in each of two micro-batches
    gathered = 2 * 2 * (2 * (sizes.frozen + sizes.trained) - sizes.live)  # but for what stays between the passes
    assert third["all-gather"] == pytest.approx(gathered, rel=1e-9)
    assert third["reduce-scatter"] == 2 * trained


def test_a_ring_takes_what_the_formula_says():
    count = Count(messages=Counter({("all-reduce", 8_000_000_000, 8): 1}))
    inside, outside = message_seconds(count.messages, HARDWARE["h200"], 1, 8)
    assert inside == pytest.approx(2 * (3e-6 * 3 + 8e9 * 7 / 8 / 450e9))
    assert outside == 0
    wider = for_ranks(count, 8, 16)
    inside, outside = message_seconds(wider.messages, HARDWARE["h200"], 2, 8)
    assert inside == 0
    assert outside == pytest.approx(2 * (10e-6 * 4 + 8e9 * 15 / 16 / 400e9))  # eight adapters of 50 GB/s a host
    shared = find_hardware("h200", (None, "ethernet"))
    assert message_seconds(wider.messages, shared, 2, 8)[1] == pytest.approx(2 * (30e-6 * 4 + 8e9 * 15 / 16 / 12.5e9))
    among_four = Count(messages=Counter({("all-gather", 1000, 4): 1, ("all-gather", 10, 8): 1}))
    assert for_ranks(among_four, 8, 64).messages == {("all-gather", 1000, 4): 1, ("all-gather", 10, 64): 1}


def rehearsed(layers: int) -> Rehearsal:
    """A message that grows with the layers in one buffer with one that does not, and one message a layer."""
    messages = Counter({("all-reduce", 1000 + 64 * layers, 8): 2, ("all-gather", 50, 8): 3 * layers})
    work = Counter({(500 + 10 * layers, 100): 1, (7, 8): 4 * layers})
    numbers = [8, 1, 3, *[100 * layers] * 10]
    return Rehearsal(*numbers, 1000, 1000, 64, Count(messages, work), Count(messages, work), layers=layers)


def test_a_deeper_model_comes_to_what_it_would_itself() -> None:
    found, wanted = deeper(rehearsed(4), rehearsed(6), 80), rehearsed(80)
    assert found.step.bytes_by_kind == wanted.step.bytes_by_kind
    assert found.step.flops == wanted.step.flops
    assert found.peak_bytes == wanted.peak_bytes


def test_an_operator_takes_the_longer_of_products_and_bytes():
    hardware = replace(HARDWARE["h200"], reached=(1.0, 1.0), call=0.0)
    for flops, size in ((989e12, 0), (0, 4.8e12)):
        time = step_time(Count(work=Counter({(int(flops), int(size)): 1})), hardware, 1, 1)
        assert time.step == pytest.approx(1.0)
    serial = replace(hardware, serial=True, call=0.5)
    assert step_time(Count(work=Counter({(int(989e12), 0): 2})), serial, 1, 1).step == pytest.approx(3.0)


def test_a_sweep_loses_efficiency_where_links_bind_and_says_what_binds(tmp_path):
    messages = Counter({("all-gather", 150_000_000_000, 8): 2})
    rehearsal = Rehearsal(8, 3, 1, *[0] * 10, 1000, 1000, 64, Count(), Count(messages, work(1e15).count.work))
    machines = Machines(find_hardware("h200", (None, "ethernet")), 1, 8)
    rows = sweep(rehearsal, machines, 64, QUICK)
    assert [row["ranks"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[0]["efficiency"] == 1
    assert rows[-1]["efficiency"] < rows[1]["efficiency"] < 0.5
    assert {row["binds"] for row in rows} == {"compute", "link"}
    assert {row["binds"] for row in sweep(rehearsal, machines, 64, SLOW)} >= {"loader"}
    assert draw(rows, "a title", tmp_path).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hardware": "tpu"}, "--hardware is 'tpu'; it may be h100, h200, a100, l40s, 4090, cpu"),
        ({"inside": "string"}, "a link is 'string'; it may be nvlink4"),
        ({"hosts": 0}, "--hosts is 0; it must be 1 or more"),
        ({"price": -1.0}, "--price is -1.0; it must be above 0"),
        ({"host_memory": 0.0}, "--host-memory is 0.0; it must be above 0"),
        ({"calibrate": True}, "--calibrate measures this machine's CPU"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(change, says):
    with pytest.raises(EgmfError) as caught:
        check_options(PlanOptions(**change))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_and_a_hosts_memory_can_be_given():
    machines = check_options(PlanOptions(outside="ethernet", host_memory=10))
    assert machines.hardware.outside.name == "Ethernet 100 Gb/s"
    assert machines.hardware.host_memory == 10e9
    assert find_hardware("H200") == HARDWARE["h200"]


def test_every_machine_says_where_its_figures_are_from():
    for hardware in HARDWARE.values():
        assert hardware.source
        for link in (hardware.inside, hardware.outside):
            assert link.source


@pytest.mark.parametrize("options", [{"stage3_nothing": 1}, {"reduce_bucket_size": -1}, {"allgather_bucket_size": 7}])
def test_an_option_of_zero_that_does_not_exist_is_refused(options):
    config = Config()
    with pytest.raises(
        EgmfError, match=r"training.zero_options .* numbers from 0 \(.*even\) by the names stage3_param"
    ):
        check_config(replace(config, training=replace(config.training, zero_options=options)))
    check_config(replace(config, training=replace(config.training, zero_options={"reduce_bucket_size": 1})))


def test_a_ledger_counts_products_and_what_is_alive():
    with Ledger() as ledger:
        a = torch.ones(100, 200)
        b = a @ torch.ones(200, 50)
        assert ledger.alive == 4 * (100 * 200 + 100 * 50)
        assert ledger.peak == 4 * (100 * 200 + 200 * 50 + 100 * 50)
        del a
        ledger.from_now()
        view = b.view(-1)
        assert ledger.peak == ledger.alive == 4 * 100 * 50
    assert ledger.count.flops == 2 * 100 * 200 * 50
    assert view.shape == (5000,)
    assert Count.from_json(ledger.count.to_json()) == ledger.count
    assert (ledger.count + ledger.count) - ledger.count == ledger.count.times(1)


def test_what_is_computed_again_counts_once_whichever_way_was_rehearsed():
    sizes = replace(base(7e9), again=1.5)
    kept, again = work(1e16), replace(work(1.5e16), checkpointing=True)
    for way in (Way(1), Way(1, checkpointing=True)):
        first, second = (judge(way, sizes, one, EIGHT).time.compute for one in (kept, again))
        assert first == pytest.approx(second)
    assert judge(Way(1, checkpointing=True), sizes, kept, EIGHT).time.compute == pytest.approx(
        1.5 * judge(Way(1), sizes, kept, EIGHT).time.compute
    )


def test_who_reads_itself_waits_for_it():
    inline = replace(QUICK, inline=True)
    assert (QUICK.waits(64), inline.waits(64)) == (0.0, pytest.approx(64 * 1e-4))
    hardware = replace(HARDWARE["h200"], call=0.0)
    count = Count(work=Counter({(10**12, 0): 1}))
    plain, waiting = (step_time(count, hardware, 1, 1, reading=s) for s in (0.0, 9.0))
    assert waiting.step == pytest.approx(plain.step + 9.0)
    assert (plain.binds, waiting.binds) == ("compute", "reading")
    judged = judge(Way(1), base(1e9), replace(work(), reading=9.0), ONE)
    assert judged.time.step == pytest.approx(judge(Way(1), base(1e9), work(), ONE).time.step + 9.0)


def test_gathers_that_round_are_named_and_not_taken():
    slow = Machines(find_hardware("h200", ("ethernet", None)), 1, 8)
    advice = advise(base(72e9), work(), slow)
    assert not advice.best.way.quantised_gathers
    (line,) = (line for line in advice.words if "zero_quantized_nontrainable_weights" in line)
    assert line.startswith("not taken, as it rounds the frozen weights")
    fewer, more = (judge(replace(Way(3), quantised_gathers=r), base(72e9), work(), slow).sent for r in (True, False))
    assert fewer["all-gather"] < 0.6 * more["all-gather"]
    # Where the link does not bind nothing is gained, and nothing said.
    assert not any("nontrainable" in line for line in advise(base(72e9), work(1e18), EIGHT).words)


def test_products_in_fp32_take_the_rate_of_fp32():
    for name in ("h100", "h200", "a100", "l40s", "4090"):
        single = in_fp32(HARDWARE[name])
        assert HARDWARE[name].flops / 20 < single.flops < HARDWARE[name].flops
        assert single.seconds(1e12, 0) > HARDWARE[name].seconds(1e12, 0)
    assert in_fp32(HARDWARE["cpu"]) == HARDWARE["cpu"]


def test_a_rate_between_two_sizes_lies_between_their_rates():
    curve = ((100.0, 10.0), (10_000.0, 1000.0))
    assert [at(curve, size) for size in (1, 100, 1000, 10_000, 1e9)] == pytest.approx([10, 10, 100, 1000, 1000])


def test_a_table_has_a_cell_for_every_size_and_number(monkeypatch):
    def played(parts, shape):
        layers = [part.layers for part in parts]
        return [replace(rehearsed(n), quantisable_numbers=10**9 * n, frozen_numbers=10**9 * n) for n in layers]

    monkeypatch.setattr("egmf_dist.scale.table.rehearse", played)
    config = Config(training=replace(Config().training, global_batch=512))
    said = []
    rows = table(config, EIGHT, QUICK, said.append, ("qwen2.5-7b", "qwen2.5-72b"))
    assert [row["GPUs"] for row in rows] == [*WORLDS, *WORLDS]
    assert {row["figures"] for row in rows} == {"predicted"}
    assert len(said) == 2
    assert max(row["efficiency"] for row in rows) == 1
    page = markdown(rows)
    assert page.count("predicted: ") == 10
    assert [line.count("|") for line in page.splitlines()] == [7, 7, 7, 7]
    with pytest.raises(
        EgmfError, match=r"training.global_batch is 20; --table needs as many samples on each of 8 ranks"
    ):
        table(replace(config, training=replace(config.training, global_batch=20)), EIGHT, QUICK, said.append)


def test_a_size_that_fits_nowhere_says_what_it_would_need(monkeypatch):
    huge = [replace(rehearsed(n), frozen_numbers=10**12 * n, quantisable_numbers=10**12 * n) for n in (2, 4)]
    monkeypatch.setattr("egmf_dist.scale.table.rehearse", lambda parts, shape: huge * 2)
    rows = table(Config(), replace(EIGHT, ranks_per_host=1), QUICK, lambda _: None, ("qwen2.5-72b",))
    assert rows[0]["step_s"] is None
    assert "nothing fits" in markdown(rows)


@pytest.fixture
def uneven(tmp_path, random_backbone):
    """One utterance of 120 words among fifteen of a few."""
    with ShardWriter(tmp_path / "data", "uneven", [TASK], {}) as writer:
        for split, count in (("train", 16), ("valid", 2)):
            for number in range(count):
                words = 120 if (split, number) == ("train", 11) else 3 + number % 3
                writer.write(
                    Sample(
                        id=f"{split}-{number}", text=" ".join(["glad"] * words), language="en", task=TASK.name,
                        dataset="uneven", split=split, modalities=("text",), label=TASK.labels[0], speaker="A",
                        dialogue=f"{split}-{number}", turn=0,
                    )
                )  # fmt: skip
    return Config(
        data=DataConfig(shards=[str(tmp_path / "data")], context_turns=0, max_text_tokens=128),
        backbone=BackboneConfig(path=str(random_backbone), lora_rank=4),
        model=ModelConfig(width=32, heads=2, pseudo_tokens=2),
        training=TrainingConfig(global_batch=8, micro_batch=2, precision="fp32", zero_stage=1),
    )


def test_a_plan_holds_the_longest_sample_and_waits_for_the_heaviest_rank(uneven):
    with read_subject(uneven) as subject:
        stream = subject.stream(0, 4)
        usual = [batch for step in range(2) for batch in subject.batches(stream, step)]
        longest = subject.longest(stream)
        assert "train-11" in longest.ids
        assert len(longest.ids) == max(len(batch.ids) for batch in usual)
        shares = [subject.heaviest(4, step) for step in range(2)]  # one epoch: one of them holds it
        assert max(share.load for share in shares) > 1.5
        for step, share in enumerate(shares):
            own = [part for part in subject.stream(share.rank, 4).plan(8 * step) for part in part]
            holds = any(subject.shards.key(slot.index) == "train-11" for slot in own)
            assert holds == (share.load > 1.5)
