"""`mode=plan`: the paper's parameter counts, and a plan that needs no download and writes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imsm.models.backbones.loading import load_backbone
from imsm.models.builder import count_trainable, wrap_backbone
from imsm.pipeline.model import build_adapter, model_kwargs
from imsm.pipeline.plan.plan import build_plan_model, make_plan
from imsm.utils.errors import UserError
from imsm.utils.options import list_options
from tests.helpers.cli import imsm_run
from tests.helpers.config import config
from tests.helpers.paths import ROOT
from tests.helpers.tiny_backbone import save_backbone

# Millions, as the paper prints them. The command of a cell:
#   python -m imsm.run mode=plan backbone=B peft=P method=M gate.rank=R
# Table 1: (backbone, peft) -> vanilla PEFT, IMSM (rank 8).
TABLE_1 = {
    ("chatglm3", "lora"): (3.899, 4.063),
    ("chatglm3", "ia3"): (0.513, 0.676),
    ("chatglm3", "adalora"): (2.925, 3.089),
    ("qwen1_5", "lora"): (3.277, 3.379),
    ("qwen1_5", "ia3"): (0.205, 0.307),
    ("qwen1_5", "adalora"): (2.458, 2.560),
    ("llama3", "lora"): (6.816, 6.980),
    ("llama3", "ia3"): (0.524, 0.688),
    ("llama3", "adalora"): (5.113, 5.276),
}
# Table 6: peft -> IMSM on Llama 3 with the gate's rank 4, 8, 16.
TABLE_6 = {"lora": (6.898, 6.980, 7.143), "ia3": (0.606, 0.688, 0.852), "adalora": (5.194, 5.276, 5.440)}
CELLS = [
    (f"backbone={backbone} peft={peft} method={method} gate.rank=8", millions)
    for (backbone, peft), cells in TABLE_1.items()
    for method, millions in zip(("peft", "imsm"), cells, strict=True)
] + [
    (f"backbone=llama3 peft={peft} method=imsm gate.rank={rank}", millions)
    for peft, cells in TABLE_6.items()
    for rank, millions in zip((4, 8, 16), cells, strict=True)
]
_TYPE = {"generic": ("peft.peft_type=HRA",)}


def counted(command: str) -> dict[str, int]:
    model, notes = build_plan_model(config("mode=plan", *command.split()))
    assert model is not None
    assert notes == []
    assert {p.device.type for p in model.parameters()} == {"meta"}
    return count_trainable(model)


def test_all_cells_of_both_paper_tables_are_tested() -> None:
    assert len(CELLS) == 27


@pytest.mark.parametrize(("command", "millions"), CELLS, ids=[command for command, _ in CELLS])
def test_parameter_counts_match_the_paper(command: str, millions: float) -> None:
    counts = counted(command)
    assert f"{sum(counts.values()) / 1e6:.3f}" == f"{millions:.3f}"
    assert ("method=imsm" in command) == (counts["gate"] > 0)


@pytest.mark.parametrize(
    ("command", "millions"),
    [
        ("backbone=llama2 peft=loramoe method=peft", 51.3),  # the released 8 experts of rank 4
        ("backbone=llama2 peft=loramoe peft.num_experts=6 method=peft", 38.5),
        ("backbone=llama2 peft=lora method=peft", 23.2),  # the MLP, as in the released code
    ],
)
def test_parameter_counts_of_loramoe_and_comparable_lora(command: str, millions: float) -> None:
    assert round(sum(counted(command).values()) / 1e6, 1) == millions


def test_the_original_has_no_trainable_parameters() -> None:
    plan = make_plan(config("mode=plan", "backbone=llama3", "method=original"))
    assert plan.trainable == {"adapter": 0, "gate": 0}
    assert list(plan.memory) == ["memory per GPU, evaluation"]
    assert plan.steps == "none: nothing is trained"


def test_steps_are_counted_for_local_data_and_known_for_hub_data() -> None:
    local = make_plan(config("mode=plan", "trainer.num_epochs=2", "trainer.global_batch_size=16"))
    assert local.steps.startswith("250 (2 epochs of 2,000 examples")
    hub = make_plan(config("mode=plan", "backbone=llama3", "data=mrpc", "peft=ia3"))
    assert hub.steps.startswith("1,377 (3 epochs of 3,668 examples, batches of 8")
    few = make_plan(config("mode=plan", "data.max_train_examples=40", "trainer.global_batch_size=16"))
    assert few.steps.startswith("6 (2 epochs of 40 examples")
    assert [item.location for item in local.downloads] == ["included in imsm"]
    assert {item.name for item in hub.downloads if item.name.startswith("model")} == {
        "model meta-llama/Meta-Llama-3-8B"
    }


def test_the_configuration_of_a_local_folder_takes_precedence(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", texts=["a b c"])
    run = config("mode=plan", "backbone=llama3", f"backbone.name_or_path={folder}", "method=peft")
    model, _ = build_plan_model(run)
    assert model is not None
    assert count_trainable(model)["adapter"] == 2 * 16 * ((32 + 32) + (32 + 16))


@pytest.mark.parametrize("peft", [name for name in list_options("peft") if name != "generic"])
def test_counts_match_a_real_model(peft: str, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "model", texts=["a b c d"])
    chosen = ["backbone=llama3", f"backbone.name_or_path={folder}", f"peft={peft}", "method=imsm"]
    run = config("mode=plan", *chosen, "backbone.dtype=float32")
    model, _ = build_plan_model(run)
    assert model is not None
    real = wrap_backbone(
        load_backbone(name_or_path=str(folder), attn_implementation="sdpa"),
        adapter=build_adapter(run),
        **model_kwargs(run),
    )
    assert count_trainable(model) == count_trainable(real)
    assert count_trainable(model)["adapter"] > 0


@pytest.mark.parametrize("peft", list_options("peft"))
def test_every_method_finds_its_modules_in_fused_matrices(peft: str) -> None:
    chosen = config("mode=plan", "backbone=chatglm3", f"peft={peft}", *_TYPE.get(peft, ()))
    assert chosen.peft.target_modules(chosen.backbone) or not chosen.peft.target_roles


def test_loramoe_on_chatglm3_adapts_the_fused_mlp() -> None:
    width, inner, layers = 4096, 13696, 28
    sizes = [(width, 2 * inner), (inner, width)]  # dense_h_to_4h, dense_4h_to_h
    experts = sum(8 * 4 * (inputs + outputs) + 8 * inputs for inputs, outputs in sizes)
    found = counted("backbone=chatglm3 peft=loramoe method=peft")
    assert found["adapter"] == layers * experts


@pytest.mark.parametrize(
    ("gate", "parameters"),
    [
        ("additive", 8 * (2 * 4096 + 4096)),
        ("constant", 0),
        ("no_gate", 0),
        ("query", 8 * (4 * 4096 + 4096)),
        ("query_only", 8 * (2 * 4096 + 4096)),
        ("residual", 8 * (2 * 4096 + 4096)),
        ("learned_scalar", 1),
        ("no_query", 8 * (2 * 4096 + 4096)),
        ("learned_vector", 4096),
    ],
)
def test_gate_parameters(gate: str, parameters: int) -> None:
    found = counted(f"backbone=llama3 method=imsm gate={gate}")
    assert found["gate"] == parameters


def test_a_custom_hub_id_is_noted_to_have_the_assumed_architecture() -> None:
    run = config("mode=plan", "backbone=llama3", "backbone.name_or_path=somebody/llama", "method=peft")
    model, (note,) = build_plan_model(run)
    assert model is not None
    assert "somebody/llama" in note and "meta-llama/Meta-Llama-3-8B" in note


def test_an_unknown_architecture_is_noted_with_the_command_that_downloads_it() -> None:
    plan = make_plan(config("mode=plan", "backbone=llama3", "backbone.architecture=null"))
    assert plan.trainable is None
    (note,) = plan.notes
    assert "hf download meta-llama/Meta-Llama-3-8B config.json" in note
    assert plan.steps.startswith("1,404 ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+backbone.architecture.hiden_size=8", "did you mean backbone.architecture.hidden_size=8"),
        ("backbone.architecture.model_type=lama", "no such model"),
        ("backbone.architecture.num_attention_heads=7", "multiple of the number of attention"),
        ("backbone.architecture.hidden_size=many", "hidden_size"),
    ],
)
def test_an_invalid_architecture_is_rejected(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_plan_model(config("mode=plan", "backbone=llama3", override))


SITE = """
import socket, sys

def refuse(*_, **__):
    raise OSError("no network in this test")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder and home, without a network."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    here = tmp_path / "here"
    here.mkdir()
    paths = [str(tmp_path / "site"), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-m", "imsm.run", *arguments],
        capture_output=True,
        text=True,
        cwd=here,
        env={
            **os.environ,
            "HOME": str(tmp_path / "home"),
            "IMSM_RUNS": str(tmp_path / "runs"),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        timeout=300,
    )


@pytest.mark.slow
def test_the_plan_of_one_run_is_a_page(tmp_path: Path) -> None:
    done = command(tmp_path, "mode=plan", "backbone=llama3", "peft=lora", "data=gsm8k")
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert "trainable parameters: 6,979,584 (adapter 6,815,744, gate 163,840)" in lines
    for part in ("weights", "gradients", "optimizer", "activations", "answer logits", "KV caches"):
        assert any(line.startswith(f"{part} ") for line in lines), part
    assert any(re.match(r"hidden-state cache +6\.00 GB", line) for line in lines)
    assert any(re.match(r"steps +1,404 ", line) for line in lines)
    assert "model meta-llama/Meta-Llama-3-8B, about 16.06 GB" in done.stdout
    assert done.stderr == ""
    left = {path.name for path in tmp_path.rglob("*")} - {"site", "sitecustomize.py", "here"}
    assert left == set()


def test_the_plan_of_a_sweep_is_a_block_per_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert imsm_run(monkeypatch, "-m", "mode=plan", "backbone=llama3", "gate.rank=4,8") == 0
    output = capsys.readouterr().out
    found = re.findall(r"^ *trainable parameters: .*$", output, re.M)
    assert [line.strip() for line in found] == [
        "trainable parameters: 6,897,664 (adapter 6,815,744, gate 81,920)",
        "trainable parameters: 6,979,584 (adapter 6,815,744, gate 163,840)",
    ]
    assert len(output.splitlines()) < 20
    assert not list(tmp_path.iterdir())


def test_a_plan_needs_no_writable_runs_folder(monkeypatch, tmp_path: Path) -> None:
    from imsm.config.compose import ConfigComposer

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "file" / "runs"))
    checks = ConfigComposer()
    assert checks.validate(["mode=plan"], sweep=False) == []
    assert len(checks.validate(["mode=run"], sweep=False)) == 1
    assert len(checks.validate(["mode=plan,run"], sweep=True)) == 1


def test_virtual_tokens_need_memory() -> None:
    """Only the tuned stream has keys and values of virtual tokens."""
    overrides = ("backbone=llama3", "trainer=paper", "data.source=hub", "peft=prefix_tuning")
    few, many = (
        {
            part.name: part.size or 0
            for group in make_plan(config(*overrides, f"peft.num_virtual_tokens={count}")).memory.values()
            for part in group
        }
        for count in (20, 1020)
    )
    keys_and_values = 32 * 2 * 8 * 128 * 2  # layers, both, heads, width, bytes of bfloat16
    assert many["KV caches"] - few["KV caches"] == 16 * 1000 * keys_and_values
    assert many["activations"] > few["activations"]


def test_a_kl_penalty_needs_memory_for_the_logits() -> None:
    def logits(*more: str) -> int:
        plan = make_plan(config("method=peft", *more), overrides=[])
        parts = [part for group in plan.memory.values() for part in group]
        (found,) = (part.size for part in parts if part.name == "answer logits")
        return found

    plain = logits()
    assert plain < logits("trainer.kl_beta=1")
    masked = logits("trainer.kl_beta=1", "trainer.kl_mask_target=true")
    assert logits("trainer.kl_beta=1") < masked
