"""Full wordings of error messages, in one snapshot file; other tests assert types and keys.

After a deliberate change of wording: `pytest tests/integration/test_messages.py --snapshot-update`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from imsm.config.compose import ConfigComposer

COMMANDS = (
    "gate.rank=0 seed=-1 trainer.learning_rate=-1",
    "trainer.epochs=3",
    "peft=lorra",
    "lora",
    "method=original,peft",
    "+backbone=llama3",
    "~gate",
    "data=jsonl",
    "data=jsonl data.local_dir=/nowhere",
    "data.mirror_dir=/nowhere",
    "data.source=mirror",
    "data=freebaseqa",
    "data.chat_template=true",
    "data.metric=contian",
    "evaluation.tasks=[target,webqq]",
    "evaluation.tasks=[webq,webq]",
    "evaluation.limit=0",
    "evaluation.limit_by_task={cola:3}",
    "evaluation.protocol=clean",
    "backbone.name_or_path=/nowhere",
    "backbone.name_or_path=a/b/c",
    "backbone.dtype=float16",
    "backbone.local_resolver=os.getcwd",
    "peft.target_roles=[]",
    "peft.target_roles=[attention_querry]",
    "peft.r=0",
    "peft.rank=8",
    "peft=generic",
    "peft=generic peft.peft_type=HRA peft.kwargs={rr:8}",
    "peft=prompt_tuning peft.target_roles=[attention_query]",
    "peft=adalora peft.target_r=99",
    "gate.rank=null",
    "gate=no_gate gate.rank=4",
    "gate.trainable=false",
    "gate.init_value=0.5",
    "gate.inputs=[tuned,tuned]",
    "gate.pooling=median",
    "method.trainable=false",
    "trainer.micro_batch_size=3",
    "trainer.metric_for_best_model=validation_loss",
    "trainer.kl_mask_target=true",
    "trainer.optimizer=sgd",
    "engine.hostfile=hosts",
    "resume=maybe",
    "resume=/nowhere",
    "task_sequence=[gsm8k]",
    "task_sequence=[gsm8k,gsm8k]",
    "task_sequence=[gsm8k,mrpc] run_dir=here",
    "task_sequence=[gsm8k,mrpc] data=cola",
    "mode=evaluate run_dir=/nowhere",
    "mode=prepare",
    "frozen_adapter=/nowhere",
    "hidden_state_cache=maybe",
    "logger=wandbb",
    "sweep=local",
)


def test_messages_of_invalid_commands(
    snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMSM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    composer = ConfigComposer(None)
    messages = {
        command: [line.replace(str(tmp_path), "<folder>") for line in composer.validate(command.split(), sweep=False)]
        for command in COMMANDS
    }
    assert [command for command, found in messages.items() if not found] == []
    assert messages == snapshot
